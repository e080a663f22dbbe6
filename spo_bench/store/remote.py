"""A store behind an fsspec URL, for machines without a shared path: a local store as a cache, and objects behind it.

What counts is what is behind. An artifact is built in the cache, sealed, and uploaded, its seal last; one that is read is
downloaded once, and held against its seal. Objects lie as in a local store, but for the files of what is sealed (``transfer``).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from hashlib import sha256
from pathlib import Path, PurePath, PurePosixPath
from typing import Any
from uuid import uuid4

from spo_bench.errors import Damaged
from spo_bench.store import sealed, transfer
from spo_bench.store.artifacts import CHECKPOINTS, LOCKS, RETRY, Store
from spo_bench.store.bucket import Bucket, Object
from spo_bench.store.lease import lease
from spo_bench.store.locks import lock, owner
from spo_bench.store.sealed import SEAL

CACHE_VARIABLE = "SPO_BENCH_CACHE"
LEASES, HOME = "leases", "home"


def cache_of(url: str) -> Path:
    """Return the directory of a URL's cache here: in $SPO_BENCH_CACHE, else ~/.cache/spo-bench/remote."""
    place = os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "spo-bench" / "remote"
    return Path(place) / sha256(url.encode()).hexdigest()[:16]


class RemoteStore(Store):
    """Artifacts behind a URL. Sent to another machine, it has the cache of that machine.

    Args:
        url: PROTOCOL://BUCKET/PREFIX.

    Raises:
        InputError: the URL holds credentials, or names no bucket.
    """

    def __init__(self, url: str) -> None:
        self.bucket = Bucket(url)
        super().__init__(cache_of(self.bucket.url))
        self._sealed: set[tuple[str, str]] = set()  # seen there; what has gone since is found when it is read

    def __reduce__(self) -> tuple[type[RemoteStore], tuple[str]]:
        return type(self), (self.bucket.url,)

    @property
    def place(self) -> str:
        """What a person gives to name it."""
        return self.bucket.url

    def listing(self) -> Store:
        """Return the store as it will be when it is first looked at: every kind is listed once."""
        return RemoteListing(self.bucket.url)

    def reach(self, write: bool = False) -> None:
        """Make sure that it answers.

        Raises:
            InputError: it does not, or refuses.
        """
        self.bucket.reach(write)

    def has(self, kind: str, key: str) -> bool:
        """Say whether the artifact is behind the URL, complete."""
        if (kind, key) not in self._sealed and self.bucket.has(f"{kind}/{key}/{SEAL}"):
            self._sealed.add((kind, key))
        return (kind, key) in self._sealed

    def record(self, kind: str, key: str) -> Mapping[str, Any] | None:
        """Return the seal of a finished artifact; None where there is none, or it is damaged."""
        if self.here(kind, key):
            return super().record(kind, key)
        seal = self._seal(kind, key)
        with suppress(ValueError, KeyError, TypeError, AttributeError):
            return None if seal is None else transfer.parsed(seal)
        return None

    def fetch(self, kind: str, key: str, weights: bool = True) -> Path:
        """Return where an artifact is on this machine, brought here first where it is not, or is not the one behind the URL.

        Raises:
            Damaged: it is gone there, or not as it was made.
        """
        final = self.path(kind, key)
        with lock(self.root / LOCKS / f"fetch-{kind}-{key}"):
            for last in (False, True):
                seal = transfer.seal_at(self.bucket, f"{kind}/{key}")
                if seal is None:
                    self._sealed.discard((kind, key))
                    raise Damaged(kind, key, "it is gone")
                if not (why := self._bring(kind, key, seal, weights)):
                    return final
                if last:  # the first time it may have been made again meanwhile
                    raise Damaged(kind, key, f"{why}, in {self.place}")
        raise AssertionError("unreachable")

    def _bring(self, kind: str, key: str, seal: bytes, weights: bool) -> str | None:
        """Make the copy on this machine that of a seal; return what is wrong with what is behind the URL."""
        final, prefix = self.path(kind, key), f"{kind}/{key}"
        try:
            known = transfer.parsed(seal)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return f"{SEAL} cannot be read ({error})"
        if (known["kind"], known["key"]) != (kind, key):
            return "it is another entry's"
        here: set[str] = set()
        if self.here(kind, key) and (final / SEAL).read_bytes() == seal and not sealed.fault(final, weights=False, away=True):
            here = {name for name in known["files"] if (final / name).is_file()}
            if not weights or (len(here) == len(known["files"]) and not sealed.fault(final)):
                return None
        with self._beside(kind, key) as part:
            if why := transfer.download(self.bucket, prefix, seal, part, here, weights):
                return why
            if here:  # the weights of a copy that was here without them: each comes whole
                for name in known["files"].keys() - here:
                    (final / name).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(part / name, final / name)
                return sealed.fault(final)
            (part / SEAL).write_bytes(seal)
            if weights:
                sealed.found_sound(part)
            self._set_aside(final)
            self._place(kind, key, part)
        return None

    def fault(self, kind: str, key: str, weights: bool = True, contents: bool = True) -> str | None:
        """Return what is wrong with an artifact that cannot be had here as it was made; None where it can, and is here now.
        Without ``weights`` these may stay away; without ``contents`` it is held against a listing, and nothing is brought.
        """
        if not contents:
            seal = self._seal(kind, key)
            return f"{SEAL} is missing" if seal is None else transfer.glance(f"{kind}/{key}", seal, self._objects(kind, key))
        try:
            self.fetch(kind, key, weights)
        except Damaged as damaged:
            return damaged.why
        return None

    def newest(self, kind: str) -> list[str]:
        """Return the keys of a kind's artifacts, the newest first."""
        sealed_at = [(one.modified, name.split("/")[1]) for name, one in self._list(kind).items() if name.endswith(f"/{SEAL}")]
        return [key for _, key in sorted(sealed_at, reverse=True)]

    def _seal(self, kind: str, key: str) -> bytes | None:
        return transfer.seal_at(self.bucket, f"{kind}/{key}")

    def _objects(self, kind: str, key: str) -> Mapping[str, Object]:
        return self.bucket.find(f"{kind}/{key}")

    def _list(self, folder: str) -> dict[str, Object]:
        return self.bucket.find(folder)

    def check(self, kind: str, key: str) -> None:
        """Bring an artifact here, as it was made, before it is read.

        Raises:
            Damaged: it is not as it was made, or it is gone.
        """
        self.fetch(kind, key)

    def examine(self, kind: str, key: str) -> str | None:
        """Return what is wrong with an artifact behind the URL, all of which is read."""

        def said(record: Mapping[str, Any]) -> str | None:
            return None if (record["kind"], record["key"]) == (kind, key) else "it is another entry's"

        return transfer.examine(self.bucket, f"{kind}/{key}", said)

    def examine_folder(self, name: str) -> str | None:
        """Return what is wrong with another sealed folder of the store, all of which is read."""
        return transfer.examine(self.bucket, name)

    def drop_lock(self, name: str) -> None:
        """Remove what is left of a lease, whose owner is dead."""
        self.bucket.remove(f"{LOCKS}/{name}")

    def _make(self, kind: str, key: str, build: Callable[[Path], object], record: Mapping[str, Any]) -> None:
        """Build an artifact, unless it was built here before and could not be uploaded; then upload it."""
        final = self.path(kind, key)
        if not self.here(kind, key) or (final / RETRY).exists() or sealed.fault(final):
            self._set_aside(final)
            super()._make(kind, key, build, record)
        transfer.upload(self.bucket, final, f"{kind}/{key}", first=True)
        self._sealed.add((kind, key))

    def to_retry(self, kind: str, key: str) -> int:
        """Return how many things of a finished artifact may go better another time; 0: it is final, or not there."""
        known = self.record(kind, key)
        if known is None or RETRY not in known["files"]:
            return 0
        try:
            return int((self.fetch(kind, key, weights=False) / RETRY).read_text(encoding="utf-8"))
        except (ValueError, Damaged):
            return 1

    def remove(self, kind: str, key: str, wait: bool = True) -> None:
        """Remove an artifact, here and behind the URL; a reader finds all of it or nothing.

        Raises:
            Busy: another process is making it, and ``wait`` is False.
        """
        with self.making(kind, key, wait):
            self._remove(kind, key)

    def discard(self, kind: str, key: str, wait: bool = True) -> None:
        """Remove an artifact that is not as it was made; one that was made again meanwhile stays.

        Raises:
            Busy: another process is making it, and ``wait`` is False.
        """
        with self.making(kind, key, wait):
            if self.examine(kind, key):
                self._remove(kind, key)

    def _remove(self, kind: str, key: str) -> None:
        self._sealed.discard((kind, key))
        self.wipe(self.named(f"{kind}/{key}"))
        self._set_aside(self.path(kind, key))

    def wipe(self, place: PurePath) -> None:
        """Remove an object, or all in a folder, its seal first."""
        name = str(place)
        objects = list(self.bucket.find(name)) or [name]
        first = [one for one in objects if one == f"{name}/{SEAL}"]
        self.bucket.remove(*first)
        self.bucket.remove(*(one for one in objects if one not in first))

    @contextmanager
    def lock(self, name: str, wait: bool = True) -> Iterator[None]:
        """Hold a lock among all who use the store: of the system on this machine, and a lease among machines.

        Raises:
            Busy: another process holds it, and ``wait`` is False.
        """
        with (
            super().lock(name, wait),
            lease(self.bucket, f"{LOCKS}/{name}", self.machine, self.root / LEASES / name, wait),
        ):
            yield

    @cached_property
    def machine(self) -> str:
        """A name for all who use this cache."""
        path = self.root / HOME
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{HOME}.{owner()}.part")
            part.write_text(uuid4().hex, encoding="utf-8")
            with suppress(FileExistsError):
                os.link(part, path)  # the first stays
            part.unlink()
        return path.read_text(encoding="utf-8")

    def beyond(self, kind: str, key: str) -> Checkpoints:
        """Return where checkpoints of an artifact are kept besides."""
        return Checkpoints(self.bucket, f"{CHECKPOINTS}/{kind}-{key}")

    def remains(self, kind: str, key: str) -> str | None:
        """Return None: objects without a seal may be on their way."""
        return None

    def named(self, name: str) -> PurePath:
        """Return the place of something in the store, by its name there."""
        return PurePosixPath(name)

    def notes(self, folder: str) -> dict[str, Object]:
        """Return the names in a folder, with size and time."""
        return {name.partition("/")[2]: one for name, one in self.bucket.find(folder).items()}

    def note(self, folder: str, name: str) -> Any:
        """Return what is kept under a name.

        Raises:
            OSError, ValueError: it is not there, or cannot be read.
        """
        return json.loads(self.bucket.read(f"{folder}/{name}"))

    def keep_note(self, folder: str, name: str, value: Any) -> None:
        """Keep a JSON value under a name."""
        self.bucket.write(f"{folder}/{name}", (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())

    def drop_note(self, folder: str, name: str) -> None:
        """Remove what is kept under a name, if it is there."""
        self.bucket.remove(f"{folder}/{name}")

    def _is_noted(self, folder: str, name: str) -> bool:
        return True  # reading tells


class RemoteListing(RemoteStore):
    """A store behind a URL as it was when it was first looked at: one list a kind, however many artifacts are asked for."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._listed: dict[str, dict[str, Object]] = {}
        self._seals: dict[str, dict[str, bytes]] = {}

    def has(self, kind: str, key: str) -> bool:
        """Say whether the artifact was there and complete."""
        return f"{kind}/{key}/{SEAL}" in self._list(kind)

    def to_retry(self, kind: str, key: str) -> int:
        """Return how many things of a finished artifact may go better another time; 0: it is final, or was not there."""
        marked = self._retries(kind)
        return super().to_retry(kind, key) if key in marked and self.has(kind, key) else 0

    def _is_noted(self, folder: str, name: str) -> bool:
        return f"{folder}/{name}" in self._list(folder)

    def _retries(self, kind: str) -> set[str]:
        return {name.split("/")[1] for name in self._list(kind) if name.endswith(f"/{RETRY}")}

    def _seal(self, kind: str, key: str) -> bytes | None:
        if kind not in self._seals:  # who asks for one asks for many
            self._seals[kind] = self.bucket.read_all(name for name in self._list(kind) if name.endswith(f"/{SEAL}"))
        return self._seals[kind].get(f"{kind}/{key}/{SEAL}")

    def _objects(self, kind: str, key: str) -> Mapping[str, Object]:
        return self._list(kind)

    def _list(self, folder: str) -> dict[str, Object]:
        if folder not in self._listed:
            self._listed[folder] = self.bucket.find(folder)
        return self._listed[folder]


class Checkpoints:
    """The newest checkpoint of a stage behind a URL, so that another machine goes on from it.

    Args:
        bucket: where they are.
        prefix: the folder's name there.
    """

    def __init__(self, bucket: Bucket, prefix: str) -> None:
        self.bucket, self.prefix = bucket, prefix

    def fetch(self, folder: Path, newest: int) -> None:
        """Bring the newest that is whole into a folder, if its number is above ``newest``."""
        for number in sorted(self._numbers(), reverse=True):
            seal = transfer.seal_at(self.bucket, f"{self.prefix}/{number}") if number > newest else None
            if seal is None:
                continue
            part = folder / "part"
            shutil.rmtree(part, ignore_errors=True)
            with suppress(ValueError, KeyError, TypeError, AttributeError):
                if transfer.download(self.bucket, f"{self.prefix}/{number}", seal, part) is None:
                    (part / SEAL).write_bytes(seal)
                    os.rename(part, folder / str(number))
                    return
            shutil.rmtree(part, ignore_errors=True)

    def keep(self, folder: Path) -> None:
        """Upload a checkpoint, and remove those before it."""
        number = int(folder.name)
        transfer.upload(self.bucket, folder, f"{self.prefix}/{number}")
        for other in self._numbers():
            if other < number:
                self.bucket.remove(*self.bucket.find(f"{self.prefix}/{other}"))

    def clear(self) -> None:
        """Remove all of them: the stage has left its artifact."""
        self.bucket.remove(*self.bucket.find(self.prefix))

    def _numbers(self) -> set[int]:
        start = len(self.prefix) + 1
        found = {name[start:].partition("/")[0] for name in self.bucket.find(self.prefix)}
        return {int(name) for name in found if name.isdigit()}
