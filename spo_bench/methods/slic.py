"""SLiC-HF: hinge loss on the log-probabilities themselves plus maximum likelihood, without a reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spo_bench.methods.base import Default, Hyperparameters, Method, Pairs

if TYPE_CHECKING:
    from torch import Tensor


def loss(pairs: Pairs, hyper: Hyperparameters) -> Tensor:
    """Return max(0, delta - (s_w - s_l)) + lam * (-s_w/|y_w|), shape (batch,)."""
    likelihood, _ = pairs.means()
    calibration = (hyper["delta"] - (pairs.policy_chosen - pairs.policy_rejected)).relu()
    return calibration - hyper["lam"] * likelihood


def rewards(pairs: Pairs, hyper: Hyperparameters) -> tuple[Tensor, Tensor]:
    """Return (s_w, s_l), which the loss compares as they are, each of shape (batch,)."""
    return pairs.policy_chosen, pairs.policy_rejected


METHOD = Method(
    name="slic",
    loss=loss,
    rewards=rewards,
    version=1,
    data="paired",
    needs_reference=False,
    reduction="sum",
    likelihood=True,
    defaults={
        "delta": Default(1.0, "HALOs and turbo-alignment", at_least=0),
        "lam": Default(0.1, "HALOs and turbo-alignment", at_least=0),
    },
    formula="max(0, delta - (s_w - s_l)) + lam * (-s_w/|y_w|)",
    reference="Zhao et al. 2023, arXiv 2305.10425",
    traps=(
        "the hinge compares sums over tokens: a shorter answer starts with the larger log-probability, "
        "so pairs with a short chosen answer may give no gradient at all",
        "the likelihood term is the chosen answer's mean over tokens; the paper takes it on an SFT target",
        "HALOs' code adds a likelihood per token to a hinge per pair, shapes that fit by accident only (read, not run)",
    ),
)
