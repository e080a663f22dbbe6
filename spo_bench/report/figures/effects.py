"""What SPO changes: a forest of variant minus own baseline, controls set apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from matplotlib.lines import Line2D

from .. import names
from ..entries import difference_decimals
from ..grid import number
from ..tables import Numbers
from ..verdict import is_control, significant
from .ladders import Ladder, Rung, draw_ladders, line_at, scale
from .levels import LOOKS
from .policies import headline, place_title, what_intervals_are
from .style import Drawing, plain, sample

_Row = Mapping[str, Any]


def draw(numbers: Numbers) -> list[Drawing]:
    """Draw the effect of SPO on the headline metric of every model and task; nothing where there is no contrast."""
    panels: dict[tuple[str, str, str], list[_Row]] = {}
    for row in numbers.comparisons:
        place = (row["model"], row["task"])
        if row["kind"] == "spo" and row["diff"] is not None and row["metric"] == headline(numbers.results, place[1]):
            panels.setdefault((*place, row["metric"]), []).append(row)
    if not panels:
        return []
    rows = [row for found in panels.values() for row in found]
    ladders = []
    for (model, task, metric), found in panels.items():
        ordered = sorted(found, key=is_control)
        rungs = _rungs(ordered)
        alike = [row for row in rows if row["metric"] == metric]
        limits, digits = _limits(alike), difference_decimals(alike, metric)
        paint = partial(_paint, metric, ordered, rungs, limits)
        ladders.append(Ladder(place_title(numbers.results, (model, task)), rungs, _texts(ordered, metric, digits), paint))
    entries: dict[str, Line2D] = {}
    for role, control in (("spo", False), ("control", True)):
        colour, marker, _ = LOOKS[role]
        for holds in (True, False):
            if any((is_control(row), significant(row)) == (control, holds) for row in rows):
                what = f"{'control of SPO' if control else 'SPO'}, {'significant' if holds else 'not significant'} (Holm)"
                entries[what] = sample(colour, marker, fill=None if holds else "white")
    what = "What SPO changes: variant minus own baseline"
    caption = (
        f"{what}, with {what_intervals_are(row['n_seeds'] for row in rows)} Filled: significant after Holm’s correction; an "
        "interval that leaves out 0 is before it."
    )
    return draw_ladders("effects", caption, ladders, entries=entries, least=0.6)


def _rungs(rows: Sequence[_Row]) -> list[Rung]:
    """Return a line a contrast, with a gap before the controls; a method's further variants go without its name."""
    rungs: list[Rung] = []
    last = ("", False)
    for row in rows:
        family, control = str(row["baseline"]), is_control(row)
        label = str(row["variant"]).removeprefix(family).strip()
        label = label.removeprefix("+SPO") if control else label
        inner = last == (family, control)
        gap = 1.6 if control and not last[1] else 1.0
        at = rungs[-1].at + gap if rungs else 0.0
        rungs.append(Rung(at, plain(label if inner else f"{family} {label}"), inner))
        last = (family, control)
    return rungs


def _limits(rows: Sequence[_Row]) -> tuple[float, float]:
    """Return the range all panels of a metric share, with 0 in it."""
    factor = names.scale(rows[0]["metric"])
    ends = [factor * row[key] for row in rows for key in ("diff", "low", "high") if row[key] is not None]
    low, high = min(0.0, *ends), max(0.0, *ends)
    edge = 0.06 * ((high - low) or 1.0)
    return low - edge, high + edge


def _texts(rows: Sequence[_Row], metric: str, digits: int) -> list[str]:
    """Return difference and interval; the difference alone where there is no interval."""
    factor = names.scale(metric)

    def signed(value: float) -> str:
        return number(factor * value, digits, sign=True).replace("-", "−")

    return [
        signed(row["diff"]) + (f" [{signed(row['low'])}, {signed(row['high'])}]" if row["low"] is not None else "")
        for row in rows
    ]


def _paint(
    metric: str, rows: Sequence[_Row], rungs: Sequence[Rung], limits: tuple[float, float], panel: Any, plot: float
) -> None:
    factor = names.scale(metric)
    line_at(panel, 0)
    for row, rung in zip(rows, rungs):
        colour, marker, _ = LOOKS["control" if is_control(row) else "spo"]
        if row["low"] is not None:
            panel.plot([factor * row["low"], factor * row["high"]], [rung.at] * 2, color=colour, linewidth=1.1)
        fill = colour if significant(row) else "white"
        panel.plot(factor * row["diff"], rung.at, marker, color=colour, markerfacecolor=fill, markersize=3.6, markeredgewidth=0.9)
    panel.set_xlim(*limits)
    scale(panel, plot, plain(f"Δ {names.title(metric)}".replace(" %", " (points)")))
