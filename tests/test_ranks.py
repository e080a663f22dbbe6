"""Several processes that do one stage together give what one gives."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import ranks_work
import torch
from conftest import SMALL_SPEC
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import spo_bench
from spo_bench.errors import InputError, Interrupted, StageError
from spo_bench.files import read_json, read_jsonl
from spo_bench.matrix.load import load_spec
from spo_bench.ranks import Ranks
from spo_bench.stages.base import Work
from spo_bench.stages.together import together
from spo_bench.store.checkpoints import Checkpoint
from spo_bench.training.examples import deal, passes

CASES: dict[str, dict[str, Any]] = {
    **{name: {"method": name, "spo": True, "lora": True} for name in ("dpo", "kto", "aot", "ada_dpo")},
    "dpo full": {"method": "dpo", "spo": True, "lora": False},
    "ada_dpo full": {"method": "ada_dpo", "spo": False, "lora": False},
    "moving reference": {"method": "dpo", "spo": False, "lora": False, "additions": {"ref_sync": {"mixup": 0.6, "every": 4}}},
}
LOGGED = ("loss", "alignment_loss", "degree_loss", "grad_norm", "margin", "chosen_logratio", "rejected_logratio")
COUNTED = ("step", "tokens", "pairs", "degree_accuracy_bins")


def work(out: Path, checkpoint: Checkpoint | None = None, **config: Any) -> Work:
    out.mkdir()
    numerics = {"device": "cpu", "dtype": "float32", "held": "float32"}
    return Work(out, {**config, "numerics": numerics}, {}, {"device": "cpu"}, checkpoint or Checkpoint())


def same(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    """Every number of two logs, but for rounding; what is counted is the same."""
    assert len(one) == len(other) == 20
    for a, b in zip(one, other, strict=True):
        for name in COUNTED:
            assert a.get(name) == b.get(name), name
        for name in LOGGED:
            assert a.get(name, 0) == pytest.approx(b.get(name, 0), abs=2e-5), name


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """What one process makes of every case."""
    made = work(tmp_path_factory.mktemp("alone") / "out", cases=CASES)
    ranks_work.every_case(made)
    return made.out


@pytest.mark.parametrize("count", [2, 4])
def test_ranks_train_the_policy_of_one(count, alone, tmp_path):
    """Parameters after 20 steps to 1e-6, and every line of the log. Rows are dealt by their tokens, so ranks have different numbers
    of rows and of passes; kto and aot couple all rows of a step, ada_dpo carries statistics from step to step.
    """
    made = work(tmp_path / "out", cases=CASES)
    together(ranks_work.every_case, made, count)
    for name in CASES:
        one, several = (load_file(str(out / f"{name}.safetensors")) for out in (alone, made.out))
        assert one.keys() == several.keys()
        for weight in one:
            assert torch.allclose(one[weight], several[weight], rtol=0, atol=1e-6), (name, weight)
        same(*(list(read_jsonl(out / f"{name}.jsonl")) for out in (alone, made.out)))


def test_every_rank_has_the_same_gradient(tmp_path):
    case = {"method": "kto", "spo": True, "lora": False}
    one, three = work(tmp_path / "one", case=case), work(tmp_path / "three", case=case)
    ranks_work.gradients(one)
    together(ranks_work.gradients, three, 3)
    alone, several = (load_file(str(made.out / "gradients.safetensors")) for made in (one, three))
    assert alone.keys() == several.keys()
    for name, value in alone.items():
        assert torch.allclose(value, several[name], rtol=1e-4, atol=1e-7), name


def test_a_training_stopped_on_four_ranks_goes_on_on_two_and_on_one(alone, tmp_path):
    """A signal to one rank stops all at the end of the step, with the state kept in parts that any number of ranks reads."""
    config = {"case": CASES["dpo full"], "stop": 6}
    with pytest.raises(Interrupted):
        together(ranks_work.stopped, work(tmp_path / "four", Checkpoint(tmp_path / "kept", 1e9), **config), 4)
    (kept,) = (tmp_path / "kept").iterdir()
    assert len(list(kept.glob("shard-*.safetensors"))) == 4
    assert {path.suffix for path in kept.iterdir()} == {".safetensors", ""}, "no pickle"
    config["stop"] = 12
    with pytest.raises(Interrupted):
        together(ranks_work.stopped, work(tmp_path / "two", Checkpoint(tmp_path / "kept", 1e9), **config), 2)
    config["stop"] = None
    last = work(tmp_path / "one", Checkpoint(tmp_path / "kept", 1e9), **config)
    ranks_work.stopped(last)
    same(list(read_jsonl(alone / "dpo full.jsonl")), list(read_jsonl(last.out / "rows.jsonl")))
    one, resumed = load_file(str(alone / "dpo full.safetensors")), load_file(str(last.out / "weights.safetensors"))
    assert all(torch.allclose(one[name], resumed[name], rtol=0, atol=1e-6) for name in one)


@pytest.mark.parametrize(
    ("how", "error", "words"), [("error", StageError, "cannot go on"), ("killed", RuntimeError, "was killed")]
)
def test_a_rank_that_fails_ends_the_others(how, error, words, tmp_path):
    with pytest.raises(error, match=words):
        together(ranks_work.failing, work(tmp_path / "out", how=how), 2)
    assert not multiprocessing.active_children()


@given(st.lists(st.integers(1, 500), min_size=1, max_size=40), st.integers(1, 5), st.integers(1, 600))
def test_rows_are_dealt_once_and_every_rank_makes_as_many_passes(sizes, count, budget):
    hands = deal(sizes, count)
    assert sorted(place for hand in hands for place in hand) == list(range(len(sizes)))
    loads = [sum(sizes[place] for place in hand) for hand in hands]
    assert max(loads) <= sum(sizes) / count + max(sizes), "a rank gets a row only while it has least"
    made = []
    for rank in range(count):
        ranks = Ranks()
        ranks.rank, ranks.count = rank, count
        groups, idle = passes(sizes, budget, ranks)
        assert sorted(place for group in groups for place in group) == hands[rank]
        made.append(len(groups) + idle)
    assert len(set(made)) == 1


def test_a_cell_on_two_devices(tmp_path):
    """The command's own stages: answers and scores that are spread have the same bits where the policy has; a trained policy is the
    same but for rounding, is an ordinary directory, and counts as done for one device too.
    """
    spec = SMALL_SPEC | {"methods": ["dpo"], "spo": [True], "sft": {"steps": 2, "batch_size": 8, "learning_rate": 1e-3}}
    runs = {}
    for count in (1, 2):
        train = {**SMALL_SPEC["train"], "max_steps": 2, "devices_per_cell": count}
        runs[count] = spo_bench.run(spec | {"train": train}, tmp_path / f"run{count}", store=tmp_path / f"store{count}", jobs=1)
        assert not runs[count].failed
    one, two = ({(r["cell"], r["metric"]): r["value"] for r in read_jsonl(run.out / "metrics.jsonl")} for run in runs.values())
    assert one.keys() == two.keys()
    timed = ("seconds", "peak_memory", "per_second")
    for key, value in one.items():
        if not any(word in key[1] for word in timed):
            assert two[key] == pytest.approx(value, abs=1e-3), key
    (cell,) = (runs[2].out / "cells").glob("*dpo*")
    assert read_json(cell / "policy" / ".." / "summary.json")["devices"] == 2
    train = {**SMALL_SPEC["train"], "max_steps": 2, "devices_per_cell": 3}
    again = spo_bench.run(spec | {"train": train}, tmp_path / "again", store=tmp_path / "store1", jobs=1)
    assert again.made == 0, "the number of devices is in no key"


def test_more_devices_than_rows_and_rounds_are_refused():
    with pytest.raises(InputError, match="devices_per_cell"):
        load_spec(SMALL_SPEC | {"train": {**SMALL_SPEC["train"], "devices_per_cell": 9}})
    with pytest.raises(InputError, match="devices_per_cell"):
        load_spec(
            SMALL_SPEC
            | {
                "train": {**SMALL_SPEC["train"], "devices_per_cell": 2},
                "data_axes": {"regime": [{"name": "semi_online", "every": 1}]},
            }
        )
