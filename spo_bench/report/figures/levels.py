"""What every policy reaches: its headline metric with interval, policies below each other, the SFT policy as a band."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from matplotlib.lines import Line2D

from .. import names
from ..entries import interval_text, level_decimals, level_ends
from ..grid import number
from ..measure import Level
from ..tables import Numbers
from .ladders import Ladder, Rung, draw_ladders, ladder, scale
from .policies import Policy, axis_title, headline, level_of, levels_of, of_plain_data, place_title, policies, what_intervals_are
from .style import BASELINE, COLOURS, QUIET, SPO, Drawing, sample

LOOKS: Mapping[str, tuple[str, str, str]] = {
    "baseline": (BASELINE, "o", "white"),
    "spo": (SPO, "s", SPO),
    "control": (COLOURS[2], "D", "#d4d7dc"),
}
"""What a policy is -> colour, marker and filling of its point."""
ROLES = {"baseline": "baseline", "spo": "with SPO", "control": "control of SPO"}
"""What a policy is -> what a legend calls it."""


def draw(numbers: Numbers) -> list[Drawing]:
    """Draw the levels of every model and task; nothing where no policy has a headline metric."""
    shown, note = of_plain_data(policies(numbers.results))
    ladders, roles, seeds = [], set(), set()
    for place, own in shown.items():
        metric = headline(numbers.results, place[1])
        if metric is None:
            continue
        found = levels_of(numbers, metric)
        known = [(one, level) for one in own if (level := level_of(found, one)) is not None]
        trained = [(one, level) for one, level in known if one.role != "sft"]
        sft = next((level for one, level in known if one.role == "sft"), None)
        if not trained:
            continue
        rungs = ladder([one for one, _ in trained])
        texts = _texts([level for _, level in trained], metric)
        ladders.append(Ladder(place_title(numbers.results, place), rungs, texts, partial(_paint, metric, trained, sft, rungs)))
        roles |= {one.role for one, _ in trained}
        seeds |= {level.seeds for _, level in known}
    if not ladders:
        return []
    entries = {
        ROLES[role]: sample(colour, marker, "none", fill) for role, (colour, marker, fill) in LOOKS.items() if role in roles
    }
    entries["SFT"] = Line2D([], [], color=QUIET, linestyle=(0, (4, 3)), linewidth=1)
    caption = f"What every policy reaches, with {what_intervals_are(seeds)} Dashed: the SFT policy; band: its interval.{note}"
    return draw_ladders("levels", caption, ladders, entries=entries)


def _texts(found: Sequence[Level], metric: str) -> list[str]:
    """Return values with their intervals, as tables show them."""
    digits = level_decimals(found, metric)
    return [level_text(level, metric, digits) for level in found]


def level_text(level: Level, metric: str, digits: int) -> str:
    """Return a value with its interval; the value alone where there is no interval."""
    interval = interval_text(level, metric, digits).replace("±", "± ")
    return f"{number(names.scale(metric) * level.value, digits)} {interval}".strip().replace("-", "−")


def _paint(
    metric: str, trained: Sequence[tuple[Policy, Level]], sft: Level | None, rungs: Sequence[Rung], panel: Any, plot: float
) -> None:
    factor = names.scale(metric)
    if sft is not None:
        panel.axvline(factor * sft.value, color=QUIET, linestyle=(0, (4, 3)), linewidth=1, zorder=1)
        if math.isfinite(sft.high - sft.low):
            panel.axvspan(factor * sft.low, factor * sft.high, color=QUIET, alpha=0.13, linewidth=0, zorder=0)
    for (policy, level), rung in zip(trained, rungs):
        colour, marker, fill = LOOKS[policy.role]
        ends = [factor * end for end in level_ends(level, metric)]
        panel.plot(ends, [rung.at] * 2, color=colour, linewidth=1.1, solid_capstyle="butt")
        panel.plot(factor * level.value, rung.at, marker, color=colour, markerfacecolor=fill, markersize=3.6, markeredgewidth=0.9)
    scale(panel, plot, axis_title(metric, trained[0][1].higher_is_better))
