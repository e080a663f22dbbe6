"""The errors a user can meet.

SpoBenchError
├── InputError      what a person gave cannot be used              exit code 2
│   └── Unreachable store behind a network does not answer         exit code 2; in a stage: it fails, and is tried again
├── StageError      a stage of a cell could not be finished        exit code 1, other cells go on
├── Damaged         an entry of the store is not as it was made    made again, never seen by a user
├── Busy            another process is making it                   waited for, never seen by a user
└── Interrupted     stopped by a signal or a full disk, resumable  exit code 130
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable

DEBUG = "SPO_BENCH_DEBUG"  # set where errors shall also show where they were raised


class SpoBenchError(Exception):
    """Base of every error this package raises on purpose."""

    exit_code = 1


class InputError(SpoBenchError):
    """Something a person gave cannot be used: says what was given, the rule, and the remedy.

    Args:
        given: what was found, with its place (file, row, key).
        rule: what is required.
        remedy: what to do now.
    """

    exit_code = 2

    def __init__(self, given: str, rule: str, remedy: str) -> None:
        # Halves of characters, which JSON and YAML can spell, can be written to no file.
        self.given, self.rule, self.remedy = (part.encode("utf-8", "backslashreplace").decode() for part in (given, rule, remedy))
        super().__init__(f"{self.given}\n  rule: {self.rule}\n  remedy: {self.remedy}")

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, str]]:
        return type(self), (self.given, self.rule, self.remedy)


class Unreachable(InputError):  # noqa: N818 - says what the store is
    """A store behind a network does not answer, or refuses; another time it may."""


class StageError(SpoBenchError):
    """A stage could not be finished (a NaN, a step-0 disagreement, a broken plugin); the message is the reason."""


class Damaged(SpoBenchError):  # noqa: N818 - says what an entry is
    """An entry of the store is not as it was made: what reads it has to wait until it is made again.

    Args:
        kind, key: of the entry.
        why: which file, and what is wrong with it.
    """

    def __init__(self, kind: str, key: str, why: str) -> None:
        self.kind, self.key, self.why = kind, key, why
        super().__init__(f"{kind}/{key}: {why}")

    def __reduce__(self) -> tuple[type[Damaged], tuple[str, str, str]]:
        return type(self), (self.kind, self.key, self.why)


class Busy(SpoBenchError):  # noqa: N818 - nothing is wrong
    """Another process holds the lock."""


class Interrupted(SpoBenchError):  # noqa: N818 - not an error: the user asked for it
    """The run was interrupted and can be resumed with the same command."""

    exit_code = 130


NO_SPACE = ("no space left on device", "disk quota exceeded", "database or disk is full", "os error 28", "os error 122")


def is_disk_full(error: BaseException) -> bool:
    """Say whether a library could not write because the disk is full; some say so in words alone."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(words in str(error).lower() for words in NO_SPACE)


def disk_full(error: BaseException) -> Interrupted:
    """Build the error for a full disk: nothing is lost, and nothing more can be done."""
    return Interrupted(
        f"the disk is full ({error})\n  rule: the store and the run's directory need space\n"
        "  remedy: make room; then the same command goes on where this run was"
    )


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return "did you mean 'x'? " for a close name, plus the list of known names."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    listing = f"known: {', '.join(names) if names else 'none'}"
    return f"did you mean '{close[0]}'? {listing}" if close else listing


def unknown(kind: str, name: str, known: Iterable[str], where: str = "") -> InputError:
    """Build the error for a name that is not known, with the nearest one that is."""
    place = f" in {where}" if where else ""
    article = "an" if kind[0] in "aeio" else "a"
    return InputError(f"unknown {kind} '{name}'{place}", f"{article} {kind} is one of the known names", suggestion(name, known))
