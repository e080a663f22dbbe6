"""Which policies stand behind two matched arms, by the hashes of their weights."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from .comparable import opponent
from .results import Cell


@dataclass(frozen=True)
class Policies:
    """The policies behind the pairs of two matched arms: what a hash says of their weights.

    Attributes:
        pairs: (of the first run, of the second) a pair of cells, None where it is not known. A metric that holds a policy's
            answers against another one's has both of them.
    """

    pairs: Sequence[tuple[Hashable | None, Hashable | None]] = ()

    @classmethod
    def of(cls, pairs: Sequence[tuple[Cell, Cell]], metric: str = "") -> Policies:
        """Return the policies of some pairs of cells, with their opponents where a metric has such."""
        return cls([(_policies(a, metric), _policies(b, metric)) for a, b in pairs])

    @property
    def counts(self) -> tuple[int | None, int | None]:
        """Return how many different ones each side has; None where these are not known.

        Fewer than seeds where one policy, such as that of SFT, only answers once a seed.
        """
        sides = [{pair[side] for pair in self.pairs} for side in (0, 1)]
        first, second = (len(some) if some and None not in some else None for some in sides)
        return first, second

    @property
    def same(self) -> bool:
        """Return whether every pair has the very same weights, bit for bit; False where that is not known."""
        return bool(self.pairs) and all(a is not None and a == b for a, b in self.pairs)

    @property
    def fixed(self) -> bool:
        """Return whether nothing can be said about retraining: the same policies on both sides, or one on each for all seeds."""
        return self.same or len(self.pairs) == 1 or self.counts == (1, 1)


def _policies(cell: Cell, metric: str) -> Hashable | None:
    """Return the hash of a cell's policy, and of the one a metric holds it against; None where one is not known."""
    own, against = cell.provenance.get("policy"), opponent(metric)
    if against in ("", "chosen"):
        return own
    theirs = (cell.provenance.get("opponents") or {}).get(against)
    return None if own is None or theirs is None else (own, theirs)
