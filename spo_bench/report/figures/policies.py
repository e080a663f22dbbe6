"""Whom a figure shows: the run's policies in order, and how each line is told from the others."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .. import names
from ..measure import CONFIDENCE, Level, headlines, levels
from ..results import SFT, Cell, Results, short_model
from ..tables import Numbers
from .style import COLOURS, FILLS, MARKERS, STROKES, plain, sample

Role = Literal["sft", "baseline", "spo", "control"]
Place = tuple[str, str]
"""Model and task: what a panel is about."""


@dataclass(frozen=True)
class Policy:
    """A policy over its seeds."""

    cells: Sequence[Cell]

    @property
    def first(self) -> Cell:
        """Return the cell of the first seed, which has everything that seeds share."""
        return self.cells[0]

    @property
    def role(self) -> Role:
        """Return what the policy is there for."""
        return role_of(self.first)


def role_of(cell: Cell) -> Role:
    """Return what a cell is there for."""
    if cell.method == SFT:
        return "sft"
    return "baseline" if cell.spo is None else "control" if cell.spo.get("control") else "spo"


_ORDER: Sequence[Role] = ("sft", "baseline", "spo", "control")


def policies(results: Results) -> dict[Place, list[Policy]]:
    """Return the finished policies by model and task: families in order, each baseline first and controls last."""
    found: dict[Place, dict[tuple[str, ...], list[Cell]]] = {}
    for cell in results.done:
        found.setdefault((cell.model, cell.task), {}).setdefault((*cell.place, cell.settings), []).append(cell)
    out = {}
    for place, groups in found.items():
        own = [Policy(cells) for cells in groups.values()]
        families = {family: i for i, family in enumerate(dict.fromkeys(one.first.family for one in own))}
        out[place] = sorted(own, key=lambda one: (one.role != "sft", families[one.first.family], _ORDER.index(one.role)))
    return out


def of_plain_data(found: Mapping[Place, Sequence[Policy]]) -> tuple[dict[Place, list[Policy]], str]:
    """Return the policies of plain data, and a sentence that says so; all of them where none or nothing else is there."""
    moved = {bool(one.first.axes) for own in found.values() for one in own if one.role != "sft"}
    if moved != {True, False}:
        return {place: list(own) for place, own in found.items()}, ""
    kept = {place: [one for one in own if not one.first.axes] for place, own in found.items()}
    return kept, " Only policies of plain data are shown."


def headline(results: Results, task: str) -> str | None:
    """Return the metric a figure shows of a task, or None where there is none."""
    return next(iter(headlines(results, task)), None)


Levels = Mapping[tuple[str, ...], Level]
"""A metric's levels, as ``measure.levels`` returns them."""


def levels_of(numbers: Numbers, metric: str) -> Levels:
    """Return a metric's levels, computed where the tables did not need them."""
    return numbers.levels[metric] if metric in numbers.levels else levels(numbers.results, metric)


def level_of(found: Levels, policy: Policy) -> Level | None:
    """Return a policy's level, or None where it has no number."""
    level = found.get((*policy.first.place, policy.first.settings))
    return level if level is not None and math.isfinite(level.value) else None


def place_title(results: Results, place: Place) -> str:
    """Return a panel's title: the task, after the model where the run has several."""
    several = len({cell.model for cell in results.done}) > 1
    return f"{short_model(place[0])} · {place[1]}" if several else place[1]


def axis_title(metric: str, higher_is_better: bool | None) -> str:
    """Return a metric's name with the direction that is better."""
    arrow = {"up": " ↑", "down": " ↓"}.get(names.direction(metric, higher_is_better), "") if higher_is_better is not None else ""
    return plain(names.title(metric)) + arrow


def what_intervals_are(seeds: Iterable[int]) -> str:
    """Return the sentence on the intervals of levels or differences with so many seeds each."""
    found = set(seeds)
    share = f"{100 * CONFIDENCE:g} % intervals"
    if found == {1}:
        return f"{share} over prompts alone: with one seed they speak of these checkpoints."
    return f"{share} over prompts and seeds" + (", over prompts alone where there is one seed." if 1 in found else ".")


# --- lines --------------------------------------------------------------------------------------------------------------

Line = tuple[str, str, Role]
"""Family, label of the variant ("" for the baseline), role: what a line in a plot stands for."""

MOST_LINES = 8
"""Lines in one panel; more cannot be told apart."""


def line_of(cell: Cell, axis: str = "") -> Line:
    """Return the line a cell is on; with a data axis, the line along it."""
    return cell.without(axis), cell.label, role_of(cell)


def readable(lines: Sequence[Line]) -> list[Line]:
    """Return the lines to draw of those of one method: where they are too many, the baseline, SPO and the controls first."""
    spo = [line for line in lines if line[2] == "spo"]
    ranks = {line: (_ORDER.index(line[2]) if line not in spo[1:] else len(_ORDER)) for line in lines}
    return sorted(sorted(lines, key=lambda line: ranks[line])[:MOST_LINES], key=lambda line: _ORDER.index(line[2]))


class Looks:
    """Colour, marker and stroke of every line: methods differ in colour and marker, their variants in stroke and filling.

    Where there is one method, or ``apart`` says that every method has a panel of its own, variants differ in colour and marker.
    """

    def __init__(self, lines: Iterable[Line], apart: bool) -> None:
        """Choose the looks of the lines."""
        known = list(dict.fromkeys(lines))
        self.apart = apart
        variants = list(dict.fromkeys((label, role) for _, label, role in known))
        self._variants = sorted(variants, key=lambda variant: _ORDER.index(variant[1]))
        self._families = list(dict.fromkeys(family for family, _, _ in known))
        self._by_variant = apart or len(self._families) == 1

    def of(self, line: Line) -> dict[str, Any]:
        """Return the arguments of a plot."""
        family, label, role = line
        place = self._variants.index((label, role)) if self._by_variant else self._families.index(family)
        same = [variant for variant in self._variants if variant[1] == role]
        strokes = STROKES[role]
        colour = COLOURS[place % len(COLOURS)]
        return {
            "color": colour,
            "marker": MARKERS[(place + place // len(COLOURS)) % len(MARKERS)],
            "linestyle": strokes[same.index((label, role)) % len(strokes)],
            "markerfacecolor": FILLS[role] or colour,
        }

    def name(self, line: Line) -> str:
        """Return what the legend calls a line."""
        family, label, _ = line
        return plain(label or "baseline" if self.apart else f"{family} {label or 'baseline'}")

    def entry(self, line: Line) -> Any:
        """Return what stands for a line in the legend."""
        look = self.of(line)
        return sample(look["color"], look["marker"], look["linestyle"], look["markerfacecolor"])
