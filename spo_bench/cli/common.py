"""Options several commands share, and printing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

WHAT = "What to run"
WHERE = "Where"
NARROW = "Narrow the spec"

Matrix = Annotated[
    str | None,
    typer.Option(
        "--matrix", metavar="[SPEC]", help="A preset's name or a YAML file; without a value: quick.", rich_help_panel=WHAT
    ),
]
Methods = Annotated[list[str] | None, typer.Option("--method", help="Only this method (repeatable).", rich_help_panel=NARROW)]
Tasks = Annotated[list[str] | None, typer.Option("--task", help="Only this task (repeatable).", rich_help_panel=NARROW)]
Models = Annotated[list[str] | None, typer.Option("--model", help="Only this model (repeatable).", rich_help_panel=NARROW)]
Seeds = Annotated[list[int] | None, typer.Option("--seed", help="Only this seed (repeatable).", rich_help_panel=NARROW)]
TaskDirs = Annotated[
    list[Path] | None, typer.Option("--tasks", help="A folder with further task plugins (repeatable).", rich_help_panel=WHAT)
]
StoreDir = Annotated[
    Path | None,
    typer.Option("--store", help="Artifacts \\[default: $SPO_BENCH_STORE or ~/.cache/spo-bench].", rich_help_panel=WHERE),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:0, cuda:1, …", rich_help_panel=WHERE)]
Offline = Annotated[bool, typer.Option("--offline", help="Never ask a hub.", rich_help_panel=WHERE)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout."""
    json.dump(value, sys.stdout, indent=1, ensure_ascii=False)
    sys.stdout.write("\n")
