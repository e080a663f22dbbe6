"""SPPO with hard labels: each log-ratio is pulled to a target of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spo_bench.methods.base import Default, Hyperparameters, Method, Pairs, log_ratio_rewards

if TYPE_CHECKING:
    from torch import Tensor


def loss(pairs: Pairs, hyper: Hyperparameters) -> Tensor:
    """Return (u_w - 1/(2 beta))^2 + (u_l + 1/(2 beta))^2, shape (batch,)."""
    chosen, rejected = pairs.log_ratios()
    target = 1 / (2 * hyper["beta"])
    return (chosen - target) ** 2 + (rejected + target) ** 2


METHOD = Method(
    name="sppo_hard",
    loss=loss,
    rewards=log_ratio_rewards,
    version=1,
    data="unpaired",
    needs_reference=True,
    reduction="sum",
    defaults={"beta": Default(1e-3, "the authors' repository, there 1 / eta", above=0)},
    at_start=lambda hyper: 1 / (2 * hyper["beta"] ** 2),
    formula="(u_w - 1/(2 beta))^2 + (u_l + 1/(2 beta))^2",
    reference="Wu et al. 2024, arXiv 2405.00675",
    traps=(
        "TRL sums the two squares, as here; the authors' code averages them: half the loss, half the gradient",
        "at the default the targets are +-500 nats and the loss starts at 500000: the clip of the gradient's norm sets the step",
        "this is one round on fixed pairs; the paper samples and labels anew in each of three, by measured win probabilities",
    ),
)
