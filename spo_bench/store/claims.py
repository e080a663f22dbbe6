"""Which runs use a store: each has its claim there, with the keys of all its stages, so that nothing of them is cleared away."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePath
from typing import Any

from spo_bench.files import read_json
from spo_bench.store.artifacts import LOCKS, RUNS, Store
from spo_bench.store.bucket import Object
from spo_bench.store.locks import is_gone, lock, machine_of, owner


@dataclass(frozen=True)
class Claim:
    """A run's claim on a store.

    Attributes:
        path: the claim's place in the store.
        file: its size, and when it was made.
        out: the run's directory.
        purse: by which the run is known from another one in the same directory, there or on another machine.
        owner: the process that made the claim.
        keys: kind -> keys of its stages, those included that no cell names.
    """

    path: PurePath
    file: Object
    out: Path
    purse: str
    owner: str
    keys: Mapping[str, frozenset[str]]

    @property
    def stands(self) -> bool:
        """Whether the run is still where it was, or under way."""
        return purse_of(self.out) == self.purse or not is_gone(self.owner, self.file.modified)


def purse_of(out: Path) -> str | None:
    """Return the name under which the run in a directory pays its judge; None where no run is there yet.

    A new run of a spec begins with an empty purse, also in the place of one that was deleted; a run that goes on has its old
    one, also where it was moved.
    """
    try:
        return str(read_json(out / "run.json")["purse"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def claim(store: Store, out: Path, purse: str, stages: Iterable[tuple[str, str]]) -> None:
    """Note that a run in a directory uses these artifacts (kind, key), in the place of what it used before; and that what this
    machine ran in the directory before is there no more.
    """
    keys: dict[str, list[str]] = {}
    for kind, key in sorted(set(stages)):
        keys.setdefault(kind, []).append(key)
    own = f"{_name(out)}-{purse}"
    with clearing(store):
        store.keep_note(RUNS, own, {"out": str(out.resolve()), "purse": purse, "owner": owner(), "keys": keys})
        for name, file in store.notes(RUNS).items():
            with suppress(ValueError):
                same = name.startswith(f"{_name(out)}-") and name != own
                if same and machine_of(_read(store, name, file).owner) == machine_of(owner()):
                    store.drop_note(RUNS, name)


def release(store: Store, out: Path, purse: str) -> None:
    """Take back the claim of a run that has left nothing in its directory."""
    with clearing(store):
        store.drop_note(RUNS, f"{_name(out)}-{purse}")


def claims(store: Store) -> tuple[list[Claim], dict[PurePath, str]]:
    """Return the claims on a store, and why some cannot be read: what they claim is not known."""
    found, unread = list[Claim](), dict[PurePath, str]()
    for name, file in store.notes(RUNS).items():
        try:
            found.append(_read(store, name, file))
        except ValueError as error:
            unread[store.named(f"{RUNS}/{name}")] = str(error)
    return found, unread


def _read(store: Store, name: str, file: Object) -> Claim:
    """Return a claim.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        found: dict[str, Any] = store.note(RUNS, name)
        keys = {kind: frozenset(keys) for kind, keys in found["keys"].items()}
        return Claim(store.named(f"{RUNS}/{name}"), file, Path(found["out"]), str(found["purse"]), str(found["owner"]), keys)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it cannot be read ({type(error).__name__}: {error})") from error


def clearing(store: Store) -> AbstractContextManager[None]:
    """Hold the lock under which claims are made and what nobody claims is cleared away."""
    return store.lock(RUNS)


def finishing(store: Store, out: Path) -> AbstractContextManager[None]:
    """Hold the lock under which a run's directory is written to, so that two of the same run do not write at once."""
    return lock(store.root / LOCKS / f"run-{_name(out)}")


def _name(out: Path) -> str:
    return sha256(str(out.resolve()).encode()).hexdigest()[:32]
