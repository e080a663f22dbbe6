"""Options several commands share, and printing.

What is printed may come from anywhere: a model's answer, a data file, a spec, a judge's reply. On a terminal a few characters
would let such a text move the cursor, hide lines or turn the direction of reading, so everything is printed from here.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text
from typer.core import TyperGroup

from spo_bench.errors import unknown

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
    str | None,
    typer.Option(
        "--store",
        metavar="DIR|URL",
        help="Artifacts: a directory, or s3://BUCKET/PREFIX \\[default: $SPO_BENCH_STORE or ~/.cache/spo-bench].",
        rich_help_panel=WHERE,
    ),
]
Device = Annotated[
    str, typer.Option("--device", help="auto, cpu, cuda (all GPUs in sight), cuda:0, cuda:1, …", rich_help_panel=WHERE)
]
Offline = Annotated[bool, typer.Option("--offline", help="Never ask a hub.", rich_help_panel=WHERE)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Group(TyperGroup):
    """Commands of which a misspelt one is answered with the nearest."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that the first word names; InputError where there is none."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise unknown("command", args[0], self.commands, where=f"`{ctx.command_path}`")
        return super().resolve_command(ctx, args)


# Control characters but for line feed and tab, marks that turn the direction of text, and halves of surrogate pairs.
ACTIVE = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_ACTIVE = re.compile(f"[{ACTIVE}]")
_NOT_ASCII = re.compile(f"[{ACTIVE}]|[^\x00-\x7f]")


def visible(text: str) -> str:
    """Return a text whose characters that act on a terminal, or cannot be written, are escapes such, such as ``\\x1b``."""
    return _ACTIVE.sub(lambda found: f"\\x{ord(found[0]):02x}" if found[0] < "\u0100" else f"\\u{ord(found[0]):04x}", text)


def visible_json(text: str, ascii_only: bool = False) -> str:
    """Return a JSON text with the same characters as JSON's own escapes; they stand in its strings only."""
    return (_NOT_ASCII if ascii_only else _ACTIVE).sub(_json_escape, text)


def _json_escape(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[place]:02x}{units[place + 1]:02x}" for place in range(0, len(units), 2))


class Terminal(Console):
    """A console of rich on which a text can do nothing but be read; rich's own colours and bars work as ever.

    Args:
        stderr: whether it writes there.
        width: columns; None: what the terminal has.
    """

    def __init__(self, stderr: bool = False, width: int | None = None) -> None:
        super().__init__(stderr=stderr, width=width, highlight=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text to lay out; its escapes count in the layout."""
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield what is written; the last gate for texts that were made elsewhere. Rich's own cursor moves are no text."""
        for one in super().render(renderable, options):
            yield one if one.control else Segment(visible(one.text), one.style)

    def say(self, text: object, style: str | None = None, end: str = "\n") -> None:
        """Print a text as it is: no markup in it, and no line broken."""
        self.print(Text(visible(str(text))), style=style, end=end, soft_wrap=True)


def cell(value: object) -> Text:
    """Return a table's cell that shows a value as it is."""
    return Text(visible(str(value)))


def say(text: object = "", end: str = "\n", as_json: bool = False) -> None:
    """Print a text on stdout as it is; one that is JSON stays JSON, in ASCII where stdout cannot take more."""
    if as_json:
        shown = visible_json(str(text), not (sys.stdout.encoding or "utf-8").lower().startswith("utf"))
    else:
        shown = visible(str(text))
    sys.stdout.write(shown + end)


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout."""
    say(json.dumps(value, indent=1, ensure_ascii=False), as_json=True)
