"""spo-bench methods, tasks, presets, init: what there is, and how to begin."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from spo_bench.cli.common import Json, TaskDirs, print_json
from spo_bench.errors import InputError, SpoBenchError

Name = Annotated[str, typer.Argument(metavar="NAME")]

methods_app = typer.Typer(
    help="The preference methods.", invoke_without_command=True, epilog="Example: spo-bench methods show ipo"
)
tasks_app = typer.Typer(help="The tasks.", invoke_without_command=True, epilog="Example: spo-bench tasks list --json")
presets_app = typer.Typer(
    help="The specs that come with the package.", invoke_without_command=True, epilog="Example: spo-bench presets show small"
)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(methods_app, name="methods")
    app.add_typer(tasks_app, name="tasks")
    app.add_typer(presets_app, name="presets")
    app.command(epilog="Example: spo-bench init my-study")(init)


def _listing(columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(str(value).replace("[", "\\[") for value in row))
    Console(highlight=False).print(table)


@methods_app.callback()
def _methods(context: typer.Context) -> None:
    """The preference methods."""
    if context.invoked_subcommand is None:
        methods_list(json=False)


@methods_app.command("list", epilog="Example: spo-bench methods list --json")
def methods_list(json: Json = False) -> None:
    """List the methods."""
    from spo_bench.methods import get_method, method_names

    found = [get_method(name) for name in method_names()]
    if json:
        print_json([method_record(method) for method in found])
        return
    rows = [
        (
            m.name,
            m.data,
            "yes" if m.needs_reference else "no",
            m.reduction,
            ", ".join(f"{k}={d.value}" for k, d in m.defaults.items()),
            m.formula,
        )
        for m in found
    ]
    _listing(("method", "data", "reference", "log-probs", "defaults", "loss"), rows)


@methods_app.command("show", epilog="Example: spo-bench methods show dpo")
def methods_show(name: Name, json: Json = False) -> None:
    """Show a method: formula, source, defaults with their sources, traps."""
    from spo_bench.methods import get_method

    method = get_method(name)
    if json:
        print_json(method_record(method))
        return
    lines = [
        f"{method.name}: {method.formula}",
        f"source: {method.reference}",
        f"data: {method.data}; log-probabilities: {method.reduction} over tokens",
    ]
    reads, coupled = ("yes" if answer else "no" for answer in (method.needs_reference, method.batch_coupled))
    lines.append(f"reads the reference: {reads}; batch-coupled: {coupled}")
    lines += [f"  {key} = {default.value}   ({default.source})" for key, default in method.defaults.items()]
    lines += [f"  note: {trap}" for trap in method.traps]
    Console(highlight=False).print("\n".join(lines), markup=False)


def method_record(method: Any) -> dict[str, Any]:
    """Return a method's declaration as JSON values."""
    plain = ("name", "version", "data", "needs_reference", "needs_kl", "batch_coupled", "reduction", "formula", "reference")
    return {
        **{key: getattr(method, key) for key in plain},
        "defaults": {key: {"value": default.value, "source": default.source} for key, default in method.defaults.items()},
        "traps": list(method.traps),
    }


@tasks_app.callback()
def _tasks(context: typer.Context) -> None:
    """The tasks."""
    if context.invoked_subcommand is None:
        tasks_list(tasks=None, json=False)


@tasks_app.command("list", epilog="Example: spo-bench tasks list --tasks my_tasks/")
def tasks_list(tasks: TaskDirs = None, json: Json = False) -> None:
    """List the tasks, built in, installed, and in the given folders."""
    from spo_bench.plugins import broken_tasks, find_tasks

    found, broken = find_tasks(tasks or ()), broken_tasks(tasks or ())
    if json:
        print_json(
            [
                *(task_record(plugin) for plugin in found.values()),
                *({"name": b.name, "origin": b.origin, "broken": b.reason} for b in broken),
            ]
        )
        return
    _listing(
        ("task", "controlled", "summary", "from"),
        [(p.name, "yes" if p.cls.controlled else "no", p.cls.summary, p.origin) for p in found.values()],
    )
    for plugin in broken:
        Console(stderr=True, highlight=False).print(f"broken: {plugin.name} ({plugin.origin})\n{plugin.reason}", markup=False)


@tasks_app.command("show", epilog="Example: spo-bench tasks show dialogue")
def tasks_show(name: Name, tasks: TaskDirs = None, json: Json = False) -> None:
    """Show a task: summary, metrics, judge prompt."""
    from spo_bench.plugins import find_tasks, unknown_task

    found = find_tasks(tasks or ())
    if name not in found:
        raise unknown_task(name, tasks or ())
    record = task_record(found[name])
    if json:
        print_json(record)
        return
    Console(highlight=False).print("\n".join(f"{key}: {value}" for key, value in record.items()), markup=False)


def task_record(plugin: Any) -> dict[str, Any]:
    """Return a task's declaration as JSON values."""
    cls = plugin.cls
    return {
        "name": plugin.name,
        "summary": cls.summary,
        "controlled": cls.controlled,
        "version": cls.version,
        "needs_data": cls.needs_data,
        "metrics": list(cls.metrics),
        "judge_prompt": cls.judge_prompt,
        "origin": plugin.origin,
    }


@tasks_app.command("validate", epilog="Example: spo-bench tasks validate my_tasks/ --data pairs.jsonl")
def tasks_validate(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A folder of task plugins.")],
    data: Annotated[str | None, typer.Option("--data", help="Data for tasks that need some.")] = None,
) -> None:
    """Load every task of a folder, take rows of each split, and score an answer: exit code 2 if anything is wrong."""
    from spo_bench.plugins import broken_tasks, find_tasks, get_task

    if not path.is_dir():
        raise InputError(
            f"'{path}' is not a folder",
            "a folder of *.py files with Task subclasses is validated",
            "give the folder that holds the plugin",
        )
    faults = [f"{b.name}: cannot be loaded\n{b.reason}" for b in broken_tasks([path])]
    # Built-in tasks come from another folder: only those of this one are validated.
    own = [p for p in find_tasks([path]).values() if str(path.resolve()) in p.origin]
    for plugin in own:
        if plugin.cls.needs_data and data is None:
            faults.append(f"{plugin.name}: needs data, give --data FILE")
            continue
        try:
            typer.echo(f"{plugin.name}: {_tried(get_task(plugin.name, data if plugin.cls.needs_data else None, [path]))}")
        except SpoBenchError as error:
            faults.append(f"{plugin.name}: {error}")
        except Exception:  # noqa: BLE001 - a plugin may raise anything; its author is shown where
            faults.append(f"{plugin.name}: raised\n{traceback.format_exc()}")
    if not own and not faults:
        faults.append("no Task subclass with a name was found")
    if faults:
        raise InputError(
            "\n".join(faults), "a task loads, gives rows of every split, and scores an answer", "mend the task and validate again"
        )


def _tried(task: Any) -> str:
    """Use a task as a matrix would, a few rows of each split; return what was seen."""
    counts, prompts = [], {}
    for split in ("sft", "train", "heldout", "eval"):
        rows = task.load(split, 8, 0)
        if len({row.id for row in rows}) != len(rows):
            raise InputError(f"split {split} repeats a row id", "ids are unique", "make ids from the rows' content")
        again = [row.id for row in task.load(split, 8, 0)]
        if again != [row.id for row in rows]:
            raise InputError(
                f"split {split} gave other rows the second time",
                "the same arguments give the same rows",
                "draw from the seed only",
            )
        counts.append(f"{split} {len(rows)}")
        prompts[split] = {str(row.prompt) for row in rows}
    shared = (prompts["train"] | prompts["sft"]) & prompts["eval"]
    if shared:
        raise InputError(f"{len(shared)} prompts are in train and in eval", "splits never share a prompt", "split by prompt")
    reward = ""
    if task.controlled:
        row = task.load("eval", 1, 0)[0]
        chosen, rejected = (task.true_reward(row, answer) for answer in (row.chosen, row.rejected))
        reward = f"; true reward of its chosen answer {chosen:.3f}, rejected {rejected:.3f}"
    return f"rows {', '.join(counts)}{reward}"


@presets_app.callback()
def _presets(context: typer.Context) -> None:
    """The specs that come with the package."""
    if context.invoked_subcommand is None:
        presets_list(json=False)


@presets_app.command("list", epilog="Example: spo-bench presets list")
def presets_list(json: Json = False) -> None:
    """List the presets."""
    from spo_bench.matrix.load import presets

    if json:
        print_json([{"name": name, "summary": summary} for name, summary in presets().items()])
        return
    _listing(("preset", "summary"), list(presets().items()))


@presets_app.command("show", epilog="Example: spo-bench presets show quick > mine.yaml")
def presets_show(name: Name) -> None:
    """Print a preset as it is written."""
    from spo_bench.matrix.load import preset_text

    typer.echo(preset_text(name), nl=False)


def init(directory: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty directory.")]) -> None:
    """Make a directory to begin a study in: a spec to edit and a task plugin to copy."""
    from spo_bench.cli.starter import FILES

    if directory.exists() and any(directory.iterdir() if directory.is_dir() else [directory]):
        raise InputError(
            f"'{directory}' is there and not empty", "init writes into a new or empty directory", "give another name"
        )
    for name, text in FILES.items():
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        typer.echo(target)
