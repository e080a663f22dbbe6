"""The decision of a gate: match the arms of a run and a reference, and judge every guarded metric of every arm."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from spo_bench.errors import InputError
from spo_bench.files import read_json
from spo_bench.report.measure import headlines
from spo_bench.report.pairing import Arm, Match, Values, changed_settings, match
from spo_bench.report.results import SFT, Results, read_results, short_model
from spo_bench.stats import Drift, as_family, non_inferiority

from .margins import FAMILIES, Family, Margin, Margins, built_in, read_margins
from .verdict import Row, Verdict

ACCEPT = "accept a run: spo-bench gate RUN --reference DIR --accept --why TEXT"


@dataclass(frozen=True)
class _Candidate:
    """A row that has numbers, before it is judged."""

    row: Row
    found: Match
    values: Values
    margin: Margin


def gate(run: Path, reference: Path) -> Verdict:
    """Judge a run by a reference.

    Args:
        run: a run's directory; what was not finished in it is missing.
        reference: a directory that ``accept`` wrote, or a run's directory; its gate.yaml decides what is guarded. Nothing is
            ever written to it.

    Two families are tested apart. "evaluation": policies that are the same bit for bit on both sides, where only prompts are
    noise. "retraining": all others, where seeds are noise too. Holm corrects over all rows of a family, all metrics together.
    Raises InputError for a ``run`` that is none, a faulty gate.yaml, or a direction that contradicts the runs.
    """
    margins = read_margins(reference)
    candidate = read_run(run)
    names = {"run": candidate.name, "reference": str(reference)}
    if not ((reference / "run.json").is_file() and (reference / "cells.jsonl").is_file()):
        row = Row("", "", "", "", "retraining", "missing", f"there is no reference at {reference}")
        return Verdict([row], remedy=ACCEPT, margins=margins.source if margins else "", names=names)
    known = read_results(reference)
    return judge(known, candidate, margins or default_margins(known), names)


def read_run(directory: Path) -> Results:
    """Read a run that may not be finished: then it has no cells, since those listed are an earlier run's."""
    path = directory / "run.json"
    try:
        record = read_json(path)
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(
            f"'{directory}' holds no run ({error})", "a run's directory has a run.json", "give what `spo-bench run --out` wrote"
        ) from error
    if record.get("finished") is None or not (directory / "cells.jsonl").is_file():
        return Results(directory, record, [])
    return read_results(directory)


def default_margins(reference: Results) -> Margins:
    """Return built-in margins of the reference's headline metrics."""
    metrics = {}
    for task in reference.tasks:
        for name in headlines(reference, task):
            cells = [cell for cell in reference.done if name in cell.metrics]
            spread = float(np.nanmean([np.nanstd(cell.metrics[name].values) for cell in cells]))
            metrics[name] = built_in(name, cells[0].metrics[name].higher_is_better, spread)
    return Margins(0.95, metrics, "built-in margins (there is no gate.yaml)")


def judge(reference: Results, run: Results, margins: Margins, names: Mapping[str, str] | None = None) -> Verdict:
    """Judge one read run by another; see ``gate``."""
    margins.check({name: better for results in (reference, run) for name, better in _directions(results).items()})
    found = match(reference, run)
    rows: list[Row] = []
    candidates: list[_Candidate] = []
    for one in found:
        if one.ours is not None:
            rows += _missing_cells(one, run)
            for entry in _guarded(one, margins):
                (candidates if isinstance(entry, _Candidate) else rows).append(entry)  # type: ignore[arg-type]
    rows += _missing_metrics(reference, margins)
    rows += [row for family in FAMILIES for row in _judged([one for one in candidates if one.row.family == family], margins)]
    if not rows:
        rows.append(Row("", "", "", "", "retraining", "missing", "the reference has no finished cell with a guarded metric"))
    remedy = "" if any(row.judged for row in rows) else ACCEPT
    return Verdict(
        rows,
        _new(found, margins),
        changed_settings(found),
        _notes(found),
        remedy,
        margins.source,
        margins.confidence,
        names or {},
    )


def _directions(results: Results) -> dict[str, bool]:
    return {name: metric.higher_is_better for cell in results.done for name, metric in cell.metrics.items()}


def _row(arm: Arm, metric: str, family: Family, **known: object) -> Row:
    cell = arm.first
    return Row(short_model(cell.model), cell.task, cell.name, metric, family, **known)  # type: ignore[arg-type]


# --- what is missing ----------------------------------------------------------------------------------------------------


def _missing_cells(one: Match, run: Results) -> Iterator[Row]:
    """Yield a row for every finished cell of the reference that the run does not have, or has not finished."""
    status = "" if run.run.get("finished") else f" (the run is not finished: {run.run.get('status')})"
    assert one.ours is not None  # noqa: S101 - the caller asks for the reference's arms
    for ours, theirs in one.partners:
        if ours is None or not ours.done or (theirs is not None and theirs.done):
            continue
        if theirs is None:
            reason = f"the cell is not in the run{status}"
        else:
            reason = f"the cell {theirs.row.get('status')} in the run: {theirs.row.get('reason') or 'no reason is recorded'}"
        yield _row(one.ours, "", "retraining", outcome="missing", reason=reason, seed=ours.seed)


def _missing_metrics(reference: Results, margins: Margins) -> list[Row]:
    """Return a row for every guarded name that no cell of the reference has."""
    reason = "no cell of the reference has it: accept a run again, or take it out of gate.yaml"
    return [Row("", "", "", name, "retraining", "missing", reason) for name in margins.unmatched(_directions(reference))]


def _new(found: Sequence[Match], margins: Margins) -> list[str]:
    """Return the arms, seeds and guarded metrics that only the run has."""
    listed = []
    for one in found:
        if one.ours is None:
            listed.append(one.arm.title)
            continue
        seeds = [theirs.seed for ours, theirs in one.partners if ours is None and theirs is not None]
        listed += [f"{one.arm.title}, seed {seed}" for seed in seeds]
        if one.theirs is not None and one.ours.done:
            own = one.ours.metrics
            listed += [
                f"{one.arm.title}, metric {name}" for name in one.theirs.metrics if name not in own and name in margins.metrics
            ]
    return listed


# --- what is judged -----------------------------------------------------------------------------------------------------


def _guarded(one: Match, margins: Margins) -> Iterator[Row | _Candidate]:
    """Yield every guarded metric of an arm that has finished cells on both sides."""
    if not one.pairs or one.ours is None:
        return
    family: Family = "evaluation" if one.same_policy else "retraining"
    for metric, higher in one.ours.metrics.items():
        margin = margins.of(metric)
        if margin is None:
            continue
        row = _row(one.ours, metric, family, outcome="missing", higher_is_better=higher, margin=margin.of(family))
        if absent := [theirs.seed for ours, theirs in one.pairs if metric in ours.metrics and metric not in theirs.metrics]:
            yield replace(row, reason=f"the metric is not in the run's cells of seeds {', '.join(map(str, absent))}")
            if len(absent) == len(one.pairs):
                continue
        values = one.values(metric)
        if reason := values.reason or _other_prompts(values):
            yield replace(row, outcome="not comparable", reason=reason)
        else:
            yield _Candidate(row, one, values, margin)


def _other_prompts(values: Values) -> str:
    """Return why the run was not evaluated on the reference's prompts; prompts it has besides are no matter."""
    lost = values.sizes[0] - values.shared
    if not lost:
        return ""
    changed = f", {values.changed} of them with another text behind their id" if values.changed else ""
    return f"other prompts: {lost} of the reference's {values.sizes[0]} are not in the run{changed}"


def _judged(candidates: Sequence[_Candidate], margins: Margins) -> list[Row]:
    """Judge all rows of a family. Seed noise is pooled over a metric; rows without noise of training are kept out of it."""
    drifts: dict[int, Drift] = {}
    for metric in dict.fromkeys(one.row.metric for one in candidates):
        for fixed in (True, False):
            places = [place for place, one in enumerate(candidates) if one.row.metric == metric and one.found.fixed is fixed]
            some = [candidates[place] for place in places]
            found = non_inferiority(
                [one.values.ours for one in some],
                [one.values.theirs for one in some],
                [one.row.margin for one in some],
                higher_is_better=[one.row.higher_is_better for one in some],
                confidence=margins.confidence,
                checkpoints=fixed,
                clusters=[one.values.clusters for one in some],
            )
            drifts.update(zip(places, found))
    together = as_family([drifts[place] for place in range(len(candidates))], margins.confidence)
    return [_with(one, drift) for one, drift in zip(candidates, together)]


def _with(one: _Candidate, drift: Drift) -> Row:
    reference, run = one.values.means()
    numbers = {key: getattr(drift, key) for key in ("diff", "low", "high", "p", "p_adjusted", "n_prompts", "n_seeds", "estimand")}
    row = replace(one.row, outcome=drift.outcome, reference=reference, run=run, **numbers, notes=_row_notes(one))
    return replace(row, reason=_reason(row))


def _reason(row: Row) -> str:
    decline = -row.diff if row.higher_is_better else row.diff
    if row.outcome == "worse":
        return f"it declined by {decline:.4g}, p {row.p_adjusted:.2g} after correction, margin {row.margin:g}"
    if row.outcome == "undecided":
        bound = decline + row.reach
        return f"a decline of up to {bound:.4g} cannot be excluded, margin {row.margin:g}"
    return ""


def _row_notes(one: _Candidate) -> list[str]:
    found, values = one.found, one.values
    notes = []
    if found.fixed and not found.same_policy:
        which = "one seed" if len(found.pairs) == 1 else "one policy for all seeds"
        notes.append(f"{which}: judged as these checkpoints, the noise of retraining is not in it")
    if found.in_order:
        notes.append("no common seed: paired in order")
    if values.sizes[1] > values.shared:
        notes.append(f"on the reference's {values.shared} prompts of the run's {values.sizes[1]}")
    if invalid := int((~(np.isfinite(values.ours) & np.isfinite(values.theirs))).sum()):
        notes.append(f"{invalid} of {values.ours.size} values are invalid on a side and left out")
    return notes


def _notes(found: Sequence[Match]) -> list[str]:
    """Return what concerns all rows: an SFT policy that was trained anew stands under all policies of its model."""
    anew = [
        one for one in found if one.arm.first.method == SFT and one.pairs and None not in one.policies and not one.same_policy
    ]
    trained = any(one.arm.first.method != SFT and one.pairs and not one.same_policy for one in found)
    if not anew or not trained:
        return []
    return [
        "The SFT policies were trained anew, one for all seeds: what that changes is common to all arms and in no interval; "
        "margins have to leave room for it."
    ]
