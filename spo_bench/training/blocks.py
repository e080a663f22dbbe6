"""Which nodes of a pack attend to which, as blocks: some queries of one row with just the keys that any of them sees.

A row's nodes stand in depth-first order, and "k is an ancestor of q, or q itself" is ``k <= q < end[k]``. So a query block
[i, j) sees the keys k < j with end[k] > i: the prompt and the branch it is on, not the branches before it. The cost of attention
is then near-linear in the number of rows and of branches. Blocks of like size are computed together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]

QUERIES = 64  # of a block: few enough to skip what they do not see, enough for efficient matrix products
WASTE = 1.3  # blocks are put together while padding them to one size adds less than this factor
SCORES = 1 << 17  # and while one head's scores of them stay below this number, so that they stay in the cache


@dataclass(frozen=True)
class Block:
    """Blocks of like size, padded to one.

    Attributes:
        queries: node of every query, shape (blocks, queries); padding repeats node 0.
        keys: node of every key, shape (blocks, keys); padding repeats node 0.
        bias: 0 where a query sees a key, else -inf, fp32, shape (blocks, queries, keys); a padded query sees the first key.
        present: which queries are no padding, shape (blocks, queries).
    """

    queries: Tensor
    keys: Tensor
    bias: Tensor
    present: Tensor

    def to(self, device: torch.device) -> Block:
        """Return it on another device."""
        return Block(*(moved(part, device) for part in (self.queries, self.keys, self.bias, self.present)))


@dataclass(frozen=True)
class Sight:
    """Who sees whom in a pack.

    Attributes:
        rows: of every row, one past each node's last descendant within the row, shape (nodes of the row,).
        positions: depth of every node, shape (nodes,).
        ends: one past a node's last descendant, shape (nodes,).
        windowed: window -> its blocks and places, made when first asked for: FlexAttention needs none.
        masks: window -> FlexAttention's block mask, likewise.
    """

    rows: tuple[Ints, ...]
    positions: Tensor
    ends: Tensor
    windowed: dict[int | None, tuple[tuple[Block, ...], Tensor]] = field(default_factory=dict)
    masks: dict[int | None, Any] = field(default_factory=dict)

    def to(self, device: torch.device) -> Sight:
        """Return it on another device."""
        return Sight(self.rows, moved(self.positions, device), moved(self.ends, device))

    def within(self, window: int | None) -> tuple[tuple[Block, ...], Tensor]:
        """Return the blocks where a query sees only the last ``window`` tokens of its path, itself included; None: all.

        Returns:
            Blocks, where every node is a query of exactly one; and for every node its place among the queries of all blocks,
            one after the other, shape (nodes,).
        """
        if window not in self.windowed:
            blocks, places = _blocks(self.rows, self.positions.cpu().numpy(), window)
            device = self.positions.device
            self.windowed[window] = tuple(block.to(device) for block in blocks), moved(places, device)
        return self.windowed[window]


def moved(part: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on another device; on the way to a GPU nothing waits for it."""
    return part.pin_memory().to(device, non_blocking=True) if device.type == "cuda" and not part.is_cuda else part.to(device)


def sight(ends: Sequence[Ints], positions: Ints) -> Sight:
    """Return who sees whom in rows that stand one after the other.

    Args:
        ends: of every row, one past each node's last descendant within the row, shape (nodes of the row,).
        positions: of all nodes, shape (nodes,).
    """
    whole = np.concatenate([row + start for row, start in zip(ends, np.cumsum([0, *map(len, ends[:-1])]), strict=True)])
    return Sight(tuple(ends), torch.from_numpy(positions), torch.from_numpy(whole))


def _blocks(rows: Sequence[Ints], positions: Ints, window: int | None) -> tuple[tuple[Block, ...], Tensor]:
    """Return the blocks of a window and every node's place among their queries."""
    cut: list[tuple[Ints, Ints, NDArray[np.bool_]]] = []
    offset = 0
    for row in rows:
        depth = positions[offset : offset + len(row)]
        for begin in range(0, len(row), QUERIES):
            queries = np.arange(begin, min(begin + QUERIES, len(row)))
            keys = np.flatnonzero(row[: queries[-1] + 1] > begin)
            seen = (keys <= queries[:, None]) & (queries[:, None] < row[keys])
            if window is not None:
                seen &= depth[queries][:, None] - depth[keys] < window
                keys, seen = keys[used := seen.any(0)], seen[:, used]
            cut.append((queries + offset, keys + offset, seen))
        offset += len(row)
    groups = _alike(cut)
    places = np.empty(offset, np.int64)
    before, blocks = 0, []
    for group in groups:
        block = _padded([cut[index] for index in group])
        width = block.queries.shape[1]
        for line, index in enumerate(group):
            nodes = cut[index][0]
            places[nodes] = before + line * width + np.arange(len(nodes))
        before += len(group) * width
        blocks.append(block)
    return tuple(blocks), torch.from_numpy(places)


def _alike(cut: Sequence[tuple[Ints, Ints, NDArray[np.bool_]]]) -> list[list[int]]:
    """Group blocks of like size."""
    groups: list[list[int]] = []
    real = width = 0
    for index in sorted(range(len(cut)), key=lambda i: (len(cut[i][1]), len(cut[i][0]))):
        queries, keys = len(cut[index][0]), len(cut[index][1])
        padded = (len(groups[-1]) + 1) * max(width, queries) * keys if groups else 0
        if groups and padded <= WASTE * (real + queries * keys) and padded <= SCORES:
            groups[-1].append(index)
            real, width = real + queries * keys, max(width, queries)
        else:
            groups.append([index])
            real, width = queries * keys, queries
    return groups


def _padded(members: Sequence[tuple[Ints, Ints, NDArray[np.bool_]]]) -> Block:
    """Put blocks together, padded to the largest."""
    count, width, depth = len(members), max(len(m[0]) for m in members), max(len(m[1]) for m in members)
    queries, keys = np.zeros((count, width), np.int64), np.zeros((count, depth), np.int64)
    present = np.zeros((count, width), bool)
    bias = np.full((count, width, depth), -np.inf, np.float32)
    for line, (nodes, sources, seen) in enumerate(members):
        queries[line, : len(nodes)], keys[line, : len(sources)], present[line, : len(nodes)] = nodes, sources, True
        bias[line, : len(nodes), : len(sources)][seen] = 0
    bias[..., 0][~present] = 0  # else the softmax of a padded query would be no number
    return Block(*(torch.from_numpy(part) for part in (queries, keys, bias, present)))
