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
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return model.to(numerics.device).eval(), tokenizer


@dataclass(frozen=True)
class Encoded:
    """A prompt with its answer as a reward model reads it: token ids, and segment numbers where its tokenizer gives them."""

    ids: tuple[int, ...]
    segments: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.ids)


def encode(tokenizer: Any, prompt: Messages, answer: str, max_length: int) -> Encoded:
    """Return a prompt with its answer: as the policy reads them, closed by the end token, or for encoders as a pair of texts.

    An encoder is known by its mark between two texts, and by having no chat template. What is judged is the answer: a text
    longer than ``max_length``, or than the model can read, loses its beginning, but for the beginning-of-text token.
    """
    limit = min(max_length, tokenizer.model_max_length)  # a tokenizer without a limit gives a huge number
    if tokenizer.chat_template or tokenizer.sep_token_id is None:
        ids = [*render(tokenizer, prompt).ids, *tokenizer(answer, add_special_tokens=False)["input_ids"]]
        ids = ids if tokenizer.eos_token_id is None else [*ids, tokenizer.eos_token_id]
        first = ids[:1] if ids[0] == tokenizer.bos_token_id else []
        return Encoded(tuple(ids if len(ids) <= limit else [*first, *ids[len(ids) - limit + len(first) :]]))
    tokenizer.truncation_side = "left"
    found = tokenizer(plain_text(prompt), answer, truncation="longest_first", max_length=limit)
    return Encoded(tuple(found["input_ids"]), tuple(found["token_type_ids"]) if "token_type_ids" in found else None)


def rewards_of(model: Any, tokenizer: Any, sequences: Sequence[Encoded], numerics: Numerics) -> Tensor:
    """Return the reward of each sequence of one batch, fp32, shape (n,); right-padded, so padding changes nothing.

    Decoders are read at their last token that is no padding, which they find by the padding token's id. So where a sequence
    itself ends with that token (many models pad with their end token), another one pads.
    """
    width, ends = max(map(len, sequences)), {sequence.ids[-1] for sequence in sequences}
    pad = tokenizer.pad_token_id
    if pad is None or pad in ends:
        pad = next(token for token in range(len(ends) + 1) if token not in ends)
    tokens = torch.full((len(sequences), width), pad, dtype=torch.int64)
    present, segments = torch.zeros_like(tokens), torch.zeros_like(tokens)
    for line, sequence in enumerate(sequences):
        tokens[line, : len(sequence)] = torch.tensor(sequence.ids)
        present[line, : len(sequence)] = 1
        if sequence.segments is not None:
            segments[line, : len(sequence)] = torch.tensor(sequence.segments)
    more = {"token_type_ids": segments.to(numerics.device)} if sequences[0].segments is not None else {}
    config = model.config.get_text_config()
    kept, config.pad_token_id = config.pad_token_id, pad
    try:
        with numerics.autocast():
            logits: Tensor = model(
                input_ids=tokens.to(numerics.device), attention_mask=present.to(numerics.device), **more
            ).logits
    finally:
        config.pad_token_id = kept
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
    """Return the reward of every (prompt, answer), in batches of like length; equal ones are scored once."""
    encoded = [encode(tokenizer, prompt, answer, max_length) for prompt, answer in items]
    sequences = sorted(set(encoded), key=lambda one: (len(one), one.ids))
    scores: dict[Encoded, float] = {}
    group: list[Encoded] = []
    for place, sequence in enumerate(sequences):
        group.append(sequence)
        last = place + 1 == len(sequences)
        if last or len(sequences[place + 1]) * (len(group) + 1) > batch_tokens:
            scores.update(zip(group, rewards_of(model, tokenizer, group, numerics).tolist(), strict=True))
            group = []
    return [scores[one] for one in encoded]
