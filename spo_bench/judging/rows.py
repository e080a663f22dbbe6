"""Rows of JSON from a file somebody gives, with the place of every fault."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from spo_bench.errors import InputError
from spo_bench.files import parse_json


def read_rows(path: Path, remedy: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (its place in words, the object) for every row of JSON lines or of one JSON list, plain or gzip; at least one.

    Raises:
        InputError: the file cannot be read, is something else, or is empty; ``remedy`` says what to give.
    """
    text, number = _text(path, remedy), 0
    if text.lstrip().startswith("["):
        try:
            values: Iterator[tuple[int, Any]] = iter(enumerate(parse_json(text), 1))
        except ValueError as error:
            raise InputError(f"{path}: not JSON: {error}", "a file that begins with [ is one JSON list", remedy) from None
    else:
        values = _lines(path, text, remedy)
    for number, value in values:
        place = f"{path}, row {number}"
        if not isinstance(value, dict):
            raise InputError(f"{place}: {shown(value)}", "each row is a JSON object", remedy)
        yield place, value
    if not number:
        raise InputError(f"{path} is empty", "there is at least one row", remedy)


def _lines(path: Path, text: str, remedy: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, parse_json(line)
            except ValueError as error:
                raise InputError(f"{path}, line {number}: not JSON: {error}", "a row is one line of JSON", remedy) from None


def _text(path: Path, remedy: str) -> str:
    if path.is_dir():
        raise InputError(f"{path} is a directory", "rows are read from a file", f"give a file in it; {remedy}")
    try:
        raw = path.read_bytes()
        if raw.startswith(b"\x1f\x8b"):
            raw = gzip.decompress(raw)
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error})", "a file of rows is JSON in UTF-8", remedy) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: broken gzip ({error})", "a file is whole", "make or fetch it again") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}", "the file can be read", "check its name and your rights") from None


def field(place: str, row: Mapping[str, Any], name: str, rule: str, remedy: str, kind: type = object) -> Any:
    """Return a field of a row.

    Raises:
        InputError: it is missing, or not of the kind.
    """
    if name not in row:
        raise InputError(f"{place}: no field '{name}'", rule, remedy)
    if not isinstance(row[name], kind):
        raise InputError(f"{place}: {name} is {shown(row[name])}, not {'a text' if kind is str else kind.__name__}", rule, remedy)
    return row[name]


def is_number(value: Any) -> bool:
    """Return whether a JSON value is a number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def shown(value: Any) -> str:
    """Return a JSON value as it is shown in a message."""
    text = "NaN" if isinstance(value, float) and math.isnan(value) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
