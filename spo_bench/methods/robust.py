"""Robust DPO: an unbiased estimate of the DPO loss from labels that are flipped with a known probability."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from spo_bench.methods.base import Default, Hyperparameters, Method, Pairs, log_ratio_rewards, log_sigmoid

if TYPE_CHECKING:
    from torch import Tensor


def loss(pairs: Pairs, hyper: Hyperparameters) -> Tensor:
    """Return [-(1 - e) log sigmoid(z) + e log sigmoid(-z)] / (1 - 2e), e = label_smoothing, shape (batch,)."""
    chosen, rejected = pairs.log_ratios()
    z = hyper["beta"] * (chosen - rejected)
    flipped = hyper["label_smoothing"]
    return (-(1 - flipped) * log_sigmoid(z) + flipped * log_sigmoid(-z)) / (1 - 2 * flipped)


METHOD = Method(
    name="robust",
    loss=loss,
    rewards=log_ratio_rewards,
    version=1,
    data="paired",
    needs_reference=True,
    reduction="sum",
    defaults={
        "beta": Default(0.1, "TRL's DPOConfig", above=0),
        "label_smoothing": Default(0.1, "TRL's recipe for the paper", at_least=0, below=0.5),
    },
    at_start=lambda hyper: math.log(2),
    formula="[-(1 - e) * log sigmoid(z) + e * log sigmoid(-z)] / (1 - 2e), z = beta * (u_w - u_l), e = label_smoothing",
    reference="Chowdhury et al. 2024, arXiv 2403.00409",
    traps=(
        "unbounded below: for large z the loss falls like -z * e / (1 - 2e), so negative losses are normal and the margin "
        "is never large enough",
        "the factor 1 / (1 - 2e) grows without bound towards e = 0.5, and the gradient with it",
        "label_smoothing 0 is dpo",
    ),
)
