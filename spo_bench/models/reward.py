"""Reward models: any sequence-classification model with one output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from spo_bench.errors import StageError
from spo_bench.models.chat import conversation_ids, plain_text
from spo_bench.models.numerics import Numerics
from spo_bench.models.policy import own_code_refused
from spo_bench.models.source import check_whole, weight_files
from spo_bench.ranks import ALONE, Ranks

Messages = Sequence[Mapping[str, str]]


def scoring(numerics: Numerics, dtype: str) -> Numerics:
    """Return the numerics of reward models: where a stage runs, in a type of their own.

    In bfloat16 a score depends a little on what else is in its batch, in float32 it does not.
    """
    return replace(numerics, dtype=dtype, held=dtype)


def load_reward_model(
    directory: Path, numerics: Numerics, trust_remote_code: bool = False, fresh: bool = False
) -> tuple[Any, Any]:
    """Return (model, tokenizer).

    Args:
        directory: a sequence-classification model, or with ``fresh`` a language model a new reward model starts from.
        numerics: device and type.
        trust_remote_code: whether the model's own code may run.
        fresh: put a new head with one output on the weights.

    Raises:
        InputError: an adapter, weights that are not safetensors, or code that may not run.
    """
    check_whole(directory)
    weight_files(directory)
    more = {"num_labels": 1} if fresh else {}
    with own_code_refused(directory):
        model = AutoModelForSequenceClassification.from_pretrained(  # a directory  # nosec B615
            str(directory),
            dtype=getattr(torch, numerics.held),
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            **more,
        )
        tokenizer = AutoTokenizer.from_pretrained(  # a directory  # nosec B615
            str(directory), trust_remote_code=trust_remote_code
        )
    if fresh:  # what is saved has to pad, if possible with what never ends a text: decoders are read before the padding
        known = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id)
        end = tokenizer.eos_token_id
        tokenizer.pad_token_id = next((token for token in known if token is not None and token != end), end)
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
    """Return a prompt with its answer: as a finished conversation, or for encoders as a pair of texts.

    An encoder is known by its mark between two texts, and by having no chat template. What is judged is the answer: a text
    longer than ``max_length``, or than the model can read, loses its beginning, but for the beginning-of-text token.
    """
    limit = min(max_length, tokenizer.model_max_length)  # a tokenizer without a limit gives a huge number
    if tokenizer.chat_template or tokenizer.sep_token_id is None:
        ids = conversation_ids(tokenizer, prompt, answer)
        first = ids[:1] if ids[0] == tokenizer.bos_token_id else []
        return Encoded(tuple(ids if len(ids) <= limit else [*first, *ids[len(ids) - limit + len(first) :]]))
    tokenizer.truncation_side = "left"
    found = tokenizer(plain_text(prompt), answer, truncation="longest_first", max_length=limit)
    return Encoded(tuple(found["input_ids"]), tuple(found["token_type_ids"]) if "token_type_ids" in found else None)


def rewards_of(model: Any, tokenizer: Any, sequences: Sequence[Encoded], numerics: Numerics) -> Tensor:
    """Return the reward of each sequence of one batch, fp32, shape (n,); right-padded, so padding changes nothing.

    Decoders are read at their last token that is no padding, which they find by the padding token's id. So where that token is
    in a text (many models pad with their end token), one that is in none pads.

    Raises:
        StageError: the texts of the batch have every token there is.
    """
    width, used = max(map(len, sequences)), {token for sequence in sequences for token in sequence.ids}
    pad = tokenizer.pad_token_id
    if pad is None or pad in used:
        pad = next((token for token in range(model.get_input_embeddings().weight.shape[0]) if token not in used), None)
    if pad is None:
        raise StageError(f"every token of the vocabulary is in one batch of {len(sequences)} texts: none is left to pad with")
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
    ranks: Ranks = ALONE,
) -> list[float]:
    """Return the reward of every (prompt, answer), in batches of like length, of which each rank scores one at a time; equal ones
    are scored once.
    """
    encoded = [encode(tokenizer, prompt, answer, max_length) for prompt, answer in items]
    sequences = sorted(set(encoded), key=lambda one: (len(one), one.ids))
    groups: list[list[Encoded]] = []
    for sequence in sequences:
        if not groups or len(sequence) * (len(groups[-1]) + 1) > batch_tokens:
            groups.append([])
        groups[-1].append(sequence)
    scores: dict[Encoded, float] = {}
    for some in ranks.spread(groups, lambda group: rewards_of(model, tokenizer, group, numerics).tolist()):
        for known in some:
            scores.update(zip(sequences[len(scores) :], known, strict=False))
    return [scores[one] for one in encoded]
