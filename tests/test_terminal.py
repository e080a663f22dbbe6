"""No text that somebody else wrote acts on the terminal it is shown on, and none can stop the output."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_run import make_run

from spo_bench.cli.common import visible, visible_json

ROOT = Path(__file__).parents[1]
# A title for the window, a screen that is cleared, a line written over, an 8-bit escape, letters in the other order, a half character.
HOSTILE = "\x1b]0;owned\x07 \x1b[2J a\rb \x9b31m c\x08 \x7f \u202e \u2066 \u200f \ud800 [bold]markup[/] :warning: end"
SHOWN = "\\x1b]0;owned\\x07 \\x1b[2J a\\x0db \\x9b31m c\\x08 \\x7f \\u202e \\u2066 \\u200f \\ud800 [bold]markup[/] :warning: end"
DIRECTIONS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
MARKS = "\u061c\u200e\u200f"
TEXTS = st.text(st.characters(codec=None, categories=["C", "L", "P", "S", "Z"]) | st.sampled_from(HOSTILE))


def active(text: str) -> list[str]:
    """Return the characters that act on a terminal or cannot be written, found in another way than by the code."""
    kept = ("\n", "\t")
    return [
        sign
        for sign in text
        if sign not in kept
        and (unicodedata.category(sign) in ("Cc", "Cs") or unicodedata.bidirectional(sign) in DIRECTIONS or sign in MARKS)
    ]


@given(TEXTS)
def test_visible_leaves_nothing_active_and_nothing_else_changed(text):
    shown = visible(text)
    assert active(shown) == []
    shown.encode()  # can be written
    if not active(text):
        assert shown == text


@given(
    st.recursive(TEXTS | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner)), st.booleans()
)
def test_json_stays_the_same_json(value, ascii_only):
    shown = visible_json(json.dumps(value, indent=1, ensure_ascii=False), ascii_only)
    assert active(shown) == []
    assert shown.isascii() or not ascii_only
    assert json.loads(shown) == value


def test_the_escapes_are_those_of_the_texts():
    assert visible(HOSTILE) == SHOWN


def shown_on_a_terminal(command: list[str], cwd: Path, **variables: str) -> str:
    """Run a command whose stdout and stderr are a terminal of 200 columns; return all that reached it."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": "200", **variables}
    running = subprocess.Popen(command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    parts = []
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # everything that had it open is gone
            break
        if not part:
            break
        parts.append(part)
    os.close(ours)
    assert running.wait(timeout=60) == 0, b"".join(parts)
    return b"".join(parts).decode().replace("\r\n", "\n")


EVERYWHERE = f"""
from rich.panel import Panel
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text
from spo_bench.cli.common import Terminal, cell, say
text = {HOSTILE!r}
terminal = Terminal(stderr=True)
terminal.say(text, style="bold")
terminal.print(text, markup=False)
terminal.print(Text(text))
terminal.print(Panel(cell(text), title=cell(text)))
table = Table(title=cell(text))
table.add_column(cell(text), style="green")
table.add_row(cell(text))
terminal.print(table)
with Progress(TextColumn("{{task.description}}", style="bold", markup=False), console=terminal) as bar:
    bar.update(bar.add_task(text, total=2), advance=1)
    bar.console.print(text, markup=False)
say(text)
"""


def test_nothing_hostile_reaches_a_terminal_and_colours_still_do(tmp_path):
    found = shown_on_a_terminal([sys.executable, "-c", EVERYWHERE], tmp_path)
    for raw in ("\x1b]", "\x07", "\x1b[2J a", "\x9b", "\x08", "\x7f", "\u202e", "\u2066", "\u200f"):
        assert raw not in found, repr(raw)
    assert found.count("\\x1b]0;owned\\x07") >= 8
    assert ":warning:" in found
    assert "[bold]markup[/]" in found
    assert "\x1b[1m" in found  # the colours and the bar are rich's own
    assert "\x1b[32m" in found
    assert "\x1b[2K" in found
    sequences = set(re.findall(r"\x1b[^\\]", found))
    assert sequences == {"\x1b["}


@pytest.fixture
def hostile_run(tmp_path) -> Path:
    """A run of somebody else, in whose names of methods there is everything."""
    run = make_run(tmp_path / "run", tasks=("controlled_dialogue",), methods=("dpo",), seeds=(0,), prompts=6, steps=4)
    lines = (run / "cells.jsonl").read_text().replace('"method": "dpo"', f'"method": {json.dumps("dpo " + HOSTILE)}')
    (run / "cells.jsonl").write_text(lines)
    return run


UTF8, ASCII = {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "1"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
PRINTED = [(form, UTF8) for form in ("md", "csv", "html", "tex", "json")]
PRINTED += [(form, env) for env in ({"LC_ALL": "C"}, ASCII, {"PYTHONIOENCODING": "latin-1"}) for form in ("md", "json")]


@pytest.mark.parametrize(("form", "env"), PRINTED)
def test_a_table_of_somebody_elses_run(hostile_run, tmp_path, form, env):
    """A table can be printed in every locale; JSON is the same JSON in each."""
    command = [sys.executable, "-m", "spo_bench", "table", "run", "--format", form]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT), **env})
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode("latin-1" if "PYTHONIOENCODING" in env else "utf-8")
    assert active(text) == []
    if form == "json":
        names = [row["entries"]["method"]["value"] for row in json.loads(text)["rows"]]
        assert any(HOSTILE in name for name in names)
    elif form != "tex":  # whose own escapes leave control characters out
        assert "x1b" in text


def test_commands_on_a_terminal(hostile_run, tmp_path):
    """What commands print of other people's files: generators of annotations, arms of runs, summaries of plugins."""
    named = json.dumps(HOSTILE)
    (tmp_path / "alpaca.json").write_text(
        f'[{{"output_1": "a", "output_2": "b", "preference": 2, "generator_1": {named}, "generator_2": "x"}}]'
    )
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.py").write_text(
        f"from spo_bench.task import Task\nclass T(Task):\n    name, needs_data, summary = 'mine', False, {HOSTILE!r}\n"
    )
    command = [sys.executable, "-m", "spo_bench"]
    for words in (
        ["judge", "stats", "alpaca.json"],
        ["tasks", "list", "--tasks", "tasks"],
        ["tasks", "show", "mine", "--tasks", "tasks", "--json"],
        ["compare", "run", "run"],
    ):
        found = shown_on_a_terminal([*command, *words], tmp_path)
        assert "x1b]0;owned" in found or "u001b]0;owned" in found, words
        for raw in ("\x1b]", "\x07", "\x9b", "\x08", "\x7f", "\u202e", "\u2066", "\u200f"):
            assert raw not in found, (words, raw)
