"""Why stages are not done: what changed since an earlier run, or against what is nearest in the store, and why that changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from spo_bench.files import canonical_json, read_json
from spo_bench.matrix.plan import changes, told
from spo_bench.stages.base import Stage
from spo_bench.store.artifacts import Store, digest
from spo_bench.store.sealed import OLD_SEAL

LONGEST = 200  # letters of a value in a text
FEWEST, COMPARISONS = 50, 1_000_000  # entries of the store that a stage is held against, and all stages together
Changes = Sequence[tuple[str, Any, Any]]
Identity = Mapping[str, Any]


@dataclass(frozen=True)
class Why:
    """Why a stage is not done, or is another one than before.

    Attributes:
        stage: the one that is wanted.
        reasons: sentences that need no other stage: it failed, it is damaged, it is gone.
        other: KIND/KEY of the one it is held against; "" where there is none.
        where: which one that is: the earlier run's, or the nearest in the store.
        changes: (dotted path, old value, new value) in its identity, but for its inputs.
        inputs: why those are other ones; a sentence where nothing is known of the input before.
    """

    stage: Stage
    reasons: Sequence[str] = ()
    other: str = ""
    where: str = ""
    changes: Changes = ()
    inputs: Mapping[str, Why | str] | None = None

    def record(self, listed: Mapping[str, object]) -> dict[str, Any]:
        """Return JSON values; inputs whose keys are ``listed`` are told by their keys alone."""
        inputs: dict[str, Any] = {}
        for name, why in (self.inputs or {}).items():
            if isinstance(why, str):
                inputs[name] = why
            else:
                known = why.stage.key in listed
                inputs[name] = {"kind": why.stage.kind, "key": why.stage.key, **({} if known else why.record(listed))}
        found = [{"what": path, "old": old, "new": new} for path, old, new in self.changes]
        return {
            "reasons": list(self.reasons),
            "other": self.other or None,
            "where": self.where or None,
            "changes": found,
            "inputs": inputs,
        }

    def lines(self, labels: Mapping[str, str]) -> Iterator[str]:
        """Yield the explanation, a line a fact; inputs that have a label were explained under it."""
        yield from self.reasons
        if self.other:
            yield f"held against {self.where}:"
        for path, old, new in self.changes:
            yield told(path.removeprefix("config."), old, new, self.stage.kind, LONGEST)
        for name, why in (self.inputs or {}).items():
            if isinstance(why, str):
                yield f"input {name}: {why}"
            elif why.stage.key in labels:
                yield f"input {name} changed: see {labels[why.stage.key]}"
            else:
                yield f"input {name} changed ({why.stage.kind}):"
                yield from (f"  {line}" for line in why.lines(labels))


class Reasons:
    """Finds out why stages are not done.

    Args:
        store: where artifacts are.
        run: the directory where an earlier run may have been.
        earlier: cell id -> stage name -> key, of that run.
        cells: cell id -> stage name -> stage, of the run that is planned.
        every: all its stages, each once, inputs before what reads them.
        waiting: keys of those that are not done -> what the plan says of them in one line.
    """

    def __init__(
        self,
        store: Store,
        run: Path,
        earlier: Mapping[str, Mapping[str, str]],
        cells: Mapping[str, Mapping[str, Stage]],
        every: Sequence[Stage],
        waiting: Mapping[str, str],
    ) -> None:
        self.store, self.run, self.earlier, self.every, self.waiting = store, run, earlier, every, waiting
        self._counts = Counter(stage.kind for stage in every if stage.key in waiting)
        self._found: dict[tuple[str, str], Identity | None] = {}
        self._near: dict[str, list[tuple[str, frozenset[tuple[str, str]]]]] = {}
        self._known: dict[tuple[str, str], Why] = {}
        self._before = self._befores(cells)

    def all(self) -> list[Why]:
        """Return why each stage that is not done is not, inputs before what reads them."""
        return [self.of(stage) for stage in self.every if stage.key in self.waiting]

    def of(self, stage: Stage) -> Why:
        """Return why a stage is not done."""
        reasons, before = list(self._own(stage)), self._before.get(stage.key)
        if before == stage.key:
            return Why(stage, reasons or ["the earlier run used it, and it is not in the store any more"])
        if before is not None:
            why = self._against(stage, before, "that of the earlier run")
        elif not reasons and (near := self._nearest(stage)) is not None:
            why = self._against(stage, near, "the nearest in the store")
        else:
            return Why(stage, reasons or ["nothing like it was made before"])
        return replace(why, reasons=[*reasons, *why.reasons])

    def _own(self, stage: Stage) -> Iterator[str]:
        """Yield what stands in a stage's own way, whatever was before."""
        store, name = self.store, (stage.kind, stage.key)
        if failed := store.failure(*name):
            yield f"it failed before: {failed}; --retry-failed tries again"
        if store.to_retry(*name):
            yield self.waiting[stage.key]
        elif found := store.fault(*name, contents=False) if store.has(*name) else store.remains(*name):
            yield f"it is in the store, but cannot be used: {found}"

    def _befores(self, cells: Mapping[str, Mapping[str, Stage]]) -> dict[str, str]:
        """Return key of a stage -> key of the one in its place in the earlier run, also of stages that no cell names."""
        found: dict[str, str] = {}
        for cell, stages in cells.items():
            names = self.earlier.get(cell, {})
            for name, stage in stages.items():
                if name in names:
                    found.setdefault(stage.key, names[name])
        for stage in reversed(self.every):
            before = found.get(stage.key)
            identity = self._identity(stage.kind, before) if before is not None else None
            if identity is not None:
                for name, source in stage.inputs.items():
                    if name in identity["inputs"]:
                        found.setdefault(source.key, identity["inputs"][name])
        return found

    def _against(self, stage: Stage, key: str, where: str) -> Why:
        """Return what differs between a stage and another of its kind."""
        if (stage.key, key) in self._known:
            return self._known[stage.key, key]
        identity = self._identity(stage.kind, key)
        if identity is None:
            what = "another model on disk" if stage.on_disk else f"another one than {stage.kind}/{key}, of which nothing is known"
            return Why(stage, [f"it is {what}"])
        inputs: dict[str, Why | str] = {}
        old = identity["inputs"]
        for name, source in stage.inputs.items():
            if name not in old:
                inputs[name] = f"it reads {source.kind}, which it did not before"
            elif old[name] != source.key:
                inputs[name] = self._against(source, old[name], where)
        inputs |= {name: "it is read no longer" for name in old if name not in stage.inputs}
        own = [one for one in changes(identity, stage.identity) if not one[0].startswith("inputs.")]
        why = Why(stage, [], f"{stage.kind}/{key}", where, own, inputs)
        return self._known.setdefault((stage.key, key), why)

    # What earlier stages were made from.

    def _identity(self, kind: str, key: str) -> Identity | None:
        """Return what an artifact was made from, as far as the earlier run or the store knows."""
        if (kind, key) not in self._found:
            self._found[kind, key] = self._ran.get(key) or self.store.identity(kind, key) or self._older(kind, key)
        return self._found[kind, key]

    def _older(self, kind: str, key: str) -> Identity | None:
        """Return the identity of an entry that an older version wrote."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            found: Identity = read_json(self.store.path(kind, key) / OLD_SEAL)["identity"]
            return found if isinstance(found["inputs"], Mapping) else None
        return None

    @cached_property
    def _ran(self) -> dict[str, Identity]:
        """What the stages of the earlier run's cells were made from, by key."""
        found: dict[str, Identity] = {}
        for cell, names in self.earlier.items():
            with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
                stages = read_json(self.run / "cells" / cell / "spec.json")["stages"]
                found |= {key: stages[name] for name, key in names.items() if key not in found and digest(stages[name]) == key}
        return found

    def _nearest(self, stage: Stage) -> str | None:
        """Return the key of the entry of a kind that was made from most of the same; None where that is less than half."""
        if stage.kind not in self._near:
            self._near[stage.kind] = list(self._entries(stage.kind))
        own = _items(stage.identity)
        best = min(self._near[stage.kind], key=lambda one: len(own ^ one[1]), default=None)
        return best[0] if best is not None and 2 * len(own & best[1]) >= max(len(own), len(best[1])) else None

    def _entries(self, kind: str) -> Iterator[tuple[str, frozenset[tuple[str, str]]]]:
        """Yield the newest entries of a kind with what they were made from."""
        for key in self.store.newest(kind)[: max(FEWEST, COMPARISONS // self._counts[kind])]:
            if identity := self._identity(kind, key):
                yield key, _items(identity)


def _items(value: Any, path: str = "") -> frozenset[tuple[str, str]]:
    """Return every leaf of a JSON value with its path, but for the values of inputs' keys."""
    if isinstance(value, Mapping) and value:
        return frozenset().union(*(_items(item, f"{path}.{key}") for key, item in value.items()))
    return frozenset([(path, canonical_json(value))])


@dataclass(frozen=True)
class Told:
    """Some stages of one kind that are not done for the same reason.

    Attributes:
        label: their kind, with a number where others of this kind have other reasons.
        stages: them.
        lines: the explanation.
    """

    label: str
    stages: Sequence[Stage]
    lines: Sequence[str]


def explained(whys: Sequence[Why]) -> list[Told]:
    """Return explanations, each once, in the order of what needs what."""
    groups: dict[tuple[str, tuple[str, ...]], tuple[str, list[Stage]]] = {}
    labels: dict[str, str] = {}
    kinds: Counter[str] = Counter()
    for why in whys:
        kind, lines = why.stage.kind, tuple(why.lines(labels))
        if (kind, lines) not in groups:
            kinds[kind] += 1
            groups[kind, lines] = (kind if kinds[kind] == 1 else f"{kind} ({kinds[kind]})", [])
        label, stages = groups[kind, lines]
        stages.append(why.stage)
        labels[why.stage.key] = label
    return [Told(label, stages, lines) for (_, lines), (label, stages) in groups.items()]
