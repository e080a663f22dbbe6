"""What ``spo-bench plan`` and ``run --dry-run`` print."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from spo_bench.cli.common import print_json
from spo_bench.garbage import few_collections

if TYPE_CHECKING:
    from spo_bench.matrix.judge_cost import JudgeCost
    from spo_bench.matrix.plan import StageState

MOST_LINES = 2000  # stages listed one by one; of a larger matrix, kinds of stages are counted
STYLES = {"done": "green", "stale": "yellow", "missing": "dim"}


@few_collections()
def show_plan(
    spec: Any,
    out: Path,
    store: Path | None,
    device: str,
    offline: bool,
    folders: Sequence[Path] | None,
    as_json: bool,
    side_by_side: str = "",
) -> None:
    """Print the state of every stage of every cell, what they take of memory, and what a judge behind an endpoint would cost;
    and what a run says of how many stages it would run at a time.
    """
    from spo_bench import api
    from spo_bench.engine.free import free_memory
    from spo_bench.engine.local import unique_in_order
    from spo_bench.engine.memory import estimate
    from spo_bench.matrix.judge_cost import judge_plan
    from spo_bench.matrix.plan import earlier_keys, stage_states
    from spo_bench.store.artifacts import Listing

    artifacts = Listing(store or api.default_store())
    cells = api.cells_of(spec, artifacts.root, device, offline, [str(folder) for folder in folders or []])
    states = stage_states(cells, artifacts, earlier_keys(out))
    judging = judge_plan(spec.judge, [state.stage for state in states], artifacts, api.purse_of(out))
    asked = judging.stages if judging else {}
    every = unique_in_order([state.stage for state in states])
    free = free_memory(api.choose_device(device))
    if as_json:
        needs = {stage.key: round(estimate(stage, artifacts).most) for stage in every}
        print_json(
            {
                "name": spec.name,
                "out": str(out),
                "store": str(artifacts.root),
                "cells": [cell.id for cell in cells],
                "stages": [
                    {"cell": s.cell, "stage": s.name, "kind": s.stage.kind, "key": s.stage.key, "state": s.state, "why": s.why}
                    | {"memory": needs[s.stage.key]}
                    | ({"judge": asdict(asked[s.stage.key])} if s.stage.key in asked else {})
                    for s in states
                ],
                "memory": {
                    "free": round(free.host) if free.host < float("inf") else None,
                    "device": round(free.device) if free.device < float("inf") else None,
                },
                "judge": judging.record() if judging else None,
            }
        )
        return
    console = Console(highlight=False)
    title = f"{spec.name}: {len(cells)} cells"
    console.print(_listed(title, states, asked) if len(states) <= MOST_LINES else _counted(title, states))
    known = {state.stage.key: state.state for state in states}
    standing = {stage.key: known.get(stage.key) or ("done" if stage.done(artifacts) else "missing") for stage in every}
    counts = Counter(standing.values())
    console.print(f"{len(every)} stages in all: " + ", ".join(f"{counts[name]} {name}" for name in STYLES), markup=False)
    peaks: dict[str, float] = {}
    for stage in every:
        if standing[stage.key] != "done":
            peaks[stage.kind] = max(peaks.get(stage.kind, 0.0), estimate(stage, artifacts).most)
    if peaks:
        shown = ", ".join(f"{kind} {_gib(need)}" for kind, need in sorted(peaks.items(), key=lambda item: -item[1]))
        device_too = f", {_gib(free.device)} GiB on the device" if free.device < float("inf") else ""
        there = f"free now: {_gib(free.host)} GiB{device_too}"
        console.print(f"memory at the peak, estimated: {shown}; {there}", markup=False, soft_wrap=True)
    if side_by_side:
        console.print(side_by_side, markup=False)
    if judging:
        console.print(
            f"judge {spec.judge.model}: {judging.total}; a request that fails is repeated", markup=False, soft_wrap=True
        )
        for warning in judging.warnings:
            console.print(f"warning: {warning}", markup=False, soft_wrap=True)


def _listed(title: str, states: Sequence[StageState], asked: Mapping[str, JudgeCost]) -> Table:
    """Return every stage of every cell."""
    table = _table(title, "cell", "stage", "state", "why")
    before = None
    for state in states:
        why = f"{state.why}; {asked[state.stage.key]}" if state.stage.key in asked else state.why
        table.add_row(state.cell if state.cell != before else "", state.name, _colored(state.state), why.replace("[", "\\["))
        before = state.cell
    return table


def _counted(title: str, states: Sequence[StageState]) -> Table:
    """Return how many cells have each stage in each state, and how many stages they share."""
    table = _table(f"{title} (--json lists every stage of each)", "stage", "state", "cells", "stages")
    cells = Counter((state.name, state.state) for state in states)
    stages = {(state.name, state.state, state.stage.key) for state in states}
    shared = Counter((name, how) for name, how, _ in stages)
    for name, how in cells:
        table.add_row(name, _colored(how), str(cells[name, how]), str(shared[name, how]))
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _colored(state: str) -> str:
    return f"[{STYLES[state]}]{state}[/]"


def _gib(number: float) -> str:
    return f"{number / 2**30:.1f}"
