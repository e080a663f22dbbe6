"""From tokenised rows to tries: which responses a row carries, and which rows a step sees."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from spo_bench.ranks import ALONE, Ranks
from spo_bench.training.trie import Ints, Pack, Response, TrieRow, build_row, fill_budget, pack

SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class Copy:
    """A response of known degree, as the degree head sees it: 0 is intact. ``side`` indexes SIDES."""

    tokens: Ints
    degree: int
    side: int


@dataclass(frozen=True)
class Example:
    """A tokenised row: a prompt, its answers from best to worst, and what SPO or an addition wants beside them.

    Attributes:
        id: of the row.
        prompt: token ids.
        chosen, rejected: the best and the worst answer.
        copies: the copies whose degree is to be told; none without SPO.
        between: further answers, ranked between the two.
        scores: the data's quality of all answers, best first; None where only their order is known.
        explored: the reference's own greedy answer, where an addition wants it.
    """

    id: str
    prompt: Ints
    chosen: Ints
    rejected: Ints
    copies: tuple[Copy, ...] = ()
    between: tuple[Ints, ...] = ()
    scores: tuple[float, ...] | None = None
    explored: Ints | None = None

    def record(self) -> dict[str, Any]:
        """Return the row as JSON values."""
        return {
            "id": self.id,
            **{name: getattr(self, name).tolist() for name in ("prompt", *SIDES)},
            "copies": [[copy.tokens.tolist(), copy.degree, copy.side] for copy in self.copies],
            "between": [tokens.tolist() for tokens in self.between],
            "scores": self.scores,
            "explored": None if self.explored is None else self.explored.tolist(),
        }

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Example:
        """Return the row that ``record`` was made of."""
        return cls(
            id=record["id"],
            **{name: _ints(record[name]) for name in ("prompt", *SIDES)},
            copies=tuple(Copy(_ints(tokens), degree, side) for tokens, degree, side in record["copies"]),
            between=tuple(map(_ints, record["between"])),
            scores=None if record["scores"] is None else tuple(record["scores"]),
            explored=None if record["explored"] is None else _ints(record["explored"]),
        )

    @property
    def answers(self) -> tuple[Ints, ...]:
        """All answers, best first."""
        return (self.chosen, *self.between, self.rejected)

    @property
    def scored(self) -> tuple[Ints, ...]:
        """What the reference scores too: the answers, then the explored one."""
        return self.answers if self.explored is None else (*self.answers, self.explored)

    def row(self, others: Sequence[Ints] = (), share: bool = True) -> tuple[TrieRow, list[Copy]]:
        """Return the row's trie and its pooled copies, in the order the pack numbers them.

        Scored responses come in the order of ``scored``, then ``others`` (completions of other prompts). An intact copy of
        a scored response is that response, so it costs nothing, shared or not.
        """
        copies = list(self.copies)
        responses, pooled = [], []
        sides = {0: 0, len(self.answers) - 1: 1}
        for place, tokens in enumerate((*self.scored, *others)):
            same = [i for i, c in enumerate(copies) if c.side == sides.get(place) and np.array_equal(c.tokens, tokens)]
            pooled += [copies.pop(i) for i in same[:1]]
            responses.append(Response(tokens, scored=True, pooled=bool(same)))
        responses += [Response(copy.tokens, scored=False, pooled=True) for copy in copies]
        return build_row(self.prompt, responses, share=share), pooled + copies


def _ints(values: Sequence[int]) -> Ints:
    return np.asarray(values, dtype=np.int64)


def stream_seed(seed: int, *names: str | int) -> int:
    """Return the seed of a named random stream (order, init, dropout, ...): different names never share numbers."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def step_rows(count: int, batch_size: int, steps: int, seed: int) -> list[Ints]:
    """Return the rows of every optimizer step, a function of the arguments alone.

    Each epoch is a fresh permutation; the rows left over at its end are carried by no step, so that every step has the same
    number of pairs. The baseline and its twin call this with the same arguments.
    """
    size = min(batch_size, count)
    per_epoch = count // size
    epochs: dict[int, Ints] = {}
    plan = []
    for step in range(steps):
        epoch, place = divmod(step, per_epoch)
        if epoch not in epochs:
            epochs = {epoch: np.random.default_rng(stream_seed(seed, "order", epoch)).permutation(count)}
        plan.append(epochs[epoch][place * size : (place + 1) * size])
    return plan


def mismatched(rows: Ints) -> list[tuple[int, int]]:
    """Return (prompt's row, completion's row) with every prompt given the next row's completions (KTO's estimate of the KL)."""
    return [(int(a), int(b)) for a, b in zip(rows, np.roll(rows, -1), strict=True)]


def met_completions(prompt: Ints, chosen: Ints, rejected: Ints, max_length: int) -> tuple[Ints, Ints]:
    """Return another row's completions as they fit behind this prompt within ``max_length`` tokens."""
    room = max_length - len(prompt)
    return chosen[:room], rejected[:room]


@dataclass(frozen=True)
class MicroBatch:
    """The part of a step's rows that goes through one forward pass.

    Attributes:
        pack: the rows' tries side by side.
        places: positions of the rows within the step, shape (rows,).
        answers: number of answers a row ranks.
        scored_per_row: number of scored responses a row carries: answers, perhaps an explored one, two of another row.
        degrees, sides: of every pooled copy, shape (pooled,).
        idle: whether it is run only because another rank has one more: what comes out of it counts nowhere.
    """

    pack: Pack
    places: Ints
    answers: int
    scored_per_row: int
    degrees: Ints
    sides: Ints
    idle: bool = False

    def to(self, device: torch.device) -> MicroBatch:
        """Return the micro-batch with its pack on another device."""
        return replace(self, pack=self.pack.to(device))


def micro_batches(
    examples: Sequence[Example],
    rows: Ints,
    budget: int,
    share: bool,
    mismatched_within: int | None = None,
    ranks: Ranks = ALONE,
) -> list[MicroBatch]:
    """Cut this rank's part of a step's rows into forward passes of at most ``budget`` tokens each; all ranks have as many.

    All rows carry the same number of answers. With ``mismatched_within``, each row also carries the next row's completions, cut
    to that many tokens with its prompt.
    """
    partners = dict(mismatched(rows)) if mismatched_within is not None else {}
    built = []
    for index in rows.tolist():
        others: tuple[Ints, ...] = ()
        if mismatched_within is not None:
            met = examples[partners[index]]
            others = met_completions(examples[index].prompt, met.chosen, met.rejected, mismatched_within)
        built.append(examples[index].row(others, share))
    sizes = [trie.size for trie, _ in built]
    own, missing = passes(sizes, budget, ranks)
    batches = []
    for number, places in enumerate([*own, *[[int(np.argmin(sizes))]] * missing]):
        copies = [copy for place in places for copy in built[place][1]]
        batches.append(
            MicroBatch(
                pack=pack([built[place][0] for place in places], shared=share),
                places=np.asarray(places, dtype=np.int64),
                answers=len(examples[rows[0]].answers),
                scored_per_row=len(examples[rows[0]].scored) + (2 if partners else 0),
                degrees=np.asarray([copy.degree for copy in copies], dtype=np.int64),
                sides=np.asarray([copy.side for copy in copies], dtype=np.int64),
                idle=number >= len(own),
            )
        )
    return batches


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
