"""Sealed folders as objects: uploaded so that they are there whole or not at all, held against their seals when they come back.

``PREFIX/SEAL`` is the folder's seal, written last; its files lie in ``PREFIX/PLACE/``, where PLACE is made of the seal's content.
So two machines that upload different files for one entry never mix them, and whoever reads a seal knows which files it means.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

from spo_bench.files import flush
from spo_bench.store import sealed
from spo_bench.store.bucket import Bucket, Object
from spo_bench.store.sealed import SEAL, WEIGHTS

ALTERED = "has another content than when it was made"


def place_of(seal: bytes) -> str:
    """Return the name of the folder that holds the files of a seal."""
    return sha256(seal).hexdigest()[:16]


def upload(bucket: Bucket, folder: Path, prefix: str, first: bool = False) -> bool:
    """Upload a sealed folder, its seal last.

    Args:
        bucket: where to.
        folder: a sealed one.
        prefix: its name there.
        first: whether a seal that is there already stays, as far as the server can tell; what was uploaded is removed then.

    Returns:
        Whether it is this folder that is there now.

    Raises:
        Unreachable: it could not be uploaded; what is there of it counts for nothing.
    """
    seal, files = (folder / SEAL).read_bytes(), sealed.record(folder)["files"]
    place = f"{prefix}/{place_of(seal)}"
    there = bucket.find(place)
    missing = [name for name, known in files.items() if not _is(there.get(f"{place}/{name}"), known)]
    bucket.upload((folder / name, f"{place}/{name}") for name in missing)
    if bucket.write(f"{prefix}/{SEAL}", seal, new=first) or seal_at(bucket, prefix) == seal:
        return True
    bucket.remove(*bucket.find(place))
    return False


def _is(there: Object | None, known: Mapping[str, Any]) -> bool:
    """Say whether an object was uploaded before; a place is named by a seal, which knows the contents."""
    return there is not None and there.size == known["size"]


def seal_at(bucket: Bucket, prefix: str) -> bytes | None:
    """Return the seal of a folder, None where there is none."""
    try:
        return bucket.read(f"{prefix}/{SEAL}")
    except FileNotFoundError:
        return None


def parsed(seal: bytes) -> dict[str, Any]:
    """Return what stands in a seal.

    Raises:
        ValueError: it is not as it was written, or names a file outside of its folder.
    """
    found = sealed.parse_signed(seal.decode("utf-8"))
    for name in found["files"]:
        path = PurePosixPath(name)
        if path.is_absolute() or not path.parts or ".." in path.parts or "\\" in name or name == SEAL:
            raise ValueError(f"it names {json.dumps(name)}")
    return found


def download(
    bucket: Bucket, prefix: str, seal: bytes, folder: Path, here: Collection[str] = (), weights: bool = True
) -> str | None:
    """Download the files of a seal into a folder, and hold them against it.

    Args:
        bucket: where from.
        prefix: the name there.
        seal: that was found there.
        folder: where to; it is made.
        here: names of files that need not come.
        weights: whether *.safetensors come too.

    Returns:
        What is wrong with the first file that is not as it was made; None where there is none.
    """
    files = parsed(seal)["files"]
    wanted = [name for name in files if name not in here and (weights or not name.endswith(WEIGHTS))]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        bucket.download((folder / name, f"{prefix}/{place_of(seal)}/{name}") for name in wanted)
    except FileNotFoundError as error:
        return f"{str(error).removeprefix(f'{prefix}/{place_of(seal)}/')} is missing"
    for name in wanted:
        if why := sealed.file_fault(folder / name, files[name]):
            return f"{name} {why}"
        flush(folder / name)
    return None


def glance(prefix: str, seal: bytes, there: Mapping[str, Object]) -> str | None:
    """Return what is wrong with an uploaded folder by a listing of it: the first file that is missing or has another size."""
    try:
        files = parsed(seal)["files"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{SEAL} cannot be read ({error})"
    place = f"{prefix}/{place_of(seal)}"
    for name, known in sorted(files.items()):
        found = there.get(f"{place}/{name}")
        if found is None:
            return f"{name} is missing"
        if found.size != known["size"]:
            return f"{name} has {found.size} bytes, and {known['size']} when it was made"
    return None


def examine(bucket: Bucket, prefix: str, said: Callable[[Mapping[str, Any]], str | None] = lambda _: None) -> str | None:
    """Return what is wrong with an uploaded folder, all of which is read; None where nothing is, or it is gone.

    Args:
        bucket: where it is.
        prefix: its name there.
        said: says what is wrong with what stands in its seal.
    """
    seal = seal_at(bucket, prefix)
    if seal is None:
        return None
    if why := glance(prefix, seal, bucket.find(prefix)):
        return why
    found = parsed(seal)
    if why := said(found):
        return why
    for name, known in sorted(found["files"].items()):
        try:
            if bucket.hash(f"{prefix}/{place_of(seal)}/{name}") != known["sha256"]:
                return f"{name} {ALTERED}"
        except FileNotFoundError:
            return f"{name} is missing"
    return None
