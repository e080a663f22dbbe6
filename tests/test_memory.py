"""How much memory a stage takes by estimate, and how much is free."""

from __future__ import annotations

import shutil

import pytest
from conftest import SMALL_SPEC
from transformers import LlamaConfig, LlamaForCausalLM

from spo_bench.api import cells_of
from spo_bench.engine.engine import unique_in_order
from spo_bench.engine.free import driver_name, free_memory, left_in_group
from spo_bench.engine.memory import COPIES, GIB, PROCESS, ROW, estimate
from spo_bench.files import read_jsonl
from spo_bench.matrix.load import load_spec
from spo_bench.models.embedded import build_embedded
from spo_bench.stages.copies import load as load_copies
from spo_bench.stages.registry import execute
from spo_bench.store.artifacts import Store

ROWS = 16 + 4 + 8 + 16


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


def stages_of(spec: dict, folder) -> list:
    return unique_in_order([one for cell in cells_of(load_spec(spec), folder, "cpu") for one in cell.stages.values()])


def needs(spec: dict, folder) -> dict[str, float]:
    """Return the most a stage of each kind takes beyond a bare process and its rows."""
    stages = stages_of({"spo": [False], **spec}, folder)
    return {
        kind: max(estimate(one).host for one in stages if one.kind == kind) - PROCESS - ROWS * ROW
        for kind in {one.kind for one in stages}
    }


def test_a_training_takes_its_weights_four_times_and_an_adapter_takes_less(directory, tmp_path):
    """Per parameter 4 bytes held, 12 more for gradient and two moments when it is trained; the rest is the same in both."""
    path, parameters = directory
    spec = {**SMALL_SPEC, "models": [str(path)], "train": {**SMALL_SPEC["train"], "micro_tokens": 2048}}
    full, checked = needs(spec, tmp_path), needs({**spec, "train": {**spec["train"], "gradient_checkpointing": True}}, tmp_path)
    assert full["train"] - checked["train"] == 2048 * (12 * 32 + 4 * 64) * 4, "one layer's activations fewer"
    assert full["train"] - full["reference"] == 12 * parameters + 2048 * (12 * 32 + 4 * 64 + 2 * 32) * 4
    lora = needs({**spec, "train": {**spec["train"], "lora": {"rank": 2}}}, tmp_path)
    assert lora["train"] - full["train"] == 16 * 2 * 2 * (8 * 32 + 3 * 96) - 12 * parameters
    assert full["data"] == 0


NUMBER = (12 * 32 + 4 * 64 + 32) * 2 * 4  # bytes a token that is trained on keeps in `directory`


def test_a_row_longer_than_the_budget_stands_alone(directory, tmp_path):
    """Budget 100, rows of up to 128 a response. Plain: 2 x 128. With SPO: 4 copies a side, the intact ones being the answers."""
    spec = {**SMALL_SPEC, "models": [str(directory[0])], "train": {**SMALL_SPEC["train"], "micro_tokens": 100}}
    plain, spo = needs(spec, tmp_path)["train"], needs({**spec, "spo": [False, True]}, tmp_path)["train"]
    assert spo - plain == (8 - 2) * 128 * NUMBER + ROWS * COPIES
    listed = needs({**spec, "data_axes": {"list_size": [4]}, "methods": ["neural_ndcg"]}, tmp_path)["train"]
    assert listed - plain == (4 - 2) * 128 * NUMBER


def test_the_longest_row_is_looked_up_where_it_is_there(directory, tmp_path):
    """Prompt once with tries, once a response without; copies of degree 0 are the answers."""
    for packing in ("trie", "separate"):
        train = {**SMALL_SPEC["train"], "micro_tokens": 1, "max_length": 128, "packing": packing}
        spec = {**SMALL_SPEC, "models": [str(directory[0])], "train": train, "spo": [False, True]}
        stages, store = stages_of(spec, tmp_path), Store(tmp_path)
        trained = next(one for one in stages if one.kind == "train" and one.config["spo"])
        blind = estimate(trained, store).host
        data, copies = trained.inputs["data"], trained.inputs["copies"]
        execute(data, store)
        execute(copies, store)
        rows = list(read_jsonl(data.path(store) / "train.jsonl"))
        found = [
            len(row["prompt_ids"]) * (1 if packing == "trie" else len(made)) + sum(len(copy.tokens) for copy in made)
            for row, made in zip(rows, load_copies(copies.path(store), "train"), strict=True)
        ]
        assert blind - estimate(trained, store).host == (8 * 128 - max(found)) * NUMBER
        shutil.rmtree(tmp_path / "data")


def test_who_ranks_a_policy_s_own_answers_is_counted_and_is_not_what_is_trained(directory, tmp_path, large):
    """A reward model of more parameters, held in fp32, beside the small policy and its cache."""
    spec = {
        **SMALL_SPEC,
        "models": [str(directory[0])],
        "spo": [False],
        "data_axes": {"regime": [{"name": "online", "labeller": "gold"}]},
    }
    alone = needs(spec, tmp_path)["train"]
    spec["data_axes"] = {"regime": [{"name": "online", "labeller": f"reward:{large[0]}"}]}
    assert needs(spec, tmp_path)["train"] - alone == 4 * large[1]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A reward model larger than ``directory``: (directory, parameters)."""
    from transformers import LlamaForSequenceClassification

    folder = tmp_path_factory.mktemp("reward") / "large"
    build_embedded(folder, 0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=64, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_labels=1,
        max_position_embeddings=2048, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForSequenceClassification(config)
    model.save_pretrained(folder)
    return folder, sum(weight.numel() for weight in model.parameters())


def test_a_config_that_cannot_be_read_leaves_the_size_of_the_files(directory, tmp_path):
    """Two bytes a parameter are assumed; a text_config of null is none."""
    copy = tmp_path / "model"
    shutil.copytree(directory[0], copy)
    stage = next(one for one in stages_of({**SMALL_SPEC, "models": [str(copy)]}, tmp_path) if one.kind == "reference")
    known = estimate(stage).host
    text = (copy / "config.json").read_text()
    (copy / "config.json").write_text(text.replace("{", '{"text_config": null,', 1))
    assert estimate(stage).host == known
    for broken in ("{", '{"hidden_size": [1]}', "[]"):
        (copy / "config.json").write_text(broken)
        size = (copy / "model.safetensors").stat().st_size // 2
        assert estimate(stage).host == PROCESS + GIB / 4 + ROWS * ROW + 4 * size


def test_free_memory_is_known_here():
    assert 0 < free_memory("cpu").host < 2**16 * GIB


def group(root, path: str, **files: str) -> None:
    folder = root / "sys/fs/cgroup" / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_the_tightest_limit_above_a_process_counts_version_2(tmp_path):
    """Own: no limit. Its parent: 10 of which 7 are used, 3 of these droppable files: 6 left. The root's 100 - 1 is more."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/slice/job\n")
    group(tmp_path, "slice/job", memory__max="max\n", memory__current="5\n")
    group(tmp_path, "slice", memory__max="10\n", memory__current="7\n", memory__stat="anon 4\ninactive_file 3\n")
    group(tmp_path, "", memory__max="100\n", memory__current="1\n")
    assert left_in_group(tmp_path) == 6


def test_the_tightest_limit_above_a_process_counts_version_1(tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("5:cpu,cpuacct:/other\n4:memory:/a\n")
    limits = {"memory__limit_in_bytes": "20\n", "memory__usage_in_bytes": "12\n"}
    group(tmp_path, "memory/a", **limits, memory__stat="inactive_file 1\ntotal_inactive_file 2\n")
    assert left_in_group(tmp_path) == 10
    assert left_in_group(tmp_path / "nowhere") == float("inf")


@pytest.mark.parametrize(
    ("visible", "device", "name"),
    [(None, "cuda", "0"), (None, "cuda:2", "2"), ("3,1", "cuda:1", "1"), ("GPU-ab12, GPU-cd34", "cuda", "GPU-ab12")],
)
def test_the_driver_knows_a_device_by_what_is_visible(monkeypatch, visible, device, name):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert driver_name(device) == name
