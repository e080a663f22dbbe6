"""What a matrix would cost: operations by hand, runs that are played through, times by experience, and the command that prints it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from conftest import SMALL_SPEC, tiny_model
from hypothesis import given
from hypothesis import strategies as st

from spo_bench.api import cells_of, run
from spo_bench.engine.calibrate import calibrate
from spo_bench.engine.engine import unique_in_order
from spo_bench.engine.estimate import Forecast, forecast
from spo_bench.engine.lengths import TYPICAL, lengths_of, nodes
from spo_bench.engine.local import local
from spo_bench.engine.machines import BANDWIDTH, GPUS, OPERATIONS, SCALING, Machine, choose_gpu, gpu_machine
from spo_bench.engine.memory import GIB, TRAINED, Size, estimate, size_of
from spo_bench.engine.shares import gpus
from spo_bench.engine.simulate import bound, critical_path, on_devices
from spo_bench.engine.timings import Pace, Timing, keep, kept
from spo_bench.engine.work import Load, answering, forward, learning, load_of
from spo_bench.errors import InputError
from spo_bench.matrix.load import load_spec
from spo_bench.models.known import _SHAPES, known_config
from spo_bench.stages.base import Stage
from spo_bench.store.artifacts import Store

MODEL = "mistralai/Mistral-7B-Instruct-v0.3"
HUB = {  # a matrix of which nothing is here
    "name": "hub",
    "models": [MODEL],
    "tasks": [{"name": "dialogue", "data": "Anthropic/hh-rlhf", "limit": {"train": 8, "eval": 4, "heldout": 0, "sft": 0}}],
    "methods": ["dpo"],
    "spo": [False],
    "train": {"batch_size": 4, "max_steps": 2},
}


def spo_bench(*words, cwd: Path, timeout=120):
    return subprocess.run(
        [sys.executable, "-c", "from spo_bench.cli.main import main; main()", *map(str, words)],
        cwd=cwd, capture_output=True, text=True, timeout=timeout,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "COLUMNS": "200", "SPO_BENCH_STORE": str(cwd / "store")},
    )  # fmt: skip


def written(folder: Path, spec: dict) -> Path:
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


def planned(spec: dict, folder: Path, device: str = "cuda") -> list[Stage]:
    cells = cells_of(load_spec(spec), folder, device, offline=True, assume=True, here=False)
    return unique_in_order([one for cell in cells for one in cell.stages.values()])


# --- operations -----------------------------------------------------------------------------------------------------------


def test_operations_by_hand():
    """900 weights x 10 tokens x 2, the head's 100 at 4 positions x 2, and 4 x 2 layers x 8 wide x 5 seen x 10 tokens."""
    size = Size(parameters=1050, layers=2, width=8, inner=16, keys=8, head=100, looked_up=50)
    assert forward(size, 10, 4, 5) == 18_000 + 800 + 3_200
    assert learning(size, 10, 4, 5) == 3 * 22_000
    assert learning(size, 10, 4, 5, adapter=True) == 2 * 22_000, "backward through frozen weights, not for them"
    assert learning(size, 10, 4, 5, twice=True) == 4 * 22_000


def test_operations_are_what_torch_counts():
    """Eager attention computes every pair of tokens, so each of 6 tokens sees 6."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model = tiny_model("llama").eval()
    model.set_attn_implementation("eager")
    config = {**model.config.to_dict()}
    size = size_of(Stage("model", 1, {}, local={"assumed": "tiny", "config": config}))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.arange(6)[None])
    assert forward(size, 6, 6, 6) == counter.get_total_flops()


def test_answers_by_hand():
    """Ten prompts, four at once: 20 steps for the longest of the first, and 6 more answers of 8 tokens in 4 rows: 32 steps."""
    size = Size(parameters=100, layers=3, width=4, inner=8, keys=2)
    load = answering(size, prompts=10, prompt=5, answer=8, longest=20, rows=4, held=2)
    assert load.layers == 32 * 3
    assert load.moved == 32 * 100 * 2 + 10 * 8 * (5 + 4) * 3 * 2 * 2 * 2, "all weights a step; keys and values that are seen"
    assert load.read == forward(size, 50, 10, 2.5)
    assert load.drawn == forward(size, 80, 80, 9)


def test_a_training_by_hand(tmp_path):
    """Two steps of 4 pairs, of whose lengths nothing is known but the task: a prompt and both answers each, which are predicted."""
    train = next(one for one in planned(HUB, tmp_path) if one.kind == "train")
    prompt, chosen, rejected = TYPICAL["dialogue"]
    size = size_of(Stage("model", 1, {}, local={"assumed": MODEL, "config": known_config(MODEL)}))
    load = load_of(train, Store(tmp_path))
    tokens, predicted = 8 * (prompt + chosen + rejected), 8 * (chosen + rejected)
    assert load.learned == learning(size, tokens, predicted, prompt + (chosen + rejected) / 4)
    assert load.read == load.drawn == load.calls == 0
    assert load.moved == 2 * 7 * 4 * size.parameters


def test_copies_and_adapters_change_a_training(tmp_path):
    spec = {**HUB, "spo": [False, True]}
    plain, spo = (load_of(one, Store(tmp_path)).learned for one in planned(spec, tmp_path) if one.kind == "train")
    prompt, chosen, rejected = TYPICAL["dialogue"]
    more = 1 + 3 * 0.52 * (chosen + rejected) / (prompt + chosen + rejected)
    assert spo / plain == pytest.approx(more, rel=0.05), "three further degrees; the head reads no copy"
    adapter = {**HUB, "train": {**HUB["train"], "lora": {"rank": 8}}}
    light = next(load_of(one, Store(tmp_path)) for one in planned(adapter, tmp_path) if one.kind == "train")
    assert light.learned == pytest.approx(plain * 2 / 3)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=5))
def test_nodes_are_distinct_prefixes(sequences):
    assert nodes(sequences) == len({tuple(one[:end]) for one in sequences for end in range(1, len(one) + 1)})


def test_known_models_have_the_parameters_of_their_shape(tmp_path):
    """Matrices, norms and embeddings; Qwen2.5 also has biases of queries, keys and values, and Gemma two norms more a layer."""
    for (layers, width, inner, heads, groups, head, words, tied, parameters), names in _SHAPES.items():
        more = heads * head + 2 * groups * head if "Qwen2.5" in names[0] else 2 * head if "Qwen3" in names[0] else 0
        norms = (4 if "gemma" in names[0] else 2) * width
        layer = 2 * width * heads * head + 2 * width * groups * head + 3 * width * inner + norms + more
        assert layers * layer + words * width * (1 if tied else 2) + width == parameters, names


# --- runs that are played through -----------------------------------------------------------------------------------------


def stage(name: str, *inputs: Stage) -> Stage:
    return Stage("test", 1, {"name": name}, {one.config["name"]: one for one in inputs})


def test_a_chain_takes_its_sum_on_any_number():
    a = stage("a")
    b = stage("b", a)
    c = stage("c", b)
    took = {"a": 1.0, "b": 2.0, "c": 3.0}
    for devices in (1, 4):
        played = on_devices([a, b, c], devices, lambda _: 1, lambda one: took[one.config["name"]])
        assert (played.seconds, played.path_seconds, played.utilisation) == (6.0, 6.0, 1 / devices)
        assert [one.config["name"] for one in played.path] == ["a", "b", "c"]


def test_independent_stages_fill_the_devices():
    """Six of 2 s: 12 s on one device, three rounds on two, one round on six and on more."""
    stages = [stage(str(number)) for number in range(6)]
    took = [on_devices(stages, devices, lambda _: 1, lambda _: 2.0).seconds for devices in (1, 2, 6, 8)]
    assert took == [12.0, 6.0, 2.0, 2.0]


def test_a_fork_joins():
    """1 s, then branches of 3, 2 and 2 s, then 1 s: 5 s on three devices; on two the second 2 s waits for the first: 6 s."""
    root = stage("root")
    branches = [stage(f"branch{number}", root) for number in range(3)]
    end = stage("end", *branches)
    took = {"root": 1.0, "branch0": 3.0, "branch1": 2.0, "branch2": 2.0, "end": 1.0}
    every = [root, *branches, end]
    seconds = {n: on_devices(every, n, lambda _: 1, lambda one: took[one.config["name"]]).seconds for n in (1, 2, 3)}
    assert seconds == {1: 9.0, 2: 6.0, 3: 5.0}


def test_a_stage_on_several_devices_waits_until_they_are_free_and_one_on_none_waits_for_nobody():
    """Two of 2 s on two devices each take turns on three; what needs none runs beside them."""
    wide, light = [stage("w0"), stage("w1")], stage("light")
    takes = {"w0": 2, "w1": 2, "light": 0}
    played = on_devices([*wide, light], 3, lambda one: takes[one.config["name"]], lambda _: 2.0)
    assert played.seconds == 4.0
    assert played.busy == 8.0
    assert played.utilisation == 8 / 12


@given(
    st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(0, 30), max_size=3)), min_size=1, max_size=12), st.integers(1, 5)
)
def test_no_run_is_shorter_than_its_longest_chain_or_its_work(drawn, devices):
    """And none is longer than Graham's bound for list scheduling: work / N + (1 - 1 / N) x the longest chain."""
    stages: list[Stage] = []
    for number, (_, inputs) in enumerate(drawn):
        stages.append(stage(str(number), *{stages[i % number].key: stages[i % number] for i in inputs if number}.values()))
    took = {one.key: float(seconds) for one, (seconds, _) in zip(stages, drawn, strict=True)}
    played = on_devices(stages, devices, lambda _: 1, lambda one: took[one.key])
    path, work = critical_path(stages, lambda one: took[one.key])[1], sum(took.values())
    assert played.path_seconds == path
    assert played.seconds <= bound(stages, devices, lambda _: 1, lambda one: took[one.key]).seconds
    assert max(path, work / devices) - 1e-9 <= played.seconds <= work / devices + (1 - 1 / devices) * path + 1e-9


# --- times ----------------------------------------------------------------------------------------------------------------


def test_a_gpus_time_by_hand():
    """Operations at the assumed share of the data sheet, on two devices 1.9 times as fast; Python's calls run beside them."""
    gpu = gpu_machine("H100")
    load = Load(learned=989e12 * OPERATIONS, disk=2e9, rows=1000)
    assert gpu.seconds(load, "bfloat16") == pytest.approx(gpu.fixed + 1 + 2 + 1)
    assert gpu.seconds(load, "bfloat16", 2) == pytest.approx(gpu.fixed + 1 / (1 + SCALING) + 2 + 1)
    answers = Load(drawn=1.0, moved=3 * 3350e9 * BANDWIDTH, layers=100)
    assert gpu.seconds(answers, "bfloat16") == pytest.approx(gpu.fixed + 3), "answers wait for memory"
    assert gpu.seconds(Load(rows=10), "float32") == pytest.approx(0.01), "no context, no libraries"


def test_every_gpu_says_where_its_numbers_stand():
    for name, gpu in GPUS.items():
        assert "NVIDIA" in gpu.source, name
        assert gpu.float32 < gpu.tf32 * 1.01 <= gpu.bfloat16, name
    assert choose_gpu("a100-80gb", "cpu") == ("A100-80GB", True)
    with pytest.raises(InputError, match="did you mean 'H100'"):
        choose_gpu("H10", "cpu")


CORE = Machine("here", {"float32": 1e9, "bfloat16": 2e9}, 1e9, 1e9, 0.0, 0.0, False, row=0.0)


def timing(read: float, seconds: float, kind: str = "reference", **other) -> Timing:
    values = {"model": "m", "dtype": "float32", "machine": "here", "parts": 1, "jobs": 1, "basis": "measured", **other}
    return Timing(kind=kind, load=Load(read=read), seconds=seconds, **values)


def test_times_of_unlike_loads_give_a_line():
    """2 s and 3 s a GFLOP more: 2 + 3 x."""
    pace = Pace(CORE, [timing(x * 1e9, 2 + 3 * x) for x in (1, 2, 5)])
    seconds, basis = pace.of_load(("reference", "m", "float32"), Load(read=10e9), 1)
    assert (seconds, basis) == (pytest.approx(32.0), "measured")


def test_small_stages_say_what_a_large_one_takes_whatever_they_are_said_to_take_at_least():
    """0.02 s and 1.6 s a GFLOP more, on a machine of whose stages 0.5 s are assumed: these would hide how steep the line is."""
    machine = replace(CORE, fixed=0.5)
    pace = Pace(machine, [timing(x * 1e9, 0.02 + 1.6 * x, basis="calibrated") for x in (0.1, 0.6)])
    assert pace.of_load(("reference", "m", "float32"), Load(read=3e9), 1)[0] == pytest.approx(0.02 + 1.6 * 3)
    alike = Pace(machine, [timing(1e9, 3.0)])
    assert alike.of_load(("reference", "m", "float32"), Load(read=2e9), 1)[0] == pytest.approx(2 * 2.5), "in whole: 3 s for 1.5"


def test_times_of_like_loads_give_their_ratio():
    pace = Pace(CORE, [timing(1e9, 2.0), timing(1.1e9, 2.2), timing(1.2e9, 9.0)])
    assert pace.of_load(("reference", "m", "float32"), Load(read=3e9), 1)[0] == pytest.approx(6.0), "the median: 2 s a GFLOP"


def test_the_nearest_experience_counts():
    """The own kind before one alike, the own model before another, a run before a calibration, as many jobs before others."""
    key = ("reference", "m", "float32")
    one = Load(read=1e9)

    def told(*timings: Timing, jobs: int = 1) -> tuple[float, str]:
        seconds, basis = Pace(CORE, timings, jobs).of_load(key, one, 1)
        return round(seconds, 6), basis

    assert told() == (1.0, "assumed")
    assert told(timing(1e9, 5.0, machine="there")) == (1.0, "assumed")
    assert told(timing(1e9, 5.0, dtype="bfloat16")) == (1.0, "assumed")
    assert told(timing(1e9, 5.0, model="other")) == (5.0, "measured")
    assert told(timing(1e9, 5.0, model="other"), timing(1e9, 4.0, kind="score")) == (4.0, "measured")
    assert told(timing(1e9, 4.0, kind="score"), timing(1e9, 3.0, basis="calibrated")) == (3.0, "calibrated")
    assert told(timing(1e9, 3.0, basis="calibrated"), timing(1e9, 2.0)) == (2.0, "measured")
    assert told(timing(1e9, 2.0), timing(1e9, 1.5, jobs=2), jobs=2) == (1.5, "measured")


def test_timings_outlive_a_line_that_is_none(tmp_path):
    keep(Store(tmp_path), [timing(1e9, 2.0)])
    with (tmp_path / "timings.jsonl").open("a") as file:
        file.write('{"kind": "half a li\n[]\n')
    keep(Store(tmp_path), [timing(2e9, 3.0)])
    assert [one.seconds for one in kept(tmp_path)] == [2.0, 3.0]


def test_memory_is_shared_by_devices_but_for_activations(tmp_path):
    train = next(one for one in planned(HUB, tmp_path) if one.kind == "train")
    one, two = (estimate(train, count=count).device for count in (1, 2))
    parameters = known_config(MODEL)["parameters"]
    assert one - two == pytest.approx((TRAINED + 2) * parameters / 2), "a copy in bfloat16 is half on each, too"
    generate = next(one for one in planned(HUB, tmp_path) if one.kind == "generate")
    assert estimate(generate, count=2).device == estimate(generate).device, "each device answers with the whole policy"
    assert estimate(train, count=2).host == 2 * estimate(train).host, "each process reads the whole model"
    spread = {**HUB, "train": {**HUB.get("train", {}), "devices_per_cell": 4}}
    on = {one.kind: gpus(one) for one in planned(spread, tmp_path)}
    assert (on["train"], on["data"], on["generate"]) == (4, 0, 4)
    asked = {"backend": "openai", "model": "m-2030-01-01", "base_url": "http://127.0.0.1:9/v1", "api_key_env": "NONE"}
    judged = {one.kind: gpus(one) for one in planned({**HUB, "judge": asked}, tmp_path)}
    assert (judged["judge"], judged["generate"]) == (0, 1), "an endpoint has devices of its own"
    assert estimate(next(one for one in planned(spread, tmp_path) if one.kind == "train")) == estimate(train, count=4)


def test_what_does_not_fit_is_counted_on_more_gpus(tmp_path):
    """16 bytes for each of 7.2 billion parameters are 108 GiB, and activations of a layer come on top; those of all do not fit."""

    def found_of(spec: dict) -> Forecast:
        stages = planned(spec, tmp_path)
        return forecast(load_spec(spec), [], stages, stages, Store(tmp_path), local(1), "A100-80GB", [1, 8])

    assert any("does not fit" in note for note in found_of(HUB).notes)
    found = found_of({**HUB, "train": {**HUB["train"], "gradient_checkpointing": True}})
    train = next(one for one in found.stages if one.stage.kind == "train")
    assert train.devices == 2
    assert train.memory < 80 * GIB
    assert [run.devices for run in found.runs] == [8], "one GPU is too few"
    assert any("too few" in note for note in found.notes)


# --- runs, and the command ------------------------------------------------------------------------------------------------


def test_a_run_says_how_long_the_next_takes(tmp_path):
    """Every stage that was made leaves its time, and a plan of another seed rests on them."""
    done = run(SMALL_SPEC, tmp_path / "run", store=tmp_path / "store", device="cpu")
    kinds = [one.kind for one in kept(tmp_path / "store")]
    assert len(kinds) == done.made - 1, "and the report's, but not of the tokenizer and the untrained model"
    told = spo_bench("plan", "--matrix", written(tmp_path, {**SMALL_SPEC, "seeds": [1]}), "--jobs", 1, "--json", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)
    assert {row["kind"]: row["basis"] for row in found["cost"]["kinds"]} == dict.fromkeys(
        ("train", "generate", "score", "judge"), "measured"
    )
    left = [one for one in found["stages"] if one["state"] != "done"]
    assert all(one["seconds"] > 0 and one["basis"] == "measured" for one in left)
    once = {one["key"]: one["seconds"] * one["devices"] for one in left}
    assert found["cost"]["device_hours"] == pytest.approx(sum(once.values()) / 3600)


def test_small_stages_are_run_to_know_times(tmp_path):
    spec, store = load_spec(SMALL_SPEC), Store(tmp_path / "store")
    found = calibrate(spec, store, "cpu", 1)
    assert {one.basis for one in found} == {"calibrated"}
    assert {"train", "train+spo", "reference", "generate", "score", "judge", "copies", "start", "matmul"} <= {
        one.kind for one in found
    }
    assert kept(store.root) == found
    assert not store.has("train", "any")
    assert [path.name for path in store.root.iterdir() if path.is_dir() and path.name not in ("locks",)] == []


def test_the_paper_is_planned_without_models_and_data(tmp_path):
    told = spo_bench("plan", "--matrix", "paper", "--offline", "--gpus", "512,8,64", "--json", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)
    assert len({one["key"] for one in found["stages"] if one["kind"] == "train"}) == 120
    cost = found["cost"]
    assert [one["devices"] for one in cost["runs"]] == [8, 64, 512]
    seconds = [one["seconds"] for one in cost["runs"]]
    assert seconds == sorted(seconds, reverse=True)
    for one in cost["runs"]:
        assert one["seconds"] >= max(one["critical_path_seconds"], cost["device_hours"] * 3600 / one["devices"])
        assert 0 < one["utilisation"] <= 1
        assert "train" in [part["kind"] for part in one["critical_path"]]
    assert cost["machine"] == "H100"
    assert cost["basis"] == "assumed"
    assert cost["storage"]["weights"] > 120 * 7e9 * 4
    assert any(MODEL in note for note in cost["notes"])
    assert not (tmp_path / "store").exists()


def test_the_table_says_what_more_gpus_bring(tmp_path):
    told = spo_bench("plan", "--matrix", written(tmp_path, HUB), "--offline", "--gpu", "h200", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    for words in (
        "GPU hours of H200",
        "times assumed",
        "GPUs  wall time  critical path  utilisation",
        "critical path: ",
        "storage: ",
    ):
        assert words in told.stdout, words
    assert [line.split()[0] for line in told.stdout.splitlines() if line.strip().endswith(" x")] == ["64", "512"]
    assert "a run would be refused" not in told.stdout, "this machine's memory and disk are not asked"
    assert "a run with --offline would be refused" in told.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpu", "H10"], "did you mean 'H100'"),
        (["--gpus", "8,many"], "--gpus many"),
        (["--gpus", "0"], "--gpus 0"),
        (["--model", "mistralai/Mistral-7B-Instruct-v0.4"], "did you mean"),
    ],
)
def test_what_cannot_be_planned_is_refused(words, said, tmp_path):
    told = spo_bench("plan", "--matrix", written(tmp_path, HUB), "--offline", *words, cwd=tmp_path)
    assert told.returncode == 2
    assert said in told.stderr


def test_a_model_of_which_nothing_is_known_is_refused_with_the_nearest(tmp_path):
    spec = {**HUB, "models": ["mistralai/Mistral-7B-Instruct-v0.33"]}
    told = spo_bench("plan", "--matrix", written(tmp_path, spec), "--offline", cwd=tmp_path)
    assert told.returncode == 2
    assert f"did you mean '{MODEL}'" in told.stderr


def test_rows_are_measured_as_they_are_made(tmp_path):
    """Words of the embedded world are its tokens: the same lengths before the data are made and afterwards, but for marks."""
    spec = {**SMALL_SPEC, "methods": []}
    before = next(one for one in planned(spec, tmp_path, "cpu") if one.kind == "data")
    words = lengths_of(before, Store(tmp_path))
    run(spec, tmp_path / "run", store=tmp_path, device="cpu")
    after = next(one for one in planned(spec, tmp_path, "cpu") if one.kind == "data")
    tokens = lengths_of(after, Store(tmp_path))
    assert words.chosen == pytest.approx(tokens.chosen, rel=0.05)
    assert words.answers == pytest.approx(tokens.answers, rel=0.05)
    assert tokens.basis != words.basis
