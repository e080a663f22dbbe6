"""The table of the data axes: what less, noisier, relabelled or other training data does to every method and its SPO twin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import names
from .areas import FRACTION, share
from .captions import RECONSTRUCTION, holdout_notes, method_notes, scoring_notes
from .entries import difference_entries, level_entries, model_entry, quiet, text_entry
from .grid import Column, Entry, Table
from .measure import curve_areas, headlines
from .results import SFT, Cell, Results
from .tables import CONTROL, Numbers, better_up, headline_names

RELABEL = "relabel"
"""The data axis whose policies are asked for a quality."""


@dataclass(frozen=True)
class _Line:
    """One row: a cell at its value of one axis, or the area under the curve of all its shares (``value`` None)."""

    axis: str
    cell: Cell
    value: Any
    has_plain: bool
    """Whether the matrix has the cell at the axis's plain value, and this is another one."""

    @property
    def prefix(self) -> str:
        """Return what stands before the name of a metric of this line."""
        return names.AREA if self.value is None else ""


def axes(numbers: Numbers) -> Table:
    """Return levels along every data axis, with Δ to the plain data and Δ of SPO; no rows where no cell has an axis."""
    results = numbers.results
    lines = [line for axis in results.axes for line in _lines(results, axis)]
    heads = {"axis": "Data axis", "model": "Model", "task": "Task", "method": "Method", "variant": "Variant", "value": "Value"}
    columns = [Column(key, shown, numeric=False, once=key not in ("variant", "value")) for key, shown in heads.items()]
    sides: list[Sequence[Entry]] = []
    compared: list[Mapping[str, Any]] = []
    for metric in [*headline_names(results), *([CONTROL] if numbers.levels.get(CONTROL) else [])]:
        for column, side, rows in _columns(numbers, lines, metric):
            columns.append(column)
            sides.append(side)
            compared += rows
    body = [[*_heads(line), *(side[i] for side in sides)] for i, line in enumerate(lines)]
    blocks = ["|".join((line.axis, line.cell.model, line.cell.task, line.cell.without(line.axis))) for line in lines]
    return Table("axes", "Data axes", columns, body, blocks, _caption(results, compared))


def _columns(
    numbers: Numbers, lines: Sequence[_Line], metric: str
) -> Iterator[tuple[Column, Sequence[Entry], Sequence[Mapping[str, Any]]]]:
    """Yield a metric's columns with their entries and the comparisons they show: levels, Δ plain, Δ SPO, those there are."""
    arrow, group = names.direction(metric, better_up(numbers.levels[metric])), names.title(metric)
    judged = [_judged(numbers.results, line, metric) for line in lines]
    levels = [numbers.level(line.cell, f"{line.prefix}{metric}") for line in lines]
    yield Column(metric, "Level", group, arrow), _known(level_entries(levels, metric), judged), []
    both_sides = [yes and not (metric == CONTROL and line.axis == RELABEL) for yes, line in zip(judged, lines)]
    for key, title, expected, of in (
        ("difference", "Δ plain", [yes and line.has_plain for yes, line in zip(both_sides, lines)], "axis"),
        ("spo difference", "Δ SPO", [yes and bool(line.cell.label) for yes, line in zip(judged, lines)], "spo"),
    ):
        if any(expected):
            rows = [
                numbers.comparison(line.cell, f"{line.prefix}{metric}", of, line.axis if of == "axis" else "") if yes else None
                for yes, line in zip(expected, lines)
            ]
            column = Column(f"{metric} {key}", title, group, arrow)
            yield column, _known(difference_entries(rows, metric), expected), [row for row in rows if row]


def _judged(results: Results, line: _Line, metric: str) -> bool:
    """Return whether a line's policy is judged by the metric."""
    if metric == CONTROL:
        return RELABEL in line.cell.axes and line.value is not None
    return metric in headlines(results, line.cell.task)


def _lines(results: Results, axis: str) -> Iterator[_Line]:
    """Yield the rows of one axis: a method's baseline before its variants, each with its values in order, then its area."""
    groups: dict[tuple[str, str, str, str], dict[str, list[Cell]]] = {}
    for cell in results.cells:
        if cell.method != SFT:
            groups.setdefault(cell.place_without(axis), {}).setdefault(cell.settings, []).append(cell)
    curves = curve_areas(results).cells if axis == FRACTION else []
    areas = {(*curve.place, curve.settings): curve for curve in curves}
    for place, variants in sorted(groups.items(), key=lambda item: results.tasks.index(item[0][1])):
        for settings, cells in sorted(variants.items(), key=lambda item: item[1][0].spo is not None):
            first = {value_of(cell, axis): cell for cell in cells}
            if not any(axis in cell.axes for cell in cells):
                continue
            plain = names.plain_value(axis)
            for value in _ordered(list(first), plain):
                yield _Line(axis, first[value], value, plain in first and value != plain)
            if (*place, settings) in areas:
                yield _Line(axis, areas[(*place, settings)], None, has_plain=False)


def value_of(cell: Cell, axis: str) -> Any:
    """Return a cell's value of a data axis, the plain one where it has none."""
    return cell.axes.get(axis, names.plain_value(axis))


def _ordered(values: Sequence[Any], plain: Any) -> list[Any]:
    """Return numbers by size; other values with the plain one first and then as they came."""
    if all(isinstance(value, int | float) for value in values):
        return sorted(values)
    return sorted(values, key=lambda value: bool(value != plain))


def _heads(line: _Line) -> list[Entry]:
    cell = line.cell
    value = "area" if line.value is None else f"{line.value:g}" if isinstance(line.value, float) else str(line.value)
    return [
        text_entry(names.axis_title(line.axis), line.axis),
        model_entry(cell.model),
        text_entry(cell.task),
        text_entry(cell.without(line.axis)),
        text_entry(cell.label or "baseline"),
        text_entry(value),
    ]


def _known(entries: Sequence[Entry], expected: Sequence[bool]) -> list[Entry]:
    """Return the entries; empty where nothing is missing, since nothing could be there."""
    return [entry if wanted else quiet(entry) for entry, wanted in zip(entries, expected)]


def _caption(results: Results, compared: Sequence[Mapping[str, Any]]) -> list[str]:
    caption = scoring_notes(results, headline_names(results))
    caption += [
        "Level: mean ± half the width of its 95 % interval.",
        "Δ plain: minus the same cell with the plain value of the axis; Δ SPO: with SPO minus the own baseline at the same "
        "value; both on the same prompts and seeds, with 95 % intervals.",
    ]
    if FRACTION in results.axes:
        caption.append(equal_note(results))
    if any(row["metric"].startswith(names.AREA) for row in compared):
        shares = sorted({share(cell) for cell in results.cells if cell.method != SFT})
        caption.append(
            f"Area: under the curve over the shares of the training pairs from {shares[0]:g} to {shares[-1]:g} (trapezoid rule, "
            "per prompt and seed), divided by that range: a mean level; seeds without all shares are left out."
        )
    if "holdout" in results.axes:
        caption += [*holdout_notes(results), "Their Δ plain is over these prompts too, the plain level over all."]
    return [*caption, *method_notes(compared, "a kind, axis and metric"), RECONSTRUCTION]


def equal_note(results: Results) -> str:
    """Return the sentence on what was equal for all shares of the training pairs: passes over them or optimizer steps."""
    spec = results.spec
    steps = (spec.get("data_axes") or {}).get("equal") == "steps"
    own = {label: dict(entry.get("train") or {}) for label, entry in results.method_entries.items()}
    general = dict(spec.get("train") or {})
    methods = list(dict.fromkeys(cell.method for cell in results.cells if cell.method != SFT))
    fixed = [method for method in methods if steps or {**general, **own.get(method, {})}.get("max_steps")]
    if not fixed:
        return "All shares had equal epochs: fewer pairs, fewer optimizer steps."
    whose = "" if len(fixed) == len(methods) else f" of {', '.join(fixed)}"
    rest = ", those of the other methods equal epochs" if whose else ""
    return f"All shares{whose} had equal optimizer steps: fewer pairs, more passes over them{rest}."
