"""Folders that are complete or do not count: their seal, written last, lists every file with its size and SHA-256."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from spo_bench.files import canonical_json, file_hash, flush, write_json

SEAL = "SEAL"
OLD_SEAL = "DONE"  # of format 1
WEIGHTS = ".safetensors"
FORMAT = 2  # 1 had no checksums
_sound: dict[str, tuple[Any, ...]] = {}  # folder -> how its files stood when they were found sound by this process


def seal(folder: Path, record: Mapping[str, Any]) -> None:
    """Close a folder: wait until its files are on the disk, then write its seal with their checksums and a record.

    Args:
        folder: what is in it belongs to it.
        record: JSON values to keep in the seal.
    """
    for _, path in _files(folder):
        flush(path)
    write_json(folder / SEAL, signed({"format": FORMAT, **record, "files": listed(folder)}))
    flush(folder / SEAL)
    flush(folder)
    _sound[str(folder)] = _standing(folder)


def found_sound(folder: Path) -> None:
    """Note that this process has held every file of a sealed folder against its seal."""
    _sound[str(folder)] = _standing(folder)


def moved(before: Path, after: Path) -> None:
    """Note that a folder which this process has sealed has another name now."""
    if (standing := _sound.pop(str(before), None)) is not None:
        _sound[str(after)] = standing


def forget(folder: Path) -> None:
    """Let a folder be read anew, whatever this process found before."""
    _sound.pop(str(folder), None)


def signed(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with a checksum of itself, to be written as JSON and read by ``read_signed``."""
    return {**body, "checksum": _checksum(body)}


def read_signed(path: Path) -> dict[str, Any]:
    """Return a record that was written with its checksum, without it.

    Raises:
        OSError, ValueError: it is not there, or not as it was written.
    """
    return parse_signed(path.read_text(encoding="utf-8"))


def parse_signed(text: str) -> dict[str, Any]:
    """Return the record that a text is, without its checksum.

    Raises:
        ValueError: it is not as it was written.
    """
    found: Any = json.loads(text)
    if not isinstance(found, dict) or json.dumps(found, indent=1, ensure_ascii=False) + "\n" != text:
        raise ValueError("altered")
    if found.pop("checksum", None) != _checksum(found):
        raise ValueError("its checksum is another")
    return found


def listed(folder: Path) -> dict[str, dict[str, Any]]:
    """Return size and SHA-256 of every file in a folder but its seal, by name; links to other folders are not followed."""
    return {name: entry(path) for name, path in _files(folder)}


def entry(path: Path) -> dict[str, Any]:
    """Return size and SHA-256 of a file."""
    return {"size": path.stat().st_size, "sha256": file_hash(path)}


def record(folder: Path) -> dict[str, Any]:
    """Return what stands in a folder's seal.

    Raises:
        OSError, ValueError: there is no seal, or it is not as it was written.
    """
    return read_signed(folder / SEAL)


def fault(folder: Path, weights: bool = True, contents: bool = True, away: bool = False) -> str | None:
    """Return what is wrong with a sealed folder: the first file that is missing, added, cut or altered; None where it is sound.

    Files are read once by a process, and again when their size, times or place on the disk have changed.

    Args:
        folder: a sealed one.
        weights: whether the content of *.safetensors is read too; else their size alone counts.
        contents: whether any content is read; else all sizes alone count.
        away: whether *.safetensors may be missing: a copy of what is kept elsewhere.
    """
    try:
        known = record(folder)["files"]
    except FileNotFoundError:
        return f"{SEAL} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{SEAL} cannot be read ({error})"
    try:
        standing = _standing(folder)
        if _sound.get(str(folder)) == standing:
            return None
        there = dict(_files(folder))
        for name in sorted(known.keys() | there.keys()):
            if name not in there and away and name.endswith(WEIGHTS):
                continue
            if name not in there:
                return f"{name} is missing"
            if name not in known:
                return f"{name} does not belong to it"
            if why := file_fault(there[name], known[name], contents and (weights or not name.endswith(WEIGHTS))):
                return f"{name} {why}"
    except OSError as error:
        return f"it cannot be read ({error})"
    if weights and contents:
        _sound[str(folder)] = standing
    return None


def file_fault(path: Path, known: Mapping[str, Any], contents: bool = True) -> str | None:
    """Return how a file differs from what is known of it, its ``entry`` when it was made; without ``contents``, in size alone."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return "is missing"
    if size != known["size"]:
        return f"has {size} bytes, and {known['size']} when it was made"
    if contents and file_hash(path) != known["sha256"]:
        return "has another content than when it was made"
    return None


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the name inside the folder and the path of every file but the seal, in the order of their names."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name != SEAL and not path.is_dir():
            yield name, path


def _standing(folder: Path) -> tuple[Any, ...]:
    """Return what changes when a file does: its size, its times, its place on the disk."""
    states = [(name, os.stat(path)) for name, path in [*_files(folder), (SEAL, folder / SEAL)]]
    return tuple((name, state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino) for name, state in states)


def _checksum(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(dict(body)).encode()).hexdigest()
