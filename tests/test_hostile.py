"""A matrix on hostile rows, under hostile names, judged by hostile replies: nothing is executed, and nothing is lost."""

from __future__ import annotations

import csv
import gzip
import json
import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from chromium import Tab, chromium
from conftest import SMALL_SPEC
from endpoint import Answer, Endpoint, in_thread, refusal
from judge_setup import SECRET
from markdown_it import MarkdownIt

import spo_bench
from spo_bench.errors import InputError
from spo_bench.files import read_json, read_jsonl
from spo_bench.models.embedded import build_embedded
from spo_bench.models.policy import load_tokenizer
from spo_bench.plugins import get_task
from spo_bench.report import TABLES
from spo_bench.stages.data import ROOM, prepare
from spo_bench.task import SPLITS
from tasks._pairs import EVAL_SHARE, HELDOUT_SHARE, bucket
from tasks._read import LARGEST

TEXTS = {
    "osc 8": "\x1b]8;;https://evil.invalid\x1b\\click\x1b]8;;\x1b\\ here",
    "osc 52": "\x1b]52;c;ZXZpbA==\x07 copied",
    "c1": "\x9b31mred\x9b0m \x90q\x9c end",
    "script": "</script><script>window.hacked = 1; alert(1)</script><img src=x onerror='window.hacked = 2'>end",
    "comment": "<!-- <script> --> ]]> <svg onload=alert(3)> <iframe src='javascript:alert(4)'></iframe> end",
    "formula": "=cmd|'/c calc'!A1",
    "plus": "+1+1",
    "minus": "-2+3",
    "at": "@SUM(1+1)",
    "tex": "\\input{/etc/passwd} \\write18{touch pwned} $x$ % {} # & _ ^ ~ \\end{document} x",
    "null": "a\x00b",
    "right to left": "abc \u202e cba \u2066 x \u200f end",
    "zero width": "a\u200bb\u200dc\ufeffd e",
    "line ends": "one\u2028two\u2029three\x85four\x0bfive",
    "long word": "w" * 20_000 + " end",
    "markdown": "| a | b |\n|---|---|\n| ![x](http://evil.invalid/x.png) [y](javascript:alert(5)) | `code` ``` \n end",
    "yaml": "- a: !!python/object/apply:os.system ['touch pwned']\n  b: *c end",
    "rich": "[red]not red[/red] [link=https://evil.invalid]x[/link] [/]",
    "template": "{{ 7 * 7 }} {% for x in y %} {prompt} {a} {b} %s %(x)s ${x} end",
    "emoji": "\U0001f600\U0001f469\u200d\U0001f4bb \ufffe \uffff \U0010ffff end",
}
UNUSABLE = {
    "lone surrogate": ("half \ud800", "half a character"),
    "special": ("<eos> <assistant> end", "contains a special token of the model"),
    "too long": ("word " * (ROOM // 5), f"more than {ROOM:,}"),
}
PARTS = ("eval", "train", "heldout")
NAMES = ("prompt", "chosen", "rejected")
LABELS = {
    "model": "=cmd|'/c calc'!A1 <img src=x onerror=alert(6)>",
    "task": "\\input{secret} \\write18{touch pwned} $\\frac$ 100% #1 {x",
    "dpo": "</script><script>alert(7)</script> & \"q\" 'q' --> ]]> ![x](http://evil.invalid)",
    "ipo": "+x;=1+1 | [a[b]](javascript:alert(8)) `c` ^^41 \\x $\\frac$ _y_ ~",
}
REPLY = f"</script><script>alert(9)</script>\x1b]52;c;ZXZpbA==\x07 \x9b31m \u202e {{{{ 7 * 7 }}}} =1+1 half \ud800 {SECRET} [[A]]"


def hostile(body: dict[str, Any], number: int) -> Answer:
    """Judge in hostile words, and repeat the key wherever there is room for it."""
    if number % 9 == 8:
        return refusal(500, f"key {SECRET} met a fault {REPLY}")
    reply = json.loads(Answer(REPLY).payload()) | {"model": f"judge {REPLY}", "system_fingerprint": SECRET}
    return Answer(body=json.dumps(reply).encode())


def row(part: str, name: str, field: str, text: str) -> dict[str, str]:
    """A preference one of whose texts is hostile, with a cluster whose hash puts it into this split."""
    found = {"prompt": f"{part} {name} {field}: what grows?", "chosen": f"{name} good plant", "rejected": f"{name} stones"}
    found[field] = f"{text} {part} {name}" if field == "prompt" else text
    limits = {
        "eval": (0.0, EVAL_SHARE),
        "heldout": (EVAL_SHARE, EVAL_SHARE + HELDOUT_SHARE),
        "train": (EVAL_SHARE + HELDOUT_SHARE, 1),
    }
    low, high = limits[part]
    names = (f"{name} {field} {number}" for number in range(10_000))
    return {**found, "cluster": next(one for one in names if low <= bucket(f"cluster/{one}") < high)}


def rows() -> list[tuple[str, str, dict[str, str], str]]:
    """Every text in every field and split: (split, its name, the row, why it cannot be used or nothing)."""
    texts = {name: (text, "") for name, text in TEXTS.items()} | UNUSABLE
    return [
        # The model's own tokens in a prompt are the template's business.
        (part, name, row(part, name, field, text), "" if (name, field) == ("special", "prompt") else why)
        for name, (text, why) in texts.items()
        for part in PARTS
        for field in NAMES
    ]


@dataclass(frozen=True)
class World:
    """A finished matrix: its directory, its data with the large row at the end, and the spec."""

    out: Path
    data: Path
    spec: dict[str, Any]
    store: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("hostile")
    data = folder / "rows.jsonl"
    with data.open("w") as lines:
        lines.writelines(json.dumps(one) + "\n" for _, _, one, _ in rows())
        lines.write(json.dumps({"prompt": "word " * 10_000_000, "chosen": "a", "rejected": "b"}) + "\n")
    with pytest.MonkeyPatch.context() as patch, in_thread(Endpoint(hostile)) as endpoint:
        patch.setenv("JUDGE_KEY", SECRET)
        asked = {"backend": "openai", "model": "judge-2030-01-01", "base_url": endpoint.url, "api_key_env": "JUDGE_KEY"}
        spec = {
            **SMALL_SPEC,
            "name": "hostile",
            "models": [{"path": "embedded", "label": LABELS["model"]}],
            "tasks": [{"name": "dialogue", "label": LABELS["task"], "data": str(data), "max_dropped": 0.15}],
            "methods": [{"name": name, "label": LABELS[name]} for name in ("dpo", "ipo")],
            "judge": {**asked, "verdict": "text", "orders": "one", "audit": 4},
        }
        done = spo_bench.run(spec, folder / "run", store=folder / "store", device="cpu")
        assert not done.failed, done.failed
        yield World(done.out, data, spec, folder / "store")


# --- rows -----------------------------------------------------------------------------------------------------------------


def test_every_row_is_kept_to_the_byte_or_counted_with_its_number_and_reason(world):
    """Each text of 20 that are odd, and 3 that no row can hold, stands in every field of every split; line 208 has 50 MB."""
    (audit,) = read_json(world.out / "run.json")["audits"].values()
    placed = [(number, part, one, why) for number, (part, _, one, why) in enumerate(rows(), start=1)]
    last = bucket(f"row/{len(placed)}")
    large = "eval" if last < EVAL_SHARE else "heldout" if last < EVAL_SHARE + HELDOUT_SHARE else "train"
    placed.append((len(placed) + 1, large, {}, f"at most {LARGEST:,} are read"))
    for split in SPLITS:
        mine = [(number, why) for number, part, one, why in placed if part == ("train" if split == "sft" else split)]
        counts = audit["splits"][split]
        named = {one["number"]: one["reason"] for one in audit["dropped_rows"] if one["split"] == split}
        assert (counts["rows"], counts["kept"] + counts["dropped"], len(named)) == (len(mine), len(mine), counts["dropped"])
        for number, why in mine:
            rejected = placed[number - 1][2].get("rejected", "")
            if split == "sft" and why and any(rejected == text for text, _ in UNUSABLE.values()) and "half" not in why:
                why = ""  # demonstrations have no rejected answer
            assert (why in named[number]) if why else number not in named, (split, number, named.get(number), why)

    (baseline,) = [path for path in (world.out / "cells").iterdir() if read_json(path / "spec.json")["method"] == "sft"]
    kept = {tuple(one[name] for name in NAMES) for one in read_jsonl(baseline / "samples.jsonl")}
    assert kept == {tuple(one[name] for name in NAMES) for _, part, one, why in placed if part == "eval" and not why}


def test_too_many_unusable_rows_refuse_the_run_with_their_numbers(world, tmp_path):
    spec = {**world.spec, "tasks": [{**world.spec["tasks"][0], "max_dropped": 0.05}], "judge": None}
    with pytest.raises(InputError, match="rows are unusable") as caught:
        spo_bench.run(spec, tmp_path / "run", store=world.store, device="cpu")
    assert re.search(r"row \d+: ", caught.value.given)
    assert not (tmp_path / "run").exists()


TURN = "\\n\\nHuman: a"
LARGE = {
    "a text": ('{"prompt": "', "word ", '", "chosen": "a", "rejected": "b"}'),
    "a text on end": ('{"prompt": "p", "chosen": "', "w", '", "rejected": "b"}'),
    "turns of one speaker": ('{"prompt": "Human: a', TURN, '\\n\\nAssistant:", "chosen": "a", "rejected": "b"}'),
    "messages": ('{"prompt": [', '{"role": "user", "content": ""}, ', '{"role": "user", "content": "a"}], "chosen": "a", "rejected": "b"}'),
    "nothing": ('{"prompt": "p", "chosen": "a", "rejected": "b", "more": [', "{},", "{}]}"),
    "responses": ('{"prompt": "p", "scores": [1, 2], "responses": [', '"a",', '"b"]}'),
}  # fmt: skip


def peak() -> int:
    """Return the most bytes this process had in memory since it was last asked to forget."""
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
@pytest.mark.parametrize("shape", LARGE)
def test_a_row_of_50_megabytes_takes_no_memory(tmp_path, shape, ending):
    """It is passed over in parts of 4 MB: 30 MB at most, where as objects it would be up to 2 GB."""
    start, middle, end = LARGE[shape]
    path = tmp_path / f"rows{ending}"
    with gzip.open(path, "wt", compresslevel=1) if ending.endswith(".gz") else path.open("w") as lines:
        lines.write(start)
        for _ in range(50):
            lines.write(middle * (1_000_000 // len(middle)))
        lines.write(f"{end}\n")
        lines.write('{"prompt": "p", "chosen": "good", "rejected": "bad"}\n')
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")
        before = peak()
    task = get_task("dialogue", str(path))
    found = [one for split in PARTS for one in task.load(split, None, 0)]
    if Path("/proc/self/clear_refs").exists():
        assert peak() - before < 30e6
    assert [(one.number, one.unusable or "") for one in sorted(found, key=lambda one: one.number)] == [
        (1, f"the row has {path_size(path) - 53:,} bytes or more, and at most {LARGEST:,} are read"),
        (2, ""),
    ]


def path_size(path: Path) -> int:
    """Return the bytes of a file's content."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as content:
        return sum(map(len, iter(lambda: content.read(1 << 20), b"")))


@pytest.mark.parametrize("shape", ["a text", "a text on end", "turns of one speaker"])
def test_what_is_read_but_too_long_is_not_tokenised(tmp_path, shape):
    """A row of 3 MB is read; the tokenizer is given nothing longer than the room of a row, and a prompt with its answer."""
    start, middle, end = LARGE[shape]
    path = tmp_path / "rows.jsonl"
    path.write_text(
        start + middle * (3_000_000 // len(middle)) + end + "\n" + json.dumps({"prompt": "p", "chosen": "a b", "rejected": "c"})
    )
    build_embedded(tmp_path / "model", 0)
    tokenizer, longest = load_tokenizer(tmp_path / "model"), [0]

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def __call__(self, text: str, **options: Any) -> Any:
            longest[0] = max(longest[0], len(text))
            return tokenizer(text, **options)

    task = get_task("dialogue", str(path))
    kept, dropped = [], []
    for split in PARTS:
        found = prepare(task, task.load(split, None, 0), split, Watched(), 128)
        kept += found[0]
        dropped += found[2]
    assert [one["number"] for one in kept] == [2]
    assert [one["number"] for one in dropped] == [1]
    assert f"more than {ROOM:,}" in dropped[0]["reason"]
    assert longest[0] < 100


def test_the_judge_s_key_is_in_no_file(world):
    """Neither of the run nor of the store, which hold what the judge said without it."""
    kept = b"\n".join(path.read_bytes() for folder in (world.out, world.store) for path in folder.rglob("*") if path.is_file())
    assert b"[key]" in kept
    assert SECRET.encode() not in kept


# --- tables and figures ---------------------------------------------------------------------------------------------------


def tables(world: World, ending: str) -> dict[str, str]:
    found = {path.stem: path.read_bytes().decode() for path in (world.out / "tables").glob(f"*.{ending}")}
    assert found.keys() >= {"main", "effects", "cost", "data", "hyperparameters", "audit", "judge"}
    assert found.keys() <= set(TABLES)
    return found


def test_no_file_that_is_shown_holds_hidden_characters(world):
    """Names cannot hold them; texts are packed, or escaped as JSON, in what a terminal might show."""
    for path in sorted(world.out.rglob("*")):
        if path.suffix in (".md", ".tex", ".csv", ".html") and path.is_file() and "policy" not in path.parts:
            text = path.read_bytes().decode()
            assert [hex(ord(one)) for one in text if (ord(one) < 32 and one != "\n") or 127 <= ord(one) < 160] == [], path
            assert not re.search("[\u202a-\u202e\u2066-\u2069]", text), path


def test_a_spreadsheet_finds_no_formula_and_every_number(world):
    for name, text in tables(world, "csv").items():
        heads, *body = csv.reader(text.splitlines())
        for line in [heads, *body]:
            for field in line:
                for part in re.split("[;\t]", field):
                    assert not part.startswith(("=", "+", "@")), (name, field)
                    assert not part.startswith("-") or math.isfinite(float(part)), (name, field)
    main = list(csv.DictReader(tables(world, "csv")["main"].splitlines()))
    assert {one["model"] for one in main} == {f"'{LABELS['model']}"}
    assert f"'{LABELS['ipo']}".replace(";=", ";'=") in {one["method"] for one in main}
    effects = list(csv.DictReader(tables(world, "csv")["effects"].splitlines()))
    assert any(value.startswith("-") for one in effects for value in one.values())


def test_json_says_the_names_as_they_are(world):
    rows = json.loads(tables(world, "json")["main"])["rows"]
    assert {one["entries"]["model"]["value"] for one in rows} == {LABELS["model"]}
    assert {one["entries"]["method"]["value"] for one in rows} >= {LABELS["dpo"], LABELS["ipo"]}


class Tags(HTMLParser):
    """The tags and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: dict[str, set[str]] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, set()).add(value or "")


def test_html_and_markdown_hold_no_element_that_a_name_brought(world):
    """Markdown as GitHub reads it, with HTML in it let through."""
    plain = {"figure", "div", "table", "thead", "tbody", "tr", "th", "td", "b", "u", "i", "small", "sup", "span", "figcaption"}
    for name, text in tables(world, "html").items():
        found = Tags(text)
        assert found.tags <= plain, name
        assert not any(one.startswith("on") or one in ("href", "src") for one in found.attributes), name
    markdown = MarkdownIt("gfm-like", {"html": True, "linkify": False})
    for name, text in tables(world, "md").items():
        found = Tags(markdown.render(text))
        assert found.tags <= plain | {"p", "strong", "em"}, name
        assert found.attributes.keys() <= {"style"}, name


def test_latex_reads_and_runs_nothing(world, tmp_path):
    if not shutil.which("pdflatex"):
        pytest.skip("no pdflatex here")
    (tmp_path / "secret.tex").write_text(r"\typeout{READ IT}")
    packages = r"\documentclass{article}\usepackage[utf8]{inputenc}\usepackage{textcomp,booktabs,graphicx}"
    body = "\n\\clearpage\n".join(tables(world, "tex").values())
    (tmp_path / "t.tex").write_text(packages + r"\begin{document}" + body + r"\end{document}", encoding="utf-8")
    command = ["pdflatex", "-halt-on-error", "-shell-escape", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False)
    if "not found" in done.stdout and ".sty" in done.stdout:
        pytest.skip("pdflatex lacks a package here")
    assert done.returncode == 0, done.stdout[-2000:]
    assert "READ IT" not in done.stdout
    assert "runsystem" not in done.stdout
    assert not (tmp_path / "pwned").exists()


def test_figures_are_pictures_only(world):
    """No script, no link and no text that is code: names are drawn as they are, dollar signs and all."""
    drawn = sorted((world.out / "figures").iterdir())
    assert {path.suffix for path in drawn} == {".svg", ".pdf", ".png"}
    for path in drawn:
        assert re.fullmatch(r"[A-Za-z0-9_.-]+", path.name)
        content = path.read_bytes()
        if path.suffix == ".svg":
            for one in ElementTree.fromstring(content).iter():
                assert str(one.tag).rpartition("}")[2] in ("svg", "metadata", "RDF", "Work", "type", "format", "creator", "Agent",
                    "title", "defs", "style", "g", "path", "use", "clipPath", "rect", "pattern", "text", "tspan", "image"), one.tag  # fmt: skip
                for name, value in one.attrib.items():
                    assert not name.lower().startswith("on")
                    assert not name.endswith("href") or value.startswith("#"), value
        elif path.suffix == ".pdf":
            assert not re.search(rb"/(JS|JavaScript|Launch|URI|OpenAction|AA)\b", content)


def test_a_person_s_own_matplotlib_settings_hand_no_name_to_latex(world, tmp_path, monkeypatch):
    """With usetex, a name would be compiled; `matplotlibrc` in the working directory may ask for it."""
    import matplotlib as mpl

    from spo_bench.report.figures import along, degrees, draw, effects, frontier, training, wins
    from spo_bench.report.measure import comparison_rows
    from spo_bench.report.results import read_results
    from spo_bench.report.tables import gather

    monkeypatch.setenv("PATH", str(tmp_path))  # where LaTeX is not
    for other in (along, degrees, effects, frontier, training, wins):  # one figure is enough
        monkeypatch.setattr(other, "draw", lambda numbers: [])
    results = read_results(world.out)
    numbers = gather(results, comparison_rows(results))
    with mpl.rc_context({"text.usetex": True, "text.parse_math": True, "axes.formatter.use_mathtext": True}):
        drawn = draw(numbers)
    assert {one.name for one in drawn} == {"levels"}
    assert drawn[0].svg == (world.out / "figures" / "levels.svg").read_bytes()


# --- the page -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


def test_the_page_runs_nothing_asks_for_nothing_and_shows_the_texts(world, browser):
    opened = Tab(browser, (world.out / "report.html").as_uri())
    with opened as page:
        dialogs: list[str] = []
        page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        for name, wanted in (("script", "window.hacked = 1"), ("tex", "\\write18"), ("null", "null"), ("right to left", "cba")):
            page.fill("#sample-search", wanted)
            page.wait_for_function("() => document.querySelectorAll('#sample-list > li').length < 30")
            assert page.locator("#sample-list > li").count() > 0, name
            page.locator("#sample-list > li [data-sample], #sample-list > li").first.click()
        page.fill("#sample-search", "window.hacked = 1")
        page.wait_for_function("() => document.getElementById('sample-list').textContent.includes('window.hacked = 1')")
        assert page.evaluate("window.hacked") is None
        assert page.evaluate("document.querySelectorAll('script:not([type])').length") == 1
        assert (
            page.evaluate("document.querySelectorAll('iframe, object, embed, base, form, [onerror], [onload], [onclick]').length")
            == 0
        )
        assert page.evaluate("[...document.images].every(one => one.src.startsWith('data:image/svg+xml;base64,'))")
        assert page.evaluate("[...document.links].every(one => ['file:', 'data:'].includes(one.protocol))")
        assert LABELS["dpo"] in page.locator("#table-main").inner_text()
    assert dialogs == []
    assert opened.said == []
    assert [url for url in opened.requests if not url.startswith(("file:", "data:"))] == []


class Listener(Endpoint):
    """A server that only notes what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    async def answer(self, head: str, content: bytes) -> Answer:
        self.asked.append(head.split()[1])
        return Answer(status=404, body=b"")


@pytest.mark.parametrize("guarded", [True, False])
def test_the_page_s_policy_stops_what_would_be_in_it(world, browser, tmp_path, guarded):
    """The same page with a script, a handler, a picture, a frame and more put into it: none is run, and nothing reaches a server
    that waits for them; without the policy they do.
    """
    page = (world.out / "report.html").read_text(encoding="utf-8")
    policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', page)[0]
    with in_thread(Listener()) as server:
        evil = f"<script>window.hacked = 1</script><img src='{server.url}/x.png' onerror='window.handled = 1'>"
        evil += f"<iframe src='{server.url}/frame'></iframe><link rel=stylesheet href='{server.url}/x.css'>"
        changed = page.replace("</header>", f"</header>{evil}").replace(policy, policy if guarded else "")
        (tmp_path / "page.html").write_text(changed, encoding="utf-8")
        opened = Tab(browser, (tmp_path / "page.html").as_uri())
        with opened as tab:
            tab.evaluate(f"fetch('{server.url}/fetched').then(() => 1, () => 1)")
            assert tab.evaluate("[window.hacked, window.handled]") == ([None, None] if guarded else [1, 1])
        wanted = ["/v1/fetched", "/v1/frame", "/v1/x.css", "/v1/x.png"]
        assert sorted(server.asked) == ([] if guarded else wanted)
    assert sum("Content Security Policy" in said for said in opened.said) >= (5 if guarded else 0), opened.said
