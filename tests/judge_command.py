"""`spo-bench judge` as tests run it: commands, pairs, and what comes of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from endpoint import mute
from judge_setup import TEMPLATE

from spo_bench.files import read_jsonl

Log = Callable[[], list[dict[str, Any]]]


# -- what is run --------------------------------------------------------------------------------------------------------------


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
