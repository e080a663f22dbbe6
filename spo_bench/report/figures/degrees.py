"""Degree accuracy by length: whether the head reads more than how long a copy is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from spo_bench.stats import interval

from ..audits import bin_start, degree_bins
from ..tables import Numbers
from .plots import Bundle, Plot, bundle_title, bundles, draw_plots, entries_of, left_out
from .policies import Line, Looks, Place, line_of, policies
from .style import INK, Drawing, plain, sample

LEAST = 5
"""Copies of one length that a point needs; fewer say nothing."""
_Counts = Mapping[str, Counter[str]]
"""Bin -> "right" and "copies"."""


def draw(numbers: Numbers) -> list[Drawing]:
    """Draw the accuracy of every variant by the copy’s length; nothing where no policy has a head."""
    found: dict[Place, dict[Line, _Counts]] = {}
    chances: dict[Place, set[float]] = {}
    measured: dict[str, None] = {}
    few = False
    for place, own in policies(numbers.results).items():
        for one in own:
            counts: dict[str, Counter[str]] = {}
            for cell in one.cells:
                where, several = degree_bins(cell)
                for bins in several:
                    measured[where] = None
                    for name, (right, copies) in bins.items():
                        counts.setdefault(name, Counter()).update(right=right, copies=copies)
            few |= any(0 < count["copies"] < LEAST for count in counts.values())
            counts = {name: count for name, count in counts.items() if count["copies"] >= LEAST}
            if counts:
                found.setdefault(place, {})[line_of(one.first)] = counts
                degrees = (one.first.spo or {}).get("degrees")
                chances.setdefault(place, set()).update([1 / degrees] if degrees else [])
    if not found:
        return []
    panels, looks, left = bundles(found)
    plots = [Plot(bundle_title(numbers.results, one), partial(_paint, one, looks, sorted(chances[one.place]))) for one in panels]
    entries = entries_of(panels, looks)
    if any(chances.values()):
        entries["chance"] = sample(INK, stroke=(0, (1, 2)))
    rare = f" Lengths with fewer than {LEAST} copies are left out." if few else ""
    caption = (
        "Share of copies whose degree the head tells right, by the copy’s length in tokens, seeds together; measured on "
        f"{' or '.join(measured)}. Bars are 95 % Wilson intervals that take copies as independent. Removal shortens a text, so "
        f"compare with the controls, dotted, within a length.{rare}{left_out(left, 'variant')}"
    )
    return draw_plots("degrees", caption, plots, entries)


def _paint(bundle: Bundle, looks: Looks, chances: Sequence[float], panel: Any) -> None:
    bins = sorted({name for counts in bundle.lines.values() for name in counts}, key=bin_start)
    for chance in chances:
        panel.axhline(100 * chance, color=INK, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
    for at, (line, counts) in enumerate(bundle.lines.items()):
        known = [name for name in bins if name in counts]
        shares = np.array([_share(counts[name]) for name in known])
        x = np.array([float(bins.index(name)) for name in known]) + 0.06 * (at - (len(bundle.lines) - 1) / 2)
        reach = np.abs(shares[:, 1:] - shares[:, :1]).T
        panel.errorbar(
            x, shares[:, 0], yerr=reach, **looks.of(line), linewidth=1.1, markersize=3.4, markeredgewidth=0.8, elinewidth=0.6
        )
    panel.set_xticks(range(len(bins)), [plain(name.replace("-", "–")) for name in bins])
    if len(bins) > 5:
        panel.tick_params(axis="x", labelsize=6)
    panel.set_xlim(-0.5, len(bins) - 0.5)
    panel.set_ylim(0, 102)
    panel.grid(axis="y")
    panel.set_xlabel("Tokens of the copy")
    panel.set_ylabel("Degree accuracy %")


def _share(count: Counter[str]) -> tuple[float, float, float]:
    """Return the share of right ones in percent, with the ends of Wilson's interval."""
    right, copies = count["right"], count["copies"]
    mean, low, high, _ = interval(np.repeat([1.0, 0.0], [right, copies - right]))
    return 100 * mean, 100 * low, 100 * high
