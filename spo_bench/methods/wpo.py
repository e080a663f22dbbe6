"""WPO: DPO with each pair weighted by how likely the policy itself would write its answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spo_bench.methods.base import Default, Hyperparameters, Method, Pairs, log_ratio_rewards, log_sigmoid

if TYPE_CHECKING:
    from torch import Tensor


def weights(pairs: Pairs) -> Tensor:
    """Return min(1, w_w * w_l), w = exp(mean over tokens of log p(y_t) - log sum_v p(v)^2), shape (batch,), without gradient.

    Raises ValueError without collisions.
    """
    if pairs.chosen_collision is None or pairs.rejected_collision is None:
        raise ValueError("wpo needs the collisions of both answers (Pairs.chosen_collision, rejected_collision), none were given")
    chosen = (pairs.policy_chosen - pairs.chosen_collision) / pairs.chosen_length
    rejected = (pairs.policy_rejected - pairs.rejected_collision) / pairs.rejected_length
    # Clipped before exp, and the product taken as a sum: one weight may overflow where the other vanishes.
    return (chosen + rejected).detach().clamp(max=0).exp()


def loss(pairs: Pairs, hyper: Hyperparameters) -> Tensor:
    """Return -min(1, w_w * w_l) * log sigmoid(beta * (u_w - u_l)), shape (batch,)."""
    chosen, rejected = pairs.log_ratios()
    return -weights(pairs) * log_sigmoid(hyper["beta"] * (chosen - rejected))


METHOD = Method(
    name="wpo",
    loss=loss,
    rewards=log_ratio_rewards,
    version=1,
    data="paired",
    needs_reference=True,
    needs_collision=True,
    reduction="sum",
    defaults={"beta": Default(0.01, "the authors' repository", above=0)},
    formula="-min(1, w_w w_l) * log sigmoid(beta (u_w - u_l)), w = exp(mean over tokens of log p(y_t) - log sum_v p(v)^2)",
    reference="Zhou et al. 2024, arXiv 2406.11827",
    traps=(
        "the product of weights is clipped at 1, as in the authors' repository; TRL dropped the clip in 2026",
        "answers the policy would not write count little: on off-policy data the loss and its gradient are small, "
        "and a learning rate tuned for dpo is too low",
        "the loss can fall because the weights fall: watch the margin",
        "weights need all probabilities of every position, not the token's alone",
    ),
)
