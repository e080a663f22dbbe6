"""What is in a store: entries with their sizes and the runs that claim them, and what is there beside them."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath

from spo_bench.errors import InputError, unknown
from spo_bench.store import sealed
from spo_bench.store.artifacts import CHECKPOINTS, FAILURES, LOCKS, NOT_KINDS, RUNS, Store
from spo_bench.store.claims import Claim, claims
from spo_bench.store.locks import is_held, is_left_behind
from spo_bench.store.sealed import OLD_SEAL, SEAL

KEY = re.compile(r"[0-9a-f]{32}")
_PART = re.compile(r"([0-9a-f]{32})\..+\.(part|gone)")
NAMED = re.compile(r"(\w+)-([0-9a-f]{32})")
DATABASES = "*.sqlite"  # what a judge was paid for


@dataclass(frozen=True)
class Beside:
    """Something that belongs to an entry, or is one.

    Attributes:
        kind, key: of the entry.
        path: a file or directory.
        left: of a part, whether its owner is dead.
    """

    kind: str
    key: str
    path: PurePath
    left: bool = False

    @property
    def name(self) -> tuple[str, str]:
        """Kind and key."""
        return self.kind, self.key

    @cached_property
    def bytes(self) -> int:
        """How long it is, all its files together."""
        return size(Path(self.path))

    @property
    def saved(self) -> dict[PurePath, int]:
        """Of checkpoints: where each is, and its bytes."""
        return {path: size(path) for path in sorted(Path(self.path).iterdir()) if path.name.isdigit()}

    def exists(self) -> bool:
        """Say whether it is still there."""
        return Path(self.path).exists()


@dataclass(frozen=True)
class Entry(Beside):
    """An artifact in the store."""

    @property
    def sealed(self) -> bool:
        """Whether it is there for a reader."""
        return Path(self.path / SEAL).is_file()

    @cached_property
    def older(self) -> bool:
        """Whether an older version wrote it, without checksums: then it counts for nothing."""
        return not self.sealed and Path(self.path / OLD_SEAL).is_file()

    @property
    def made(self) -> float:
        """When it was sealed, in seconds since 1970."""
        for name in (SEAL, OLD_SEAL, "."):
            try:
                return Path(self.path / name).stat().st_mtime
            except OSError:
                continue
        return 0.0

    def fault(self) -> str | None:
        """Return what is wrong with it at a glance, without reading its files: their names and sizes alone."""
        return None if self.older else sealed.fault(Path(self.path), contents=False)


@dataclass(frozen=True)
class Inventory:
    """A store at a moment.

    Attributes:
        place: where it is, as a person names it.
        entries: artifacts, by kind and key.
        parts: what is, or was, under way to become an entry or to be removed.
        checkpoints: what is kept of stages that are under way or were stopped.
        failures: why artifacts could not be made.
        locks: what is left of locks that nobody holds.
        unfinished: small files that were never finished.
        databases: files of replies that a judge was paid for, on this machine.
        claims: of runs.
        unread: claims that cannot be read, and why.
    """

    place: str
    entries: Sequence[Entry]
    parts: Sequence[Beside]
    checkpoints: Sequence[Beside]
    failures: Sequence[Beside]
    locks: Sequence[PurePath]
    unfinished: Sequence[Path]
    databases: Sequence[Path]
    claims: Sequence[Claim]
    unread: Mapping[PurePath, str]

    @cached_property
    def claimed(self) -> dict[tuple[str, str], list[Claim]]:
        """The claims on every (kind, key)."""
        found: dict[tuple[str, str], list[Claim]] = defaultdict(list)
        for claim in self.claims:
            for kind, keys in claim.keys.items():
                for key in keys:
                    found[kind, key].append(claim)
        return found


def check_there(store: Store) -> None:
    """Check that there is a store.

    Raises:
        InputError: there is none.
    """
    if not store.root.is_dir():
        raise InputError(
            f"there is no store at '{store.root}'",
            "a store is a directory that a run has written to",
            "give the --store that the run had, or set SPO_BENCH_STORE",
        )


def look_here(store: Store, kind: str | None = None) -> Inventory:
    """Return what is in a store of this machine, of one kind or of all.

    Raises:
        InputError: there is no store, or nothing of that kind in it.
    """
    check_there(store)
    entries, parts = list[Entry](), list[Beside]()
    for folder in _folders(store.root):
        if folder.name in NOT_KINDS or (kind is not None and folder.name != kind):
            continue
        for path in _folders(folder):
            if KEY.fullmatch(path.name):
                entries.append(Entry(folder.name, path.name, path))
            elif part := _PART.fullmatch(path.name):
                parts.append(Beside(folder.name, part[1], path, is_left_behind(path)))
    if kind is not None and not entries and not parts:
        raise unknown("kind", kind, {path.name for path in _folders(store.root)} - set(NOT_KINDS), f"the store '{store.root}'")
    found, unread = claims(store)
    checkpoints, failures = (_beside(store.root / name, kind) for name in (CHECKPOINTS, FAILURES))
    locks = sorted(path for path in _listing(store.root / LOCKS) if path.is_file() and not is_held(path))
    small = (store.root, *(store.root / name for name in (RUNS, FAILURES)))
    unfinished = [path for folder in small for path in folder.glob(".*.part") if path.is_file()]
    databases = sorted(store.root.glob(DATABASES))
    return Inventory(store.place, entries, parts, checkpoints, failures, locks, unfinished, databases, found, unread)


def _beside(folder: Path, kind: str | None) -> list[Beside]:
    """Return what is kept by the names of entries."""
    matches = ((path, NAMED.fullmatch(path.name)) for path in sorted(_listing(folder)))
    return [Beside(name[1], name[2], path) for path, name in matches if name and (kind is None or name[1] == kind)]


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in _listing(folder) if path.is_dir())


def _listing(folder: Path) -> Collection[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a directory; what is gone meanwhile counts nothing."""
    try:
        if not path.is_dir() or path.is_symlink():
            return path.lstat().st_size
        return sum(_sizes(str(path)))
    except OSError:
        return 0


def _sizes(folder: str) -> Iterator[int]:
    with os.scandir(folder) as found:
        for one in found:
            if one.is_dir(follow_symlinks=False):
                yield from _sizes(one.path)
            else:
                yield one.stat(follow_symlinks=False).st_size


def linked(run: Path) -> Iterator[tuple[str, str]]:
    """Yield (kind, key) of the entries that the cells in a run's directory link to: their policies, also of cells that the run
    has no more. By what is written in the links, since a shared store may have another path here.
    """
    try:
        with os.scandir(run / "cells") as cells:
            links = [os.path.join(cell.path, "policy") for cell in cells]
    except OSError:
        return
    for link in links:
        if os.path.islink(link):
            for folder in Path(os.readlink(link)).parents:
                if KEY.fullmatch(folder.name):
                    yield folder.parent.name, folder.name
