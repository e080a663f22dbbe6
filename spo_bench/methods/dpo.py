"""Direct preference optimization: logistic loss on the difference of log-ratios."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from spo_bench.methods.base import Default, Hyperparameters, Method, Pairs, log_ratio_rewards, log_sigmoid

if TYPE_CHECKING:
    from torch import Tensor


def loss(pairs: Pairs, hyper: Hyperparameters) -> Tensor:
    """Return -log sigmoid(beta * (u_w - u_l)), shape (batch,)."""
    chosen, rejected = pairs.log_ratios()
    return -log_sigmoid(hyper["beta"] * (chosen - rejected))


METHOD = Method(
    name="dpo",
    loss=loss,
    rewards=log_ratio_rewards,
    version=1,
    data="paired",
    needs_reference=True,
    reduction="sum",
    defaults={"beta": Default(0.1, "TRL's DPOConfig", above=0)},
    at_start=lambda hyper: math.log(2),
    formula="-log sigmoid(beta * (u_w - u_l))",
    reference="Rafailov et al. 2023, arXiv 2305.18290",
    traps=("the margin can grow while the chosen log-ratio falls: read both log-ratios, not the margin alone",),
)
