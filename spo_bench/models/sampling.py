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
from spo_bench.models.decoding import Ids, Rows, Way, way_of
from spo_bench.models.numerics import Numerics
from spo_bench.models.policy import causal

REFILL = 4  # new answers begin when a quarter of the places is free, so that prompts are run together
CANDIDATES = 64  # tokens that are ranked to find the most probable ones; eight times as many where these are too few

Settings = Mapping[str, Any]


def find_way(model: Any, longest: int, numerics: Numerics) -> Way:
    """Return how a policy's answers are decoded, found out by trying: once for all calls of ``sample``.

    Args:
        model: the policy, in evaluation mode.
        longest: most tokens of a prompt with its answer.
        numerics: device and compute type.
    """
    with numerics.autocast():
        return way_of(model, longest)


@torch.no_grad()
def sample(
    model: Any,
    prompts: Sequence[Ids],
    settings: Settings,
    stops: Sequence[int],
    seeds: Sequence[int],
    numerics: Numerics,
    way: Way | None = None,
) -> list[list[int]]:
    """Return the token ids of one answer a prompt, the end token included where the policy stopped by itself.

    The policy's own generation defaults (top_k, penalties) would make two models sample differently: none is used.

    Args:
        model: the policy, in evaluation mode.
        prompts: token ids of the prompts, at least one each. What prompts have in common is computed once.
        settings: max_new_tokens, temperature (0: greedy), top_p, batch_size (answers under way at once; in rows fewer where
            their keys and values would take more than ``CACHE_BYTES``).
        stops: tokens that end an answer.
        seeds: one a prompt.
        numerics: device and compute type.
        way: how answers are decoded, as ``find_way`` found; None: it is found now.

    Raises:
        StageError: the policy's logits are no numbers.
    """
    if not prompts:
        return []
    way = way or find_way(model, max(map(len, prompts)) + settings["max_new_tokens"], numerics)
    drawn = np.stack([draws(seed, settings["max_new_tokens"]) for seed in seeds])
    numbers = torch.from_numpy(drawn).to(next(model.parameters()).device)
    with numerics.autocast():
        decode = _in_rows if way.obstacle is None else _by_generate
        return decode(model, prompts, settings, stops, numbers, way)


def draws(seed: int, count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the numbers in [0, 1) of a prompt's random stream; the beginning does not depend on ``count``."""
    return np.random.default_rng(seed).random(count)


def choose(logits: Tensor, numbers: Tensor, settings: Settings) -> Tensor:
    """Return a token a row, shape (rows,): the most probable one, or by inversion of the distribution function.

    Where logits are no numbers, it is -1: who copies the tokens to the host anyway sees it there, and nothing waits for it here.

    Args:
        logits: (rows, vocabulary); what they held is lost.
        numbers: in [0, 1), shape (rows,): a token is taken if its interval, in the order of ids, holds the number.
        settings: temperature (0: greedy), top_p: only the most probable tokens that together have this share are kept, the one
            that reaches it included, and with it those that are as probable.
    """
    best = logits.amax(dim=-1, keepdim=True)
    sound = torch.isfinite(best)[:, 0]
    if settings["temperature"] == 0:
        return logits.argmax(dim=-1).where(sound, -1)
    weights = logits.float().sub_(best.float()).div_(settings["temperature"]).exp_()
    if settings["top_p"] < 1:
        weights.mul_(weights >= _least_kept(weights, settings["top_p"]))
    sums = weights.cumsum(dim=-1, dtype=torch.float64)
    total = sums[:, -1:]
    aims = torch.minimum(numbers[:, None] * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(sums, aims, right=True)[:, 0].where(sound, -1)


def _checked(tokens: Tensor) -> list[int]:
    """Return chosen tokens on the host.

    Raises:
        StageError: one of them could not be chosen.
    """
    found: list[int] = tokens.tolist()
    if min(found) < 0:
        raise StageError("the policy's logits are no numbers; it has diverged")
    return found


def _least_kept(weights: Tensor, top_p: float) -> Tensor:
    """Return the least weight among the largest ones that together have a share ``top_p``, shape (rows, 1)."""
    wanted, count = top_p * weights.sum(dim=-1, keepdim=True), min(CANDIDATES, weights.shape[-1])
    least, left, part = torch.empty_like(wanted), torch.arange(len(weights), device=weights.device), weights
    while True:
        best = part.topk(count, dim=-1).values
        sums = best.cumsum(dim=-1)
        needed = (sums - best < wanted[left]).sum(dim=-1, keepdim=True).clamp_(min=1)  # 0 where weights are no numbers
        least[left] = best.gather(-1, needed - 1)
        left = left[sums[:, -1] < wanted[left, 0]]  # the rows for which these were too few
        if count == weights.shape[-1] or not len(left):
            return least
        part, count = weights[left], min(8 * count, weights.shape[-1])


def _in_rows(
    model: Any, prompts: Sequence[Ids], settings: Settings, stops: Sequence[int], numbers: Tensor, way: Way
) -> list[list[int]]:
    """Answer in rows: an answer that has ended makes place for the next prompt."""
    limit, answers = settings["max_new_tokens"], [list[int]() for _ in prompts]
    rows = Rows(model, prompts, limit, settings["batch_size"], way.token_bytes)
    # The longest first: a new prompt has to fit behind the columns of those under way. Equal ones stand together.
    waiting = deque(sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), list(prompts[i]))))
    while waiting or rows.rows:
        free = rows.size - len(rows.rows)
        if waiting and free * REFILL >= rows.size:
            rows.add([waiting.popleft() for _ in range(min(free, len(waiting)))])
        logits = rows.step()
        tokens = _checked(choose(logits, numbers[rows.places, rows.made], settings))
        for number in reversed(range(len(tokens))):  # the last row takes a dropped one's number: it has had its turn
            row, token = rows.rows[number], tokens[number]
            row.token, row.made = token, row.made + 1
            answers[row.place].append(token)
            if token in stops or row.made == limit:
                rows.drop(number)
    return answers


class _Choose(LogitsProcessor):
    """Leaves transformers' ``generate`` no choice but ours."""

    def __init__(self, numbers: Tensor, start: int, settings: Settings) -> None:
        self.numbers, self.start, self.settings = numbers, start, settings

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen = choose(scores.clone(), self.numbers[:, input_ids.shape[1] - self.start], self.settings)
        _checked(chosen)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen[:, None], 0.0)


def _by_generate(
    model: Any, prompts: Sequence[Ids], settings: Settings, stops: Sequence[int], numbers: Tensor, way: Way
) -> list[list[int]]:
    """Answer with transformers' ``generate``, for models whose cache only they know; only prompts of one length together.

    Where a long sequence changes a model's positions for what comes after it, one token before every batch undoes that.
    """
    inner, answers = causal(model), [list[int]() for _ in prompts]
    kept, config = inner.generation_config, GenerationConfig(max_new_tokens=settings["max_new_tokens"], do_sample=False)
    config.eos_token_id, config.pad_token_id = list(stops), stops[0]
    inner.generation_config = config
    device, size = numbers.device, settings["batch_size"]
    try:
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for width, alike in groupby(order, key=lambda i: len(prompts[i])):
            left = list(alike)
            for members in (left[i : i + size] for i in range(0, len(left), size)):
                ids = torch.tensor([list(prompts[i]) for i in members], device=device)
                if way.lasting:
                    model(input_ids=ids[:, :1], use_cache=False)
                found = model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    logits_processor=LogitsProcessorList([_Choose(numbers[members], width, settings)]),
                )
                for i, line in zip(members, found[:, width:].tolist(), strict=True):
                    end = next((place for place, token in enumerate(line) if token in stops), len(line) - 1)
                    answers[i] = line[: end + 1]
    finally:
        inner.generation_config = kept  # a policy that is saved keeps its own
    return answers
