"""How figures look and are laid out: sizes of a paper's columns, looks that survive without colour, the files of a figure."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.textpath import text_to_path

COLUMN, PAGE, TALLEST = 3.4, 7.0, 9.0
"""Inches: the width of a paper's column and of its page, and the most a figure is high before another one is begun."""
EDGE = 0.05
"""Inches: the margin around everything."""
SMALL, TITLE = 7.0, 8.0
"""Points: the font size of everything but titles, and of titles."""

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib, so a figure looks the same everywhere
    "font.size": SMALL,
    "axes.titlesize": TITLE,
    "axes.titlecolor": "#20242a",
    "axes.titlelocation": "left",
    "axes.titlepad": 4,
    "axes.labelpad": 2.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a8f98",
    "axes.labelcolor": "#3c4149",
    "axes.linewidth": 0.7,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "text.color": "#20242a",
    "text.parse_math": False,  # a name may hold dollar signs
    "xtick.color": "#5b616b",
    "ytick.color": "#5b616b",
    "xtick.labelcolor": "#3c4149",
    "ytick.labelcolor": "#3c4149",
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.pad": 2.0,
    "ytick.major.pad": 2.0,
    "grid.color": "#e4e6ea",
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.5,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "spo-bench",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
}
INK, BASELINE, SPO, QUIET = "#20242a", "#5b616b", "#b4472e", "#8a8f98"
COLOURS = (BASELINE, SPO, "#2f6690", "#7a5c99", "#3b7a57", "#b8860b", "#96476f", "#20242a")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
STROKES: Mapping[str, Sequence[Any]] = {
    "baseline": ("--",),
    "spo": ("-", (0, (5, 1)), "-.", (0, (3, 1, 1, 1, 1, 1))),
    "control": (":", (0, (1, 0.8)), (0, (1, 3)), (0, (2, 2))),
}
"""What a policy is -> the strokes of its lines, the first variant's first."""
FILLS = {"baseline": "white", "spo": None, "control": "#d4d7dc"}
"""What a policy is -> the filling of its markers; None: the colour of the line."""


@dataclass(frozen=True)
class Drawing:
    """A finished figure: its file name without ending, what it shows, and its bytes."""

    name: str
    caption: str
    png: bytes
    svg: bytes
    pdf: bytes


def finish(name: str, caption: str, figure: Figure) -> Drawing:
    """Return the figure in its three formats, without dates, so that the same numbers give the same bytes."""
    formats: dict[str, dict[str, Any]] = {
        "png": {"dpi": 200, "metadata": {"Software": None}},
        "svg": {"metadata": {"Date": None, "Creator": None}},
        "pdf": {"metadata": {"CreationDate": None, "Creator": None, "Producer": None}},
    }
    files = {}
    for ending, options in formats.items():
        file = io.BytesIO()
        figure.savefig(file, format=ending, **options)
        files[ending] = file.getvalue()
    return Drawing(name, caption, **files)


# --- text ---------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def plain(text: str) -> str:
    """Return the text as the figures' font can show it: one line, "?" for every character that the font lacks."""
    known = font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap()
    shown = "".join(letter if ord(letter) in known else "?" for letter in " ".join(text.split()))
    return f" {shown}" if shown.startswith("_") else shown  # matplotlib hides names that begin so


@lru_cache(maxsize=4096)
def breadth(text: str, size: float = SMALL) -> float:
    """Return how wide a text is in inches."""
    font = font_manager.FontProperties(family="DejaVu Sans", size=size)
    width = float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]) / 72
    return 1.02 * width  # pixels make letters a little wider


def widest(texts: Sequence[str]) -> float:
    """Return the width in inches of the widest text."""
    return max((breadth(text) for text in texts), default=0.0)


def shorten(text: str, width: float, size: float = SMALL) -> str:
    """Return the text, its middle left out where it is wider than so many inches."""
    kept = len(text)
    shown = text
    while breadth(shown, size) > width + 1e-6 and kept > 2:
        kept -= 1
        shown = f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
    return shown


# --- layout -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Strip:
    """One row of panels in inches: room above the panels (title), the panels, room below them (ticks and label)."""

    above: float
    plot: float
    below: float

    @property
    def height(self) -> float:
        """Return what the row takes in all."""
        return self.above + self.plot + self.below


class Sheet:
    """A figure whose panels have fixed places: margins are known in inches, so nothing must be measured by drawing it."""

    def __init__(
        self, width: float, columns: int, strips: Sequence[Strip], sides: tuple[float, float], foot: float = 0.0
    ) -> None:
        """Make the figure.

        Args:
            width: of the figure in inches.
            columns: panels side by side.
            strips: the rows of panels, from the top.
            sides: room left and right of every panel in inches.
            foot: room below all panels, for the legend.
        """
        self.width, self.columns, self.strips, self.sides = width, columns, strips, sides
        self.height = sum(strip.height for strip in strips) + foot
        self.figure = Figure(figsize=(width, self.height))

    @property
    def plot(self) -> float:
        """Return the width of a panel in inches."""
        return self.width / self.columns - sum(self.sides)

    def panel(self, index: int, height: float | None = None) -> Any:
        """Return new axes at a place, counted along the rows; a lower ``height`` leaves room below them."""
        row, column = divmod(index, self.columns)
        strip = self.strips[row]
        tall = height or strip.plot
        bottom = self.height - sum(one.height for one in self.strips[:row]) - strip.above - tall
        left = column * self.width / self.columns + self.sides[0]
        return self.figure.add_axes((left / self.width, bottom / self.height, self.plot / self.width, tall / self.height))

    def title(self, panel: Any, text: str, at: float = 0.0, lift: float = 0.0) -> None:
        """Write a panel's title, shortened to the room there is.

        ``at`` is its left end in widths of the panel, ``lift`` what it stands higher than usual in inches.
        """
        room = self.plot * (1 - at) + self.sides[1]
        panel.set_title(shorten(plain(text), room, TITLE), x=at, pad=STYLE["axes.titlepad"] + 72 * lift)


_Item = TypeVar("_Item")


def pages(items: Sequence[_Item], height: Callable[[_Item], float], foot: float = 0.0) -> list[list[_Item]]:
    """Return rows of panels in groups that are as high as a page allows; a row that is higher stands alone."""
    found: list[list[_Item]] = []
    for item in items:
        if not found or sum(map(height, found[-1])) + height(item) + foot > TALLEST:
            found.append([])
        found[-1].append(item)
    return found


def numbered(name: str, caption: str, page: int, count: int) -> tuple[str, str]:
    """Return name and caption of a page: the first keeps the name, so that readers find it; a single one says nothing."""
    if count == 1:
        return name, caption
    return (name if page == 0 else f"{name}-{page + 1}"), f"{caption} Part {page + 1} of {count}."


def in_rows(items: Sequence[_Item], columns: int) -> list[Sequence[_Item]]:
    """Return the items in rows of so many."""
    return [items[at : at + columns] for at in range(0, len(items), columns)]


# --- legend -------------------------------------------------------------------------------------------------------------

_LINE, _HANDLE, _GAP = 0.15, 0.36, 0.14


@dataclass(frozen=True)
class Legend:
    """The key to a figure's looks, below its panels: as many names side by side as fit."""

    entries: Mapping[str, Any]
    width: float

    @property
    def columns(self) -> int:
        """Return how many names stand side by side."""
        room = self.width - 2 * EDGE + _GAP
        fitting = int(room / (min(widest([*self.entries]), room - _HANDLE - _GAP) + _HANDLE + _GAP) + 1e-9)
        return max(1, min(fitting, len(self.entries)))

    @property
    def height(self) -> float:
        """Return the room the legend needs in inches; none where there is nothing to tell apart."""
        return _LINE * math.ceil(len(self.entries) / self.columns) + EDGE if self.entries else 0.0

    def add(self, figure: Figure) -> None:
        """Draw the legend at the foot of the figure."""
        if self.entries:
            names = [shorten(text, self.width - 2 * EDGE - _HANDLE) for text in self.entries]
            inch = 72 / SMALL  # lengths in a legend are in font sizes
            figure.legend(
                [*self.entries.values()],
                names,
                loc="lower center",
                ncols=self.columns,
                borderpad=0,
                borderaxespad=0.4,
                handlelength=0.3 * inch,
                handletextpad=0.06 * inch,
                columnspacing=_GAP * inch,
                labelspacing=0.25,
            )


def sample(colour: str, marker: str | None = None, stroke: Any = "none", fill: str | None = None) -> Line2D:
    """Return what stands for a line or a point in a legend."""
    return Line2D(
        [], [], color=colour, marker=marker, linestyle=stroke, markerfacecolor=fill or colour, markersize=4.2, linewidth=1.2
    )
