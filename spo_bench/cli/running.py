"""spo-bench run, spo-bench plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from spo_bench.cli.common import (
    NARROW,
    WHAT,
    WHERE,
    Device,
    Json,
    Matrix,
    Methods,
    Models,
    Offline,
    Seeds,
    StoreDir,
    TaskDirs,
    Tasks,
    print_json,
)
from spo_bench.errors import InputError, Interrupted

if TYPE_CHECKING:
    from spo_bench.matrix.cells import Cell
    from spo_bench.stages.base import Stage

__all__ = ["NARROW", "register"]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="Example: spo-bench run --matrix paper.yaml --out results/paper --jobs 2")(run)
    app.command(epilog="Example: spo-bench plan --matrix small")(plan)


def run(
    matrix: Matrix = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The run's directory \\[default: results/NAME].", rich_help_panel=WHERE)
    ] = None,
    store: StoreDir = None,
    device: Device = "auto",
    engine: Annotated[str, typer.Option("--engine", help="local: this machine.", rich_help_panel=WHERE)] = "local",
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", min=1, help="Stages at a time \\[default: 1; small models: one a core].", rich_help_panel=WHERE),
    ] = None,
    offline: Offline = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would run.", rich_help_panel=WHAT)] = False,
    method: Methods = None,
    task: Tasks = None,
    model: Models = None,
    seed: Seeds = None,
    tasks: TaskDirs = None,
) -> None:
    """Run a matrix: models × tasks × methods × {baseline, +SPO} × seeds, and write its report.

    A run that was stopped goes on where it was with the same command; what is in the store is not made again.
    """
    if engine != "local":
        raise InputError(
            f"engine '{engine}'", "this version runs on the local machine", "leave --engine out, or give --engine local"
        )
    spec = _load(matrix, method, task, model, seed, tasks)
    target = out or Path("results") / spec.name
    if dry_run:
        _print_plan(spec, target, store, device, offline, tasks, as_json=False)
        return
    from spo_bench import api
    from spo_bench.cli.progress import RunProgress, clock
    from spo_bench.matrix.judge_cost import judge_warnings

    console = Console(stderr=True, highlight=False)
    for warning in judge_warnings(spec.judge):
        console.print(f"warning: {warning}", markup=False, soft_wrap=True)
    side_by_side = jobs or default_jobs(spec, device)

    def watch(cells: Sequence[Cell], missing: Sequence[Stage]) -> RunProgress:
        counts = f"{len(cells)} cells, {len(missing)} stages to make, {side_by_side} at a time"
        console.print(f"{spec.name}: {counts}; {target}", markup=False)
        return RunProgress(missing, cells, side_by_side, console)

    folders = [str(folder) for folder in tasks or []]
    try:
        done = api.run(
            spec, target, store=store, device=device, jobs=side_by_side, offline=offline, tasks_dirs=folders, watch=watch
        )
    except Interrupted as error:
        raise Interrupted("stopped; the same command goes on where this run was") from error
    console.print(f"{done.done} of {done.cells} cells done in {clock(done.seconds)}", markup=False)
    _print_result(done.out, console)
    if done.failed:
        for cell, reason in done.failed.items():
            console.print(f"failed: {cell}: {reason}", markup=False)
        raise typer.Exit(1)


def default_jobs(spec: Any, device: str) -> int:
    """Return how many stages run side by side: one a core where only the embedded model is run, whose products are too small
    for several cores to share; else one.
    """
    from spo_bench.engine.local import cores_here
    from spo_bench.models.source import EMBEDDED

    small = all(model.path == EMBEDDED for model in spec.models)
    return cores_here() if small and not device.startswith("cuda") else 1


def plan(
    matrix: Matrix = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The run's directory, to tell stale from missing.", rich_help_panel=WHERE)
    ] = None,
    store: StoreDir = None,
    device: Device = "auto",
    offline: Offline = False,
    method: Methods = None,
    task: Tasks = None,
    model: Models = None,
    seed: Seeds = None,
    tasks: TaskDirs = None,
    json: Json = False,
) -> None:
    """Show what would run: every cell, the state and reason of every stage, and what a judge behind an endpoint would cost."""
    spec = _load(matrix, method, task, model, seed, tasks)
    _print_plan(spec, out or Path("results") / spec.name, store, device, offline, tasks, json)


def _load(matrix: str | None, methods: Any, tasks: Any, models: Any, seeds: Any, folders: Sequence[Path] | None) -> Any:
    from spo_bench.matrix.load import load_spec

    return load_spec(
        matrix, methods=methods or (), tasks=tasks or (), models=models or (), seeds=seeds or (), tasks_dirs=folders or ()
    )


def _print_plan(
    spec: Any, out: Path, store: Path | None, device: str, offline: bool, folders: Sequence[Path] | None, as_json: bool
) -> None:
    from spo_bench import api
    from spo_bench.matrix.judge_cost import judge_plan
    from spo_bench.matrix.plan import earlier_keys, stage_states
    from spo_bench.store.artifacts import Store

    artifacts = Store(store or api.default_store())
    cells = api.cells_of(spec, artifacts.root, device, offline, [str(folder) for folder in folders or []])
    states = stage_states(cells, artifacts, earlier_keys(out))
    judging = judge_plan(spec.judge, [state.stage for state in states], artifacts, api.purse_of(out))
    asked = judging.stages if judging else {}
    if as_json:
        print_json(
            {
                "name": spec.name,
                "out": str(out),
                "store": str(artifacts.root),
                "cells": [cell.id for cell in cells],
                "stages": [
                    {"cell": s.cell, "stage": s.name, "kind": s.stage.kind, "key": s.stage.key, "state": s.state, "why": s.why}
                    | ({"judge": asdict(asked[s.stage.key])} if s.stage.key in asked else {})
                    for s in states
                ],
                "judge": judging.record() if judging else None,
            }
        )
        return
    console = Console(highlight=False)
    table = Table(title=f"{spec.name}: {len(cells)} cells", title_justify="left", box=None, pad_edge=False)
    for column in ("cell", "stage", "state", "why"):
        table.add_column(column, overflow="fold")
    style = {"done": "green", "stale": "yellow", "missing": "dim"}
    before = None
    for state in states:
        why = f"{state.why}; {asked[state.stage.key]}" if state.stage.key in asked else state.why
        table.add_row(
            state.cell if state.cell != before else "", state.name, f"[{style[state.state]}]{state.state}[/]", _plain(why)
        )
        before = state.cell
    console.print(table)
    shared = {state.stage.key: state.state for state in states}
    counts = Counter(shared.values())
    console.print(f"{len(shared)} stages in all: " + ", ".join(f"{counts[name]} {name}" for name in style), markup=False)
    if judging:
        console.print(
            f"judge {spec.judge.model}: {judging.total}; a request that fails is repeated", markup=False, soft_wrap=True
        )
        for warning in judging.warnings:
            console.print(f"warning: {warning}", markup=False, soft_wrap=True)


def _plain(text: str) -> str:
    return text.replace("[", "\\[")


def _print_result(run_directory: Path, console: Console) -> None:
    """Show the main table and where the rest is."""
    from spo_bench.report import table

    Console(highlight=False).print(table(run_directory, "main", "md"), markup=False, soft_wrap=True)
    console.print(f"report: {run_directory / 'report.html'}", markup=False, soft_wrap=True)
