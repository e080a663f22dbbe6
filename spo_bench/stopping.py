"""Stopping on request: a run that gets SIGTERM or Ctrl-C ends where it can go on later.

Where a stage trains or answers in steps, the signal waits for the end of a step, so that everything is kept; elsewhere it ends
what is under way at once. A second signal does not wait.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from spo_bench.errors import Interrupted

STOPPED = "stopped; the same command goes on where this was"
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class _State:
    wanted = 0  # signals so far
    held = 0  # contexts in which a signal waits
    installed = False
    told: Callable[[], None] | None = None


def wanted() -> bool:
    """Say whether this process has been asked to stop."""
    return _State.wanted > 0


def stop_if_wanted() -> None:
    """Raise Interrupted if this process has been asked to stop."""
    if wanted():
        raise Interrupted(STOPPED)


@contextmanager
def orderly(told: Callable[[], None] | None = None, also: Sequence[signal.Signals] = ()) -> Iterator[None]:
    """Let signals stop this process in an orderly way while the context lasts; only in the main thread, and only once.

    Args:
        told: called at the first signal that has to wait.
        also: further signals that ask to stop.
    """
    if _State.installed or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _received) for number in (*SIGNALS, *also)}
    _State.installed, _State.wanted, _State.held, _State.told = True, 0, 0, told
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _State.installed, _State.wanted, _State.told = False, 0, None


def as_worker() -> None:
    """Let this process be stopped by whoever started it: SIGTERM waits for what is under way, Ctrl-C is not meant for it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _received)
    _State.installed, _State.held = True, 1


@contextmanager
def held() -> Iterator[None]:
    """Let a signal wait while the context lasts; whoever opens it asks ``wanted`` often."""
    _State.held += 1
    try:
        yield
    finally:
        _State.held -= 1


@contextmanager
def at_once() -> Iterator[None]:
    """Let a signal end what is under way, in a worker that otherwise only takes note of it."""
    before, _State.held = _State.held, 0
    try:
        stop_if_wanted()
        yield
    finally:
        _State.held = before


def _received(number: int, frame: Any) -> None:
    _State.wanted += 1
    if not _State.held or (_State.wanted > 1 and number == signal.SIGINT):
        raise Interrupted(STOPPED)
    if _State.wanted == 1 and _State.told is not None:
        _State.told()
