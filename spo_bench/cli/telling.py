"""From whatever was raised to what a person reads, and to the exit code."""

from __future__ import annotations

import errno
import os
import traceback
from pathlib import Path
from typing import Any

import typer

import spo_bench
from spo_bench.cli.common import Terminal
from spo_bench.errors import DEBUG, InputError, Interrupted, SpoBenchError, disk_full, is_disk_full, suggestion

FAULT = 1  # the exit code of what is nobody's input
OURS = Path(spo_bench.__file__).parent
PLUGINS = "_spo_bench_tasks_"  # how the packages are called that folders of plugins are loaded as
# The command line's own errors: those of ``typer``, whatever it is built on.
USAGE: type[Exception] = typer.BadParameter.__mro__[2]

# What the system says of a path somebody gave: (rule, remedy).
_PATHS: dict[int, tuple[str, str]] = {
    errno.ENOENT: ("what is named is there, or can be made there", "check the path"),
    errno.EACCES: ("spo-bench may read and write there", "check the rights of it and of its folders, or give another place"),
    errno.EPERM: ("spo-bench may read and write there", "check the rights of it and of its folders, or give another place"),
    errno.EROFS: ("spo-bench can write there", "give a place that is not mounted read-only"),
    errno.EISDIR: ("this is a file", "name a file, not a directory"),
    errno.ENOTDIR: ("this is a directory, as is all above it", "check the path: a part of it is a file"),
    errno.EEXIST: ("nothing else stands in this place", "move it away, or give another place"),
    errno.ENAMETOOLONG: ("a name has at most 255 bytes, a path 4096", "give a shorter one"),
    errno.ELOOP: ("links lead to something", "check the links on this path: they lead in a circle"),
}


def debugging() -> bool:
    """Say whether tracebacks are wanted: ``--debug`` sets the variable, for worker processes too."""
    return os.environ.get(DEBUG, "").strip().lower() not in ("", "0", "false", "no", "off")


def tell(error: BaseException) -> int:
    """Print one message on stderr, with ``--debug`` after the traceback of where it was raised; return the exit code."""
    kind, text, code = said(error)
    if type(error).__name__ == "NoArgsIsHelpError":  # the help has been printed
        return code
    console = Terminal(stderr=True)
    if debugging():
        console.say("".join(traceback.format_exception(error)), style="dim", end="")
    console.print(f"[bold red]{kind}:[/] ", end="", soft_wrap=True)
    console.say(text)
    return code


def said(error: BaseException) -> tuple[str, str, int]:
    """Return (error or interrupted, the message, the exit code) for anything that was raised."""
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        error = Interrupted("stopped")
    elif isinstance(error, USAGE):
        error = _usage(error)
    elif not isinstance(error, SpoBenchError) and is_disk_full(error):
        error = disk_full(error)
    elif isinstance(error, OSError) and error.errno in _PATHS:
        rule, remedy = _PATHS[error.errno]
        places = [repr(os.fsdecode(name)) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
        what = f"{' to '.join(places) or type(error).__name__}: {error.strerror}"
        error = InputError(what, rule, f"{remedy}; --debug shows what was being done")
    elif (file := _plugin(error)) is not None:
        error = InputError(
            f"the plugin {file} failed: {_line(error)}",
            "a plugin does what its room asks of it",
            "correct it; --debug shows where",
        )
    if isinstance(error, SpoBenchError):
        return "interrupted" if isinstance(error, Interrupted) else "error", str(error), error.exit_code
    return "error", _fault(error), FAULT


def _fault(error: BaseException) -> str:
    """Return the message for what nobody gave."""
    from spo_bench.engine.attempt import is_out_of_memory

    if isinstance(error, Exception) and is_out_of_memory(error):
        what, rule = f"memory ran out: {_brief(error)}", "what runs at a time fits into the memory that is free"
        remedy = "free some, take fewer --jobs, or make batch_size or max_length smaller; `spo-bench plan` estimates"
    elif isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("spo_bench"):
        what, rule = f"the package '{error.name.partition('.')[0]}' is not installed", "spo-bench comes with its dependencies"
        remedy = "install it again (pip install --force-reinstall spo-bench); `spo-bench doctor` says what is missing"
    elif isinstance(error, OSError):
        what, rule = f"the system refused: {_brief(error)}", "files and connections work"
        remedy = "try again; `spo-bench doctor` looks at this machine, --debug shows what was being done"
    else:
        what = f"this is a fault of spo-bench itself: {_brief(error)}"
        return f"{what}\n  remedy: the same command with --debug shows where; please report it"
    return f"{what}\n  rule: {rule}\n  remedy: {remedy}"


def _brief(error: BaseException) -> str:
    """Return "TypeError: its first line (file.py:123)", the file being the last of ours that it came through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(OURS)] or frames
    return _line(error) + (f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else "")


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:500]}" if lines else type(error).__name__


def _plugin(error: BaseException) -> str | None:
    """Return "file.py:123" of the task plugin that raised an error, None where it was not one of somebody's own."""
    from spo_bench.plugins import built_in_folder

    built_in, at, place = built_in_folder(), error.__traceback__, None
    while at is not None:
        code, name = at.tb_frame.f_code, str(at.tb_frame.f_globals.get("__name__", ""))
        if Path(code.co_filename).is_relative_to(OURS):
            place = None  # it came back to us: what it called failed
        elif name.startswith(PLUGINS) and not Path(code.co_filename).is_relative_to(built_in):
            place = f"{code.co_filename}:{at.tb_lineno}"
        at = at.tb_next
    return place


def _usage(error: Any) -> InputError:
    """Return an error of the command line as one of ours: what was given, the rule, the remedy."""
    context, parameter = getattr(error, "ctx", None), getattr(error, "param", None)
    command = f"`{context.command_path}`" if context else "`spo-bench`"
    helps, kind = f"see {command[:-1]} --help`", type(error).__name__
    parameters = context.command.get_params(context) if context else []
    message = error.format_message().rstrip(".").removeprefix("Invalid value for ")
    if kind == "NoSuchOption":
        known = [name for one in parameters for name in (*one.opts, *one.secondary_opts) if name.startswith("-")]
        remedy = f"{suggestion(error.option_name, known)}; {helps}"
        return InputError(f"unknown option '{error.option_name}' of {command}", "an option is one of the known names", remedy)
    if kind == "BadOptionUsage":
        return InputError(
            f"{error.option_name}: {message}", "an option that takes a value has it after it, others have none", helps
        )
    if kind == "MissingParameter" and parameter is not None:
        name = max(parameter.opts, key=len) if parameter.param_type_name == "option" else parameter.metavar or parameter.name
        what, example = getattr(parameter, "help", None), getattr(context.command, "epilog", None) if context else None
        remedy = f"{example[0].lower()}{example[1:]}; {helps}" if example else helps
        return InputError(f"{command} without {name}", f"it needs {name}: {what}" if what else f"it needs {name}", remedy)
    if isinstance(error, typer.BadParameter) and parameter is not None:
        faults: list[Any] = getattr(error.__cause__, "errors", list)()
        name, _, rule = message.partition(": ")
        given = f"{name.replace(chr(39), '')} {faults[0]['input']!r}" if faults else message
        rule = rule.replace("Input should", "it should").partition(", unable to parse")[0]
        return InputError(given, rule or "an option has a value it can take", helps)
    if message.startswith("Got unexpected extra"):
        extra = message.rpartition("(")[2].removesuffix(")")
        remedy = f"did you mean --matrix {extra}? {helps}" if any("--matrix" in one.opts for one in parameters) else helps
        taken = " ".join(one.metavar or one.name for one in parameters if one.param_type_name == "argument")
        return InputError(f"{command} with '{extra}'", f"beside options it takes {taken or 'nothing'}", remedy)
    return InputError(f"{command}: {message}", "a command is written as its help shows", helps)
