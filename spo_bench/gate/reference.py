"""Make a run the reference: copy what a gate needs, and record who did so and why."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spo_bench.errors import InputError
from spo_bench.files import canonical_json, fingerprint, read_json, read_jsonl, write_jsonl, write_text
from spo_bench.report.comparable import fingerprints, texts_behind
from spo_bench.report.pairing import arms
from spo_bench.report.results import Cell, Results, read_results

from .judge import default_margins, gate
from .margins import FILE, Margin, Margins, margins_text, read_margins, rounded_up
from .nights import Noise, Resolution, resolutions

LOG = "accepted.jsonl"
OWN = ("run.json", "cells.jsonl", "cells")
"""What a reference has from its run; everything else in its directory is kept."""
_RUN_KEYS = ("schema_version", "spec", "status", "started", "finished", "seconds")
_CELL_KEYS = ("spo_bench", "git", "python", "seed", "policy", "reward_models")
_PATH = re.compile(r"^(~|/|[A-Za-z]:[\\/]|\.\.?[\\/])")


@dataclass(frozen=True)
class Accepted:
    """What accepting a run came to.

    Attributes:
        directory: the reference.
        record: the line of accepted.jsonl.
        resolutions: what the gate can see with it, by metric and family.
        margins: those of its gate.yaml; ``wrote_margins`` says whether they were written now.
        warnings: what a person should know, in sentences.
    """

    directory: Path
    record: Mapping[str, Any]
    resolutions: Sequence[Resolution]
    margins: Margins
    wrote_margins: bool
    warnings: Sequence[str]


def accept(run: Path, reference: Path, why: str, who: str) -> Accepted:
    """Make a run the reference in a directory, which is replaced as a whole; its gate.yaml and other files are kept.

    Writes run.json, cells.jsonl, and of every cell spec.json, provenance.json and the guarded metrics of scores.json, all without
    local paths and texts; gate.yaml with the recommended margins where there is none; and a line in accepted.jsonl.
    Raises InputError for a run that is not finished or has failed cells, no ``why``, or a directory that is a run's own.
    """
    results = _whole(run)
    _check_place(run, reference)
    if not why.strip():
        raise InputError("--why is empty", "a reference is accepted for a reason", "say why, for whoever reads accepted.jsonl")
    margins = read_margins(reference)
    before = gate(run, reference) if (reference / "run.json").is_file() else None
    noises = noise(results, margins or default_margins(results))
    found = resolutions(noises, margins.confidence if margins else 0.95)
    kept = margins or _recommended(default_margins(results), found)
    record = {
        "who": who,
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "why": why.strip(),
        "run": results.name,
        "git": (results.run.get("provenance") or {}).get("git"),
        "against_previous": before.counts if before else None,
    }
    part = reference.with_name(f".{reference.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        _write(results, part, kept)
        for path in reference.iterdir() if reference.is_dir() else ():
            if path.name not in OWN:
                (shutil.copytree if path.is_dir() else shutil.copy2)(path, part / path.name)
        if margins is None:
            write_text(part / FILE, margins_text(kept))
        log = part / LOG
        write_jsonl(log, [*(read_jsonl(log) if log.is_file() else ()), record])
        _swap(part, reference)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Accepted(reference, record, found, kept, margins is None, _warnings(results, kept, found))


def _whole(run: Path) -> Results:
    results = read_results(run)
    failed = [cell for cell in results.cells if not cell.done]
    if failed or not results.cells or results.run.get("finished") is None:
        given = f"{len(failed)} of {len(results.cells)} cells failed, such as {failed[0].id}" if failed else "it is not finished"
        raise InputError(f"'{run}': {given}", "a reference has all its cells", "run the same command again, then accept")
    return results


def _check_place(run: Path, reference: Path) -> None:
    """Refuse a reference that is a run itself: replacing it would delete the run."""
    ours, theirs = run.resolve(), reference.resolve()
    same = ours == theirs or theirs in ours.parents or ours in theirs.parents
    if same or ((reference / "run.json").is_file() and not (reference / LOG).is_file()):
        raise InputError(
            f"--reference '{reference}' is a run's own directory",
            "a reference is a directory of its own, which is replaced",
            "give another directory, such as results/reference",
        )
    if reference.exists() and not reference.is_dir():
        raise InputError(f"--reference '{reference}' is a file", "a reference is a directory", "give another place")


def _swap(part: Path, reference: Path) -> None:
    """Put the new directory in the old one's place; should that fail, the old one is put back."""
    place = reference.resolve()
    old = place.with_name(f".{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        os.replace(place, old)
    try:
        os.replace(part, place)
    except OSError:
        if old.exists():
            os.replace(old, place)
        raise
    shutil.rmtree(old, ignore_errors=True)


# --- what is copied -----------------------------------------------------------------------------------------------------


def _write(results: Results, target: Path, margins: Margins) -> None:
    provenance = dict(results.run.get("provenance") or {})
    provenance.pop("command", None)
    record = {key: results.run.get(key) for key in _RUN_KEYS} | {"provenance": provenance}
    _compact(target / "run.json", _without_paths(record))
    rows = [{key: value for key, value in cell.row.items() if key != "reason"} for cell in results.cells]
    write_jsonl(target / "cells.jsonl", _without_paths(rows))
    for cell in results.cells:
        folder = target / "cells" / cell.id
        _compact(folder / "spec.json", _without_paths({"id": cell.id, "stages": cell.stages}))
        _compact(folder / "provenance.json", {key: cell.provenance[key] for key in _CELL_KEYS if key in cell.provenance})
        _compact(folder / "scores.json", _guarded_scores(cell, margins))


def _guarded_scores(cell: Cell, margins: Margins) -> dict[str, Any]:
    """Return the guarded metrics of a cell's scores.json, and fingerprints of what stands behind their ids."""
    raw = read_json(cell.directory / "scores.json")["metrics"]
    metrics = {name: {**raw[name], "clusters": _numbered(raw[name])} for name in raw if margins.of(name) is not None}
    needed = {kind for name in metrics for kind in texts_behind(name, cell.metrics[name])}
    known = fingerprints(cell)
    return {"metrics": metrics, "prompts": {kind: known[kind] for kind in sorted(needed & known.keys())}}


def _numbered(metric: Mapping[str, Any]) -> list[str] | None:
    """Return short labels of a metric's clusters, which may be whole texts; None where every prompt stands alone."""
    clusters = metric.get("clusters")
    if clusters is None or len(set(clusters)) == len(clusters):
        return None
    return [None if label is None else fingerprint(str(label))[:12] for label in clusters]  # type: ignore[misc]


def _without_paths(value: Any) -> Any:
    """Return a JSON value whose local paths are their last parts: a reference is committed, and says nothing of a machine."""
    if isinstance(value, Mapping):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    return re.split(r"[\\/]", value.rstrip("\\/"))[-1] if isinstance(value, str) and _PATH.match(value) else value


def _compact(path: Path, value: Any) -> None:
    write_text(path, canonical_json(value) + "\n")


# --- how fine it sees ---------------------------------------------------------------------------------------------------


def noise(results: Results, margins: Margins) -> dict[str, list[Noise]]:
    """Return the noise of every guarded metric's arms, by metric."""
    found: dict[str, list[Noise]] = {}
    for arm in arms(results):
        for metric in arm.metrics:
            if margins.of(metric) is not None:
                cells = [cell for cell in arm.done if metric in cell.metrics]
                first = cells[0].metrics[metric]
                values = np.stack([cell.metrics[metric].like(first, f"cell {cell.id}, metric '{metric}'") for cell in cells])
                policies = {cell.provenance.get("policy") for cell in cells}
                found.setdefault(metric, []).append(Noise.of(values, first.clusters, None if None in policies else len(policies)))
    return found


def _recommended(margins: Margins, found: Sequence[Resolution]) -> Margins:
    """Return the margins with those that the noise recommends, where it is known."""
    known = {(one.metric, one.family): one.recommended for one in found if one.recommended > 0}
    metrics = {}
    for name, margin in margins.metrics.items():
        own = {family: rounded_up(known[name, family]) for family in ("evaluation", "retraining") if (name, family) in known}
        metrics[name] = Margin.model_validate({**margin.model_dump(), **own})
    return Margins(margins.confidence, metrics, FILE)


def _warnings(results: Results, margins: Margins, found: Sequence[Resolution]) -> list[str]:
    said = []
    git = (results.run.get("provenance") or {}).get("git")
    if git and git.get("dirty"):
        said.append("the run was made from a dirty tree: its code is in no commit")
    known = {metric for cell in results.done for metric in cell.metrics}
    said += [
        f"{FILE} names '{name}', which the run does not have: every night will find it missing"
        for name in margins.unmatched(known)
    ]
    for one in found:
        margin = margins.of(one.metric)
        if margin is not None and one.smallest > margin.of(one.family):
            said.append(
                f"{one.metric}, {one.family}: the margin {margin.of(one.family):g} is below the resolution {one.smallest:.3g}: "
                "more than one unchanged night in 20 may be undecided"
            )
    return said
