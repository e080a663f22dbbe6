"""Conservative DPO: DPO on labels that are flipped with a known probability."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from spo_bench.methods.base import Default, Hyperparameters, Method, Pairs, log_ratio_rewards, log_sigmoid

if TYPE_CHECKING:
    from torch import Tensor


def loss(pairs: Pairs, hyper: Hyperparameters) -> Tensor:
    """Return -(1 - e) log sigmoid(z) - e log sigmoid(-z), z = beta * (u_w - u_l), e = label_smoothing, shape (batch,)."""
    chosen, rejected = pairs.log_ratios()
    z = hyper["beta"] * (chosen - rejected)
    flipped = hyper["label_smoothing"]
    return -(1 - flipped) * log_sigmoid(z) - flipped * log_sigmoid(-z)


METHOD = Method(
    name="cdpo",
    loss=loss,
    rewards=log_ratio_rewards,
    version=1,
    data="paired",
    needs_reference=True,
    reduction="sum",
    defaults={
        "beta": Default(0.1, "TRL's DPOConfig", above=0),
        "label_smoothing": Default(0.2, "HALOs", at_least=0, below=0.5),
    },
    at_start=lambda hyper: math.log(2),
    formula="-(1 - e) * log sigmoid(z) - e * log sigmoid(-z), z = beta * (u_w - u_l), e = label_smoothing",
    reference="Mitchell 2023, a note on DPO with noisy preferences (no arXiv id; read in the DPO authors' code)",
    traps=(
        "the minimum is at the finite z = log((1 - e) / e), 1.39 at e = 0.2: beyond it the margin is pushed back",
        "TRL since 0.29 ignores label_smoothing for its loss `sigmoid`: what is asked for as cDPO there is DPO",
        "label_smoothing 0 is dpo",
    ),
)
