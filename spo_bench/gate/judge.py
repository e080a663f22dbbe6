"""The decision of a gate: match the arms of a run and a reference, and judge every guarded metric of every arm."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote

import numpy as np

from spo_bench.report.measure import headlines
from spo_bench.report.pairing import Arm, Match, Values, changed_settings, match
from spo_bench.report.results import SFT, Results, read_record, read_results, short_model
from spo_bench.stats import Drift, as_family, non_inferiority

from .margins import FAMILIES, Family, Margin, Margins, built_in, read_margins
from .verdict import Row, Verdict

FEWEST = 5
"""Prompts, or clusters of them, below which nothing is decided."""
LOG = "accepted.jsonl"
"""Who accepted a reference, when and why; a directory with cells that has none is a run's own."""
_RATES = ("win_rate_chosen", "win_rate_sft")
_AGAIN = "run the same command again: what is finished is kept"


@dataclass(frozen=True)
class _Candidate:
    """A row that has numbers, before it is judged."""

    row: Row
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
        unfinished = candidate.run.get("finished") is None
        first = "finish the run (the same command again), and accept it" if unfinished else "accept a first reference"
        remedy, old = f"{first}: {_accepting(run, reference)}", left_over(reference)
        if old.exists():
            row = replace(row, reason=f"{row.reason}: an accept was interrupted, and what was there before lies in {old}")
            remedy = f"accept again, or move {old} back to {reference}"
        return Verdict([replace(row, remedy=remedy)], margins=margins.source if margins else "", names=names)
    known = read_results(reference)
    return judge(known, candidate, margins or default_margins(known), names)


def read_run(directory: Path) -> Results:
    """Read a run that may not be finished: then it has no cells, since those listed are an earlier run's."""
    record = read_record(directory)
    if record.get("finished") is None or not (directory / "cells.jsonl").is_file():
        return Results(directory, record, [])
    return read_results(directory)


def left_over(reference: Path) -> Path:
    """Return where a reference lies while another one takes its place, and after that only where this was interrupted."""
    place = reference.resolve()
    return place.parent / f".{place.name}.old"


def default_margins(reference: Results) -> Margins:
    """Return built-in margins of the reference's headline metrics, and of a win rate: another judge is to be noticed."""
    metrics = {}
    for task in reference.tasks:
        rates = [name for name in _RATES if name in reference.measured[task]]
        for name in dict.fromkeys([*headlines(reference, task), *rates[:1]]):
            known = [cell.metrics[name] for cell in reference.done if name in cell.metrics]
            spreads = [float(some.std()) for one in known if (some := one.values[np.isfinite(one.values)]).size]
            metrics[name] = built_in(name, known[0].higher_is_better, float(np.mean(spreads)) if spreads else math.nan)
    listed = (f"{name} {one.retraining:.3g} (retraining), {one.evaluation:.3g} (evaluation)" for name, one in metrics.items())
    return Margins(0.95, metrics, f"built-in, as there is no gate.yaml: {'; '.join(listed)}")


def judge(reference: Results, run: Results, margins: Margins, names: Mapping[str, str] | None = None) -> Verdict:
    """Judge one read run by another; see ``gate``."""
    known, measured = directions(reference), directions(run)
    margins.check_names(known, measured)
    margins.check(known | measured)
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
    accepting = _accepting(run.directory, reference.directory)
    guarded = [name for name in known if margins.of(name) is not None]
    return Verdict(
        [replace(row, remedy=row.remedy or _remedy(row, margins, accepting)) for row in rows],
        _new(found, margins),
        changed_settings(found),
        [*_notes(found), *_unhashed(found)],
        margins.source,
        margins.confidence,
        names or {},
        guarded,
        [name for name in known | measured if margins.of(name) is None],
    )


def directions(results: Results) -> dict[str, bool]:
    """Return the metrics of a run's finished cells: name -> more of it is better."""
    return {name: metric.higher_is_better for cell in results.done for name, metric in cell.metrics.items()}


def _accepting(run: Path, reference: Path) -> str:
    """Return the command that accepts a run; a reference that is a run's own directory is never replaced."""
    own = (reference / "run.json").is_file() and not (reference / LOG).is_file()
    place = "DIR" if own else quote(str(reference))
    return f"spo-bench gate {quote(str(run))} --reference {place} --accept --why TEXT"


def _remedy(row: Row, margins: Margins, accepting: str) -> str:
    """Return what to do about a row that could not be judged, other than about its cell."""
    if row.outcome == "missing":
        return f"let run and reference hold the same cells and metrics, or accept the run if the change is meant: {accepting}"
    if row.outcome != "not comparable":
        return ""
    if row.invalid > margins.max_invalid * row.valid:
        return "find out why values are invalid (samples.jsonl and judgments.jsonl of the cell)"
    return f"use the reference's limits, data and judge, or accept the run if the change is meant: {accepting}"


def _row(arm: Arm, metric: str, family: Family, **known: object) -> Row:
    cell = arm.first
    return Row(short_model(cell.model), cell.task, cell.name, metric, family, **known)  # type: ignore[arg-type]


# --- what is missing ----------------------------------------------------------------------------------------------------


def _missing_cells(one: Match, run: Results) -> Iterator[Row]:
    """Yield a row for every finished cell of the reference that the run does not have, or has not finished."""
    finished = run.run.get("finished") is not None
    status = "" if finished else f" (the run is not finished: {run.run.get('status')})"
    assert one.ours is not None  # noqa: S101 - the caller asks for the reference's arms
    for ours, theirs in one.partners:
        if ours is None or not ours.done or (theirs is not None and theirs.done):
            continue
        if theirs is None:
            reason, remedy = f"the cell is not in the run{status}", "" if finished else f"the run is not finished: {_AGAIN}"
        else:
            reason = f"the cell {theirs.row.get('status')} in the run: {theirs.row.get('reason') or 'no reason is recorded'}"
            remedy = f"remove the reason why cells failed, and {_AGAIN}"
        yield _row(one.ours, "", "retraining", outcome="missing", reason=reason, remedy=remedy, seed=ours.seed)


def _missing_metrics(reference: Results, margins: Margins) -> list[Row]:
    """Return a row for every guarded name that no cell of the reference has, though the run has it."""
    reason = "no cell of the reference has it: a reference keeps what was guarded when it was accepted"
    return [Row("", "", "", name, "retraining", "missing", reason) for name in margins.unmatched(directions(reference))]


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
    for metric, higher in one.ours.metrics.items():
        margin = margins.of(metric)
        if margin is None:
            continue
        values = one.values(metric)
        family: Family = "evaluation" if values.policies.same else "retraining"
        row = _row(one.ours, metric, family, outcome="missing", higher_is_better=higher, margin=margin.of(family))
        if absent := [theirs.seed for ours, theirs in one.pairs if metric in ours.metrics and metric not in theirs.metrics]:
            yield replace(row, reason=f"the metric is not in the run's cells of seeds {', '.join(map(str, absent))}")
            if len(absent) == len(one.pairs):
                continue
        lost, valid = values.invalid[1], values.ours.size - values.invalid[0]
        row = replace(row, invalid=lost, valid=valid)
        if reason := values.reason or _other_prompts(values) or _other_values(lost, valid, margins.max_invalid):
            yield replace(row, outcome="not comparable", reason=reason)
        elif reason := _too_few(values.units):
            yield replace(row, outcome="undecided", reason=reason, notes=_row_notes(one, values))
        else:
            yield _Candidate(replace(row, notes=_row_notes(one, values)), values, margin)


def _other_prompts(values: Values) -> str:
    """Return why the run was not evaluated on the reference's prompts; prompts it has besides are no matter."""
    lost = values.sizes[0] - values.shared
    if not lost:
        return ""
    changed = f", {values.changed} of them with another text behind their id" if values.changed else ""
    return f"other prompts: {lost} of the reference's {values.sizes[0]} are not in the run{changed}"


def _other_values(lost: int, valid: int, share: float) -> str:
    """Return why too little of the reference was measured again: what is invalid may be what went wrong."""
    return f"{lost} of {valid} values of the reference are invalid in the run" if lost > share * valid else ""


def _too_few(units: int) -> str:
    """Return why nothing can be said from so few prompts, or clusters of them; no interval from them is one."""
    if units > 1:
        return f"too few prompts: {units} that are valid on both sides, of at least {FEWEST}" if units < FEWEST else ""
    return "one prompt cannot be tested" if units else "no prompt is valid on both sides"


def _judged(candidates: Sequence[_Candidate], margins: Margins) -> list[Row]:
    """Judge all rows of a family. Seed noise is pooled over a metric; rows without noise of training are kept out of it."""
    drifts: dict[int, Drift] = {}
    for metric in dict.fromkeys(one.row.metric for one in candidates):
        for fixed in (True, False):
            places = [
                place for place, one in enumerate(candidates) if one.row.metric == metric and one.values.policies.fixed is fixed
            ]
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
    identical = np.array_equal(one.values.ours, one.values.theirs, equal_nan=True)
    row = replace(one.row, outcome=drift.outcome, reference=reference, run=run, **numbers, identical=identical)
    return replace(row, reason=_reason(row))


def _reason(row: Row) -> str:
    decline = -row.diff if row.higher_is_better else row.diff
    if row.outcome == "worse":
        return f"it declined by {decline:.4g}, p {row.p_adjusted:.2g} after correction, margin {row.margin:g}"
    if row.outcome == "undecided":
        bound = decline + row.reach
        if not math.isfinite(bound):
            return "it has no interval"
        return f"a decline of up to {bound:.4g} cannot be excluded, margin {row.margin:g}"
    return ""


def _row_notes(found: Match, values: Values) -> list[str]:
    notes = []
    if values.policies.fixed and not values.policies.same:
        which = "one seed" if len(values.policies.pairs) == 1 else "one policy for all seeds"
        notes.append(f"{which}: judged as these checkpoints, the noise of retraining is not in it")
    if found.in_order:
        notes.append("no common seed: paired in order")
    if values.sizes[1] > values.shared:
        notes.append(f"on the reference's {values.shared} prompts of the run's {values.sizes[1]}")
    return notes + values.invalid_notes("the reference", "the run")


def _unhashed(found: Sequence[Match]) -> list[str]:
    """Return which side does not record what its weights are, so that nothing can be evaluation drift."""
    paired = [one.policies.counts for one in found if one.pairs]
    sides = [name for side, name in enumerate(("reference", "run")) if any(counts[side] is None for counts in paired)]
    return [f"No hash of weights is recorded in the {' and the '.join(sides)}: judged as retrained."] if sides else []


def _notes(found: Sequence[Match]) -> list[str]:
    """Return what concerns all rows: that nothing was trained anew, or that the SFT policy under all policies was."""
    paired = [one for one in found if one.pairs]
    if paired and all(one.policies.same for one in paired):
        return ["Nothing was trained anew: only evaluation was tested."]
    anew = any(one.arm.first.method == SFT and None not in one.policies.counts and not one.policies.same for one in paired)
    trained = any(one.arm.first.method != SFT and not one.policies.same for one in paired)
    if not anew or not trained:
        return []
    return [
        "The SFT policies were trained anew, one for all seeds: what that changes is common to all arms and in no interval; "
        "margins have to leave room for it."
    ]
