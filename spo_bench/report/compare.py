"""Two runs side by side, as a table: paired where they share prompts, and with the reason where nothing can be compared."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from spo_bench.errors import unknown
from spo_bench.stats import Comparison, compare_matrix, holm

from . import names
from .entries import difference_entries, level_entries, p_text, text_entry
from .grid import Column, Entry, Table
from .measure import CONFIDENCE, Level, finite, headlines, levels
from .pairing import Arm, Match, Values, changed_settings, match
from .results import Results, short_model

ALL = "all"
Levels = Mapping[tuple[str, ...], Level]


@dataclass
class _Row:
    """One arm and metric: levels of both runs and, where there is one, their comparison."""

    found: Match
    metric: str
    levels: tuple[Level | None, Level | None]
    comparison: Comparison | None
    notes: list[str]


def compare(first: Results, second: Results, metrics: Sequence[str] = ()) -> Table:
    """Return the comparison of two runs: every arm and metric with both levels, B − A with its interval, p, and what it rests on.

    Args:
        first, second: the runs, A and B.
        metrics: names; none: the headline metrics of both runs; ``all``: every metric with a value a prompt.

    A family, corrected by Holm together, is all paired comparisons of one metric. Arms whose policies are the same bit for bit on
    both sides, or one policy that answers once a seed, speak about these policies; others about the method, where there are
    several seeds (``compare_matrix``). Raises InputError for a metric neither run has.
    """
    found = match(first, second)
    rows: list[_Row] = []
    for metric in _wanted(first, second, metrics):
        rows += _family(found, metric, (levels(first, metric), levels(second, metric)))
    order = {id(one): place for place, one in enumerate(found)}
    rows.sort(key=lambda row: order[id(row.found)])
    return _table(first, second, found, rows)


def _wanted(first: Results, second: Results, metrics: Sequence[str]) -> list[str]:
    known = list(dict.fromkeys(name for results in (first, second) for cell in results.done for name in cell.metrics))
    if ALL in metrics:
        return known
    for name in metrics:
        if name not in known:
            raise unknown("metric", name, [*known, ALL])
    headline = (name for results in (first, second) for task in results.tasks for name in headlines(results, task))
    return list(dict.fromkeys(metrics or headline))


def _family(found: Sequence[Match], metric: str, known: tuple[Levels, Levels]) -> Iterator[_Row]:
    """Yield the rows of one metric; ``known`` holds its levels in either run."""
    rows: list[tuple[Match, Values]] = []
    for one in found:
        sides = [arm if arm is not None and metric in arm.metrics else None for arm in (one.ours, one.theirs)]
        values = one.values(metric) if all(sides) else None
        if values is not None and values.shared:
            rows.append((one, values))
        elif any(sides):
            yield _unpaired(one, metric, [_level(arm, of) for arm, of in zip(sides, known)], values)
    comparisons = _comparisons(rows)
    for (one, values), comparison in zip(rows, comparisons):
        yield _Row(one, metric, _paired_levels(values, comparison), comparison, _notes(one, values))


def _comparisons(rows: Sequence[tuple[Match, Values]]) -> list[Comparison]:
    """Compare all rows of a metric; rows of the same policies apart, since their seeds have no noise of training to pool."""
    made: dict[int, Comparison] = {}
    for fixed in (True, False):
        places = [place for place, (_, values) in enumerate(rows) if values.policies.fixed is fixed]
        some = [rows[place][1] for place in places]
        compared = compare_matrix(
            [values.ours for values in some],
            [values.theirs for values in some],
            CONFIDENCE,
            checkpoints=fixed,
            clusters=[values.clusters for values in some],
        )
        made.update(zip(places, compared))
    adjusted = [float(p) for p in holm([made[place].p for place in range(len(rows))])]
    family = sum(math.isfinite(p) for p in adjusted)
    return [replace(made[place], p_adjusted=p, family=family) for place, p in enumerate(adjusted)]


def _paired_levels(values: Values, comparison: Comparison) -> tuple[Level, Level]:
    """Return both levels over the very values that are compared; the interval is that of their difference."""
    n, seeds = comparison.n_prompts, comparison.n_seeds
    ours, theirs = (Level(mean, math.nan, math.nan, n, seeds, values.higher_is_better) for mean in values.means())
    return ours, theirs


def _notes(one: Match, values: Values) -> list[str]:
    sizes = set(values.sizes)
    shared, changed = values.shared, f", {values.changed} with another text left out" if values.changed else ""
    if sizes == {shared}:
        notes = [f"paired on {shared} prompts"]
    else:
        notes = [f"paired on {shared} shared of {values.sizes[0]} and {values.sizes[1]}{changed}"]
    notes += values.invalid_notes("A", "B")
    if values.policies.same:
        notes.append("the same policies bit for bit")
    elif values.policies.fixed and len(values.policies.pairs) > 1:
        notes.append("one policy on each side for all seeds: its retraining noise is not in the interval")
    if one.in_order:
        notes.append("no common seed: paired in order")
    elif left := len(one.partners) - len(one.pairs):
        notes.append(f"{left} seed{'s' if left > 1 else ''} on one side only or not finished")
    return notes


def _level(arm: Arm | None, known: Levels) -> Level | None:
    return None if arm is None else known.get((*arm.first.place, arm.first.settings))


def _unpaired(one: Match, metric: str, sides: Sequence[Level | None], values: Values | None) -> _Row:
    """Return a row of an arm whose two sides share no value."""
    both = (sides[0], sides[1])
    if values is None:
        return _Row(one, metric, both, None, [f"only in {'A' if sides[0] else 'B'}"])
    if values.reason:
        return _Row(one, metric, both, None, [f"not comparable: {values.reason}"])
    changed = f" ({values.changed} ids with another text behind them)" if values.changed else ""
    return _Row(one, metric, both, _difference(*both), [f"unpaired: no shared prompt{changed}"])


def _difference(ours: Level | None, theirs: Level | None) -> Comparison | None:
    """Return the difference of two independent levels, its interval recovered from theirs; no p.

    Each end adds the two distances it is about in squares (Zou and Donner, 2008): like Welch's interval, but from any two
    intervals, also asymmetric ones.
    """
    if ours is None or theirs is None:
        return None
    diff = theirs.value - ours.value
    low = diff - math.hypot(theirs.value - theirs.low, ours.high - ours.value)
    high = diff + math.hypot(theirs.high - theirs.value, ours.value - ours.low)
    seeds = min(ours.seeds, theirs.seeds)
    return Comparison(diff, low, high, math.nan, math.nan, 0, seeds, "method" if seeds > 1 else "checkpoints", 0)


# --- the table ----------------------------------------------------------------------------------------------------------


def _table(first: Results, second: Results, found: Sequence[Match], rows: Sequence[_Row]) -> Table:
    columns = [
        Column("model", "Model", numeric=False),
        Column("task", "Task", numeric=False),
        Column("arm", "Arm", numeric=False),
        Column("metric", "Metric", numeric=False),
        Column("a", "A"),
        Column("b", "B"),
        Column("difference", "B − A"),
        Column("p", "p"),
        Column("prompts", "Prompts"),
        Column("seeds", "Seeds"),
        Column("note", "Note", numeric=False),
    ]
    shown: dict[int, list[Entry]] = {}
    for metric in dict.fromkeys(row.metric for row in rows):
        places = [place for place, row in enumerate(rows) if row.metric == metric]
        for place, entries in zip(places, _numbers([rows[place] for place in places], metric)):
            shown[place] = entries
    body = []
    for place, row in enumerate(rows):
        cell, comparison = row.found.arm.first, row.comparison
        heads = [
            text_entry(short_model(cell.model), cell.model),
            text_entry(cell.task),
            text_entry(cell.name),
            text_entry(names.title(row.metric), row.metric),
        ]
        counts = [comparison.n_prompts or None, comparison.n_seeds] if comparison else [None, None]
        body.append([*heads, *shown[place], *map(_count, counts), text_entry("; ".join(row.notes))])
    blocks = [f"{row.found.arm.first.model}|{row.found.arm.first.task}" for row in rows]
    return Table("compare", f"{first.name} and {second.name}", columns, body, blocks, _caption(first, second, found, rows))


def _numbers(rows: Sequence[_Row], metric: str) -> list[list[Entry]]:
    """Return the entries A, B, B − A and p of one metric's rows."""
    differences = difference_entries([_plain(row.comparison) for row in rows], metric)
    halves = [names.scale(metric) * (row.comparison.high - row.comparison.low) / 2 for row in rows if row.comparison]
    digits = names.decimals(halves)
    sides = [level_entries([row.levels[side] for row in rows], metric, digits) for side in (0, 1)]
    ps = [row.comparison.p_adjusted if row.comparison else math.nan for row in rows]
    shown = [
        Entry(p, p_text(p), p=row.comparison.p if row.comparison else None) if math.isfinite(p) else Entry()
        for p, row in zip(ps, rows)
    ]
    return [list(entries) for entries in zip(*sides, differences, shown)]


def _plain(comparison: Comparison | None) -> Mapping[str, Any] | None:
    if comparison is None:
        return None
    return {key: finite(value) if isinstance(value, float) else value for key, value in asdict(comparison).items()}


def _count(value: int | None) -> Entry:
    return Entry() if value is None else Entry(value, str(value))


def _caption(first: Results, second: Results, found: Sequence[Match], rows: Sequence[_Row]) -> list[str]:
    caption = [f"A: {first.directory}; B: {second.directory}."]
    paired = [row.comparison for row in rows if row.comparison and row.comparison.family]
    if paired:
        caption.append(
            "A, B: means over the prompts and seeds that are compared. B − A: with its 95 % interval; p after Holm's correction "
            "over all paired comparisons of a metric; † p < .05."
        )
    if any(one.estimand == "method" for one in paired):
        caption.append(
            "Several seeds: estimand “the method”, two-way interval and t test over prompts and seeds, seed variance pooled over "
            "the comparisons of a metric."
        )
    if any(one.estimand == "checkpoints" for one in paired):
        caption.append("One seed, or the same policies: estimand “these checkpoints”, bootstrap over prompts, sign-flip test.")
    if any(row.comparison and not row.comparison.n_prompts for row in rows):
        caption.append(
            "Unpaired: levels with ± half of their own intervals, and the interval of B − A recovered from them; no test."
        )
    if changed := changed_settings(found):
        caption.append(f"Changed: {'; '.join(changed)}.")
    return caption
