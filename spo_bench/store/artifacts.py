"""The store: artifacts under a key made of everything that can change their numbers.

Layout: ``ROOT/KIND/KEY/`` holds an artifact's files and ``DONE``, which is written last and repeats the identity the key was
made from. A directory without ``DONE`` does not exist for a reader.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from spo_bench.files import canonical_json, file_hash, read_json, write_json

RETRY = "RETRY"  # a file of an artifact that is not final: it holds the number of things that may go better another time
IDENTITY_FORMAT = 1  # raised when the way keys are made changes; then every key changes, knowingly


def digest(value: Any) -> str:
    """Return the key of a JSON value: the first 32 hex digits of the SHA-256 of its canonical text."""
    return sha256(canonical_json({"format": IDENTITY_FORMAT, "value": value}).encode()).hexdigest()[:32]


class Store:
    """Artifacts on a local path.

    Args:
        root: the directory; made when the first artifact is.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root).expanduser().absolute()

    def path(self, kind: str, key: str) -> Path:
        """Return where an artifact is, or would be."""
        return self.root / kind / key

    def has(self, kind: str, key: str) -> bool:
        """Say whether the artifact is there and complete."""
        # As text: a plan asks this of every stage, and building path objects would take most of its time.
        return os.path.isfile(f"{self.root}/{kind}/{key}/DONE")

    def identity(self, kind: str, key: str) -> Mapping[str, Any] | None:
        """Return the identity a finished artifact was made from, None where there is no such artifact."""
        if not self.has(kind, key):
            return None
        value: Mapping[str, Any] = read_json(self.path(kind, key) / "DONE")["identity"]
        return value

    def make(self, kind: str, key: str, identity: Mapping[str, Any], build: Callable[[Path], None]) -> Path:
        """Return the artifact's directory, building it first where it is missing.

        ``build`` writes into a directory beside the final place, which is renamed when it has finished; what it leaves when
        it fails is removed. Processes that want the same artifact wait for the one that builds it.
        """
        final = self.path(kind, key)
        if self.has(kind, key):
            return final
        with self._lock(kind, key):
            if self.has(kind, key):
                return final
            part = final.with_name(f"{key}.part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            try:
                build(part)
                write_json(part / "DONE", {"kind": kind, "key": key, "identity": identity})
                shutil.rmtree(final, ignore_errors=True)  # an incomplete directory from before
                os.replace(part, final)
            finally:
                shutil.rmtree(part, ignore_errors=True)
        return final

    def to_retry(self, kind: str, key: str) -> int:
        """Return how many things of a finished artifact may go better another time; 0: it is final, or not there."""
        if not os.path.isfile(f"{self.root}/{kind}/{key}/{RETRY}") or not self.has(kind, key):
            return 0
        return int((self.path(kind, key) / RETRY).read_text(encoding="utf-8"))

    def remove(self, kind: str, key: str) -> None:
        """Remove an artifact, if it is there; a reader finds all of it or nothing."""
        final = self.path(kind, key)
        with self._lock(kind, key):
            if final.is_dir():
                gone = final.with_name(f"{key}.gone")
                shutil.rmtree(gone, ignore_errors=True)
                os.replace(final, gone)
                shutil.rmtree(gone)

    @contextmanager
    def _lock(self, kind: str, key: str) -> Iterator[None]:
        """Hold the artifact's lock; the system releases it when its owner dies."""
        directory = self.root / "locks"
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / f"{kind}-{key}").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield


class Listing(Store):
    """A store as it was when it was first looked at: for a plan, which asks many times whether very many artifacts are there."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._names: dict[str, set[str]] = {}
        self._known: dict[tuple[str, str], bool] = {}

    def has(self, kind: str, key: str) -> bool:
        """Say whether the artifact was there and complete."""
        if (kind, key) not in self._known:
            self._known[kind, key] = self._is_listed(kind, key) and super().has(kind, key)
        return self._known[kind, key]

    def to_retry(self, kind: str, key: str) -> int:
        """Return how many things of a finished artifact may go better another time; 0: it is final, or was not there."""
        return super().to_retry(kind, key) if self._is_listed(kind, key) else 0

    def _is_listed(self, kind: str, key: str) -> bool:
        if kind not in self._names:
            folder = self.root / kind
            self._names[kind] = set(os.listdir(folder)) if folder.is_dir() else set()
        return key in self._names[kind]


class HashCache:
    """Hashes of large files, remembered by path, size and modification time, so that planning does not read weights twice."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root).expanduser().absolute()
        self._path = self.root / "file-hashes.json"
        try:
            self._known: dict[str, str] = read_json(self._path)
        except (OSError, ValueError):
            self._known = {}

    def hash(self, path: Path) -> str:
        """Return the SHA-256 of a file's content."""
        state = path.stat()
        mark = f"{path.resolve()}|{state.st_size}|{state.st_mtime_ns}"
        if mark not in self._known:
            self._known[mark] = file_hash(path)
            write_json(self._path, self._known)
        return self._known[mark]
