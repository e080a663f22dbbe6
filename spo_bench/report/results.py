"""What a finished run left, read into plain records."""

from __future__ import annotations

import json
import math
import re
import reprlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spo_bench.errors import InputError
from spo_bench.files import canonical_json, read_json, read_jsonl
from spo_bench.stats import align
from spo_bench.store.sealed import file_fault

from .whole import AGAIN, MEND, RULE, Files, signed_or_older

SFT = "sft"
"""The method name of a cell whose policy had no preference training."""
_NAMED = ("id", "model", "task", "method", "seed")
"""What every line of cells.jsonl has."""
_ID = re.compile(r"(?!\.)[\w.=+-]{1,200}")
"""A cell's id: no path, and nothing hidden."""


@dataclass(frozen=True)
class Metric:
    """One metric of one cell: a value a prompt, NaN = invalid; all sequences have shape (prompts,)."""

    ids: Sequence[str]
    values: NDArray[np.float64]
    clusters: Sequence[str | None] | None
    higher_is_better: bool
    unit: str

    def like(self, other: Metric, where: str) -> NDArray[np.float64]:
        """Return the values in the order of another metric's ids; InputError where the prompts are not the same."""
        if self.ids == other.ids:
            return self.values
        try:
            return self.values[align(other.ids, self.ids)]
        except InputError as error:
            raise InputError(f"{where}: {error.given}", error.rule, error.remedy) from error

    def among(self, ids: Sequence[str]) -> Metric:
        """Return the metric on some of its prompts, in the order of ``ids``; itself where these are not some of its own."""
        place = {name: i for i, name in enumerate(self.ids)}
        if len(place) != len(self.ids) or len(set(ids)) != len(ids) or not place.keys() >= set(ids):
            return self  # aligning the two says what is wrong
        kept = [place[name] for name in ids]
        clusters = None if self.clusters is None else [self.clusters[i] for i in kept]
        return replace(self, ids=list(ids), values=self.values[kept], clusters=clusters)


@dataclass(frozen=True)
class Cell:
    """One cell of the run: its line of cells.jsonl, and its files read when they are asked for."""

    row: Mapping[str, Any]
    directory: Path

    @property
    def id(self) -> str:
        """Return the cell's id, also the name of its directory."""
        return str(self.row["id"])

    @property
    def model(self) -> str:
        """Return the model as the run names it: a hub id, a directory or a built-in name."""
        return str(self.row["model"])

    @property
    def task(self) -> str:
        """Return the task's name."""
        return str(self.row["task"])

    @property
    def method(self) -> str:
        """Return the method's label; ``sft`` for the policy before preference training."""
        return str(self.row["method"])

    @property
    def spo(self) -> dict[str, Any] | None:
        """Return the SPO settings, or None for a baseline."""
        spo = self.row.get("spo")
        if isinstance(spo, Mapping):
            return dict(spo)
        return {} if spo else None

    @property
    def label(self) -> str:
        """Return how the variant is shown: ``+SPO``, ``+SPO(gamma=0)``, or nothing for a baseline."""
        return "" if self.spo is None else str(self.spo.get("label") or "+SPO")

    @property
    def seed(self) -> int:
        """Return the training seed."""
        return int(self.row["seed"])

    @property
    def axes(self) -> dict[str, Any]:
        """Return the cell's place on the data axes; usually empty."""
        return dict(self.row.get("axes") or {})

    @property
    def name(self) -> str:
        """Return what stands in a table's row: method, data axes, variant."""
        return " ".join(part for part in (self.family, self.label) if part)

    @property
    def family(self) -> str:
        """Return method and data axes, without the variant."""
        return self.without()

    def without(self, axis: str = "") -> str:
        """Return the family, with one data axis left out."""
        axes = ", ".join(f"{key}={value}" for key, value in sorted(self.axes.items()) if key != axis)
        return f"{self.method} ({axes})" if axes else self.method

    @property
    def done(self) -> bool:
        """Return whether the cell was finished."""
        return bool(self.row.get("status") == "done")

    @property
    def place(self) -> tuple[str, str, str, str]:
        """Return what twins over seeds and SPO share: model, task, method, axes."""
        return self.model, self.task, self.method, canonical_json(self.axes)

    def place_without(self, axis: str) -> tuple[str, str, str, str]:
        """Return the place of the cell whose data axis has its plain value, all else equal."""
        rest = {key: value for key, value in self.axes.items() if key != axis}
        return self.model, self.task, self.method, canonical_json(rest)

    @property
    def settings(self) -> str:
        """Return one text of the SPO settings, equal for equal settings."""
        return canonical_json(self.row.get("spo") or False)

    @cached_property
    def _files(self) -> Files:
        return Files(self.directory, self.row.get("keys") or {})

    def file(self, name: str) -> Path | None:
        """Return where one of the cell's files is, None where it has none; InputError where it is not as it was written."""
        return self._files.path(name)

    @cached_property
    def _read(self) -> tuple[Mapping[str, Any], dict[str, Metric]]:
        """Return scores.json without its metrics, and these as arrays: as JSON they would take most of a large run's memory."""
        if not self.directory.is_dir():
            raise InputError(
                f"cell {self.id} is listed as done, but its folder {self.directory} is missing",
                "a finished cell has a folder",
                "run the same command again: it makes what is missing",
            )
        path = self.file("scores.json") or self.directory / "scores.json"
        whole = _object(path)
        raw = whole.pop("metrics", {})
        try:
            return whole, {name: self._metric(name, one) for name, one in raw.items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            given = f"{path}: metrics are not as a run writes them ({type(error).__name__}: {error})"
            raise InputError(given, "a metric has ids and values, a number or null an id", MEND) from error

    @property
    def scores(self) -> Mapping[str, Any]:
        """Return what scores.json holds beside the metrics; InputError where a finished cell has none."""
        return self._read[0]

    @property
    def metrics(self) -> dict[str, Metric]:
        """Return the per-prompt metrics by name."""
        return self._read[1]

    @property
    def threads(self) -> int | None:
        """Return how many threads the training ran on, None where nothing was trained or nobody noted it."""
        return self.scores.get("threads")

    @property
    def scalars(self) -> dict[str, tuple[float, bool]]:
        """Return the other numbers of the cell: name -> (value, higher is better)."""
        return {
            name: (_number(raw["value"]), bool(raw.get("higher_is_better", True)))
            for name, raw in self.scores.get("scalars", {}).items()
        }

    @property
    def length_controlled(self) -> dict[str, Mapping[str, Any]]:
        """Return the win rates at equal length: name -> record with opponent, value, low, high, n, n_invalid and reason."""
        return dict(self.scores.get("length_controlled") or {})

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Return the rows of one of the cell's .jsonl files; none where the file is absent."""
        path = self.file(f"{name}.jsonl")
        if path is None:
            return []
        lines = (line for line in path.read_text(encoding="utf-8").split("\n") if line.strip())
        try:
            rows: list[dict[str, Any]] = json.loads(f"[{','.join(lines)}]")  # all at once: a run has a million of them
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: {error}", "every line of it is one JSON object", MEND) from error
        return rows

    def audit(self) -> dict[str, Any]:
        """Return the cell's own audit.json, or an empty mapping."""
        path = self.file("audit.json")
        return _object(path) if path else {}

    @cached_property
    def stages(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the identities of the stages that made the cell, by stage name; none where the cell was not finished."""
        path = self.file("spec.json")
        return dict(_object(path).get("stages") or {}) if path else {}

    @cached_property
    def provenance(self) -> Mapping[str, Any]:
        """Return where the cell's numbers come from; nothing where the cell was not finished."""
        path = self.file("provenance.json")
        return _object(path) if path else {}

    def _metric(self, name: str, raw: Mapping[str, Any]) -> Metric:
        ids = [sys.intern(str(one)) for one in raw["ids"]]  # one text for all metrics and cells
        values = np.array(raw["values"], dtype=np.float64)  # null becomes NaN
        clusters = raw.get("clusters")
        if len(values) != len(ids) or (clusters is not None and len(clusters) != len(ids)):
            raise InputError(
                f"{self.directory / 'scores.json'}: metric '{name}' has {len(ids)} ids and {len(values)} values",
                "ids, values and clusters are as long as each other",
                "delete the cell's directory and run again",
            )
        if clusters is not None and not any(one is not None for one in clusters):
            clusters = None  # every prompt stands alone
        return Metric(ids, values, clusters, bool(raw.get("higher_is_better", True)), str(raw.get("unit", "prompt")))


@dataclass(frozen=True)
class Results:
    """A run directory: run.json and the cells, in the order of cells.jsonl."""

    directory: Path
    run: Mapping[str, Any]
    cells: Sequence[Cell]

    @property
    def spec(self) -> Mapping[str, Any]:
        """Return the resolved spec."""
        return dict(self.run.get("spec") or {})

    @property
    def method_entries(self) -> dict[str, Mapping[str, Any]]:
        """Return the spec's entries of methods by their labels."""
        entries = [entry for entry in self.spec.get("methods") or [] if isinstance(entry, Mapping)]
        return {str(entry.get("label") or entry.get("name")): entry for entry in entries}

    @property
    def name(self) -> str:
        """Return the run's name."""
        return str(self.spec.get("name") or self.directory.resolve().name)

    @cached_property
    def tasks(self) -> list[str]:
        """Return the tasks, in order of first appearance."""
        return list(dict.fromkeys(cell.task for cell in self.cells))

    @property
    def audits(self) -> dict[tuple[str, str], Mapping[str, Any]]:
        """Return the data audits by (model, task), for those that have one."""
        return self._by_place("audits")

    @property
    def judge_audits(self) -> dict[tuple[str, str], Mapping[str, Any]]:
        """Return the audits of the judge by (model, task), for those that have one."""
        return self._by_place("judge_audits")

    @property
    def judge_unaudited(self) -> dict[tuple[str, str], str]:
        """Return why the judge could not be audited, by (model, task)."""
        return self._by_place("judge_unaudited")

    def _by_place(self, name: str) -> dict[tuple[str, str], Any]:
        found: Mapping[str, Any] = self.run.get(name) or {}
        places = dict.fromkeys((cell.model, cell.task) for cell in self.cells)
        return {place: found[one] for place in places if (one := "/".join(place)) in found}

    @cached_property
    def done(self) -> list[Cell]:
        """Return the finished cells."""
        return [cell for cell in self.cells if cell.done]

    @cached_property
    def measured(self) -> dict[str, list[str]]:
        """Return the names of the metrics that some finished cell of a task has, by task."""
        found: dict[str, dict[str, None]] = {task: {} for task in self.tasks}
        for cell in self.done:
            found[cell.task] |= dict.fromkeys(cell.metrics)
        return {task: list(names) for task, names in found.items()}

    @cached_property
    def axes(self) -> list[str]:
        """Return the data axes that some cell is moved along, in order of first appearance."""
        return list(dict.fromkeys(axis for cell in self.cells for axis in cell.axes))


def read_results(directory: Path) -> Results:
    """Read a run directory; InputError where it is not one."""
    for name in ("run.json", "cells.jsonl"):
        if not (directory / name).exists():
            raise InputError(
                f"{directory} has no {name}",
                "a run directory holds run.json and cells.jsonl",
                "give the directory that `spo-bench run --out` wrote",
            )
    run = read_record(directory)
    known = (run.get("files") or {}).get("cells.jsonl")
    if known and (why := file_fault(directory / "cells.jsonl", known)):
        raise InputError(f"{directory / 'cells.jsonl'} {why}", RULE, AGAIN)
    try:
        rows = list(read_jsonl(directory / "cells.jsonl"))
    except ValueError as error:
        raise InputError(f"{directory / 'cells.jsonl'}: {error}", "it holds JSON", "run the same command again") from error
    if not rows:
        raise InputError(f"{directory / 'cells.jsonl'} is empty", "a run has cells", "run the same command again")
    for number, row in enumerate(rows, 1):
        absent = [key for key in _NAMED if key not in row] if isinstance(row, Mapping) else _NAMED
        if absent or not isinstance(row["seed"], int):
            given = f"has no {', '.join(absent)}" if absent else f"has the seed {row['seed']!r}"
            raise InputError(
                f"{directory / 'cells.jsonl'}, line {number}: {given}",
                f"a line is a cell, with its {', '.join(_NAMED)}",
                "run the same command again",
            )
        if not _ID.fullmatch(str(row["id"])):  # it names a folder, also one that is written when a reference is accepted
            raise InputError(
                f"{directory / 'cells.jsonl'}, line {number}: has the id {reprlib.repr(row['id'])}",
                "a cell's id names its folder under cells/",
                "run the same command again; trust no such run of somebody else",
            )
    return Results(directory, run, [Cell(row, directory / "cells" / str(row["id"])) for row in rows])


def read_record(directory: Path) -> Mapping[str, Any]:
    """Return a run's run.json; InputError where there is none, or it is no run's."""
    path = directory / "run.json"
    if not path.is_file():
        raise InputError(
            f"'{directory}' holds no run", "a run's directory has a run.json", "give what `spo-bench run --out` wrote"
        )
    record = signed_or_older(path)
    if not isinstance(record.get("spec") or {}, Mapping):
        raise InputError(
            f"{directory / 'run.json'} is no record of a run",
            "it holds one object with the run's spec",
            "run the same command again",
        )
    return record


def _object(path: Path) -> dict[str, Any]:
    """Return the JSON object in one of a cell's files; InputError where there is none."""
    try:
        found = read_json(path)
        if not isinstance(found, dict):
            raise ValueError(f"it holds no object, but a {type(found).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: {error}", "the files of a finished cell are as the run wrote them", MEND) from error
    return found


def short_model(model: str) -> str:
    """Return a model's name without its owner or folder."""
    return model.rstrip("/").replace("\\", "/").rsplit("/", 1)[-1] or model


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
