"""Along a data axis: what more data, or noisier labels, do to every policy."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.lines import Line2D

from .. import names
from ..areas import FRACTION
from ..axes import equal_note, value_of
from ..measure import Level
from ..tables import Numbers
from .plots import Bundle, Plot, beside, bundle_title, bundles, draw_plots, entries_of, left_out
from .policies import Line, Looks, Place, axis_title, headline, level_of, levels_of, line_of, policies, what_intervals_are
from .style import QUIET, Drawing

ALONG = {FRACTION: "Share of the training pairs", "label_flip": "Share of preferences turned round"}
"""The data axes whose values are numbers on a scale, with what the scale says."""


def draw(numbers: Numbers) -> list[Drawing]:
    """Draw the headline metric along every data axis that is a scale, a line a method and variant with two or more values."""
    return [drawing for axis in ALONG if axis in numbers.results.axes for drawing in _draw(numbers, axis)]


def _draw(numbers: Numbers, axis: str) -> list[Drawing]:
    results = numbers.results
    found: dict[Place, dict[Line, dict[float, Level]]] = {}
    metrics: dict[Place, str] = {}
    sft: dict[Place, Level] = {}
    for place, own in policies(results).items():
        metric = headline(results, place[1])
        if metric is None:
            continue
        metrics[place], levels = metric, levels_of(numbers, metric)
        lines: dict[Line, dict[float, Level]] = {}
        for one in own:
            level = level_of(levels, one)
            if level is not None and one.role == "sft":
                sft[place] = level
            elif level is not None:
                lines.setdefault(line_of(one.first, axis), {})[float(value_of(one.first, axis))] = level
        lines = {line: points for line, points in lines.items() if len(points) > 1}
        if lines:
            found[place] = lines
    if not found:
        return []
    panels, looks, left = bundles(found)
    plots = [
        Plot(bundle_title(results, one), partial(_paint, axis, one, metrics[one.place], looks, sft.get(one.place)))
        for one in panels
    ]
    entries = entries_of(panels, looks)
    if sft.keys() & found.keys():
        entries["SFT"] = Line2D([], [], color=QUIET, linestyle=(0, (4, 3)), linewidth=1)
    noise = "Label noise: what every policy reaches when a share of the preferences is turned round"
    what = "Data efficiency: what every policy reaches with a share of the training pairs" if axis == FRACTION else noise
    seeds = [level.seeds for lines in found.values() for points in lines.values() for level in points.values()]
    note = f" {equal_note(results)}" if axis == FRACTION else ""
    caption = f"{what}, with {what_intervals_are(seeds)}{note}{left_out(left, 'line')}"
    return draw_plots(f"axis-{axis}", caption, plots, entries)


def _paint(axis: str, bundle: Bundle, metric: str, looks: Looks, sft: Level | None, panel: Any) -> None:
    factor = names.scale(metric)
    if sft is not None:
        panel.axhline(factor * sft.value, color=QUIET, linestyle=(0, (4, 3)), linewidth=1, zorder=1)
        if np.isfinite(sft.high - sft.low):
            panel.axhspan(factor * sft.low, factor * sft.high, color=QUIET, alpha=0.13, linewidth=0, zorder=0)
    values = sorted({value for points in bundle.lines.values() for value in points})
    for at, (line, points) in enumerate(bundle.lines.items()):
        x = np.array(sorted(points))
        y, low, high = (factor * np.array([getattr(points[one], key) for one in x]) for key in ("value", "low", "high"))
        panel.errorbar(
            x + beside(at, len(bundle.lines), values),
            y,
            yerr=np.nan_to_num(np.stack([y - low, high - y])),
            **looks.of(line),
            linewidth=1.1,
            markersize=3.6,
            markeredgewidth=0.8,
            elinewidth=0.6,
        )
    panel.set_xticks(_apart(values), [f"{value:g}" for value in _apart(values)])
    panel.locator_params(axis="y", nbins=5)
    panel.grid(axis="y")
    panel.set_xlabel(ALONG[axis])
    panel.set_ylabel(axis_title(metric, next(iter(next(iter(bundle.lines.values())).values())).higher_is_better))


def _apart(values: Sequence[float]) -> list[float]:
    """Return the values that can be labelled without labels touching: from the largest down, a tenth of the range apart."""
    kept: list[float] = []
    for value in reversed(values):
        if not kept or kept[-1] - value >= 0.1 * np.ptp(values):
            kept.append(value)
    return kept[::-1]
