"""spo-bench methods, tasks, presets, init: what there is, and how to begin."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from spo_bench.cli.common import Group, Json, TaskDirs, Terminal, cell, print_json, say
from spo_bench.errors import InputError, SpoBenchError, unknown

if TYPE_CHECKING:
    from spo_bench.methods import Addition, Default, Method

Name = Annotated[str, typer.Argument(metavar="NAME")]

methods_app = typer.Typer(
    cls=Group,
    help="The preference methods and what can be added to them.",
    invoke_without_command=True,
    epilog="Example: spo-bench methods show ipo",
)
tasks_app = typer.Typer(cls=Group, help="The tasks.", invoke_without_command=True, epilog="Example: spo-bench tasks list --json")
presets_app = typer.Typer(
    cls=Group,
    help="The specs that come with the package.",
    invoke_without_command=True,
    epilog="Example: spo-bench presets show small",
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
        table.add_row(*map(cell, row))
    Terminal().print(table)


@methods_app.callback()
def _methods(context: typer.Context) -> None:
    """The preference methods."""
    if context.invoked_subcommand is None:
        methods_list(json=False, markdown=False)


@methods_app.command("list", epilog="Example: spo-bench methods list --json")
def methods_list(
    json: Json = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables of docs/methods.md.")] = False,
) -> None:
    """List the methods, and what can be added to them; --json: the methods alone."""
    from spo_bench.methods import addition_names, get_addition, get_method, method_names
    from spo_bench.methods.table import markdown_table

    if json and markdown:
        raise InputError("--json with --markdown", "one of the two is printed", "leave one out")
    if markdown:
        say(markdown_table())
        return
    found = [get_method(name) for name in method_names()]
    if json:
        print_json([method_record(method) for method in found])
        return
    rows = [(m.name, m.data, _yes(m.needs_reference), m.reduction, _values(m.defaults), m.formula) for m in found]
    _listing(("method", "data", "reference", "log-probs", "defaults", "loss"), rows)
    say()
    additions = [get_addition(name) for name in addition_names()]
    _listing(("addition", "defaults", "term"), [(f"+{a.name}", _values(a.defaults), a.formula) for a in additions])


@methods_app.command("show", epilog="Example: spo-bench methods show +sft")
def methods_show(name: Name, json: Json = False) -> None:
    """Show a method or an addition: formula, source, what it needs, defaults with sources and allowed values, traps."""
    from spo_bench.methods import Addition

    one = _declared(name)
    record = addition_record(one) if isinstance(one, Addition) else method_record(one)
    if json:
        print_json(record)
        return
    lines = [f"{record['name']}: {record['formula']}", f"source: {record['reference']}"]
    if isinstance(one, Addition):
        lines.append(f"refused by: {', '.join(record['refused_by']) or 'no method'}")
        lines += [f"  {method}: {reason}" for method, reason in record["refused_by"].items()]
        lines += [f"  not beside +{other}: {reason}" for other, reason in record["clashes"].items()]
    else:
        lines.append(f"data: {one.data}; log-probabilities: {one.reduction} over tokens")
        lines.append(f"needs: {', '.join(record['reads']) or 'nothing but the log-probabilities'}")
        lines.append(f"reads the reference: {_yes(one.needs_reference)}; batch-coupled: {_yes(one.batch_coupled)}")
        lines += [f"  without +{addition}: {reason}" for addition, reason in record["refuses"].items()]
    for key, default in record["defaults"].items():
        lines.append(f"  {key} = {default['value']}   {default['rule']}   ({default['source']})")
    lines += [f"  note: {trap}" for trap in record["traps"]]
    lines.append(f"in a spec: {record['spec']}")
    say("\n".join(lines))


def _declared(name: str) -> Method | Addition:
    """Return the method or the addition of that name; the name of an addition may have its plus sign.

    Raises InputError with the nearest name of either, and says which plugins are broken.
    """
    from spo_bench.methods import addition_names, discover, get_addition, get_method, method_names

    if name in method_names():
        return get_method(name)
    if (plain := name.removeprefix("+")) in addition_names():
        return get_addition(plain)
    error = unknown("method or addition", name, [*method_names(), *(f"+{addition}" for addition in addition_names())])
    broken = "".join(f"\n{origin} cannot be loaded:\n{text}" for origin, text in discover().broken.items())
    raise InputError(error.given, error.rule, error.remedy + broken)


def method_record(method: Method) -> dict[str, Any]:
    """Return a method's declaration as JSON values."""
    from spo_bench.methods.table import reads, refused_additions

    needs = ("needs_reference", "needs_kl", "needs_scores", "needs_collision")
    plain = ("name", "version", "data", *needs, "batch_coupled", "likelihood", "reduction", "formula", "reference")
    return {
        **{key: getattr(method, key) for key in plain},
        "running": method.running is not None,
        "reads": reads(method),
        "refuses": refused_additions(method),
        **_shared(method),
    }


def addition_record(addition: Addition) -> dict[str, Any]:
    """Return an addition's declaration as JSON values."""
    from spo_bench.methods.table import clashes, refused_by

    plain = ("version", "needs_explored", "formula", "reference")
    return {
        "name": f"+{addition.name}",
        **{key: getattr(addition, key) for key in plain},
        "refused_by": refused_by(addition),
        "clashes": clashes(addition),
        **_shared(addition),
    }


def _shared(one: Method | Addition) -> dict[str, Any]:
    """Return what both records end with."""
    from spo_bench.methods.table import spec_line

    defaults = {key: {"value": d.value, "source": d.source, "rule": d.rule()} for key, d in one.defaults.items()}
    return {"defaults": defaults, "traps": list(one.traps), "spec": spec_line(one)}


def _values(defaults: Mapping[str, Default]) -> str:
    return ", ".join(f"{key}={default.value}" for key, default in defaults.items())


def _yes(answer: bool) -> str:
    return "yes" if answer else "no"


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
        Terminal(stderr=True).say(f"broken: {plugin.name} ({plugin.origin})\n{plugin.reason}")


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
    Terminal().print(cell("\n".join(f"{key}: {value}" for key, value in record.items())))


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
    from spo_bench.plugins import broken_tasks, find_tasks, get_task, where_it_failed

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
            say(f"{plugin.name}: {_tried(get_task(plugin.name, data if plugin.cls.needs_data else None, [path]))}")
        except SpoBenchError as error:
            faults.append(f"{plugin.name}: {error}")
        except Exception as error:  # noqa: BLE001 - a plugin may raise anything; its author is shown where
            faults.append(f"{plugin.name}: raised\n{where_it_failed(error)}")
    if not own and not faults:
        faults.append("no Task subclass with a name was found")
    if faults:
        raise InputError(
            "\n".join(faults), "a task loads, gives rows of every split, and scores an answer", "mend the task and validate again"
        )


def _tried(task: Any) -> str:
    """Use a task as a matrix would, a few rows of each split; return what was seen."""
    from spo_bench.task import Row

    counts, prompts = [], {}
    for split in ("sft", "train", "heldout", "eval"):
        rows = task.load(split, 8, 0)
        if not isinstance(rows, list | tuple) or not all(isinstance(row, Row) for row in rows):
            raise InputError(f"split {split} gives {reprlib.repr(rows)}", "load() returns a list of Row", "return one")
        if not rows and split in ("train", "eval"):
            raise InputError(f"split {split} has no rows", "a task needs train and eval rows", "give some")
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

    say(preset_text(name), end="")


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
        say(target)
