"""Runs that are killed, stopped, starved of disk and started at once end with the numbers of an undisturbed one; the whole of it, on
larger matrices and with more signals, is `benchmarks/chaos.py`.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import sys
from pathlib import Path

import pytest
import yaml
from conftest import SMALL_SPEC

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import chaos

SPEC = SMALL_SPEC | {
    "sft": {"steps": 60, "batch_size": 8, "learning_rate": 1e-3},
    "methods": ["dpo"],
    "train": {"batch_size": 8, "max_steps": 6, "max_length": 128},
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[Path, Path]:
    """A spec, and the directory of its run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    spec = folder / "spec.yaml"
    spec.write_text(yaml.safe_dump(SPEC))
    place = chaos.Place(folder / "place", str(spec), ["--jobs", "1"])
    assert place.finish() == 0, place.said()
    return spec, place.out()


def test_kills_change_no_number(undisturbed, tmp_path):
    """Three SIGKILLs at random moments, among them in the middle of trainings whose state is kept after every step."""
    spec, reference = undisturbed
    place = chaos.Place(tmp_path / "killed", str(spec), ["--checkpoint", "0", "--jobs", "2"])
    found = chaos.disturbed(place, 3, random.Random(1), signal.SIGKILL, 9.0)
    assert (found["signals"], found["last"]) == (3, 0), place.said()
    assert chaos.numbers(reference)
    assert chaos.differences(place.out(), reference) == 0
    assert chaos.leftovers(place.store) == []


@pytest.mark.real
def test_kills_change_no_number_of_a_real_model(smollm2, tmp_path, capsys):
    """Under an adapter, whose checkpoint after every step is small; ``benchmarks/chaos.py --model`` trains all weights."""
    spec = chaos.small_spec(tmp_path, str(smollm2))
    keys = yaml.safe_load(spec.read_text(encoding="utf-8"))
    keys["train"]["lora"] = {"rank": 4}
    spec.write_text(yaml.safe_dump(keys), encoding="utf-8")
    words = ["--what", "kill", "--times", "5", "--longest", "9", "--checkpoint", "0", "--seed", "1"]
    assert chaos.main([*words, "--spec", str(spec), "--folder", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["signals"], found["last"], found["different_numbers"], found["left_over"]) == (5, 0, 0, [])
    assert found["numbers"] > 30


def test_a_signal_keeps_what_was_done_and_ends_with_130(undisturbed, tmp_path):
    spec, reference = undisturbed
    place = chaos.Place(tmp_path / "stopped", str(spec), ["--jobs", "1"])
    found = chaos.disturbed(place, 2, random.Random(3), signal.SIGTERM, 9.0)
    assert set(found["codes"]) <= {130, -signal.SIGTERM}, "before the command has begun, a signal ends the interpreter"
    assert found["last"] == 0, place.said()
    assert "Traceback" not in place.said()
    assert chaos.differences(place.out(), reference) == 0


def test_two_of_the_same_run_at_once(undisturbed, tmp_path):
    spec, reference = undisturbed
    place = chaos.Place(tmp_path / "together", str(spec), ["--jobs", "1"])
    assert chaos.together(place, 2, True)["codes"] == [0, 0], place.said()
    assert chaos.differences(place.out(), reference) == 0
    assert chaos.leftovers(place.store) == []


def test_a_full_disk_ends_a_run_that_goes_on(undisturbed, tmp_path):
    spec, reference = undisturbed
    place = chaos.Place(tmp_path / "disk", str(spec), ["--jobs", "1"])
    try:
        found = chaos.full_disk(place, 400, 4)
    except OSError as error:
        pytest.skip(f"no file system of its own can be mounted here: {error}")
    assert found["codes"][-1] == 0, place.said()
    assert found["codes"][0] == 130
    assert found["said_so"] == len(found["codes"]) - 1
    assert "make room; then the same command goes on" in place.said()
    assert chaos.differences(tmp_path / "kept" / "run", reference) == 0


def test_cells_that_fail_say_why_and_the_others_are_done(tmp_path):
    """Ten cells, one of which diverges: nine done, one with its reason; not tried again until that is asked for."""
    place = chaos.Place(tmp_path / "soak", str(chaos.soak_spec(tmp_path, 10)), ["--jobs", "1"])
    found = chaos.soak(place, 10)
    assert (found["code"], found["done"], found["failed"], found["with_reason"]) == (1, 9, 1, 1)
    [failed] = [row for row in map(json.loads, (place.out() / "cells.jsonl").open()) if row["status"] == "failed"]
    assert failed["reason"].startswith("train: ")
    assert "inf" in failed["reason"] or "nan" in failed["reason"]
    table = json.loads((place.out() / "tables" / "main.json").read_text())
    assert "diverges" in json.dumps(table), "the gap stands in the table"
    before = (place.out() / "metrics.jsonl").read_bytes()
    assert place.finish() == 1
    assert "in an earlier run; --retry-failed tries again" in place.said()
    assert (place.out() / "metrics.jsonl").read_bytes() == before
    shutil.rmtree(place.store / "checkpoints", ignore_errors=True)
    begun = len(place.said())
    assert place.finish("run", "--retry-failed") == 1
    assert "in an earlier run" not in place.said()[begun:]
