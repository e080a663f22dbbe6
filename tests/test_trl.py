"""Our losses against those of one TRL release: same weights, same token ids, same order, same optimizer.

TRL is driven through its public trainers, unchanged; the token ids are those of its own tokenised dataset. Where the two differ
on purpose, a test says by what: settings or data take the difference away, or a formula accounts for it. Tolerances are never
widened for it.
"""

from __future__ import annotations

import copy
import importlib
import math
import sys
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model
from test_training import CPU, reference_of

from spo_bench.methods import get_method, pair_loss, resolve
from spo_bench.models.chat import completion_ids, render
from spo_bench.models.policy import load_tokenizer
from spo_bench.plugins import get_task
from spo_bench.training.examples import Example, step_rows
from spo_bench.training.loop import TrainSettings, fit
from spo_bench.training.objective import Objective
from spo_bench.training.scoring import log_probs

PINNED = "1.16.0"
pytest.importorskip("trl", reason="trl, the extra `bench`, is not installed")
if version("trl") != PINNED:
    pytest.skip(f"trl {version('trl')} is installed, these numbers are of {PINNED}", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
trl_side = importlib.import_module("trl_side")
sys.path.pop(0)

pytestmark = [pytest.mark.real, pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.usefixtures("_quiet_and_alone")]

BATCH, STEPS = 4, 6
TOLERANCE = 1e-4  # of a loss, relative to max(1, |loss|)
SETTINGS = TrainSettings(
    batch_size=BATCH,
    steps=STEPS,
    learning_rate=3e-3,
    schedule="constant",
    warmup=0.0,
    weight_decay=0.0,
    clip=1.0,
    micro_tokens=100_000,
    packing="trie",
    max_length=1024,
    seed=3,
)
ORDER = np.concatenate(step_rows(BATCH * STEPS, BATCH, STEPS, SETTINGS.seed))
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def _quiet_and_alone():
    """One thread, so that sums keep their order, and no progress bars; as it was afterwards."""
    import datasets
    from transformers.utils import logging

    threads, verbosity, bars = torch.get_num_threads(), logging.get_verbosity(), datasets.are_progress_bars_disabled()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    datasets.disable_progress_bars()
    yield
    torch.set_num_threads(threads)
    logging.set_verbosity(verbosity)
    if not bars:
        datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def conversations(shared):
    """Short real preference rows, as many as all steps together see."""
    loaded = get_task("dialogue", str(shared / "data" / "hh_harmless.jsonl.gz")).load("train", 400, 0)
    short = [
        row
        for row in loaded
        if row.unusable is None
        and sum(len(message["content"]) for message in row.prompt) < 160
        and max(len(row.chosen), len(row.rejected)) < 200
    ]
    assert len(short) >= BATCH * STEPS
    return short[: BATCH * STEPS]


@pytest.fixture(scope="module")
def tokenizer(conversations):
    """A byte-level BPE of 512 tokens made from those rows: a small vocabulary keeps the model tiny."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([row.chosen for row in conversations], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>", chat_template=CHATML
    )


@pytest.fixture(scope="module")
def rows(conversations, tokenizer):
    """The rows as text, prompts rendered by us."""
    return [
        {"prompt": render(tokenizer, row.prompt).text, "chosen": row.chosen, "rejected": row.rejected} for row in conversations
    ]


@dataclass(frozen=True)
class Case:
    """A method of ours, the trainer of TRL that has it, and what both are told."""

    method: str
    hyper: dict[str, Any]
    trainer: str
    config: dict[str, Any]
    micro: int = BATCH  # rows a forward pass of TRL; the rest of a step is accumulated
    bare: bool = False  # prompts of one token, the beginning-of-text token

    def __str__(self) -> str:
        return "-".join([self.method, *(str(value) for value in self.hyper.values() if isinstance(value, str))])


@dataclass(frozen=True)
class Run:
    """What a training left: a loss and a gradient norm a step; of TRL also its logs and its token ids, in our row order."""

    losses: list[float]
    norms: list[float]
    logs: list[dict[str, float]] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)


def trl_trainer(kind, rows, tokenizer, out, config, micro=BATCH, model=None, reference=None, steps=STEPS):
    """A trainer of TRL over rows in the order given, with our optimizer settings."""
    import datasets
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    configs, trainers = {
        "dpo": (DPOConfig, DPOTrainer),
        "kto": (KTOConfig, KTOTrainer),
        "cpo": (CPOConfig, CPOTrainer),
        "orpo": (ORPOConfig, ORPOTrainer),
    }[kind]
    model = tiny_model(vocabulary=len(tokenizer)) if model is None else model
    frozen = {"ref_model": reference or copy.deepcopy(model)} if kind in ("dpo", "kto") else {}
    answers = 2 if kind == "kto" else 1  # KTO's rows are single answers
    shared = trl_side.same_settings(replace(SETTINGS, steps=steps), out, micro)
    shared["per_device_train_batch_size"] *= answers
    settings = configs(**shared, optim="adamw_torch", bf16=False, gradient_checkpointing=False, use_cpu=True, **config)
    return trainers(model, args=settings, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer, **frozen)


def falling(step: list[dict[str, str]]) -> list[dict[str, Any]]:
    """A step's pairs as single answers: all chosen ones, then all rejected ones, rows falling.

    TRL gives a prompt the completion of the entry before it, cyclically; in this order that is the next row's, chosen and
    rejected alike: exactly our mismatched pairs.
    """
    return [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for side in ("chosen", "rejected")
        for row in reversed(step)
    ]


def steps_of(items: list[Any], size: int = BATCH) -> list[list[Any]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def token_ids(kind: str, dataset) -> list[tuple[list[int], list[int], list[int]]]:
    """(prompt, chosen, rejected) of the pairs of TRL's tokenised dataset, in the order it trains on them."""
    if kind == "dpo":
        return [tuple(row) for row in trl_side.token_ids(dataset)]
    if kind == "kto":
        found = []
        for step in steps_of(list(dataset), 2 * BATCH):
            chosen, rejected = step[:BATCH][::-1], step[BATCH:][::-1]
            assert [row["label"] for row in step] == [True] * BATCH + [False] * BATCH
            assert [row["prompt_ids"] for row in chosen] == [row["prompt_ids"] for row in rejected]
            found += [(a["prompt_ids"], a["completion_ids"], b["completion_ids"]) for a, b in zip(chosen, rejected, strict=True)]
        return found
    found = []
    for row in dataset:
        prompt = row["prompt_input_ids"]
        sides = [row[f"{side}_input_ids"][len(prompt) :] for side in ("chosen", "rejected")]
        for side, ids in zip(("chosen", "rejected"), sides, strict=True):
            assert row[f"{side}_input_ids"] == prompt + ids
            assert row[f"{side}_labels"] == [-100] * len(prompt) + ids
        found.append((prompt, *sides))
    return found


def trl_run(case: Case, rows, tokenizer, out) -> Run:
    """Train with TRL."""
    ordered = [rows[i] for i in ORDER]
    if case.bare:
        ordered = [{**row, "prompt": ""} for row in ordered]
    if case.trainer == "kto":
        ordered = [answer for step in steps_of(ordered) for answer in falling(step)]
    trainer = trl_trainer(case.trainer, ordered, tokenizer, out, case.config, case.micro)
    trainer.train()
    logs = [row for row in trainer.state.log_history if "loss" in row]
    ids = dict(zip(ORDER.tolist(), token_ids(case.trainer, trainer.train_dataset), strict=True))
    examples = [Example(f"row{i}", *(np.asarray(part) for part in ids[i])) for i in range(len(ids))]
    return Run([row["loss"] for row in logs], [row["grad_norm"] for row in logs], logs, examples)


def own_run(method: str, hyper: dict[str, Any], examples: list[Example], vocabulary: int) -> Run:
    """Train the same weights on the same token ids with our loop."""
    model = tiny_model(vocabulary=vocabulary)
    reference = reference_of(model, examples, SETTINGS, method)
    logs: list[dict[str, Any]] = []
    fit(
        Objective(model, None, get_method(method), resolve(method, hyper), None, reference, CPU),
        examples,
        SETTINGS,
        logs.append,
    )
    return Run([row["loss"] for row in logs], [row["grad_norm"] for row in logs], logs)


def gaps(theirs: list[float], ours: list[float]) -> list[float]:
    """Differences relative to max(1, |value|), one a step."""
    return [abs(a - b) / max(1.0, abs(a)) for a, b in zip(theirs, ours, strict=True)]


CASES = [
    Case("dpo", {"beta": 0.1}, "dpo", {"loss_type": "sigmoid", "beta": 0.1}),
    Case("ipo", {"beta": 0.1, "reduction": "mean"}, "dpo", {"loss_type": "ipo", "beta": 0.1}),
    Case("hinge", {"beta": 0.1}, "dpo", {"loss_type": "hinge", "beta": 0.1}),
    Case(
        "robust",
        {"beta": 0.1, "label_smoothing": 0.2},
        "dpo",
        {"loss_type": "robust", "beta": 0.1, "label_smoothing": 0.2},
    ),
    Case("nca", {"beta": 0.1}, "dpo", {"loss_type": "nca_pair", "beta": 0.1}),
    Case("apo_zero", {"beta": 0.1}, "dpo", {"loss_type": "apo_zero", "beta": 0.1}),
    Case("apo_down", {"beta": 0.1}, "dpo", {"loss_type": "apo_down", "beta": 0.1}),
    Case("sppo_hard", {"beta": 0.1}, "dpo", {"loss_type": "sppo_hard", "beta": 0.1}),
    Case(
        "aot",
        {"beta": 0.1, "label_smoothing": 0.1, "kind": "paired"},
        "dpo",
        {"loss_type": "aot", "beta": 0.1, "label_smoothing": 0.1},
    ),
    Case("aot", {"beta": 0.1, "kind": "unpaired"}, "dpo", {"loss_type": "aot_unpaired", "beta": 0.1}),
    Case("lrml", {"beta": 0.1, "tau": 0.05}, "dpo", {"loss_type": "discopop", "beta": 0.1, "discopop_tau": 0.05}),
    Case(
        "exo",
        {"beta": 0.1, "label_smoothing": 1e-3},
        "dpo",
        {"loss_type": "exo_pair", "beta": 0.1, "label_smoothing": 1e-3},
    ),
    Case("dpo_norm", {"beta": 5.0}, "dpo", {"loss_type": "sigmoid_norm", "beta": 5.0}),
    Case("f_dpo", {"beta": 0.1, "kind": "js"}, "dpo", {"f_divergence_type": "js_divergence", "beta": 0.1}),
    # TRL's coefficient is 1 - alpha.
    Case(
        "f_dpo",
        {"beta": 0.1, "kind": "alpha", "alpha": 0.3},
        "dpo",
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7, "beta": 0.1},
    ),
    # TRL's likelihood terms are means over all tokens of a forward pass, ours of a row's: one row a pass makes them the same.
    Case(
        "rpo",
        {"beta": 0.1, "eta": 0.2, "reduction": "token_mean"},
        "dpo",
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2], "beta": 0.1},
        micro=1,
    ),
    Case("cpo", {"beta": 0.1, "alpha": 1.0}, "cpo", {"loss_type": "sigmoid", "beta": 0.1, "cpo_alpha": 1.0}, micro=1),
    Case(
        "simpo",
        {"beta": 2.0, "gamma": 0.5},
        "cpo",
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.5, "cpo_alpha": 0.0},
    ),
    # TRL's likelihood term has the prompt in it: a prompt of one token, which nothing predicts, leaves the answer alone.
    Case("orpo", {"lam": 0.1}, "orpo", {"beta": 0.1}, micro=1, bare=True),
    Case(
        "kto",
        {"beta": 0.1, "lam_desirable": 1.2, "lam_undesirable": 0.9},
        "kto",
        {"beta": 0.1, "desirable_weight": 1.2, "undesirable_weight": 0.9},
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_trajectory(case, rows, tokenizer, tmp_path, record_property):
    """Six steps: every loss and every gradient norm before clipping, each computed with weights the steps before have left."""
    theirs = trl_run(case, rows, tokenizer, tmp_path)
    ours = own_run(case.method, case.hyper, theirs.examples, len(tokenizer))
    loss, norm = gaps(theirs.losses, ours.losses), gaps(theirs.norms, ours.norms)
    record_property("losses", [theirs.losses, ours.losses])
    record_property("gaps", [loss, norm])
    assert max(loss) <= TOLERANCE, (theirs.losses, ours.losses)
    assert max(norm) <= 1e-3, (theirs.norms, ours.norms)
    if case.bare:
        assert {len(example.prompt) for example in theirs.examples} == {1}
    if case.trainer == "kto":
        assert max(row["kl"] for row in theirs.logs) > 0.1  # else z0 is clamped throughout and says nothing of its pairs


def loss_now(method: str, hyper: dict[str, Any], policy, reference=None) -> float:
    """Our loss of a batch from per-token log-probabilities, two arrays a row."""
    sums = [
        torch.tensor([float(row[side].sum()) for row in values]) for values in (policy, reference or policy) for side in (0, 1)
    ]
    lengths = [torch.tensor([len(row[side]) for row in policy]) for side in (0, 1)]
    return float(pair_loss(method, *sums, *lengths, **hyper).mean())


def scored(model, ids) -> list[list[np.ndarray]]:
    """Per-token log-probabilities of (prompt, chosen, rejected) rows."""
    return log_probs(model, [(np.asarray(p), [np.asarray(a), np.asarray(b)]) for p, a, b in ids], CPU, 100_000)


def mean_of_means(arrays) -> float:
    return float(np.mean([array.mean() for array in arrays]))


def mean_of_tokens(arrays) -> float:
    return float(np.concatenate(arrays).mean())


@pytest.fixture
def first_step(rows, tokenizer, tmp_path):
    """Train one step of one full batch with TRL: its log, its token ids, and our log-probabilities of them before it."""

    def run(kind: str, config: dict[str, Any]):
        trainer = trl_trainer(kind, rows[:BATCH], tokenizer, tmp_path, config, steps=1)
        ids = token_ids(kind, trainer.train_dataset)
        values = scored(trainer.model, ids)
        trainer.train()
        return next(row for row in trainer.state.log_history if "loss" in row), ids, values

    return run


@pytest.mark.parametrize("kind", ["cpo", "dpo"])
def test_likelihood_term_is_a_mean_over_tokens_there_over_rows_here(first_step, kind):
    """CPO, and `sigmoid` with `sft`: TRL's long answers weigh more, and more so in a larger batch. The rest is the same."""
    if kind == "cpo":
        weight, log, values = 1.0, *first_step("cpo", {"beta": 0.1, "cpo_alpha": 1.0})[::2]
        ours = loss_now("cpo", {"beta": 0.1, "alpha": weight}, values)
    else:
        weight = 0.2
        config = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, weight], "beta": 0.1}
        log, _, values = first_step("dpo", config)
        ours = loss_now("rpo", {"beta": 0.1, "eta": weight, "reduction": "token_mean"}, values)
    chosen = [row[0] for row in values]
    difference = weight * (mean_of_means(chosen) - mean_of_tokens(chosen))
    assert abs(difference) > 10 * TOLERANCE * max(1.0, abs(ours))
    assert log["loss"] == pytest.approx(ours + difference, rel=TOLERANCE)


def test_orpo_likelihood_holds_the_prompt_there(first_step, tokenizer):
    """TRL's NLL runs over prompt and answer, all tokens of the batch alike; the odds term is the same."""
    log, ids, values = first_step("orpo", {"beta": 0.1})
    whole = [row[0] for row in scored(tiny_model(vocabulary=len(tokenizer)), [(p[:1], p[1:] + a, b) for p, a, b in ids])]
    answers = [row[0] for row in values]
    difference = mean_of_means(answers) - mean_of_tokens(whole)
    assert abs(difference) > 0.01
    assert log["nll_loss"] == pytest.approx(-mean_of_tokens(whole), rel=TOLERANCE)
    assert log["loss"] == pytest.approx(loss_now("orpo", {"lam": 0.1}, values) + difference, rel=TOLERANCE)


def test_simpo_there_keeps_cpos_likelihood_term_unless_told(first_step):
    """`loss_type="simpo"` alone: cpo_alpha is 1, so a mean-token NLL is added to SimPO's loss."""
    log, _, values = first_step("cpo", {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.5})
    added = -mean_of_tokens([row[0] for row in values])
    assert added > 1
    assert log["loss"] == pytest.approx(loss_now("simpo", {"beta": 2.0, "gamma": 0.5}, values) + added, rel=TOLERANCE)


def own_answers(dataset) -> float:
    """Share of KTO's "mismatched" completions that answer the very prompt they are put behind."""
    answers: dict[tuple[int, ...], list[list[int]]] = {}
    for row in dataset:
        answers.setdefault(tuple(row["prompt_ids"]), []).append(row["completion_ids"])
    return float(np.mean([row["KL_completion_ids"] in answers[tuple(row["prompt_ids"])] for row in dataset]))


def test_kto_pairs_depend_on_the_order_of_the_rows_there(rows, tokenizer, tmp_path):
    """TRL gives a prompt the completion of the entry before it. Where a prompt's two answers are neighbours, half of the
    "mismatched" completions are no strangers; TRL's own unpairing avoids that, but then a batch has one label only.
    """
    from datasets import Dataset
    from trl import unpair_preference_dataset

    def entries_of(ordered):
        return trl_trainer("kto", ordered, tokenizer, tmp_path, {}).train_dataset

    neighbours = [answer for row in rows for answer in falling([row])]
    assert own_answers(entries_of(neighbours)) == 0.5
    assert own_answers(entries_of([answer for step in steps_of(rows) for answer in falling(step)])) == 0
    helper = entries_of(list(unpair_preference_dataset(Dataset.from_list(rows))))
    assert own_answers(helper) == 0
    assert [set(labels) for labels in steps_of(list(helper["label"]), 2 * BATCH)] == [{True}] * 3 + [{False}] * 3


def unigram_model(tokenizer, probabilities: dict[str, float]):
    """A model that gives every position the same probabilities: those named, and an equal share of what is left to each other.

    All embeddings are ones and no layer adds anything, so the final norm gives ones, and the head's rows are the logits / width.
    """
    model = tiny_model(vocabulary=len(tokenizer))
    named = {tokenizer.convert_tokens_to_ids(token): p for token, p in probabilities.items()}
    rest = (1 - sum(named.values())) / (len(tokenizer) - len(named))
    wanted = torch.tensor([named.get(i, rest) for i in range(len(tokenizer))])
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(1)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.get_output_embeddings().weight.copy_(wanted.log()[:, None].expand(-1, 32) / 32)
    return model


@pytest.fixture
def by_hand(tokenizer, tmp_path):
    """The first loss of TRL where policy and reference are unigram models, and what each gives to the one row there is."""

    def run(probabilities, chosen, rejected, config):
        policy, uniform = unigram_model(tokenizer, probabilities), unigram_model(tokenizer, {})
        row = {"prompt": "Q", "chosen": chosen, "rejected": rejected}
        trainer = trl_trainer("dpo", [row] * BATCH, tokenizer, tmp_path, config, model=policy, reference=uniform, steps=1)
        ids = token_ids("dpo", trainer.train_dataset)
        end = tokenizer.eos_token_id
        assert [ids[0][1], ids[0][2]] == [[*map(tokenizer.convert_tokens_to_ids, text), end] for text in (chosen, rejected)]
        policy_values, reference_values = scored(policy, ids), scored(uniform, ids)
        trainer.train()
        return trainer.state.log_history[0]["loss"], policy_values, reference_values

    return run


HALVES = {"Z": 1 / 2, "X": 1 / 4, "<|im_end|>": 1 / 8}


def test_cdpo_is_not_there_by_hand(by_hand):
    """512 tokens: log p/q is 8 ln 2 for Z, 7 for X, 6 for the end. u_w of "X" = 13 ln 2, u_l of "Z" = 14 ln 2, so at beta 1
    z = -ln 2 and sigmoid(z) = 1/3. DPO: ln 3. cDPO with e = 0.2: 0.8 ln 3 + 0.2 ln(3/2) = 0.95998. TRL takes label_smoothing
    with `sigmoid` and gives ln 3.
    """
    config = {"loss_type": "sigmoid", "beta": 1.0, "label_smoothing": 0.2}
    theirs, *values = by_hand(HALVES, "X", "Z", config)
    assert theirs == pytest.approx(math.log(3), rel=TOLERANCE)
    assert loss_now("dpo", {"beta": 1.0}, *values) == pytest.approx(math.log(3), rel=TOLERANCE)
    paper = 0.8 * math.log(3) + 0.2 * math.log(1.5)
    assert loss_now("cdpo", {"beta": 1.0, "label_smoothing": 0.2}, *values) == pytest.approx(paper, rel=TOLERANCE)


def test_ipo_is_per_token_there_by_hand(by_hand):
    """As above: u_w = 13 ln 2, u_l = 14 ln 2, two tokens each. beta 1/2: the target is 1. Means: (-ln 2 / 2 - 1)^2 = 1.81327;
    sums, the DPO authors' loss: (-ln 2 - 1)^2 = 2.86675.
    """
    theirs, *values = by_hand(HALVES, "X", "Z", {"loss_type": "ipo", "beta": 0.5})
    mean, total = (math.log(2) / 2 + 1) ** 2, (math.log(2) + 1) ** 2
    assert theirs == pytest.approx(mean, rel=TOLERANCE)
    assert loss_now("ipo", {"beta": 0.5}, *values) == pytest.approx(mean, rel=TOLERANCE)
    assert loss_now("ipo", {"beta": 0.5, "reduction": "sum"}, *values) == pytest.approx(total, rel=TOLERANCE)


def test_bco_has_no_running_mean_there_by_hand(by_hand):
    """beta = 1 / 13: b u_w = ln 2, b u_l = 14/13 ln 2. Without a mean: -log sigmoid(ln 2) - log sigmoid(-14/13 ln 2) = ln(3/2) +
    ln(1 + 2^(14/13)). With d = their mean 27/26 ln 2, each reward is ln 2 / 26 on the wrong side: 2 ln(1 + 2^(1/26)).
    """
    theirs, *values = by_hand(HALVES, "X", "Z", {"loss_type": "bco_pair", "beta": 1 / 13})
    assert theirs == pytest.approx(math.log(1.5) + math.log(1 + 2 ** (14 / 13)), rel=TOLERANCE)
    ours = loss_now("bco", {"beta": 1 / 13}, *values)
    assert ours == pytest.approx(2 * math.log(1 + 2 ** (1 / 26)), rel=TOLERANCE)


def test_wpo_is_not_clipped_there_by_hand(by_hand):
    """p = 1/2 for the end, 1/4 for Z, 1/8 for X, the rest 1/8 over 509 tokens: sum p^2 = 0.328156. "Z": w = (1/8)^(1/2) / 0.328156
    = 1.07738; "ZZ": w = (1/32)^(1/3) / 0.328156 = 0.95984. Product 1.03411: above 1, which the authors' code does not allow.
    u_w = 15 ln 2, u_l = 22 ln 2: at beta 1/7, z = -ln 2, so the loss is ln 3 clipped, and 1.03411 ln 3 in TRL.
    """
    probabilities = {"<|im_end|>": 1 / 2, "Z": 1 / 4, "X": 1 / 8}
    theirs, policy, reference = by_hand(probabilities, "Z", "ZZ", {"loss_type": "sigmoid", "beta": 1 / 7, "use_weighting": True})
    collision = 1 / 4 + 1 / 16 + 1 / 64 + (1 / 8) ** 2 / 509
    product = (1 / 8) ** (1 / 2) * (1 / 32) ** (1 / 3) / collision**2
    assert theirs == pytest.approx(product * math.log(3), rel=TOLERANCE)
    hyper = {"beta": 1 / 7}
    for side, place in (("chosen", 0), ("rejected", 1)):
        hyper[f"{side}_collision"] = torch.tensor([len(row[place]) * math.log(collision) for row in policy])
    assert loss_now("wpo", hyper, policy, reference) == pytest.approx(math.log(3), rel=TOLERANCE)


def test_tokens_of_the_same_conversation(conversations, smollm2, tmp_path):
    """SmolLM2's tokenizer and template. From text, TRL has our ids. From messages, its template closes an answer with a line
    break after the end token, which TRL trains on as well; CPO and ORPO then miss the end token at the end and add another.
    """
    tokenizer = load_tokenizer(smollm2)
    ours = [
        (render(tokenizer, row.prompt).ids, completion_ids(tokenizer, row.chosen), completion_ids(tokenizer, row.rejected))
        for row in conversations
    ]
    text = [
        {"prompt": render(tokenizer, row.prompt).text, "chosen": row.chosen, "rejected": row.rejected} for row in conversations
    ]
    messages = [
        {
            "prompt": [dict(message) for message in row.prompt],
            "chosen": [{"role": "assistant", "content": row.chosen}],
            "rejected": [{"role": "assistant", "content": row.rejected}],
        }
        for row in conversations
    ]
    (line,), end = tokenizer("\n")["input_ids"], tokenizer.eos_token_id

    def theirs(kind, rows):
        return token_ids(kind, trl_trainer(kind, rows, tokenizer, tmp_path, {}).train_dataset)

    def ending(*more):
        return [(prompt, [*chosen, *more], [*rejected, *more]) for prompt, chosen, rejected in ours]

    for kind in ("dpo", "cpo", "orpo"):
        assert theirs(kind, text) == ours
    assert theirs("dpo", messages) == ending(line)
    assert theirs("cpo", messages) == theirs("orpo", messages) == ending(line, end)
