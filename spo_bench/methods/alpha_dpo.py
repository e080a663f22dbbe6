"""alpha-DPO: SimPO with a margin of each pair's own, larger where the policy has already parted from the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spo_bench.methods.base import Default, Hyperparameters, Method, Pairs, log_sigmoid, mean_rewards
from spo_bench.methods.moments import carried, moving_moments

if TYPE_CHECKING:
    from torch import Tensor

STD_FLOOR = 1e-4  # nats a token: above the rounding of a mean of fp32 log-probabilities, below what one step moves


def gap(pairs: Pairs) -> Tensor:
    """Return M = u_w/|y_w| - u_l/|y_l|, shape (batch,)."""
    chosen, rejected = pairs.log_ratios()
    return chosen / pairs.chosen_length - rejected / pairs.rejected_length


def standardised(gaps: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return (gaps - mean) / std without gradient, and 0 where the spread is below ``STD_FLOOR``; shape (batch,)."""
    import torch

    return torch.where(std < STD_FLOOR, 0.0, (gaps.detach() - mean) / std.clamp(min=STD_FLOOR))


def loss(pairs: Pairs, hyper: Hyperparameters) -> Tensor:
    """Return -log sigmoid(beta * (s_w/|y_w| - s_l/|y_l|) - gamma - beta * alpha * zscore(M)), shape (batch,).

    The z-score is by the running mean and spread of M, a constant to the gradient. Raises ValueError without ``pairs.running``.
    """
    chosen, rejected = mean_rewards(pairs, hyper)
    running = carried(pairs)
    score = standardised(gap(pairs), running["mean"], running["std"])
    return -log_sigmoid(chosen - rejected - hyper["gamma"] - hyper["beta"] * hyper["alpha"] * score)


METHOD = Method(
    name="alpha_dpo",
    loss=loss,
    rewards=mean_rewards,
    version=1,
    data="paired",
    needs_reference=True,
    batch_coupled=True,
    running=moving_moments(gap),
    reduction="mean",
    defaults={
        "beta": Default(2.5, "the authors' repository: 2.5 to 10 by model", above=0),
        "gamma": Default(0.75, "the authors' repository: gamma / beta 0.15 to 0.6 by model; here 0.3", at_least=0),
        "alpha": Default(0.05, "the authors' repository: 0.05 or 0.2 by model", at_least=0),
        "momentum": Default(0.9, "the authors' repository", at_least=0, below=1),
    },
    formula="-log sigmoid(beta (s_w/|y_w| - s_l/|y_l|) - gamma - beta alpha zscore(M)), M = u_w/|y_w| - u_l/|y_l|",
    reference="Wu et al. 2024, arXiv 2410.10148",
    traps=(
        "gamma is the margin itself, as in simpo; the authors' code asks for the ratio gamma / beta",
        "changes with the batch size: the z-score needs a batch with spread; a batch of 1 is simpo",
        "a running spread (a tenth of the batch's in the first step) below 0.0001 nats a token gives a z-score of 0: where "
        "policy and reference agree, M is rounding noise, and dividing it by its own spread would make it a margin. Lower "
        "precision has more noise than that",
        "the running mean and spread start at 0 without correction, so the first steps' z-scores are about 10 times too large",
        "the reference sets the margin only: nothing pulls the policy to it",
    ),
)
