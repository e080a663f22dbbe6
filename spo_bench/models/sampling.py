"""Answers of a policy.

Every prompt has its own random stream, of one number a token, so an answer depends neither on what else is answered at the same
time nor on how many are, but for rounding; and two policies given the same seeds draw with the same numbers, prompt by prompt.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from spo_bench.errors import StageError
from spo_bench.models.decoding import Ids, Rows, causal, obstacle
from spo_bench.models.numerics import CACHE_TOKENS, Numerics

REFILL = 4  # new answers begin when a quarter of the places is free, so that prompts are run together
CANDIDATES = 64  # tokens that are ranked to find the most probable ones; eight times as many where these are too few

Settings = Mapping[str, Any]


@torch.no_grad()
def sample(
    model: Any, prompts: Sequence[Ids], settings: Settings, stops: Sequence[int], seeds: Sequence[int], numerics: Numerics
) -> list[list[int]]:
    """Return the token ids of one answer a prompt, the end token included where the policy stopped by itself.

    The policy's own generation defaults (top_k, penalties) would make two models sample differently: none is used.

    Args:
        model: the policy, in evaluation mode.
        prompts: token ids of the prompts, at least one each. What prompts have in common is computed once.
        settings: max_new_tokens, temperature (0: greedy), top_p, batch_size (answers under way at once; fewer where they would
            have more than ``CACHE_TOKENS`` tokens).
        stops: tokens that end an answer.
        seeds: one a prompt.
        numerics: device and compute type.

    Raises:
        StageError: the policy's logits are no numbers.
    """
    if not prompts:
        return []
    with numerics.autocast():
        way = _in_rows if obstacle(model) is None else _by_generate
        return way(model, prompts, settings, stops, [draws(seed, settings["max_new_tokens"]) for seed in seeds])


def draws(seed: int, count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the numbers in [0, 1) of a prompt's random stream; the beginning does not depend on ``count``."""
    return np.random.default_rng(seed).random(count)


def choose(logits: Tensor, numbers: Tensor, settings: Settings) -> Tensor:
    """Return a token a row, shape (rows,): the most probable one, or by inversion of the distribution function.

    Args:
        logits: (rows, vocabulary); what they held is lost.
        numbers: in [0, 1), shape (rows,): a token is taken if its interval, in the order of ids, holds the number.
        settings: temperature (0: greedy), top_p: only the most probable tokens that together have this share are kept, the one
            that reaches it included.

    Raises:
        StageError: logits that are no numbers.
    """
    best = logits.amax(dim=-1, keepdim=True)
    if not bool(torch.isfinite(best).all()):
        raise StageError("the policy's logits are no numbers; it has diverged")
    if settings["temperature"] == 0:
        return logits.argmax(dim=-1)
    weights = logits.float().sub_(best.float()).div_(settings["temperature"]).exp_()
    if settings["top_p"] < 1:
        weights.mul_(weights >= _least_kept(weights, settings["top_p"]))
    sums = weights.cumsum(dim=-1, dtype=torch.float64)
    total = sums[:, -1:]
    aims = torch.minimum(numbers[:, None] * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(sums, aims, right=True)[:, 0]


def _least_kept(weights: Tensor, top_p: float) -> Tensor:
    """Return the least weight among the largest ones that together have a share ``top_p``, shape (rows, 1)."""
    wanted, count = top_p * weights.sum(dim=-1, keepdim=True), min(CANDIDATES, weights.shape[-1])
    while True:
        best = weights.topk(count, dim=-1).values
        sums = best.cumsum(dim=-1)
        if count == weights.shape[-1] or bool((sums[:, -1:] >= wanted).all()):
            needed = (sums - best < wanted).sum(dim=-1, keepdim=True)
            return best.gather(-1, needed - 1)
        count = min(8 * count, weights.shape[-1])


def _in_rows(
    model: Any, prompts: Sequence[Ids], settings: Settings, stops: Sequence[int], numbers: Sequence[np.ndarray[Any, Any]]
) -> list[list[int]]:
    """Answer in rows: an answer that has ended makes place for the next prompt."""
    limit = settings["max_new_tokens"]
    size = max(1, min(settings["batch_size"], len(prompts), CACHE_TOKENS // (max(map(len, prompts)) + limit)))
    rows, answers = Rows(model, prompts, limit, size), [list[int]() for _ in prompts]
    # The longest first: a new prompt has to fit behind the columns of those under way. Equal ones stand together.
    waiting = deque(sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), list(prompts[i]))))
    while waiting or rows.rows:
        free = size - len(rows.rows)
        if waiting and free * REFILL >= size:
            rows.add([waiting.popleft() for _ in range(min(free, len(waiting)))])
        logits = rows.step()
        drawn = torch.tensor([numbers[row.place][len(answers[row.place])] for row in rows.rows], device=logits.device)
        tokens = choose(logits, drawn, settings).tolist()
        for number in reversed(range(len(tokens))):  # the last row takes a dropped one's number: it has had its turn
            row, token = rows.rows[number], tokens[number]
            row.token = token
            answers[row.place].append(token)
            if token in stops or len(answers[row.place]) == limit:
                rows.drop(number)
    return answers


class _Choose(LogitsProcessor):
    """Leaves transformers' ``generate`` no choice but ours."""

    def __init__(self, numbers: Tensor, start: int, settings: Settings) -> None:
        self.numbers, self.start, self.settings = numbers, start, settings

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen = choose(scores.clone(), self.numbers[:, input_ids.shape[1] - self.start], self.settings)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen[:, None], 0.0)


def _by_generate(
    model: Any, prompts: Sequence[Ids], settings: Settings, stops: Sequence[int], numbers: Sequence[np.ndarray[Any, Any]]
) -> list[list[int]]:
    """Answer with transformers' ``generate``, for models whose cache only they know; only prompts of one length together."""
    inner, answers = causal(model), [list[int]() for _ in prompts]
    kept, config = inner.generation_config, GenerationConfig(max_new_tokens=settings["max_new_tokens"], do_sample=False)
    config.eos_token_id, config.pad_token_id = list(stops), stops[0]
    inner.generation_config = config
    try:
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for width, alike in groupby(order, key=lambda i: len(prompts[i])):
            left = list(alike)
            for members in (left[i : i + settings["batch_size"]] for i in range(0, len(left), settings["batch_size"])):
                device = next(model.parameters()).device
                drawn = torch.tensor(np.stack([numbers[i] for i in members]), device=device)
                ids = torch.tensor([list(prompts[i]) for i in members], device=device)
                found = model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    logits_processor=LogitsProcessorList([_Choose(drawn, width, settings)]),
                )
                for i, line in zip(members, found[:, width:].tolist(), strict=True):
                    end = next((place for place, token in enumerate(line) if token in stops), len(line) - 1)
                    answers[i] = line[: end + 1]
    finally:
        inner.generation_config = kept  # a policy that is saved keeps its own
    return answers
