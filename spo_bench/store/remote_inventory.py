"""What is in a store behind a URL: from one listing of all its objects, and the seals."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePath, PurePosixPath

from spo_bench.errors import InputError, unknown
from spo_bench.store import transfer
from spo_bench.store.artifacts import CHECKPOINTS, FAILURES, LOCKS, NOT_KINDS
from spo_bench.store.bucket import Object
from spo_bench.store.claims import claims
from spo_bench.store.inventory import DATABASES, KEY, NAMED, Beside, Entry, Inventory
from spo_bench.store.remote import RemoteStore
from spo_bench.store.sealed import SEAL

LEFT = 86400  # seconds after which what no seal names, and a lease that nobody renews, are nobody's

Objects = Mapping[str, Object]


@dataclass(frozen=True)
class Behind(Beside):
    """Something behind a URL that belongs to an entry.

    Attributes:
        objects: all of it, by name.
    """

    objects: Objects = field(default_factory=dict)

    @cached_property
    def bytes(self) -> int:
        """How long it is, all its objects together."""
        return sum(one.size for one in self.objects.values())

    @property
    def saved(self) -> dict[PurePath, int]:
        """Of checkpoints: where each is, and its bytes."""
        found: dict[PurePath, int] = defaultdict(int)
        for name, one in self.objects.items():
            if (number := PurePosixPath(name).parts[2]).isdigit():
                found[self.path / number] += one.size
        return found

    def exists(self) -> bool:
        """Say that it may still be there: looking for it tells."""
        return True


@dataclass(frozen=True)
class EntryBehind(Behind, Entry):
    """An artifact behind a URL.

    Attributes:
        seal: what seals it.
    """

    seal: bytes = b""

    @property
    def sealed(self) -> bool:
        """Whether it is there for a reader."""
        return True

    @cached_property
    def older(self) -> bool:
        """Whether an older version wrote it: none wrote to a URL."""
        return False

    @property
    def made(self) -> float:
        """When it was sealed, in seconds since 1970."""
        return self.objects[f"{self.path}/{SEAL}"].modified

    def fault(self) -> str | None:
        """Return what is wrong with it at a glance: the names and sizes of its objects."""
        return transfer.glance(str(self.path), self.seal, self.objects)


def look_behind(store: RemoteStore, kind: str | None = None) -> Inventory:
    """Return what is in a store behind a URL, of one kind or of all.

    Raises:
        InputError: there is nothing, or nothing of that kind.
    """
    objects = store.bucket.find()
    if not objects:
        raise InputError(
            f"there is no store at '{store.place}'",
            "a store is what a run has written to",
            "give the --store that the run had, or set SPO_BENCH_STORE",
        )
    folders: dict[tuple[str, str], dict[str, Object]] = defaultdict(dict)
    for name, one in objects.items():
        above, _, rest = name.partition("/")
        folders[above, rest.partition("/")[0]][name] = one
    keys = [name for name in folders if name[0] not in NOT_KINDS and KEY.fullmatch(name[1]) and kind in (None, name[0])]
    if kind is not None and not keys:
        raise unknown("kind", kind, {above for above, _ in folders} - set(NOT_KINDS), f"the store '{store.place}'")
    seals = store.bucket.read_all(f"{above}/{key}/{SEAL}" for above, key in keys if f"{above}/{key}/{SEAL}" in objects)
    entries, parts = list[Entry](), list[Beside]()
    for above, key in keys:
        prefix, own = f"{above}/{key}", dict(folders[above, key])
        seal = seals.get(f"{prefix}/{SEAL}")
        place = transfer.place_of(seal) if seal is not None else SEAL
        astray: dict[str, dict[str, Object]] = defaultdict(dict)
        for name in list(own):
            if (folder := name.split("/")[2]) not in (place, SEAL):
                astray[folder][name] = own.pop(name)
        for folder, some in astray.items():
            parts.append(Behind(above, key, PurePosixPath(prefix, folder), _is_old(some), some))
        if seal is not None:
            entries.append(EntryBehind(above, key, PurePosixPath(prefix), False, own, seal))
    found, unread = claims(store)
    locks = [PurePosixPath(name) for name, one in objects.items() if name.startswith(f"{LOCKS}/") and _is_old({name: one})]
    checkpoints, failures = (_besides(folders, folder, kind) for folder in (CHECKPOINTS, FAILURES))
    databases = sorted(store.root.glob(DATABASES))
    return Inventory(store.place, entries, parts, checkpoints, failures, locks, (), databases, found, unread)


def _besides(folders: Mapping[tuple[str, str], Objects], above: str, kind: str | None) -> list[Behind]:
    """Return what is kept by the names of entries."""
    matches = ((NAMED.fullmatch(name), name, some) for (folder, name), some in folders.items() if folder == above)
    return [
        Behind(match[1], match[2], PurePosixPath(above, name), False, some)
        for match, name, some in matches
        if match and kind in (None, match[1])
    ]


def _is_old(objects: Objects) -> bool:
    """Say whether nobody has written any of these for long."""
    return time.time() - max(one.modified for one in objects.values()) > LEFT
