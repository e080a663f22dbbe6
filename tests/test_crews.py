"""Stages on other machines: what is asked of a place, what happens where a worker is lost, and that the numbers stay the same."""

from __future__ import annotations

import pickle
import sys
from concurrent.futures import Future
from pathlib import Path

import pytest
from conftest import SMALL_SPEC

import spo_bench
from spo_bench.api import Watcher, cells_of
from spo_bench.engine.crew import Lost, Order
from spo_bench.engine.engine import MOST_MOVES, Engine, unique_in_order
from spo_bench.engine.hire import hire
from spo_bench.engine.local import Inline
from spo_bench.engine.memory import TRAINING
from spo_bench.engine.remote import serve
from spo_bench.engine.slurm_options import Options, read_options
from spo_bench.errors import InputError
from spo_bench.files import read_jsonl
from spo_bench.matrix.load import load_spec
from spo_bench.stages import registry
from spo_bench.stages.base import Stage, Work
from spo_bench.stages.registry import How
from spo_bench.store.artifacts import Store
from spo_bench.store.checkpoints import made_by

SMALLEST = {**SMALL_SPEC, "methods": ["dpo"], "spo": [False]}


def numbers(run: Path) -> list[dict]:
    """A run's metrics but for what was measured of time and memory."""
    from spo_bench.engine.collect import COSTS

    return [row for row in read_jsonl(run / "metrics.jsonl") if row["metric"] not in COSTS]


def do(work: Work) -> None:
    """Make an artifact."""
    (work.out / "x").write_text("x")


class Elsewhere(Inline):
    """Makes stages as another machine would, but for the first so many orders, of which it loses the worker."""

    here = False

    def __init__(self, losses: int, lost: Lost) -> None:
        super().__init__(2, 2, "cpu")
        self.losses, self.lost, self.alone = losses, lost, []

    def submit(self, orders):
        found = []
        for order in orders:
            self.alone.append(order.alone)
            if self.losses:
                self.losses -= 1
                found.append(Future())
                found[-1].set_exception(self.lost)
            else:
                found += super().submit([order])
        return found


@pytest.fixture
def one(monkeypatch) -> Stage:
    monkeypatch.setitem(registry.KINDS, "test", ("test_crews:do", 1))
    monkeypatch.setitem(sys.modules, "test_crews", sys.modules[__name__])
    return Stage("test", 1, {})


def test_a_stage_whose_machine_is_lost_goes_on_elsewhere_but_not_for_ever(tmp_path, one):
    for losses in (3, MOST_MOVES):
        with Engine(Store(tmp_path / str(losses)), Elsewhere(losses, Lost("its node is gone", moved=True)), Watcher()) as engine:
            assert engine.run([one]) == {}
    with Engine(Store(tmp_path / "never"), Elsewhere(MOST_MOVES + 1, Lost("its node is gone", moved=True)), Watcher()) as engine:
        assert engine.run([one]) == {one.key: "test: its node is gone"}
        assert engine.store.failure("test", one.key) is None, "the same command tries again"


def test_a_stage_whose_worker_dies_is_tried_once_more_with_a_machine_to_itself(tmp_path, one):
    shaky = Elsewhere(1, Lost("its process was killed"))
    with Engine(Store(tmp_path / "shaky"), shaky, Watcher()) as engine:
        assert engine.run([one]) == {}
    assert shaky.alone == [False, True]
    deadly = Elsewhere(2, Lost("its process was killed"))
    with Engine(Store(tmp_path / "deadly"), deadly, Watcher()) as engine:
        assert engine.run([one]) == {one.key: "test: its process was killed"}


def test_machines_without_a_common_store_are_found_out(tmp_path, one, monkeypatch):
    """What another machine says it made is not in the store of this one."""
    monkeypatch.setattr("spo_bench.engine.engine.LAG", 0.0)

    class Apart(Elsewhere):
        def submit(self, orders):
            moved = [Order(order.stage, Store(tmp_path / "theirs"), order.threads, order.how) for order in orders]
            return super().submit(moved)

    with Engine(Store(tmp_path / "ours"), Apart(0, Lost("")), Watcher()) as engine, pytest.raises(InputError, match="one store"):
        engine.run([one])


def test_a_worker_says_how_its_machine_differs(tmp_path, one):
    order = Order(one, Store(tmp_path), 1, How())
    assert serve(order, made_by()).how == "made"
    other = serve(order, {**made_by(), "torch": "0.1"})
    assert isinstance(other, InputError)
    assert "in place of 0.1" in str(other)
    model = Stage("model", 1, {}, {}, {"directory": str(tmp_path / "none")})
    gone = serve(Order(Stage("test", 1, {}, {"policy": model}), Store(tmp_path), 1, How()), made_by())
    assert isinstance(gone, InputError)
    assert "has no directory" in str(gone)


def test_how_a_worker_was_lost_comes_through_a_pickle():
    there = pickle.loads(pickle.dumps(Lost("why", moved=True)))
    assert (there.why, there.memory, there.moved) == ("why", False, True)


# Slurm.


def test_what_is_asked_of_slurm_is_checked():
    """90 s are two minutes, since a job has whole ones; a day and a half is 2,160."""
    assert read_options([]) == Options()
    assert [read_options([f"time={time}"]).minutes for time in ("30", "1:30", "8:00:00", "1-12", "1-00:30")] == [
        30,
        2,
        480,
        2160,
        1470,
    ]
    asked = read_options(
        ["partition=gpu", "mem-gb=64", "setup=module load cuda", "setup=ulimit -n 4096", "sbatch.reservation=night"]
    )
    assert asked.given == {
        "partition": "gpu",
        "mem": "64GB",
        "setup": ["module load cuda", "ulimit -n 4096"],
        "additional_parameters": {"reservation": "night"},
    }
    assert read_options({"partition": "gpu", "time": 30}) == read_options(["partition=gpu", "time=30"])
    for word, said in (
        ("partiton=gpu", "did you mean 'partition'"),
        ("partition", "KEY=VALUE"),
        ("time=soon", "HH:MM:SS"),
        ("time=0", "at least a minute"),
        ("cpus_per_task=0", "whole number above 0"),
        ("cluster=aws", "known: local, slurm"),
    ):
        with pytest.raises(InputError, match=said):
            read_options([word])


def test_engines_are_told_what_is_for_them(tmp_path, monkeypatch):
    spec = load_spec(SMALLEST)
    for words, said in (
        ({"engine": "rya"}, "did you mean 'ray'"),
        ({"engine": "local", "slurm": ["time=1"]}, "--slurm is for --engine slurm"),
        ({"engine": "slurm", "ray_address": "127.0.0.1:1"}, "--ray-address is for --engine ray"),
        ({"engine": "slurm"}, "give --device cuda, or --device cpu"),
        ({"engine": "slurm", "device": "cuda:1"}, "the engine's to say"),
    ):
        with pytest.raises(InputError, match=said):
            hire(words.pop("engine"), spec, tmp_path, **words)
    monkeypatch.setattr("spo_bench.engine.remote.find_spec", lambda name: None)
    for engine, extra in (("ray", "ray"), ("slurm", "slurm")):
        with pytest.raises(InputError, match=rf"pip install 'spo-bench\[{extra}\]'"):
            hire(engine, spec, tmp_path, "cpu")


def test_what_follows_a_stage_in_its_job(tmp_path):
    """A training is followed by answers and scores of its policy and by nothing a training waits for; each stage is in one job, or
    made on this machine, because it runs no model.
    """
    pytest.importorskip("submitit")
    spec = load_spec(SMALL_SPEC)
    cells = cells_of(spec, tmp_path / "store", "cpu")
    every = unique_in_order([stage for cell in cells for stage in cell.stages.values()])
    with hire("slurm", spec, tmp_path, "cpu", slurm=["partition=short", "time=30"]) as crew:
        orders = Engine(Store(tmp_path / "store"), crew, Watcher(), whole=every).plan(every)
        assert {order.stage.key for order in orders} == {stage.key for stage in every if not stage.on_disk}
        jobs = [order for order in orders if order.stage.kind in TRAINING]
        assert [[one.stage.kind for one in order.then] for order in jobs] == [["generate", "score"]] * 4
        for order in orders:
            made = {order.stage.key}
            for follower in order.then:
                missing = {one.key for one in follower.stage.inputs.values()} & {one.stage.key for one in orders}
                assert follower.stage.kind not in TRAINING
                assert missing & made
                made.add(follower.stage.key)
        scripts = {name: (count, text) for name, count, text in crew.scripts(orders)}
    count, text = scripts["train, generate, score"]
    assert count == 4
    for line in ("--partition=short", "--time=30", "--array=0-3%4", "--cpus-per-task=1", "--signal=USR2@90"):
        assert f"#SBATCH {line}\n" in text
    assert "gpus" not in text
    assert "judge" not in "".join(scripts)
    assert not (tmp_path / "slurm").exists(), "nothing is written"


def test_a_matrix_through_submitit_has_the_same_numbers(tmp_path):
    """Jobs are processes of this machine; their folder is gone when all went well."""
    pytest.importorskip("submitit")
    local = spo_bench.run(SMALLEST, tmp_path / "local", store=tmp_path / "store", device="cpu")
    found = spo_bench.run(
        SMALLEST, tmp_path / "jobs", store=tmp_path / "other", device="cpu", engine="slurm", slurm={"cluster": "local"}
    )
    assert (found.done, found.failed, found.made) == (local.cells, {}, local.made)
    assert numbers(found.out) == numbers(local.out)
    assert not (found.out / "slurm").exists()
