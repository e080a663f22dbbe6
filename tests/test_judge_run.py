"""`spo-bench judge` as a person runs it: real processes against the scripted endpoint, their files, output and exit codes."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from endpoint import Answer, Endpoint, refusal, shown
from judge_command import (
    check,
    finish,
    given,
    judge,
    never_answered,
    said_of,
    start,
    template,
    until,
    verdicts,
    written,
)

from spo_bench.files import read_json

CANARY = "sk-canary-6f1c0b7d2e9a4853"


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
    url, log = serve("faulty", delay=0.01)
    words = ["run", written(tmp_path, 80), "--template", template(tmp_path), "--judge", "judge", "--base-url", url]
    words += ["--timeout", 2, "--concurrency", 8, "--out", tmp_path / "out"]
    silent = never_answered(80)

    running = start(*words, cwd=tmp_path)
    until(lambda: len(given(log())) >= 60, running)
    running.kill()
    assert running.wait() == -signal.SIGKILL
    running.communicate()
    assert not (tmp_path / "out").exists()

    resumed = judge(*words, "--max-invalid", 0.01, cwd=tmp_path)
    assert resumed.returncode == 1, resumed.stderr
    invalid = check(verdicts(tmp_path / "out"), 80)
    assert silent <= invalid
    assert len(invalid - silent) <= 3
    paid = given(log())
    assert sum(paid.values()) - len(paid) <= 8
    assert max(paid.values()) <= 2

    lines = len(log())
    third = judge(*words, "--max-invalid", 0.2, cwd=tmp_path)
    assert third.returncode == 0, third.stderr
    assert check(verdicts(tmp_path / "out"), 80) == silent
    assert not {line["key"] for line in log()[lines:]} & set(paid)


def test_an_interrupt_is_not_the_end(serve, tmp_path):
    url, log = serve("fair", delay=0.05)
    words = ["run", written(tmp_path, 60), "--judge", "judge", "--base-url", url, "--concurrency", 8, "--out", tmp_path / "out"]
    running = start(*words, cwd=tmp_path)
    until(lambda: len(log()) >= 40, running)
    running.send_signal(signal.SIGINT)
    stopped = finish(running)
    assert stopped.returncode == 130, stopped.stderr
    assert "same command goes on" in stopped.stderr
    assert not (tmp_path / "out").exists()

    done = judge(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert check(verdicts(tmp_path / "out"), 60) == set()
    paid = given(log())
    assert len(paid) == 120
    assert sum(paid.values()) <= 120 + 8  # only what was in flight may be asked for again


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
