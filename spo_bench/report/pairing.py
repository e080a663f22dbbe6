"""Two runs side by side: which arms belong together, what was changed between them, and which values can be compared."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Container, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spo_bench.errors import InputError
from spo_bench.files import canonical_json
from spo_bench.matrix.plan import changes
from spo_bench.stats import align

from .checkpoints import Policies
from .comparable import changed_texts, other_measure, portable, short
from .results import Cell, Results, short_model

Floats = NDArray[np.float64]
_SOURCES = ("model", "reward_model", "judge_model", "data")
"""Inputs of a stage that may be no stage of the cell: models, and the data of other tasks that SFT learns from."""


@dataclass(frozen=True)
class Arm:
    """Cells of a run that differ in nothing but the seed, in the order of their seeds; some may not be finished."""

    cells: Sequence[Cell]

    @property
    def first(self) -> Cell:
        """Return the cell of the lowest seed, for what all have in common."""
        return self.cells[0]

    @property
    def done(self) -> list[Cell]:
        """Return the finished cells."""
        return [cell for cell in self.cells if cell.done]

    @property
    def title(self) -> str:
        """Return what a person reads: model, task, and the row's name in a table."""
        return f"{short_model(self.first.model)} / {self.first.task} / {self.first.name}"

    @property
    def metrics(self) -> dict[str, bool]:
        """Return the metrics of the finished cells: name -> more of it is better."""
        return {name: one.higher_is_better for cell in self.done for name, one in cell.metrics.items()}


@dataclass(frozen=True)
class Values:
    """One metric of two matched arms.

    Attributes:
        ours, theirs: (seeds, prompts), over the prompts both answered, in one order; NaN = invalid.
        clusters: a label a prompt, (prompts,), or None.
        higher_is_better: of the metric.
        sizes: prompts of (the first run, the second).
        policies: of the seeds that have the metric on both sides.
        changed: ids both have, but with another text behind them; they are left out.
        reason: why nothing can be compared; empty where something can. The arrays are then empty.
    """

    ours: Floats
    theirs: Floats
    clusters: Sequence[str | None] | None
    higher_is_better: bool
    sizes: tuple[int, int]
    policies: Policies
    changed: int = 0
    reason: str = ""

    @property
    def shared(self) -> int:
        """Return the number of prompts both answered."""
        return int(self.ours.shape[1])

    @property
    def invalid(self) -> tuple[int, int]:
        """Return how many values are invalid in (the first run, the second though valid in the first)."""
        known = np.isfinite(self.ours)
        return int((~known).sum()), int((known & ~np.isfinite(self.theirs)).sum())

    @property
    def units(self) -> int:
        """Return the number of prompts, or clusters of them, with a value that is valid on both sides."""
        valid = np.flatnonzero((np.isfinite(self.ours) & np.isfinite(self.theirs)).any(axis=0))
        labels = self.clusters
        return len({place if labels is None or labels[place] is None else labels[place] for place in map(int, valid)})

    def invalid_notes(self, first: str, second: str) -> list[str]:
        """Return how many values are left out because they are invalid in a run, by these names of the runs."""
        return [
            f"{count} of {self.ours.size} values are invalid in {name} and left out"
            for count, name in zip(self.invalid, (first, second if not self.invalid[0] else f"{second} alone"))
            if count
        ]

    def means(self) -> tuple[float, float]:
        """Return both means over what is valid on both sides, seeds before prompts: their difference is what is compared."""
        both = np.isfinite(self.ours) & np.isfinite(self.theirs)
        answered = both.sum(axis=0)
        kept = answered > 0
        if not kept.any():
            return math.nan, math.nan
        ours, theirs = (
            float((np.where(both, side, 0.0).sum(axis=0)[kept] / answered[kept]).mean()) for side in (self.ours, self.theirs)
        )
        return ours, theirs


@dataclass(frozen=True)
class Change:
    """A setting of a stage that differs between two runs; no path: the stage is in one of them only."""

    stage: str
    path: str
    what: str


@dataclass(frozen=True)
class Match:
    """An arm of the first run and the same arm of the second; one of them is None where it has no counterpart."""

    ours: Arm | None
    theirs: Arm | None

    @property
    def arm(self) -> Arm:
        """Return the arm, as the first run has it if it does."""
        found = self.ours or self.theirs
        assert found is not None  # noqa: S101 - one of them is there
        return found

    @cached_property
    def partners(self) -> list[tuple[Cell | None, Cell | None]]:
        """Return the cells by seed, None where a side has none; finished or not. Without a common seed, in their order."""
        ours, theirs = ({cell.seed: cell for cell in arm.cells} if arm else {} for arm in (self.ours, self.theirs))
        if ours.keys() & theirs.keys() or not ours or not theirs:
            return [(ours.get(seed), theirs.get(seed)) for seed in sorted({*ours, *theirs})]
        return list(zip_longest(ours.values(), theirs.values()))

    @property
    def in_order(self) -> bool:
        """Return whether no seed is common, so that seeds are paired in their order."""
        return any(a is not None and b is not None and a.seed != b.seed for a, b in self.partners)

    @cached_property
    def pairs(self) -> list[tuple[Cell, Cell]]:
        """Return the cells that are finished on both sides."""
        return [(a, b) for a, b in self.partners if a is not None and b is not None and a.done and b.done]

    @cached_property
    def policies(self) -> Policies:
        """Return the policies of the pairs."""
        return Policies.of(self.pairs)

    @cached_property
    def changed(self) -> list[Change]:
        """Return the settings that differ, from the stages of the first pair: all pairs of an arm have the same ones."""
        if not self.pairs:
            return []
        ours, theirs = (cell.stages for cell in self.pairs[0])
        own = {key for cell in self.pairs[0] for key in cell.row.get("keys", {}).values()}
        found = []
        for stage in dict.fromkeys([*ours, *theirs]):
            if stage not in ours or stage not in theirs:
                found.append(Change(stage, "", f"only in the {'first' if stage in ours else 'second'} run"))
                continue
            for path, before, after in changes(_settings(ours[stage]), _settings(theirs[stage])):
                if not (self.in_order and path.split(".")[-1] == "seed"):
                    found.append(Change(stage, path, f"{short(before)} -> {short(after)}"))
            before, after = (stages[stage].get("inputs") or {} for stages in (ours, theirs))
            found += [Change(stage, name, "changed") for name in _changed_sources(before, after, own)]
        return found

    def values(self, metric: str) -> Values:
        """Return a metric's values over the seeds and prompts both sides have, or why they cannot be compared."""
        pairs = [(a, b) for a, b in self.pairs if metric in a.metrics and metric in b.metrics]
        policies = Policies.of(pairs, metric)
        sides = [[pair[side].metrics[metric] for pair in pairs] for side in (0, 1)]
        if not pairs:
            better = {**(self.theirs.metrics if self.theirs else {}), **(self.ours.metrics if self.ours else {})}
            return _nothing("no common cell has it", better.get(metric, True), (0, 0), policies)
        first, sizes = sides[0][0], (len(sides[0][0].ids), len(sides[1][0].ids))
        if reason := next((why for a, b in pairs if (why := other_measure(metric, a, b))), ""):
            return _nothing(reason, first.higher_is_better, sizes, policies)
        if any(one.higher_is_better != first.higher_is_better for side in sides for one in side):
            return _nothing("another direction is better", first.higher_is_better, sizes, policies)
        common = set(first.ids)
        changed: set[str] = set()
        for a, b in pairs:
            for cell in (a, b):
                ids = cell.metrics[metric].ids
                align(ids, ids)  # an id twice is an error
                common &= set(ids)
            texts = changed_texts(metric, a, b)
            if texts is None:
                return _nothing("the texts behind its ids are not recorded", first.higher_is_better, sizes, policies)
            changed |= texts
        kept = [name for name in first.ids if name in common and name not in changed]
        ours, theirs = (np.stack([one.among(kept).values for one in side]) for side in sides)
        return Values(ours, theirs, first.among(kept).clusters, first.higher_is_better, sizes, policies, len(changed & common))


def _nothing(reason: str, higher_is_better: bool, sizes: tuple[int, int], policies: Policies) -> Values:
    return Values(np.empty((0, 0)), np.empty((0, 0)), None, higher_is_better, sizes, policies, reason=reason)


def _settings(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a stage's identity a person sets; inputs that are stages of the cell speak for themselves."""
    return {"version": identity.get("version"), **portable(identity)["config"]}


def _changed_sources(ours: Mapping[str, str], theirs: Mapping[str, str], own: Container[str]) -> list[str]:
    """Return the inputs of a stage that differ and of which the cells, whose stages have the keys ``own``, say nothing else."""
    return [
        name
        for name in dict.fromkeys([*ours, *theirs])
        if name.partition(":")[0] in _SOURCES
        and ours.get(name) != theirs.get(name)
        and not (ours.get(name) in own and theirs.get(name) in own)
    ]


def changed_settings(found: Sequence[Match]) -> list[str]:
    """Return the settings that differ between two runs, as "train.settings.learning_rate 0.0002 -> 0 (all dpo arms)"."""
    both = [one for one in found if one.pairs]
    stages: dict[tuple[str, str], dict[str, None]] = {}
    arms: dict[tuple[str, str], list[Arm]] = {}
    for one in both:
        for change in one.changed:
            key = (change.path, change.what)
            stages.setdefault(key, {})[change.stage] = None
            some = arms.setdefault(key, [])
            some += [one.arm] if one.arm not in some else []
    lines = []
    for path, what in stages:
        names = [*stages[path, what]]
        stage = names[0] if len(names) == 1 else f"{{{', '.join(names)}}}"
        lines.append(f"{stage}{f'.{path}' if path else ''} {what} ({_where(arms[path, what], [one.arm for one in both])})")
    return lines


def _where(some: Sequence[Arm], everything: Sequence[Arm]) -> str:
    """Return which arms something is about: all, all of some methods, or the first few by name."""
    if len(some) == len(everything) > 1:
        return "all arms"
    methods = [{arm.first.id: arm.first.method for arm in arms} for arms in (some, everything)]
    counts = [Counter(known.values()) for known in methods]
    if all(count == counts[1][method] > 1 for method, count in counts[0].items()):
        return f"all {_listed([*counts[0]], ' and ')} arms"
    return _listed([arm.title for arm in some], ", ")


def _listed(names: Sequence[str], last: str) -> str:
    """Return the first three names, and how many there are besides."""
    if len(names) > 3:
        return f"{', '.join(names[:3])} and {len(names) - 3} more"
    return last.join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def match(first: Results, second: Results) -> list[Match]:
    """Match the arms of two runs: model, task, method, SPO and data axes; changed hyperparameters are no hindrance.

    Arms whose labels and SPO settings are equal belong together; then those whose labels are equal; then, where one is left on
    each side, those of one registered method with the same additions, SPO on or off, and control. Models go by their labels,
    then by their content, then by the last part of their paths, where that is unambiguous.
    """
    renamed = _same_models(first, second)
    kinds = [_kinds(results) for results in (first, second)]
    left = [arms(results) for results in (first, second)]
    found: dict[int, Match] = {}

    def key(way: Callable[[Cell, Mapping[str, Hashable]], Hashable], side: int) -> Callable[[Arm], Hashable]:
        def of(arm: Arm) -> Hashable:
            cell = arm.first
            model = renamed.get(cell.model, ("", cell.model)) if side else cell.model
            return model, cell.task, canonical_json(cell.axes), way(cell, kinds[side])

        return of

    for way in (_by_settings, _by_label, _by_kind):
        ours, theirs = (_grouped(left[side], key(way, side)) for side in (0, 1))
        for one, some in ours.items():
            if len(some) == len(theirs.get(one, [])) == 1:
                found[id(some[0])] = Match(some[0], theirs[one][0])
        paired = {id(one.theirs) for one in found.values()}
        left = [[arm for arm in left[0] if id(arm) not in found], [arm for arm in left[1] if id(arm) not in paired]]
    everything = {id(arm): Match(arm, None) for arm in left[0]} | found
    first_seen = {arm.first.id: place for place, arm in enumerate(arms(first))}
    ordered = sorted(everything.values(), key=lambda one: first_seen[one.arm.first.id])
    return [*ordered, *(Match(None, arm) for arm in left[1])]


def _by_settings(cell: Cell, kinds: Mapping[str, Hashable]) -> Hashable:
    spo = cell.spo
    return cell.method, None if spo is None else canonical_json({key: value for key, value in spo.items() if key != "label"})


def _by_label(cell: Cell, kinds: Mapping[str, Hashable]) -> Hashable:
    return cell.method, cell.label


def _by_kind(cell: Cell, kinds: Mapping[str, Hashable]) -> Hashable:
    return kinds.get(cell.method, cell.method), cell.spo is not None, (cell.spo or {}).get("control")


def arms(results: Results) -> list[Arm]:
    """Return a run's arms, in the order of its cells; InputError where one has two cells of a seed."""
    groups = _grouped(results.cells, lambda cell: (*cell.place, cell.settings))
    for cells in groups.values():
        seeds = [cell.seed for cell in cells]
        if len(set(seeds)) != len(seeds):
            some = ", ".join(cell.id for cell in cells if seeds.count(cell.seed) > 1)
            raise InputError(
                f"{results.directory}: {some} are the same arm with the same seed",
                "model, task, method, SPO settings, data axes and seed tell cells apart",
                "give models, tasks or methods that differ a `label` each, and run again",
            )
    return [Arm(sorted(cells, key=lambda cell: cell.seed)) for cells in groups.values()]


def _kinds(results: Results) -> dict[str, Hashable]:
    """Return what a method's label stands for: its registered name, and the names of its additions."""
    entries = [entry for entry in results.spec.get("methods") or [] if isinstance(entry, Mapping)]
    return {
        str(entry.get("label") or entry["name"]): (entry["name"], *sorted(one["name"] for one in entry.get("plus") or []))
        for entry in entries
    }


def _same_models(first: Results, second: Results) -> dict[str, str]:
    """Return the second run's models by the name the first has for them."""
    left = [list(dict.fromkeys(cell.model for cell in results.cells)) for results in (first, second)]
    found: dict[str, str] = {}
    by_name: Callable[[Results, str], str] = lambda _, model: model  # noqa: E731
    by_folder: Callable[[Results, str], str] = lambda _, model: short_model(model)  # noqa: E731
    for name in (by_name, _content, by_folder):
        ours, theirs = (_grouped(left[side], partial(name, results)) for side, results in enumerate((first, second)))
        for one, models in ours.items():
            if len(models) == len(theirs.get(one, [])) == 1:
                found[theirs[one][0]] = models[0]
        left = [[model for model in left[0] if model not in found.values()], [model for model in left[1] if model not in found]]
    return found


def _content(results: Results, model: str) -> str:
    """Return the key of the weights a model's cells start from; its name where no cell was finished."""
    for cell in results.done:
        if cell.model == model and "sft" in cell.stages:
            stage = cell.stages["sft"]
            return str(stage["inputs"]["model"] if stage["kind"] == "sft" else cell.row["keys"]["sft"])
    return model


def _grouped(items: Iterable[Any], key: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    groups: dict[Any, list[Any]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups
