"""DPO with a margin that grows with the data's difference in quality."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spo_bench.methods.base import Default, Hyperparameters, Method, Pairs, log_ratio_rewards, log_sigmoid

if TYPE_CHECKING:
    from torch import Tensor


def loss(pairs: Pairs, hyper: Hyperparameters) -> Tensor:
    """Return -log sigmoid(beta * (u_w - u_l) - gamma * (score_w - score_l)), shape (batch,)."""
    chosen, rejected = pairs.log_ratios()
    better, worse = pairs.scores()
    return -log_sigmoid(hyper["beta"] * (chosen - rejected) - hyper["gamma"] * (better - worse))


METHOD = Method(
    name="margin_dpo",
    loss=loss,
    rewards=log_ratio_rewards,
    version=1,
    data="paired",
    needs_reference=True,
    needs_scores=True,
    reduction="sum",
    defaults={
        "beta": Default(0.1, "TRL's DPOConfig", above=0),
        "gamma": Default(1.0, "ours: one unit of score is one nat of margin", at_least=0),
    },
    formula="-log sigmoid(beta * (u_w - u_l) - m), m = gamma * (score_w - score_l), score = the data's quality of an answer",
    reference="Amini et al. 2024, arXiv 2402.10571 (ODPO); the margin given per pair as in turbo-alignment",
    traps=(
        "gamma has the unit nats per unit of score: a score from 1 to 10 wants another gamma than one from 0 to 1",
        "ODPO takes the logarithm of the score difference (from memory, not re-read); here the margin is linear in it",
        "gamma 0 is dpo",
    ),
)
