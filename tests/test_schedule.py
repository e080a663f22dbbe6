"""Which stages start when: cores and memory are never given out twice, and everything is run; and the processes they run in."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from conftest import SMALL_SPEC
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch.cuda._utils import _get_device_index

import spo_bench
from spo_bench.api import Watcher, cells_of
from spo_bench.cli.progress import RunProgress
from spo_bench.engine.engine import Engine, unique_in_order
from spo_bench.engine.free import Need
from spo_bench.engine.hire import choose_jobs, hire
from spo_bench.engine.local import Processes, local
from spo_bench.engine.schedule import Schedule
from spo_bench.engine.shares import Share, shares
from spo_bench.errors import InputError
from spo_bench.files import read_json
from spo_bench.matrix.load import load_spec
from spo_bench.models.embedded import build_embedded
from spo_bench.processes import Pool
from spo_bench.stages.base import Stage, Work
from spo_bench.stages.registry import KINDS, How, execute
from spo_bench.stages.together import device_of
from spo_bench.store.artifacts import Store


def stage(name: str, *inputs: Stage, **local) -> Stage:
    return Stage("test", 1, {"name": name}, {one.config["name"]: one for one in inputs}, local)


def names(started: list[tuple[Stage, int]]) -> dict[str, int]:
    return {one.config["name"]: threads for one, threads in started}


def schedule(stages, jobs, cores, *, memory=float("inf"), needs=None, share=None, idle=0, workers=0, gpus=None) -> Schedule:
    """A schedule of stages that take one core and no memory unless ``share`` and ``needs`` say otherwise, by name; with ``gpus``
    they need that memory of a GPU.
    """
    needs, share = needs or {}, share or {}
    return Schedule(
        stages,
        jobs,
        cores,
        memory,
        lambda one: Need(*((0, needs.get(one.config["name"], 0)) if gpus else (needs.get(one.config["name"], 0),))),
        lambda one: share.get(one.config["name"], Share(1, 1)),
        Need(0, idle) if gpus else Need(idle),
        workers,
        gpus=gpus,
    )


def test_an_endpoint_is_asked_while_others_train():
    """Behind each training wait its answers and their verdicts: the answers go before the next training."""
    train = [Stage("train", 1, {"name": f"train {one}"}) for one in "ab"]
    answers = [stage(f"generate {one}", trained) for one, trained in zip("ab", train, strict=True)]
    judged = [stage(f"judge {one}", answered) for one, answered in zip("ab", answers, strict=True)]
    share = {one.config["name"]: Share(1, 0, beside=True) for one in judged}
    two = schedule([*train, *answers, *judged], 1, 1, share=share)
    [(first, _)] = two.start()
    two.finish(first)
    assert names(two.start()) == {"generate a": 1}
    two.finish(answers[0])
    assert names(two.start()) == {"train b": 1, "judge a": 1}


def test_stages_are_spread_over_the_gpus_of_a_machine():
    """Each goes where fewest are, then where most memory is left; two of 40 do not fit beside each other into 70."""
    stages = [stage(name) for name in "abcde"]
    share = {name: Share(1, 1, devices=1) for name in "abcd"} | {"e": Share(1, 0)}
    needs = {"a": 40, "b": 10, "c": 40, "d": 40}
    spread = schedule(stages, 9, 9, needs=needs, share=share, gpus={"cuda:0": 70, "cuda:1": 80})
    begun = [one for one, _ in spread.start()]
    placed = {one.config["name"]: spread.places(one) for one in begun}
    assert placed == {"a": ("cuda:1",), "b": ("cuda:0",), "c": ("cuda:0",), "d": ("cuda:1",), "e": ()}
    spread.finish(begun[0])
    assert spread.start() == []

    tight = schedule(stages[:4], 9, 9, needs=dict.fromkeys("abcd", 40), share=share, gpus={"cuda:0": 70, "cuda:1": 70})
    begun = [one for one, _ in tight.start()]
    assert [tight.places(one) for one in begun] == [("cuda:0",), ("cuda:1",)], "c waits for memory"
    tight.finish(begun[1])
    assert [tight.places(one) for one, _ in tight.start()] == [("cuda:1",)]


def test_a_cell_of_several_gpus_has_them_together():
    stages = [stage(name) for name in "abc"]
    share = {"a": Share(1, 1, devices=2), "b": Share(1, 1, devices=2), "c": Share(1, 1, devices=1)}
    free = dict.fromkeys((f"cuda:{place}" for place in range(4)), 50.0)
    pairs = schedule(stages, 9, 9, needs=dict.fromkeys("abc", 40), share=share, gpus=free)
    begun = [one for one, _ in pairs.start()]
    assert [pairs.places(one) for one in begun] == [("cuda:0", "cuda:1"), ("cuda:2", "cuda:3")]
    pairs.finish(begun[0])
    assert [pairs.places(one) for one, _ in pairs.start()] == [("cuda:0",)]


def test_one_stage_has_room_however_much_it_needs_of_a_gpu():
    [one], share = [stage("a")], {"a": Share(1, 1, devices=1)}
    large = schedule([one, stage("b")], 2, 2, needs={"a": 99, "b": 1}, share=share, gpus={"cuda:0": 5, "cuda:1": 7})
    begun = [first for first, _ in large.start()]
    assert large.places(begun[0]) == ("cuda:1",)


def test_idle_workers_keep_a_context_on_every_gpu():
    stages, share = [stage("a"), stage("b")], {"a": Share(1, 1, devices=1), "b": Share(1, 1, devices=1)}
    crowded = schedule(stages, 9, 9, needs={"a": 3, "b": 3}, share=share, idle=2, workers=4, gpus={"cuda:0": 6})
    assert names(crowded.start()) == {"a": 1}, "3 and 3 and what two idle workers keep are more than 6"


def test_a_device_is_all_gpus_in_sight_or_the_one_that_is_named(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    crew = hire("local", load_spec(SMALL_SPEC), Path("out"), "cuda")
    assert (crew.gpus, crew.jobs) == (("cuda:0", "cuda:1", "cuda:2", "cuda:3"), 4)
    crew = hire("local", load_spec(SMALL_SPEC), Path("out"), "cuda:2")
    assert (crew.gpus, crew.jobs) == (("cuda:2",), 1)
    assert hire("local", load_spec(SMALL_SPEC), Path("out"), "cpu").gpus == ()
    pairs = load_spec({**SMALL_SPEC, "train": {**SMALL_SPEC["train"], "devices_per_cell": 2}})
    assert hire("local", pairs, Path("out"), "cuda").jobs == 2
    with pytest.raises(InputError, match="devices_per_cell 2 with 1 GPU"):
        hire("local", pairs, Path("out"), "cuda:1")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    (only,) = hire("local", load_spec(SMALL_SPEC), Path("out"), "cuda").gpus
    assert only == "cuda:0"
    assert _get_device_index(only) == 0, "torch makes no GPU the current one that has no number"


def test_orders_name_the_gpus_and_stages_compute_there(tmp_path, monkeypatch):
    """The first order of a run on two GPUs, up to the work that a stage's function gets."""
    spec = load_spec({**SMALL_SPEC, "train": {**SMALL_SPEC["train"], "devices_per_cell": 2}})
    stages = unique_in_order([one for cell in cells_of(spec, tmp_path, "cuda", here=False) for one in cell.stages.values()])
    with local(2, "cuda", 4) as crew:
        orders = {order.stage.kind: order for order in Engine(Store(tmp_path), crew, Watcher(), whole=stages).plan(stages)}
    assert orders["data"].how.places == ()
    assert len(set(orders["train"].how.places)) == 2
    assert orders["copies"].how.places == ()
    work = Work(tmp_path, orders["train"].stage.config, {}, {"device": "cuda", "places": ("cuda:3", "cuda:1")})
    assert [device_of(work, rank) for rank in (0, 1)] == ["cuda:3", "cuda:1"]
    assert device_of(replace(work, local={"device": "cuda"}), 1) == "cuda:1"

    def run(work: Work) -> None:
        (work.out / "seen").write_text(f"{work.numerics.device} {work.local['places']}")

    monkeypatch.setitem(KINDS, "model", (f"{__name__}:seen", 1))
    monkeypatch.setattr(sys.modules[__name__], "seen", run, raising=False)
    plain = Stage("model", 1, {"numerics": {"device": "cuda", "dtype": "float32", "held": "float32"}}, {}, {"device": "cuda"})
    made = execute(plain, Store(tmp_path), How(places=("cuda:3",)))
    assert (made / "seen").read_text() == "cuda:3 ('cuda:3',)"


def test_what_most_wait_for_goes_first():
    """`score` is listed first and nothing waits for it; behind `reference` wait two stages, one of them only in the end."""
    score, reference = stage("score"), stage("reference")
    train = stage("train", reference)
    generate = stage("generate", train)
    one_by_one = schedule([score, reference, train, generate], 1, 1)
    order = []
    while one_by_one.left:
        [(begun, _)] = one_by_one.start()
        order.append(begun.config["name"])
        one_by_one.finish(begun)
    assert order == ["reference", "train", "score", "generate"]


def test_only_what_fits_into_memory_runs_side_by_side():
    """Ten bytes, stages of 6, 4, 6 and 20: 6 + 4 together, then 6; the one of 20 runs alone when nothing else does."""
    needs = {"six": 6, "four": 4, "other": 6, "large": 20}
    stages = {name: stage(name) for name in needs}
    four = schedule(list(stages.values()), 4, 4, memory=10, needs=needs)
    assert names(four.start()) == {"six": 1, "four": 1}
    assert four.start() == []
    four.finish(stages["six"])
    assert names(four.start()) == {"other": 1}
    four.finish(stages["other"])
    assert four.start() == [], "four still runs"
    four.finish(stages["four"])
    assert names(four.start()) == {"large": 1}


def test_a_large_stage_is_not_overtaken_for_ever():
    """A stage of 9 bytes waits beside one of 4; the small ones behind it would always fit, and none of them starts before it."""
    small = [stage(f"small{number}") for number in range(4)]
    large = stage("large")
    needs = {"large": 9, **{one.config["name"]: 4 for one in small}}
    two = schedule([small[0], large, *small[1:]], 2, 2, memory=10, needs=needs)
    assert names(two.start()) == {"small0": 1}
    two.finish(small[0])
    assert names(two.start()) == {"large": 1}
    two.finish(large)
    assert names(two.start()) == {"small1": 1, "small2": 1}


def test_idle_workers_keep_their_memory():
    """Ten bytes, three workers of which two have nothing to do and keep 3 each: 4 + 4 would fit, 4 + 4 + 3 does not."""
    stages = [stage("a"), stage("b")]
    needs = {"a": 4, "b": 4}
    assert len(schedule(stages, 2, 2, memory=10, needs=needs).start()) == 2
    assert len(schedule(stages, 2, 2, memory=10, needs=needs, idle=3, workers=3).start()) == 1


def test_a_stage_waits_for_all_its_cores_and_light_ones_go_on():
    """Two cores: `wide` wants both and waits for `narrow`; `late` does not overtake it, `light` needs no core and starts."""
    stages = {name: stage(name) for name in ("narrow", "wide", "late", "light")}
    share = {"wide": Share(2, 2), "light": Share(1, 0)}
    three = schedule(list(stages.values()), 3, 2, share=share)
    assert names(three.start()) == {"narrow": 1, "light": 1}
    three.finish(stages["narrow"])
    assert names(three.start()) == {"wide": 2}
    three.finish(stages["wide"])
    assert names(three.start()) == {"late": 1}


def test_a_judge_behind_an_endpoint_takes_no_job_and_comes_one_at_a_time():
    """Two jobs, two such judges: both trainings run beside the first, also the one that wants all memory for itself."""
    judges, trained = [stage("judge0"), stage("judge1")], [stage("train0"), stage("train1"), stage("large")]
    share = {one.config["name"]: Share(1, 0, beside=True) for one in judges}
    two = schedule([*judges, *trained], 2, 2, share=share, memory=10, needs={"judge0": 1, "judge1": 1, "large": 10})
    assert names(two.start()) == {"judge0": 1, "train0": 1, "train1": 1}
    two.finish(trained[0])
    assert two.start() == []
    two.finish(trained[1])
    assert names(two.start()) == {"large": 1}
    two.finish(judges[0])
    assert two.start() == [], "the second judge has no memory left"
    two.finish(trained[2])
    assert names(two.start()) == {"judge1": 1}


def test_what_depends_on_a_failed_stage_is_not_tried():
    a, other = stage("a"), stage("other")
    b = stage("b", a)
    c = stage("c", b)
    alone = schedule([a, other, b, c], 1, 1)
    alone.start()
    assert {one.config["name"] for one in alone.fail(a)} == {"b", "c"}
    assert names(alone.start()) == {"other": 1}


@given(
    graph=st.lists(
        st.tuples(st.sets(st.integers(0, 11), max_size=3), st.integers(1, 12), st.booleans(), st.integers(0, 4)),
        min_size=1,
        max_size=12,
    ),
    jobs=st.integers(1, 5),
    cores=st.integers(1, 8),
    order=st.randoms(use_true_random=False),
)
def test_every_stage_runs_once_within_cores_and_memory(graph, jobs, cores, order):
    """Any graph, sizes, kinds and order of ending: each stage starts once after its inputs, or is skipped because one failed."""
    stages: list[Stage] = []
    for place, (inputs, *_) in enumerate(graph):
        stages.append(stage(str(place), *(stages[i] for i in sorted(inputs) if i < place)))
    needs = {str(place): need for place, (_, need, _, _) in enumerate(graph)}
    kinds = [Share(1, 0, jobs > 1), Share(1, 0), *(Share(n, n) for n in (1, min(2, cores), cores))]
    share = {str(place): kinds[kind] for place, (*_, kind) in enumerate(graph)}
    plan = schedule(stages, jobs, cores, memory=10, needs=needs, share=share)
    running: dict[str, Stage] = {}
    ended: set[str] = set()
    while plan.left:
        for one, threads in plan.start():
            name = one.config["name"]
            assert {source.config["name"] for source in one.inputs.values()} <= ended
            assert threads == share[name].threads
            running[name] = one
        assert running, "something always runs"
        beside = [name for name in running if share[name].beside]
        assert len(running) - len(beside) <= jobs
        assert len(beside) <= 1
        assert sum(share[name].cores for name in running) <= cores
        assert len(running) - len(beside) <= 1 or sum(needs[name] for name in running.keys() - beside) <= 10
        name = order.choice(sorted(running))
        one = running.pop(name)
        if graph[int(name)][2]:
            plan.fail(one)
        else:
            plan.finish(one)
            ended.add(name)
    assert not running


class Times:
    """A watcher that notes which stages were under way together."""

    def __init__(self):
        self.running: set[str] = set()
        self.most = 0

    def started(self, stage):
        self.running.add(stage.key)
        self.most = max(self.most, len(self.running))

    def finished(self, stage, seconds):
        self.running.discard(stage.key)

    def failed(self, stage, reason):
        raise AssertionError(reason)

    def skipped(self, stage):
        raise AssertionError(stage.kind)


def test_a_machine_without_memory_runs_one_stage_at_a_time(tmp_path):
    """With two jobs and room for nothing, real stages are made by workers one after the other; with room, two at a time."""
    cells = cells_of(load_spec(SMALL_SPEC), tmp_path, "cpu")
    data = [cells[0].stages["data"], *(cell.stages["generate"] for cell in cells if cell.method == "sft")]
    trained = [cell.stages["train"] for cell in cells if "train" in cell.stages]
    told = Times()
    with Engine(Store(tmp_path), local(2), told, memory=0, whole=[*data, *trained]) as engine:
        assert engine.run([*data, *trained[:1]]) == {}
        assert told.most == 1
        engine.memory = float("inf")
        assert engine.run(trained) == {}
    assert told.most == 2


def test_jobs_are_a_number_or_auto():
    spec = load_spec(SMALL_SPEC)
    assert choose_jobs("3", spec, "cpu") == 3
    assert choose_jobs("auto", spec, "cpu") >= 1
    for given_ in ("0", "-1", "many"):
        with pytest.raises(InputError, match="give --jobs 1 or more, or --jobs auto"):
            spo_bench.run(SMALL_SPEC, jobs=given_)
    with pytest.raises(InputError, match="leave --memory out, or give --jobs 2 or more"):
        spo_bench.run(SMALL_SPEC, jobs=1, memory=2**30)


def shares_of(jobs: int, cores: int, folder, **changes) -> dict[str, set[Share]]:
    """Return what each kind of stage of a small matrix has of the cores."""
    stages = unique_in_order(
        [one for cell in cells_of(load_spec(SMALL_SPEC | changes), folder, "cpu") for one in cell.stages.values()]
    )
    found = {key: share._replace(devices=0) for key, share in shares(stages, jobs, cores).items()}
    return {kind: {found[one.key] for one in stages if one.kind == kind} for kind in {one.kind for one in stages}}


def test_threads_depend_on_the_run_alone(tmp_path):
    """Eight cores and four jobs: four trainings have two each, one reference all; what runs no model takes none."""
    directory = tmp_path / "model"
    build_embedded(directory, 0)
    found = shares_of(4, 8, tmp_path, models=[str(directory)])
    assert found["train"] == {Share(2, 2)}
    assert found["reference"] == {Share(8, 8)}
    assert found["generate"] == {Share(2, 2)}
    assert found["data"] == found["copies"] == found["judge"] == {Share(1, 0)}
    assert shares_of(1, 8, tmp_path, models=[str(directory)])["train"] == {Share(8, 8)}
    assert shares_of(4, 8, tmp_path)["train"] == {Share(1, 1)}, "the embedded model has use for one"
    asked = {"backend": "openai", "model": "m-2030-01-01", "base_url": "http://127.0.0.1:9/v1", "api_key_env": "NONE"}
    assert shares_of(2, 8, tmp_path, judge=asked)["judge"] == {Share(1, 0, beside=True)}
    assert shares_of(1, 8, tmp_path, judge=asked)["judge"] == {Share(1, 0)}


def test_a_training_notes_its_threads(tmp_path):
    stages = unique_in_order([one for cell in cells_of(load_spec(SMALL_SPEC), tmp_path, "cpu") for one in cell.stages.values()])
    trained = [one for one in stages if one.kind == "train"]
    with Engine(Store(tmp_path), local(1), Watcher(), whole=stages) as engine:
        assert engine.run(trained[:1]) == {}
    assert read_json(trained[0].path(Store(tmp_path)) / "summary.json")["threads"] == 1


class Killer(Watcher):
    """A watcher that kills all workers of an engine, which have nothing to do, when the first stage has ended."""

    engine: Engine
    kills = 1

    def finished(self, stage, seconds):
        pool = self.engine.crew.pool if isinstance(self.engine.crew, Processes) else None
        if self.kills and pool is not None:
            self.kills -= 1
            for process in pool.started:
                process.kill()
                process.join()
            time.sleep(0.5)


def test_a_killed_idle_worker_costs_nothing(tmp_path):
    """The next stage finds a broken pool when it is given to it, or is caught in it; it is made all the same."""
    cells = cells_of(load_spec(SMALL_SPEC), tmp_path, "cpu")
    data, told = cells[0].stages["data"], Killer()
    with Engine(Store(tmp_path), local(2), told) as told.engine:
        assert told.engine.run([data]) == {}
        assert told.kills == 0
        assert told.engine.run([cells[0].stages["sft"], *data.inputs.values()]) == {}


PARENT = """
import os, time
from spo_bench.processes import Pool

if __name__ == "__main__":
    print(Pool(1).submit(os.getpid).result(), flush=True)
    time.sleep(60)
"""


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    parent = subprocess.Popen([sys.executable, str(tmp_path / "parent.py")], stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    assert alive(worker)
    parent.kill()
    parent.wait()
    wait_for(lambda: not alive(worker))


def test_a_pool_ends_its_own_processes_and_no_others():
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    with Pool(1) as bystander:
        spare = bystander.submit(os.getpid).result()
        pool = Pool(1)
        pid = pool.submit(os.getpid).result()
        pool.submit(time.sleep, 60)
        pool.end()
        wait_for(lambda: not alive(pid))
        assert bystander.submit(os.getpid).result() == spare
    assert other.poll() is None
    other.kill()
    other.wait()


def alive(pid: int) -> bool:
    """Say whether a process is there and not a mere entry whose parent has not asked after it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(what) -> None:
    until = time.monotonic() + 10
    while not what():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_the_time_left_is_that_of_kinds_that_ran_by_how_many_ran_at_a_time():
    """Two trainings of 20 s in 20 s: two at a time. Two more take 20 s; scores, none of which has run yet, are only announced."""
    trained, scored = ([Stage(kind, 1, {"number": number}) for number in range(4)] for kind in ("train", "score"))
    told = RunProgress([*trained, *scored], [], Console(file=StringIO()))
    assert told.remaining() == "?"
    told.begun -= 20
    for one in trained[:2]:
        told.finished(one, 20.0)
    assert told.remaining() == "0:20+"
    told.finished(scored[0], 0.0)
    assert told.remaining() == "0:20"
