"""Token tries: a prompt with a set of responses, each distinct prefix held once.

A row is stored in depth-first order, so that "k is an ancestor of q, or q itself" is the same as ``k <= q < end[k]``, where
``end[k]`` is one past the last descendant of k. Rows put one after the other keep that property and cannot see each other,
so the same comparison is the mask of many rows on one line, without padding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spo_bench.training.blocks import Ints as Ints
from spo_bench.training.blocks import Sight, moved, sight


@dataclass(frozen=True)
class Response:
    """One response to a row's prompt.

    Attributes:
        tokens: completion ids, shape (length,), at least one.
        scored: whether its per-token log-probabilities are wanted.
        pooled: whether its hidden states are wanted (the degree head reads them).
    """

    tokens: Ints
    scored: bool = True
    pooled: bool = False


@dataclass(frozen=True)
class TrieRow:
    """A prompt and its responses as a trie in depth-first order; all arrays have shape (nodes,).

    Attributes:
        tokens, positions, parents, ends: token id, depth, index of the parent (-1 at a root), one past the last descendant.
        paths: for each response the nodes of its completion tokens, shape (length,).
        roots: start of each separate sequence where nothing is shared, else just (0,).
        responses: the responses, in the order given.
    """

    tokens: Ints
    positions: Ints
    parents: Ints
    ends: Ints
    paths: tuple[Ints, ...]
    roots: Ints
    responses: tuple[Response, ...]

    @property
    def size(self) -> int:
        """Number of tokens a forward pass computes for this row."""
        return len(self.tokens)


def build_row(prompt: Sequence[int] | Ints, responses: Sequence[Response], share: bool = True) -> TrieRow:
    """Build the trie of a row.

    Args:
        prompt: token ids, at least one (its last token predicts the first completion token).
        responses: the responses; equal ones share all their nodes.
        share: False keeps every response as a sequence of its own, prompt included; the layout to check a trie against.

    Raises:
        ValueError: an empty prompt, no response, or an empty response.
    """
    head = np.asarray(prompt, dtype=np.int64)
    if len(head) == 0 or not responses or any(len(r.tokens) == 0 for r in responses):
        raise ValueError("a row needs a prompt token, a response, and a token in each response")
    full = [np.concatenate([head, r.tokens]) for r in responses]
    # Sorted sequences visit the trie depth first: neighbours share their longest common prefix, and a new branch
    # only ever leaves the path of the sequence just before it.
    order = sorted(range(len(full)), key=lambda i: full[i].tolist())
    tokens: list[Ints] = []
    positions: list[Ints] = []
    parents: list[Ints] = []
    ends: list[int] = []
    roots: list[int] = []
    paths: dict[int, Ints] = {}
    before, path = np.empty(0, np.int64), np.empty(0, np.int64)
    count = 0
    for index in order:
        sequence = full[index]
        common = _common_prefix(before, sequence) if share else 0
        for node in path[common:]:
            ends[node] = count
        new = np.arange(count, count + len(sequence) - common)
        if common == 0:
            roots.append(count)
        tokens.append(sequence[common:])
        positions.append(np.arange(common, len(sequence)))
        parents.append(np.concatenate([path[common - 1 : common] if common else [-1], new[:-1]])[: len(new)])
        path = np.concatenate([path[:common], new])
        ends.extend([0] * len(new))
        count += len(new)
        before, paths[index] = sequence, path[len(head) :]
    for node in path:
        ends[node] = count
    return TrieRow(
        tokens=np.concatenate(tokens),
        positions=np.concatenate(positions),
        parents=np.concatenate(parents).astype(np.int64),
        ends=np.asarray(ends, dtype=np.int64),
        paths=tuple(paths[i] for i in range(len(full))),
        roots=np.asarray(roots, dtype=np.int64),
        responses=tuple(responses),
    )


def _common_prefix(a: Ints, b: Ints) -> int:
    shorter = min(len(a), len(b))
    different = np.flatnonzero(a[:shorter] != b[:shorter])
    return int(different[0]) if len(different) else shorter


@dataclass(frozen=True)
class Pack:
    """Rows of one forward pass; their nodes are numbered through, row after row.

    Attributes:
        tokens, positions: shape (nodes,).
        sight: which node attends to which; None where nothing is shared.
        roots: start of every separate sequence, for the layout that shares nothing; shape (sequences,).
        shared: whether rows are tries (else ``roots`` cut ``tokens`` into separate sequences).
        edge_parents, edge_tokens: the distinct (parent node, next token) steps whose log-probability is wanted, (edges,).
        token_edges, token_owner: for every token of every scored response its edge and the number of its response, (tokens,).
        scored_lengths: tokens of every scored response, shape (scored,).
        pool_nodes, pool_owner: for every completion token of every pooled response its node and the response's number.
        pooled_lengths: tokens of every pooled response, shape (pooled,).
        last_nodes: the last node of every pooled response, shape (pooled,).
    """

    tokens: Tensor
    positions: Tensor
    sight: Sight | None
    roots: Tensor
    shared: bool
    edge_parents: Tensor
    edge_tokens: Tensor
    token_edges: Tensor
    token_owner: Tensor
    scored_lengths: Tensor
    pool_nodes: Tensor
    pool_owner: Tensor
    pooled_lengths: Tensor
    last_nodes: Tensor

    def to(self, device: torch.device) -> Pack:
        """Return the pack on another device."""
        parts: dict[str, Any] = {name: moved(part, device) for name, part in vars(self).items() if isinstance(part, Tensor)}
        return replace(self, **parts, sight=None if self.sight is None else self.sight.to(device))


def pack(rows: Sequence[TrieRow], shared: bool = True) -> Pack:
    """Put rows side by side. Scored and pooled responses are numbered in the order of rows and, within, of responses."""
    edges: list[Ints] = []
    token_edges: list[Ints] = []
    scored_lengths: list[int] = []
    pool_nodes: list[Ints] = []
    pooled_lengths: list[int] = []
    parents, offset, edge_count = [], 0, 0
    for row in rows:
        parents.append(np.where(row.parents < 0, -1, row.parents + offset))
        wanted = [path for path, r in zip(row.paths, row.responses, strict=True) if r.scored]
        if wanted:
            nodes, inverse = np.unique(np.concatenate(wanted), return_inverse=True)
            edges.append(nodes + offset)
            token_edges.append(inverse + edge_count)
            edge_count += len(nodes)
            scored_lengths += [len(path) for path in wanted]
        held = [path + offset for path, r in zip(row.paths, row.responses, strict=True) if r.pooled]
        pool_nodes += held
        pooled_lengths += [len(path) for path in held]
        offset += row.size
    tokens, positions = _joined([row.tokens for row in rows]), _joined([row.positions for row in rows])
    edge_nodes = _joined(edges)
    starts = np.cumsum([0, *[row.size for row in rows[:-1]]])
    return Pack(
        tokens=torch.from_numpy(tokens),
        positions=torch.from_numpy(positions),
        sight=sight([row.ends for row in rows], positions) if shared else None,
        roots=torch.from_numpy(_joined([row.roots + start for row, start in zip(rows, starts, strict=True)])),
        shared=shared,
        edge_parents=torch.from_numpy(_joined(parents)[edge_nodes]),
        edge_tokens=torch.from_numpy(tokens[edge_nodes]),
        token_edges=torch.from_numpy(_joined(token_edges)),
        token_owner=_owners(scored_lengths),
        scored_lengths=torch.tensor(scored_lengths, dtype=torch.int64),
        pool_nodes=torch.from_numpy(_joined(pool_nodes)),
        pool_owner=_owners(pooled_lengths),
        pooled_lengths=torch.tensor(pooled_lengths, dtype=torch.int64),
        last_nodes=torch.tensor([nodes[-1] for nodes in pool_nodes], dtype=torch.int64),
    )


def _joined(parts: Iterable[Ints]) -> Ints:
    parts = list(parts)
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _owners(lengths: Sequence[int]) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths, dtype=torch.int64))


def split_by_budget(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Cut 0..len(sizes)-1 into consecutive groups of at most ``budget`` tokens; a larger row stands alone."""
    groups: list[list[int]] = []
    used = 0
    for index, size in enumerate(sizes):
        if groups and used + size <= budget:
            groups[-1].append(index)
            used += size
        else:
            groups.append([index])
            used = size
    return groups


def fill_budget(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Put 0..len(sizes)-1 into few groups of at most ``budget`` tokens (first fit, largest first); a larger row stands alone.

    The largest group comes first: what it leaves behind has room for the others.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        group = next((group for group in groups if sum(sizes[i] for i in group) + sizes[index] <= budget), None)
        if group is None:
            groups.append(group := [])
        group.append(index)
    return [sorted(group) for group in sorted(groups, key=lambda group: -sum(sizes[i] for i in group))]
