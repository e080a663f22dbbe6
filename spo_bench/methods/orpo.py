"""ORPO: maximum likelihood of the chosen answer plus a log-odds-ratio term, without a reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spo_bench.methods.base import Default, Hyperparameters, Method, Pairs, log_sigmoid

if TYPE_CHECKING:
    from torch import Tensor


def log_odds(mean: Tensor) -> Tensor:
    """Return log(p / (1 - p)) for log p = ``mean`` <= 0, any shape.

    log(1 - p) = log(-expm1(mean)) keeps its digits near p = 1, where 1 - exp(mean) would cancel. A policy that is certain
    to rounding has mean = 0 and infinite odds: the mean is held below 0 by the dtype's epsilon, which keeps values finite.
    """
    from torch import finfo

    mean = mean.clamp(max=-finfo(mean.dtype).eps)
    return mean - (-mean.expm1()).log()


def loss(pairs: Pairs, hyper: Hyperparameters) -> Tensor:
    """Return -s_w/|y_w| - lam * log sigmoid(log-odds of y_w - log-odds of y_l), shape (batch,)."""
    chosen, rejected = pairs.means()
    return -chosen - hyper["lam"] * log_sigmoid(log_odds(chosen) - log_odds(rejected))


def rewards(pairs: Pairs, hyper: Hyperparameters) -> tuple[Tensor, Tensor]:
    """Return lam times the log-odds the loss compares, each of shape (batch,)."""
    chosen, rejected = pairs.means()
    return hyper["lam"] * log_odds(chosen), hyper["lam"] * log_odds(rejected)


METHOD = Method(
    name="orpo",
    loss=loss,
    rewards=rewards,
    version=1,
    data="paired",
    needs_reference=False,
    reduction="mean",
    likelihood=True,
    defaults={"lam": Default(0.1, "TRL's ORPOConfig, there called beta", above=0)},
    formula="-s_w/|y_w| - lam * log sigmoid(o_w - o_l), o = log(p / (1 - p)), p = exp(s/|y|)",
    reference="Hong et al. 2024, arXiv 2403.07691",
    traps=(
        "the likelihood term here is over the completion; the authors' code includes the prompt",
        "made to replace SFT: the likelihood term dominates, so it wants a larger learning rate than DPO",
        "near p = 1 the odds explode: 1 - exp(s/|y|) must not be computed by subtraction",
    ),
)
