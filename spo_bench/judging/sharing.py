"""Replies of judges and what was spent on them, among machines that share a store behind an address.

Each machine keeps its own file of replies. While it asks a judge it sends what is new into the store from time to time, and
before it asks it gets what others have sent: what was paid on one machine is not paid again on another, but for the last
``PERIOD`` of one that was cut off; and a purse counts what all of them have taken out, as far as they have said so.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from threading import Event, Thread
from uuid import uuid4

from spo_bench.errors import Unreachable
from spo_bench.judging.store import FILE, ReplyStore, Spent
from spo_bench.store.artifacts import PURSES, REPLIES, Store

PERIOD = 20.0  # seconds
MOST = 1000  # replies that are sent together
log = logging.getLogger(__name__)


@contextmanager
def sharing(store: Store) -> Iterator[None]:
    """Get what other machines have sent, and send what is new while the context lasts, and at its end."""
    if store.machine is None:
        yield
        return
    get(store)
    ended = Event()
    sending = Thread(target=_send_often, args=(store, ended), daemon=True, name="send replies")
    sending.start()
    try:
        yield
    finally:
        ended.set()
        sending.join()


def _send_often(store: Store, ended: Event) -> None:
    last = False
    while not last:
        last = ended.wait(PERIOD)
        try:
            send(store)
        except Unreachable as error:
            log.warning("replies of the judge are on this machine alone: %s", error.given)


def send(store: Store) -> None:
    """Send what is new here."""
    with ReplyStore(store.root / FILE) as replies:
        while new := replies.unsent(MOST):
            name = uuid4().hex
            store.keep_note(REPLIES, name, new)
            replies.sent(new, name)
        for purse, spent in replies.own_purses().items():
            store.keep_note(PURSES, f"{purse}.{store.machine}", asdict(spent))


def get(store: Store) -> None:
    """Get what other machines have sent; nothing, where there is nobody to share with."""
    if store.machine is None:
        return
    with ReplyStore(_made(store.root) / FILE) as replies:
        for name in store.notes(REPLIES):
            if not replies.has_got(name):
                with suppress(ValueError, OSError, AttributeError):  # damaged: these are asked for again
                    replies.get(store.note(REPLIES, name), name)
        for name in store.notes(PURSES):
            purse, _, machine = name.rpartition(".")
            if machine != store.machine:
                with suppress(ValueError, OSError, TypeError):
                    replies.told(purse, machine, Spent(**store.note(PURSES, name)))


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
