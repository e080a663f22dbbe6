"""CPO: logistic loss on the log-probabilities themselves plus maximum likelihood, without a reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spo_bench.methods.base import Default, Hyperparameters, Method, Pairs, log_sigmoid

if TYPE_CHECKING:
    from torch import Tensor


def loss(pairs: Pairs, hyper: Hyperparameters) -> Tensor:
    """Return -log sigmoid(beta * (s_w - s_l)) + alpha * (-s_w/|y_w|), shape (batch,)."""
    likelihood, _ = pairs.means()
    return -log_sigmoid(hyper["beta"] * (pairs.policy_chosen - pairs.policy_rejected)) - hyper["alpha"] * likelihood


def rewards(pairs: Pairs, hyper: Hyperparameters) -> tuple[Tensor, Tensor]:
    """Return beta times the summed log-probabilities, each of shape (batch,)."""
    return hyper["beta"] * pairs.policy_chosen, hyper["beta"] * pairs.policy_rejected


METHOD = Method(
    name="cpo",
    loss=loss,
    rewards=rewards,
    version=1,
    data="paired",
    needs_reference=False,
    reduction="sum",
    likelihood=True,
    defaults={
        "beta": Default(0.1, "TRL's CPOConfig", above=0),
        "alpha": Default(1.0, "TRL's CPOConfig, there called cpo_alpha", at_least=0),
    },
    formula="-log sigmoid(beta * (s_w - s_l)) + alpha * (-s_w/|y_w|)",
    reference="Xu et al. 2024, arXiv 2401.08417",
    traps=(
        "without a reference the sums are compared as they are: beta * (s_w - s_l) starts large and favours the shorter answer",
        "the two terms have different scales: the logistic one is over a sum, the likelihood over a mean of tokens",
        "TRL's CPOConfig with loss_type `simpo` keeps this likelihood term and other defaults: it is not SimPO",
    ),
)
