"""NCA on pairs: each answer is told from the reference's, with the chosen one counted as data."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from spo_bench.methods.base import Default, Hyperparameters, Method, Pairs, log_ratio_rewards, log_sigmoid

if TYPE_CHECKING:
    from torch import Tensor


def loss(pairs: Pairs, hyper: Hyperparameters) -> Tensor:
    """Return -log sigmoid(beta u_w) - [log sigmoid(-beta u_w) + log sigmoid(-beta u_l)] / 2, shape (batch,)."""
    chosen, rejected = log_ratio_rewards(pairs, hyper)
    return -log_sigmoid(chosen) - (log_sigmoid(-chosen) + log_sigmoid(-rejected)) / 2


METHOD = Method(
    name="nca",
    loss=loss,
    rewards=log_ratio_rewards,
    version=1,
    data="unpaired",
    needs_reference=True,
    reduction="sum",
    defaults={"beta": Default(0.01, "TRL's recipe for the paper, there called alpha", above=0)},
    at_start=lambda hyper: 2 * math.log(2),
    formula="-log sigmoid(beta u_w) - 1/2 * log sigmoid(-beta u_w) - 1/2 * log sigmoid(-beta u_l)",
    reference="Chen et al. 2024, arXiv 2402.05369",
    traps=(
        "u_w is pulled to log(2) / beta (69 nats at the default) and u_l always down: "
        "above that u_w falls too, and the margin may shrink",
        "beta is about a tenth of that of DPO",
    ),
)
