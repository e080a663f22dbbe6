"""Make a run the reference: copy what a gate needs, and record who did so and why."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spo_bench.errors import InputError
from spo_bench.files import canonical_json, fingerprint, read_json, read_jsonl, write_jsonl, write_text
from spo_bench.report.comparable import fingerprints, portable, texts_behind, without_folder
from spo_bench.report.pairing import arms
from spo_bench.report.results import Cell, Results, read_results

from .judge import LOG, default_margins, directions, gate, left_over
from .margins import FILE, Margins, margins_text, read_margins, rounded_up
from .nights import Noise, Resolution, resolutions
from .verdict import Verdict

OWN = ("run.json", "cells.jsonl", "cells")
"""What a reference has from its run; everything else in its directory is kept."""
_RUN_KEYS = ("schema_version", "spec", "status", "started", "finished", "seconds")
_PROVENANCE_KEYS = ("spo_bench", "git", "python", "packages", "hardware")
_CELL_KEYS = ("spo_bench", "git", "python", "seed", "policy", "opponents", "reward_models")
_NAMES = ("path", "adapter", "label", "data", "metrics", "rewards", "model", "models", "labeller", "scores")
"""Keys of a spec whose values may be local paths."""


@dataclass(frozen=True)
class Accepted:
    """What accepting a run came to.

    Attributes:
        directory: the reference.
        record: the line of accepted.jsonl.
        resolutions: what the gate can see with it, by metric and family.
        margins: those of its gate.yaml; ``wrote_margins`` says whether they were written now.
        unguarded: metrics of the run that they leave out.
        warnings: what a person should know, in sentences.
    """

    directory: Path
    record: Mapping[str, Any]
    resolutions: Sequence[Resolution]
    margins: Margins
    wrote_margins: bool
    warnings: Sequence[str]
    unguarded: Sequence[str] = ()


def accept(run: Path, reference: Path, why: str, who: str) -> Accepted:
    """Make a run the reference in a directory, which is replaced as a whole; its gate.yaml and other files are kept.

    Writes run.json, cells.jsonl, and of every cell spec.json, provenance.json and the guarded metrics of scores.json, all without
    local paths and texts; gate.yaml with the recommended margins where there is none; and a line in accepted.jsonl.
    Should it be interrupted, the reference before is still there, or moved back by the next call.
    Raises InputError for a run that is not finished, has failed cells or nothing to guard, no ``why``, a directory that is a
    run's own, or local paths that cannot be told from other text.
    """
    results = _whole(run)
    _check_place(run, reference)
    _move_back(reference)
    if not why.strip():
        raise InputError("--why is empty", "a reference is accepted for a reason", "say why, for whoever reads accepted.jsonl")
    margins = read_margins(reference)
    guarding = margins or default_margins(results)
    _check_guarded(results, guarding)
    before, unread = _against(run, reference)
    noises = noise(results, guarding)
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
    place = reference.resolve()
    part = place.with_name(f".{place.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        _write(results, part, kept)
        for path in place.iterdir() if place.is_dir() else ():
            if path.name not in OWN:
                _copy(path, part / path.name)
        if margins is None:
            write_text(part / FILE, margins_text(kept))
        log = part / LOG
        write_jsonl(log, [*(read_jsonl(log) if log.is_file() else ()), record])
        _swap(part, place)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    unguarded = [name for name in directions(results) if kept.of(name) is None]
    return Accepted(reference, record, found, kept, margins is None, [*unread, *_warnings(results, kept, found)], unguarded)


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


def _move_back(reference: Path) -> None:
    """Undo an accept that was killed: what was there before lies beside the reference, and may be the only copy."""
    place, old = reference.resolve(), left_over(reference)
    if not old.exists() or (place / "run.json").is_file():
        return
    if place.exists():
        raise InputError(
            f"--reference '{reference}' holds no run, and the one before lies in {old}: an accept was interrupted",
            "a reference is never deleted unless another one takes its place",
            f"put {old} in the place of {place}, or delete it",
        )
    os.replace(old, place)


def _swap(part: Path, place: Path) -> None:
    """Put the new directory in the old one's place; should anything stop that, the old one is put back."""
    old = left_over(place)
    if place.exists():
        shutil.rmtree(old, ignore_errors=True)
    try:
        if place.exists():
            os.replace(place, old)
        os.replace(part, place)
    except BaseException:
        if old.exists() and not place.exists():
            os.replace(old, place)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _copy(path: Path, target: Path) -> None:
    """Copy a file or directory; links stay links, since what they lead to is not the reference's."""
    if path.is_dir() and not path.is_symlink():
        shutil.copytree(path, target, symlinks=True)
    else:
        shutil.copy2(path, target, follow_symlinks=False)


def _check_guarded(results: Results, margins: Margins) -> None:
    """Refuse a run of which nothing would be guarded, and directions that contradict it."""
    known = directions(results)
    margins.check_names(known)
    margins.check(known)
    measured = {name for cell in results.done for name, metric in cell.metrics.items() if np.isfinite(metric.values).any()}
    guarded = [metric for metric in known if margins.of(metric) is not None]
    if not measured & set(guarded):
        lacking = f"no valid value of {', '.join(guarded)}" if guarded else "no metric that would be guarded"
        raise InputError(
            f"'{results.directory}' has {lacking}",
            "a reference has a guarded metric with values, or a gate would have nothing to judge",
            f"guard some of these in {FILE}: {', '.join(sorted(measured))}" if measured else "accept another run",
        )


def _against(run: Path, reference: Path) -> tuple[Verdict | None, list[str]]:
    """Return what the gate says of a run against the reference before; a warning where that one cannot be read."""
    if not (reference / "run.json").is_file():
        return None, []
    try:
        return gate(run, reference), []
    except InputError as error:
        return None, [f"the reference before could not be read, and is replaced: {error.given}"]


# --- what is copied -----------------------------------------------------------------------------------------------------


def _write(results: Results, target: Path, margins: Margins) -> None:
    provenance = results.run.get("provenance") or {}
    record = {key: results.run.get(key) for key in _RUN_KEYS} | {
        "spec": _without_folders(results.spec),
        "provenance": {key: provenance[key] for key in _PROVENANCE_KEYS if key in provenance},
    }
    models = _models(results)
    _compact(target / "run.json", record)
    rows = [{key: value for key, value in cell.row.items() if key != "reason"} for cell in results.cells]
    write_jsonl(target / "cells.jsonl", [{**row, "model": models[row["model"]]} for row in rows])
    for cell in results.cells:
        folder = target / "cells" / cell.id
        _compact(folder / "spec.json", {"id": cell.id, "stages": {name: portable(one) for name, one in cell.stages.items()}})
        _compact(folder / "provenance.json", {key: cell.provenance[key] for key in _CELL_KEYS if key in cell.provenance})
        _compact(folder / "scores.json", _guarded_scores(cell, margins))


def _models(results: Results) -> dict[str, str]:
    """Return the models by what they are called in a reference: without their folders. InputError where two have one name."""
    found: dict[str, str] = {}
    for model in dict.fromkeys(cell.model for cell in results.cells):
        name = without_folder(model)
        if name in found.values():
            other = next(one for one, known in found.items() if known == name)
            raise InputError(
                f"the models '{other}' and '{model}' are both '{name}' without their folders",
                "a reference says nothing of a machine, and has a name of its own for every model",
                "give the models a `label` each, and run again",
            )
        found[model] = name
    return found


def _guarded_scores(cell: Cell, margins: Margins) -> dict[str, Any]:
    """Return the guarded metrics of a cell's scores.json, and fingerprints of what stands behind their ids."""
    raw = read_json(cell.file("scores.json") or cell.directory / "scores.json")["metrics"]
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


def _without_folders(value: Any, name: bool = False) -> Any:
    """Return a spec whose models, data and scripts are named without the folders they lie in; all other text is as it was."""
    if isinstance(value, Mapping):
        return {key: _without_folders(item, key in _NAMES) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(item, name) for item in value]
    return without_folder(value) if name else value


def _compact(path: Path, value: Any) -> None:
    if local := next(_local_paths(value), None):
        raise InputError(
            f"{path.name} of a reference would hold the local path '{local}'",
            "a reference is committed and says nothing of a machine: what made a cell is known by its content",
            "let the identity of the task or method that names it hold a hash of the content",
        )
    write_text(path, canonical_json(value) + "\n")


def _local_paths(value: Any) -> Iterator[str]:
    """Yield the texts in a JSON value that are paths of something on this machine, and no other text that looks like one."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _local_paths(item)
    elif isinstance(value, list):
        for item in value:
            yield from _local_paths(item)
    elif isinstance(value, str) and value.startswith(("/", "~/")) and "\0" not in value:
        path = Path(value)
        if len(path.parts) > 2 and len(value) < 4096 and os.path.exists(path.expanduser()):
            yield value


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
    """Return the margins with those of retraining that the noise recommends, where it is known.

    Those of evaluation stay built in: the same policies with the same seeds of sampling differ by nothing but what changed.
    """
    known = {one.metric: rounded_up(one.recommended) for one in found if one.family == "retraining" and one.recommended > 0}
    metrics = {}
    for name, margin in margins.metrics.items():
        metrics[name] = margin.model_copy(update={"retraining": known[name]}) if name in known else margin
    return Margins(margins.confidence, metrics, FILE)


def _warnings(results: Results, margins: Margins, found: Sequence[Resolution]) -> list[str]:
    said = []
    git = (results.run.get("provenance") or {}).get("git")
    if git and git.get("dirty"):
        said.append("the run was made from a dirty tree: its code is in no commit")
    for one in found:
        margin = margins.of(one.metric)
        if margin is not None and one.family == "retraining" and one.smallest > margin.retraining:
            said.append(
                f"{one.metric}, retraining: the margin {margin.retraining:g} is below the resolution {one.smallest:.3g}: "
                "more than one unchanged night in 20 may be undecided"
            )
    return said
