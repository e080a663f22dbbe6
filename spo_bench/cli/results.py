"""spo-bench report, spo-bench table, spo-bench track."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from spo_bench.cli.common import Offline, Terminal, say
from spo_bench.errors import InputError, SpoBenchError

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run's directory.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="Example: spo-bench report results/quick")(report)
    app.command(epilog="Example: spo-bench table results/quick --format tex > main.tex")(table)
    app.command(epilog="Example: spo-bench track results/quick --to tensorboard")(track)


def _checked(run: Path) -> Path:
    if not (run / "run.json").is_file() or not (run / "cells.jsonl").is_file():
        raise InputError(
            f"'{run}' holds no finished run",
            "a run's directory has run.json and cells.jsonl",
            "give the directory that `spo-bench run --out` wrote; finish an interrupted run first",
        )
    return run


def report(run: Run) -> None:
    """Rebuild the tables, the figures and report.html from a run's cells."""
    from spo_bench.report import write_report

    write_report(_checked(run))
    say(run / "report.html")


def table(
    run: Run,
    format: Annotated[str, typer.Option("--format", help="md, tex, csv, html or json.")] = "md",
    name: Annotated[
        str,
        typer.Option(
            "--name",
            help="Which table: main, ranking, ablation, training, effects, power, cost, axes, hyperparameters, judge, degree, "
            "audit or data.",
        ),
    ] = "main",
    bold: Annotated[
        str,
        typer.Option("--bold", help="What main has in bold: best, or undominated (all that are not significantly worse)."),
    ] = "best",
) -> None:
    """Print one table of a run."""
    from spo_bench.report import check_table
    from spo_bench.report import table as render

    check_table(name, format, bold)
    say(render(_checked(run), name, format, bold), as_json=format == "json")


def track(
    run: Run,
    to: Annotated[list[str], typer.Option("--to", metavar="TRACKER", help="wandb, trackio, mlflow or tensorboard (repeatable).")],
    offline: Offline = False,
) -> None:
    """Send a finished run to trackers, as `run --track` does; what is there already is not sent again."""
    from spo_bench.report.results import read_results
    from spo_bench.tracking import choose, connect
    from spo_bench.tracking.base import Place
    from spo_bench.tracking.finished import send

    trackers, project = choose(to), read_results(_checked(run)).name
    console = Terminal(stderr=True)
    for name in trackers:
        try:
            with redirect_stdout(sys.stderr):  # what a tracker says is no result
                cells = send(connect(name, Place(project, run, offline)), run)
        except SpoBenchError:
            raise
        except Exception as error:
            raise SpoBenchError(f"tracker {name}: {error}; what it has already is not sent again") from error
        console.say(f"{name}: {cells} cells of {project}")
