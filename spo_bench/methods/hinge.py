"""Hinge loss on the difference of log-ratios."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spo_bench.methods.base import Default, Hyperparameters, Method, Pairs, log_ratio_rewards

if TYPE_CHECKING:
    from torch import Tensor


def loss(pairs: Pairs, hyper: Hyperparameters) -> Tensor:
    """Return max(0, 1 - beta * (u_w - u_l)), shape (batch,)."""
    chosen, rejected = pairs.log_ratios()
    return (1 - hyper["beta"] * (chosen - rejected)).relu()


METHOD = Method(
    name="hinge",
    loss=loss,
    rewards=log_ratio_rewards,
    version=1,
    data="paired",
    needs_reference=True,
    reduction="sum",
    defaults={"beta": Default(0.05, "TRL's recipe for the paper: gamma = 0.05", above=0)},
    at_start=lambda hyper: 1.0,
    formula="max(0, 1 - beta * (u_w - u_l))",
    reference="Liu et al. 2023, arXiv 2309.06657 (hinge-norm)",
    traps=(
        "a pair whose margin has reached 1 / beta nats (20 at the default) gives no gradient: count the pairs that still learn",
        "this is the loss alone: the paper also draws its pairs by rejection sampling",
        "TRL names one loss `hinge` and gives it as SLiC too; slic here has no reference and a likelihood term",
    ),
)
