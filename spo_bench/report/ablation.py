"""The table of SPO's own settings: every SPO variant and control of a method beside SPO as it is by default."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from . import names
from .audits import degree_bins
from .captions import RECONSTRUCTION, holdout_notes, level_note, method_notes, scoring_notes
from .entries import difference_entries, level_entries, model_entry, quiet, text_entry
from .grid import Column, Entry, Table
from .measure import Level, headlines, plain_spo
from .results import Cell, Results
from .tables import Numbers, better_up, length_entries, variants

Row = Mapping[str, Any]
_FAMILY = "a kind of Δ and a metric"


def ablation(numbers: Numbers) -> Table:
    """Return model › method › SPO variant, and for each task the headline metric's level, its Δ to the own baseline and to plain
    SPO, degree accuracy and length; no rows where no method has two SPO variants.
    """
    results = numbers.results
    rows = _rows(results)
    plain = plain_spo(results.cells)
    columns = [Column(key, key.capitalize(), numeric=False, once=key != "variant") for key in ("model", "method", "variant")]
    sides: list[Sequence[Entry]] = []
    compared: list[Row] = []
    levelled: list[Level] = []
    for task in results.tasks if rows else ():
        own = [[cell for cell in cells if cell.task == task] for cells in rows]
        first = [cells[0] if cells else None for cells in own]
        for metric in headlines(results, task)[:1]:
            better = better_up(numbers.levels[metric])
            arrow = names.direction(metric, better)
            found = [numbers.level(cell, metric) if cell else None for cell in first]
            levelled += [level for level in found if level]
            columns.append(Column(metric, names.title(metric), task, arrow))
            sides.append(level_entries(found, metric))
            for key, title, kind in (("difference", "Δ", "spo"), ("ablation", f"Δ {plain.label if plain else ''}", "ablation")):
                known = [numbers.comparison(cell, metric, kind) if cell else None for cell in first]
                compared += [row for row in known if row]
                columns.append(Column(f"{metric} {key}", title, task, arrow))
                entries = difference_entries(known, metric)
                blank = [kind == "ablation" and (not cell or not plain or cell.settings == plain.settings) for cell in first]
                sides.append([quiet(entry) if empty else entry for entry, empty in zip(entries, blank)])
        columns += [Column("degree_accuracy", "Degree acc. %", task), Column("length", "Length", task)]
        sides += [_degree_entries(numbers, own), length_entries(numbers, first)]
    heads = [[model_entry(cells[0].model), text_entry(cells[0].family), text_entry(cells[0].label)] for cells in rows]
    body = [[*head, *(side[i] for side in sides)] for i, head in enumerate(heads)]
    blocks = [f"{cells[0].model}|{cells[0].family}" for cells in rows]
    short = [level_note(levelled), *method_notes(compared, _FAMILY)[-1:]]
    return Table(
        "ablation", "SPO variants and controls", columns, body, blocks, _caption(numbers, compared, levelled), short=short
    )


def _rows(results: Results) -> list[list[Cell]]:
    """Return the cells of every row, over tasks and seeds: families with two or more SPO variants, plain SPO first."""
    plain = plain_spo(results.cells)
    families: dict[tuple[str, str], list[list[Cell]]] = {}
    for cells in variants(results).values():
        if cells[0].spo is not None:
            families.setdefault((cells[0].model, cells[0].family), []).append(cells)
    several = [family for family in families.values() if len(family) > 1]
    return [cells for family in several for cells in sorted(family, key=lambda some: not _same(some[0], plain))]


def _same(cell: Cell, plain: Cell | None) -> bool:
    return plain is not None and cell.settings == plain.settings


def _degree_entries(numbers: Numbers, own: Sequence[Sequence[Cell]]) -> list[Entry]:
    """Return degree accuracy over seeds: on held-out rows where it was measured there, else late in training."""
    found = [numbers.level(cells[0], "degree_accuracy") if cells else None for cells in own]
    entries = level_entries(found, "degree_accuracy", places=1)
    return [
        Entry(level.value, entry.text, low=entry.low, high=entry.high, n=level.n, source="held-out rows")
        if level
        else _trained(cells)
        for level, entry, cells in zip(found, entries, own)
    ]


def _trained(cells: Sequence[Cell]) -> Entry:
    counts = list(_counts(cells))
    right, n = (sum(count[i] for count in counts) for i in (0, 1))
    if not n:
        return Entry()
    return Entry(right / n, f"{100 * right / n:.1f}", "(train)", n=n, source="training rows, last quarter of the steps")


def _counts(cells: Sequence[Cell]) -> Iterator[Sequence[int]]:
    for cell in cells:
        for bins in degree_bins(cell)[1] if cell.done else ():
            yield from bins.values()


def _caption(numbers: Numbers, compared: Sequence[Row], levelled: Sequence[Level]) -> list[str]:
    results = numbers.results
    plain = plain_spo(results.cells)
    if plain is None:
        return []
    shown = dict.fromkeys(metric for task in results.tasks for metric in headlines(results, task)[:1])
    return [
        *scoring_notes(results, shown),
        level_note(levelled),
        f"Δ: minus the own baseline without SPO; Δ {plain.label}: minus {plain.label} of the same method and data; both on the "
        "same prompts and seeds, with 95 % intervals.",
        *holdout_notes(results),
        *method_notes(compared, _FAMILY),
        "Degree accuracy: how often the head tells the degree of a copy, on held-out rows; where “(train)” stands beside it, on "
        "training rows late in training. What guessing reaches depends on the number of degrees: compare at equal degrees only.",
        "In square brackets: a control, which takes away what SPO is claimed to work by.",
        RECONSTRUCTION,
    ]
