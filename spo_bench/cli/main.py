"""The command ``spo-bench``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer
from rich.console import Console

from spo_bench import __version__
from spo_bench.cli import catalogue, doctor, gating, judging, results, running
from spo_bench.errors import InputError, Interrupted, SpoBenchError
from spo_bench.processes import allow_processes

app = typer.Typer(
    name="spo-bench",
    help="Does adding SPO to a preference method make a better policy, and how sure are we?",
    epilog="Start with: spo-bench run --matrix",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"spo-bench {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version and exit."),
) -> None:
    """Does adding SPO to a preference method make a better policy, and how sure are we?"""


running.register(app)
results.register(app)
gating.register(app)
judging.register(app)
catalogue.register(app)
doctor.register(app)


def with_matrix_value(words: Sequence[str]) -> list[str]:
    """Give ``--matrix`` without a value the name of the embedded default: ``run --matrix`` alone is a whole command."""
    filled: list[str] = []
    for place, word in enumerate(words):
        filled.append(word)
        following = words[place + 1] if place + 1 < len(words) else "-"
        if word == "--matrix" and following.startswith("-"):
            filled.append("quick")
    return filled


def main() -> None:
    """Run the command; the only place where errors become messages and exit codes."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    allow_processes()
    console = Console(stderr=True, highlight=False)
    try:
        code = app(args=with_matrix_value(sys.argv[1:]), standalone_mode=False)
    except typer.Abort:
        code = Interrupted.exit_code
    except SpoBenchError as error:
        kind = "error" if not isinstance(error, Interrupted) else "interrupted"
        console.print(f"[bold red]{kind}:[/] ", end="")
        console.print(str(error), markup=False)
        code = error.exit_code
    except (typer.BadParameter, typer._click.exceptions.UsageError) as error:
        error.show()
        code = InputError.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code if isinstance(code, int) else 0)
