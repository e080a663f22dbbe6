"""Directories that are to be written to: whether they can be, before anything is. Nothing is made that stays."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from math import inf
from pathlib import Path

from spo_bench.errors import InputError
from spo_bench.files import flush


def nearest(place: Path) -> Path:
    """Return the directory itself, or the nearest one above it that is there; a file where one stands in the way."""
    return next(folder for folder in (place.absolute(), *place.absolute().parents) if folder.exists())


def free_space(place: Path) -> tuple[int, float]:
    """Return (which disk a directory is or would be on, how many bytes of it are free); infinite where it does not say."""
    there = nearest(place)
    usage = shutil.disk_usage(there)
    return there.stat().st_dev, float(usage.free if usage.total else inf)


def check_writable(name: str, place: Path) -> None:
    """Check, by its rights alone, that a directory can be made and written to.

    Raises:
        InputError: a file stands in the way, or permission is missing.
    """
    there = nearest(place)
    if not there.is_dir():
        raise InputError(f"--{name} '{place}': '{there}' is a file", f"--{name} is a directory", "give another place")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(
            f"--{name} '{place}': '{there}' cannot be written to", f"--{name} is a place you may write", "give another place"
        )


def check_works(name: str, place: Path) -> list[str]:
    """Check by doing it that a directory can be made and written to; return what does not work that one can do without.

    Raises:
        InputError: as ``check_writable``, or files cannot be made, renamed or linked there.
    """
    check_writable(name, place)
    broken, lacking = tried(nearest(place))
    if broken:
        raise InputError(
            f"--{name} '{place}': {', '.join(broken)} failed",
            "files and folders can be made, renamed, linked to and removed there",
            "give another place",
        )
    return lacking


def tried(folder: Path) -> tuple[list[str], list[str]]:
    """Return what a store and a run's directory cannot do without and does not work in a folder, and what they can do without."""
    broken: list[str] = []
    lacking: list[str] = []

    def attempt(what: str, act: Callable[[], object], into: list[str]) -> None:
        try:
            act()
        except OSError as error:
            into.append(f"{what} ({error.strerror})")

    def rename() -> None:
        one.mkdir()
        os.rename(one, other)
        (other / "file").write_text("x", encoding="utf-8")
        os.replace(other / "file", inside / "file")

    def sync() -> None:
        for path in (inside / "file", inside):
            if path.exists():
                flush(path)

    try:
        with tempfile.TemporaryDirectory(prefix=".spo-bench-try-", dir=folder) as name:
            inside = Path(name)
            one, other = inside / "one", inside / "other"
            attempt("rename", rename, broken)
            attempt("link", lambda: os.symlink(other, inside / "link", target_is_directory=True), broken)
            attempt("fsync", sync, lacking)
            attempt("locks", lambda: _lock(inside / "lock"), lacking)
    except OSError as error:
        broken.append(f"writing ({error.strerror})")
    return broken, lacking


def _lock(path: Path) -> None:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
