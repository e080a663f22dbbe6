"""Entries of tables from the numbers of a run: levels, differences, plain numbers, names."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from . import names
from .grid import Entry, number
from .measure import ALPHA, Level
from .results import short_model


def level_entries(found: Sequence[Level | None], metric: str, places: int | None = None) -> list[Entry]:
    """Return a column of levels with their intervals (``interval_text``), all with as many decimals as these deserve."""
    digits = level_decimals(found, metric) if places is None else places
    out = []
    for level in found:
        if level is None or not math.isfinite(level.value):
            out.append(Entry(n=level.n if level else 0))
            continue
        low, high = (value if math.isfinite(value) else None for value in (level.low, level.high))
        shown = number(names.scale(metric) * level.value, digits)
        out.append(Entry(level.value, shown, interval_text(level, metric, digits), low, high, n=level.n))
    return out


def level_decimals(found: Iterable[Level | None], metric: str) -> int:
    """Return how many decimals these levels of a metric deserve."""
    return names.decimals(names.scale(metric) * (level.high - level.low) / 2 for level in found if level)


def interval_text(level: Level, metric: str, digits: int) -> str:
    """Return ± half the width of an interval; [low, high] where ± would say something else; nothing where there is none.

    That is where one side is longer than the other by more than shows in the last digit, or where ± leaves the values that the
    metric can have.
    """
    if not math.isfinite(level.high - level.low):
        return ""
    factor = names.scale(metric)
    low, high = (factor * end for end in level_ends(level, metric))
    half = factor * (level.high - level.low) / 2
    if abs((high + low) / 2 - factor * level.value) <= 10.0**-digits and math.isclose(high - low, 2 * half, abs_tol=1e-12):
        return f"±{number(half, digits)}"
    return f"[{number(low, digits)}, {number(high, digits)}]"


def level_ends(level: Level, metric: str) -> tuple[float, float]:
    """Return the ends of an interval, cut to the values that the metric can have: what lies beyond cannot be the truth."""
    least, most = names.bounds(metric)
    if not least <= level.value <= most:  # the metric has another range than its name says
        return level.low, level.high
    return max(level.low, least), min(level.high, most)


def difference_decimals(rows: Iterable[Mapping[str, Any] | None], metric: str) -> int:
    """Return how many decimals these differences in a metric deserve."""
    known = [row for row in rows if row and row["low"] is not None]
    return names.decimals(names.scale(metric) * (row["high"] - row["low"]) / 2 for row in known)


def difference_entries(rows: Sequence[Mapping[str, Any] | None], metric: str, places: int | None = None) -> list[Entry]:
    """Return a column of differences with their intervals, from rows of comparisons; None is shown as missing."""
    factor = names.scale(metric)
    digits = difference_decimals(rows, metric) if places is None else places
    out = []
    for row in rows:
        if row is None or row["diff"] is None:
            out.append(Entry(n=row["n_prompts"] if row else 0))
            continue
        ends = [number(factor * row[key], digits, sign=True) for key in ("low", "high") if row[key] is not None]
        p = row["p_adjusted"]
        text = number(factor * row["diff"], digits, sign=True)
        small = f"[{', '.join(ends)}]" if ends else ""
        details = {key: row[key] for key in ("low", "high", "p", "p_adjusted")}
        out.append(Entry(row["diff"], text, small, **details, n=row["n_prompts"], significant=p is not None and p < ALPHA))
    return out


def quiet(entry: Entry) -> Entry:
    """Return the entry, or an empty one where a missing value is nothing that is missed."""
    return replace(entry, text="", n=None) if entry.value is None else entry


def model_entry(model: str) -> Entry:
    """Return a model's short name, with the whole one for csv and json."""
    return Entry(model, short_model(model))


def text_entry(shown: str, value: str | None = None) -> Entry:
    """Return an entry of text, with what csv and json hold where that is not what is shown."""
    return Entry(shown if value is None else value, shown)


def plain_entry(value: float, metric: str = "") -> Entry:
    """Return a number in the unit its metric is printed in; NaN is missing."""
    if not math.isfinite(value):
        return Entry()
    shown = value * names.scale(metric)
    return Entry(value, number(shown, 0 if abs(shown) >= 1000 else 1 if abs(shown) >= 100 else 2))


def estimand_entry(estimand: str) -> Entry:
    """Return what a comparison speaks of, in words."""
    return text_entry("the method" if estimand == "method" else "these checkpoints", estimand)


def p_text(p: float | None) -> str:
    """Return a p for reading: three decimals, or < .001."""
    if p is None:
        return "--"
    return "< .001" if p < 0.001 else f"{p:.3f}".lstrip("0") if p < 1 else "1"
