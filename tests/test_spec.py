"""The spec file: what it may say, what it inherits, and how every fault is named. And where tasks are found."""

import sys
import textwrap
import time
from pathlib import Path

import pytest

from spo_bench.errors import InputError
from spo_bench.matrix.load import load_spec, narrow, preset_text, presets
from spo_bench.matrix.spec import Spec
from spo_bench.plugins import broken_tasks, find_tasks, get_task
from spo_bench.spo.settings import SpoSettings

BASE = """\
name: trial
models: [embedded]
tasks: [controlled_dialogue]
methods: [dpo]
"""


def write(folder: Path, text: str, name: str = "trial.yaml") -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def message(call, *args, **kwargs) -> str:
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


# What a spec may say.


def test_a_short_spec_has_the_documented_defaults(tmp_path):
    spec = load_spec(write(tmp_path, BASE))
    assert (spec.name, spec.seeds, spec.judge, spec.rewards) == ("trial", (0,), None, ())
    assert spec.spo == (None, SpoSettings())
    assert (spec.train.batch_size, spec.train.learning_rate, spec.train.epochs, spec.train.max_length) == (32, 1e-6, 1.0, 1024)
    assert (spec.generate.max_new_tokens, spec.generate.temperature, spec.generate.top_p) == (256, 0.7, 1.0)
    assert spec.sft.steps == 0
    assert spec.data_axes.fraction == (1.0,)
    assert spec.tasks[0].max_dropped == 0.02
    assert spec.methods[0].hyperparameters["beta"] == 0.1


def test_entries_are_names_or_mappings(tmp_path):
    spec = load_spec(
        write(
            tmp_path,
            """\
            name: trial
            models: [{path: org/name, dtype: bfloat16, revision: main}]
            tasks: [{name: dialogue, data: org/set, limit: {train: 20, eval: 5}, metrics: ["evaluate:bleu"]}]
            methods: [dpo, {name: ipo, beta: 0.3, train: {learning_rate: 1e-5}}]
            spo: [false, {degrees: 3, control: random_removal}]
            train: {lora: {rank: 8}, warmup: 0}
            judge: {backend: openai, model: some-model, max_cost: 5.0, price_input: 0.5, price_output: 2}
            """,
        )
    )
    assert (spec.models[0].path, spec.models[0].dtype, spec.models[0].label) == ("org/name", "bfloat16", "org/name")
    assert (spec.tasks[0].limit.train, spec.tasks[0].limit.heldout) == (20, None)
    ipo = spec.methods[1]
    assert (ipo.hyperparameters["beta"], ipo.hyperparameters["reduction"], ipo.train) == (0.3, "mean", {"learning_rate": 1e-5})
    assert spec.spo[1] == SpoSettings(degrees=3, control="random_removal")
    assert spec.train.lora is not None
    assert spec.train.lora.rank == 8
    assert str(spec.judge) == "openai:some-model"


def test_numbers_in_scientific_notation_are_numbers(tmp_path):
    """YAML 1.1 reads 1e-6 as text, because it wants a dot and a signed exponent."""
    for text, value in (("1e-6", 1e-6), ("1E-4", 1e-4), ("5.0e-7", 5e-7), ("2.e-3", 2e-3), (".5e-3", 5e-4), ("1e0", 1.0)):
        spec = load_spec(write(tmp_path, BASE + f"train: {{learning_rate: {text}}}\n"))
        assert spec.train.learning_rate == value


def test_methods_of_one_name_are_told_apart_by_what_differs():
    base = {"models": ["embedded"], "tasks": ["controlled_dialogue"]}
    labels = [m.label for m in load_spec({**base, "methods": ["dpo", {"name": "dpo", "beta": 0.2}, "ipo"]}).methods]
    assert labels == ["dpo", "dpo(beta=0.2)", "ipo"]
    methods = [{"name": "ipo", "beta": 0.2, "train": {"learning_rate": lr}} for lr in (1e-5, 1e-4)]
    labels = [m.label for m in load_spec({**base, "methods": methods}).methods]
    assert labels == ["ipo(learning_rate=1e-05)", "ipo(learning_rate=0.0001)"]
    assert [m.label for m in load_spec({**base, "methods": [{"name": "ipo", "beta": 0.2}]}).methods] == ["ipo"]


def test_a_methods_own_epochs_set_aside_the_shared_steps():
    spec = load_spec({**MAPPING, "train": {"max_steps": 60}, "methods": [{"name": "dpo", "train": {"epochs": 2}}]})
    assert spec.methods[0].train == {"epochs": 2.0, "max_steps": None}


@pytest.mark.parametrize("name", ["quick", "small", "paper", "ablation"])
def test_presets_are_valid_described_and_survive_a_round_trip(name):
    spec = load_spec(name)
    assert spec.name == name
    assert load_spec(spec.model_dump(mode="json")) == spec
    assert len(presets()[name]) > 20
    assert preset_text(name).startswith("# ")


def test_no_source_is_quick_and_quick_is_the_embedded_matrix():
    spec = load_spec()
    assert spec == load_spec("quick")
    assert [m.path for m in spec.models] == ["embedded"]
    assert spec.spo == (None, SpoSettings())
    assert len(spec.seeds) >= 2


def test_a_judge_is_written_with_the_keys_of_its_backend():
    same, texts = {"backend", "model"}, {"orders", "max_invalid"}
    judges = {"gold": same, "reward:trained": same | {"audit"}, "local:org/judge": same | texts | {"audit"}}
    for judge, keys in judges.items():
        spec = load_spec({**MAPPING, "judge": judge})
        written = spec.model_dump(mode="json")
        assert set(written["judge"]) == keys
        assert load_spec(written) == spec
    endpoint = load_spec({**MAPPING, "judge": {"backend": "openai", "model": "m"}}).model_dump(mode="json")["judge"]
    assert {"base_url", "max_cost", "price_input", "temperature", "verdict", "max_calls", "audit"} | texts <= set(endpoint)
    assert (endpoint["max_tokens"], endpoint["temperature"], endpoint["concurrency"]) == (None, None, 32)


def test_a_judge_with_a_limit_has_prices_and_another_judge_replaces_it():
    paper = load_spec("paper").judge
    assert paper.max_cost > 0
    assert paper.price_input > 0
    assert paper.price_output > 0
    assert str(load_spec({"extends": "paper", "judge": "local:org/judge"}).judge) == "local:org/judge"


def test_labels_and_tasks_that_only_look_alike_are_taken():
    spec = load_spec({**MAPPING, "methods": ["dpo", {"name": "ipo", "label": "dpo (fraction=0.5)"}]})
    assert [m.label for m in spec.methods] == ["dpo", "dpo (fraction=0.5)"]
    some = [{"name": "controlled_dialogue", "limit": {"sft": 0}}, "controlled_summarization"]
    assert load_spec({**MAPPING, "tasks": some, "sft": {"steps": 3}}).sft.steps == 3
    assert load_spec({**MAPPING, "tasks": some[:1], "sft": {"steps": 3}, "sft_tasks": some[1:]}).sft.steps == 3
    assert load_spec({**MAPPING, "rewards": ["org/rm", "org/rm-2", "trained"]}).rewards == ("org/rm", "org/rm-2", "trained")


# Inheritance and paths.


def test_extends_merges_mappings_and_replaces_the_rest(tmp_path):
    write(tmp_path, BASE + "seeds: [0, 1, 2]\ntrain: {batch_size: 8, learning_rate: 1e-4}\njudge: gold\n", "below.yaml")
    above = write(tmp_path, "extends: below.yaml\nseeds: [7]\ntrain: {learning_rate: 1e-3}\n", "above.yaml")
    spec = load_spec(above)
    assert (spec.name, spec.seeds) == ("above", (7,))
    assert (spec.train.batch_size, spec.train.learning_rate) == (8, 1e-3)
    assert str(spec.judge) == "gold"
    write(tmp_path, "extends: above.yaml\njudge: null\n", "third.yaml")
    assert load_spec(tmp_path / "third.yaml").judge is None
    assert load_spec(write(tmp_path, "extends: quick\nmethods: [kto]\n")).sft == load_spec("quick").sft


def test_extends_of_a_mapping():
    spec = load_spec({"extends": "quick", "methods": ["kto"], "seeds": [3]})
    assert ([m.label for m in spec.methods], spec.seeds) == (["kto"], (3,))


def test_a_circle_of_extends_is_refused(tmp_path):
    write(tmp_path, "extends: b.yaml\n", "a.yaml")
    write(tmp_path, "extends: a.yaml\n", "b.yaml")
    text = message(load_spec, tmp_path / "a.yaml")
    assert "a.yaml" in text
    assert "b.yaml" in text
    assert "itself" in text


def test_paths_are_looked_for_beside_the_file_then_in_the_working_directory(tmp_path, monkeypatch):
    here, specs = tmp_path / "cwd", tmp_path / "specs"
    for folder in (here, specs / "model"):
        folder.mkdir(parents=True)
    (specs / "pairs.jsonl").write_text("{}")
    (here / "other.jsonl").write_text("{}")
    monkeypatch.chdir(here)
    path = write(
        specs,
        """\
        models: [model, {path: org/hub}]
        tasks:
          - {name: dialogue, data: pairs.jsonl}
          - {name: summarization, data: other.jsonl}
          - {name: reward_model, data: org/hub-set}
        methods: [dpo]
        rewards: [model, trained]
        judge: reward:model
        """,
    )
    spec = load_spec(path)
    assert [m.path for m in spec.models] == [str(specs / "model"), "org/hub"]
    assert [m.label for m in spec.models] == ["model", "org/hub"]
    assert [t.data for t in spec.tasks] == [str(specs / "pairs.jsonl"), str(here / "other.jsonl"), "org/hub-set"]
    assert spec.rewards == (str(specs / "model"), "trained")
    assert str(spec.judge) == f"reward:{specs / 'model'}"
    # A path below an extending file is meant from the folder of the file that says it.
    above = write(here, f"extends: {specs / 'trial.yaml'}\n", "above.yaml")
    assert load_spec(above).tasks[0].data == str(specs / "pairs.jsonl")


def test_narrowing_selects_by_label_and_name():
    spec = load_spec({**MAPPING, "methods": ["dpo", {"name": "dpo", "beta": 0.2}, "ipo"], "seeds": [0, 1]})
    assert [m.label for m in narrow(spec, methods=["dpo"]).methods] == ["dpo", "dpo(beta=0.2)"]
    assert [m.label for m in narrow(spec, methods=["dpo(beta=0.2)"]).methods] == ["dpo(beta=0.2)"]
    assert narrow(spec, seeds=[1]).seeds == (1,)
    assert load_spec("quick", tasks=["controlled_dialogue"], seeds=[0]).seeds == (0,)
    for kind, wanted in (("methods", ["kto"]), ("tasks", ["dialogue"]), ("models", ["gpt2"]), ("seeds", [9])):
        text = message(narrow, spec, **{kind: wanted})
        assert str(wanted[0]) in text
        assert "known:" in text


# Faults.

MAPPING = {"name": "trial", "models": ["embedded"], "tasks": ["controlled_dialogue"], "methods": ["dpo"]}

FAULTS = [
    ("trian: {}", ["line 5", "unknown key 'trian'", "did you mean 'train'"]),
    ("train: {learning_rat: 1e-6}", ["train.learning_rat", "did you mean 'learning_rate'"]),
    ("train:\n  batch_size: 8\n  learning_rate: -1", ["line 7", "train.learning_rate", "-1", "greater than or equal to 0"]),
    ("train: {learning_rate: fast}", ["train.learning_rate", "fast", "number"]),
    ("train: {learning_rate: .nan}", ["train.learning_rate", "finite"]),
    ("train: {batch_size: 0}", ["train.batch_size", "greater than or equal to 1"]),
    ("train: {batch_size: 8.5}", ["train.batch_size", "8.5", "whole number"]),
    ("train: {batch_size: true}", ["train.batch_size", "true", "whole number"]),
    ("train: {schedule: cosin}", ["train.schedule", "cosin", "'cosine'", "'linear'"]),
    ("train: {dtype: float16}", ["train.dtype", "float16", "bfloat16"]),
    ("train: {packing: both}", ["train.packing", "trie", "separate"]),
    ("train: {epochs: 2, max_steps: 9}", ["train", "epochs", "max_steps", "set max_steps: null"]),
    ("train: {lora: {rnak: 8}}", ["train.lora.rnak", "did you mean 'rank'"]),
    ("train: {lora: {rank: 0}}", ["train.lora.rank"]),
    ("train: [1]", ["train", "[1]"]),
    ("sft: {steps: -1}", ["sft.steps", "-1"]),
    ("generate: {top_p: 0}", ["generate.top_p", "greater than 0"]),
    ("generate: {top_p: 1.5}", ["generate.top_p", "less than or equal to 1"]),
    ("generate: {temperature: -0.1}", ["generate.temperature", "-0.1"]),
    ("data_axes: {fraction: [0.5, 0]}", ["data_axes.fraction[1]", "greater than 0"]),
    ("data_axes: {fraction: [0.5, 0.5]}", ["data_axes.fraction", "0.5", "twice"]),
    ("data_axes: {list_sise: [2]}", ["data_axes.list_sise", "did you mean 'list_size'"]),
    ("data_axes: {list_size: [1]}", ["data_axes.list_size", "greater than or equal to 2"]),
    ("data_axes: {regime: semi_online}", ["data_axes.regime", "semi_online without every"]),
    ("data_axes: {regime: {name: offline, reuse: 2}}", ["data_axes.regime", "reuse of the offline regime"]),
    ("data_axes: {regime: {name: online, samples: 1}}", ["data_axes.regime", "one answer a prompt"]),
    ("data_axes: {relabel: {name: none, goal: 3}}", ["data_axes.relabel", "without relabelling"]),
    ("seeds: [0, 0]", ["seeds", "'0'", "twice"]),
    ("seeds: [-1]", ["seeds[0]", "-1"]),
    ("seeds: ['a']", ["seeds[0]", "'a'"]),
    ("seeds: []", ["seeds", "at least 1"]),
    ("seeds: 3", ["seeds", "3"]),
    ("spo: [true, true]", ["spo", "+SPO", "twice"]),
    ("spo: [maybe]", ["spo", "maybe", "false"]),
    ("spo: [{degres: 4}]", ["spo[0].degres", "did you mean 'degrees'"]),
    ("spo: [{degrees: 1}]", ["spo[0].degrees", "1"]),
    ("spo: [false, {gamma: {chosen: 1.0, rejectd: 1.0}}]", ["spo[1].gamma.rejectd", "did you mean 'rejected'"]),
    ("spo: [{control: shuffled}]", ["spo[0].control", "shuffled_degrees"]),
    ("judge: silver", ["judge", "silver", "gold", "reward:MODEL"]),
    ("judge: {backend: opnai, model: m}", ["judge.backend", "opnai", "openai"]),
    ("judge: {backend: openai}", ["judge", "needs a model"]),
    ("judge: {backend: local, model: m, max_cost: 1.0}", ["judge", "max_cost", "openai"]),
    ("judge: {backend: openai, model: m, max_cost: -1}", ["judge.max_cost", "-1"]),
    (
        "judge: {backend: local, model: m, temperature: 0.0}",
        ["judge", "temperature", "only the backend openai", "leave them out"],
    ),
    ("judge: {backend: gold, audit: 10}", ["judge", "audit", "only the backends reward and local and openai have audit"]),
    (
        "judge: {backend: reward, model: m, orders: one, timeout: 3}",
        ["only the backends local and openai have orders; only", "timeout"],
    ),
    ("judge: {backend: gold, base_url: null}", ["judge", "base_url", "only the backend openai", "judge gold"]),
    ("judge: {backend: openai, model: m, max_cost: 5.0}", ["judge.max_cost", "without price_input and price_output", "0 for"]),
    ("judge: {backend: openai, model: m, max_cost: 5, price_input: 1}", ["judge.max_cost", "price_input without price_output"]),
    ("judge: {backend: openai, model: m, price_output: 1}", ["judge.price_output", "without price_input", "both prices"]),
    ("rewards: [org/rm, other/rm]", ["rewards", "'org/rm' and 'other/rm' are both called 'rm'", "another name"]),
    ("rewards: [trained, org/trained]", ["rewards", "'trained' and 'org/trained'"]),
    ("sft: {steps: 5}\nsft_tasks: [{name: controlled_dialogue, limit: {sft: 0}}]", ["sft", "steps 5 with limit.sft 0", "raise"]),
    ("rewards: [a, a]", ["rewards", "'a'", "twice"]),
    ("rewards: a", ["rewards", "'a'"]),
    ("generate: {temperature: 0.009}", ["generate.temperature", "temperature 0.009", "set 0, or at least 0.01"]),
    ("reward_training: {epochs: 0}", ["reward_training.epochs", "greater than 0"]),
    ("name: again", ["line 5", "'name'", "again", "line 1"]),
]


@pytest.mark.parametrize(("text", "words"), FAULTS, ids=[text for text, _ in FAULTS])
def test_a_fault_is_named_with_file_key_and_remedy(tmp_path, text, words):
    found = message(load_spec, write(tmp_path, BASE + text + "\n"))
    for word in ["trial.yaml", *words]:
        assert word in found


ENTRY_FAULTS = [
    ({"methods": ["dpo+sftt"]}, ["methods[0]", "unknown addition 'sftt'", "did you mean 'sft'"]),
    ({"methods": [{"name": "dpo", "plus": [{"name": "sft", "beta": 1}]}]}, ["methods[0]", "unknown hyperparameter 'beta'"]),
    ({"methods": ["cpo+sft"]}, ["methods[0]", "cpo with +sft", "holds a likelihood term"]),
    ({"methods": ["simpo+ref_sync"]}, ["methods[0]", "simpo reads no reference"]),
    ({"methods": ["simpo+exploration"]}, ["methods[0]", "log-ratio to the reference, and simpo has none"]),
    ({"methods": ["dpo+exploration+ref_sync"]}, ["methods[0]", "the greedy answers are those of the first reference"]),
    ({"methods": ["dpo+sft+sft"]}, ["methods[0]", "'sft' is listed twice"]),
    ({"methods": ["simpoo"]}, ["methods[0]", "unknown method 'simpoo'", "did you mean 'simpo'"]),
    ({"methods": ["dpo", {"name": "ipo", "betta": 1.0}]}, ["methods[1]", "betta", "did you mean 'beta'"]),
    ({"methods": [{"name": "dpo", "beta": -1.0}]}, ["methods[0]", "beta", "-1.0"]),
    ({"methods": [{"beta": 1.0}]}, ["methods[0]", "'name' is missing"]),
    ({"methods": ["sft"]}, ["methods[0]", "sft", "always a row"]),
    ({"methods": ["dpo", "dpo"]}, ["methods", "'dpo'", "twice"]),
    ({"methods": [{"name": "dpo", "label": "sft"}]}, ["methods", "two rows", "'sft'", "another `label`"]),
    ({"methods": ["dpo", {"name": "ipo", "label": "dpo +SPO"}]}, ["methods", "two rows", "'dpo +SPO'"]),
    (
        {"methods": ["dpo", {"name": "ipo", "label": "dpo (fraction=0.5)"}], "data_axes": {"fraction": [1.0, 0.5]}},
        ["methods", "two rows", "'dpo (fraction=0.5)'"],
    ),
    (
        {"tasks": [{"name": "controlled_dialogue", "limit": {"sft": 0}}], "sft": {"steps": 10}},
        ["sft", "steps 10 with limit.sft 0 for all tasks", "demonstrations"],
    ),
    ({"methods": [{"name": "dpo", "train": {"max_length": 5}}]}, ["methods[0].train", "max_length", "section train"]),
    ({"methods": [{"name": "dpo", "train": {"learning_rte": 5}}]}, ["methods[0].train", "did you mean 'learning_rate'"]),
    (
        {"methods": [{"name": "dpo", "train": {"learning_rate": -5}}]},
        ["methods[0].train", "learning_rate", "-5", "greater than or equal to 0"],
    ),
    ({"methods": [3]}, ["methods[0]", "3"]),
    ({"methods": None}, ["methods", "null"]),
    ({"tasks": ["dialog"]}, ["tasks[0]", "unknown task 'dialog'", "did you mean 'dialogue'"]),
    ({"tasks": ["dialogue"]}, ["tasks[0]", "dialogue", "no data", "data: FILE_OR_HUB_ID"]),
    ({"tasks": [{"name": "controlled_dialogue", "data": "x"}]}, ["tasks[0]", "makes its own rows"]),
    ({"tasks": ["controlled_dialogue", "controlled_dialogue"]}, ["tasks", "twice", "label"]),
    ({"tasks": [{"name": "controlled_dialogue", "limit": {"trian": 3}}]}, ["tasks[0].limit.trian", "did you mean 'train'"]),
    ({"tasks": [{"name": "controlled_dialogue", "limit": {"train": 0}}]}, ["tasks[0].limit.train", "0"]),
    ({"tasks": [{"name": "controlled_dialogue", "limit": 100}]}, ["tasks[0].limit", "100"]),
    ({"tasks": [{"name": "controlled_dialogue", "max_dropped": 2}]}, ["tasks[0].max_dropped", "less than or equal to 1"]),
    ({"tasks": [{"name": "controlled_dialogue", "metrics": ["bleu"]}]}, ["tasks[0].metrics[0]", "bleu", "evaluate:"]),
    ({"tasks": [{"name": "dialogue", "data": "a/b"}], "judge": "gold"}, ["judge", "gold with dialogue", "controlled"]),
    ({"tasks": [{"name": "reward_model", "data": "a/b"}]}, ["rewards", "no reward model for reward_model"]),
    ({"tasks": [{"name": "controlled_dialogue", "limit": {"heldout": 0}}], "rewards": ["trained"]}, ["rewards", "heldout"]),
    ({"models": ["embedded", "embedded"]}, ["models", "'embedded'", "twice"]),
    ({"models": [{"path": "embedded", "adapter": "a/b"}]}, ["models[0]", "embedded", "leave them out"]),
    ({"models": [{"dtype": "float32"}]}, ["models[0].path", "missing"]),
    ({"models": [{"path": "a/b", "dtyp": "float32"}]}, ["models[0].dtyp", "did you mean 'dtype'"]),
    ({"models": "embedded"}, ["models", "embedded"]),
    ({"name": "a b"}, ["name", "'a b'", "letters"]),
    ({"extends": "quik"}, ["extends", "quik", "did you mean 'quick'"]),
    ({"extends": ["quick"]}, ["extends", "one preset's name"]),
]


@pytest.mark.parametrize(("change", "words"), ENTRY_FAULTS, ids=[str(change) for change, _ in ENTRY_FAULTS])
def test_a_fault_in_an_entry_is_named(change, words):
    found = message(load_spec, {**MAPPING, **change})
    for word in words:
        assert word in found


def test_all_faults_are_named_at_once(tmp_path):
    found = message(load_spec, write(tmp_path, BASE + "seeds: [a]\ntrain: {batch_size: 0, epoch: 2}\n"))
    for word in ("3 faults", "seeds[0]", "train.batch_size", "train.epoch", "line 5", "line 6"):
        assert word in found


def test_a_fault_is_placed_in_the_file_that_says_it(tmp_path):
    write(tmp_path, BASE + "train:\n  batch_size: 0\n", "below.yaml")
    found = message(load_spec, write(tmp_path, "extends: below.yaml\nseeds: [1]\n"))
    assert "below.yaml, line 6, train.batch_size" in found


FILES = [
    (b"", ["is empty"]),
    (b"# only a comment\n", ["is empty"]),
    (b"- a\n- b\n", ["list", "mapping"]),
    (b"models: [a\ntasks: b\n", ["line 2", "column"]),
    (b"a: b\n\tc: d\n", ["line 2", "column"]),
    (b"models: \xff\xfe\n", ["UTF-8"]),
    (b"a: !!python/object/apply:os.system [ls]\n", ["line 1", "python/object"]),
    (b"train: {batch_size: 1, batch_size: 2}\n", ["batch_size", "again", "line 1"]),
    (b"a: 1\n---\nb: 2\n", ["line"]),
    (b"a: *nothing\n", ["line 1", "nothing"]),
]


@pytest.mark.parametrize(("content", "words"), FILES, ids=[str(content) for content, _ in FILES])
def test_a_file_that_is_no_spec_is_refused(tmp_path, content, words):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    found = message(load_spec, path)
    for word in ["bad.yaml", *words]:
        assert word in found


def test_aliases_cannot_stand_for_more_than_a_spec_holds(tmp_path):
    """Ten levels of ten references stand for 10^10 items."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    assert "aliases" in message(load_spec, write(tmp_path, BASE + "\n".join(lines) + "\nspo: *a9\n"))
    assert "aliases" in message(load_spec, write(tmp_path, BASE + "spo: &a [*a]\n"))
    spec = load_spec(
        write(tmp_path, "name: &n trial\nmodels: [embedded]\ntasks: [controlled_dialogue]\nmethods: [{name: dpo, label: *n}]\n")
    )
    assert spec.methods[0].label == "trial"


def test_long_values_are_shortened_in_messages(tmp_path):
    found = message(load_spec, write(tmp_path, BASE + f"seeds: [{', '.join(['word' * 1000] * 50)}]\n"))
    assert "seeds[0]" in found
    assert "42 more" in found
    assert len(found) < 5000


def test_a_missing_file_or_preset_is_named_with_the_nearest(tmp_path):
    write(tmp_path, BASE, "matrix.yaml")
    assert f"did you mean the file '{tmp_path / 'matrix.yaml'}'" in message(load_spec, tmp_path / "matrx.yaml")
    assert "did you mean 'small'" in message(load_spec, "smal")
    assert "folder" in message(load_spec, tmp_path)
    assert "did you mean 'paper'" in message(preset_text, "papr")


def test_every_field_is_described():
    seen, todo = set(), [Spec]
    while todo:
        model = todo.pop()
        seen.add(model)
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"
            text = [field.annotation]
            while text:
                part = text.pop()
                if isinstance(part, type) and hasattr(part, "model_fields") and part not in seen:
                    todo.append(part)
                text += list(getattr(part, "__args__", ()))
    assert len(seen) > 10


# Where tasks are found.

PLUGIN = """\
from spo_bench.task import Row, Task


class Mine(Task):
    name = "{name}"
    needs_data = False

    def load(self, split, limit, seed):
        return []
"""


def test_the_built_in_tasks_are_found_whatever_else_is_called_tasks(tmp_path, monkeypatch):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "__init__.py").write_text("raise RuntimeError('the wrong tasks')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tasks", raising=False)
    names = set(find_tasks())
    assert {"dialogue", "summarization", "reward_model", "controlled_dialogue", "controlled_summarization"} <= names
    assert not broken_tasks()


def test_a_folder_adds_tasks_with_relative_imports(tmp_path):
    write(tmp_path, "SHARED = 'helper'\n", "_shared.py")
    write(tmp_path, "from ._shared import SHARED\n" + PLUGIN.format(name="mine") + "\n    summary = SHARED\n", "mine.py")
    found = find_tasks([tmp_path])
    assert found["mine"].cls.summary == "helper"
    assert str(tmp_path / "mine.py") in found["mine"].origin
    assert type(get_task("mine", directories=[tmp_path])) is found["mine"].cls
    assert "mine" in find_tasks([tmp_path / "mine.py"])
    assert "mine" not in find_tasks()
    spec = load_spec({**MAPPING, "tasks": ["mine"]}, tasks_dirs=[tmp_path])
    assert spec.tasks[0].name == "mine"


def test_a_changed_plugin_is_seen(tmp_path):
    write(tmp_path, PLUGIN.format(name="first"), "mine.py")
    assert "first" in find_tasks([tmp_path])
    write(tmp_path, PLUGIN.format(name="second_name"), "mine.py")
    assert "second_name" in find_tasks([tmp_path])


def test_two_tasks_of_one_name_are_an_error_that_names_both(tmp_path):
    write(tmp_path, PLUGIN.format(name="dialogue"), "mine.py")
    found = message(find_tasks, [tmp_path])
    for word in ("'dialogue'", str(tmp_path / "mine.py"), "tasks/dialogue.py"):
        assert word in found


BROKEN = [
    ("import no_such_module_here\n", ["ModuleNotFoundError", "no_such_module_here"]),
    ("class Mine(:\n", ["SyntaxError", "line 1"]),
    ("raise SystemExit(3)\n", ["SystemExit"]),
    ("x = 1\n", ["no subclass"]),
    (PLUGIN.format(name="Bad-Name"), ["'Bad-Name'", "lower-case"]),
]


@pytest.mark.parametrize(("text", "words"), BROKEN)
def test_a_broken_plugin_is_named_and_stops_no_other(tmp_path, text, words):
    write(tmp_path, text, "broken_one.py")
    write(tmp_path, PLUGIN.format(name="fine"), "fine.py")
    assert "fine" in find_tasks([tmp_path])
    assert [plugin.name for plugin in broken_tasks([tmp_path])] == ["broken_one"]
    found = message(get_task, "broken_one", directories=[tmp_path])
    for word in [str(tmp_path / "broken_one.py"), *words]:
        assert word in found
    assert "broken_one" in message(get_task, "something_else", directories=[tmp_path])


def test_a_broken_package_and_a_missing_folder_are_named(tmp_path):
    assert "nowhere" in message(find_tasks, [tmp_path / "nowhere"])
    write(tmp_path, "1 / 0\n", "__init__.py")
    assert "ZeroDivisionError" in broken_tasks([tmp_path])[0].reason


def entry_point(folder: Path, target: str) -> None:
    """Lay an installed package's metadata and module where Python finds it."""
    info = folder / "other_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[spo_bench.tasks]\ntheirs = {target}\n")


def test_entry_points_add_tasks(tmp_path, monkeypatch):
    write(tmp_path, PLUGIN.format(name="theirs"), "other_package_a.py")
    entry_point(tmp_path, "other_package_a:Mine")
    monkeypatch.syspath_prepend(tmp_path)
    assert "other-package 1.0" in find_tasks()["theirs"].origin


def test_a_broken_entry_point_is_named(tmp_path, monkeypatch):
    write(tmp_path, "Mine = 3\n", "other_package_b.py")
    entry_point(tmp_path, "other_package_b:Mine")
    monkeypatch.syspath_prepend(tmp_path)
    found = message(get_task, "theirs")
    for word in ("other-package 1.0", "other_package_b:Mine", "not a subclass"):
        assert word in found


def test_get_task_says_what_it_needs():
    assert "no data" in message(get_task, "dialogue")
    assert "did you mean 'summarization'" in message(get_task, "summarisation", "x.jsonl")


def test_a_number_of_many_digits_costs_what_it_is_long(tmp_path):
    """Digits that turn out to be no number; the time to find that out once grew with their square."""
    spec = tmp_path / "spec.yaml"
    spec.write_text("seeds: [" + "9" * 100_000 + "judge: 1]", encoding="utf-8")
    begun = time.process_time()
    with pytest.raises(InputError, match="a spec is YAML"):
        load_spec(spec)
    assert time.process_time() - begun < 10, "the square of it would be minutes"
