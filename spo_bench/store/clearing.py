"""Making room in a store: what no run refers to is removed, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Literal

from spo_bench.errors import Busy, InputError
from spo_bench.store.artifacts import RUNS, Store
from spo_bench.store.claims import Claim, clearing
from spo_bench.store.inventory import Inventory, check_there, linked, size
from spo_bench.store.opening import look

DAY = 86400  # seconds after which a small file that was never finished is nobody's

UNUSED = "no run refers to it"
OLDER = "written by an older version, without checksums"
LEFT = "its owner is dead"


@dataclass(frozen=True)
class Rubbish:
    """Something that is not needed.

    Attributes:
        what: it is.
        path: where it is.
        why: it is not needed.
        bytes: how long it is.
        kind, key: of an entry, and of what belongs to one.
    """

    what: Literal["entry", "part", "checkpoint", "failure", "claim", "lock", "unfinished file"]
    path: PurePath
    why: str
    bytes: int
    kind: str = ""
    key: str = ""


@dataclass(frozen=True)
class Cleared:
    """What clearing a store came to.

    Attributes:
        removed: what is gone now; without ``act`` what would be.
        busy: what another process was using, and is still there.
        missing: runs that are not where they were and keep their claims, with how many entries and bytes no other run needs.
    """

    removed: Sequence[Rubbish]
    busy: Sequence[Rubbish]
    missing: Sequence[tuple[Claim, int, int]]

    @property
    def bytes(self) -> int:
        """How long what was removed is together."""
        return sum(one.bytes for one in self.removed)


def clear(store: Store, act: bool, forget_missing: bool = False, keep: Sequence[Path] = ()) -> Cleared:
    """Remove what no run refers to. Replies that a judge was paid for always stay.

    A run refers to what it claims, and to the policies that its cells link to. Claims are made before a run looks into a store,
    and under the same lock: no run can come to need what is being removed.

    Args:
        store: the store.
        act: whether to remove anything, or only to look.
        forget_missing: whether runs that are not where they were lose their claims.
        keep: directories of runs that have no claim, since an older version made them: their policies stay.

    Raises:
        InputError: there is no store, or a claim on it cannot be read.
    """
    check_there(store)  # locking would make one
    with clearing(store) if act else nullcontext():
        found = look(store)
        for path, why in found.unread.items():
            raise InputError(
                f"the claim {path}: {why}",
                "nothing is removed as long as it is not known what every run uses",
                "run the same command again in that run's directory, or delete the claim if the run is not needed",
            )
        standing = {claim.path: claim.stands for claim in found.claims}
        missing = [claim for claim in found.claims if not standing[claim.path]]
        kept = [claim for claim in found.claims if standing[claim.path] or not forget_missing]
        rubbish = list(_rubbish(found, kept, keep))
        removed, busy = list[Rubbish](), list[Rubbish]()
        for one in rubbish:
            (removed if not act or _remove(store, one) else busy).append(one)
        told = [] if forget_missing else [(claim, *_theirs(found, claim, missing)) for claim in missing]
    return Cleared(removed, busy, told)


def _theirs(found: Inventory, claim: Claim, missing: Sequence[Claim]) -> tuple[int, int]:
    """Return how many entries are claimed by a run and by none that is where it was, and their bytes."""
    only = [
        one.bytes for one in found.entries if claim in (by := found.claimed.get(one.name, [])) and all(c in missing for c in by)
    ]
    return len(only), sum(only)


def _rubbish(found: Inventory, kept: Sequence[Claim], keep: Sequence[Path]) -> Iterator[Rubbish]:
    """Yield what is not needed, where these claims stand."""
    needed = {(kind, key) for claim in kept for kind, keys in claim.keys.items() for key in keys}
    links = {pair for run in (*(claim.out for claim in kept), *keep) for pair in linked(run)}
    finished = {one.name for one in found.entries if one.sealed}
    for one in found.entries:
        if one.name not in links and (one.older or one.name not in needed):
            yield Rubbish("entry", one.path, OLDER if one.older else UNUSED, one.bytes, *one.name)
    for part in found.parts:
        if part.left:
            yield Rubbish("part", part.path, LEFT, part.bytes, *part.name)
    for saved in found.checkpoints:
        if saved.name in finished or saved.name not in needed:
            why = "its stage is finished" if saved.name in finished else UNUSED
            yield Rubbish("checkpoint", saved.path, why, saved.bytes, *saved.name)
    for failure in found.failures:
        if failure.name not in needed:
            yield Rubbish("failure", failure.path, UNUSED, failure.bytes, *failure.name)
    for claim in found.claims:
        if claim not in kept:
            yield Rubbish("claim", claim.path, f"its run is not in '{claim.out}'", claim.file.size)
    for place in found.locks:
        if place.name != RUNS:
            yield Rubbish("lock", place, "nobody holds it", 0)
    for path in found.unfinished:
        if path.is_file() and time.time() - path.stat().st_mtime > DAY:
            yield Rubbish("unfinished file", path, "it was never finished", size(path))


def _remove(store: Store, one: Rubbish) -> bool:
    """Remove something, unless another process uses it; say whether it is gone."""
    try:
        if one.what == "entry":
            store.remove(one.kind, one.key, wait=False)
        elif one.what in ("part", "checkpoint", "failure"):
            with store.making(one.kind, one.key, wait=False):
                store.wipe(one.path)
        elif one.what == "lock":
            store.drop_lock(one.path.name)
        else:
            store.wipe(one.path)
    except (Busy, FileNotFoundError):
        return isinstance(one.path, Path) and not one.path.exists()
    return True
