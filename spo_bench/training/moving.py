"""A reference that follows the policy (TR-DPO): a second set of the trained weights, run in the policy's place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


class MovingReference:
    """The trained weights as the reference has them; what is frozen, both share.

    Args:
        weights: the trained weights, which are the reference's at the start.
        mixup: share of the policy in every update.
        every: optimizer steps between updates.
    """

    def __init__(self, weights: Sequence[torch.nn.Parameter], mixup: float, every: int) -> None:
        self.weights, self.mixup, self.every = weights, mixup, every
        self.values = [weight.detach().clone() for weight in weights]
        self.moved = False

    @torch.no_grad()
    def follow(self, steps: int) -> None:
        """After that many steps: reference <- mixup * policy + (1 - mixup) * reference, where an update is due."""
        if steps % self.every == 0:
            self.moved = True
            for value, weight in zip(self.values, self.weights, strict=True):
                value.lerp_(weight.detach(), self.mixup)

    @contextmanager
    def in_place(self, model: Any) -> Iterator[None]:
        """Let the model be the reference, without dropout, for the time of the context."""
        training = model.training
        self._swap()
        model.eval()
        try:
            yield
        finally:
            self._swap()
            model.train(training)

    def _swap(self) -> None:
        for place, weight in enumerate(self.weights):
            if hasattr(weight, "to_local"):  # what gathers the ranks' parts knows the memory of this one's
                before = weight.detach().clone()
                weight.detach().copy_(self.values[place])
                self.values[place].copy_(before)
            else:
                weight.data, self.values[place] = self.values[place], weight.data
