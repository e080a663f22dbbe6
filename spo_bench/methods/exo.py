"""EXO on pairs: the reverse KL divergence from smoothed labels to the policy's preference."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from spo_bench.methods.base import Default, Hyperparameters, Method, Pairs, log_ratio_rewards, log_sigmoid

if TYPE_CHECKING:
    from torch import Tensor


def loss(pairs: Pairs, hyper: Hyperparameters) -> Tensor:
    """Return KL((q, 1 - q) || (1 - e, e)), q = sigmoid(beta * (u_w - u_l)), e = label_smoothing, shape (batch,).

    q log q is formed from log sigmoid, which stays finite where q rounds to 0.
    """
    chosen, rejected = pairs.log_ratios()
    z = hyper["beta"] * (chosen - rejected)
    flipped = hyper["label_smoothing"]
    agree = z.sigmoid() * (log_sigmoid(z) - math.log1p(-flipped))
    return agree + (-z).sigmoid() * (log_sigmoid(-z) - math.log(flipped))


def at_start(hyper: Hyperparameters) -> float:
    """Return the loss at q = 1/2: -log 2 - log(e (1 - e)) / 2."""
    flipped = hyper["label_smoothing"]
    return -math.log(2) - (math.log(flipped) + math.log1p(-flipped)) / 2


METHOD = Method(
    name="exo",
    loss=loss,
    rewards=log_ratio_rewards,
    version=1,
    data="paired",
    needs_reference=True,
    reduction="sum",
    defaults={
        "beta": Default(0.5, "the authors' repository (TL;DR and HH), there called beta_pi", above=0),
        "label_smoothing": Default(1e-3, "older TRL; the authors' repository puts -10 for log e", above=0, below=0.5),
    },
    at_start=at_start,
    formula="q * log(q / (1 - e)) + (1 - q) * log((1 - q) / e), q = sigmoid(beta * (u_w - u_l)), e = label_smoothing",
    reference="Ji et al. 2024, arXiv 2402.00856",
    traps=(
        "the minimum, 0, is at the finite z = log((1 - e) / e), 6.91 at e = 1e-3: beyond it the margin is pushed back",
        "the slope in z is q (1 - q) (z - log((1 - e) / e)): very wrong pairs get no gradient",
        "TRL's `exo_pair` refuses label_smoothing 0, its own default and what its recipe for the paper uses; "
        "that recipe also gives the paper's beta_r (0.1) as beta",
    ),
)
