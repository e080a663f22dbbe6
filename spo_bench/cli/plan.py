"""What ``spo-bench plan`` and ``run --dry-run`` print."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from spo_bench.cli.common import Terminal, cell, print_json
from spo_bench.garbage import few_collections

if TYPE_CHECKING:
    from spo_bench.engine.crew import Crew
    from spo_bench.matrix.cells import Cell
    from spo_bench.matrix.judge_cost import JudgeCost
    from spo_bench.matrix.plan import StageState
    from spo_bench.matrix.why import Why

MOST_LINES = 2000  # stages listed one by one; of a larger matrix, kinds of stages are counted
STYLES = {"done": "green", "stale": "yellow", "missing": "dim"}


@few_collections()
def show_plan(
    spec: Any,
    out: Path,
    store: str | None,
    crew: Crew,
    offline: bool,
    folders: Sequence[Path] | None,
    as_json: bool,
    how: str = "",
    why: bool = False,
    gpu: str | None = None,
    gpus: Sequence[int] = (),
    measure: bool = False,
) -> None:
    """Print the state of every stage of every cell, what they take of memory, time and disk, what a judge behind an endpoint
    would cost, and for what a run by such a crew would be refused; ``how`` it would run them; and in full ``why`` what is left to
    make is. With a ``gpu`` of the table or numbers of ``gpus`` the plan is of a run there, not on this machine, and with
    ``measure`` times rest on small stages that are run for it.
    """
    from spo_bench import api
    from spo_bench.cli.cost import show_cost
    from spo_bench.engine.calibrate import calibrate
    from spo_bench.engine.engine import Engine, Watcher, unique_in_order
    from spo_bench.engine.estimate import absent, forecast
    from spo_bench.engine.free import free_memory
    from spo_bench.engine.memory import estimate
    from spo_bench.engine.preflight import Ahead, Found, look
    from spo_bench.matrix.judge_cost import judge_plan
    from spo_bench.matrix.plan import earlier_keys, stage_state, stage_states
    from spo_bench.matrix.why import Reasons
    from spo_bench.store.opening import open_store

    artifacts = open_store(store or api.default_store()).listing()
    artifacts.reach()
    elsewhere = gpu is not None or bool(gpus)
    planned = "cuda" if elsewhere else crew.device
    places = [str(folder) for folder in folders or []]
    if measure:
        calibrate(spec, artifacts, crew.device, crew.jobs, offline, places)
    cells = api.cells_of(spec, artifacts.root, planned, offline, places, here=crew.here and not elsewhere, assume=True)
    earlier = earlier_keys(out)
    states = stage_states(cells, artifacts, earlier, closely=why)
    judging = judge_plan(spec.judge, [state.stage for state in states], artifacts, api.purse_of(out))
    asked = judging.stages if judging else {}
    every = unique_in_order([state.stage for state in states])
    room = crew.room()
    free = free_memory(planned) if elsewhere else room[1]
    known = {state.stage.key: (state.state, state.why) for state in states}
    standing = {stage.key: known.get(stage.key) or stage_state(stage, artifacts, closely=why) for stage in every}
    missing = [stage for stage in every if standing[stage.key][0] != "done"]
    reasons: Sequence[Why] = ()
    if why:
        waiting = {stage.key: standing[stage.key][1] for stage in missing}
        reasons = Reasons(artifacts, out, earlier, {cell.id: cell.stages for cell in cells}, every, waiting).all()
    ahead = Ahead(spec, cells, missing, artifacts, out, room, crew.together)
    found = look(ahead) if missing and not elsewhere else Found()
    cost = forecast(spec, cells, missing, every, artifacts, crew, gpu, gpus)
    taken = {one.stage.key: {"seconds": one.seconds, "devices": one.devices, "basis": one.basis} for one in cost.stages}
    if offline and (lacking := absent(missing)):
        found.warnings.append(f"a run with --offline would be refused, since not here: {', '.join(lacking)}")
    if as_json:
        needs = {stage.key: round(estimate(stage, artifacts).most) for stage in every}
        print_json(
            {
                "name": spec.name,
                "out": str(out),
                "store": artifacts.place,
                "cells": [cell.id for cell in cells],
                "stages": [
                    {"cell": s.cell, "stage": s.name, "kind": s.stage.kind, "key": s.stage.key, "state": s.state, "why": s.why}
                    | {"memory": needs[s.stage.key], **taken.get(s.stage.key, {})}
                    | ({"judge": asdict(asked[s.stage.key])} if s.stage.key in asked else {})
                    for s in states
                ],
                "memory": {
                    "free": round(free.host) if free.host < float("inf") else None,
                    "device": round(free.device) if free.device < float("inf") else None,
                },
                "judge": judging.record() if judging else None,
                "cost": cost.record(),
                **({"why": _records(reasons, states, standing)} if why else {}),
                "refused": [{"given": one.given, "rule": one.rule, "remedy": one.remedy} for one in found.problems.found],
                "warnings": found.warnings,
            }
        )
        return
    console = Terminal()
    title = f"{spec.name}: {len(cells)} cells"
    one_by_one = len(states) <= MOST_LINES and not elsewhere
    console.print(_listed(title, states, asked) if one_by_one else _counted(title, states))
    counts = Counter(state for state, _ in standing.values())
    console.print(f"{len(every)} stages in all: " + ", ".join(f"{counts[name]} {name}" for name in STYLES), markup=False)
    peaks: dict[str, float] = {}
    for one in cost.stages:
        peaks[one.stage.kind] = max(peaks.get(one.stage.kind, 0.0), one.memory)
    if peaks and not elsewhere:
        shown = ", ".join(f"{kind} {_gib(need)}" for kind, need in sorted(peaks.items(), key=lambda item: -item[1]))
        device_too = f", {_gib(free.device)} GiB on the device" if free.device < float("inf") else ""
        there = f"; free now: {_gib(free.host)} GiB{device_too}" if free.host < float("inf") else ""
        console.print(f"memory at the peak, estimated: {shown}{there}", markup=False, soft_wrap=True)
    if how:
        console.print(how, markup=False)
        # An engine that makes nothing: what it would order, and what of that would be handed on.
        for name, count, script in crew.scripts(Engine(artifacts, crew, Watcher(), whole=every).plan(every)):
            console.print(f"\n{count} × {name}", markup=False)
            console.print(script, markup=False, soft_wrap=True)
    if judging:
        console.print(
            f"judge {spec.judge.model}: {judging.total}; a request that fails is repeated", markup=False, soft_wrap=True
        )
    show_cost(console, cost, _named(cells, states), str(judging.total) if judging else "")
    for warning in [*(judging.warnings if judging else ()), *found.warnings]:
        console.print(f"warning: {warning}", markup=False, soft_wrap=True)
    if (problem := found.problems.together()) is not None:
        console.print(f"warning: a run would be refused: {problem}", markup=False, soft_wrap=True)
    if why:
        _explain(console, reasons, states, standing)


def _records(
    reasons: Sequence[Why], states: Sequence[StageState], standing: Mapping[str, tuple[str, str]]
) -> list[dict[str, Any]]:
    """Return why every stage that is left to make is, inputs before what reads them."""
    cells = _cells(states)
    listed = {why.stage.key: why for why in reasons}
    about = [{"kind": why.stage.kind, "key": why.stage.key, "state": standing[why.stage.key][0]} for why in reasons]
    return [{**one, "cells": cells[one["key"]], **why.record(listed)} for one, why in zip(about, reasons, strict=True)]


def _explain(
    console: Terminal, reasons: Sequence[Why], states: Sequence[StageState], standing: Mapping[str, tuple[str, str]]
) -> None:
    """Print why what is left to make is, what has the same reason together."""
    from spo_bench.matrix.why import explained

    cells = _cells(states)
    for told in explained(reasons):
        named = list(dict.fromkeys(cell for stage in told.stages for cell in cells[stage.key]))
        some = ", ".join(named[:2]) + (f" and {len(named) - 2} more cells" if len(named) > 2 else "")
        number = f"{len(told.stages)} stages, " if len(told.stages) > 1 else ""
        state = "/".join(sorted({standing[stage.key][0] for stage in told.stages}))
        console.say(f"{told.label}: {number}{state}{f'; of {some}' if some else ''}", style="bold")
        for line in told.lines:
            console.say(f"  {line}")


def _cells(states: Sequence[StageState]) -> Mapping[str, list[str]]:
    """Return the cells that a stage is named by."""
    found: dict[str, list[str]] = defaultdict(list)
    for state in states:
        found[state.stage.key].append(state.cell)
    return found


def _named(cells: Sequence[Cell], states: Sequence[StageState]) -> Mapping[str, str]:
    """Return what a stage is called among all others: its name, and the cell where only one has it."""
    models = {one.model for one in cells}
    labels = {}
    for one in cells:
        axes = [f"{key}={value}" for key, value in one.axes.items()]
        spo = [one.spo.label()] if one.spo is not None else []
        model = [one.model] if len(models) > 1 else []
        labels[one.id] = " ".join([*model, one.task, one.method, *spo, *axes, f"seed {one.seed}"])
    of = _cells(states)
    return {
        one.stage.key: one.name if len(set(of[one.stage.key])) > 1 else f"{one.name} ({labels[one.cell]})"
        for one in reversed(states)
    }


def _listed(title: str, states: Sequence[StageState], asked: Mapping[str, JudgeCost]) -> Table:
    """Return every stage of every cell."""
    table = _table(title, "cell", "stage", "state", "why")
    before = None
    for state in states:
        why = f"{state.why}; {asked[state.stage.key]}" if state.stage.key in asked else state.why
        table.add_row(cell(state.cell if state.cell != before else ""), cell(state.name), _colored(state.state), cell(why))
        before = state.cell
    return table


def _counted(title: str, states: Sequence[StageState]) -> Table:
    """Return how many cells have each stage in each state, and how many stages they share."""
    table = _table(f"{title} (--json lists every stage of each)", "stage", "state", "cells", "stages")
    cells = Counter((state.name, state.state) for state in states)
    stages = {(state.name, state.state, state.stage.key) for state in states}
    shared = Counter((name, how) for name, how, _ in stages)
    for name, how in cells:
        table.add_row(cell(name), _colored(how), str(cells[name, how]), str(shared[name, how]))
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=cell(title), title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _colored(state: str) -> str:
    return f"[{STYLES[state]}]{state}[/]"


def _gib(number: float) -> str:
    return f"{number / 2**30:.1f}"
