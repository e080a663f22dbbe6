"""Figures of a run as png, svg and pdf: a paper's widths, readable in black and white, the same bytes every time."""

from __future__ import annotations

from dataclasses import replace

import matplotlib as mpl
import matplotlib.style

from ..tables import Numbers
from . import along, degrees, effects, frontier, levels, training, wins
from .style import COLOURS, MARKERS, STYLE, Drawing

__all__ = ["COLOURS", "MARKERS", "STYLE", "Drawing", "draw"]


def draw(numbers: Numbers) -> list[Drawing]:
    """Draw every figure the run has data for.

    Names: levels, effects, frontier, win_rates, degrees, axis-AXIS, training-TASK[-MODEL]; one that is too long for a page is
    continued as NAME-2, NAME-3 …
    """
    drawings: dict[str, Drawing] = {}
    # What a person's own settings say, or a file beside the data, would change the pictures; it may even hand names to LaTeX.
    with mpl.style.context(["default", STYLE]):
        for part in (levels, effects, frontier, wins, degrees, along, training):
            for one in part.draw(numbers):
                name = one.name
                while name.lower() in drawings:  # two models or tasks whose names differ only in what a file name cannot hold
                    name += "_"
                drawings[name.lower()] = replace(one, name=name)
    return list(drawings.values())
