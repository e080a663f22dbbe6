"""What was stopped goes on with the same numbers, to the bit: after any step, wherever a stage keeps its state."""

from __future__ import annotations

import hashlib
import signal
import threading
from pathlib import Path

import pytest
import torch
from conftest import SMALL_SPEC

from spo_bench import stopping
from spo_bench.api import cells_of
from spo_bench.engine.attempt import attempt
from spo_bench.engine.engine import unique_in_order
from spo_bench.errors import Interrupted
from spo_bench.matrix.load import load_spec
from spo_bench.stages import base
from spo_bench.stages.registry import How, execute
from spo_bench.store.artifacts import Store
from spo_bench.store.checkpoints import Checkpoint

SPEC = SMALL_SPEC | {
    "tasks": [{"name": "controlled_dialogue", "limit": {"train": 16, "eval": 6, "heldout": 8, "sft": 16}}],
    "sft": {"steps": 3, "batch_size": 4},
    "train": {"batch_size": 4, "max_steps": 4, "max_length": 128, "micro_tokens": 256},
    "generate": {"max_new_tokens": 8, "batch_size": 1},
    "reward_training": {"max_steps": 3, "batch_size": 4},
}
ONLINE = {"data_axes": {"regime": [{"name": "semi_online", "every": 2, "samples": 1, "human": True}]}}
# What a stage keeps besides the weights: moments, the head, a reference that moves, running statistics, a round with its pairs.
TRAININGS = {
    "dpo+SPO": {"methods": ["dpo"]},
    "a reference that moves": {"methods": [{"name": "dpo", "plus": ["ref_sync"]}], "spo": [False]},
    "running statistics": {"methods": ["beta_dpo"], "spo": [False]},
    "mismatched pairs": {"methods": ["kto"], "spo": [False]},
    "an adapter": {"methods": ["dpo"], "spo": [True], "train": {**SPEC["train"], "lora": {"rank": 4}}},
}


def stages_of(spec, store: Path):
    every = [one for cell in cells_of(load_spec(SPEC | spec), store, "cpu") for one in cell.stages.values()]
    return unique_in_order(every)


def content(folder: Path) -> dict[str, str]:
    """Hashes of an artifact's files, but for those that say how long it took, or where the model lies."""
    timed = ("SEAL", "summary.json", "train.jsonl", "adapter_config.json", "README.md")
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in timed
    }


def interrupted_after_every_step(stage, store: Store, monkeypatch) -> int:
    """Make a stage that is asked to stop after every step and started again each time; return how often."""
    kept, times = Checkpoint._keep, 0

    def keep(self, tensors, values):
        kept(self, tensors, values)
        stopping._State.wanted = 1

    monkeypatch.setattr(Checkpoint, "_keep", keep)
    while True:
        try:
            execute(stage, store, How(every=0))
        except Interrupted:
            times += 1
            stopping._State.wanted = 0
        else:
            monkeypatch.setattr(Checkpoint, "_keep", kept)
            stopping._State.wanted = 0
            return times


def compared(spec, kind: str, tmp_path, monkeypatch, least: int) -> None:
    """Make all stages before a kind once in two stores, and those of the kind undisturbed in one, disturbed in the other."""
    torch.set_num_threads(1)
    whole, broken = Store(tmp_path / "whole"), Store(tmp_path / "broken")
    wanted = [stage for stage in stages_of(spec, tmp_path / "whole") if stage.kind == kind][:1]
    assert wanted, kind
    for stage in unique_in_order(wanted):
        execute(stage, whole)
        if stage.key != wanted[0].key:
            execute(stage, broken)
    times = interrupted_after_every_step(wanted[0], broken, monkeypatch)
    assert times >= least
    before = content(wanted[0].path(whole))
    assert content(wanted[0].path(broken)) == before
    assert before
    assert not list((tmp_path / "broken").glob("checkpoints/*"))


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_that_is_stopped_after_every_step(name, tmp_path, monkeypatch):
    compared(TRAININGS[name], "train", tmp_path, monkeypatch, 4)


@pytest.mark.parametrize(("kind", "least"), [("sft", 3), ("reference", 4), ("generate", 2)])
def test_other_stages_that_are_stopped_after_every_step(kind, least, tmp_path, monkeypatch):
    compared({"methods": ["dpo"], "spo": [False]}, kind, tmp_path, monkeypatch, least)


def test_a_reward_model_that_is_stopped_after_every_step(tmp_path, monkeypatch):
    compared({"methods": ["dpo"], "spo": [False], "rewards": ["trained"]}, "reward_model", tmp_path, monkeypatch, 2)


def test_rounds_that_are_stopped_after_every_step(tmp_path, monkeypatch):
    """Steps within a round, and the ends of rounds: the pairs under way and those that wait are kept too."""
    compared({"methods": ["dpo"], **ONLINE}, "train", tmp_path, monkeypatch, 5)


def test_a_checkpoint_that_is_damaged_or_of_other_versions_is_not_used(tmp_path, caplog, monkeypatch):
    folder = tmp_path / "checkpoint"
    one = Checkpoint(folder, 0)
    one.step(lambda: ({"w": torch.arange(3.0)}, {"step": 1}))
    one.step(lambda: ({"w": torch.arange(4.0)}, {"step": 2}))
    assert [path.name for path in folder.iterdir()] == ["2"], "only the newest stays"
    saved = Checkpoint(folder).load()
    assert saved.values == {"step": 2}
    into = torch.zeros(4)
    assert saved.restore({"w": into}) == {}
    assert torch.equal(into, torch.arange(4.0))
    with monkeypatch.context() as patched:
        patched.setattr("spo_bench.store.checkpoints.made_by", lambda: {"torch": "another"})
        assert Checkpoint(folder).load() is None
    assert "kept by other versions" in caplog.text
    file = next((folder / "2").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    again = Checkpoint(folder, 0)
    assert again.load() is None
    assert "has another content than when it was made" in caplog.text
    again.step(lambda: ({}, {"step": 3}))
    assert [path.name for path in folder.iterdir()] == ["3"]


def test_checkpoints_come_by_time(tmp_path):
    """An hour between them: none. After an hour has passed: one."""
    one, asked = Checkpoint(tmp_path / "c", 3600), []
    one.step(lambda: asked.append(1) or ({}, {}))
    assert not asked
    one._begun -= 3600
    one.step(lambda: asked.append(1) or ({}, {}))
    assert asked == [1]


def test_a_signal_waits_for_a_step_where_the_state_is_kept_and_nowhere_else(tmp_path):
    """In a context that keeps its state a signal is noted; the next step keeps and raises. Elsewhere it raises at once."""
    told = []
    with stopping.orderly(lambda: told.append(1)):
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGTERM)
        assert not told
    with stopping.orderly(lambda: told.append(1)):
        one = Checkpoint(tmp_path / "c", 3600)
        with one.keeping():
            signal.raise_signal(signal.SIGTERM)
            assert told == [1]
            with pytest.raises(Interrupted):
                one.step(lambda: ({}, {"step": 7}))
    assert Checkpoint(tmp_path / "c").load().values == {"step": 7}
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_second_interrupt_does_not_wait(tmp_path):
    with stopping.orderly(), Checkpoint(tmp_path / "c").keeping():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGINT)


def test_an_artifact_that_another_process_makes_is_left_to_it(tmp_path):
    """While one thread makes a stage, an attempt says that it is busy; afterwards it finds it made."""
    [stage] = [one for one in stages_of({"methods": ["dpo"], "spo": [False]}, tmp_path) if one.kind == "tokenizer"]
    store, begun, go_on = Store(tmp_path / "store"), threading.Event(), threading.Event()

    def build(part: Path) -> None:
        begun.set()
        go_on.wait(30)
        (part / "x").write_text("x")

    maker = threading.Thread(target=store.make, args=(stage.kind, stage.key, {}, build))
    maker.start()
    begun.wait(30)
    assert attempt(stage, store, 1, How(wait=False)).how == "busy"
    go_on.set()
    maker.join()
    assert attempt(stage, store, 1, How(wait=False)).how == "made"


def test_halving_leaves_what_a_step_means(tmp_path):
    """Micro-batches and answers under way are halved; a training's batch, its rate and its length are not."""
    config = {"settings": {"batch_size": 8, "micro_tokens": 1024}, "generate": {"batch_size": 8, "max_new_tokens": 8}}
    assert base.smaller(config, 2) == {
        "settings": {"batch_size": 8, "micro_tokens": 256},
        "generate": {"batch_size": 2, "max_new_tokens": 8},
    }
    assert base.smaller({"micro_tokens": 1}, 3) == {"micro_tokens": 1}
