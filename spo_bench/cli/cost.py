"""What a matrix would cost, as ``spo-bench plan`` prints it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rich.table import Table

from spo_bench.cli.common import Terminal, cell
from spo_bench.errors import InputError

if TYPE_CHECKING:
    from spo_bench.engine.estimate import Forecast
    from spo_bench.engine.simulate import Played

GIB = 2**30


def counts(wanted: Sequence[str]) -> list[int]:
    """Return the numbers of GPUs that ``--gpus`` names, each once, in order.

    Raises:
        InputError: something that is no number above 0.
    """
    parts = [part.strip() for text in wanted for part in text.split(",") if part.strip()]
    if wrong := [part for part in parts if not part.isdecimal() or not 0 < int(part) <= 1_000_000]:
        raise InputError(
            f"--gpus {wrong[0]}", "it is a number of GPUs above 0, or several with commas", "for example --gpus 8,64,512"
        )
    return sorted({int(part) for part in parts})


def show_cost(console: Terminal, found: Forecast, names: Mapping[str, str], judge: str = "") -> None:
    """Print what is left to make, kind by kind, how long it takes on what, and what was assumed.

    Args:
        console: where.
        found: the costs.
        names: by the key of a stage, what it is called in the critical path.
        judge: what a judge behind an endpoint would cost.
    """
    if not found.stages:
        return
    unit = "GPU hours" if found.gpus else "core hours"
    console.print()
    console.print(_kinds(found, unit), soft_wrap=True)
    space = f"storage: {_size(found.space.store)} in the store, of it {_size(found.space.weights)} of weights"
    console.print(f"{space}; {_size(found.space.out)} in --out" + (f"; judge: {judge}" if judge else ""), soft_wrap=True)
    if found.runs:
        console.print(_runs(found), soft_wrap=True)
        longest = max(found.runs, key=lambda run: run.devices)
        console.say(f"critical path: {_path(longest, names, found)}")
    for note in found.notes:
        console.say(f"note: {note}")


def _kinds(found: Forecast, unit: str) -> Table:
    """Return a row a kind of stage, and their sum."""
    title = f"cost of what is left, estimated: {found.hours:,.3g} {unit} of {found.machine}; times {found.basis}"
    table = Table(title=cell(title), title_justify="left", box=None, pad_edge=False)
    for name in ("stage", "number", "each", unit, f"GiB a {'GPU' if found.gpus else 'process'}", "time rests on"):
        table.add_column(name, justify="left" if name in ("stage", "time rests on") else "right")
    for row in found.kinds():
        shown = [row["kind"], f"{row['stages']:,}", clock(row["seconds"]), f"{row['hours']:,.3g}"]
        table.add_row(*map(cell, [*shown, f"{row['memory'] / GIB:.1f}", row["basis"]]))
    return table


def _runs(found: Forecast) -> Table:
    """Return a row a number of devices."""
    table = Table(box=None, pad_edge=False)
    unit = "GPUs" if found.gpus else "stages at a time"
    for name in (unit, "wall time", "critical path", "utilisation", "faster"):
        table.add_column(name, justify="right")
    before = None
    for run in found.runs:
        seconds = run.seconds + found.around
        faster = f"{before / seconds:.2f} x" if before else ""
        row = [f"{run.devices:,}", clock(seconds), clock(run.path_seconds), f"{run.utilisation:.0%}", faster]
        table.add_row(*map(cell, row))
        before = seconds
    return table


def _path(run: Played, names: Mapping[str, str], found: Forecast) -> str:
    """Return the longest chain of stages, each with its time; those that take less than a second in it are left out."""
    seconds = {one.stage.key: one.seconds for one in found.stages}
    named = [(names.get(stage.key, stage.kind), seconds[stage.key]) for stage in run.path if seconds[stage.key] >= 1]
    parts = [(name, sum(taken for _, taken in same)) for name, same in groupby(named, key=lambda one: one[0])]
    return " → ".join(f"{name} {clock(taken)}" for name, taken in parts) or "less than a second"


def clock(seconds: float) -> str:
    """Return a time in the unit that it is read in."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
    return f"{seconds / 3600:.1f} h" if seconds < 72 * 3600 else f"{seconds / 86400:.1f} days"


def _size(number: float) -> str:
    return f"{number / GIB:,.1f} GiB" if number < 1000 * GIB else f"{number / GIB / 1024:,.2f} TiB"
