"""Log-probabilities without gradient: the reference pass, held-out pairs, samples under policy and reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spo_bench.models.numerics import Numerics
from spo_bench.ranks import ALONE, Ranks
from spo_bench.training.forward import hidden_states, token_log_probs
from spo_bench.training.trie import Ints, Response, build_row, pack, split_by_budget

Floats = NDArray[np.float32]


@torch.no_grad()
def log_probs(
    model: Any,
    items: Sequence[tuple[Ints, Sequence[Ints]]],
    numerics: Numerics,
    micro_tokens: int,
    share: bool = True,
    done: list[Floats] | None = None,
    between: Callable[[], None] = lambda: None,
    ranks: Ranks = ALONE,
) -> list[list[Floats]]:
    """Return per-token log-probabilities, fp32, nats: for every (prompt, completions) one array a completion.

    Args:
        model: a causal language model.
        items: (prompt, completions), as token ids.
        numerics: device and compute type.
        micro_tokens: budget of a forward pass.
        share: whether rows are run as tries.
        done: the values of the forward passes so far, to which each is added; those of a call that was stopped go on from there.
        between: called after every forward pass, of which every rank makes one at a time.
        ranks: who shares the passes; each holds the whole model.
    """
    done = [] if done is None else done
    model.eval()
    rows = [build_row(prompt, [Response(tokens) for tokens in completions], share) for prompt, completions in items]
    # Rows of like size share lines without waste; the order of the results is that of the items.
    order = sorted(range(len(rows)), key=lambda i: rows[i].size)
    results: list[list[Floats]] = [[] for _ in rows]
    groups = [[order[place] for place in group] for group in split_by_budget([rows[i].size for i in order], micro_tokens)]

    def values(members: Sequence[int]) -> Floats:
        batch = pack([rows[i] for i in members], share).to(torch.device(numerics.device))
        with numerics.autocast():
            found: Floats = token_log_probs(model, hidden_states(model, batch)[0], batch).float().cpu().numpy()
        return found

    for some in ranks.spread(groups[len(done) :], values):
        done += some
        between()
    for members, known in zip(groups, done, strict=True):
        lengths = [len(path) for i in members for path in rows[i].paths]
        arrays = iter(np.split(known, np.cumsum(lengths)[:-1]))
        for i in members:
            results[i] = [next(arrays) for _ in rows[i].paths]
    return results
