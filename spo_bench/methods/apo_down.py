"""APO-down: the chosen answer is lowered, the rejected one held under it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spo_bench.methods.base import Default, Hyperparameters, Method, Pairs, log_ratio_rewards

if TYPE_CHECKING:
    from torch import Tensor


def loss(pairs: Pairs, hyper: Hyperparameters) -> Tensor:
    """Return sigmoid(beta u_w) + (1 - sigmoid(beta (u_w - u_l))), shape (batch,)."""
    chosen, rejected = log_ratio_rewards(pairs, hyper)
    return chosen.sigmoid() + (rejected - chosen).sigmoid()


METHOD = Method(
    name="apo_down",
    loss=loss,
    rewards=log_ratio_rewards,
    version=1,
    data="paired",
    needs_reference=True,
    reduction="sum",
    defaults={"beta": Default(0.1, "TRL's recipe for the paper", above=0)},
    at_start=lambda hyper: 1.0,
    formula="sigmoid(beta u_w) + (1 - sigmoid(beta (u_w - u_l)))",
    reference="D'Oosterlinck et al. 2024, arXiv 2408.06266",
    traps=(
        "made for data whose chosen answers are worse than the model's: the chosen log-ratio falls by design, "
        "and once the pair is well apart it falls faster than the rejected one: the margin shrinks",
        "where policy and reference agree the two slopes on u_w cancel: at first only the rejected answer moves",
        "the loss saturates at both ends: very wrong pairs get no gradient",
    ),
)
