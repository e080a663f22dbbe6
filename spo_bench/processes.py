"""Processes of our own: pools that end with whoever started them, and whether a program may have any."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.process import BaseProcess
from typing import Any

LARGE = 20_000  # rows of texts a process: fewer take less time than a further process needs to start
_guarded = False


def allow_processes() -> None:
    """Say that this program's main module does nothing when it is imported: a new process imports it once more."""
    global _guarded
    _guarded = True


def may_start_processes() -> bool:
    """Say whether a process may be started unasked: in our command, and in a process that was started this way itself."""
    if multiprocessing.current_process().daemon:  # may have no children
        return False
    return _guarded or multiprocessing.parent_process() is not None


class Pool(ProcessPoolExecutor):
    """Fresh interpreters (a forked one would share torch's threads with its parent, and hang) that end when their parent does.

    Args:
        count: how many processes; they are started when there is work for one.
        initializer, initargs: called in each first.
    """

    def __init__(self, count: int, initializer: Callable[..., None] | None = None, initargs: tuple[Any, ...] = ()) -> None:
        self.started: list[BaseProcess] = []
        super().__init__(count, mp_context=_Noting(self.started), initializer=_begin, initargs=(initializer, initargs))
        # All at once, when there is work for the first: one that is started later may die unnoticed, and its work with it
        # (the executor watches for the ends of processes it knew when it last had something to do).
        self._safe_to_dynamically_spawn_children = False

    def end(self) -> None:
        """Ask this pool's processes, and no others, to stop, and wait until they have; whoever does not wait for that (a further
        signal) kills them.
        """
        try:
            for process in self.started:
                process.terminate()
            self.shutdown(wait=True, cancel_futures=True)
        except BaseException:
            for process in self.started:
                process.kill()
            raise


class _Noting(SpawnContext):
    """Starts fresh interpreters and notes them."""

    def __init__(self, started: list[BaseProcess]) -> None:
        self._started = started

    def Process(self, *args: Any, **kwargs: Any) -> SpawnProcess:  # type: ignore[override]  # noqa: N802
        process = SpawnProcess(*args, **kwargs)
        self._started.append(process)
        return process


def _begin(initializer: Callable[..., None] | None, initargs: tuple[Any, ...]) -> None:
    """End this process as soon as its parent is gone, however that ended; then do what the pool's owner wants done first."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    if initializer is not None:
        initializer(*initargs)


def _follow(parent: Any) -> None:
    parent.join()
    os._exit(1)
