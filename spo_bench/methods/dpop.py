"""DPO-positive: DPO with a penalty where the chosen answer falls below the reference."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from spo_bench.methods.base import Default, Hyperparameters, Method, Pairs, log_ratio_rewards, log_sigmoid

if TYPE_CHECKING:
    from torch import Tensor


def loss(pairs: Pairs, hyper: Hyperparameters) -> Tensor:
    """Return -log sigmoid(beta * (u_w - u_l - lam * max(0, -u_w))), shape (batch,).

    At u_w = 0, where training starts, the penalty has a kink; its slope there is 0 (relu), so the first gradient is DPO's.
    """
    chosen, rejected = pairs.log_ratios()
    return -log_sigmoid(hyper["beta"] * (chosen - rejected - hyper["lam"] * (-chosen).relu()))


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
        "training starts on the kink u_w = 0, and below it the slope is lam + 1 times that of DPO: rounding noise decides, "
        "pair by pair, which side a first step sees",
        "tools' defaults of lam differ by a factor of 500",
        "lam 0 is dpo",
    ),
)
