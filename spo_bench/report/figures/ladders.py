"""Figures whose panels are lists: a name on the left, a mark or bar in the middle, its numbers on the right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.ticker import MaxNLocator

from .policies import Policy
from .style import (
    COLUMN,
    EDGE,
    INK,
    PAGE,
    Drawing,
    Legend,
    Sheet,
    Strip,
    breadth,
    finish,
    in_rows,
    numbered,
    pages,
    plain,
    shorten,
    widest,
)

ROW = 0.135
"""Inches a line is high."""
INDENT = 0.09
"""Inches that a variant's name stands to the right of its baseline's."""
_SPACE = 0.08


@dataclass(frozen=True)
class Rung:
    """One line of a panel: its place from the top, what it is called, and whether it belongs to the one above."""

    at: float
    text: str
    inner: bool = False

    @property
    def breadth(self) -> float:
        """Return the width of the name in inches."""
        return breadth(self.text) + INDENT * self.inner


def ladder(own: Sequence[Policy], gap: float = 0.35) -> list[Rung]:
    """Return the lines of policies, a gap before every family: a variant below its baseline goes without the method's name."""
    rungs: list[Rung] = []
    last = ""
    for policy in own:
        cell = policy.first
        inner = bool(cell.label) and cell.family == last
        at = rungs[-1].at + 1 + (0 if inner else gap) if rungs else 0.0
        rungs.append(Rung(at, plain(cell.label if inner else cell.name), inner))
        last = cell.family
    return rungs


@dataclass(frozen=True)
class Ladder:
    """One panel.

    Attributes:
        title: of the panel.
        rungs: its lines.
        numbers: what stands right of them; none where ``paint`` writes them.
        paint: draws the marks, given the axes and the width of the plot in inches.
    """

    title: str
    rungs: Sequence[Rung]
    numbers: Sequence[str]
    paint: Callable[[Any, float], None]

    @property
    def height(self) -> float:
        """Return the height of the plot in inches."""
        return ROW * (self.rungs[-1].at + 1.4)


def draw_ladders(
    name: str,
    caption: str,
    ladders: Sequence[Ladder],
    *,
    entries: Mapping[str, Any],
    least: float = 0.8,
    below: float = 0.36,
    above: float = 0.22,
    lift: float = 0.0,
) -> list[Drawing]:
    """Return the figure, on several pages where it is long.

    Panels stand below each other in a paper's column. More than three are set in two columns, and names that leave a plot less
    than ``least`` inches take the width of the page. ``above`` and ``below`` are the room around a plot, ``lift`` what its title
    stands higher than usual; all in inches.
    """
    numbers = widest([text for one in ladders for text in one.numbers])
    right = numbers + 2 * _SPACE if numbers else _SPACE
    label = max(rung.breadth for one in ladders for rung in one.rungs) + EDGE + _SPACE
    narrow = COLUMN - label - right >= least
    columns = 2 if narrow and len(ladders) > 3 else 1
    width = COLUMN if narrow and columns == 1 else PAGE
    label = min(label, width / columns - right - least)
    plot = width / columns - label - right
    legend = Legend(entries, width)

    def strip(row: Sequence[Ladder]) -> Strip:
        return Strip(above, max(one.height for one in row), below)

    grouped = pages(in_rows(ladders, columns), lambda row: strip(row).height, legend.height)
    drawings = []
    for page, rows in enumerate(grouped):
        sheet = Sheet(width, columns, [strip(row) for row in rows], (label, right), legend.height)
        for i, row in enumerate(rows):
            for j, one in enumerate(row):
                panel = sheet.panel(i * columns + j, height=one.height)
                one.paint(panel, plot)
                _write(panel, one, label, plot)
                sheet.title(panel, one.title, at=(EDGE - label) / plot, lift=lift)
        legend.add(sheet.figure)
        drawings.append(finish(*numbered(name, caption, page, len(grouped)), sheet.figure))
    return drawings


def _write(panel: Any, one: Ladder, label: float, plot: float) -> None:
    """Write names and numbers beside a panel, and fit its height to its lines."""
    beside = panel.get_yaxis_transform()
    for rung in one.rungs:
        indent = INDENT * rung.inner
        text = shorten(rung.text, label - EDGE - _SPACE - indent)
        panel.text((EDGE + indent - label) / plot, rung.at, text, transform=beside, va="center_baseline")
    for rung, text in zip(one.rungs, one.numbers):
        panel.text(1 + _SPACE / plot, rung.at, text, transform=beside, va="center_baseline", color="#3c4149")
    panel.set_yticks([])
    panel.spines["left"].set_visible(False)
    panel.set_ylim(one.rungs[-1].at + 0.7, -0.7)


def scale(panel: Any, plot: float, title: str) -> None:
    """Give a panel as many labels along its values as fit, and say what they are."""
    panel.xaxis.set_major_locator(MaxNLocator(nbins=max(2, int(plot / 0.42))))
    panel.set_xlabel(title)
    panel.grid(axis="x")


def line_at(panel: Any, value: float) -> None:
    """Draw the line that effects are read against."""
    panel.axvline(value, color=INK, linewidth=0.8, zorder=1)
