"""Every prompt with the answers of a baseline and its SPO twin side by side, as data that the page shows on demand."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import names
from .blocks import LONGEST, Block, pack, texts
from .keycontent import KeyContent
from .measure import Contrast, contrasts, headlines
from .results import Cell, Results, short_model
from .verdict import is_control

LIMIT = 20_000
"""Samples in one page."""
BUDGET = 40_000_000
"""Bytes of a page that samples take."""
REPLY = 1000
"""Characters of a judge's reply that a page holds."""
_ID = re.compile(r'"id": "([^"\\]*)"')

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Samples:
    """The samples of a page: a block "catalogue" that names the others, how many there are, and how many the run has."""

    blocks: Sequence[Block]
    shown: int
    total: int


def samples(results: Results, limit: int = LIMIT, budget: int = BUDGET) -> Samples:
    """Return the samples of every SPO contrast and seed.

    Where there are more than ``limit``, or where they would take more than ``budget`` bytes of the page, each contrast and seed
    gives about as many, evenly spaced from SPO's largest loss to its largest gain in the headline metric.
    """
    pairs = [(contrast, *pair) for contrast in contrasts(results, "spo") for pair in contrast.pairs]
    parts = [_Part(contrast, baseline, variant, results) for contrast, baseline, variant in pairs if baseline is not None]
    parts = [part for part in parts if part.ids]
    total = sum(len(part.ids) for part in parts)
    limit = min(limit, total)
    entries, blocks, fits = _packed(parts, limit, budget)
    while fits < 1 and limit > len(parts):
        limit = max(len(parts), int(0.95 * fits * limit))
        entries, blocks, fits = _packed(parts, limit, budget)
    return Samples([pack("catalogue", entries), *blocks] if entries else [], sum(entry["shown"] for entry in entries), total)


def _packed(parts: Sequence[_Part], limit: int, budget: int) -> tuple[list[dict[str, Any]], list[Block], float]:
    """Return entries of the catalogue and packed blocks for ``limit`` samples, and budget / size.

    Stops early where what is packed so far shows that the rest will not fit.
    """
    books: dict[str, _Prompts] = {}
    known: dict[str, KeyContent] = {}
    entries, blocks = [], []
    size = shown = 0
    for i, (part, share) in enumerate(zip(parts, _shares([len(part.ids) for part in parts], limit))):
        book = books.setdefault(part.variant.task, _Prompts(f"prompts-{len(books)}"))
        content = KeyContent(part.variant.spo or {}, part.variant.seed)
        content = known.setdefault(content.rule, content)  # what one cell's settings found serves the others
        entry, columns = part.read(spread(part.gains, share), book, content)
        entries.append(entry | {"block": f"samples-{i}", "prompts": book.name})
        blocks.append(pack(f"samples-{i}", columns))
        size, shown = size + len(blocks[-1].data), shown + entry["shown"]
        if 10 * shown > limit and size * limit > budget * shown:
            return entries, blocks, budget * shown / (size * limit)
    blocks += [pack(book.name, book.columns()) for book in books.values()]
    return entries, blocks, budget / max(1, sum(len(block.data) for block in blocks))


def spread(gains: Sequence[float], limit: int) -> list[int]:
    """Return which of the gains are shown, in their order: all, or ``limit`` evenly spaced ones from lowest to highest.

    NaN counts as higher than any.
    """
    if len(gains) <= limit:
        return list(range(len(gains)))
    order = np.argsort(np.asarray(gains, dtype=np.float64), kind="stable")
    return sorted({int(order[round(at)]) for at in np.linspace(0, len(gains) - 1, limit)})


def _shares(sizes: Sequence[int], limit: int) -> list[int]:
    """Divide a limit among parts evenly; what small parts do not need goes to the others. Every part gets at least one."""
    shares, left = [0] * len(sizes), limit
    for done, i in enumerate(sorted(range(len(sizes)), key=lambda i: sizes[i])):
        shares[i] = max(1, min(sizes[i], left // (len(sizes) - done)))
        left -= shares[i]
    return shares


class _Prompts:
    """The prompts of a task with the data's own answers, each once."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._places: dict[tuple[str, ...], int] = {}

    def place(self, row: Row) -> int:
        """Return the number of a sample's prompt."""
        key = tuple(str(row.get(name) or "") for name in ("id", "prompt", "chosen", "rejected"))
        return self._places.setdefault(key, len(self._places))

    def columns(self) -> dict[str, Any]:
        """Return the columns of the page's block."""
        ids, *others = zip(*self._places)
        return {"id": ids, **{name: texts(column) for name, column in zip(("prompt", "chosen", "rejected"), others)}}


class _Part:
    """One contrast in one seed: the ids both sides answered, in the order of the prompts, and what SPO gained in each."""

    def __init__(self, contrast: Contrast, baseline: Cell, variant: Cell, results: Results) -> None:
        self.contrast, self.baseline, self.variant = contrast, baseline, variant
        theirs = {name for name, _ in _lines(baseline, "samples")}
        self.ids = [name for name, _ in _lines(variant, "samples") if name in theirs]
        self.headline = next(iter(headlines(results, variant.task)), "")
        before, after = (_by_id(cell, self.headline) for cell in (baseline, variant))
        higher = self.headline not in variant.metrics or variant.metrics[self.headline].higher_is_better
        sign = 1 if higher else -1
        self.gains = [sign * (after.get(name, math.nan) - before.get(name, math.nan)) for name in self.ids]

    def read(self, places: Sequence[int], book: _Prompts, content: KeyContent) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the part's entry in the catalogue, and the columns of its block."""
        ids = [self.ids[i] for i in places]
        sides = [_side(cell, ids, content) for cell in (self.baseline, self.variant)]
        rows = dict(_rows(self.variant, "samples", set(ids)))
        given = [[str(rows[name].get(side) or "") for name in ids] for side in ("chosen", "rejected")]
        columns = {
            "at": [book.place(rows[name]) for name in ids],
            "gain": [_short(self.gains[i]) for i in places],
            "key": [[_within(content.spans(text)) for text in column] for column in given],
            "sides": sides,
        }
        cell = self.variant
        known = [name for side in sides for name in side["metrics"]]
        measured = sorted(dict.fromkeys(known), key=lambda name: name != self.headline)
        entry = {
            "id": cell.id,
            "model": short_model(cell.model),
            "task": cell.task,
            "method": cell.family,
            "variant": cell.label,
            "seed": cell.seed,
            "names": [self.baseline.name, cell.name],
            "control": is_control({"spo": cell.spo}),
            "shown": len(ids),
            "total": len(self.ids),
            "headline": self.headline,
            "metrics": {name: [names.title(name), names.is_share(name), names.scale(name)] for name in measured},
            "degrees": content.settings.degrees,
            "legend": content.legend(),
        }
        return entry, columns


def _side(cell: Cell, ids: Sequence[str], content: KeyContent) -> dict[str, Any]:
    """Return what the page knows of one policy's answers, a column each."""
    rows = dict(_rows(cell, "samples", set(ids)))
    answers = [str(rows[name].get("answer") or "") for name in ids]
    metrics = {}
    for metric in cell.metrics:
        values = _by_id(cell, metric)
        column = [_short(values.get(name, math.nan)) for name in ids]
        if any(value is not None for value in column):
            metrics[metric] = column
    judged: dict[str, dict[str, Any]] = {}
    for name, row in _rows(cell, "judgments", set(ids)):
        judged.setdefault(str(row.get("opponent") or ""), {})[name] = _judged(row)
    return {
        "answer": texts(answers),
        "key": [_within(content.spans(text)) for text in answers],
        "tokens": [rows[name].get("tokens") for name in ids],
        "finish": [rows[name].get("finish") for name in ids],
        "metrics": metrics,
        "verdicts": {opponent: [found.get(name) for name in ids] for opponent, found in judged.items()},
    }


def _judged(row: Row) -> list[Any]:
    """Return a verdict as the page keeps it: outcome (a: the policy, b: its opponent), score, orders, reason."""
    return [row.get("outcome"), _short(row.get("score")), [_order(one) for one in row.get("orders") or []], row.get("reason")]


def _order(order: Row) -> dict[str, Any]:
    """Return what a judge said in one order of presentation, or the two numbers of a judge that gives each answer one."""
    if "first" not in order:
        return {side: _short(order.get(side)) for side in ("a", "b")}
    reply = str(order.get("text") or order.get("raw") or "")
    found = {
        "first": order["first"],
        "verdict": order.get("verdict"),
        "reply": reply[:REPLY],
        "more": max(0, len(reply) - REPLY),
        "finish": order.get("finish_reason") or order.get("finish"),
        "p": _short(order.get("p_first")),
        "error": order.get("reason") or order.get("error"),
    }
    return {key: value for key, value in found.items() if value}


def _within(spans: Sequence[int]) -> Sequence[int]:
    """Return the spans that may begin in the part of a text that the page holds; a letter is two UTF-16 units at most."""
    return [number for i in range(0, len(spans), 3) if spans[i] < 2 * LONGEST for number in spans[i : i + 3]]


def _by_id(cell: Cell, metric: str) -> dict[str, float]:
    found = cell.metrics.get(metric)
    return dict(zip(found.ids, found.values.tolist())) if found else {}


def _lines(cell: Cell, name: str) -> Iterator[tuple[str, str]]:
    """Yield (id, line) of one of the cell's .jsonl files without reading the rest of the line: a large run has gigabytes."""
    path = cell.file(f"{name}.jsonl")
    if path is None:
        return
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if found := _ID.search(line):  # quotes within a text are escaped, so this is a key
                yield found[1], line
            elif line.strip():
                yield str(json.loads(line)["id"]), line


def _rows(cell: Cell, name: str, wanted: set[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for one, line in _lines(cell, name):
        if one in wanted:
            yield one, json.loads(line)


def _short(value: Any) -> float | None:
    """Return a number to five digits, as far as a page shows it; None where there is none."""
    return float(f"{value:.5g}") if isinstance(value, (int, float)) and math.isfinite(value) else None
