"""spo-bench doctor: is this machine ready."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from spo_bench.cli.common import Json, StoreDir, TaskDirs, print_json, say
from spo_bench.errors import InputError

NETWORK = "What is asked over a network, only where wanted"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog="Example: spo-bench doctor --json")(doctor)


def doctor(
    store: StoreDir = None,
    tasks: TaskDirs = None,
    online: Annotated[bool, typer.Option("--online", help="Ask the hub.", rich_help_panel=NETWORK)] = False,
    judge_model: Annotated[
        str | None, typer.Option("--judge-model", help="Ask this judge for one verdict.", rich_help_panel=NETWORK)
    ] = None,
    judge_url: Annotated[
        str | None,
        typer.Option("--judge-url", help="Its endpoint \\[default: $OPENAI_BASE_URL].", rich_help_panel=NETWORK),
    ] = None,
    api_key_env: Annotated[
        str, typer.Option("--api-key-env", help="Environment variable with its key.", rich_help_panel=NETWORK)
    ] = "OPENAI_API_KEY",
    json: Json = False,
) -> None:
    """Say whether this machine is ready: packages, devices, memory, disk, store, plugins, judge key, programs.

    Exit code 1: something is not well. Nothing is asked over a network, unless --online or --judge-model is given.
    """
    from spo_bench.api import default_store
    from spo_bench.cli.machine import JudgeAsked, examine
    from spo_bench.plugins import find_tasks

    if judge_url is not None and judge_model is None:
        raise InputError(f"--judge-url {judge_url} without --judge-model", "what is asked is a model", "add --judge-model NAME")
    if tasks:
        find_tasks(tasks)  # a folder that is not there is no state of the machine
    judge = None
    if judge_model is not None:
        judge = JudgeAsked(judge_model, judge_url or os.environ.get("OPENAI_BASE_URL"), api_key_env)
    found = []
    for check in examine(store or default_store(), Path("results"), tasks or (), online, judge):
        found.append(check)
        if not json:
            say(f"{'ok  ' if check.ok else 'FAIL'} {check.name}: {check.seen}")
    if json:
        print_json([{"check": one.name, "ok": one.ok, "seen": one.seen} for one in found])
    if not all(one.ok for one in found):
        raise typer.Exit(1)
