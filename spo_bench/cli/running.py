"""spo-bench run, spo-bench plan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

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
)
from spo_bench.cli.plan import show_plan
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
        str,
        typer.Option(
            "--jobs",
            metavar="N",
            help="Stages at a time, where memory allows; auto: as many as have cores enough.",
            rich_help_panel=WHERE,
        ),
    ] = "auto",
    memory: Annotated[
        float | None,
        typer.Option(
            "--memory",
            min=0,
            help="GiB that stages side by side may take, with two jobs or more \\[default: what is free].",
            rich_help_panel=WHERE,
        ),
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
    from spo_bench import api
    from spo_bench.cli.progress import RunProgress, clock
    from spo_bench.engine.memory import GIB
    from spo_bench.matrix.judge_cost import judge_warnings

    side_by_side, room = api.choose_jobs(jobs, spec, device), None if memory is None else memory * GIB
    api.check_memory(room, side_by_side)
    if dry_run:
        together = f"{side_by_side} stage{'s' if side_by_side > 1 else ''} at a time"
        within = f", side by side within {memory:g} GiB" if memory is not None else ""
        show_plan(spec, target, store, device, offline, tasks, as_json=False, side_by_side=together + within)
        return

    console = Console(stderr=True, highlight=False)
    for warning in judge_warnings(spec.judge):
        console.print(f"warning: {warning}", markup=False, soft_wrap=True)

    def watch(cells: Sequence[Cell], missing: Sequence[Stage]) -> RunProgress:
        counts = f"{len(cells)} cells, {len(missing)} stages to make, {side_by_side} at a time"
        console.print(f"{spec.name}: {counts}; {target}", markup=False)
        return RunProgress(missing, cells, console)

    folders = [str(folder) for folder in tasks or []]
    try:
        done = api.run(
            spec,
            target,
            store=store,
            device=device,
            jobs=side_by_side,
            memory=room,
            offline=offline,
            tasks_dirs=folders,
            watch=watch,
        )
    except Interrupted as error:
        raise Interrupted("stopped; the same command goes on where this run was") from error
    console.print(f"{done.done} of {done.cells} cells done in {clock(done.seconds)}", markup=False)
    _print_result(done.out, console)
    if done.failed:
        for cell, reason in done.failed.items():
            console.print(f"failed: {cell}: {reason}", markup=False)
        raise typer.Exit(1)


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
    show_plan(spec, out or Path("results") / spec.name, store, device, offline, tasks, json)


def _load(matrix: str | None, methods: Any, tasks: Any, models: Any, seeds: Any, folders: Sequence[Path] | None) -> Any:
    from spo_bench.matrix.load import load_spec

    return load_spec(
        matrix, methods=methods or (), tasks=tasks or (), models=models or (), seeds=seeds or (), tasks_dirs=folders or ()
    )


def _print_result(run_directory: Path, console: Console) -> None:
    """Show the main table and where the rest is."""
    main = (run_directory / "tables" / "main.md").read_text(encoding="utf-8")
    Console(highlight=False).print(main, markup=False, soft_wrap=True)
    console.print(f"report: {run_directory / 'report.html'}", markup=False, soft_wrap=True)
