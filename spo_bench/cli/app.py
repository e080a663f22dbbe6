"""The commands of ``spo-bench`` together."""

from __future__ import annotations

import typer

from spo_bench import __version__
from spo_bench.cli import catalogue, doctor, gating, judging, results, running, store
from spo_bench.cli.common import Group, say
from spo_bench.errors import DEBUG

app = typer.Typer(
    name="spo-bench",
    cls=Group,
    help="Does adding SPO to a preference method make a better policy, and how sure are we?",
    epilog="Start with: spo-bench run --matrix",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        say(f"spo-bench {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version and exit."),
    # ``main`` reads it before anything else can fail, wherever it stands; here it has its place in the help.
    debug: bool = typer.Option(False, "--debug", help=f"With an error, show where it was raised; also {DEBUG}=1."),
) -> None:
    """Does adding SPO to a preference method make a better policy, and how sure are we?"""


running.register(app)
results.register(app)
gating.register(app)
judging.register(app)
catalogue.register(app)
store.register(app)
doctor.register(app)
