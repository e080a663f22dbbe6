"""The errors a user can meet.

SpoBenchError
├── InputError      what a person gave cannot be used          exit code 2
├── StageError      a stage of a cell could not be finished    exit code 1, other cells go on
└── Interrupted     stopped by the user, resumable             exit code 130
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
        self.given, self.rule, self.remedy = given, rule, remedy
        super().__init__(f"{given}\n  rule: {rule}\n  remedy: {remedy}")

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, str]]:
        return type(self), (self.given, self.rule, self.remedy)


class StageError(SpoBenchError):
    """A stage could not be finished (a NaN, a step-0 disagreement, a broken plugin); the message is the reason."""


class Interrupted(SpoBenchError):  # noqa: N818 - not an error: the user asked for it
    """The run was interrupted and can be resumed with the same command."""

    exit_code = 130


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return "did you mean 'x'? " for a close name, plus the list of known names."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    listing = f"known: {', '.join(names) if names else 'none'}"
    return f"did you mean '{close[0]}'? {listing}" if close else listing


def unknown(kind: str, name: str, known: Iterable[str], where: str = "") -> InputError:
    """Build the error for a name that is not known, with the nearest one that is."""
    place = f" in {where}" if where else ""
    return InputError(f"unknown {kind} '{name}'{place}", f"a {kind} is one of the known names", suggestion(name, known))
