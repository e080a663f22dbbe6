"""Statistics that losses carry from step to step: reading them, and the moving mean and spread of a gap between two answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from spo_bench.methods.base import Hyperparameters, Pairs, Running

if TYPE_CHECKING:
    from torch import Tensor


def carried(pairs: Pairs) -> Mapping[str, Tensor]:
    """Return the running statistics of these pairs; raises ValueError if there are none."""
    if pairs.running is None:
        raise ValueError("this loss needs its running statistics (Pairs.running), none were given")
    return pairs.running


def moving_moments(gap: Callable[[Pairs], Tensor]) -> Running:
    """Return exponential moving averages, from 0, of a gap's batch mean (``mean``) and batch spread (``std``).

    Each is momentum * before + (1 - momentum) * of this batch, the batch counted before the loss reads them, without gradient
    and without a correction for the start at 0. The spread is a sample's, as in the authors' code; of a batch of one it is 0.

    Args:
        gap: pairs -> (batch,).
    """

    def update(pairs: Pairs, hyper: Hyperparameters, before: Mapping[str, Tensor]) -> dict[str, Tensor]:
        values, momentum = gap(pairs).detach(), hyper["momentum"]
        now = {"mean": values.mean(), "std": values.std() if len(values) > 1 else values.new_zeros(())}
        return {name: momentum * before[name] + (1 - momentum) * value for name, value in now.items()}

    return Running(start={"mean": 0.0, "std": 0.0}, update=update)
