"""The processes that train one policy together, and how a step's rows are dealt to them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from torch import Tensor
from torch.nn import Parameter

from spo_bench.training.trie import fill_budget

T = TypeVar("T")


class Ranks:
    """One process that shares with nobody.

    Attributes:
        rank: of this process, from 0.
        count: of the processes.
    """

    rank, count = 0, 1

    def gather(self, value: T) -> list[T]:
        """Return every rank's value in their order, on every rank; all have to call."""
        return [value]

    def broadcast(self, value: T) -> T:
        """Return the first rank's value on every rank; all have to call."""
        return value

    def total(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return the sums over the ranks by name, added in the order of the ranks; a name that one lacks counts as 0 there."""
        found: dict[str, float] = {}
        for one in self.gather(dict(values)):
            for name, value in one.items():
                found[name] = found[name] + value if name in found else value
        return found

    def in_turn(self) -> Iterator[None]:
        """Yield once, when it is this rank's turn; return when every rank has had its own."""
        for turn in range(self.count):
            if turn == self.rank:
                yield
            self.gather(None)

    def joined(self, rows: Tensor) -> Tensor:
        """Return all ranks' rows, (rows, …), in the order of the ranks, on this rank's device; all have to call."""
        return rows

    def add_gradients(self, weights: Iterable[Parameter]) -> None:
        """Give weights that every rank holds whole the sum of all ranks' gradients."""


ALONE = Ranks()


def whole(value: Tensor) -> Tensor:
    """Return a tensor of which ranks hold parts as one; all have to call."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def deal(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Deal 0..len(sizes)-1 to ranks, so that each has about as many tokens: the largest first, to whoever has least.

    Returns:
        Ascending places for every rank; all of them for one.
    """
    hands: list[list[int]] = [[] for _ in range(count)]
    held = [0] * count
    for place in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        least = min(range(count), key=held.__getitem__)
        hands[least].append(place)
        held[least] += sizes[place]
    return [sorted(hand) for hand in hands]


def passes(sizes: Sequence[int], budget: int, ranks: Ranks) -> tuple[list[list[int]], int]:
    """Return the places of each forward pass of this rank, and how many more passes another rank makes.

    Where weights are sharded every rank takes part in every pass, so whoever has fewer makes idle ones.

    Args:
        sizes: tokens of the step's rows.
        budget: most tokens of a pass; a larger row stands alone.
        ranks: who shares the step.
    """
    every = [
        [[hand[i] for i in group] for group in fill_budget([sizes[place] for place in hand], budget)]
        for hand in deal(sizes, ranks.count)
    ]
    return every[ranks.rank], max(map(len, every)) - len(every[ranks.rank])
