"""Locks between processes, which the system releases when their owner dies; and names by which a dead owner is known."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from spo_bench.errors import Busy

# What a file system without locks says: then two processes may make the same thing, and the first to finish wins.
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
FORGOTTEN = 7 * 86400  # seconds after which what an owner on another machine left is no longer his
_numbers = count()


@contextmanager
def lock(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold a lock while the context lasts; its file is there only as long as somebody wants it.

    Raises:
        Busy: another process has it, and ``wait`` is False.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Busy(f"{path.name} is made by another process") from error
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                yield
                return
            if not _is(path, handle.fileno()):  # the owner before removed the file: the lock on it is worth nothing
                continue
            try:
                yield
            finally:
                with suppress(OSError):
                    path.unlink()
            return


def is_held(path: Path) -> bool:
    """Say whether somebody holds a lock, as far as the file system has locks."""
    try:
        with path.open("r") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        return error.errno in NO_LOCKS
    return False


def _is(path: Path, handle: int) -> bool:
    """Say whether a file is the one that was opened."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except OSError:
        return False


def owner() -> str:
    """Return a name for something this process makes: machine, process, number."""
    machine = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname()) or "here"
    return f"{machine}_{os.getpid()}_{next(_numbers)}"


def machine_of(owner: str) -> str:
    """Return the machine in an owner's name."""
    return owner.rsplit("_", 2)[0]


def is_left_behind(path: Path) -> bool:
    """Say whether the owner in a path's name ("KEY.OWNER.part") is dead."""
    try:
        written = path.stat().st_mtime
    except OSError:
        written = time.time()
    return is_gone(path.name.split(".")[-2] if path.name.count(".") >= 2 else "", written)


def is_gone(name: str, written: float) -> bool:
    """Say whether the owner of something is dead: no process of this machine, or another's that wrote it long ago."""
    if time.time() - written > FORGOTTEN:
        return True
    parts = name.rsplit("_", 2)
    if len(parts) != 3 or not parts[1].isdigit():
        return True
    if parts[0] != machine_of(owner()):
        return False
    return not Path(f"/proc/{parts[1]}").exists() if Path("/proc/self").exists() else not _answers(int(parts[1]))


def _answers(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
