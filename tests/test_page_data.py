"""What the page is made of: packed samples, key content by degree, escaped text, tables in their places."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from synthetic_run import EVIL, make_run

from spo_bench.files import read_json, read_jsonl, write_json, write_jsonl
from spo_bench.matrix.load import load_spec
from spo_bench.report.blocks import pack, texts
from spo_bench.report.figures import Drawing
from spo_bench.report.grid import Column, Entry, Table
from spo_bench.report.keycontent import KeyContent
from spo_bench.report.page import page
from spo_bench.report.results import read_results
from spo_bench.report.samples import samples, spread
from spo_bench.spo.degrade import degraded_copies, remove
from spo_bench.spo.keywords import Phrase
from spo_bench.spo.settings import SpoSettings

TEXT = "The noisy badger eats red worms at dawn, and a small hare sleeps by the cold river until late evening comes."


def unpacked(block):
    return json.loads(gzip.decompress(base64.b64decode(block.data)))


def read_blocks(found):
    return {block.id: unpacked(block) for block in found.blocks}


# --- key content --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [{}, {"unit": "word", "order": "position"}, {"order": "random"}, {"control": "random_removal"}, {"degrees": 3, "fractions": (0, 0.2, 0.6)}],
)  # fmt: skip
def test_spans_are_what_the_degraded_copies_lack(settings):
    """Removing all spans of degree k and lower gives the copy of degree k that training sees."""
    content = KeyContent(settings, seed=3)
    numbers = content.spans(TEXT)
    spans = list(zip(numbers[::3], numbers[1::3], numbers[2::3]))
    assert spans == sorted(spans) != []
    copies = degraded_copies(TEXT, SpoSettings(**settings), 3)
    for degree, copy in enumerate(copies):
        gone = [Phrase(start, end, TEXT[start:end], 0, 1) for start, end, k in spans if k <= degree]
        assert copy is None or copy == (remove(TEXT, gone, "delete") if degree else TEXT)
    assert {span[2] for span in spans} == {k for k, copy in enumerate(copies) if k and copy is not None}


def test_spans_count_as_a_browser_counts():
    """A smiling face is one letter in Python and two UTF-16 units in a browser."""
    plain, faces = KeyContent({}, 0).spans(f"To {TEXT}"), KeyContent({}, 0).spans(f"\U0001f600 {TEXT}")
    assert faces == plain


def test_legend_says_what_training_removed_and_from_where():
    assert (
        "deleted, those with the highest RAKE score first: 33\u00a0%, 67\u00a0%, 100\u00a0% at degrees 1 to 3"
        in KeyContent({}, 0).legend()
    )
    assert "copies of its chosen answers" in KeyContent({"side": "chosen", "op": "mask"}, 0).legend()
    assert "masked" in KeyContent({"side": "chosen", "op": "mask"}, 0).legend()
    assert "drawn at random (a control)" in KeyContent({"control": "random_removal"}, 0).legend()
    assert KeyContent({"gamma": 0.1, "label": "+SPO"}, 0).rule == KeyContent({"gamma": 1.0}, 1).rule
    assert KeyContent({"order": "random"}, 0).rule != KeyContent({"order": "random"}, 1).rule


# --- packing ------------------------------------------------------------------------------------------------------------


def test_a_block_holds_any_text_and_nothing_that_a_page_could_read():
    value = {"text": "</script><!-- \u2028 \ud800 \U0001f600 &", "none": None}
    block = pack("a", value)
    assert unpacked(block) == value
    assert re.fullmatch(r"[A-Za-z0-9+/=]+", block.data)
    assert pack("a", value) == block
    with pytest.raises(ValueError, match="not JSON compliant"):
        pack("a", {"x": float("nan")})


def test_long_texts_keep_how_much_was_cut():
    assert texts(["abc", "abcdefgh"], longest=5) == {"text": ["abc", "abcde"], "more": {"1": 3}}
    assert texts(["abc"]) == {"text": ["abc"]}


# --- samples ------------------------------------------------------------------------------------------------------------


def test_spread_is_even_from_lowest_to_highest():
    """Gains 0 to 9 in another order, one NaN: 4 of 10 are ranks 0, 3, 6 and 9, and NaN ranks highest."""
    gains = [7.0, 0.0, 3.0, 9.0, 1.0, 6.0, np.nan, 2.0, 4.0, 5.0]
    assert sorted(gains[i] for i in spread(gains, 4) if not np.isnan(gains[i])) == [0.0, 3.0, 6.0]
    assert 6 in spread(gains, 4)
    assert spread(gains, 10) == list(range(10))


def test_every_sample_of_every_contrast_and_seed(tmp_path):
    out = make_run(tmp_path, methods=("dpo",), steps=2)
    found = samples(read_results(out))
    blocks = read_blocks(found)
    assert (found.shown, found.total) == (2 * 2 * 24, 2 * 2 * 24)
    assert [(one["task"], one["seed"], one["shown"]) for one in blocks["catalogue"]] == [
        (task, seed, 24) for task in ("controlled_dialogue", "controlled_summarization") for seed in (0, 1)
    ]
    part = blocks["catalogue"][1]
    columns, book = blocks[part["block"]], blocks[part["prompts"]]
    rows = {side: {row["id"]: row for row in read_jsonl(out / "cells" / f"embedded-controlled_dialogue-dpo{side}-s1" / "samples.jsonl")}
            for side in ("", "-_SPO")}  # fmt: skip
    scores = [
        read_json(out / "cells" / f"embedded-controlled_dialogue-dpo{side}-s1" / "scores.json")["metrics"]
        for side in ("", "-_SPO")
    ]
    for i in (0, 7, 23):
        name = book["id"][columns["at"][i]]
        assert [side["answer"]["text"][i] for side in columns["sides"]] == [some[name]["answer"] for some in rows.values()]
        values = [one["true_reward"]["values"][one["true_reward"]["ids"].index(name)] for one in scores]
        assert columns["gain"][i] == pytest.approx(values[1] - values[0], rel=1e-4)
        assert [side["metrics"]["true_reward"][i] for side in columns["sides"]] == pytest.approx(values, rel=1e-4)
    assert part["headline"] == next(iter(part["metrics"])) == "true_reward"
    assert len(book["id"]) == 24  # stored once for both seeds


def test_a_gain_in_a_metric_to_be_lowered_is_a_gain(tmp_path):
    out = make_run(tmp_path, tasks=("controlled_dialogue",), methods=("dpo",), seeds=(0,), steps=2)
    for path in (out / "cells").glob("*/scores.json"):
        scores = read_json(path)
        scores["metrics"]["true_reward"]["higher_is_better"] = False
        write_json(path, scores)
    found = read_blocks(samples(read_results(out)))["samples-0"]
    before, after = (np.array(side["metrics"]["true_reward"]) for side in found["sides"])
    assert found["gain"] == pytest.approx((before - after).tolist(), abs=1e-4)


def test_limits_divide_evenly_and_small_parts_leave_their_share(tmp_path):
    """Four parts of 24 and a limit of 40: 10 each. One part cut to 4 samples: the others get 12."""
    out = make_run(tmp_path, methods=("dpo",), steps=2)
    assert [one["shown"] for one in read_blocks(samples(read_results(out), limit=40))["catalogue"]] == [10] * 4
    path = out / "cells" / "embedded-controlled_dialogue-dpo-_SPO-s0" / "samples.jsonl"
    write_jsonl(path, list(read_jsonl(path))[:4])
    found = samples(read_results(out), limit=40)
    assert [(one["shown"], one["total"]) for one in read_blocks(found)["catalogue"]] == [(4, 4), (12, 24), (12, 24), (12, 24)]
    assert (found.shown, found.total) == (40, 76)
    shown = read_blocks(found)["samples-1"]["gain"]
    assert len(set(shown)) == 12


def test_a_page_keeps_to_its_budget(tmp_path):
    out = make_run(tmp_path, tasks=("controlled_dialogue",), methods=("dpo",), prompts=400, steps=2)
    rng = np.random.default_rng(0)
    for path in (out / "cells").glob("*/samples.jsonl"):
        write_jsonl(path, [{**row, "answer": rng.bytes(300).hex()} for row in read_jsonl(path)])
    whole = samples(read_results(out))
    size = sum(len(block.data) for block in whole.blocks)
    less = samples(read_results(out), budget=size // 4)
    assert (whole.shown, less.total) == (800, 800)
    assert 100 < less.shown < 300
    assert sum(len(block.data) for block in less.blocks) < 1.1 * size / 4


def test_answers_that_one_side_lacks_are_left_out(tmp_path):
    out = make_run(tmp_path, tasks=("controlled_dialogue",), methods=("dpo",), seeds=(0,), steps=2)
    path = out / "cells" / "embedded-controlled_dialogue-dpo-s0" / "samples.jsonl"
    write_jsonl(path, list(read_jsonl(path))[5:])
    assert samples(read_results(out)).total == 19
    path.unlink()
    assert samples(read_results(out)).blocks == []


# --- the page -----------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Collects tags that are still open, scripts that run, and addresses."""

    VOID = frozenset(["meta", "link", "img", "br", "hr", "input"])

    def __init__(self):
        super().__init__()
        self.open, self.scripts, self.addresses, self.ids, self.handlers = [], 0, [], [], []

    def handle_starttag(self, tag, attributes):
        known = dict(attributes)
        self.scripts += tag == "script" and "type" not in known
        self.addresses += [known[key] for key in ("src", "href") if key in known]
        self.ids += [known["id"]] if "id" in known else []
        self.handlers += [key for key in known if key.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A page with an unknown table, a failed cell, and hostile names; no figures, which others draw."""
    out = make_run(
        tmp_path_factory.mktemp("run"), methods=("dpo", EVIL), steps=2, failed=(("controlled_dialogue", "dpo", True, 1),)
    )
    unknown = Table("odd", f"Odd {EVIL}", [Column("a", EVIL, numeric=False)], [[Entry(EVIL, EVIL)]])
    return page(read_results(out), {"odd": unknown}, [], [])


def test_page_is_one_well_formed_file_with_everything_escaped(made):
    found = Page()
    found.feed(made)
    assert found.open == []
    assert found.scripts == 1
    assert found.handlers == []
    beside = [address for address in found.addresses if not address.startswith(("#", "data:"))]
    assert beside == [f"tables/odd.{ending}" for ending in ("md", "tex", "csv", "html", "json")]
    assert {address[1:] for address in found.addresses if address.startswith("#")} <= set(found.ids)
    assert len(found.ids) == len(set(found.ids))
    for words in ("quick &lt;demo&gt;", "loss is NaN at step 12", "chosen is empty", "--matrix quick", "took 4 min 10 s"):
        assert words in made
    assert "<script>alert" not in made


def test_the_policy_names_the_script_that_is_there(made):
    script = re.search(r"<script>(.*?)</script>", made, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in made
    assert "default-src 'none'" in made
    assert "<!--" not in script


def test_a_table_that_the_page_does_not_know_is_shown(made):
    assert re.search(r'<h2 id="more">More tables</h2>\s*<div class="sheet"><figure class="table" id="table-odd">', made)


def test_the_spec_on_the_page_is_one_that_runs(tmp_path):
    """As YAML it is the resolved spec again."""
    out = make_run(tmp_path, methods=("dpo",), steps=2)
    run = read_json(out / "run.json")
    run["spec"] = load_spec("quick").model_dump(mode="json")
    write_json(out / "run.json", run)
    shown = re.search(r'<pre id="spec">(.*?)</pre>', page(read_results(out), {}, [], []), re.DOTALL).group(1)
    (tmp_path / "spec.yaml").write_text(html.unescape(shown), encoding="utf-8")
    assert load_spec(str(tmp_path / "spec.yaml")).model_dump(mode="json") == run["spec"]


def test_an_ablation_follows_the_main_results_and_parts_and_ranking_are_folded(tmp_path):
    results = read_results(make_run(tmp_path, tasks=("controlled_dialogue",), methods=("dpo",), seeds=(0,), steps=2))
    tables = {
        name: Table(name, name, [Column("a", "A")], [[Entry(1, "1")]]) for name in ("main", "ranking", "ablation", "effects")
    }
    drawings = [Drawing(name, name, b"", b"<svg/>", b"") for name in ("levels", "levels-2", "levels-3", "wins", "axis-2")]
    text = page(results, tables, drawings, [])
    places = [text.index(words) for words in ('id="table-main"', 'id="table-ablation"', 'alt="levels"', 'id="table-ranking"')]
    assert places == sorted(places)
    folded = "".join(re.findall(r"<details>.*?</details>", text, re.DOTALL))
    inside = {name for name in ("levels", "levels-2", "levels-3", "wins", "axis-2") if f'alt="{name}"' in folded}
    assert inside == {"levels-2", "levels-3"}
    assert "2 further parts of this figure" in folded
    assert 'id="table-ranking"' in folded


def test_the_page_of_a_run_that_is_not_finished_says_so_in_its_verdict(tmp_path):
    results = read_results(make_run(tmp_path, tasks=("controlled_dialogue",), methods=("dpo",), seeds=(0,), steps=2))
    running = {**results.run, "status": "interrupted", "finished": None}
    assert "This run is not finished: what is shown is of 3 finished cells" in page(replace(results, run=running), {}, [], [])


def test_a_run_made_from_python_shows_the_call(tmp_path):
    results = read_results(make_run(tmp_path, tasks=("controlled_dialogue",), methods=("dpo",), seeds=(0,), steps=2))
    provenance = {**results.run["provenance"], "command": "python"}
    text = html.unescape(page(replace(results, run={**results.run, "provenance": provenance}), {}, [], []))
    assert 'spo_bench.run("spec.yaml", out="RUN")' in text
    assert "<pre>python</pre>" not in text


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, None), (None, None), (1, "took 1 s"), (59.6, "took 1 min 0 s"), (7260, "took 2 h 1 min")]
)
def test_a_run_that_made_nothing_does_not_say_how_long_it_took(tmp_path, seconds, words):
    out = make_run(tmp_path, tasks=("controlled_dialogue",), methods=("dpo",), seeds=(0,), steps=2)
    results = read_results(out)
    text = page(replace(results, run={**results.run, "seconds": seconds}), {}, [], [])
    assert (f"<span>{words}</span>" in text) if words else ("<span>took" not in text)
