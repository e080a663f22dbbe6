"""LRML (DiscoPOP): a blend of logistic and exponential loss, found by a search over code."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from spo_bench.methods.base import Default, Hyperparameters, Method, Pairs, log_ratio_rewards, log_sigmoid

if TYPE_CHECKING:
    from torch import Tensor


def loss(pairs: Pairs, hyper: Hyperparameters) -> Tensor:
    """Return (1 - m) * (-log sigmoid(z)) + m * exp(-z), m = sigmoid(z / tau), z = beta * (u_w - u_l), shape (batch,).

    For very wrong pairs m -> 0 and exp(-z) -> infinity; their product is formed as exp(log m - z), which is at most 1 where
    z < 0 and tau <= 1.
    """
    chosen, rejected = pairs.log_ratios()
    z = hyper["beta"] * (chosen - rejected)
    blend = z / hyper["tau"]
    return -(-blend).sigmoid() * log_sigmoid(z) + (log_sigmoid(blend) - z).exp()


METHOD = Method(
    name="lrml",
    loss=loss,
    rewards=log_ratio_rewards,
    version=1,
    data="paired",
    needs_reference=True,
    reduction="sum",
    defaults={
        "beta": Default(0.05, "the authors' repository", above=0),
        "tau": Default(0.05, "the authors' repository", above=0, at_most=1),
    },
    at_start=lambda hyper: (math.log(2) + 1) / 2,
    formula="(1 - m) * (-log sigmoid(z)) + m * exp(-z), m = sigmoid(z / tau), z = beta * (u_w - u_l)",
    reference="Lu et al. 2024, arXiv 2406.08414 (DiscoPOP)",
    traps=(
        "not monotone: at tau 0.05 it has a local minimum at z = -0.119 and a maximum at z = 0.072, "
        "and only z > 0.239 is better than that minimum",
        "where policy and reference agree the slope is (1 - log 2) / (4 tau) - 3/4, positive unless tau > 0.102: "
        "the first step lowers the margin",
        "the authors' older form blends by sigmoid(u_w - u_l), the same only at beta = tau",
        "above tau = 1 the loss of wrong pairs would grow exponentially, so it is refused",
    ),
)
