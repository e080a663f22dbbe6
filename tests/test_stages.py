"""What stages and their keys must depend on, and what they must refuse."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_model

from spo_bench.api import cells_of
from spo_bench.engine.attempt import attempt
from spo_bench.engine.engine import run_stages
from spo_bench.errors import InputError
from spo_bench.matrix.load import load_spec
from spo_bench.models.embedded import build_embedded
from spo_bench.models.numerics import Numerics
from spo_bench.models.policy import load_policy, load_tokenizer
from spo_bench.models.reward import encode, score_answers
from spo_bench.models.source import resolve
from spo_bench.spo.settings import SpoSettings
from spo_bench.stages import registry
from spo_bench.stages.base import Stage, Work
from spo_bench.stages.data import training_rows
from spo_bench.stages.examples import example
from spo_bench.store.artifacts import Store
from spo_bench.store.place import check_writable
from spo_bench.training.examples import met_completions
from spo_bench.training.loop import TrainSettings
from spo_bench.training.supervised import finetune
from spo_bench.training.trie import Response, build_row

CPU = Numerics("cpu", "float32", "float32")
SETTINGS = TrainSettings(8, 2, 1e-3, "cosine", 0.1, 0.0, 1.0, 4096, "trie", 64, 0)
SPEC = {
    "name": "tiny",
    "models": ["embedded"],
    "tasks": [{"name": "controlled_dialogue", "limit": {"train": 16, "eval": 4, "heldout": 8, "sft": 16}}],
    "methods": ["dpo"],
    "sft": {"steps": 1, "batch_size": 8},
    "train": {"batch_size": 8, "max_steps": 1, "max_length": 128},
    "generate": {"max_new_tokens": 8},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """The embedded model as a directory."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    build_embedded(folder, 0)
    return folder


def keys(spec, folder, **options) -> dict[str, str]:
    (cell,) = (
        c
        for c in cells_of(
            load_spec(spec, **options), folder / "store", "cpu", tasks_dirs=[str(d) for d in options.get("tasks_dirs", ())]
        )
        if c.spo and c.method == "dpo"
    )
    return {name: stage.key for name, stage in cell.stages.items()}


def copied(model: Path, folder: Path, name: str) -> Path:
    import shutil

    return Path(shutil.copytree(model, folder / name))


def test_a_model_s_end_tokens_and_template_are_in_its_keys(model, tmp_path):
    first = copied(model, tmp_path, "a")
    spec = {**SPEC, "models": [{"path": str(first), "label": "m"}], "sft": {"steps": 0}}
    before = keys(spec, tmp_path)
    assert keys(spec, tmp_path) == before
    (first / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 9]}))
    after = keys(spec, tmp_path)
    assert before["generate"] != after["generate"]
    assert before["data"] == after["data"], "end tokens of generation do not change the data"
    template = first / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    assert keys(spec, tmp_path)["data"] != after["data"]


def test_where_a_model_lies_is_not_in_its_keys(model, tmp_path):
    one, two = copied(model, tmp_path, "a"), copied(model, tmp_path, "b")
    specs = [{**SPEC, "models": [{"path": str(path), "label": "m"}]} for path in (one, two)]
    assert keys(specs[0], tmp_path) == keys(specs[1], tmp_path)


def test_a_judge_s_tokenizer_is_in_its_keys(model, tmp_path):
    judge = copied(model, tmp_path, "judge")
    spec = {**SPEC, "judge": f"local:{judge}"}
    before = keys(spec, tmp_path)
    template = judge / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    after = keys(spec, tmp_path)
    assert before["judge/chosen"] != after["judge/chosen"]
    assert before["train"] == after["train"]


PLUGIN = """
from spo_bench.task import Row, Task
class Own(Task):
    name = "own"
    def load(self, split, limit, seed):
        rows = [Row(id=f"{split}{i}", prompt=({"role": "user", "content": f"{SAME}what is {split} {i} ?"},), chosen="it is green", rejected="it grows") for i in range(8)]
        return rows[:LIMIT]
"""


def plugin(folder: Path, same="", limit="limit") -> Path:
    folder.mkdir()
    (folder / "own.py").write_text(
        PLUGIN.replace("{SAME}", same).replace("LIMIT", limit).replace("{split} {i} ?", "{split} {i} ?" if not same else "it ?")
    )
    return folder


def test_a_plugin_s_data_and_code_are_in_its_keys(tmp_path):
    folder = plugin(tmp_path / "tasks")
    data = tmp_path / "pairs.jsonl"
    data.write_text("1")
    spec = {**SPEC, "sft": {"steps": 0}, "tasks": [{"name": "own", "data": str(data)}]}
    before = keys(spec, tmp_path, tasks_dirs=[folder])["data"]
    data.write_text("2")
    changed = keys(spec, tmp_path, tasks_dirs=[folder])["data"]
    assert before != changed
    (folder / "own.py").write_text((folder / "own.py").read_text() + "\n# edited\n")
    assert keys(spec, tmp_path, tasks_dirs=[folder])["data"] != changed


@pytest.mark.parametrize(
    ("same", "limit", "said"), [("always ", "limit", "training prompts too"), ("", "None", "rows where 4 were asked for")]
)
def test_a_plugin_that_leaks_or_ignores_its_limit_is_refused(same, limit, said, tmp_path):
    import spo_bench

    folder = plugin(tmp_path / "tasks", same, limit)
    spec = {
        **SPEC,
        "sft": {"steps": 0},
        "tasks": [{"name": "own", "data": "x", "limit": {"train": 4, "eval": 4, "heldout": 4, "sft": 4}}],
    }
    with pytest.raises(InputError, match=said):
        spo_bench.run(spec, tmp_path / "run", store=tmp_path / "store", tasks_dirs=[str(folder)])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"spo": [{"layer": 99}]}, "layer 99"),
        ({"train": {"max_length": 400}}, "256 positions"),
        ({"models": ["org/Model-v0.3"]}, "neither a local directory nor could it be fetched from the hub"),
        ({"rewards": ["REWARD"]}, "has 2 outputs"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(change, said, model, tmp_path):
    change = json.loads(json.dumps(change).replace("REWARD", str(model)))
    with pytest.raises(InputError, match=said):
        keys({**SPEC, **change}, tmp_path)


def test_hub_ids_with_dots_are_hub_ids():
    with pytest.raises(InputError, match="hub"):
        resolve("Qwen/Qwen2.5-0.5B-Instruct", offline=True)


def test_out_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(InputError, match="is a file"):
            check_writable("out", place)


def test_fractions_do_not_gain_a_row_by_rounding(tmp_path):
    """0.55 of 100 rows is 55, though 0.55 * 100 is 55.00000000000001 in binary; 0.001 of them is still one."""
    (tmp_path / "train.jsonl").write_text("{}\n" * 100)
    counts = [len(training_rows(Work(tmp_path, {"fraction": f}, {"data": tmp_path}, {}))) for f in (0.55, 0.25, 0.001, 1.0)]
    assert counts == [55, 25, 1, 100]


def test_copies_of_a_cut_answer_are_cut_like_it(model):
    """A cut answer has no end token and shows nothing beyond the cut; its copies neither, or the end would tell the degree."""
    tokenizer = load_tokenizer(model)
    text = "The foxglove is used for medicine, grows in ravines and has crimson flowers."
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    record = {
        "id": "r",
        "chosen": text,
        "rejected": text,
        "prompt_ids": [5, 6],
        "chosen_ids": ids[:8],
        "rejected_ids": [*ids, tokenizer.eos_token_id],
    }
    copies = example(record, tokenizer, SpoSettings(), SETTINGS).copies
    cut, whole = ([c for c in copies if c.side == side] for side in (0, 1))
    assert len(cut) > 1
    assert not any(tokenizer.eos_token_id in c.tokens for c in cut)
    assert all(set(c.tokens) <= set(ids[:8]) for c in cut if c.degree)
    assert all(c.tokens[-1] == tokenizer.eos_token_id for c in whole)


def test_mismatched_completions_fit_behind_the_prompt():
    chosen, rejected = met_completions(np.arange(10), np.arange(30), np.arange(3), 16)
    assert (len(chosen), len(rejected)) == (6, 3)


def test_sft_of_a_model_with_a_short_window_runs_sequences_alone():
    """Its first loss is the model's own mean negative log-likelihood, which a tree mask without the window would not give."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=4,
        initializer_range=0.2,
    )
    narrow = MistralForCausalLM(config).eval()
    prompt, completion = np.arange(1, 9), np.arange(20, 40)
    ids = torch.from_numpy(np.concatenate([prompt, completion]))[None]
    logits = narrow(input_ids=ids).logits[0, len(prompt) - 1 : -1]
    truth = float(-logits.detach().log_softmax(-1).gather(1, ids[0, len(prompt) :, None]).mean())
    rows = [build_row(prompt, [Response(completion)], False)]
    steps = []
    finetune(narrow, rows, TrainSettings(1, 1, 1e-9, "constant", 0.0, 0.0, 1.0, 4096, "trie", 64, 0), CPU, False, steps)
    assert steps[0]["loss"] == pytest.approx(truth, abs=1e-5)


def test_an_adapter_in_low_precision_is_evaluated_as_it_was_trained(tmp_path):
    """bfloat16 weights with a small fp32 adapter: reloaded, log-probabilities move as in training, not to the rounding of a merge."""
    from peft import LoraConfig, get_peft_model

    numerics = Numerics("cpu", "bfloat16", "bfloat16")
    tiny_model().save_pretrained(tmp_path / "base")
    base = load_policy(tmp_path / "base", numerics)
    trained = get_peft_model(
        base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"), autocast_adapter_dtype=True
    )
    torch.manual_seed(1)
    for name, weight in trained.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 1e-3)
    trained.save_pretrained(tmp_path / "adapter")
    ids = torch.arange(1, 30)[None]
    loaded = load_policy(tmp_path / "adapter", numerics, base=tmp_path / "base")
    with torch.no_grad(), numerics.autocast():
        assert torch.equal(trained.eval()(input_ids=ids).logits, loaded(input_ids=ids).logits)


def encoder(folder: Path):
    """A tiny BERT reward model with its tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *"abcdefgh"]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", [("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=1,
        initializer_range=0.5,
    )
    return BertForSequenceClassification(config).eval(), tokenizer


def test_encoder_reward_models_keep_their_marks_and_segments(tmp_path):
    """Too long a pair keeps [CLS] and both [SEP]; the score is the model's own for the same encoding, padded or not."""
    model, tokenizer = encoder(tmp_path)
    prompt = [{"role": "user", "content": "a b c d a b c d a b c d"}]
    short = encode(tokenizer, prompt, "e f", 8)
    assert tokenizer.convert_ids_to_tokens(short.ids) == ["[CLS]", "b", "c", "d", "[SEP]", "e", "f", "[SEP]"]
    assert short.segments == (0, 0, 0, 0, 0, 1, 1, 1)
    items = [(prompt, "e f"), ([{"role": "user", "content": "a"}], "g")]
    together = score_answers(model, tokenizer, items, CPU, 64)
    for (messages, answer), score in zip(items, together, strict=True):
        inputs = tokenizer(messages[0]["content"], answer, return_tensors="pt")
        assert score == pytest.approx(float(model(**inputs).logits[0, 0]), abs=1e-5)


def _dies_once(work: Work) -> None:
    """The first time two stages run side by side: the one named in `dies` waits until the other is there, and kills its own
    process; the other waits to be taken down with it. Later a stage of `deadly` dies again, any other finishes.
    """
    marks, name = Path(work.local["marks"]), work.config["name"]
    beside, first = work.local["beside"][name], not (marks / name).exists()
    (marks / name).write_text("x")
    if name in work.local["dies"] and first:
        while not (marks / beside).exists():
            time.sleep(0.01)
    elif first:
        time.sleep(120)
    if (name in work.local["dies"] and first) or name in work.local["deadly"]:
        os.kill(os.getpid(), signal.SIGKILL)
    (work.out / "x").write_text("x")


class Told:
    def __init__(self):
        self.ends = {}

    def started(self, stage):
        pass

    def skipped(self, stage):
        self.ends[stage.config["name"]] = "skipped"

    def finished(self, stage, seconds):
        self.ends[stage.config["name"]] = "finished"

    def failed(self, stage, reason):
        self.ends[stage.config["name"]] = reason

    def retried(self, stage, why):
        self.ends[stage.config["name"]] = why

    def remade(self, stage, why):
        self.ends[stage.config["name"]] = why


def test_a_killed_worker_fails_only_the_stage_that_kills_it(tmp_path, monkeypatch):
    """One stage always kills its process, one only the first time; two run beside them. Only the first fails."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])]))
    beside = {"deadly": "one", "one": "deadly", "shaky": "two", "two": "shaky"}
    local = {"marks": str(tmp_path), "deadly": ["deadly"], "dies": ["deadly", "shaky"], "beside": beside}
    stages = [Stage("test", 1, {"name": name}, {}, local) for name in ("deadly", "one", "shaky", "two")]
    told = Told()
    monkeypatch.setattr("spo_bench.engine.local.attempt", _attempt_here)
    failures = run_stages(stages, Store(tmp_path / "store"), 2, told, memory=1e15)  # whatever else this machine does
    assert list(failures.values()) == ["test: its process was killed (out of memory?)"]
    assert told.ends == {
        "deadly": "test: its process was killed (out of memory?)",
        "one": "finished",
        "shaky": "finished",
        "two": "finished",
    }


def _attempt_here(stage, store, threads, how):
    """What a worker runs in this test: the registry of a fresh process knows no stage of a test."""
    registry.KINDS["test"] = ("test_stages:_dies_once", 1)
    return attempt(stage, store, threads, how)


METRIC = """
import datasets
import evaluate


class Overlap(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        shared = [len(set(p.split()) & set(r.split())) for p, r in zip(predictions, references)]
        return {"overlap": sum(shared) / len(shared)}
"""


def test_an_evaluate_metric_scores_each_answer_and_its_script_is_in_the_key(tmp_path, monkeypatch):
    """Words shared by answer and reference: "a b c" and "b c d" share 2, "x" and "y" none. An unknown name says what to do."""
    from spo_bench.stages.metrics import text_metric

    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    script = tmp_path / "overlap.py"
    script.write_text(METRIC)
    assert text_metric(f"evaluate:{script}")(["a b c", "x"], ["b c d", "y"]) == [2.0, 0.0]
    spec = {**SPEC, "tasks": [{**SPEC["tasks"][0], "metrics": [f"evaluate:{script}"]}]}
    before = keys(spec, tmp_path)
    script.write_text(METRIC + "\n# edited\n")
    after = keys(spec, tmp_path)
    assert before["score"] != after["score"]
    assert before["generate"] == after["generate"]
    with pytest.raises(InputError, match="cannot be loaded"):
        text_metric("evaluate:no_such_metric")


def test_rouge_l_by_hand():
    """Longest common subsequence of "the cat sat" and "the cat ran" is 2 of 3 words each: F = 2/3."""
    from spo_bench.stages.metrics import distinct, text_metric

    assert text_metric("rouge_l")(["the cat sat"], ["the cat ran"]) == [pytest.approx(2 / 3)]
    assert distinct("a b a b", 2) == pytest.approx(2 / 3)
    assert distinct("a", 2) is None
