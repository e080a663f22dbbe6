"""The command ``spo-bench``. What it needs is imported where errors are caught: also a broken installation gets a message."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from spo_bench.errors import DEBUG


def with_matrix_value(words: Sequence[str]) -> list[str]:
    """Give ``--matrix`` without a value the name of the embedded default: ``run --matrix`` alone is a whole command."""
    filled: list[str] = []
    for place, word in enumerate(words):
        filled.append(word)
        following = words[place + 1] if place + 1 < len(words) else "-"
        if word == "--matrix" and following.startswith("-"):
            filled.append("quick")
    return filled


def without_debug(words: Sequence[str]) -> list[str]:
    """Return the words without ``--debug``, wherever it stands; it sets the variable that says the same."""
    end = words.index("--") if "--" in words else len(words)
    if "--debug" in words[:end]:
        os.environ[DEBUG] = "1"
    return [word for place, word in enumerate(words) if word != "--debug" or place > end]


def main() -> None:
    """Run the command; the only place where errors become messages and exit codes."""
    _open_streams()
    try:
        sys.exit(_run(sys.argv[1:]))
    except SystemExit:
        raise
    except BrokenPipeError:  # whoever reads the output has read enough
        _close_stdout()
        sys.exit(0)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is told
        from spo_bench.cli.telling import tell

        code = tell(error)
        if isinstance(error, OSError):  # it may be stdout that fails
            _close_stdout()
        sys.exit(code)


def _run(words: Sequence[str]) -> int:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    words = with_matrix_value(without_debug(words))

    from spo_bench.cli.app import app
    from spo_bench.processes import allow_processes

    allow_processes()
    code = app(args=words, prog_name="spo-bench", standalone_mode=False)
    sys.stdout.flush()  # a full disk shows here, not when nobody can tell of it any more
    if code == 130:  # the command line's own way to say so
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0


def _open_streams() -> None:
    """Let no text that somebody else wrote stop the output: what a stream cannot take is written as an escape."""
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _close_stdout() -> None:
    """Throw away what is left to write, which the interpreter would otherwise try again when it ends."""
    with suppress(OSError, ValueError):  # no file of the system
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
