"""The store: artifacts under a key made of everything that can change their numbers.

Layout: ``ROOT/KIND/KEY/`` holds an artifact's files and its seal, which is written last and repeats the identity the key was made
from. A directory without a seal does not exist for a reader. ``failures/`` holds why artifacts could not be made,
``checkpoints/`` what is kept of those that are being made, ``locks/`` whose turn it is.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from hashlib import sha256
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from spo_bench.errors import Damaged
from spo_bench.files import canonical_json, flush, read_json, write_json
from spo_bench.store import sealed
from spo_bench.store.bucket import Object
from spo_bench.store.locks import is_left_behind, lock, owner
from spo_bench.store.sealed import OLD_SEAL, SEAL

if TYPE_CHECKING:
    from spo_bench.store.checkpoints import Beyond

RETRY = "RETRY"  # a file of an artifact that is not final: it holds the number of things that may go better another time
IDENTITY_FORMAT = 1  # raised when the way keys are made changes; then every key changes, knowingly
FAILURES, CHECKPOINTS, LOCKS, RUNS = "failures", "checkpoints", "locks", "runs"
REPLIES, PURSES = "replies", "purses"
NOT_KINDS = (FAILURES, CHECKPOINTS, LOCKS, RUNS, REPLIES, PURSES)  # folders of a store that hold no artifacts
TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT)  # a rename onto a folder says so; over NFS also one that went well


def digest(value: Any) -> str:
    """Return the key of a JSON value: the first 32 hex digits of the SHA-256 of its canonical text."""
    return sha256(canonical_json({"format": IDENTITY_FORMAT, "value": value}).encode()).hexdigest()[:32]


class Store:
    """Artifacts on a local path, or one that several machines share.

    Args:
        root: the directory; made when the first artifact is.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root).expanduser().absolute()

    @property
    def place(self) -> str:
        """What a person gives to name it."""
        return str(self.root)

    @property
    def machine(self) -> str | None:
        """A name for all who keep what they do not share in the same directory; None where there is nobody else."""
        return None

    def listing(self) -> Store:
        """Return the store as it will be when it is first looked at: for who asks of very many artifacts."""
        return Listing(self.root)

    def reach(self, write: bool = False) -> None:
        """Make sure that it answers, and with ``write`` that it can be written to: a directory is looked at by its path."""

    def path(self, kind: str, key: str) -> Path:
        """Return where an artifact is on this machine, or would be."""
        return self.root / kind / key

    def fetch(self, kind: str, key: str, weights: bool = True) -> Path:
        """Return where an artifact is on this machine, brought here first where it is not; without ``weights``, these may stay
        away.
        """
        return self.path(kind, key)

    def here(self, kind: str, key: str) -> bool:
        """Say whether the artifact is on this machine."""
        # As text: a plan asks this of every stage, and building path objects would take most of its time.
        return os.path.isfile(f"{self.root}/{kind}/{key}/{SEAL}")

    def has(self, kind: str, key: str) -> bool:
        """Say whether the artifact is there and complete; whether it is still as it was made, ``check`` says."""
        return self.here(kind, key)

    def record(self, kind: str, key: str) -> Mapping[str, Any] | None:
        """Return the seal of a finished artifact (kind, key, identity, what was noted when it was made, files with size and
        sha256); None where there is none, or it is damaged.
        """
        try:
            return sealed.record(self.path(kind, key))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def identity(self, kind: str, key: str) -> Mapping[str, Any] | None:
        """Return the identity a finished artifact was made from, None where there is no such artifact."""
        found = self.record(kind, key)
        return None if found is None else found["identity"]

    def fault(self, kind: str, key: str, weights: bool = True, contents: bool = True) -> str | None:
        """Return what is wrong with an artifact that is not as it was made; None where every file is. Without ``weights``, those
        are held to their size alone: for who does not read them; without ``contents``, all are.
        """
        folder = self.path(kind, key)
        if why := sealed.fault(folder, weights, contents):
            return why
        known = self.record(kind, key)
        if known is None or (known["kind"], known["key"]) != (kind, key):
            return "it is another entry's"
        return None

    def check(self, kind: str, key: str) -> None:
        """Make sure that an artifact is as it was made, before it is read.

        Raises:
            Damaged: it is not, or it is gone.
        """
        if not self.has(kind, key):
            raise Damaged(kind, key, "it is gone")
        if why := self.fault(kind, key):
            raise Damaged(kind, key, why)

    def make(
        self,
        kind: str,
        key: str,
        identity: Mapping[str, Any],
        build: Callable[[Path], object],
        wait: bool = True,
        note: Mapping[str, Any] | None = None,
    ) -> Path:
        """Return the artifact's directory, building it first where it is missing.

        ``build`` writes into a directory beside the final place, which is sealed (with ``note``) and renamed when it has
        finished; what it leaves when it fails is removed. Processes that want the same artifact wait for the one that builds
        it; where a file system has no locks, both build, and the first to finish wins.

        Raises:
            Busy: another process builds it, and ``wait`` is False.
        """
        final = self.path(kind, key)
        if self.has(kind, key):
            return final
        with self.making(kind, key, wait):
            if not self.has(kind, key):
                self._make(kind, key, build, {"kind": kind, "key": key, "identity": identity, **(note or {})})
                self.forgive(kind, key)
        return final

    def _make(self, kind: str, key: str, build: Callable[[Path], object], record: Mapping[str, Any]) -> None:
        """Build an artifact, seal it with a record, and give it its place."""
        with self._beside(kind, key) as part:
            build(part)
            sealed.seal(part, record)
            self._place(kind, key, part)

    @contextmanager
    def _beside(self, kind: str, key: str) -> Iterator[Path]:
        """Give an empty directory beside an artifact's place, which is removed at the end if it is still there."""
        final = self.path(kind, key)
        final.parent.mkdir(parents=True, exist_ok=True)
        self._sweep(kind, key)
        part = final.with_name(f"{key}.{owner()}.part")
        part.mkdir()
        try:
            yield part
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _sweep(self, kind: str, key: str) -> None:
        """Remove what dead owners left of an artifact."""
        for end in ("part", "gone"):
            for path in self.path(kind, key).parent.glob(f"{key}.*.{end}"):
                if is_left_behind(path):
                    shutil.rmtree(path, ignore_errors=True)

    def _place(self, kind: str, key: str, part: Path) -> None:
        """Give a finished directory its final name, unless another process was first."""
        final = self.path(kind, key)
        for last in (False, False, True):
            try:
                os.rename(part, final)
            except OSError as error:
                if error.errno not in TAKEN or last:
                    raise
                if self.here(kind, key):
                    return
                self._set_aside(final)
            else:
                sealed.moved(part, final)
                flush(final.parent)
                return

    def _set_aside(self, final: Path) -> None:
        """Remove a directory; a reader finds all of it or nothing."""
        gone = final.with_name(f"{final.name}.{owner()}.gone")
        with suppress(FileNotFoundError):
            os.rename(final, gone)
            shutil.rmtree(gone, ignore_errors=True)

    def to_retry(self, kind: str, key: str) -> int:
        """Return how many things of a finished artifact may go better another time; 0: it is final, or not there."""
        if not os.path.isfile(f"{self.root}/{kind}/{key}/{RETRY}") or not self.has(kind, key):
            return 0
        try:
            return int((self.path(kind, key) / RETRY).read_text(encoding="utf-8"))
        except ValueError:  # damaged: it is asked for again
            return 1

    def remove(self, kind: str, key: str, wait: bool = True) -> None:
        """Remove an artifact, if it is there; a reader finds all of it or nothing.

        Raises:
            Busy: another process is making it, and ``wait`` is False.
        """
        with self.making(kind, key, wait):
            self._set_aside(self.path(kind, key))

    def discard(self, kind: str, key: str, wait: bool = True) -> None:
        """Remove an artifact that is not as it was made; one that another process has made again meanwhile stays.

        Raises:
            Busy: another process is making it, and ``wait`` is False.
        """
        with self.making(kind, key, wait):
            sealed.forget(self.path(kind, key))  # another process may have seen what this one has not
            if self.fault(kind, key):
                self._set_aside(self.path(kind, key))

    def making(self, kind: str, key: str, wait: bool = True) -> AbstractContextManager[None]:
        """Hold the lock of an artifact: nobody else makes or removes it, or touches what is kept for it.

        Raises:
            Busy: another process holds it, and ``wait`` is False.
        """
        return self.lock(f"{kind}-{key}", wait)

    def lock(self, name: str, wait: bool = True) -> AbstractContextManager[None]:
        """Hold a lock among all who use the store.

        Raises:
            Busy: another process holds it, and ``wait`` is False.
        """
        return lock(self.root / LOCKS / name, wait)

    def remains(self, kind: str, key: str) -> str | None:
        """Return why what lies in the place of an artifact that is not there does not count; None where nothing does."""
        folder = f"{self.root}/{kind}/{key}"
        if os.path.isfile(f"{folder}/{OLD_SEAL}"):
            return "an older version wrote it, without checksums"
        return f"it is damaged: {SEAL} is missing" if os.path.isdir(folder) else None

    def fail(self, kind: str, key: str, reason: str) -> None:
        """Keep why an artifact cannot be made: with the same inputs it fails the same way."""
        self.keep_note(FAILURES, f"{kind}-{key}", {"kind": kind, "key": key, "reason": reason})

    def failure(self, kind: str, key: str) -> str | None:
        """Return why an artifact could not be made before; None where nothing says that it cannot."""
        if not self._is_noted(FAILURES, f"{kind}-{key}"):
            return None
        try:
            return str(self.note(FAILURES, f"{kind}-{key}")["reason"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def forgive(self, kind: str, key: str) -> None:
        """Forget that an artifact could not be made."""
        self.drop_note(FAILURES, f"{kind}-{key}")

    def checkpoint(self, kind: str, key: str) -> Path:
        """Return the folder for what is kept of an artifact while it is being made; only its maker may look into it."""
        return self.root / CHECKPOINTS / f"{kind}-{key}"

    def beyond(self, kind: str, key: str) -> Beyond | None:
        """Return where checkpoints of an artifact are kept besides; None where they need no second place."""
        return None

    def newest(self, kind: str) -> list[str]:
        """Return the keys of a kind's artifacts, also of those that an older version made, the newest first."""
        with suppress(OSError), os.scandir(self.root / kind) as found:
            return [key for _, key in sorted((one.stat().st_mtime, one.name) for one in found if "." not in one.name)[::-1]]
        return []

    def examine(self, kind: str, key: str) -> str | None:
        """Return what is wrong with an artifact where it is kept, all of which is read; None where nothing is."""
        return self.fault(kind, key)

    def examine_folder(self, name: str) -> str | None:
        """Return what is wrong with another sealed folder of the store, all of which is read."""
        return sealed.fault(self.root / name)

    def wipe(self, place: PurePath) -> None:
        """Remove a file, or a folder with all that is in it."""
        path = Path(place)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def drop_lock(self, name: str) -> None:
        """Remove what is left of a lock that nobody holds.

        Raises:
            Busy: somebody does.
        """
        with lock(self.root / LOCKS / name, wait=False):
            pass

    def named(self, name: str) -> PurePath:
        """Return the place of something in the store, by its name there."""
        return self.root / name

    # Small things by name, in a folder: remembered failures, claims of runs.

    def notes(self, folder: str) -> dict[str, Object]:
        """Return the names in a folder, with size and time."""
        names = sorted(os.listdir(self.root / folder)) if (self.root / folder).is_dir() else []
        states = {name: os.stat(self.root / folder / name) for name in names if not name.startswith(".")}
        return {name: Object(state.st_size, state.st_mtime) for name, state in states.items()}

    def note(self, folder: str, name: str) -> Any:
        """Return what is kept under a name.

        Raises:
            OSError, ValueError: it is not there, or cannot be read.
        """
        return read_json(self.root / folder / name)

    def keep_note(self, folder: str, name: str, value: Any) -> None:
        """Keep a JSON value under a name."""
        write_json(self.root / folder / name, value)

    def drop_note(self, folder: str, name: str) -> None:
        """Remove what is kept under a name, if it is there."""
        (self.root / folder / name).unlink(missing_ok=True)

    def _is_noted(self, folder: str, name: str) -> bool:
        return os.path.isfile(f"{self.root}/{folder}/{name}")


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

    def remains(self, kind: str, key: str) -> str | None:
        """Return why what lay in the place of an artifact that was not there does not count; None where nothing did."""
        return super().remains(kind, key) if self._is_listed(kind, key) else None

    def failure(self, kind: str, key: str) -> str | None:
        """Return why an artifact could not be made before; None where nothing said that it cannot."""
        return super().failure(kind, key) if self._is_listed(FAILURES, f"{kind}-{key}") else None

    def _is_listed(self, folder: str, name: str) -> bool:
        if folder not in self._names:
            place = self.root / folder
            self._names[folder] = set(os.listdir(place)) if place.is_dir() else set()
        return name in self._names[folder]
