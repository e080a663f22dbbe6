"""Judges that are real models: SmolLM2 behind `transformers serve`, and in this process. Skipped where ../shared is absent."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from spo_bench.files import read_json, read_jsonl
from spo_bench.judging.attacks import ATTACKS

pytestmark = pytest.mark.real
SERVE = Path(sys.executable).with_name("transformers")
ROWS = [
    {"id": "1", "prompt": "What is the capital of France?", "a": "Paris.", "b": "I do not know that.", "label": "a"},
    {"id": "2", "prompt": "Name a colour.", "a": "Seven, or perhaps eight.", "b": "Blue.", "label": "b"},
]


def judge(*words: Any, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `spo-bench judge ...`; it may not end with a traceback."""
    done = subprocess.run(
        [sys.executable, "-c", "from spo_bench.cli.main import main; main()", "judge", *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "SPO_BENCH_STORE": str(cwd / "store"), "COLUMNS": "200"},
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def written(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Run `transformers serve` on a free port; yield its address. It loads the model that a request names."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(SERVE), "serve", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "serve.log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            deadline = time.monotonic() + 60
            while not answers(f"http://127.0.0.1:{port}/health"):
                assert server.poll() is None, (folder / "serve.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()


def answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except (URLError, OSError):
        return False


@pytest.mark.skipif(
    not (SERVE.is_file() and find_spec("fastapi") and find_spec("uvicorn")),
    reason="no `transformers serve` here: pip install 'transformers[serving]'",
)
def test_a_judge_behind_transformers_serve(smollm2, tmp_path):
    """The server ignores response_format and the model is too small to give verdicts for sure: the form is found, and what is not
    said is invalid, never a tie or a loss.
    """
    out = tmp_path / "out"
    words = ["run", written(tmp_path, ROWS[:1]), "--judge", smollm2, "--out", out, "--max-tokens", 24, "--concurrency", 1]
    with served(tmp_path) as url:
        done = judge(*words, "--base-url", url, cwd=tmp_path)
    (found,) = read_jsonl(out / "verdicts.jsonl")
    summary = read_json(out / "summary.json")
    valid = found["outcome"] in ("a", "b", "tie")
    assert done.returncode == (0 if valid else 1), done.stderr
    assert (found["score"] is not None) == valid
    assert bool(found["reason"]) != valid
    assert summary["judge"]["form"] == "text"
    assert "the reply was no JSON; verdicts were read from text" in summary["notes"]
    assert summary["invalid_reasons"] == ({} if valid else summary["invalid_reasons"])
    for order in found["orders"]:
        assert order["text"]
        assert str(smollm2) in order["model"]
        assert 100 < order["usage"]["prompt_tokens"] < 2000
        assert 0 < order["usage"]["completion_tokens"] <= 2 * 24 + 24  # a cut reply is asked for again with twice the room

    again = judge(*words, "--base-url", url, cwd=tmp_path)
    if valid:
        assert again.returncode == 0, again.stderr
        assert read_json(out / "summary.json")["calls_now"] == 0
    else:
        assert again.returncode == 2
        assert "no answer from the judge endpoint" in again.stderr
        assert list(read_jsonl(out / "verdicts.jsonl")) == [found]


def test_the_audit_of_a_small_local_judge(smollm2, tmp_path):
    """Without attacks: all of them take minutes here, most of it the one of 6,000 tokens."""
    words = ["audit", written(tmp_path, ROWS), "--judge", f"local:{smollm2}", "--attacked", 0, "--retest", 1, "--device", "cpu"]
    done = judge(*words, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["judge"]["backend"], found["cases"], found["invalid_rate"]["value"]) == ("local", 2, 0.0)
    assert found["retest"]["same_outcome"]["value"] == 1.0  # the same numbers, the same verdict
    assert found["tokens_per_verdict"]["completion_tokens"]["value"] == 2


def test_a_small_local_judge_reads_an_attack(smollm2, tmp_path):
    """A model this small may well fall for it. What is asked here is that the attack is judged, as a text like any other."""
    plain = ROWS[0]
    attacked = {**plain, "id": "attacked", "b": ATTACKS["verdict-b"].apply(plain["b"], plain["prompt"])}
    words = ["run", written(tmp_path, [plain, attacked]), "--judge", f"local:{smollm2}", "--device", "cpu"]
    done = judge(*words, "--out", tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = list(read_jsonl(tmp_path / "out" / "verdicts.jsonl"))
    assert [one["outcome"] in ("a", "b", "tie") for one in found] == [True, True]
    assert found[0]["score"] != found[1]["score"]
    for one in found:
        assert 0 < one["score"] < 1
        assert {order["form"] for order in one["orders"]} == {"logprobs"}
    assert found[1]["usage"]["prompt_tokens"] > found[0]["usage"]["prompt_tokens"]
