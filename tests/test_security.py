"""What a spec, a model or a run of somebody else cannot do: run code, leave its directory, or learn a key."""

from __future__ import annotations

import ast
import json
import os
import re
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL_SPEC
from endpoint import Answer, refusal
from hypothesis import given
from hypothesis import strategies as st
from judge_command import written
from judge_setup import SECRET

import spo_bench
from spo_bench.api import cells_of
from spo_bench.errors import InputError
from spo_bench.files import read_json, write_json
from spo_bench.matrix.identity import slug
from spo_bench.matrix.load import load_spec
from spo_bench.models.embedded import build_embedded
from spo_bench.models.numerics import Numerics
from spo_bench.models.policy import add_lora, load_policy, load_tokenizer
from spo_bench.models.reward import load_reward_model
from spo_bench.report.results import read_results
from spo_bench.store.provenance import without_secrets

ROOT = Path(__file__).parents[1]
CPU = Numerics("cpu", "float32", "float32")


# --- what the code does not do --------------------------------------------------------------------------------------------


@cache
def modules() -> list[tuple[Path, list[ast.AST]]]:
    """Every file of the package with all its nodes."""
    paths = [path for folder in ("spo_bench", "tasks") for path in sorted((ROOT / folder).rglob("*.py"))]
    return [(path.relative_to(ROOT), [*ast.walk(ast.parse(path.read_text(encoding="utf-8")))]) for path in paths]


@cache
def calls() -> list[tuple[Path, str, ast.Call]]:
    found = [(path, node) for path, nodes in modules() for node in nodes if isinstance(node, ast.Call)]
    return [(path, ast.unparse(node.func), node) for path, node in found]


def test_nothing_is_unpickled_or_evaluated():
    forbidden = re.compile(
        r"eval|exec|compile|__import__|os\.(system|popen|exec\w+|spawn\w+)|tempfile\.mktemp|torch\.load|np\.load|"
        r"yaml\.(load|load_all|full_load|unsafe_load)|(pickle|marshal|shelve|dill|joblib)\.\w+|pd\.read_pickle"
    )
    assert [(str(path), name) for path, name, _ in calls() if forbidden.fullmatch(name)] == []
    imported = {
        (str(path), alias.name)
        for path, nodes in modules()
        for node in nodes
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in (node.names if isinstance(node, ast.Import) else [ast.alias(node.module or "")])
    }
    assert [one for one in imported if one[1].split(".")[0] in ("pickle", "marshal", "shelve", "dill", "joblib", "cPickle")] == []
    shells = [(path, name) for path, name, call in calls() for one in call.keywords if one.arg == "shell"]
    assert shells == []


def test_weights_are_asked_for_as_safetensors_and_code_only_where_the_spec_says_so():
    """peft's loader knows no such switch, so `weight_files` looks before it; a generation config is JSON."""
    found = [
        (name, {one.arg: ast.unparse(one.value) for one in call.keywords}) for _, name, call in calls() if "_pretrained" in name
    ]
    loads = [(name.rsplit(".", 1)[0], words) for name, words in found if name.endswith(".from_pretrained")]
    assert {name for name, _ in loads} == {
        "AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoTokenizer", "PeftModel", "GenerationConfig",
    }  # fmt: skip
    for name, words in loads:
        if name.startswith("Auto"):
            assert words["trust_remote_code"] == "trust_remote_code", name
        if name.startswith("AutoModel"):
            assert words["use_safetensors"] == "True", name


# --- models of somebody else ----------------------------------------------------------------------------------------------


class Marker:
    """What unpickles into a call that leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def model(tmp_path) -> Path:
    build_embedded(tmp_path / "model", 0)
    return tmp_path / "model"


@pytest.fixture
def mark(tmp_path) -> Path:
    """A place that a pickle makes a directory of when it is read; it does when torch is told to trust it."""
    torch.save({"w": Marker(tmp_path / "tried")}, tmp_path / "try.bin")
    torch.load(tmp_path / "try.bin", weights_only=False)
    assert (tmp_path / "tried").is_dir()
    return tmp_path / "unpickled"


def matrix_of(**model: Any) -> dict[str, Any]:
    return {**SMALL_SPEC, "models": [model]}


def refused(directory: Path, **more: Any) -> str:
    """Say why a matrix refuses this model; whoever loads it refuses it too."""
    with pytest.raises(InputError) as planned:
        cells_of(load_spec(matrix_of(path=str(directory), **more)), directory.parent / "store", "cpu")
    for load in (lambda: load_policy(directory, CPU), lambda: load_reward_model(directory, CPU, fresh=True)):
        with pytest.raises(InputError):
            load()
    return str(planned.value)


def only_pickle(model: Path, mark: Path) -> None:
    (model / "model.safetensors").unlink()
    torch.save({"w": Marker(mark)}, model / "pytorch_model.bin")


def test_a_pickle_is_never_read(model, mark):
    only_pickle(model, mark)
    assert "holds no *.safetensors" in refused(model)
    assert not mark.exists()


def test_another_safetensors_beside_a_pickle_is_no_cover(model, mark):
    (model / "model.safetensors").rename(model / "other.safetensors")
    torch.save({"w": Marker(mark)}, model / "pytorch_model.bin")
    assert "holds no model.safetensors or model.safetensors.index.json" in refused(model)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "../model/other.safetensors"])
def test_an_index_names_safetensors_of_its_own_directory(model, mark, name):
    (model / "model.safetensors").rename(model / "other.safetensors")
    torch.save({"w": Marker(mark)}, model / "pytorch_model.bin")
    write_json(model / "model.safetensors.index.json", {"metadata": {}, "weight_map": {"lm_head.weight": name}})
    with pytest.raises(InputError, match="an index of weights that names"):
        load_policy(model, CPU)
    with pytest.raises(InputError, match="an index of weights that names"):
        cells_of(load_spec(matrix_of(path=str(model))), model.parent / "store", "cpu")
    assert not mark.exists()


@pytest.mark.parametrize("name", ["adapter_model.bin", "../outside.safetensors"])
def test_a_config_names_no_other_file_of_weights(model, mark, name):
    torch.save({"w": Marker(mark)}, model / name)
    write_json(model / "config.json", {**read_json(model / "config.json"), "transformers_weights": name})
    assert "of its own" in refused(model)
    assert not mark.exists()


def test_an_adapter_is_read_as_safetensors_only(model, mark, tmp_path):
    settings = {"rank": 2, "alpha": 4.0, "dropout": 0.0, "target_modules": "all-linear"}
    adapter = tmp_path / "adapter"
    add_lora(load_policy(model, CPU), settings, 0).save_pretrained(adapter)
    spec = load_spec(matrix_of(path=str(model), adapter=str(adapter)))
    assert cells_of(spec, tmp_path / "store", "cpu")
    load_policy(adapter, CPU, base=model)

    (adapter / "adapter_model.safetensors").rename(adapter / "other.safetensors")
    torch.save({"w": Marker(mark)}, adapter / "adapter_model.bin")
    for load in (lambda: cells_of(spec, tmp_path / "store", "cpu"), lambda: load_policy(adapter, CPU, base=model)):
        with pytest.raises(InputError, match=r"holds no adapter_model\.safetensors"):
            load()
    assert not mark.exists()


def test_an_adapter_is_no_model_and_a_model_no_adapter(model, tmp_path):
    """transformers would load what an adapter's settings name, from wherever that is, in place of the directory."""
    with pytest.raises(InputError, match=r"holds no adapter_config\.json"):
        cells_of(load_spec(matrix_of(path=str(model), adapter=str(model))), tmp_path / "store", "cpu")
    write_json(model / "adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "someone/else"})
    (model / "adapter_model.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    assert "is an adapter" in refused(model)
    with pytest.raises(InputError, match="is an adapter"):
        load_policy(model, CPU, base=model)


CODE = """
import os
os.makedirs({mark!r}, exist_ok=True)
from transformers import {base}
class Evil({base}):
    model_type = "evil"
"""
OWN = {
    "configuration_evil": ("AutoConfig", "PretrainedConfig"),
    "modeling_evil": ("AutoModelForCausalLM", "LlamaForCausalLM"),
    "scoring_evil": ("AutoModelForSequenceClassification", "LlamaForSequenceClassification"),
    "tokenization_evil": ("AutoTokenizer", "PreTrainedTokenizerFast"),
}


def with_code(model: Path, mark: Path, unknown: bool) -> None:
    """Let a model bring code for everything; of an unknown type it cannot be read without it."""
    for module, (_, base) in OWN.items():
        (model / f"{module}.py").write_text(CODE.format(mark=str(mark), base=base))
    names = {auto: f"{module}.Evil" for module, (auto, _) in OWN.items()}
    config = read_json(model / "config.json") | {"auto_map": names}
    write_json(model / "config.json", config | ({"model_type": "evil"} if unknown else {}))
    settings = read_json(model / "tokenizer_config.json") | {"auto_map": {"AutoTokenizer": [None, "tokenization_evil.Evil"]}}
    write_json(model / "tokenizer_config.json", settings | {"tokenizer_class": "Evil"})


LOADS = [load_tokenizer, lambda path, trust=False: load_policy(path, CPU, trust_remote_code=trust)]
LOADS += [lambda path, trust=False: load_reward_model(path, CPU, trust, fresh=True)]


@pytest.mark.parametrize("load", LOADS, ids=["tokenizer", "policy", "reward model"])
def test_code_of_a_model_is_run_only_where_it_is_trusted(model, tmp_path, monkeypatch, load):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    with_code(model, tmp_path / "ran", unknown=True)
    with pytest.raises(InputError, match="trust_remote_code: true"):
        load(model)
    assert not (tmp_path / "ran").exists()
    with suppress(Exception):  # what it does then is not this package's matter
        load(model, True)
    assert (tmp_path / "ran").is_dir()


def test_code_beside_a_model_that_needs_none_is_not_run(model, tmp_path):
    with_code(model, tmp_path / "ran", unknown=False)
    load_policy(model, CPU)
    assert not (tmp_path / "ran").exists()


def test_a_matrix_with_a_model_s_code_fails_with_the_way_to_allow_it(model, tmp_path):
    with_code(model, tmp_path / "ran", unknown=True)
    with pytest.raises(InputError, match="trust_remote_code"):
        spo_bench.run(matrix_of(path=str(model)), tmp_path / "run", store=tmp_path / "store", device="cpu")
    assert not (tmp_path / "ran").exists()


# --- names that would be paths --------------------------------------------------------------------------------------------

LABELS = st.one_of(
    st.text(max_size=300), st.sampled_from(["..", ".", "", "/", "CON", "a/../b", "-rf", "\0", "x" * 4000, "é" * 300])
)


@given(st.lists(LABELS, min_size=1, max_size=6))
def test_a_cell_s_directory_is_one_short_plain_name(labels):
    """Letters that every file system has, no path, no option, never longer than 255 bytes; a run with it can be read."""
    name = slug([*labels, "s0"])
    assert re.fullmatch(r"[A-Za-z0-9=][A-Za-z0-9_.=-]*-[0-9a-f]{6}", name), name
    assert len(name.encode()) <= 120
    assert ".." not in Path(name).parts


def test_labels_that_file_systems_confuse_have_directories_of_their_own():
    """Upper and lower case, and what is left out, differ in the mark; so do two labels whose parts are shifted."""
    groups = [
        ["DPO", "s0"],
        ["dpo", "s0"],
        ["dpo/", "s0"],
        ["d", "po", "s0"],
        ["dpos0", ""],
        ["x" * 200 + "a", "s0"],
        ["x" * 200 + "b", "s0"],
    ]
    assert len({slug(names).lower() for names in groups}) == len(groups)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"name": "../x"}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"methods": [{"name": "dpo", "label": "a\x1b[31m"}]}, "methods[0].label"),
        ({"methods": [{"name": "dpo", "label": "a\u200bb"}]}, "methods[0].label"),
        ({"methods": [{"name": "dpo", "label": "x" * 300}]}, "methods[0].label"),
        ({"models": [{"path": "embedded", "label": "a\u202eb"}]}, "models[0].label"),
        ({"models": [{"path": "org/name", "revision": "../../x"}]}, "revision"),
        ({"models": [{"path": "org/name", "revision": "a/../../x"}]}, "revision"),
        ({"tasks": [{"name": "controlled_dialogue", "label": "a/b"}]}, "tasks[0].label"),
        ({"tasks": [{"name": "dialogue", "data": "a\ud800.jsonl"}]}, "tasks[0].data"),
        ({"tasks": [{"name": "../../x"}]}, "tasks[0]"),
        ({"data_axes": {"holdout": ["line\u2028end"]}}, "data_axes.holdout[0]"),
        ({"rewards": ["\x9b31m"]}, "rewards[0]"),
        ({"judge": "local:a\nb"}, "judge"),
    ],
)
def test_hidden_characters_and_paths_in_names_are_refused(change, where):
    with pytest.raises(InputError) as caught:
        load_spec({**SMALL_SPEC, **change})
    assert where in caught.value.given
    assert str(caught.value).replace("\n", "").isprintable()


@pytest.mark.parametrize("name", ["org/../x", "org/name@../../x", "org/name:.."])
def test_a_hub_data_set_is_no_way_out_of_its_cache(name, tmp_path):
    with pytest.raises(InputError):
        cells_of(load_spec({**SMALL_SPEC, "tasks": [{"name": "dialogue", "data": name}]}), tmp_path, "cpu")


@pytest.mark.parametrize("name", ["../../outside", "/tmp", "a/b", "..", "", "a\x1b", "x" * 300])
def test_a_run_of_somebody_else_cannot_name_a_folder_outside_it(tmp_path, name):
    write_json(tmp_path / "run.json", {"spec": {}})
    line = {"id": name, "model": "m", "task": "t", "method": "dpo", "seed": 0, "status": "done"}
    (tmp_path / "cells.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(InputError, match="names its folder"):
        read_results(tmp_path)


def test_a_spec_is_data(tmp_path):
    """YAML's tags that make objects are refused, and nothing is made."""
    path = tmp_path / "spec.yaml"
    for tag in ("!!python/object/apply:os.mkdir", "!!python/name:os.mkdir", "!!python/object/new:os.mkdir"):
        path.write_text(f"extends: quick\nname: {tag} ['{tmp_path / 'made'}']\n")
        with pytest.raises(InputError, match="could not determine a constructor"):
            load_spec(path)
    assert not (tmp_path / "made").exists()


def test_the_spec_says_which_of_its_words_run_code():
    for name, model in (("metrics", "TaskSpec"), ("trust_remote_code", "ModelSpec")):
        fields = getattr(__import__("spo_bench.matrix.spec", fromlist=[model]), model).model_fields
        assert "with all your rights" in str(fields[name].description)


# --- keys -----------------------------------------------------------------------------------------------------------------


def everything_in(folder: Path) -> bytes:
    """All files under a folder, a link's target too, with their names."""
    found = [str(path).encode() + b"\n" + path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()]
    assert found
    return b"\n".join(found)


@pytest.mark.parametrize(
    ("script", "options"),
    [
        (lambda body, number: refusal(404, f"{SECRET} unknown"), ()),
        (lambda body, number: refusal(401, f"{SECRET} refused"), ()),
        (lambda body, number: refusal(400, f"no response_format for {SECRET}", param="response_format"), ("--verdict", "json")),
        (lambda body, number: refusal(400, f"temperature is not for {SECRET}", param="temperature"), ("--temperature", "0.5")),
        (lambda body, number: refusal(429, f"{SECRET} has insufficient_quota"), ()),
        (lambda body, number: Answer(body=json.dumps({"error": {"message": SECRET}}).encode()), ()),
    ],
    ids=["404", "401", "form", "temperature", "quota", "no completion"],
)
def test_the_key_is_in_no_traceback(endpoint, here, tmp_path, script, options):
    endpoint.script = script
    pairs = written(tmp_path, 4)
    words = ["--judge", "judge", "--base-url", endpoint.url, "--api-key-env", "JUDGE_KEY", "--retries", "0", *options]
    code, output, errors = here("run", pairs, *words, "--out", tmp_path / "out", "--debug")
    assert code in (1, 2)
    assert "Traceback" in errors
    assert SECRET not in output + errors
    assert SECRET.encode() not in everything_in(tmp_path)


@pytest.mark.parametrize(
    "judge",
    [
        {"base_url": f"https://me:{SECRET}@judge.invalid/v1"},
        {"base_url": f"https://judge.invalid/v1?api_key={SECRET}"},
        {"base_url": f"{SECRET}"},
        {"api_key_env": SECRET},
        {"api_key_env": "hf_" + SECRET.replace("-", "_")},
        {"api_key": SECRET},
    ],
)
def test_a_key_in_a_spec_is_refused_and_not_repeated(judge, tmp_path, here):
    spec = {**SMALL_SPEC, "judge": {"backend": "openai", "model": "judge", **judge}}
    with pytest.raises(InputError) as caught:
        load_spec(spec)
    assert SECRET not in str(caught.value)
    assert SECRET.replace("-", "_") not in str(caught.value)
    words = [word for key, value in judge.items() if key != "api_key" for word in (f"--{key.replace('_', '-')}", value)]
    if words:
        code, output, errors = here("run", written(tmp_path, 2), "--judge", "judge", *words, "--out", tmp_path / "out")
        assert code == 2
        assert SECRET not in output + errors


def test_what_a_command_is_recorded_as_holds_no_key():
    shown = without_secrets(
        ["run", "--x", f"https://me:{SECRET}@host/v1?api_key={SECRET}&b=1", f"--api-key={SECRET}", "OPENAI_API_KEY=abc", "a:b@c"]
    )
    assert shown == [
        "run",
        "--x",
        "https://[hidden]@host/v1?api_key=[hidden]&b=1",
        "--api-key=[hidden]",
        "OPENAI_API_KEY=[hidden]",
        "a:b@c",
    ]
