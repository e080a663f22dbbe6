"""Which stages start when: cores and memory are never given out twice, and everything is run. How much memory a stage takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

import spo_bench
from spo_bench.api import cells_of, choose_jobs
from spo_bench.engine.local import Engine, unique_in_order
from spo_bench.engine.memory import GIB, PROCESS, estimate, free_memory
from spo_bench.engine.schedule import Schedule
from spo_bench.errors import InputError
from spo_bench.matrix.load import load_spec
from spo_bench.stages.base import Stage
from spo_bench.store.artifacts import Store


def stage(name: str, *inputs: Stage, **local) -> Stage:
    return Stage("test", 1, {"name": name}, {one.config["name"]: one for one in inputs}, local)


def names(started: list[tuple[Stage, int]]) -> dict[str, int]:
    return {one.config["name"]: threads for one, threads in started}


def test_a_stage_alone_has_all_cores_and_several_share_them():
    """Four cores, two jobs: `a` alone has 4; of b, c and d two begin with 2 each; when b ends, d has b's 2."""
    a = stage("a")
    b, c, d = (stage(name, a) for name in "bcd")
    schedule = Schedule([a, b, c, d], 2, 4, float("inf"), lambda _: 1.0)
    assert names(schedule.start()) == {"a": 4}
    assert schedule.start() == [], "no core is free"
    schedule.finish(a)
    assert names(schedule.start()) == {"b": 2, "c": 2}
    schedule.finish(b)
    assert names(schedule.start()) == {"d": 2}


def test_a_small_stage_leaves_cores_to_others():
    one, two = stage("one", threads=1), stage("two")
    assert names(Schedule([one, two], 2, 4, float("inf"), lambda _: 1.0).start()) == {"one": 1, "two": 3}


def test_only_what_fits_into_memory_runs_side_by_side():
    """Ten bytes, stages of 6, 6, 4 and 20: 6 + 4 together, then 6; the one of 20 runs alone when nothing else does."""
    needs = {"six": 6, "other": 6, "four": 4, "large": 20}
    stages = [stage(name) for name in needs]
    schedule = Schedule(stages, 4, 4, 10, lambda one: needs[one.config["name"]])
    assert names(schedule.start()) == {"six": 2, "four": 2}
    assert schedule.start() == []
    schedule.finish(stages[0])
    assert names(schedule.start()) == {"other": 2}
    schedule.finish(stages[1])
    assert schedule.start() == [], "four still runs"
    schedule.finish(stages[2])
    assert names(schedule.start()) == {"large": 4}


def test_what_depends_on_a_failed_stage_is_not_tried():
    a, other = stage("a"), stage("other")
    b = stage("b", a)
    c = stage("c", b)
    schedule = Schedule([a, other, b, c], 1, 1, 1, lambda _: 1.0)
    schedule.start()
    assert {one.config["name"] for one in schedule.fail(a)} == {"b", "c"}
    assert names(schedule.start()) == {"other": 1}


@given(
    graph=st.lists(
        st.tuples(st.sets(st.integers(0, 11), max_size=3), st.integers(1, 12), st.booleans()), min_size=1, max_size=12
    ),
    jobs=st.integers(1, 5),
    cores=st.integers(1, 8),
    order=st.randoms(use_true_random=False),
)
def test_every_stage_runs_once_within_cores_and_memory(graph, jobs, cores, order):
    """Any graph, sizes and order of ending: each stage starts once after its inputs, or is skipped because one failed."""
    stages: list[Stage] = []
    for place, (inputs, _, _) in enumerate(graph):
        stages.append(stage(str(place), *(stages[i] for i in sorted(inputs) if i < place)))
    needs = {str(place): need for place, (_, need, _) in enumerate(graph)}
    schedule = Schedule(stages, jobs, cores, 10, lambda one: needs[one.config["name"]])
    running: dict[str, tuple[Stage, int]] = {}
    ended: set[str] = set()
    while schedule.left:
        for one, threads in schedule.start():
            assert {source.config["name"] for source in one.inputs.values()} <= ended
            running[one.config["name"]] = (one, threads)
        assert running, "something always runs"
        assert len(running) <= jobs
        assert sum(threads for _, threads in running.values()) <= max(cores, jobs)
        assert len(running) == 1 or sum(needs[name] for name in running) <= 10
        name = order.choice(sorted(running))
        one, _ = running.pop(name)
        if graph[int(name)][2]:
            schedule.fail(one)
        else:
            schedule.finish(one)
            ended.add(name)
    assert not running


SPEC = {
    "name": "tiny",
    "models": ["embedded"],
    "tasks": [{"name": "controlled_dialogue", "limit": {"train": 16, "eval": 4, "heldout": 8, "sft": 16}}],
    "methods": ["dpo", "ipo"],
    "train": {"batch_size": 8, "max_steps": 1, "max_length": 128},
    "generate": {"max_new_tokens": 8},
}


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
    cells = cells_of(load_spec(SPEC), tmp_path, "cpu")
    data = [cells[0].stages["data"], *(cell.stages["generate"] for cell in cells if cell.method == "sft")]
    trained = [cell.stages["train"] for cell in cells if "train" in cell.stages]
    told = Times()
    with Engine(Store(tmp_path), 2, told, memory=0) as engine:
        assert engine.run([*data, *trained[:1]]) == {}
        assert told.most == 1
        engine.memory = float("inf")
        assert engine.run(trained) == {}
    assert told.most == 2


def test_jobs_are_a_number_or_auto():
    spec = load_spec(SPEC)
    assert choose_jobs("3", spec, "cpu") == 3
    assert choose_jobs("auto", spec, "cpu") >= 1
    for given_ in ("0", "-1", "many"):
        with pytest.raises(InputError, match="give --jobs 1 or more, or --jobs auto"):
            spo_bench.run(SPEC, jobs=given_)


@pytest.fixture(scope="module")
def directory(tmp_path_factory, embedded_copy):
    """A Llama of 1,280 + 2 x 3,104 + 32 parameters on disk, with a tokenizer: (directory, parameters)."""
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(embedded_copy)
    return embedded_copy, sum(weight.numel() for weight in model.parameters())


@pytest.fixture(scope="module")
def embedded_copy(tmp_path_factory):
    from spo_bench.models.embedded import build_embedded

    folder = tmp_path_factory.mktemp("model") / "small"
    build_embedded(folder, 0)
    return folder


def needs(spec: dict, folder) -> dict[str, float]:
    """Return the most a stage of each kind takes beyond a bare process."""
    stages = unique_in_order([one for cell in cells_of(load_spec(spec), folder, "cpu") for one in cell.stages.values()])
    return {kind: max(estimate(one) for one in stages if one.kind == kind) - PROCESS for kind in {one.kind for one in stages}}


def test_a_training_takes_its_weights_four_times_and_an_adapter_takes_less(directory, tmp_path):
    """Per parameter 4 bytes held, 12 more for gradient and two moments when it is trained; the rest is the same in both."""
    path, parameters = directory
    spec = {**SPEC, "models": [str(path)], "train": {**SPEC["train"], "micro_tokens": 2048}}
    full, checked = needs(spec, tmp_path), needs({**spec, "train": {**spec["train"], "gradient_checkpointing": True}}, tmp_path)
    assert full["train"] - checked["train"] == 2048 * (12 * 32 + 4 * 64) * 4, "one layer's activations fewer"
    assert full["train"] - full["reference"] == 12 * parameters + 2048 * (12 * 32 + 4 * 64 + 2 * 32) * 4
    lora = needs({**spec, "train": {**spec["train"], "lora": {"rank": 2}}}, tmp_path)
    assert lora["train"] - full["train"] == 16 * 2 * 2 * (8 * 32 + 3 * 96) - 12 * parameters
    assert full["data"] == 0


def test_free_memory_is_known_here():
    assert 0 < free_memory("cpu") < 2**16 * GIB
