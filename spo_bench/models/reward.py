"""Reward models: any sequence-classification model with one output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from spo_bench.models.chat import plain_text, render
from spo_bench.models.numerics import Numerics

Messages = Sequence[Mapping[str, str]]


def load_reward_model(
    directory: Path, numerics: Numerics, trust_remote_code: bool = False, fresh: bool = False
) -> tuple[Any, Any]:
    """Return (model, tokenizer).

    Args:
        directory: a sequence-classification model, or with ``fresh`` a language model a new reward model starts from.
        numerics: device and type.
        trust_remote_code: whether the model's own code may run.
        fresh: put a new head with one output on the weights.
    """
    more = {"num_labels": 1} if fresh else {}
    model = AutoModelForSequenceClassification.from_pretrained(
        str(directory), dtype=getattr(torch, numerics.held), trust_remote_code=trust_remote_code, **more
    )
    tokenizer = AutoTokenizer.from_pretrained(str(directory), trust_remote_code=trust_remote_code)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = tokenizer.pad_token_id  # decoders pool at the last token that is no padding
    return model.to(numerics.device).eval(), tokenizer


@dataclass(frozen=True)
class Encoded:
    """A prompt with its answer as a reward model reads it: token ids, and segment numbers where its tokenizer gives them."""

    ids: list[int]
    segments: list[int] | None = None

    def __len__(self) -> int:
        return len(self.ids)


def encode(tokenizer: Any, prompt: Messages, answer: str, max_length: int) -> Encoded:
    """Return a prompt with its answer: by the chat template, or as a pair of texts for encoders without one.

    What is judged is the answer: a text longer than ``max_length``, or than the model can read, loses its beginning.
    """
    limit = min(max_length, tokenizer.model_max_length)  # a tokenizer without a limit gives a huge number
    if tokenizer.chat_template:
        ids = [*render(tokenizer, prompt).ids, *tokenizer(answer, add_special_tokens=False)["input_ids"]]
        ids = ids if tokenizer.eos_token_id is None else [*ids, tokenizer.eos_token_id]
        return Encoded(ids[-limit:])
    tokenizer.truncation_side = "left"
    found = tokenizer(plain_text(prompt), answer, truncation="longest_first", max_length=limit)
    return Encoded(list(found["input_ids"]), list(found["token_type_ids"]) if "token_type_ids" in found else None)


def rewards_of(model: Any, tokenizer: Any, sequences: Sequence[Encoded], numerics: Numerics) -> Tensor:
    """Return the reward of each sequence of one batch, fp32, shape (n,); right-padded, so padding changes nothing."""
    width = max(len(sequence) for sequence in sequences)
    tokens = torch.full((len(sequences), width), tokenizer.pad_token_id, dtype=torch.int64)
    present, segments = torch.zeros_like(tokens), torch.zeros_like(tokens)
    for line, sequence in enumerate(sequences):
        tokens[line, : len(sequence)] = torch.tensor(sequence.ids)
        present[line, : len(sequence)] = 1
        if sequence.segments is not None:
            segments[line, : len(sequence)] = torch.tensor(sequence.segments)
    more = {"token_type_ids": segments.to(numerics.device)} if sequences[0].segments is not None else {}
    with numerics.autocast():
        logits: Tensor = model(input_ids=tokens.to(numerics.device), attention_mask=present.to(numerics.device), **more).logits
    return logits[:, 0].float()


@torch.no_grad()
def score_answers(
    model: Any,
    tokenizer: Any,
    items: Sequence[tuple[Messages, str]],
    numerics: Numerics,
    max_length: int,
    batch_tokens: int = 4096,
) -> list[float]:
    """Return the reward of every (prompt, answer), in batches of like length."""
    sequences = [encode(tokenizer, prompt, answer, max_length) for prompt, answer in items]
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    scores = [0.0] * len(items)
    group: list[int] = []
    for place, i in enumerate(order):
        group.append(i)
        last = place + 1 == len(order)
        if last or len(sequences[order[place + 1]]) * (len(group) + 1) > batch_tokens:
            for j, value in zip(
                group, rewards_of(model, tokenizer, [sequences[j] for j in group], numerics).tolist(), strict=True
            ):
                scores[j] = value
            group = []
    return scores
