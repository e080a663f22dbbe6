"""The tables of a run, all made from the same rows that metrics.jsonl and comparisons.jsonl hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from spo_bench.files import canonical_json

from . import names
from .judges import judge_notes
from .measure import ALPHA, Level, curve_areas, headlines, levels, unjudged_notes
from .render import Column, Entry, Table, number
from .results import SFT, Cell, Results, short_model

RECONSTRUCTION = "SPO is a reconstruction from public descriptions: no reference code exists, and its settings here are ours."
CONTROL = "controllability"
"""The metric of relabelled data: whether answers are as good as the prompt asks them to be."""
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
    return Numbers(results, comparisons, found)


def variants(results: Results) -> dict[tuple[str, str], list[Cell]]:
    """Return the rows of a results table: (model, name) -> cells over tasks and seeds, baselines first."""
    rows: dict[tuple[str, str], list[Cell]] = {}
    families = list(dict.fromkeys((cell.model, cell.family) for cell in results.cells))
    ordered = sorted(
        results.cells, key=lambda cell: (families.index((cell.model, cell.family)), cell.method != SFT, cell.spo is not None)
    )
    for cell in ordered:
        rows.setdefault((cell.model, cell.name), []).append(cell)
    models = list(dict.fromkeys(cell.model for cell in results.cells))
    return dict(sorted(rows.items(), key=lambda item: (models.index(item[0][0]), item[1][0].method != SFT)))


def main(numbers: Numbers) -> Table:
    """Return the results table: model › method › +SPO, and for each task its headline metrics, Δ to the own baseline, length."""
    results = numbers.results
    rows = variants(results)
    columns = [Column("model", "Model", numeric=False), Column("method", "Method", numeric=False)]
    blocks = [f"{model}|{cells[0].axes.get('holdout', '')}" for (model, _), cells in rows.items()]  # marked on the same prompts
    sides: list[list[Entry]] = []
    for task in results.tasks:
        first = {key: next((cell for cell in cells if cell.task == task), None) for key, cells in rows.items()}
        for metric in headlines(results, task):
            better = better_up(numbers.levels[metric])
            found = [numbers.level(cell, metric) if cell else None for cell in first.values()]
            columns.append(Column(metric, names.title(metric), task, names.direction(metric, better)))
            sides.append(_mark(level_entries(found, metric), blocks, better))
            columns.append(Column(f"{metric} difference", "Δ", task, names.direction(metric, better)))
            compared = [numbers.comparison(cell, metric, "spo") if cell and cell.label else None for cell in first.values()]
            blank = [cell is None or not cell.label for cell in first.values()]
            sides.append([quiet(entry) if empty else entry for entry, empty in zip(difference_entries(compared, metric), blank)])
        if any("length" in cell.metrics for cell in results.done if cell.task == task):
            columns.append(Column("length", "Length", task))
            found = [numbers.level(cell, "length") if cell else None for cell in first.values()]
            sides.append([replace(entry, small="") for entry in level_entries(found, "length", places=1)])
    heads = [[text_entry(short_model(model), model), text_entry(name)] for model, name in rows]
    body = [[*head, *(side[i] for side in sides)] for i, head in enumerate(heads)]
    shown = [row for row in numbers.comparisons if row["kind"] == "spo"]
    caption = [
        *unjudged_notes(results),
        *judge_notes(results),
        "Mean ± half the width of its 95 % interval.",
        "Δ: with SPO minus the own baseline on the same prompts and seeds, with its 95 % interval.",
        *_fewer_seeds(rows),
        *holdout_notes(results),
        *method_notes([row for row in shown if row["metric"] in headline_names(results)]),
        RECONSTRUCTION,
    ]
    return Table("main", "Results", columns, body, [model for model, _ in rows], caption)


def _fewer_seeds(rows: Mapping[tuple[str, str], Sequence[Cell]]) -> list[str]:
    """Say which means rest on fewer seeds than planned: their Δ, over common seeds, is not the difference of the means shown."""
    short = []
    for (_, name), cells in rows.items():
        for task in dict.fromkeys(cell.task for cell in cells):
            some = [cell.done for cell in cells if cell.task == task]
            if 0 < sum(some) < len(some):
                short.append(f"{name} on {task} ({sum(some)} of {len(some)})")
    return [f"Fewer seeds than planned: {', '.join(short)}; Δ is over common seeds."] if short else []


def holdout_notes(results: Results) -> list[str]:
    """Say which prompts hold-out cells are evaluated on; nothing where there are none."""
    return ["Cells with held-out domains are evaluated on these domains’ prompts only."] if "holdout" in results.axes else []


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
    chosen.sort(key=lambda row: results.tasks.index(row["task"]))
    texts = {"model": "Model", "task": "Task", "variant": "Policy", "baseline": "Against", "metric": "Metric"}
    sizes = {"difference": "Difference", "p": "p", "p_adjusted": "p (Holm)", "family": "Family"}
    columns = [Column(key, shown, numeric=False) for key, shown in texts.items()]
    columns += [Column(key, shown) for key, shown in {**sizes, "n_prompts": "Prompts", "n_seeds": "Seeds"}.items()]
    columns.append(Column("estimand", "Estimand", numeric=False))
    body = []
    for row in chosen:
        arrow = {"": "", "up": " ↑", "down": " ↓"}[names.direction(row["metric"], row["higher_is_better"])]
        heads = [
            text_entry(short_model(row["model"]), row["model"]),
            *(text_entry(row[key]) for key in ("task", "variant", "baseline")),
        ]
        entry = difference_entries([row], row["metric"])[0]
        counts = [Entry(row[key], str(row[key])) for key in ("family", "n_prompts", "n_seeds")]
        ps = [Entry(row[key], p_text(row[key])) for key in ("p", "p_adjusted")]
        metric = text_entry(names.title(row["metric"]) + arrow, row["metric"])
        body.append([*heads, metric, entry, *ps, *counts, text_entry(row["estimand"])])
    caption = ["Difference with its 95 % interval, in the metric's unit (points for percent).", *method_notes(chosen)]
    caption += ["Win rates against the SFT policy are tested against 50 %."] if kind == "training" else [RECONSTRUCTION]
    return Table(name, title, columns, body, [f"{row['model']}|{row['task']}" for row in chosen], caption)


def cost(numbers: Numbers) -> Table:
    """Return what a cell costs: the scalars of its scores, means over seeds, and training time against the own baseline."""
    results = numbers.results
    scalars = list(dict.fromkeys(name for cell in results.done for name in cell.scalars))
    groups: dict[Key, list[Cell]] = {}
    for cells in variants(results).values():
        for cell in sorted(cells, key=lambda one: results.tasks.index(one.task)):
            if cell.method != SFT or (cell.done and cell.scalars):
                groups.setdefault((*cell.place, cell.settings), []).append(cell)
    ordered = sorted(groups.items(), key=lambda item: results.tasks.index(item[0][1]))
    means = {
        key: {name: _mean([cell.scalars[name][0] for cell in cells if cell.done and name in cell.scalars]) for name in scalars}
        for key, cells in ordered
    }
    columns = [Column(key, key.capitalize(), numeric=False) for key in ("model", "task", "method")]
    columns += [Column(name, names.title(name)) for name in scalars]
    relative = "seconds" in scalars
    columns += [Column("seconds relative", "Time × baseline")] if relative else []
    body = []
    for key, cells in ordered:
        row = [text_entry(short_model(key[0]), key[0]), text_entry(key[1]), text_entry(cells[0].name)]
        row += [_plain(means[key][name], name) for name in scalars]
        if relative:
            base = means.get((*cells[0].place, "false"), {}).get("seconds", math.nan)
            ratio = means[key]["seconds"] / base if cells[0].label and base > 0 else math.nan
            row.append(_plain(ratio, "") if cells[0].label else Entry(text=""))
        body.append(row)
    caption = ["Means over seeds, measured where the cells ran; times depend on the machine and on what else ran there."]
    return Table("cost", "Cost", columns, body, [f"{key[0]}|{key[1]}" for key, _ in ordered], caption)


def method_notes(rows: Sequence[Mapping[str, Any]], family_of: str = "a metric") -> list[str]:
    """Return the caption's sentences on estimand, test and family, true for these comparisons.

    ``family_of`` says in words what the contrasts of one family share.
    """
    if not rows:
        return ["No comparison could be made."]
    notes = []
    estimands = dict.fromkeys(row["estimand"] for row in rows)
    if "method" in estimands:
        spreads = [row["seed_spread_p"] for row in rows if row["estimand"] == "method" and row["seed_spread_p"] is not None]
        check = f"; equal seed noise is assumed, Levene's p {p_text(min(spreads))}" if spreads else ""
        size = f"{_range(rows, 'n_prompts', 'method')} prompts × {_range(rows, 'n_seeds', 'method')} seeds, both random"
        notes.append(
            f"Estimand “the method” ({size}): two-way interval and t test, seed variance pooled over the contrasts of "
            f"{family_of}{check}."
        )
    if "checkpoints" in estimands:
        notes.append(
            f"Estimand “these checkpoints” ({_range(rows, 'n_prompts', 'checkpoints')} prompts, one seed: nothing is said about "
            "retraining): bootstrap over prompts, sign-flip test."
        )
    family = _range(rows, "family")
    notes.append(f"† p < .05 after Holm's correction over all contrasts of {family_of} (family of {family}).")
    return notes


def p_text(p: float | None) -> str:
    """Return a p for reading: three decimals, or < .001."""
    if p is None:
        return "--"
    return "< .001" if p < 0.001 else f"{p:.3f}".lstrip("0") if p < 1 else "1"


def _range(rows: Sequence[Mapping[str, Any]], key: str, estimand: str | None = None) -> str:
    values = [row[key] for row in rows if estimand in (None, row["estimand"])]
    return str(min(values)) if min(values) == max(values) else f"{min(values)}–{max(values)}"


def headline_names(results: Results) -> list[str]:
    """Return the headline metrics of all tasks."""
    return list(dict.fromkeys(name for task in results.tasks for name in headlines(results, task)))


def better_up(found: Mapping[tuple[str, ...], Level]) -> bool:
    """Return whether more of a metric is better, by its levels."""
    return all(level.higher_is_better for level in found.values())


def level_entries(found: Sequence[Level | None], metric: str, places: int | None = None) -> list[Entry]:
    """Return a column of levels with ± half of their intervals, all with as many decimals as these deserve."""
    factor = names.scale(metric)
    halves = [factor * (level.high - level.low) / 2 if level else math.nan for level in found]
    digits = names.decimals(halves) if places is None else places
    out = []
    for level, half in zip(found, halves):
        if level is None or not math.isfinite(level.value):
            out.append(Entry(n=level.n if level else 0))
            continue
        low, high = (value if math.isfinite(value) else None for value in (level.low, level.high))
        small = f"±{number(half, digits)}" if math.isfinite(half) else ""
        out.append(Entry(level.value, number(factor * level.value, digits), small, low, high, n=level.n))
    return out


def difference_entries(rows: Sequence[Mapping[str, Any] | None], metric: str) -> list[Entry]:
    """Return a column of differences with their intervals, from rows of comparisons; None is shown as missing."""
    factor = names.scale(metric)
    known = [row for row in rows if row and row["low"] is not None]
    digits = names.decimals(factor * (row["high"] - row["low"]) / 2 for row in known)
    out = []
    for row in rows:
        if row is None or row["diff"] is None:
            out.append(Entry(n=row["n_prompts"] if row else 0))
            continue
        ends = [number(factor * row[key], digits, sign=True) for key in ("low", "high") if row[key] is not None]
        p = row["p_adjusted"]
        text = number(factor * row["diff"], digits, sign=True)
        small = f"[{', '.join(ends)}]" if ends else ""
        details = {key: row[key] for key in ("low", "high", "p", "p_adjusted")}
        out.append(Entry(row["diff"], text, small, **details, n=row["n_prompts"], significant=p is not None and p < ALPHA))
    return out


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


def quiet(entry: Entry) -> Entry:
    """Return the entry, or an empty one where a missing value is nothing that is missed."""
    return replace(entry, text="", n=None) if entry.value is None else entry


def text_entry(shown: str, value: str | None = None) -> Entry:
    """Return an entry of text, with what csv and json hold where that is not what is shown."""
    return Entry(shown if value is None else value, shown)


def _plain(value: float, metric: str) -> Entry:
    if not math.isfinite(value):
        return Entry()
    shown = value * names.scale(metric)
    return Entry(value, number(shown, 0 if abs(shown) >= 1000 else 1 if abs(shown) >= 100 else 2))


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan
