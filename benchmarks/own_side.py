"""This package's side of a comparison: rows, what is minimised over them, and training steps that take turns."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import Load, Shape, Turn, products_of, step_flops
from transformers import AutoConfig, AutoModelForCausalLM

from spo_bench.engine.attempt import keep_freed_memory
from spo_bench.errors import InputError
from spo_bench.methods import get_method, resolve
from spo_bench.models.activations import spare_activations
from spo_bench.models.numerics import MICRO_TOKENS, Numerics
from spo_bench.models.policy import add_lora, load_policy, load_tokenizer
from spo_bench.plugins import get_task
from spo_bench.spo.head import DegreeHead
from spo_bench.spo.settings import SpoSettings
from spo_bench.stages.data import tokenised
from spo_bench.stages.examples import example, reference_of
from spo_bench.training.examples import Example
from spo_bench.training.loop import TrainSettings, fit
from spo_bench.training.objective import Objective
from spo_bench.training.scoring import log_probs

Record = Mapping[str, Any]
LORA = {"rank": 16, "alpha": 32, "dropout": 0.0, "target_modules": "all-linear"}


@dataclass(frozen=True)
class Setup:
    """A training as both sides are told of it.

    Attributes:
        batch_size: pairs a step.
        steps: number of steps; the rows are carried in the order given.
        learning_rate: constant.
        max_length: tokens of a prompt with an answer.
        dtype: compute type.
        device: where.
        lora: whether an adapter is trained; else all weights are.
        micro: what goes through one forward pass: here tokens, there pairs.
        checkpointing: whether activations are computed twice instead of being held.
        seed: of the adapter and the head.
    """

    batch_size: int
    steps: int
    learning_rate: float
    max_length: int = 1024
    dtype: str = "float32"
    device: str = "cpu"
    lora: bool = False
    micro: int = MICRO_TOKENS["cpu"]
    checkpointing: bool = False
    seed: int = 0

    @property
    def numerics(self) -> Numerics:
        """As the package itself chooses them: weights in fp32 where all are trained, in the compute type under an adapter."""
        return Numerics(self.device, self.dtype, self.dtype if self.lora else "float32")

    def loop(self, packing: str = "trie") -> TrainSettings:
        """Return the loop's settings."""
        return TrainSettings(
            batch_size=self.batch_size,
            steps=self.steps,
            learning_rate=self.learning_rate,
            schedule="constant",
            warmup=0.0,
            weight_decay=0.0,
            clip=1.0,
            micro_tokens=self.micro,
            packing=packing,
            max_length=self.max_length,
            seed=self.seed,
        )


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add what is trained on which data, and how much of it at once."""
    parser.add_argument("model", type=Path)
    parser.add_argument("data")
    parser.add_argument("--task", default="dialogue")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--micro-tokens", type=int, default=MICRO_TOKENS["cpu"], help="token budget of one of our forward passes")


def whole_rows(tokenizer: Any, data: str, task: str, count: int | None, max_length: int) -> list[Record]:
    """Return so many rows of a task's training split with their token ids, all if None; only such as need no cut.

    Raises:
        InputError: there are fewer.
    """
    found: list[Record] = []
    for row in get_task(task, data).load("train", None, 0):
        if row.unusable is None and (count is None or len(found) < count):
            record, obstacle = tokenised(row, "train", tokenizer, max_length, Counter())
            end = tokenizer.eos_token_id
            if obstacle is None and record["chosen_ids"][-1] == end == record["rejected_ids"][-1]:
                found.append(record)
    if not found or len(found) < (count or 0):
        raise InputError(f"{count} rows of {data}", f"{len(found)} fit into {max_length} tokens", "take fewer steps or rows")
    return found


def spread(records: Sequence[Record], count: int) -> list[Record]:
    """Return so many rows, evenly over the order of lengths: the middles of equal parts."""
    ordered = sorted(records, key=length)
    return [ordered[int((i + 0.5) * len(ordered) / count)] for i in range(count)]


def length(record: Record) -> int:
    """Return the tokens of a row's prompt and both answers."""
    return sum(len(record[f"{name}_ids"]) for name in ("prompt", "chosen", "rejected"))


def examples_of(records: Sequence[Record], tokenizer: Any, spo: SpoSettings | None, settings: TrainSettings) -> list[Example]:
    """Return the rows as the loop sees them."""
    return [example(record, tokenizer, spo, settings) for record in records]


def objective_of(
    model: Any, examples: Sequence[Example], spo: SpoSettings | None, settings: TrainSettings, on: Numerics
) -> Objective:
    """Return DPO, with SPO if there are settings, with the model as it is now as the reference."""
    items = [(item.prompt, item.scored) for item in examples]
    frozen = log_probs(model, items, on, settings.micro_tokens, settings.packing == "trie")
    head = DegreeHead(model.config.hidden_size, spo, seed=settings.seed).to(on.device) if spo else None
    method = get_method("dpo")
    return Objective(model, head, method, resolve("dpo", {}), spo, reference_of(examples, frozen, None), on, seed=settings.seed)


def prepared(model: Any, setup: Setup) -> Any:
    """Return the model with the weights set to train that a setup trains."""
    if setup.lora:
        model = add_lora(model.requires_grad_(False), LORA, setup.seed)
    else:
        model.requires_grad_(True)
    spare_activations(model, setup.checkpointing)
    return model


def load_of(examples: Sequence[Example], share: bool = True) -> Load:
    """Return what rows carry through a step. A token attends to itself and to its ancestors: as many as its position."""
    rows = [item.row(share=share)[0] for item in examples]
    scored = [[path for path, response in zip(row.paths, row.responses, strict=True) if response.scored] for row in rows]
    return Load(
        tokens=sum(row.size for row in rows),
        positions=sum(len(np.unique(np.concatenate(paths))) for paths in scored),
        attended=sum(int(row.positions.sum()) + row.size for row in rows),
    )


def step_products(directory: Path, records: Sequence[Record], setup: Setup) -> Counter[Shape]:
    """Return the products of a step of DPO of average size over these rows, without loading the model's weights."""
    settings = setup.loop()
    load = load_of(examples_of(records, None, None, settings))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(str(directory)))
    tokens = load.tokens * setup.batch_size / len(records)
    tokens /= math.ceil(tokens / setup.micro)  # a step of more than one pass has that many times the same products
    return products_of(model, round(tokens), round(tokens * load.positions / load.tokens))


def own_side(
    turn: Turn, model: Path | Callable[[], tuple[Any, Any]], records: Sequence[Record], setup: Setup, spo: SpoSettings | None
) -> None:
    """Train: a side for ``take_turns``. ``model`` is a directory, or a function that makes (model, tokenizer).

    Says when ready ``flops`` and ``tokens`` of every step and ``ids`` of every row; of every step what the loop logs.
    """
    keep_freed_memory()
    policy, tokenizer = (load_policy(model, setup.numerics), load_tokenizer(model)) if isinstance(model, Path) else model()
    policy, settings = prepared(policy, setup), setup.loop()
    examples = examples_of(records, tokenizer, spo, settings)
    objective = objective_of(policy, examples, spo, settings, setup.numerics)
    plan = [np.arange(start, start + setup.batch_size) for start in range(0, len(examples), setup.batch_size)]
    loads = [load_of([examples[i] for i in rows]) for rows in plan]
    turn.ready(
        flops=[step_flops(policy, load) for load in loads],
        tokens=[load.tokens for load in loads],
        ids=[[item.prompt.tolist(), item.chosen.tolist(), item.rejected.tolist()] for item in examples],
    )
    fit(objective, examples, settings, lambda row: turn.done(**row), plan)
