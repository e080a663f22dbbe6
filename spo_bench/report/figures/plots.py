"""Figures whose panels are plots of equal size: one beside the other, a shared legend below."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from .policies import MOST_LINES, Line, Looks, Place, place_title, readable
from .style import COLUMN, PAGE, Drawing, Legend, Sheet, Strip, finish, in_rows, numbered, pages

_STRIP = Strip(0.24, 1.6, 0.38)
_SIDES = (0.5, 0.08)
_Points = TypeVar("_Points")


@dataclass(frozen=True)
class Plot:
    """One panel: its title, and what draws it on axes."""

    title: str
    paint: Callable[[Any], None]


def draw_plots(name: str, caption: str, plots: Sequence[Plot], entries: Mapping[str, Any]) -> list[Drawing]:
    """Return the figure, on several pages where it is long: one or two panels in a paper's column, more across its page."""
    columns = 1 if len(plots) <= 2 else 2 if len(plots) <= 6 else 3
    width = COLUMN if columns == 1 else PAGE
    legend = Legend(entries, width)
    grouped = pages(in_rows(plots, columns), lambda _: _STRIP.height, legend.height)
    drawings = []
    for page, rows in enumerate(grouped):
        sheet = Sheet(width, columns, [_STRIP] * len(rows), _SIDES, legend.height)
        for place, plot in enumerate(one for row in rows for one in row):
            panel = sheet.panel(place)
            plot.paint(panel)
            sheet.title(panel, plot.title)
        legend.add(sheet.figure)
        drawings.append(finish(*numbered(name, caption, page, len(grouped)), sheet.figure))
    return drawings


@dataclass(frozen=True)
class Bundle:
    """The lines of one panel, with the points of each."""

    place: Place
    family: str
    """The only method in the panel; empty where all are in it."""
    lines: Mapping[Line, Any]


def bundles(found: Mapping[Place, Mapping[Line, _Points]]) -> tuple[list[Bundle], Looks, int]:
    """Return the panels of lines, their looks, and how many lines are left out.

    A panel holds all lines of a model and task. Where these are more than can be told apart, every method gets a panel of its
    own, with its most telling variants.
    """
    apart = any(len(lines) > MOST_LINES for lines in found.values())
    out, left = [], 0
    for place, lines in found.items():
        if not apart:
            out.append(Bundle(place, "", lines))
            continue
        for family in dict.fromkeys(line[0] for line in lines):
            own = [line for line in lines if line[0] == family]
            kept = readable(own)
            left += len(own) - len(kept)
            out.append(Bundle(place, family, {line: lines[line] for line in kept}))
    return out, Looks((line for one in out for line in one.lines), apart), left


def bundle_title(results: Any, bundle: Bundle) -> str:
    """Return a panel's title."""
    title = place_title(results, bundle.place)
    return f"{title} · {bundle.family}" if bundle.family else title


def entries_of(panels: Sequence[Bundle], looks: Looks) -> dict[str, Any]:
    """Return the legend of the lines."""
    return {looks.name(line): looks.entry(line) for one in panels for line in one.lines}


def left_out(count: int, what: str) -> str:
    """Return the sentence on what is not drawn; nothing where all is."""
    return f" {count} further {what}{'s' if count > 1 else ''} left out, for want of room." if count else ""


def beside(at: int, count: int, values: Sequence[float]) -> float:
    """Return how far a line's points are moved, so that the bars of several lines do not hide each other.

    Args:
        at: the line's place among the lines.
        count: how many there are.
        values: where points stand, in order.
    """
    step = min(0.012 * float(np.ptp(values)), 0.6 * float(np.diff(values).min()) / count)
    return step * (at - (count - 1) / 2)
