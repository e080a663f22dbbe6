"""What happens to a stage that cannot be made: what is remembered, what is tried again, and how."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

from spo_bench.api import Watcher
from spo_bench.engine.attempt import Ended, attempt, is_out_of_memory
from spo_bench.engine.engine import MOST_HALVINGS, Engine
from spo_bench.engine.free import oom_kills
from spo_bench.engine.local import local
from spo_bench.errors import Interrupted, StageError, disk_full, is_disk_full
from spo_bench.stages import registry
from spo_bench.stages.base import Stage, Work
from spo_bench.stages.registry import How
from spo_bench.store.artifacts import Store


@pytest.fixture(autouse=True)
def _kind(monkeypatch):
    monkeypatch.setitem(registry.KINDS, "test", ("test_failures:do", 1))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setitem(sys.modules, "test_failures", sys.modules[__name__])


def do(work: Work) -> None:
    """What a stage of a test does, as its config says."""
    calls = Path(work.local["calls"])
    calls.write_text(calls.read_text() + "x" if calls.exists() else "x")
    what = work.config["what"]
    if what == "diverge":
        raise StageError("loss nan at step 3")
    if what == "break":
        raise ZeroDivisionError("division by zero")
    if what == "full":
        raise OSError(28, "No space left on device")
    if what == "large" and work.config["micro_tokens"] > work.config["room"]:
        torch.empty(1 << 60)  # what torch says of this is not made up here
    (work.out / "tokens").write_text(str(work.config.get("micro_tokens")))


class Told(Watcher):
    def __init__(self):
        self.lines = []

    def failed(self, stage, reason):
        self.lines.append(f"failed {reason}")

    def skipped(self, stage):
        self.lines.append("skipped")

    def retried(self, stage, why):
        self.lines.append("retried")

    def remade(self, stage, why):
        self.lines.append(f"remade {why}")


def stage(tmp_path: Path, what: str, *inputs: Stage, **config) -> Stage:
    local = {"calls": str(tmp_path / f"{what}{len(inputs)}.calls")}
    return Stage("test", 1, {"what": what, **config}, {str(n): one for n, one in enumerate(inputs)}, local)


def calls(one: Stage) -> int:
    path = Path(one.local["calls"])
    return len(path.read_text()) if path.exists() else 0


def run(tmp_path: Path, *stages: Stage, **options) -> tuple[dict[str, str], list[str]]:
    told = Told()
    with Engine(Store(tmp_path / "store"), local(1), told, **options) as engine:
        return engine.run(stages), told.lines


def test_what_lies_in_the_inputs_is_not_tried_again_until_that_is_asked_for(tmp_path):
    """A training that diverges fails again with the same inputs; what reads it is not tried either."""
    bad = stage(tmp_path, "diverge")
    reader, other = stage(tmp_path, "fine", bad), stage(tmp_path, "fine")
    reason = "test: loss nan at step 3"
    failures, told = run(tmp_path, reader, other)
    assert failures == {bad.key: reason, reader.key: reason}
    assert told == [f"failed {reason}", "skipped"]
    again, told = run(tmp_path, reader, other)
    assert again == failures
    assert told[0] == f"failed {reason} (in an earlier run; --retry-failed tries again)"
    assert (calls(bad), calls(reader), calls(other)) == (1, 0, 1)
    assert run(tmp_path, reader, other, retry_failed=True)[0] == failures
    assert calls(bad) == 2


def test_what_lies_outside_of_them_is_tried_again_by_the_same_command(tmp_path):
    """A plugin that raises may have been repaired since."""
    bad = stage(tmp_path, "break")
    [reason] = run(tmp_path, bad)[0].values()
    assert reason.startswith("test: ZeroDivisionError: division by zero (test_failures.py:")
    run(tmp_path, bad)
    assert calls(bad) == 2


def test_too_little_memory_halves_what_goes_through_the_model(tmp_path):
    """Room for 256 tokens, micro-batches of 1,024: halved twice, which the seal notes; room for 1: given up."""
    large = stage(tmp_path, "large", micro_tokens=1024, room=256)
    failures, told = run(tmp_path, large)
    assert (failures, told) == ({}, ["retried", "retried"])
    store = Store(tmp_path / "store")
    assert (large.path(store) / "tokens").read_text() == "256"
    assert store.record("test", large.key)["halvings"] == 2
    hopeless = stage(tmp_path, "large", micro_tokens=1024, room=1)
    failures, told = run(tmp_path, hopeless)
    assert told[:MOST_HALVINGS] == ["retried"] * MOST_HALVINGS
    assert "memory" in failures[hopeless.key]
    assert store.failure("test", hopeless.key) is None, "on a larger machine it may go better"


def test_what_counts_as_too_little_memory():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60)
    assert is_out_of_memory(raised.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert oom_kills() >= 0


def test_a_full_disk_ends_the_run_and_fails_nothing(tmp_path):
    bad, other = stage(tmp_path, "full"), stage(tmp_path, "fine")
    with pytest.raises(Interrupted, match="make room; then the same command goes on where this run was"):
        run(tmp_path, bad, other)
    assert Store(tmp_path / "store").failure("test", bad.key) is None
    assert is_disk_full(RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"))
    assert disk_full(OSError(28, "x")).exit_code == 130


def test_a_damaged_input_is_made_again_once(tmp_path):
    """A byte of an input is another: it is named and made again, what reads it waits; other stages are not touched."""
    source = stage(tmp_path, "fine")
    reader = stage(tmp_path, "fine", source)
    assert run(tmp_path, source)[0] == {}
    file = source.path(Store(tmp_path / "store")) / "tokens"
    file.write_bytes(b"nonE")
    failures, told = run(tmp_path, reader)
    assert failures == {}
    assert told == [f"remade test/{source.key}: tokens has another content than when it was made"]
    assert (calls(source), calls(reader)) == (2, 1)


def test_an_input_that_is_damaged_again_fails_what_reads_it(tmp_path, monkeypatch):
    source = stage(tmp_path, "fine")
    reader = stage(tmp_path, "fine", source)
    monkeypatch.setattr(Store, "fault", lambda *given: "tokens has another content than when it was made")
    failures, told = run(tmp_path, reader)
    assert list(failures) == [reader.key]
    assert "tokens has another content" in failures[reader.key]
    assert len(told) == 2


def test_an_attempt_says_how_it_ended(tmp_path):
    store = Store(tmp_path)
    made = attempt(stage(tmp_path, "fine"), store, 1, How())
    assert made == Ended("made", seconds=made.seconds)
    assert made.seconds > 0
    assert attempt(stage(tmp_path, "diverge"), store, 1, How())[:2] == ("failed", "test: loss nan at step 3")
    assert attempt(stage(tmp_path, "break"), store, 1, How()).how == "passing"
    gone = attempt(stage(tmp_path, "fine", stage(tmp_path, "fine", n=2)), store, 1, How())
    assert (gone.how, gone.entry[0]) == ("damaged", "test")
    assert not os.listdir(tmp_path / "locks")
