"""The processes that do one stage together. No heavy import: planning uses this."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

S = TypeVar("S")
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

    def spread(self, items: Sequence[S], do: Callable[[S], T]) -> Iterator[list[T]]:
        """Yield what is done of some items, in their order and on every rank, each of which does one at a time; all have to call.

        Args:
            items: the same on every rank.
            do: what is done of one; it takes no part in anything that ranks do together.
        """
        for start in range(0, len(items), self.count):
            some = items[start : start + self.count]
            own = [do(some[self.rank])] if self.rank < len(some) else []
            yield [value for part in self.gather(own) for value in part]

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
