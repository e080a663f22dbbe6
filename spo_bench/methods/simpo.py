"""SimPO: logistic loss on per-token means with a margin, without a reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spo_bench.methods.base import Default, Hyperparameters, Method, Pairs, log_sigmoid, mean_rewards

if TYPE_CHECKING:
    from torch import Tensor


def loss(pairs: Pairs, hyper: Hyperparameters) -> Tensor:
    """Return -log sigmoid(beta * (s_w/|y_w| - s_l/|y_l|) - gamma), shape (batch,)."""
    chosen, rejected = mean_rewards(pairs, hyper)
    return -log_sigmoid(chosen - rejected - hyper["gamma"])


METHOD = Method(
    name="simpo",
    loss=loss,
    rewards=mean_rewards,
    version=1,
    data="paired",
    needs_reference=False,
    reduction="mean",
    defaults={
        "beta": Default(2.0, "the authors' repository", above=0),
        "gamma": Default(0.5, "the authors' repository: gamma / beta = 0.25", at_least=0),
    },
    formula="-log sigmoid(beta * (s_w/|y_w| - s_l/|y_l|) - gamma)",
    reference="Meng et al. 2024, arXiv 2405.14734",
    traps=(
        "gamma is the margin itself; other tools ask for the ratio gamma / beta",
        "beta is about 20 times that of DPO, because it multiplies a mean over tokens",
        "nothing holds the policy near the reference but the learning rate",
    ),
)
