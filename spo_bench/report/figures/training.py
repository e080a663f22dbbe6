"""Training curves: how losses, accuracies and log-ratios went, with a band over seeds."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ..results import Cell, Results, short_model
from ..tables import Numbers
from .plots import left_out
from .policies import Looks, Place, Policy, line_of, of_plain_data, place_title, policies, readable
from .style import COLUMN, PAGE, Drawing, Legend, Sheet, Strip, finish, in_rows

QUANTITIES = {
    "alignment_loss": "Preference loss",
    "reward_accuracy": "Reward accuracy",
    "degree_accuracy": "Degree accuracy",
    "chosen_logratio": "Chosen log-ratio",
    "rejected_logratio": "Rejected log-ratio",
}
"""What train.jsonl holds -> what a panel calls it; shares lie between 0 and 1, log-ratios stand on one scale."""
FROM_STEP_1 = ("reward_accuracy",)
"""Quantities that are rounding noise at step 0, where the policy is the reference and every margin is 0."""
ABREAST = 4
"""Methods side by side; more are drawn in further figures."""
MOST_FIGURES = 5
"""Figures of training curves in all."""
MOST_POINTS = 150
LONGEST_NAME = 100
"""Letters of a file's name."""
_SIDES = (0.49, 0.06)
_Array = NDArray[np.float64]
_Curve = tuple[_Array, _Array, _Array, _Array]


def draw(numbers: Numbers) -> list[Drawing]:
    """Draw the training of every model and task, a column a method; nothing where no cell has a log."""
    shown, note = of_plain_data(policies(numbers.results))
    jobs: list[tuple[Place, Sequence[str], int]] = []
    for place, own in shown.items():
        families = list(dict.fromkeys(one.first.family for one in own if any(map(_has_log, one.cells))))
        jobs += [(place, part, i) for i, part in enumerate(in_rows(families, ABREAST))]
    if len(jobs) > MOST_FIGURES:
        note += f" One of {MOST_FIGURES} such figures; {len(jobs) - MOST_FIGURES} more are left out, for want of room."
    found = [_draw(numbers.results, place, shown[place], part, i, note) for place, part, i in jobs[:MOST_FIGURES]]
    return [one for one in found if one is not None]


def _has_log(cell: Cell) -> bool:
    return cell.file("train.jsonl") is not None


def _draw(results: Results, place: Place, own: Sequence[Policy], families: Sequence[str], part: int, note: str) -> Drawing | None:
    """Return one figure of some methods of a model and task; None where their logs hold nothing to draw."""
    mine = {line_of(one.first): one for one in own if one.first.family in families}
    lines = [line for family in families for line in readable([line for line in mine if line[0] == family])]
    curves = {line: _curves(mine[line]) for line in lines}
    shown = [key for key in QUANTITIES if any(key in curve for curve in curves.values())]
    if not shown:
        return None
    looks = Looks(lines, apart=True)
    width = COLUMN if len(families) <= 2 else PAGE
    legend = Legend({looks.name(line): looks.entry(line) for line in lines}, width)
    strips = [Strip(0.22 if i == 0 else 0.06, 0.88, 0.38 if i == len(shown) - 1 else 0.05) for i in range(len(shown))]
    sheet = Sheet(width, len(families), strips, _SIDES, legend.height)
    for i, key in enumerate(shown):
        for j, family in enumerate(families):
            panel = sheet.panel(i * len(families) + j)
            own_curves = [(line, curves[line][key]) for line in lines if line[0] == family and key in curves[line]]
            for at, (line, curve) in enumerate(own_curves):
                _paint(panel, curve, looks.of(line), at)
            _dress(panel, key, sheet.plot, first=j == 0, last=i == len(shown) - 1)
            if i == 0:
                sheet.title(panel, family)
    legend.add(sheet.figure)
    several = max(len(one.cells) for one in mine.values()) > 1
    band = "mean over seeds, the band from the lowest to the highest" if several else "one seed"
    left = left_out(len(mine) - len(lines), "variant")
    begin = " Reward accuracy is drawn from step 1: before it the policy is the reference." if {*shown} & {*FROM_STEP_1} else ""
    caption = f"Training on {place_title(results, place)}: {band}; smoothed over a twentieth of the steps.{begin}{left}{note}"
    model = [short_model(place[0])] if len({cell.model for cell in results.done}) > 1 else []
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", "-".join(["training", place[1], *model]))[:LONGEST_NAME]
    return finish(f"{name}-{part + 1}" if part else name, caption, sheet.figure)


def _curves(policy: Policy) -> dict[str, _Curve]:
    """Return steps, mean over seeds, lowest and highest of every quantity that was logged."""
    logs = [cell.rows("train") for cell in policy.cells]
    found: dict[str, _Curve] = {}
    for key in QUANTITIES:
        seeds = [one for log in logs if (one := _series(log, key))[0].size]
        if seeds:
            shortest = min(len(steps) for steps, _ in seeds)
            values = np.stack([some[:shortest] for _, some in seeds])
            kept = np.unique(np.linspace(0, shortest - 1, MOST_POINTS).astype(int))  # no page has room for more
            found[key] = seeds[0][0][kept], values.mean(0)[kept], values.min(0)[kept], values.max(0)[kept]
    return found


def _series(log: Sequence[Mapping[str, Any]], key: str) -> tuple[_Array, _Array]:
    """Return the steps that have a number, and the numbers, smoothed over a twentieth of them."""
    known = [(row["step"], row[key]) for row in log if row.get(key) is not None and math.isfinite(row[key])]
    if key in FROM_STEP_1:
        known = [pair for pair in known if pair[0] > 0]
    steps, values = (np.array([pair[i] for pair in known], dtype=np.float64) for i in (0, 1))
    width = max(1, len(known) // 20)
    if width > 1:
        window = np.ones(width)
        values = np.convolve(values, window, "same") / np.convolve(np.ones_like(values), window, "same")
    return steps, values


def _paint(panel: Any, curve: _Curve, look: Mapping[str, Any], at: int) -> None:
    steps, mean, low, high = curve
    if np.any(high > low):
        panel.fill_between(steps, low, high, color=look["color"], alpha=0.17, linewidth=0)
    every = max(1, len(steps) // 6)
    panel.plot(steps, mean, **look, linewidth=1.0, markersize=2.8, markeredgewidth=0.7, markevery=(at * every // 4, every))


def _dress(panel: Any, key: str, plot: float, first: bool, last: bool) -> None:
    """Give a panel its axes; steps are named below the last row, quantities before the first column."""
    panel.margins(x=0.02)
    panel.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    if key.endswith("accuracy"):
        panel.set_ylim(-0.04, 1.04)
        panel.set_yticks([0, 0.5, 1])
    else:
        panel.yaxis.set_major_locator(MaxNLocator(nbins=3))
    panel.grid(axis="y")
    if first:
        panel.set_ylabel(QUANTITIES[key])
        panel.yaxis.set_label_coords(-(_SIDES[0] - 0.14) / plot, 0.5)
    if last:
        panel.set_xlabel("Step")
    else:
        panel.tick_params(axis="x", labelbottom=False)
