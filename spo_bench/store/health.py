"""Whether what a store holds is as it was written: every file of it is read."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from spo_bench.errors import Busy
from spo_bench.files import file_hash, read_json
from spo_bench.store.artifacts import CHECKPOINTS, FAILURES, RUNS, Store
from spo_bench.store.hashes import FILE_HASHES
from spo_bench.store.inventory import Beside, Inventory, size

THREADS = 8  # hashing waits for the disk as much as for a core

What = Literal["entry", "checkpoint", "failure", "claim", "file hashes", "database"]


@dataclass(frozen=True)
class Fault:
    """Something in a store that is not as it was written.

    Attributes:
        what: it is.
        name: its path in the store.
        why: which file, and what is wrong with it.
        kind, key: of an entry, and of what belongs to one.
        runs: directories of runs that use the entry.
    """

    what: What
    name: str
    why: str
    kind: str = ""
    key: str = ""
    runs: Sequence[str] = ()


@dataclass(frozen=True)
class _Check:
    """Something to look at: what is said of it, how many bytes are read, and the function that says what is wrong."""

    what: What
    name: str
    bytes: int
    find: Callable[[], str | None]
    kind: str = ""
    key: str = ""


def verify(store: Store, found: Inventory, tell: Callable[[int, int], object]) -> list[Fault]:
    """Return everything in a store that is not as it was written. What an older version wrote has no checksums, and is not read.

    Args:
        store: the store.
        found: what is in it.
        tell: is told (bytes that were read, bytes to read) whenever something was.
    """
    checks = [*_entries(store, found), *_checkpoints(store, found), *_others(store, found)]
    total, done, faults = sum(check.bytes for check in checks), 0, dict[int, Fault]()
    claimed = found.claimed
    with ThreadPoolExecutor(min(THREADS, 2 * (os.cpu_count() or 1))) as threads:
        waiting = {threads.submit(check.find): place for place, check in enumerate(checks)}
        try:
            for future in as_completed(waiting):
                check, why = checks[waiting[future]], future.result()
                if why is not None:
                    runs = sorted({str(claim.out) for claim in claimed.get((check.kind, check.key), ())})
                    faults[waiting[future]] = Fault(check.what, check.name, why, check.kind, check.key, runs)
                done += check.bytes
                tell(done, total)
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise
    return [faults[place] for place in sorted(faults)]


def _entries(store: Store, found: Inventory) -> Iterator[_Check]:
    for one in found.entries:
        if not one.older:
            find = partial(_twice, one.exists, partial(store.examine, one.kind, one.key))
            yield _Check("entry", f"{one.kind}/{one.key}", one.bytes, find, one.kind, one.key)


def _checkpoints(store: Store, found: Inventory) -> Iterator[_Check]:
    for one in found.checkpoints:
        for folder, bytes_ in one.saved.items():
            name = f"{CHECKPOINTS}/{one.kind}-{one.key}/{folder.name}"
            find = partial(_twice, one.exists, partial(store.examine_folder, name))
            yield _Check("checkpoint", name, bytes_, find, one.kind, one.key)


def _twice(exists: Callable[[], bool], find: Callable[[], str | None]) -> str | None:
    """Return what is wrong, if it still is: a run may have removed it, or made it again, while it was read."""
    return find() and (find() if exists() else None)


def _others(store: Store, found: Inventory) -> Iterator[_Check]:
    for one in found.failures:
        yield _Check("failure", f"{FAILURES}/{one.path.name}", 0, partial(_failure_fault, store, one), one.kind, one.key)
    for place, why in found.unread.items():
        yield _Check("claim", f"{RUNS}/{place.name}", 0, partial(str, why))
    if (path := store.root / FILE_HASHES).exists():
        try:
            for file, hashed in _remembered(path):
                yield _Check("file hashes", path.name, size(file), partial(_hash_fault, file, hashed))
        except (OSError, ValueError) as error:
            yield _Check("file hashes", path.name, 0, partial(str, f"it cannot be read ({error})"))
    for path in found.databases:
        yield _Check("database", path.name, size(path), partial(database_fault, path))


def _failure_fault(store: Store, one: Beside) -> str | None:
    try:
        kept = store.note(FAILURES, one.path.name)
        sound = (kept["kind"], kept["key"]) == (one.kind, one.key) and isinstance(kept["reason"], str)
    except FileNotFoundError:  # forgiven meanwhile
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"it cannot be read ({type(error).__name__}: {error})"
    return None if sound else "it is another entry's"


def _remembered(path: Path) -> Iterator[tuple[Path, str]]:
    """Yield the hashes that are remembered of files which are there and have not been touched since.

    Raises:
        OSError, ValueError: the file cannot be read.
    """
    known = read_json(path)
    if not isinstance(known, dict):
        raise ValueError("it holds no object")
    for mark, hashed in known.items():
        parts = mark.rsplit("|", 2)
        if len(parts) != 3 or not isinstance(hashed, str):
            raise ValueError(f"altered: {mark}")
        with suppress(OSError):
            state = os.stat(parts[0])
            if parts[1:] == [str(state.st_size), str(state.st_mtime_ns)]:
                yield Path(parts[0]), hashed


def _hash_fault(file: Path, hashed: str) -> str | None:
    try:
        return None if file_hash(file) == hashed else f"'{file}' has another content than what is remembered of it"
    except OSError:
        return None


def database_fault(path: Path) -> str | None:
    """Return what SQLite finds wrong with a file, which stays as it is; None where that is nothing."""
    # The second way is for a place that cannot be written to, where there is nothing but the file.
    modes = ("mode=ro",) if path.with_name(f"{path.name}-wal").exists() else ("mode=ro", "mode=ro&immutable=1")
    why = ""
    for mode in modes:
        try:
            with closing(sqlite3.connect(f"file:{quote(str(path))}?{mode}", uri=True, timeout=60)) as database:
                lines = [str(row[0]) for row in database.execute("PRAGMA integrity_check")]
            return None if lines == ["ok"] else "; ".join(lines[:3])
        except sqlite3.DatabaseError as error:
            why = str(error)
    return why


def remove(store: Store, faults: Sequence[Fault]) -> tuple[list[Fault], list[Fault]]:
    """Remove what is damaged and can be made again; return what was removed, and what another process was using."""
    removed, busy = [], []
    for fault in faults:
        try:
            if fault.what == "entry":
                store.discard(fault.kind, fault.key, wait=False)
            elif fault.what == "checkpoint":
                with store.making(fault.kind, fault.key, wait=False):
                    store.wipe(store.named(fault.name))
            elif fault.what == "failure":
                store.forgive(fault.kind, fault.key)
            elif fault.what == "file hashes":
                (store.root / fault.name).unlink(missing_ok=True)
            else:  # nobody can make these again
                continue
            removed.append(fault)
        except Busy:
            busy.append(fault)
    return removed, busy
