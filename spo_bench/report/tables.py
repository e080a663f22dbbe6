"""The tables of a run, all made from the same rows that metrics.jsonl and comparisons.jsonl hold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

from spo_bench.files import canonical_json

from . import names
from .captions import RECONSTRUCTION, answer_notes, holdout_notes, level_note, method_notes, scoring_notes, threads_notes
from .entries import (
    difference_decimals,
    difference_entries,
    estimand_entry,
    level_entries,
    model_entry,
    p_text,
    plain_entry,
    quiet,
    text_entry,
)
from .grid import Bold, Column, Entry, Table
from .judges import spent_notes
from .measure import Level, curve_areas, headlines, levels, plain_spo, undominated, unjudged_notes
from .results import SFT, Cell, Results

CONTROL = "controllability"
"""The metric of relabelled data: whether answers are as good as the prompt asks them to be."""
T = TypeVar("T")
Key = tuple[str, str, str, str, str]
"""model, task, method, axes, SPO settings: what one row of results is about, seeds taken together."""


@dataclass(frozen=True)
class Numbers:
    """What the tables are made from: the run, its comparisons, and the levels of the metrics they show."""

    results: Results
    comparisons: Sequence[Mapping[str, Any]]
    levels: Mapping[str, Mapping[tuple[str, ...], Level]]

    def comparison(self, cell: Cell, metric: str, kind: str, axis: str = "") -> Mapping[str, Any] | None:
        """Return the comparison of a variant, or None; ``axis`` names the one of an "axis" comparison."""
        return self._index.get((kind, axis, metric, cell.name, *cell.place, cell.settings))

    def level(self, cell: Cell, metric: str) -> Level | None:
        """Return a metric's level over the seeds of a cell, or None."""
        return self.levels.get(metric, {}).get((*cell.place, cell.settings))

    @cached_property
    def _index(self) -> dict[tuple[str, ...], Mapping[str, Any]]:
        keys = ("metric", "variant", "model", "task", "method")
        return {
            (
                row["kind"],
                row.get("axis", ""),
                *(row[key] for key in keys),
                canonical_json(row["axes"]),
                canonical_json(row["spo"] or False),
            ): row
            for row in self.comparisons
        }


def gather(results: Results, comparisons: Sequence[Mapping[str, Any]]) -> Numbers:
    """Return what the tables need, computing the levels of every headline metric, its areas, and of length once."""
    wanted = headline_names(results)
    found = {name: levels(results, name) for name in [*wanted, "length"]}
    if results.axes:
        curves = curve_areas(results)
        found |= {f"{names.AREA}{name}": levels(curves, f"{names.AREA}{name}") for name in wanted}
        found |= {CONTROL: levels(results, CONTROL)}
    if plain_spo(results.cells) is not None:
        found |= {"degree_accuracy": levels(results, "degree_accuracy")}
    return Numbers(results, comparisons, found)


def variants(results: Results) -> dict[tuple[str, str], list[Cell]]:
    """Return the rows of a results table: (model, name) -> cells over tasks and seeds, baselines first."""
    rows: dict[tuple[str, str], list[Cell]] = {}
    families = _places((cell.model, cell.family) for cell in results.cells)
    ordered = sorted(
        results.cells, key=lambda cell: (families[(cell.model, cell.family)], cell.method != SFT, cell.spo is not None)
    )
    for cell in ordered:
        rows.setdefault((cell.model, cell.name), []).append(cell)
    models = _places(cell.model for cell in results.cells)
    return dict(sorted(rows.items(), key=lambda item: (models[item[0][0]], item[1][0].method != SFT)))


def _places(some: Iterable[T]) -> dict[T, int]:
    """Return each thing's place in order of first appearance."""
    return {one: i for i, one in enumerate(dict.fromkeys(some))}


def main(numbers: Numbers, bold: Bold = "best") -> Table:
    """Return the results table: model › method › +SPO, for each task its headline metrics, Δ to the own baseline and length, and
    what a training takes.

    ``bold``: "best" marks the best and the second of each block, "undominated" all that are not significantly worse than the
    best (``measure.undominated``).
    """
    results = numbers.results
    rows = variants(results)
    columns = [Column("model", "Model", numeric=False, once=True), Column("method", "Method", numeric=False)]
    blocks = [f"{model}|{cells[0].axes.get('holdout', '')}" for (model, _), cells in rows.items()]  # marked on the same prompts
    sides: list[list[Entry]] = []
    levelled: list[Level] = []
    for task in results.tasks:
        own = [[cell for cell in cells if cell.task == task] for cells in rows.values()]
        first = [cells[0] if cells else None for cells in own]
        for metric in headlines(results, task):
            better = better_up(numbers.levels[metric])
            found = [numbers.level(cell, metric) if cell else None for cell in first]
            levelled += [level for level in found if level]
            columns.append(Column(metric, names.title(metric), task, names.direction(metric, better)))
            entries = level_entries(found, metric)
            if bold == "best":
                sides.append(_mark(entries, blocks, better))
            else:
                sides.append(_mark_undominated(entries, blocks, own, found, metric))
            columns.append(Column(f"{metric} difference", "Δ", task, names.direction(metric, better)))
            compared = [numbers.comparison(cell, metric, "spo") if cell and cell.label else None for cell in first]
            blank = [cell is None or not cell.label for cell in first]
            sides.append([quiet(entry) if empty else entry for entry, empty in zip(difference_entries(compared, metric), blank)])
        if any("length" in cell.metrics for cells in own for cell in cells if cell.done):
            columns.append(Column("length", "Length", task))
            sides.append(length_entries(numbers, first))
    times = [_mean_scalars(cells).get("seconds", math.nan) for cells in rows.values()]
    timed = any(map(math.isfinite, times))
    if timed:
        columns.append(Column("seconds", names.title("seconds"), "", "down"))
        trained = [cells[0].method != SFT for cells in rows.values()]
        sides.append([one if own else quiet(one) for own, one in zip(trained, (plain_entry(time, "seconds") for time in times))])
    heads = [[model_entry(model), text_entry(name)] for model, name in rows]
    body = [[*head, *(side[i] for side in sides)] for i, head in enumerate(heads)]
    headline = headline_names(results)
    tests = method_notes([row for row in numbers.comparisons if row["kind"] == "spo" and row["metric"] in headline])
    short = [
        *unjudged_notes(results),
        *scoring_notes(results, headline),
        level_note(levelled),
        "Δ: with SPO minus the own baseline on the same prompts and seeds, with its 95 % interval.",
        tests[-1],
    ]
    caption = [
        *short[:-1],
        *answer_notes(results),
        *(["Train s: mean seconds of a training where it ran, over tasks and seeds; the table cost has more."] if timed else []),
        *(threads_notes(cell for cells in rows.values() for cell in cells) if timed else []),
        *_fewer_seeds(rows),
        *holdout_notes(results),
        *tests,
        RECONSTRUCTION,
    ]
    return Table("main", "Results", columns, body, [model for model, _ in rows], caption, bold=bold, short=short)


def length_entries(numbers: Numbers, cells: Sequence[Cell | None]) -> list[Entry]:
    """Return a column of mean lengths."""
    found = [numbers.level(cell, "length") if cell else None for cell in cells]
    return [replace(entry, small="") for entry in level_entries(found, "length", places=1)]


def _fewer_seeds(rows: Mapping[tuple[str, str], Sequence[Cell]]) -> list[str]:
    """Say which means rest on fewer seeds than planned: their Δ, over common seeds, is not the difference of the means shown."""
    short = []
    for (_, name), cells in rows.items():
        for task in dict.fromkeys(cell.task for cell in cells):
            some = [cell.done for cell in cells if cell.task == task]
            if 0 < sum(some) < len(some):
                short.append(f"{name} on {task} ({sum(some)} of {len(some)})")
    return [f"Fewer seeds than planned: {', '.join(short)}; Δ is over common seeds."] if short else []


def _mark(entries: Sequence[Entry], blocks: Sequence[str], higher_is_better: bool) -> list[Entry]:
    """Mark best and second of each block on unrounded values; equal values share a mark."""
    out = list(entries)
    for block in set(blocks):
        values = {e.value for e, b in zip(entries, blocks) if b == block and isinstance(e.value, float)}
        ranked = sorted(values, reverse=higher_is_better)
        if len(ranked) < 2:
            continue
        for i, (entry, own) in enumerate(zip(entries, blocks)):
            if own == block and entry.value == ranked[0]:
                out[i] = replace(entry, mark="best")
            elif own == block and len(ranked) > 2 and entry.value == ranked[1]:
                out[i] = replace(entry, mark="second")
    return out


def _mark_undominated(
    entries: Sequence[Entry],
    blocks: Sequence[str],
    cells: Sequence[Sequence[Cell]],
    found: Sequence[Level | None],
    metric: str,
) -> list[Entry]:
    """Mark all of each block that are not significantly worse than its best, where there are two or more to choose from."""
    out = list(entries)
    for block in dict.fromkeys(blocks):
        places = [i for i, own in enumerate(blocks) if own == block and isinstance(entries[i].value, float)]
        if len(places) > 1:
            policies = [[cell for cell in cells[i] if cell.done] for i in places]
            kept = undominated(policies, [found[i] for i in places], metric)
            for i in (i for i, good in zip(places, kept) if good):
                out[i] = replace(out[i], mark="best")
    return out


def training(numbers: Numbers) -> Table:
    """Return what preference training did: every trained policy against its own SFT policy."""
    return _long(numbers, "training", "training", "Trained policies against their SFT policy", short=True)


def effects(numbers: Numbers) -> Table:
    """Return every SPO contrast in every metric, one a row."""
    return _long(numbers, "spo", "effects", "With SPO against the own baseline, every metric", short=False)


def _long(numbers: Numbers, kind: str, name: str, title: str, short: bool) -> Table:
    results = numbers.results
    wanted = [*headline_names(results), "win_rate_sft"]
    chosen = [row for row in numbers.comparisons if row["kind"] == kind and (not short or row["metric"] in wanted)]
    shown = list(dict.fromkeys(row["metric"] for row in chosen))
    tasks = _places(results.tasks)
    chosen.sort(key=lambda row: tasks[row["task"]])
    texts = {"model": "Model", "task": "Task", "variant": "Policy", "baseline": "Against", "metric": "Metric"}
    results_of = {"difference": "Difference", "p": "p", "p_adjusted": "p (Holm)"}
    sizes = {"family": "Family", "n_prompts": "Prompts", "n_seeds": "Seeds"}
    columns = [Column(key, shown, numeric=False, once=key in ("model", "task", "variant")) for key, shown in texts.items()]
    columns += [Column(key, shown) for key, shown in results_of.items()]
    columns += [Column(key, shown, fold=True, said=shown.lower()) for key, shown in sizes.items()]
    columns.append(Column("estimand", "Estimand", numeric=False))
    digits = {metric: difference_decimals([row for row in chosen if row["metric"] == metric], metric) for metric in shown}
    body = []
    for row in chosen:
        arrow = {"": "", "up": " ↑", "down": " ↓"}[names.direction(row["metric"], row["higher_is_better"])]
        heads = [model_entry(row["model"]), *(text_entry(row[key]) for key in ("task", "variant", "baseline"))]
        entry = difference_entries([row], row["metric"], digits[row["metric"]])[0]
        counts = [Entry(row[key], str(row[key])) for key in ("family", "n_prompts", "n_seeds")]
        ps = [Entry(row[key], p_text(row[key])) for key in ("p", "p_adjusted")]
        metric = text_entry(names.title(row["metric"]) + arrow, row["metric"])
        body.append([*heads, metric, entry, *ps, *counts, estimand_entry(row["estimand"])])
    tests = method_notes(chosen)
    what = "Difference with its 95 % interval, in the metric’s unit (points for percent)."
    caption = [*scoring_notes(results, shown), what, *tests]
    caption += ["Win rates against the SFT policy are tested against 50 %."] if kind == "training" else [RECONSTRUCTION]
    blocks = [f"{row['model']}|{row['task']}" for row in chosen]
    return Table(name, title, columns, body, blocks, caption, short=[what, tests[-1]])


def cost(numbers: Numbers) -> Table:
    """Return what an arm costs: lengths of its answers and the scalars of its scores, means over seeds, and training time
    against the own baseline; what judging took in all stands in the caption.
    """
    results = numbers.results
    groups: dict[Key, list[Cell]] = {}
    tasks = _places(results.tasks)
    for cells in variants(results).values():
        for cell in sorted(cells, key=lambda one: tasks[one.task]):
            if cell.method != SFT or (cell.done and cell.scalars):
                groups.setdefault((*cell.place, cell.settings), []).append(cell)
    ordered = sorted(groups.items(), key=lambda item: tasks[item[0][1]])
    means = {key: _mean_scalars(cells) for key, cells in ordered}
    scalars = list(dict.fromkeys(name for found in means.values() for name in found))
    columns = [Column(key, key.capitalize(), numeric=False, once=key != "method") for key in ("model", "task", "method")]
    columns += [Column("length", "Length"), *(Column(name, names.title(name)) for name in scalars)]
    relative = "seconds" in scalars
    columns += [Column("seconds relative", "Time × baseline")] if relative else []
    lengths = length_entries(numbers, [cells[0] for _, cells in ordered])
    body = []
    for (key, cells), length in zip(ordered, lengths):
        row = [model_entry(key[0]), text_entry(key[1]), text_entry(cells[0].name), length]
        row += [plain_entry(means[key].get(name, math.nan), name) for name in scalars]
        if relative:
            base = means.get((*cells[0].place, "false"), {}).get("seconds", math.nan)
            ratio = means[key].get("seconds", math.nan) / base if base > 0 else math.nan
            row.append(plain_entry(ratio) if cells[0].label else Entry(text=""))
        body.append(row)
    caption = [
        "Means over seeds, measured where the cells ran; times depend on the machine and on what else ran there.",
        *threads_notes(cell for _, cells in ordered for cell in cells),
        "Length: of the policy’s answers, in tokens. Tokens/pair: computed a training pair, shared prefixes once.",
        *spent_notes(results),
    ]
    return Table("cost", "Cost", columns, body, [f"{key[0]}|{key[1]}" for key, _ in ordered], caption)


def _mean_scalars(cells: Sequence[Cell]) -> dict[str, float]:
    """Return the means over finished cells of the scalars they have."""
    found: dict[str, list[float]] = {}
    for cell in cells:
        for name, (value, _) in cell.scalars.items() if cell.done else ():
            found.setdefault(name, []).append(value)
    known = {name: [value for value in values if math.isfinite(value)] for name, values in found.items()}
    return {name: sum(values) / len(values) if values else math.nan for name, values in known.items()}


def headline_names(results: Results) -> list[str]:
    """Return the headline metrics of all tasks."""
    return list(dict.fromkeys(name for task in results.tasks for name in headlines(results, task)))


def better_up(found: Mapping[tuple[str, ...], Level]) -> bool:
    """Return whether more of a metric is better, by its levels."""
    return all(level.higher_is_better for level in found.values())
