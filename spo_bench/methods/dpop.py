"""DPO-positive: DPO with a penalty where the chosen answer falls below the reference."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from spo_bench.methods.base import Default, Hyperparameters, Method, Pairs, log_ratio_rewards, log_sigmoid

if TYPE_CHECKING:
    from torch import Tensor


KINK = 1e-3  # nats; a log-ratio nearer to 0 than this is rounding noise


def penalty(chosen: Tensor) -> Tensor:
    """Return b = max(0, -u_w), rounded off to b^2 (2h - b) / h^2 where b < h = ``KINK``; shape (batch,).

    Value and slope are those of the formula at both ends, 0 and h.

    Training starts on the kink u_w = 0, where the sign of a rounding error would decide whether the first gradient is DPO's or
    lam times as large; so it is DPO's.
    """
    import torch

    below = (-chosen).relu()
    return torch.where(below < KINK, below.square() * (2 * KINK - below) / KINK**2, below)


def loss(pairs: Pairs, hyper: Hyperparameters) -> Tensor:
    """Return -log sigmoid(beta * (u_w - u_l - lam * max(0, -u_w))), shape (batch,), with the kink of ``penalty``."""
    chosen, rejected = pairs.log_ratios()
    return -log_sigmoid(hyper["beta"] * (chosen - rejected - hyper["lam"] * penalty(chosen)))


METHOD = Method(
    name="dpop",
    loss=loss,
    rewards=log_ratio_rewards,
    version=1,
    data="paired",
    needs_reference=True,
    reduction="sum",
    defaults={
        "beta": Default(0.3, "the paper, as others quote it", above=0),
        "lam": Default(50.0, "the paper, as others quote it; turbo-alignment has 0.1", at_least=0),
    },
    at_start=lambda hyper: math.log(2),
    formula="-log sigmoid(beta * (u_w - u_l - lam * max(0, r_w - s_w)))",
    reference="Pal et al. 2024, arXiv 2402.13228",
    traps=(
        "training starts on the kink u_w = 0, below which the slope is lam + 1 times that of DPO; within 0.001 nats of it the "
        "penalty is rounded off, so that fp32 rounding does not decide, pair by pair, which side a first step sees; bf16's does",
        "tools' defaults of lam differ by a factor of 500",
        "lam 0 is dpo",
    ),
)
