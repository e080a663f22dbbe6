"""What stages took on this machine: a line each in the store's ``timings.jsonl``, and what follows for stages that have not run.

Three things a time can rest on, the first of them that there is: *measured*, stages of earlier runs here; *calibrated*, small
ones that ``plan --measure`` ran for this; *assumed*, the table of GPUs and shares of its figures (``engine.machines``).

Of stages with the same kind, model and type on the same machine, what they took is compared with what the machine's figures say
of their loads, s against x: where loads differ enough, s = a + b x is fitted to the relative errors, with neither below 0 and x
without the seconds that a stage is said to take at least; else the median of s / x is taken. So the figures decide nothing but
how unlike loads compare.
"""

from __future__ import annotations

import json
import os
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from spo_bench.engine.machines import PRODUCTS, Machine, dtype_of, this_machine
from spo_bench.engine.memory import Size, model_of, size_of
from spo_bench.engine.work import Load, load_of
from spo_bench.stages.base import Stage
from spo_bench.store.artifacts import Store

FILE = "timings.jsonl"
START = "start"  # what a run's first stage waits for: worker processes, and the libraries that all stages need
TAIL = 2 * 2**20  # bytes of it that are read: the last ten thousand stages
CELL = 200  # texts that a cell counts for in the report: its samples, its lines, its part of tables and figures
APART = 1.5  # the largest load over the smallest, from which on a line is fitted
Basis = Literal["measured", "calibrated", "assumed"]
# Kinds whose work is alike: what one takes says something of another.
ALIKE = {
    **dict.fromkeys(("train", "sft", "reward_model"), "learning"),
    **dict.fromkeys(("reference", "mismatched", "explored", "score", "reward"), "reading"),
    **dict.fromkeys(("data", "copies", "rows", "goals"), "texts"),
}


class Timing(NamedTuple):
    """What a stage took.

    Attributes:
        kind: of the stage, with "+spo" where it has degraded copies.
        model: its size, as a text; empty without one.
        dtype: in which it computed.
        machine: by name.
        parts, jobs: threads or GPUs it had, and how many stages ran at a time.
        load: what it had to do.
        seconds: it took.
        basis: measured in a run, or calibrated for a plan.
    """

    kind: str
    model: str
    dtype: str
    machine: str
    parts: int
    jobs: int
    load: Load
    seconds: float
    basis: Basis


def timing_of(stage: Stage, store: Store, machine: str, parts: int, jobs: int, seconds: float, basis: Basis) -> Timing:
    """Return what there is to keep of a stage that was made."""
    return Timing(*marks(stage), machine, parts, jobs, load_of(stage, store), seconds, basis)


def marks(stage: Stage) -> tuple[str, str, str]:
    """Return (kind, model, type): what a stage has in common with those it is compared with."""
    spo = "+spo" if stage.kind == "train" and stage.config.get("spo") else ""
    model = model_of(stage) if "numerics" in stage.config else None
    return stage.kind + spo, _named(size_of(model)) if model is not None else "", dtype_of(stage.config)


def _named(size: Size) -> str:
    """Return a model as timings know it: one of the same shape takes as long."""
    return f"{size.parameters}/{size.layers}/{size.width}/{size.inner}/{size.keys}"


def keep(store: Store, timings: Iterable[Timing]) -> None:
    """Append timings to the store; a store that takes no such lines does without.

    A stage that has nothing to do is passed over: as a rule it is a process's first, and waited for the libraries.
    """
    worth = [one for one in timings if any(one.load) or one.kind == START]
    lines = [json.dumps({**one._asdict(), "load": list(one.load)}) + "\n" for one in worth]
    with suppress(OSError):
        handle = os.open(store.root / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            for line in lines:  # one write a line: those of several runs do not mix
                os.write(handle, line.encode())
        finally:
            os.close(handle)


def report_of(cells: int) -> Load:
    """Return what the report of so many cells has to do."""
    return Load(rows=float(CELL * cells))


def note_report(store: Store, cells: int, seconds: float) -> None:
    """Keep what the report of so many cells took."""
    machine = this_machine("cpu").name
    keep(store, [Timing("report", "", "float32", machine, 1, 1, report_of(cells), seconds, "measured")])


def kept(root: Path) -> list[Timing]:
    """Return the timings of a store, the last ones of very many; a line that cannot be read is passed over."""
    found = []
    try:
        with (root / FILE).open("rb") as handle:
            handle.seek(max(0, (root / FILE).stat().st_size - TAIL))
            lines = handle.read().splitlines()
    except OSError:
        return []
    for line in lines:
        with suppress(ValueError, TypeError):
            row = json.loads(line)
            found.append(Timing(**{**row, "load": Load(*row["load"])}))
    return found


@dataclass(frozen=True)
class Pace:
    """How long stages take on a machine.

    Attributes:
        machine: its figures.
        timings: of all machines.
        jobs: stages at a time, whose timings are preferred.
    """

    machine: Machine
    timings: Sequence[Timing]
    jobs: int = 1

    def seconds(self, stage: Stage, store: Store, parts: float) -> tuple[float, Basis]:
        """Return how long a stage takes with so many threads or devices, and what that rests on."""
        return self.of_load(marks(stage), load_of(stage, store), parts)

    def of_load(self, which: tuple[str, str, str], load: Load, parts: float) -> tuple[float, Basis]:
        """Return how long a load takes of a stage of a certain (kind, model, type)."""
        kind, model, dtype = which
        expected, least = self._expected(load, dtype, parts)
        alike = ALIKE.get(kind.removesuffix("+spo"), kind)
        for wanted in (
            (kind, model, dtype),
            (kind.removesuffix("+spo"), model, dtype),
            (alike, model, dtype),
            (alike, "", dtype),
        ):
            if (found := self._groups.get(wanted)) is not None:
                return _curve(found)(expected, least), "measured" if found[0].basis == "measured" else "calibrated"
        return expected + least, "assumed"

    def _expected(self, load: Load, dtype: str, parts: float) -> tuple[float, float]:
        """Return what the machine's figures say a load takes, and what the stage takes at least besides."""
        without = self._at_once.seconds(load, dtype, parts)
        return without, self.machine.seconds(load, dtype, parts) - without

    @cached_property
    def _at_once(self) -> Machine:
        """The machine, as if a stage began at once."""
        return replace(self.machine, fixed=0.0)

    @cached_property
    def _groups(self) -> Mapping[tuple[str, str, str], Sequence[_Seen]]:
        """Return what was seen of each (kind, model, type), and of what is alike: measured in runs where there are such, with as
        many stages at a time where there are such.
        """
        groups: dict[tuple[str, str, str], list[_Seen]] = defaultdict(list)
        for one in self.timings:
            if one.machine != self.machine.name:
                continue
            seen = _Seen(*self._expected(one.load, one.dtype, one.parts), one.seconds, one.basis, one.jobs)
            plain = one.kind.removesuffix("+spo")
            alike = ALIKE.get(plain, plain)
            for kind in {one.kind, plain, alike}:
                groups[kind, one.model, one.dtype].append(seen)
            groups[alike, "", one.dtype].append(seen)
        return {which: _best(seen, self.jobs) for which, seen in groups.items()}


def with_rates(machine: Machine, timings: Iterable[Timing]) -> Machine:
    """Return a machine whose rates follow from its own products of matrices, where they were measured."""
    rates = {
        one.dtype: PRODUCTS * one.load.read / one.seconds / one.parts
        for one in timings
        if (one.kind, one.machine) == ("matmul", machine.name)
    }
    return replace(machine, operations={**machine.operations, **rates})


class _Seen(NamedTuple):
    """One timing: what the machine's figures say of the load, and of what a stage takes at least; what it took, and how it came
    about.
    """

    expected: float
    least: float
    seconds: float
    basis: Basis
    jobs: int


def _best(seen: Sequence[_Seen], jobs: int) -> Sequence[_Seen]:
    """Return those that say most: of runs before calibrations, with as many stages at a time before others, the last before the
    first.
    """
    of_runs = [one for one in seen if one.basis == "measured"] or seen
    return ([one for one in of_runs if one.jobs == jobs] or of_runs)[-50:]


def _curve(seen: Sequence[_Seen]) -> Callable[[float, float], float]:
    """Return what is expected of a time by what the figures say of it: of the load, and of what it takes at least."""
    points = [(max(one.expected, 1e-9), max(one.seconds, 1e-9)) for one in seen]
    ratio = statistics.median(max(one.seconds, 1e-9) / max(one.expected + one.least, 1e-9) for one in seen)
    if max(x for x, _ in points) < APART * min(x for x, _ in points):
        return lambda x, least: ratio * (x + least)
    # Least squares of (a + b x - s) / s: two normal equations.
    inverse, slope = [1 / s for _, s in points], [x / s for x, s in points]
    aa, ab, bb = (sum(p * q for p, q in zip(one, other)) for one, other in ((inverse, inverse), (inverse, slope), (slope, slope)))
    a, b = sum(inverse), sum(slope)
    determinant = aa * bb - ab * ab
    fixed, rate = (a * bb - b * ab) / determinant, (b * aa - a * ab) / determinant
    if fixed < 0:
        fixed, rate = 0.0, b / bb
    elif rate <= 0:
        return lambda x, least: ratio * (x + least)
    return lambda x, least: fixed + rate * x


def merged(bases: Iterable[Basis]) -> str:
    """Return what several times rest on, as "measured", or "measured and assumed"."""
    found = set(bases)
    return " and ".join(name for name in ("measured", "calibrated", "assumed") if name in found)
