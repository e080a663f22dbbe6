"""`spo-bench judge` as a person runs it: real processes against the scripted endpoint, their files, output and exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from endpoint import Answer, Endpoint, fair, log_of, mute, program, refusal, said, shown
from judge_setup import TEMPLATE

from spo_bench.cli.main import main
from spo_bench.files import read_json, read_jsonl

CANARY = "sk-canary-6f1c0b7d2e9a4853"
Log = Callable[[], list[dict[str, Any]]]


# -- what is run --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., tuple[str, Log]]]:
    """Start the endpoint as a program of its own, which outlives a client that is killed; return its address and its log."""
    with ExitStack() as programs:

        def start(script: str, delay: float = 0.0) -> tuple[str, Log]:
            log = tmp_path / f"{script}.log"
            options = ["--script", script, "--delay", str(delay), "--allow", "16", "--log", str(log)]
            url = programs.enter_context(program(*options))
            return url, lambda: log_of(log)

        yield start


def start(*words: Any, cwd: Path, **variables: str) -> subprocess.Popen[str]:
    """Start `spo-bench judge ...` in a process of its own, with a store under ``cwd``."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    own = {"PYTHONPATH": str(Path(__file__).parents[1]), "SPO_BENCH_STORE": str(cwd / "store"), "COLUMNS": "200"}
    return subprocess.Popen(
        [sys.executable, "-c", "from spo_bench.cli.main import main; main()", "judge", *map(str, words)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**inherited, **own, **variables},
        # A test runner in the background of a shell ignores SIGINT, and hands that down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """Wait for a started command; none may end with a traceback."""
    output, errors = process.communicate(timeout=120)
    assert "Traceback" not in errors, errors
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def judge(*words: Any, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `spo-bench judge ...` to its end."""
    return finish(start(*words, cwd=cwd, **variables))


@pytest.fixture
def here(monkeypatch, tmp_path, capsys) -> Callable[..., tuple[int, str, str]]:
    """Run the command in this process, since one of its own takes two seconds to begin; return exit code, output and errors."""

    def run(*words: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["spo-bench", "judge", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPO_BENCH_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("COLUMNS", "500")
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    return run


def until(holds: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until something holds, while a process runs."""
    deadline = time.monotonic() + 60
    while not holds():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


# -- what is judged -----------------------------------------------------------------------------------------------------------


def row(number: int) -> dict[str, Any]:
    """A pair whose better answer, for the fair script, is the one with "good" in it: a in two of three."""
    better, worse = f"the good answer {number}" + ", at length" * (number % 4), f"the other answer {number}"
    a, b = (worse, better) if number % 3 == 0 else (better, worse)
    return {"id": f"pair-{number}", "prompt": f"Say it, {number}.", "a": a, "b": b, "label": "b" if number % 3 == 0 else "a"}


def written(folder: Path, rows: int | Sequence[Any], name: str = "pairs.jsonl") -> Path:
    """Write rows, or so many of the known ones."""
    path = folder / name
    values = [row(number) for number in range(rows)] if isinstance(rows, int) else rows
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def template(folder: Path) -> Path:
    """Write a judge prompt, so that what the faulty script does to which pair does not change with the task's prompt."""
    path = folder / "prompt.txt"
    path.write_text(TEMPLATE)
    return path


def verdicts(out: Path) -> list[dict[str, Any]]:
    return list(read_jsonl(out / "verdicts.jsonl"))


def said_of(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return verdicts by id, without the mark that says whether a reply was kept from before."""
    return {one["id"]: {**one, "orders": [{**order, "cached": None} for order in one["orders"]]} for one in rows}


def check(found: Sequence[dict[str, Any]], number: int) -> set[str]:
    """Check that no row is missing or doubled and every verdict is right or invalid with a reason; return the invalid ids."""
    assert [one["id"] for one in found] == [row(place)["id"] for place in range(number)]
    for one, asked in zip(found, map(row, range(number)), strict=True):
        assert one["outcome"] in (asked["label"], "invalid"), one
        if one["outcome"] == "invalid":
            assert one["score"] is None
            assert one["reason"]
        else:
            assert one["score"] == (1.0 if asked["label"] == "a" else 0.0)
    return {one["id"] for one in found if one["outcome"] == "invalid"}


def never_answered(number: int) -> set[str]:
    """Return the pairs on which the faulty script has no verdict."""
    found = {asked["id"] for asked in map(row, range(number)) if mute(asked["a"], asked["b"])}
    assert 0.01 * number < len(found) < 0.2 * number  # --max-invalid below stands on both sides of it
    return found


def given(lines: Sequence[dict[str, Any]]) -> Counter[str]:
    """Count the verdicts that went out, by the prompt they were about."""
    return Counter(line["key"] for line in lines if line["answered"] and line["what"] != "mute")


# -- faults, kills and interrupts ---------------------------------------------------------------------------------------------


def test_every_fault_at_once_loses_no_verdict(serve, tmp_path):
    """A garbled answer is asked for once more, so a prompt that meets two may be invalid too; the next run mends that."""
    url, log = serve("faulty")
    words = ["run", written(tmp_path, 300), "--template", template(tmp_path), "--judge", "judge", "--base-url", url]
    words += ["--timeout", 2, "--retries", 5, "--out", tmp_path / "out"]
    silent = never_answered(300)

    first = judge(*words, "--max-invalid", 0.01, cwd=tmp_path)
    assert first.returncode == 1, first.stderr
    assert "verdicts are invalid, more than max_invalid = 0.01" in first.stderr
    before = verdicts(tmp_path / "out")
    invalid = check(before, 300)
    assert silent <= invalid
    assert len(invalid - silent) <= 3
    lines = log()
    faults = {"busy", "busy for a second", "broken", "hanging", "no json", "html", "reset", "cut", "mute"}
    assert faults <= {line["what"] for line in lines}
    assert set(given(lines).values()) == {1}

    again = judge(*words, "--max-invalid", 0.2, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    after = verdicts(tmp_path / "out")
    assert check(after, 300) == silent
    assert {line["key"] for line in log()[len(lines) :]} == {line["key"] for line in lines} - set(given(lines))
    kept = said_of(after)
    assert all(kept[name] == one for name, one in said_of(before).items() if name not in invalid)


def test_a_killed_run_goes_on_and_pays_for_nothing_twice(serve, tmp_path):
    """What the client had not yet kept when it died was in flight: at most the concurrency."""
    url, log = serve("faulty", delay=0.02)
    words = ["run", written(tmp_path, 120), "--template", template(tmp_path), "--judge", "judge", "--base-url", url]
    words += ["--timeout", 2, "--concurrency", 8, "--out", tmp_path / "out"]
    silent = never_answered(120)

    running = start(*words, cwd=tmp_path)
    until(lambda: len(given(log())) >= 100, running)
    running.kill()
    assert running.wait() == -signal.SIGKILL
    running.communicate()
    assert not (tmp_path / "out").exists()

    resumed = judge(*words, "--max-invalid", 0.01, cwd=tmp_path)
    assert resumed.returncode == 1, resumed.stderr
    invalid = check(verdicts(tmp_path / "out"), 120)
    assert silent <= invalid
    assert len(invalid - silent) <= 3
    paid = given(log())
    assert sum(paid.values()) - len(paid) <= 8
    assert max(paid.values()) <= 2

    lines = len(log())
    third = judge(*words, "--max-invalid", 0.2, cwd=tmp_path)
    assert third.returncode == 0, third.stderr
    assert check(verdicts(tmp_path / "out"), 120) == silent
    assert not {line["key"] for line in log()[lines:]} & set(paid)


def test_an_interrupt_is_not_the_end(serve, tmp_path):
    url, log = serve("fair", delay=0.05)
    words = ["run", written(tmp_path, 100), "--judge", "judge", "--base-url", url, "--concurrency", 8, "--out", tmp_path / "out"]
    running = start(*words, cwd=tmp_path)
    until(lambda: len(log()) >= 50, running)
    running.send_signal(signal.SIGINT)
    stopped = finish(running)
    assert stopped.returncode == 130, stopped.stderr
    assert "same command goes on" in stopped.stderr
    assert not (tmp_path / "out").exists()

    done = judge(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert check(verdicts(tmp_path / "out"), 100) == set()
    paid = given(log())
    assert len(paid) == 200
    assert sum(paid.values()) <= 200 + 8  # only what was in flight may be asked for again


def test_two_processes_share_pairs_and_cache(serve, tmp_path):
    url, log = serve("modern", delay=0.01)
    pairs = written(tmp_path, 60)
    outs = [tmp_path / "one", tmp_path / "two"]
    both = [start("run", pairs, "--judge", "judge", "--base-url", url, "--out", out, cwd=tmp_path) for out in outs]
    for process in both:
        done = finish(process)
        assert done.returncode == 0, done.stderr
    one, two = (verdicts(out) for out in outs)
    assert check(one, 60) == check(two, 60) == set()
    assert [(v["id"], v["outcome"], v["score"]) for v in one] == [(v["id"], v["outcome"], v["score"]) for v in two]
    assert len(given(log())) == 120


# -- limits -------------------------------------------------------------------------------------------------------------------

PRICED = ["--max-tokens", "100", "--price-input", "0", "--price-output", "1000"]


@pytest.mark.parametrize(
    ("limit", "raised", "sent"),
    [
        (["--max-calls", "25"], ["--max-calls", "40"], 25),
        (["--max-cost", "0.255"], ["--max-cost", "0.495"], 16),
    ],
    ids=["calls", "cost"],
)
def test_a_limit_stops_before_it_is_passed_and_a_higher_one_goes_on(serve, here, tmp_path, limit, raised, sent):
    """20 pairs are 40 requests. Each costs $0.01 (10 tokens) and may cost $0.1 (100 tokens): with $0.255 the k-th fits while
    0.01 (k - 1) + 0.1 <= 0.255, up to k = 16; the 40th fits from $0.49 on.
    """
    url, log = serve("fair")
    out = tmp_path / "out"
    words = ["run", written(tmp_path, 20), "--judge", "judge", "--base-url", url, "--out", out, *PRICED]
    stopped = judge(*words, *limit, cwd=tmp_path)
    assert stopped.returncode == 1, stopped.stderr
    assert f"raise {limit[0].removeprefix('--').replace('-', '_')}" in stopped.stderr
    assert len(log()) == sent
    found = verdicts(out)
    invalid = check(found, 20)
    assert len(invalid) == sum("not asked" in one["reason"] for one in found if one["reason"]) > 0
    summary = read_json(out / "summary.json")
    assert (summary["calls_now"], summary["n"], summary["n_invalid"]) == (sent, 20 - len(invalid), len(invalid))
    assert summary["cost_now"] == pytest.approx(0.01 * sent)
    assert "Resumable" in summary["stopped"]

    code, _, errors = here(*words, *raised)
    assert code == 0, errors
    assert check(verdicts(out), 20) == set()
    assert len(log()) == 40
    assert set(given(log()).values()) == {1}
    assert read_json(out / "summary.json")["cost"] == pytest.approx(0.4)


# -- the key ------------------------------------------------------------------------------------------------------------------


def holding(folder: Path, text: str) -> list[str]:
    """Return the files that hold a text, in any depth."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes())


def test_the_key_is_nowhere_though_the_endpoint_repeats_it(endpoint: Endpoint, tmp_path):
    """Killed while one question hangs, so that the write-ahead log is on the disk too; then with errors that repeat the key."""

    def leaky(body: dict[str, Any], number: int) -> Answer:
        first, _ = shown(body)
        if first.endswith("answer 1"):  # one order of the second pair
            return Answer(delay=600.0)
        return Answer(json.dumps({"reasoning": f"Your key is {CANARY}.", "verdict": "A" if "good" in first else "B"}))

    endpoint.script = leaky
    words = [
        "run",
        written(tmp_path, 3),
        "--judge",
        "judge",
        "--base-url",
        endpoint.url,
        "--out",
        tmp_path / "out",
        "--retries",
        0,
    ]
    running = start(*words, cwd=tmp_path, OPENAI_API_KEY=CANARY)
    until(lambda: endpoint.number == 6 and endpoint.open == 1, running)
    time.sleep(0.2)  # the last replies are kept
    running.kill()
    shows = [*running.communicate()]
    assert "judge.sqlite-wal" in holding(tmp_path, "[key]")

    endpoint.script = lambda body, number: refusal(500, f"the key {CANARY} met a fault")
    failed = judge(*words, "--json", cwd=tmp_path, OPENAI_API_KEY=CANARY)
    assert failed.returncode == 1, failed.stderr
    found = verdicts(tmp_path / "out")
    assert [one["outcome"] for one in found] == ["b", "invalid", "a"]
    assert "HTTP 500: the key [key] met a fault" in found[1]["reason"]
    assert "Your key is [key]." in found[0]["orders"][0]["text"]
    shows += [failed.stdout, failed.stderr]

    endpoint.script = lambda body, number: refusal(401, f"Incorrect API key provided: {CANARY}", code="invalid_api_key")
    told = judge(*words, cwd=tmp_path, OPENAI_API_KEY=CANARY)
    assert told.returncode == 2, told.stderr
    assert told.stderr.startswith("error:")
    shows += [told.stdout, told.stderr]

    assert set(endpoint.keys) == {f"Bearer {CANARY}"}
    assert not holding(tmp_path, CANARY)
    assert not any(CANARY in text for text in shows)


# -- what cannot be used ------------------------------------------------------------------------------------------------------

GOOD = {"id": "one", "prompt": "Say it.", "a": "this", "b": "that"}
NOWHERE = "http://127.0.0.1:9/v1"
KEPT = {"verdicts.jsonl": "kept\n", "summary.json": "{}\n"}


@pytest.fixture
def refused(here, tmp_path) -> Callable[..., str]:
    """Run a command that cannot be carried out: it exits with 2, says rule and remedy, and leaves alone what lies in `out`."""

    def run(*words: Any) -> str:
        out = tmp_path / "out"
        out.mkdir()
        for name, text in KEPT.items():
            (out / name).write_text(text)
        code, output, errors = here(*words)
        assert {path.name: path.read_text() for path in out.iterdir()} == KEPT
        assert (code, output) == (2, ""), errors
        assert errors.startswith("error: ")
        assert "\n  rule: " in errors
        assert "\n  remedy: " in errors
        return errors

    return run


BAD_PAIRS: dict[str, tuple[str | None, list[str]]] = {
    "row without b": (json.dumps(GOOD) + '\n{"id": "two", "prompt": "p", "a": "x"}\n', ["pairs.jsonl, row 2", "no field 'b'"]),
    "not JSON": (json.dumps(GOOD) + "\n{oops\n", ["pairs.jsonl, line 2", "not JSON"]),
    "wrong type": (json.dumps({**GOOD, "a": 3}), ["pairs.jsonl, row 1", "a is 3, not a text"]),
    "wrong prompt": (json.dumps({**GOOD, "prompt": [{"role": "user"}]}), ["pairs.jsonl, row 1", "prompt is"]),
    "no object": ('"text"\n', ["pairs.jsonl, row 1", "each row is a JSON object"]),
    "id that no file can hold": (json.dumps({**GOOD, "id": "\ud800"}), ["pairs.jsonl, row 1", "id"]),
    "double id": (json.dumps(GOOD) + "\n" + json.dumps(GOOD), ["pairs.jsonl, row 2", "id 'one' again"]),
    "empty file": ("", ["pairs.jsonl is empty"]),
    "missing file": (None, ["pairs.jsonl", "No such file"]),
}


@pytest.mark.parametrize("name", BAD_PAIRS)
def test_pairs_that_cannot_be_used(name, refused, tmp_path):
    content, words = BAD_PAIRS[name]
    if content is not None:
        (tmp_path / "pairs.jsonl").write_text(content)
    told = refused("run", "pairs.jsonl", "--judge", "judge", "--base-url", NOWHERE, "--out", "out")
    for word in words:
        assert word in told


BAD_OPTIONS: dict[str, tuple[list[str], list[str]]] = {
    "nobody listens": ([], ["no answer from the judge endpoint http://127.0.0.1:9/v1", "start it"]),
    "no scheme": (["--base-url", "127.0.0.1:9/v1"], ["base_url is no address", "http://"]),
    "key in the address": (["--base-url", "http://me:sk-secret@127.0.0.1:9/v1"], ["comes from the environment only"]),
    "no key": (["--base-url", "https://judge.invalid/v1"], ["OPENAI_API_KEY is not set", "export OPENAI_API_KEY"]),
    "form": (["--verdict", "jsn"], ["unknown verdict 'jsn'", "did you mean 'json'"]),
    "orders": (["--orders", "bth"], ["unknown orders 'bth'", "did you mean 'both'"]),
    "task": (["--task", "dialog"], ["dialog", "did you mean 'dialogue'"]),
    "template without a slot": (["--template", "bad.txt"], ["judge prompt without {b}", "put the slots in"]),
    "template missing": (["--template", "nowhere.txt"], ["nowhere.txt", "check the path"]),
    "a limit without prices": (["--max-cost", "1"], ["max_cost 1", "set price_input and price_output"]),
    "cache is a directory": (["--cache", "out"], ["judge cache out", "another place"]),
    "out is a file": (["--out", "pairs.jsonl"], ["--out 'pairs.jsonl'", "is a file"]),
    "options of an endpoint": (["--judge", "local:nowhere", "--max-tokens", "9"], ["--max-tokens", "leave them out"]),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_options_that_cannot_be_used(name, refused, tmp_path):
    options, words = BAD_OPTIONS[name]
    written(tmp_path, 2)
    (tmp_path / "bad.txt").write_text("Compare {prompt} and {a}.")
    whole = ["--judge", "judge", "--base-url", NOWHERE, "--out", "out", "--retries", 0, *options]
    told = refused("run", "pairs.jsonl", *whole)
    assert "sk-secret" not in told
    for word in words:
        assert word in told


REFUSALS = {
    "key": (
        refusal(401, "Incorrect API key provided"),
        ["refused the key in OPENAI_API_KEY (HTTP 401)", "put a key of this endpoint"],
    ),
    "model": (refusal(404, "The model does not exist", code="model_not_found"), ["does not serve 'judge'", "check judge.model"]),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_an_endpoint_that_refuses_key_or_model(name, endpoint, refused, tmp_path):
    answer, words = REFUSALS[name]
    endpoint.script = lambda body, number: answer
    told = refused("run", written(tmp_path, 20), "--judge", "judge", "--base-url", endpoint.url, "--out", "out")
    assert endpoint.number == 1
    for word in words:
        assert word in told


BAD_FILES: dict[str, tuple[list[str], Any, list[str]]] = {
    "audit without labels": (["audit", "--judge", "judge"], [GOOD], ["id 'one'", "no label", "a, b or tie"]),
    "audit with a wrong label": (["audit", "--judge", "judge"], [{**GOOD, "label": "A"}], ['label "A"', "a, b or tie"]),
    "audit into a directory": (["audit", "--judge", "judge", "--out", "out"], [{**GOOD, "label": "a"}], ["--out", "out"]),
    "stats of pairs": (["stats"], [GOOD], ["pairs.jsonl", "verdicts"]),
    "reparse of pairs": (["reparse"], [GOOD], ["pairs.jsonl, row 1", "no replies"]),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_files_of_other_commands_that_cannot_be_used(name, refused, tmp_path):
    """It is said before anything is asked: nobody listens where the audit would ask."""
    (command, *options), rows, words = BAD_FILES[name]
    told = refused(command, written(tmp_path, rows).name, *options, *(["--base-url", NOWHERE] if command == "audit" else []))
    for word in words:
        assert word in told


# -- replies that are odd -----------------------------------------------------------------------------------------------------

ODD: dict[str, tuple[Answer, str, str | None]] = {
    "half of a surrogate pair": (Answer("An odd \ud800 sign. [[A]]"), "text", None),
    "half of a surrogate pair in an error": (refusal(400, "an odd \ud800 sign"), "text", "an odd"),
    "a count of tokens that is none": (Answer("[[A]]", usage={"prompt_tokens": 1.5, "completion_tokens": 5}), "text", None),
    "a probability that is none": (Answer("A", logprobs={"A": float("nan"), "B": -1.0}), "logprobs", "a shown first"),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_reply_is_a_verdict_or_an_invalid_one(name, endpoint, here, tmp_path):
    """The first order of the second pair is odd; that neither ends the command nor costs the other pairs anything."""
    odd, form, reason = ODD[name]
    endpoint.script = lambda body, number: odd if shown(body)[0] == row(1)["a"] else fair(body, number)
    words = ["run", written(tmp_path, 3), "--judge", "judge", "--base-url", endpoint.url, "--out", "out", "--verdict", form]
    code, _, errors = here(*words, "--retries", 0, "--price-input", 1, "--price-output", 1, "--max-invalid", 1)
    assert code == 0, errors
    found = verdicts(tmp_path / "out")
    assert [one["outcome"] for one in found] == ["b", "a" if reason is None else "invalid", "a"]
    assert (reason or "") in (found[1]["reason"] or "")


# -- audits -------------------------------------------------------------------------------------------------------------------


def test_the_audit_of_a_fair_judge(serve, tmp_path):
    url, _ = serve("fair")
    words = ["audit", written(tmp_path, 12), "--judge", "judge", "--base-url", url, "--attacked", 2]
    done = judge(*words, "--json", "--out", tmp_path / "audit.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == read_json(tmp_path / "audit.json")
    assert (found["cases"], found["accuracy"]["value"], found["position_flip_rate"]["value"]) == (12, 1.0, 0.0)
    assert (found["retest"]["asked"], found["retest"]["same_outcome"]["value"]) == (2, 1.0)
    attacks = found["attacks"]
    assert attacks["cases"] == 2
    assert {one["asked"] for one in attacks["each"].values()} == {2}
    for one in (attacks, attacks["harmless"], *attacks["each"].values()):
        assert [one[key]["value"] for key in ("success", "changed", "invalid")] == [0.0, 0.0, 0.0]


def test_the_audit_of_judges_that_look_at_the_wrong_thing(endpoint: Endpoint, here, tmp_path):
    """One names what it sees first, so that its orders always disagree; for the other the longer answer wins, as padding does."""
    words = ["audit", written(tmp_path, 12), "--judge", "judge", "--base-url", endpoint.url, "--json"]
    endpoint.script = lambda body, number: said(body, "A")
    code, output, errors = here(*words)
    assert code == 0, errors
    found = json.loads(output)
    values = [found[key]["value"] for key in ("position_flip_rate", "first_shown_rate", "tie_rate", "accuracy")]
    assert values == [1.0, 1.0, 1.0, 0.5]
    assert found["attacks"] is None  # no answer lost

    def longer(body: dict[str, Any], number: int) -> Answer:
        one, other = map(len, shown(body))
        return said(body, "A" if one > other else "B")

    endpoint.script = longer
    code, output, errors = here(*words, "--attacked", 1, "--cache", tmp_path / "another.sqlite")
    assert code == 0, errors
    attacks = json.loads(output)["attacks"]
    assert attacks["each"]["padding"]["success"]["value"] == 1.0
    assert attacks["beaten"]["value"] == 1.0


def test_the_audit_on_preference_data(endpoint: Endpoint, here, tmp_path):
    rows = [{"prompt": f"Say it, {n}.", "chosen": f"the good answer {n}", "rejected": f"the other one {n}"} for n in range(40)]
    endpoint.script = fair
    pairs = written(tmp_path, rows, "preferences.jsonl")
    words = ["audit", pairs, "--judge", "judge", "--base-url", endpoint.url, "--task", "dialogue", "--attacked", 0]
    code, output, errors = here(*words)
    assert code == 0, errors
    flat = " ".join(output.split())
    assert "judge with the prompt dialogue/" in flat
    assert "on 40 labelled pairs" in flat
    assert "names the label people gave 100.0 %" in flat


# -- what is done with verdicts -----------------------------------------------------------------------------------------------


def test_stats_and_reparse_of_what_was_judged(endpoint: Endpoint, here, tmp_path):
    """A judge that errs on every fifth pair, has ties and an invalid verdict: no rate is trivial."""

    def erring(body: dict[str, Any], number: int) -> Answer:
        first, second = shown(body)
        place = int(second.split()[3].strip(","))
        if place == 7:
            return Answer("I cannot say.")
        letter = "A" if ("good" in first) != (place % 5 == 0) else "B"
        return said(body, "C" if place % 11 == 3 else letter)

    endpoint.script = erring
    out = tmp_path / "out"
    file = out / "verdicts.jsonl"
    done = judge("run", written(tmp_path, 40), "--judge", "judge", "--base-url", endpoint.url, "--out", out, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    asked, summary, whole = endpoint.number, read_json(out / "summary.json"), verdicts(out)

    code, shows, _ = here("stats", file, "--json")
    assert code == 0
    rates = {name: value for name, value in json.loads(shows).items() if name not in ("file", "subject", "opponent")}
    assert rates == {name: summary[name] for name in rates}
    assert None not in [rates[name] for name in ("win_rate", "standard_error", "low", "length_controlled_win_rate")]
    assert (rates["n"], rates["n_invalid"]) == (39, 1)

    before = [(path, path.read_bytes()) for path in out.iterdir()]
    assert here("reparse", out)[:2] == (0, "40 verdicts read again: 0 changed, 1 invalid\n")
    assert [(path, path.read_bytes()) for path in out.iterdir()] == before

    rows = verdicts(out)
    place = next(i for i, one in enumerate(rows) if one["outcome"] == "a")
    rows[place] |= {"outcome": "b", "score": 0.0}
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    code, shows, _ = here("reparse", file, "--dry-run", "--json")
    counts = {"verdicts": 40, "changed": 1, "invalid": 1}
    assert (code, json.loads(shows)) == (0, {**counts, "changed_ids": [rows[place]["id"]], "written": False})
    assert verdicts(out) == rows
    mended = judge("reparse", out, cwd=tmp_path)
    assert (mended.returncode, mended.stdout) == (0, "40 verdicts read again: 1 changed, 1 invalid\n")
    assert verdicts(out) == whole
    assert read_json(out / "summary.json") == summary
    assert endpoint.number == asked
