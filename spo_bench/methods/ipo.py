"""Identity preference optimization: the difference of log-ratios is pulled to a finite target."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spo_bench.methods.base import Default, Hyperparameters, Method, Pairs

if TYPE_CHECKING:
    from torch import Tensor


def log_ratios(pairs: Pairs, hyper: Hyperparameters) -> tuple[Tensor, Tensor]:
    """Return the two log-ratios, per token (``mean``) or summed (``sum``), each of shape (batch,)."""
    chosen, rejected = pairs.log_ratios()
    if hyper["reduction"] == "sum":
        return chosen, rejected
    return chosen / pairs.chosen_length, rejected / pairs.rejected_length


def loss(pairs: Pairs, hyper: Hyperparameters) -> Tensor:
    """Return (difference of log-ratios - 1 / (2 beta))^2, shape (batch,)."""
    chosen, rejected = log_ratios(pairs, hyper)
    return (chosen - rejected - 1 / (2 * hyper["beta"])) ** 2


def rewards(pairs: Pairs, hyper: Hyperparameters) -> tuple[Tensor, Tensor]:
    """Return beta times the log-ratios as the loss sees them, each of shape (batch,)."""
    chosen, rejected = log_ratios(pairs, hyper)
    return hyper["beta"] * chosen, hyper["beta"] * rejected


METHOD = Method(
    name="ipo",
    loss=loss,
    rewards=rewards,
    version=1,
    data="paired",
    needs_reference=True,
    reduction="mean",
    defaults={
        "beta": Default(0.1, "TRL's DPOConfig; called tau in the paper", above=0),
        "reduction": Default("mean", "TRL and HALOs; the DPO authors' code uses sum", choices=("mean", "sum")),
    },
    at_start=lambda hyper: (1 / (2 * hyper["beta"])) ** 2,
    formula="(d - 1 / (2 beta))^2, d = u_w/|y_w| - u_l/|y_l| (mean) or u_w - u_l (sum)",
    reference="Azar et al. 2023, arXiv 2310.12036",
    traps=(
        "one name, two losses: libraries differ in `reduction`, and a beta tuned for one is meaningless for the other",
        "the target 1 / (2 beta) does not depend on the pair, so with `sum` long answers reach it with less change per token",
    ),
)
