"""spo-bench compare, spo-bench gate."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table as RichTable

from spo_bench.cli.common import Json, Terminal, cell, print_json, say
from spo_bench.cli.telling import FAULT, tell
from spo_bench.errors import InputError, SpoBenchError, unknown

if TYPE_CHECKING:
    from spo_bench.gate import Accepted, Verdict
    from spo_bench.report.grid import Table

COLOURS = {"worse": "bold red", "fine": "green", "cannot decide": "yellow"}
ACCEPT = "Accept a run as the reference"
PLAIN_WIDTH = 200


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="Example: spo-bench compare results/monday results/tuesday")(compare)
    app.command(epilog="Example: spo-bench gate results/quick --reference results/reference --junit gate.xml")(gate)


def compare(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="A run's directory.")],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", help="Another one; differences are B minus A.")],
    metric: Annotated[
        list[str] | None, typer.Option("--metric", help="A metric (repeatable), or all \\[default: the headline metrics].")
    ] = None,
    format: Annotated[str | None, typer.Option("--format", help="Print it as md, tex, csv, html or json.")] = None,
    json: Json = False,
) -> None:
    """Two runs side by side, paired where they share prompts: both levels, their difference with its interval, p.

    Arms are matched by model, task, method, SPO and data axes; changed settings are shown.
    """
    from spo_bench.report.compare import compare as compared
    from spo_bench.report.render import FORMATS
    from spo_bench.report.results import read_results

    if json and format not in (None, "json"):
        raise InputError(f"--json with --format {format}", "one of the two is printed", "leave one out")
    wanted = "json" if json else format
    if wanted is not None and wanted not in FORMATS:
        raise unknown("format", wanted, FORMATS)
    table = compared(read_results(run_a), read_results(run_b), metric or [])
    if wanted is not None:
        say(FORMATS[wanted](table), end="", as_json=wanted == "json")
        return
    console = _console()
    console.print(f"{run_a} (A) and {run_b} (B)", markup=False, style="bold")
    _print(console, table)
    for note in table.notes():
        console.print(note, markup=False, style="dim")


def gate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's directory.")],
    reference: Annotated[
        Path, typer.Option("--reference", metavar="DIR", help="What --accept wrote, or another run's directory.")
    ] = Path("results/reference"),
    junit: Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Write JUnit XML.")] = None,
    summary: Annotated[
        Path | None, typer.Option("--summary", metavar="FILE", help="Append Markdown, as for $GITHUB_STEP_SUMMARY.")
    ] = None,
    json: Json = False,
    accept: Annotated[
        bool,
        typer.Option("--accept", help="Make RUN the reference in DIR; nothing else ever writes there.", rich_help_panel=ACCEPT),
    ] = False,
    why: Annotated[str | None, typer.Option("--why", metavar="TEXT", help="Why it is accepted.", rich_help_panel=ACCEPT)] = None,
    who: Annotated[
        str | None, typer.Option("--who", metavar="NAME", help="Who does \\[default: git's user.name].", rich_help_panel=ACCEPT)
    ] = None,
) -> None:
    """Judge a run by a reference: worse, fine, undecided, not comparable or missing.

    Exit code 1: something is worse. 3: something could not be decided, or was not there. 0: everything is fine.
    """
    if accept:
        if junit or summary:
            raise InputError("--accept with --junit or --summary", "accepting judges nothing", "gate first, then accept")
        _accept(run, reference, why, who, json)
        return
    if why is not None or who is not None:
        raise InputError("--why or --who without --accept", "they say why and by whom a run is accepted", "add --accept")
    from spo_bench.files import write_text
    from spo_bench.gate import gate as judged
    from spo_bench.gate import junit as as_junit
    from spo_bench.gate import markdown
    from spo_bench.gate.verdict import CANNOT_DECIDE
    from spo_bench.store.place import check_works

    if reference.is_file():
        raise InputError(f"--reference '{reference}' is a file", "a reference is a directory", "give the directory")
    for name, file in (("junit", junit), ("summary", summary)):
        if file is not None:
            _outside(name, file, reference)
            if file.is_dir():
                raise InputError(f"--{name} '{file}' is a directory", "it is a file", "name a file in it")
            check_works(name, file.absolute().parent)
    code: int | None = None
    try:
        verdict = judged(run, reference)
        code = verdict.exit_code
        if junit is not None:
            write_text(junit, as_junit(verdict))
        if summary is not None:
            summary.parent.mkdir(parents=True, exist_ok=True)
            with summary.open("a", encoding="utf-8") as file_:
                file_.write(markdown(verdict))
        if json:
            print_json(verdict.record())
        else:
            _show(_console(), verdict)
    except SpoBenchError:
        raise
    except (BrokenPipeError, SystemExit):  # whoever reads the output has read enough; rich would end with 1
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:  # noqa: BLE001 - the exit code of a fault would say that something is worse
        told = tell(error)
        code = code or (CANNOT_DECIDE if told == FAULT else told)
    raise typer.Exit(CANNOT_DECIDE if code is None else code)


def _console() -> Terminal:
    """Return a console for stdout: where that is a file or a job's log, lines are as wide as they need to be."""
    console = Terminal()
    return console if console.is_terminal or "COLUMNS" in os.environ else Terminal(width=PLAIN_WIDTH)


def _outside(name: str, file: Path, reference: Path) -> None:
    if reference.resolve() in file.resolve().parents:
        raise InputError(
            f"--{name} '{file}' lies in the reference", "nothing but --accept writes to a reference", "give another place"
        )


def _show(console: Terminal, verdict: Verdict) -> None:
    """Print the verdict, everything that is not fine, and what it rests on."""
    from spo_bench.gate.output import changed, sentences, table

    word, _, rest = verdict.headline.partition(":")
    console.print(f"[{COLOURS[word]}]{word}[/]:{rest}")
    if verdict.not_fine:
        listed = table(verdict.not_fine, verdict.confidence)
        _print(console, listed)
        for text in listed.notes():
            console.print(text, markup=False)
    for text in sentences(verdict):
        console.print(text, markup=False)
    if verdict.changed:
        console.print("Changed settings, reference -> run:")
        for text in changed(verdict):
            console.print(f"  {text}", markup=False)


def _print(console: Terminal, table: Table) -> None:
    """Print a table for reading; what says the same in all rows stands in the notes."""
    columns = table.visible()
    shown = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for i in columns:
        column = table.columns[i]
        # Numbers stay whole on narrow terminals; words wrap.
        shown.add_column(
            cell(column.title), justify="right" if column.numeric else "left", no_wrap=column.numeric, overflow="fold"
        )
    for at, row in enumerate(table.rows):
        if table.opens(at):
            shown.add_section()
        texts = [
            " ".join(part for part in (row[i].text + ("†" if row[i].significant else ""), row[i].small) if part) for i in columns
        ]
        shown.add_row(*map(cell, texts))
    console.print(shown)


def _accept(run: Path, reference: Path, why: str | None, who: str | None, json: bool) -> None:
    from dataclasses import asdict

    from spo_bench.gate import accept
    from spo_bench.gate.verdict import without_nan

    if not (why or "").strip():
        raise InputError("--accept without --why", "a reference is accepted for a reason", "add --why TEXT")
    accepted = accept(run, reference, why or "", who or _name())
    if not json:
        _show_accepted(_console(), accepted)
        return
    found = [without_nan(asdict(one)) for one in accepted.resolutions]
    margins = {name: margin.model_dump() for name, margin in accepted.margins.metrics.items()}
    rest = {"unguarded": list(accepted.unguarded), "warnings": list(accepted.warnings)}
    print_json({**accepted.record, "resolution": found, "margins": margins, **rest})


def _show_accepted(console: Terminal, accepted: Accepted) -> None:
    """Print what was accepted, what the gate will see with it, and what to mind."""
    from math import isfinite

    console.print(f"accepted as {accepted.directory}, by {accepted.record['who']}: {accepted.record['why']}", markup=False)
    if accepted.record["against_previous"]:
        listed = ", ".join(f"{count} {outcome}" for outcome, count in accepted.record["against_previous"].items() if count)
        console.print(f"against the reference before: {listed}", markup=False)
    shown = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for title, justify in (
        ("Metric", "left"),
        ("Drift", "left"),
        ("Rows", "right"),
        ("Resolution", "right"),
        ("Margin", "right"),
    ):
        shown.add_column(title, justify=justify)  # type: ignore[arg-type]
    for one in accepted.resolutions:
        margin = accepted.margins.of(one.metric)
        smallest = f"{one.smallest:.3g}" if isfinite(one.smallest) else "not known"
        shown.add_row(one.metric, one.family, str(one.rows), smallest, f"{margin.of(one.family):g}" if margin else "--")
    console.print(shown)
    console.print(
        "Resolution: the smallest margin that 95 % of unchanged nights pass in all rows, by the noise of this run; of evaluation "
        "drift, were all answers drawn anew. With the same seeds of sampling the same policies differ by nothing."
    )
    if accepted.wrote_margins:
        console.print(
            "gate.yaml is new: its margins of retraining are those that 99 % of unchanged nights pass, where their noise is "
            "known; those of evaluation are small."
        )
    if accepted.unguarded:
        console.print(f"Not guarded, for gate.yaml does not name them: {', '.join(accepted.unguarded)}", markup=False)
    for text in accepted.warnings:
        console.print(f"warning: {text}", markup=False, style="yellow")


def _name() -> str:
    """Return who accepts: git's user.name, else the user of this machine."""
    try:
        found = subprocess.run(["git", "config", "user.name"], capture_output=True, text=True, check=False).stdout.strip()  # noqa: S607 - fixed words  # nosec B603, B607
    except OSError:
        found = ""
    try:
        return found or getpass.getuser()
    except (KeyError, OSError) as error:
        raise InputError("nobody is known to accept the run", "a reference says who accepted it", "add --who NAME") from error
