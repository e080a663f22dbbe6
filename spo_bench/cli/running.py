"""spo-bench run, spo-bench plan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
    Terminal,
    say,
)
from spo_bench.cli.plan import show_plan
from spo_bench.stopping import orderly
from spo_bench.store.checkpoints import EVERY

if TYPE_CHECKING:
    from spo_bench.matrix.cells import Cell
    from spo_bench.stages.base import Stage

COST = "What it would cost"
Jobs = Annotated[
    str,
    typer.Option(
        "--jobs",
        metavar="N",
        help="Stages at a time, where memory allows; auto: as many as have cores enough.",
        rich_help_panel=WHERE,
    ),
]
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
    engine: Annotated[
        str,
        typer.Option(
            "--engine",
            metavar="NAME",
            help="local: this machine; ray: a Ray cluster; slurm: jobs of Slurm (docs/scaling.md).",
            rich_help_panel=WHERE,
        ),
    ] = "local",
    ray_address: Annotated[
        str | None,
        typer.Option(
            "--ray-address",
            metavar="HOST:PORT",
            help="A Ray cluster \\[default: $RAY_ADDRESS; without, one is started here].",
            rich_help_panel=WHERE,
        ),
    ] = None,
    slurm: Annotated[
        list[str] | None,
        typer.Option(
            "--slurm",
            metavar="KEY=VALUE",
            help="What jobs ask of Slurm: partition, account, time, … (repeatable); cluster=local tries it without.",
            rich_help_panel=WHERE,
        ),
    ] = None,
    jobs: Jobs = "auto",
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
    checkpoint: Annotated[
        float,
        typer.Option(
            "--checkpoint",
            min=0,
            metavar="MINUTES",
            help="Between two checkpoints of what is under way; 0: after every step.",
            rich_help_panel=WHERE,
        ),
    ] = EVERY / 60,
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="Try again what failed before, with the same inputs.", rich_help_panel=WHAT),
    ] = False,
    track: Annotated[
        list[str] | None,
        typer.Option(
            "--track",
            metavar="TRACKER",
            help="Show curves and results in wandb, trackio, mlflow or tensorboard (repeatable).",
            rich_help_panel=WHERE,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would run.", rich_help_panel=WHAT)] = False,
    method: Methods = None,
    task: Tasks = None,
    model: Models = None,
    seed: Seeds = None,
    tasks: TaskDirs = None,
) -> None:
    """Run a matrix: models × tasks × methods × {baseline, +SPO} × seeds, and write its report.

    A run that was stopped goes on where it was with the same command; what is in the store is not made again. Everything that
    would fail later is looked for first, and told in one list: then nothing is written, and the exit code is 2.
    """
    spec = _load(matrix, method, task, model, seed, tasks)
    target = out or Path("results") / spec.name
    from spo_bench import api
    from spo_bench.cli.progress import RunProgress, clock
    from spo_bench.engine.hire import check_memory, hire
    from spo_bench.engine.memory import GIB
    from spo_bench.matrix.judge_cost import judge_warnings
    from spo_bench.tracking import choose

    room = None if memory is None else memory * GIB
    if dry_run:
        choose(track or ())
        with hire(engine, spec, target, device, jobs, ray_address, slurm or ()) as crew:
            check_memory(room, crew)
            within = f", side by side within {memory:g} GiB" if memory is not None else ""
            show_plan(spec, target, store, crew, offline, tasks, as_json=False, how=crew.told + within)
        return

    console = Terminal(stderr=True)

    def warn(text: str) -> None:
        console.print(f"warning: {text}", markup=False, soft_wrap=True)

    for warning in judge_warnings(spec.judge):
        warn(warning)

    def watch(cells: Sequence[Cell], missing: Sequence[Stage]) -> RunProgress:
        counts = f"{len(cells)} cells, {len(missing)} stages to make; {crew.told}"
        console.print(f"{spec.name}: {counts}; {target}", markup=False, soft_wrap=True)
        return RunProgress(missing, cells, console)

    folders = [str(folder) for folder in tasks or []]
    with (
        orderly(lambda: console.print("stopping: what is under way is kept first; once more, and it is not")),
        hire(engine, spec, target, device, jobs, ray_address, slurm or ()) as crew,
    ):
        done = api.run(
            spec,
            target,
            store=store,
            engine=crew,
            memory=room,
            offline=offline,
            tasks_dirs=folders,
            checkpoint=60 * checkpoint,
            retry_failed=retry_failed,
            track=track or (),
            watch=watch,
            warn=warn,
        )
    console.print(f"{done.done} of {done.cells} cells done in {clock(done.seconds)}", markup=False)
    _print_result(done.out, console)
    if done.failed:
        for cell, reason in done.failed.items():
            console.print(f"failed: {cell}: {reason}", markup=False, soft_wrap=True)
        again = "what failed for a reason outside of it is tried again by the same command, all by --retry-failed"
        console.print(again, soft_wrap=True)
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
    jobs: Jobs = "auto",
    gpus: Annotated[
        list[str] | None,
        typer.Option(
            "--gpus", metavar="N[,N...]", help="Play the run through on so many GPUs, for example 8,64,512.", rich_help_panel=COST
        ),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option("--gpu", metavar="NAME", help="Which GPU: A100-80GB, H100, H200, L40S, …", rich_help_panel=COST),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure", help="First run small stages of the spec's own models here, to know times.", rich_help_panel=COST
        ),
    ] = False,
    why: Annotated[
        bool,
        typer.Option(
            "--why", help="Say in full why what is left to make is: what changed, and what changed that.", rich_help_panel=WHAT
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Show what would run: every cell, the state and reason of every stage, what it takes of time, memory and disk, what a judge
    behind an endpoint would cost, and for what a run would be refused.

    Nothing is fetched: hub models and data that are not here are planned by what is known of them. With --gpu or --gpus the plan
    is of a run on such GPUs in place of this machine.
    """
    from spo_bench.cli.cost import counts
    from spo_bench.engine.estimate import GPU_COUNTS
    from spo_bench.engine.hire import hire
    from spo_bench.engine.machines import choose_gpu

    numbers = counts(gpus or ())
    if gpu is not None:
        gpu, numbers = choose_gpu(gpu, device)[0], numbers or list(GPU_COUNTS)
    spec = _load(matrix, method, task, model, seed, tasks)
    target = out or Path("results") / spec.name
    with hire("local", spec, target, device, jobs) as crew:
        show_plan(spec, target, store, crew, offline, tasks, json, why=why, gpu=gpu, gpus=numbers, measure=measure)


def _load(matrix: str | None, methods: Any, tasks: Any, models: Any, seeds: Any, folders: Sequence[Path] | None) -> Any:
    from spo_bench.matrix.load import load_spec

    return load_spec(
        matrix, methods=methods or (), tasks=tasks or (), models=models or (), seeds=seeds or (), tasks_dirs=folders or ()
    )


def _print_result(run_directory: Path, console: Terminal) -> None:
    """Show the main table and where the rest is."""
    main = (run_directory / "tables" / "main.md").read_text(encoding="utf-8")
    say(main)
    console.print(f"report: {run_directory / 'report.html'}", markup=False, soft_wrap=True)
