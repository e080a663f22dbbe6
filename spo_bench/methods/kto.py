"""KTO: each answer is judged alone, against the policy's drift from the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spo_bench.methods.base import Default, Hyperparameters, Method, Pairs, log_ratio_rewards

if TYPE_CHECKING:
    from torch import Tensor


def loss(pairs: Pairs, hyper: Hyperparameters) -> Tensor:
    """Return the mean of the desirable term of y_w and the undesirable term of y_l, shape (batch,).

    z0 = max(0, mean of ``pairs.kl``), a constant to the gradient. Raises ValueError without ``pairs.kl``.
    """
    if pairs.kl is None:
        raise ValueError("kto needs the log-ratios of mismatched pairs (Pairs.kl), none were given")
    beta = hyper["beta"]
    chosen, rejected = pairs.log_ratios()
    anchor = pairs.kl.detach().mean().clamp(min=0)
    # 1 - sigmoid(x) is written sigmoid(-x): it keeps its digits where sigmoid(x) rounds to 1.
    desirable = hyper["lam_desirable"] * (-beta * (chosen - anchor)).sigmoid()
    undesirable = hyper["lam_undesirable"] * (-beta * (anchor - rejected)).sigmoid()
    return (desirable + undesirable) / 2


METHOD = Method(
    name="kto",
    loss=loss,
    rewards=log_ratio_rewards,
    version=1,
    data="unpaired",
    needs_reference=True,
    needs_kl=True,
    batch_coupled=True,
    reduction="sum",
    defaults={
        "beta": Default(0.1, "TRL's KTOConfig and HALOs", above=0),
        "lam_desirable": Default(1.0, "HALOs' lambda_D", above=0),
        "lam_undesirable": Default(1.0, "HALOs' lambda_U", above=0),
    },
    at_start=lambda hyper: (hyper["lam_desirable"] + hyper["lam_undesirable"]) / 4,
    formula="[lam_desirable * (1 - sigmoid(beta (u_w - z0))) + lam_undesirable * (1 - sigmoid(beta (z0 - u_l)))] / 2",
    reference="Ethayarajh et al. 2024, arXiv 2402.01306",
    traps=(
        "z0 is the mean log-ratio of a prompt with another prompt's answer, clamped at 0, without gradient: these answers ride "
        "in the same forward pass, and the loss depends on the batch",
        "a pair's loss is the mean of its two terms, as averaging over answers gives; bco, nca and apo_zero sum theirs",
        "losses called `kto_pair` elsewhere take z0 from the other half of the pair: another estimator",
        "the loss saturates: very wrong answers get no gradient",
    ),
)
