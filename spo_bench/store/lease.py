"""Whose turn it is, among machines that share nothing but a bucket: an object that its owner renews.

A lease is advice. It keeps machines from making the same thing twice; where it fails (a server that cannot create an object only
if there is none, an owner that was cut off and comes back), both make it, one of them wins, and nothing is corrupted.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any
from uuid import uuid4

from spo_bench.errors import Busy, Unreachable
from spo_bench.files import write_text
from spo_bench.store.bucket import Bucket
from spo_bench.store.locks import machine_of, owner

PERIOD = 20.0  # seconds between two renewals
STALE = 180.0  # seconds without one after which the owner is dead
PATIENCE = 1.0  # seconds until a lease that is waited for is looked at again
SETTLE = 1.0  # seconds after which one that was taken over is still ours, or was taken over by another, too
log = logging.getLogger(__name__)


@contextmanager
def lease(bucket: Bucket, name: str, home: str, seen: Path, wait: bool = True) -> Iterator[None]:
    """Hold a lease while the context lasts.

    Args:
        bucket: where it is.
        name: of its object.
        home: a name for whoever shares a lock with us, and cannot hold the lease while we ask for it: if it is theirs, they are
            dead.
        seen: the file in which this machine notes how it last saw the lease. Clocks of two machines are never compared.
        wait: whether to wait for it.

    Raises:
        Busy: another machine holds it, and ``wait`` is False.
    """
    own = {"owner": owner(), "home": home, "token": uuid4().hex}
    while not _taken(bucket, name, own, seen):
        if not wait:
            raise Busy(f"{name} is held by {machine_of(str((_read(bucket, name) or own)['owner']))}")
        time.sleep(PATIENCE)
    ended = Event()
    renewing = Thread(target=_renew, args=(bucket, name, own, ended), daemon=True, name=f"renew {name}")
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        renewing.join(PERIOD)
        with suppress(Unreachable):  # then it is stale one day
            if _is_ours(bucket, name, own):
                bucket.remove(name)
        seen.unlink(missing_ok=True)


def _taken(bucket: Bucket, name: str, own: dict[str, Any], seen: Path) -> bool:
    """Take a lease that nobody holds, or whose owner is dead; say whether it is ours."""
    content = _content(own, 0)
    if bucket.write(name, content, new=True):
        return _is_ours(bucket, name, own)
    there = _read(bucket, name)
    if there is None:
        return False
    if there["token"] == own["token"]:  # it was written, and the answer was lost
        return True
    if there["home"] != own["home"] and not _is_stale(there, seen):
        return False
    log.warning("%s: its owner %s is dead", name, there["owner"])
    bucket.write(name, content)
    time.sleep(SETTLE)
    return _is_ours(bucket, name, own)


def _is_stale(there: dict[str, Any], seen: Path) -> bool:
    """Say whether this machine has seen the lease without change for too long."""
    text = json.dumps(there, sort_keys=True)
    with suppress(OSError):
        if seen.read_text(encoding="utf-8") == text:
            return time.time() - os.stat(seen).st_mtime > STALE
    write_text(seen, text)
    return False


def _renew(bucket: Bucket, name: str, own: dict[str, Any], ended: Event) -> None:
    """Renew a lease until it is given back, or is another's."""
    beat = 0
    while not ended.wait(PERIOD):
        beat += 1
        with suppress(Unreachable):  # the next time
            if not _is_ours(bucket, name, own):
                log.warning("%s was taken over: the same may be made twice", name)
                return
            bucket.write(name, _content(own, beat))


def _content(own: dict[str, Any], beat: int) -> bytes:
    return json.dumps({**own, "beat": beat}).encode()


def _is_ours(bucket: Bucket, name: str, own: dict[str, Any]) -> bool:
    there = _read(bucket, name)
    return there is not None and there["token"] == own["token"]


def _read(bucket: Bucket, name: str) -> dict[str, Any] | None:
    """Return what stands in a lease; None where there is none."""
    try:
        found = json.loads(bucket.read(name))
        return {key: str(found.get(key)) for key in ("owner", "home", "token", "beat")}
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError):  # cut, or somebody else's: stale when it does not change
        return {"owner": "unknown", "home": "", "token": "", "beat": ""}  # of a lease  # nosec B105
