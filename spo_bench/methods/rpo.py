"""RPO: DPO with a likelihood term on the chosen answer, which counters overoptimization."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spo_bench.methods.base import Default, Hyperparameters, Method, Pairs, log_ratio_rewards, log_sigmoid

if TYPE_CHECKING:
    from torch import Tensor


def loss(pairs: Pairs, hyper: Hyperparameters) -> Tensor:
    """Return -log sigmoid(z) - eta * beta * s_w (``sum_beta``) or - eta * s_w/|y_w| (``token_mean``), shape (batch,)."""
    chosen, rejected = pairs.log_ratios()
    preference = -log_sigmoid(hyper["beta"] * (chosen - rejected))
    if hyper["reduction"] == "sum_beta":
        return preference - hyper["eta"] * hyper["beta"] * pairs.policy_chosen
    likelihood, _ = pairs.means()
    return preference - hyper["eta"] * likelihood


METHOD = Method(
    name="rpo",
    loss=loss,
    rewards=log_ratio_rewards,
    version=1,
    data="paired",
    needs_reference=True,
    reduction="sum",
    likelihood=True,
    defaults={
        "beta": Default(0.01, "the authors' code, sum_beta; 0.5 with token_mean", above=0),
        "eta": Default(0.005, "the authors' code, sum_beta; 0.2 with token_mean", at_least=0),
        "reduction": Default("sum_beta", "the paper's main text; token_mean in its appendix", choices=("sum_beta", "token_mean")),
    },
    formula="-log sigmoid(beta * (u_w - u_l)) + L, L = -eta * beta * s_w (sum_beta) or -eta * s_w/|y_w| (token_mean)",
    reference="Liu et al. 2024, arXiv 2405.16436",
    traps=(
        "one name, two losses: beta, eta and `reduction` belong together, set all three",
        "TRL's recipe (eta 0.005 with a mean over tokens, beta 0.01) is neither: "
        "its pull on a token equals that of sum_beta only for answers of 1 / beta tokens",
        "eta 0 is dpo",
    ),
)
