"""Reward against KL: how far every policy went from the reference, and what it got for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from .. import names
from ..measure import Level
from ..tables import Numbers
from .levels import LOOKS, ROLES
from .plots import Plot, draw_plots
from .policies import (
    Levels,
    Looks,
    Place,
    Policy,
    axis_title,
    headline,
    level_of,
    levels_of,
    line_of,
    of_plain_data,
    place_title,
    policies,
    what_intervals_are,
)
from .style import FILLS, INK, QUIET, Drawing, plain, sample

KL = "kl"
FAR = 10
"""Times the median KL: with a policy beyond, the axis is linear up to the median and logarithmic from there."""
NEAR = 0.015
"""Shares of a panel's width and height: markers nearer than both hide each other."""
_TICKS = [digit * 10.0**power for power in range(-4, 6) for digit in (1, 3)]
SEED_POINTS = 150
"""Points of single seeds in one panel; more would hide the policies."""


@dataclass(frozen=True)
class _Point:
    """A policy with its levels; the SFT policy is the reference itself, so its KL is 0 and has no interval."""

    policy: Policy
    kl: Level | None
    level: Level

    @property
    def x(self) -> float:
        return 0.0 if self.kl is None else self.kl.value


def draw(numbers: Numbers) -> list[Drawing]:
    """Draw the frontier of every model and task; nothing where no policy has both numbers."""
    shown, note = of_plain_data(policies(numbers.results))
    distances = levels_of(numbers, KL)
    panels = [(place, *found) for place, own in shown.items() if (found := _points(numbers, distances, place, own))]
    trained = [point.policy for *_, points in panels for point in points if point.policy.role != "sft"]
    if not trained:
        return []
    looks = Looks((line_of(one.first) for one in trained), apart=False)
    several = len({one.first.family for one in trained}) > 1

    def look(policy: Policy) -> tuple[str, str, str]:
        """Return colour, marker and filling: methods differ in colour and marker, else what a policy is does."""
        if not several:
            return LOOKS[policy.role]
        found = looks.of(line_of(policy.first))
        return found["color"], found["marker"], found["markerfacecolor"]

    entries: dict[str, Any] = {}
    for one in trained if several else ():
        colour, marker, _ = look(one)
        entries[plain(one.first.family)] = sample(colour, marker)
    for role, (colour, marker, fill) in LOOKS.items():
        if any(one.role == role for one in trained):
            entries[ROLES[role]] = sample(INK, "o", fill=FILLS[role]) if several else sample(colour, marker, fill=fill)
    entries["SFT"] = sample(INK, "+")
    plots = [Plot(place_title(numbers.results, place), partial(_paint, metric, points, look)) for place, metric, points in panels]
    seeds = [point.level.seeds for *_, points in panels for point in points]
    small = " Small points: single seeds." if any(_shows_seeds(points) for *_, points in panels) else ""
    caption = (
        "Reward against distance: the headline metric over the KL divergence to the reference, a point a policy. Thin lines lead "
        f"from a baseline to its SPO variants; crosses are {what_intervals_are(seeds)} The KL is estimated from "
        f"the policy’s own answers and may fall below 0 by chance. Triangles at a border: what runs off the panel.{small}{note}"
    )
    return draw_plots("frontier", caption, plots, entries)


def _points(numbers: Numbers, distances: Levels, place: Place, own: Sequence[Policy]) -> tuple[str, list[_Point]] | None:
    """Return the headline metric and the policies of a panel; None where nothing trained has both numbers."""
    metric = headline(numbers.results, place[1])
    if metric is None:
        return None
    levels = levels_of(numbers, metric)
    points = []
    for one in own:
        level, kl = level_of(levels, one), None if one.role == "sft" else level_of(distances, one)
        if level is not None and (kl is not None or one.role == "sft"):
            points.append(_Point(one, kl, level))
    return (metric, points) if any(point.kl is not None for point in points) else None


def _paint(metric: str, points: Sequence[_Point], look: Any, panel: Any) -> None:
    factor = names.scale(metric)
    baselines = {point.policy.first.place: point for point in points if point.policy.role == "baseline"}
    with_seeds = _shows_seeds(points)
    far: list[tuple[float, float, str]] = []
    span = float(np.ptp([point.x for point in points])), float(np.ptp([point.level.value for point in points]))
    for point in points:
        y = factor * point.level.value
        colour, marker, fill = (INK, "+", INK) if point.kl is None else look(point.policy)
        baseline = baselines.get(point.policy.first.place)
        if baseline is not None and baseline is not point:
            panel.plot([baseline.x, point.x], [factor * baseline.level.value, y], color=QUIET, linewidth=0.6, zorder=1.5)
        if point.kl is not None:
            panel.plot([point.kl.low, point.kl.high], [y, y], color=colour, linewidth=0.5, alpha=0.7, zorder=2)
        panel.plot([point.x] * 2, [factor * point.level.low, factor * point.level.high], color=colour, linewidth=0.5, alpha=0.7)
        hides = point.policy.role == "baseline" and any(_covers(point, other, span) for other in points if other is not point)
        size, inside = (8.0, "none") if hides else (4.6, fill)
        panel.plot(point.x, y, marker, color=colour, markerfacecolor=inside, markersize=size, markeredgewidth=0.9, zorder=3)
        if point.kl is not None:
            far += [(end, y, colour) for end in (point.kl.low, point.kl.high)]
            far += (
                [(x, height, colour) for x, height in _seeds(panel, point.policy, metric, colour, marker)] if with_seeds else []
            )
    _fit_kl(panel, [point.x for point in points])
    _carets(panel, far)
    panel.locator_params(axis="y", nbins=5)
    panel.grid()
    panel.set_xlabel(plain(f"{names.title(KL)} (sampled estimate)"))
    panel.set_ylabel(axis_title(metric, points[0].level.higher_is_better))


def _covers(one: _Point, other: _Point, span: tuple[float, float]) -> bool:
    """Return whether two policies of a panel so wide and high hide each other, as one does that a control does not change."""
    beside, above = abs(one.x - other.x), abs(one.level.value - other.level.value)
    return beside <= NEAR * span[0] and above <= NEAR * span[1]


def _carets(panel: Any, ends: Sequence[tuple[float, float, str]]) -> None:
    """Mark at the border what runs off the panel: ends of intervals and points of seeds, (x, y, colour) each."""
    left, right = panel.get_xlim()
    for x, y, colour in ends:
        if x < left or x > right:
            border, marker = (left, "<") if x < left else (right, ">")
            panel.plot(border, y, marker, color=colour, markersize=3, markeredgewidth=0, clip_on=False, zorder=4)


def _shows_seeds(points: Sequence[_Point]) -> bool:
    """Return whether a panel has points of single seeds: where there are several, and not too many."""
    return 0 < sum(len(point.policy.cells) for point in points if len(point.policy.cells) > 1) <= SEED_POINTS


def _fit_kl(panel: Any, places: Sequence[float]) -> None:
    """Let the policies fill the panel: intervals and seeds may run off it, and a few far ones do not press the rest together."""
    low, high = min(0.0, *places), max(0.0, *places)
    positive = [place for place in places if place > 0]
    if positive and high > FAR * np.median(positive):
        linear = float(np.median(positive))
        panel.set_xscale("symlog", linthresh=linear)
        panel.set_xticks([0.0, *(tick for tick in _TICKS if linear / 2 <= tick <= 1.5 * high)])
        panel.minorticks_off()
        panel.xaxis.set_major_formatter("{x:g}")
        panel.set_xlim(low - 0.15 * linear, 1.5 * high)
    else:
        edge = 0.1 * ((high - low) or 1.0)
        panel.locator_params(axis="x", nbins=5)
        panel.set_xlim(low - edge, high + edge)


def _seeds(panel: Any, policy: Policy, metric: str, colour: str, marker: str) -> list[tuple[float, float]]:
    """Draw a point for every seed with valid numbers, where there are several, and return the points."""
    factor = names.scale(metric)
    found: list[tuple[float, float]] = []
    for cell in policy.cells if len(policy.cells) > 1 else ():
        both = [cell.metrics[name].values for name in (KL, metric) if name in cell.metrics]
        if len(both) == 2 and all(np.isfinite(values).any() for values in both):
            found.append((float(np.nanmean(both[0])), factor * float(np.nanmean(both[1]))))
    if found:
        panel.plot(*zip(*found), marker, color=colour, markersize=2, markeredgewidth=0, alpha=0.45, zorder=2.5)
    return found
