"""APO-zero: the chosen answer is raised over the reference, the rejected one lowered under it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spo_bench.methods.base import Default, Hyperparameters, Method, Pairs, log_ratio_rewards

if TYPE_CHECKING:
    from torch import Tensor


def loss(pairs: Pairs, hyper: Hyperparameters) -> Tensor:
    """Return (1 - sigmoid(beta u_w)) + sigmoid(beta u_l), shape (batch,)."""
    chosen, rejected = log_ratio_rewards(pairs, hyper)
    return (-chosen).sigmoid() + rejected.sigmoid()


METHOD = Method(
    name="apo_zero",
    loss=loss,
    rewards=log_ratio_rewards,
    version=1,
    data="unpaired",
    needs_reference=True,
    reduction="sum",
    defaults={"beta": Default(0.1, "TRL's recipe for the paper", above=0)},
    at_start=lambda hyper: 1.0,
    formula="(1 - sigmoid(beta u_w)) + sigmoid(beta u_l)",
    reference="D'Oosterlinck et al. 2024, arXiv 2408.06266",
    traps=(
        "made for data whose chosen answers are better than the model's; for worse ones see apo_down",
        "the loss saturates at both ends: very wrong answers get no gradient",
    ),
)
