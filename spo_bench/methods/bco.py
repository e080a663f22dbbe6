"""BCO: a binary classifier of single answers, against the mean reward of all answers seen so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from spo_bench.methods.base import Default, Hyperparameters, Method, Pairs, Running, log_ratio_rewards, log_sigmoid
from spo_bench.methods.moments import carried

if TYPE_CHECKING:
    from torch import Tensor


def count_rewards(pairs: Pairs, hyper: Hyperparameters, before: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the number of answers seen and the sum of their rewards beta * u, chosen and rejected alike, without gradient."""
    chosen, rejected = log_ratio_rewards(pairs, hyper)
    seen = chosen.numel() + rejected.numel()
    return {"count": before["count"] + seen, "sum": before["sum"] + (chosen.sum() + rejected.sum()).detach()}


def loss(pairs: Pairs, hyper: Hyperparameters) -> Tensor:
    """Return -log sigmoid(beta u_w - d) - log sigmoid(-(beta u_l - d)), shape (batch,).

    d = sum / count of ``pairs.running``, a constant to the gradient. Raises ValueError without ``pairs.running``.
    """
    chosen, rejected = log_ratio_rewards(pairs, hyper)
    running = carried(pairs)
    mean = running["sum"] / running["count"]
    return -log_sigmoid(chosen - mean) - log_sigmoid(mean - rejected)


METHOD = Method(
    name="bco",
    loss=loss,
    rewards=log_ratio_rewards,
    version=1,
    data="unpaired",
    needs_reference=True,
    batch_coupled=True,
    running=Running(start={"count": 0.0, "sum": 0.0}, update=count_rewards),
    reduction="sum",
    defaults={"beta": Default(0.01, "TRL's paper index", above=0)},
    at_start=lambda hyper: 2 * math.log(2),
    formula="-log sigmoid(beta u_w - d) - log sigmoid(-(beta u_l - d)), d = running mean of all beta u",
    reference="Jung et al. 2024, arXiv 2404.04656",
    traps=(
        "d is the mean over every answer of all steps so far, this one included, without gradient: "
        "the loss of a pair changes with its batch, the batch size and the order of the data",
        "the early answers stay in d for ever: a policy that has drifted is compared with a mean that lags behind",
        "the weights of underlying distribution matching, TRL's p / (1 - p) on the rejected answers, are not included",
        "TRL's `bco_pair` lost its running mean in 2026: the same name, d = 0",
        "both terms are summed, so the loss is about twice that of dpo",
    ),
)
