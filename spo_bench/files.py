"""Small files, written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

DEEPEST = 200
TOO_DEEP = f"more than {DEEPEST} lists and objects in one another"


def canonical_json(value: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, no NaN (ValueError)."""
    return _CANONICAL.encode(value)


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def write_text(path: Path, text: str) -> None:
    """Write a file beside its final place, then rename it there, so a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def flush(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk and outlives a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # some file systems cannot do this for folders
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all; NaN is a ValueError."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read one JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON value a line, whole or not at all."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def read_jsonl(path: Path) -> Iterator[Any]:
    """Yield one JSON value a line."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.strip():
                yield json.loads(line)


def parse_json(text: str) -> Any:
    """Return the JSON value of a text that somebody gave.

    Raises:
        ValueError: it is none, or has more than ``DEEPEST`` lists and objects in one another: the parser's own limit depends on
            where it is called.
    """
    try:
        value = json.loads(text)
    except (RecursionError, ValueError) as error:
        if isinstance(error, RecursionError) or _opened(text) > DEEPEST:  # whichever the parser meets first
            raise ValueError(TOO_DEEP) from None
        raise
    if is_too_deep(value):
        raise ValueError(TOO_DEEP)
    return value


def _opened(text: str) -> int:
    """Return how many brackets are open at once in a text, at most."""
    depth = most = 0
    for mark in re.findall(r"[\[{\]}]", text):
        depth += 1 if mark in "[{" else -1
        most = max(most, depth)
    return most


def is_too_deep(value: Any) -> bool:
    """Return whether a JSON value has more than ``DEEPEST`` lists and objects in one another."""
    layer = [value]
    for _ in range(DEEPEST):
        layer = [
            item
            for one in layer
            for item in (one.values() if isinstance(one, dict) else one if isinstance(one, list) else ())
            if isinstance(item, dict | list)
        ]
        if not layer:
            return False
    return True


def fingerprint(*texts: str) -> str:
    """Return the SHA-256 of texts, as 64 hex digits; where one ends and the next begins counts too."""
    return hashlib.sha256(canonical_json(texts).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
