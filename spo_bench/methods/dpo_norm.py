"""Length-normalised DPO: DPO on log-ratios per token."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from spo_bench.methods.base import Default, Hyperparameters, Method, Pairs, log_sigmoid

if TYPE_CHECKING:
    from torch import Tensor


def rewards(pairs: Pairs, hyper: Hyperparameters) -> tuple[Tensor, Tensor]:
    """Return beta times the log-ratios per token, each of shape (batch,)."""
    chosen, rejected = pairs.log_ratios()
    return hyper["beta"] * (chosen / pairs.chosen_length), hyper["beta"] * (rejected / pairs.rejected_length)


def loss(pairs: Pairs, hyper: Hyperparameters) -> Tensor:
    """Return -log sigmoid(beta * (u_w/|y_w| - u_l/|y_l|)), shape (batch,)."""
    chosen, rejected = rewards(pairs, hyper)
    return -log_sigmoid(chosen - rejected)


METHOD = Method(
    name="dpo_norm",
    loss=loss,
    rewards=rewards,
    version=1,
    data="paired",
    needs_reference=True,
    reduction="mean",
    defaults={"beta": Default(5.0, "the authors' command for Tulu 3 (open-instruct)", above=0)},
    at_start=lambda hyper: math.log(2),
    formula="-log sigmoid(beta * (u_w/|y_w| - u_l/|y_l|))",
    reference="Lambert et al. 2024, arXiv 2411.15124 (Tulu 3)",
    traps=(
        "beta is about 50 times that of DPO, because it multiplies a mean over tokens; TRL's `sigmoid_norm` keeps DPO's 0.1",
        "one token of a short answer weighs more than one of a long answer",
    ),
)
