"""What would run: every stage of every cell, whether it is done, and why not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spo_bench.files import read_jsonl
from spo_bench.matrix.cells import Cell
from spo_bench.stages.base import Stage
from spo_bench.store.artifacts import Store

MOST = 3  # changes in one line


@dataclass(frozen=True)
class StageState:
    """One stage of one cell: "done" (in the store), "stale" (an earlier run made it from other inputs, or it is in the store with
    verdicts that may go better another time), or "missing".
    """

    cell: str
    name: str
    stage: Stage
    state: str
    why: str


def stage_states(
    cells: Sequence[Cell], store: Store, earlier: Mapping[str, Mapping[str, str]], closely: bool = False
) -> list[StageState]:
    """Return the state of every stage with its reason.

    Args:
        cells: the matrix.
        store: where artifacts are.
        earlier: cell id -> stage name -> key, of an earlier run in the same directory.
        closely: whether the files of artifacts are looked at: one that lacks a file or a part of one is stale.
    """
    distinct: dict[str, tuple[str, str]] = {}
    states = []
    for cell in cells:
        for name, stage in cell.stages.items():
            if stage.key not in distinct:
                distinct[stage.key] = stage_state(stage, store, closely)
            state, why = distinct[stage.key]
            before = earlier.get(cell.id, {}).get(name)
            if state == "missing" and before is not None and before != stage.key and not store.failure(stage.kind, stage.key):
                state, why = "stale", _changed(stage, before, store)
            states.append(StageState(cell.id, name, stage, state, why))
    return states


def stage_state(stage: Stage, store: Store, closely: bool = False) -> tuple[str, str]:
    """Return the state of a stage and why, whatever an earlier run made."""
    if again := store.to_retry(stage.kind, stage.key):
        return "stale", f"{again} invalid verdict{'s are' if again > 1 else ' is'} asked for again"
    if stage.done(store):
        if closely and not stage.on_disk and (fault := store.fault(stage.kind, stage.key, contents=False)):
            return "stale", f"made again when it is read, since it is damaged: {fault}"
        return "done", f"in the store as {stage.kind}/{stage.key}" if not stage.on_disk else "on disk"
    if failed := store.failure(stage.kind, stage.key):
        return "missing", f"failed before: {failed}; --retry-failed tries again"
    if remains := store.remains(stage.kind, stage.key):
        return "missing", f"made again: {remains}"
    waits = [name for name, source in stage.inputs.items() if not source.done(store)]
    return "missing", f"not made yet; waits for {', '.join(waits)}" if waits else "not made yet; its inputs are there"


def _changed(stage: Stage, before: str, store: Store) -> str:
    """Return in one line what differs between a stage and the one an earlier run made in its place."""
    old = store.identity(stage.kind, before)
    if old is None:
        return f"its key changed from {before}, which is not in the store any more"
    found = list(differences(old, stage.identity))
    return "; ".join(found[:MOST]) + (f"; {len(found) - MOST} more (--why)" if len(found) > MOST else "")


def differences(old: Any, new: Any) -> Iterator[str]:
    """Yield what changed between two identities, as "config.settings.learning_rate: 0.0001 → 0.0002"."""
    for path, before, after in changes(old, new):
        if path.startswith("inputs."):
            yield f"{path.removeprefix('inputs.')} changed"
        else:
            yield told(path, before, after, new["kind"])


def told(path: str, before: Any, after: Any, kind: str, most: int = 60) -> str:
    """Return a sentence on one thing that changed in a stage's identity; its values are cut after so many letters."""
    values = " → ".join(text if len(text := str(value)) <= most else text[: most - 1] + "…" for value in (before, after))
    if path == "version":
        return f"the code that makes it changed: {kind} {values}"
    if path.endswith(".version"):
        return f"the code of {path.removesuffix('.version').removeprefix('config.')} changed: {values}"
    return f"{path}: {values}"


def changes(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (dotted path, old value, new value) for all that differs in two JSON values; None stands for what is not there."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from changes(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    elif old != new:
        yield path, old, new


def earlier_keys(run: Path) -> dict[str, dict[str, str]]:
    """Return cell id -> stage name -> key of a run directory; empty where there is none that can be read."""
    try:
        return {row["id"]: row.get("keys", {}) for row in read_jsonl(run / "cells.jsonl")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
