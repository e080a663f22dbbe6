"""Ada-DPO: DPO with a temperature of its own for every pair."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

from spo_bench.methods.base import Default, Hyperparameters, Method, Pairs, log_ratio_rewards, log_sigmoid

if TYPE_CHECKING:
    from torch import Tensor


@functools.cache
def knee(rho0: float) -> float:
    """Return u > 0 with H(sigmoid(u)) = log 2 - rho0, H = entropy of a coin in nats; 0 for rho0 <= 0, inf for rho0 >= log 2.

    The loss of a pair is stationary in tau where |d| / tau = u. H falls from log 2 to 0 as u grows, so bisection finds it.
    """
    if rho0 <= 0:
        return 0.0
    if rho0 >= math.log(2):
        return math.inf
    low, high = 0.0, 64.0  # H(sigmoid(64)) is below the spacing of doubles near log 2
    for _ in range(100):
        middle = (low + high) / 2
        entropy = math.log1p(math.exp(-middle)) + middle / (1 + math.exp(middle))
        low, high = (middle, high) if entropy > math.log(2) - rho0 else (low, middle)
    return high  # never 0, unlike `low`


def temperature(gap: Tensor, hyper: Hyperparameters) -> Tensor:
    """Return the tau in [tau_min, tau_max] that minimises the loss at this d = ``gap``, without gradient, (batch,)."""
    u = knee(hyper["rho0"])
    if u == 0:  # the loss then falls with tau, at d = 0 too, where the quotient is undefined
        return gap.detach().new_full(gap.shape, hyper["tau_max"])
    return (gap.detach().abs() / u).clamp(hyper["tau_min"], hyper["tau_max"])


def loss(pairs: Pairs, hyper: Hyperparameters) -> Tensor:
    """Return -tau log sigmoid(d / tau) + (rho0 - log 2) tau, d = beta * (u_w - u_l), at the best tau, shape (batch,)."""
    chosen, rejected = pairs.log_ratios()
    gap = hyper["beta"] * (chosen - rejected)
    tau = temperature(gap, hyper)
    return -tau * log_sigmoid(gap / tau) + (hyper["rho0"] - math.log(2)) * tau


def check(hyper: Hyperparameters) -> None:
    """Raise ValueError for an empty range of tau."""
    if hyper["tau_min"] > hyper["tau_max"]:
        raise ValueError("tau_min is at most tau_max")


METHOD = Method(
    name="ada_dpo",
    loss=loss,
    rewards=log_ratio_rewards,
    version=1,
    data="paired",
    needs_reference=True,
    reduction="sum",
    defaults={
        "beta": Default(0.1, "the authors' README; their script has 0.01, the paper merges it into tau", above=0),
        "rho0": Default(0.1, "the paper's best on TL;DR; 0.05 on HH", at_least=0),
        "tau_min": Default(0.1, "the paper, there called tau_0", above=0),
        "tau_max": Default(4.0, "the paper's best on TL;DR; 5 on HH", above=0),
    },
    at_start=lambda hyper: hyper["rho0"] * hyper["tau_min"],
    check=check,
    formula="-tau * log sigmoid(d / tau) + (rho0 - log 2) * tau, d = beta * (u_w - u_l), "
    "tau = |d| / u* clipped to [tau_min, tau_max], H(sigmoid(u*)) = log 2 - rho0",
    reference="Hong et al. 2024, arXiv 2406.02764",
    traps=(
        "between the two limits of tau the loss is linear in d: confident pairs keep their slope, wrong ones as well",
        "the paper's undamped Newton steps for tau can cycle between the limits; here tau is the closed-form solution",
        "the value includes the term linear in tau and may be negative; the authors' code leaves it out of the logged loss",
        "tau_min = tau_max = 1 is dpo plus the constant rho0 - log 2",
    ),
)
