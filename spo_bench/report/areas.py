"""Areas under data-efficiency curves: what a method reaches, averaged over the shares of the training data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from . import names
from .results import SFT, Cell, Metric

FRACTION = "fraction"
"""The data axis whose values are shares of the training pairs."""


@dataclass(frozen=True)
class Area(Cell):
    """The cells of one seed that differ in their share of the training pairs only, seen as one cell without that axis.

    Attributes:
        parts: the cells, by rising share.
        wanted: names of the metrics whose areas are its metrics.
    """

    parts: Sequence[Cell] = ()
    wanted: Sequence[str] = ()

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        """Return the area of each wanted metric that all parts have, under its name with ``names.AREA`` in front."""
        shared = [name for name in self.wanted if all(name in part.metrics for part in self.parts)]
        return {f"{names.AREA}{name}": self._area(name) for name in shared}

    def _area(self, name: str) -> Metric:
        """Return a metric's area, a value a prompt; NaN where one of the parts is NaN."""
        first = self.parts[0].metrics[name]
        values = [part.metrics[name].like(first, f"cell {part.id}, metric '{name}'") for part in self.parts]
        area = mean_height(np.array([share(part) for part in self.parts]), np.stack(values))
        return Metric(first.ids, area, first.clusters, first.higher_is_better, first.unit)


def areas(cells: Sequence[Cell], metrics: Mapping[str, Sequence[str]]) -> list[Cell]:
    """Return an ``Area`` for every model, task, method, SPO settings, other data axes and seed with two or more shares.

    Args:
        cells: the cells of a run, finished or not.
        metrics: task -> the metrics whose areas are wanted.

    A seed counts only where every planned share was finished: an area over fewer shares is another quantity.
    """
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        if cell.method != SFT:
            groups.setdefault((*cell.place_without(FRACTION), cell.settings), []).append(cell)
    found: list[Cell] = []
    for group in groups.values():
        shares = {share(cell) for cell in group}
        for seed in dict.fromkeys(cell.seed for cell in group):
            parts = sorted((cell for cell in group if cell.seed == seed and cell.done), key=share)
            if len(shares) > 1 and len(parts) == len(shares):
                rest = {key: value for key, value in parts[0].axes.items() if key != FRACTION}
                row = {**parts[0].row, "id": f"{parts[0].id} to {parts[-1].id}", "axes": rest}
                found.append(Area(row, parts[0].directory, parts, metrics[parts[0].task]))
    return found


def share(cell: Cell) -> float:
    """Return the share of the training pairs that a cell is trained on, in (0, 1]."""
    return float(cell.axes.get(FRACTION, names.plain_value(FRACTION)))


def mean_height(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the area under y (points, prompts) over rising x (points,) by the trapezoid rule, divided by the range of x."""
    widths = np.diff(x)
    heights: NDArray[np.float64] = widths @ (y[1:] + y[:-1]) / (2 * widths.sum())
    return heights
