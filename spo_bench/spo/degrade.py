"""Degraded copies of an answer: the same text with more and more of its key content gone.

What the method leaves open is decided so:

- Degree k lacks the first round(rho_k * n) of n units, halves up. The sets of removed units are nested.
- Where several degrees come out the same (few units), the text stands for the degree whose rho_k is nearest to the share really
  removed (of equally near ones the higher), and the others are None: no text has two labels, and "everything removed" is
  never called half removed. A copy without any character is None too, since nothing can be pooled from it.
- Deleting takes the unit and the spaces around it that would be left over, and a line that becomes empty. It never touches
  punctuation.
- The control ``random_removal`` takes single words, stop words included, in a random order, as many at each degree as the
  removal of key content takes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate
from random import Random
from typing import NamedTuple

from spo_bench.spo.keywords import SPACES, Phrase, scan
from spo_bench.spo.settings import SpoSettings

MASK = "___"
_NO_SPACE_AFTER = SPACES + "\n([{“‘«¿¡"
_NO_SPACE_BEFORE = "\r\n.,;:!?)]}”’»…%"
_EMPTY_LINES = re.compile(rf"^(?:[{SPACES}]*\r?\n)+")


class Removal(NamedTuple):
    """How an answer's key content goes: ``units`` in the order of their going, ``counts``: degree above 0 -> how many it lacks.

    A degree that the text cannot show has no count.
    """

    units: list[Phrase]
    counts: dict[int, int]


def removal(text: str, settings: SpoSettings, seed: int) -> Removal:
    """Return which units of a text go, in which order, and how many at each degree."""
    every_word, units = scan(text)
    if settings.unit == "word":
        units = [word for word in every_word if word.score > 0]
    if settings.order == "score_desc":
        units.sort(key=lambda unit: -unit.score)  # the sort is stable: equal scores go in the order of the text
    elif settings.order == "score_asc":
        units.sort(key=lambda unit: unit.score)
    elif settings.order == "random":
        _random("order", seed, text).shuffle(units)
    counts = _counts(settings.rho(), len(units))
    if settings.control == "random_removal":
        sizes = [0, *accumulate(unit.size for unit in units)]
        counts = {k: sizes[count] for k, count in counts.items()}
        units = every_word
        _random("control", seed, text).shuffle(units)
    return Removal(units, counts)


def degraded_copies(text: str, settings: SpoSettings, seed: int) -> list[str | None]:
    """Return one text a degree, (degrees,); the first is ``text`` itself.

    None stands for a degree this text cannot show (too few units). Same text, settings and seed: same copies, in any process.
    """
    units, counts = removal(text, settings, seed)
    copies: list[str | None] = [text] + [None] * (settings.degrees - 1)
    for k, count in counts.items():
        copy = remove(text, units[:count], settings.op)
        copies[k] = copy if copy.strip() else None
    return copies


def _counts(rho: Sequence[float], n: int) -> dict[int, int]:
    """Return {degree above 0: how many of n units it lacks}, leaving out degrees that n units cannot show."""
    nearest: dict[int, int] = {}  # count -> degree
    for k, share in enumerate(rho):
        # The small term keeps a half that floating point puts just below a half going up.
        count = int(share * n + 0.5 + 1e-9)
        rival = nearest.get(count)
        if count and (rival is None or abs(share - count / n) <= abs(rho[rival] - count / n) + 1e-9):
            nearest[count] = k
    return {k: count for count, k in nearest.items()}


def degree_labels(text: str, settings: SpoSettings, seed: int) -> list[int]:
    """Return the degree each copy is labelled with, (degrees,): 0, 1, 2, ...

    Under the control ``shuffled_degrees`` it is a random permutation of them, drawn once for a text and seed, so every epoch
    sees the same labels and a head can only learn them by heart.
    """
    labels = list(range(settings.degrees))
    if settings.control == "shuffled_degrees":
        _random("labels", seed, text).shuffle(labels)
    return labels


def remove(text: str, units: Sequence[Phrase], op: str) -> str:
    """Return a text without some units (op ``delete``) or with ___ in their place (op ``mask``)."""
    spans = sorted((unit.start, unit.end) for unit in units)
    starts = [0, *(end for _, end in spans)]
    pieces = [text[start:stop] for start, stop in zip(starts, [*(start for start, _ in spans), len(text)])]
    if op == "mask":
        return MASK.join(pieces)
    kept = pieces[0]
    for piece in pieces[1:]:
        kept = _join(kept, piece)
    return kept if pieces[-1].strip(SPACES) else kept.rstrip(SPACES)


def _join(kept: str, piece: str) -> str:
    """Put together what stands before and after a deleted unit, without the spaces or the empty line it would leave."""
    body = piece.lstrip(SPACES)
    after_break = not kept or kept[-1] in _NO_SPACE_AFTER
    if not body:
        return kept if after_break else kept + piece
    if body[0] in _NO_SPACE_BEFORE:
        kept = kept.rstrip(SPACES)
        if body[0] in "\r\n" and kept[-1:] in ("", "\n"):
            body = _EMPTY_LINES.sub("", body, count=1)
        return kept + body
    return kept + (body if after_break else piece)


def _random(purpose: str, seed: int, text: str) -> Random:
    """Return a generator of its own for a purpose, seed and text; a str seed goes through SHA-512, the same in every process."""
    return Random(f"spo {purpose} {seed} {text}")
