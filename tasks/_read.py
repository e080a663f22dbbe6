"""Records from a local file or a hub data set, with the place of every fault."""

from __future__ import annotations

import difflib
import gzip
import hashlib
import json
import os
import re
import reprlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedIOBase
from itertools import count, islice
from pathlib import Path
from typing import Any

from spo_bench.errors import InputError, unknown
from spo_bench.files import file_hash, parse_json

Messages = tuple[Mapping[str, str], ...]
ROLES = ("system", "user", "assistant")

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet")
FORMS = "a local .jsonl, .jsonl.gz, .json (a list of objects) or .parquet file, or a hub id ORG/NAME[:CONFIG][@REVISION]"
_HUB_ID = re.compile(r"(?!.*\.\.)(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?")
LARGEST = 4_000_000  # bytes of a row: a preference is smaller, and what is larger would take a machine's memory as objects
_TRAIN, _TEST = ("train", "train_prefs"), ("test", "test_prefs", "validation")


@dataclass(frozen=True)
class Record:
    """One object of a source. ``place`` names its file and row in messages; ``number`` counts from 1; ``fault``: why it was not
    read, with no value.
    """

    place: str
    number: int
    value: Mapping[str, Any]
    fault: str | None = None


class _Size(int):
    """The bytes of a row that is too large to be read."""


@dataclass(frozen=True)
class Source:
    """What was read: all records, or those for training, and those of the data's own test split where it has one."""

    identity: Mapping[str, str]
    records: Sequence[Record]
    test: Sequence[Record] | None = None


def local_file(data: str) -> Path | None:
    """Return the local file that ``data`` names, None where it is a hub id.

    Raises:
        InputError: it is a folder, or reads as a path and nothing is there (with the nearest file beside it).
    """
    path = Path(os.path.expanduser(data))  # unlike Path's, it passes over users whom nobody knows
    if path.is_file():
        return path
    if path.is_dir():
        usable = sorted(p.name for p in path.iterdir() if p.name.endswith(SUFFIXES))
        raise InputError(
            f"data '{data}' is a folder",
            f"data is {FORMS}",
            f"name one of its files: {', '.join(usable[:20])}" if usable else "name a data file",
        )
    if _HUB_ID.fullmatch(data) and not data.startswith((".", "~")) and not data.endswith((*SUFFIXES, ".gz", ".csv", ".txt")):
        return None
    if not path.parent.is_dir():
        raise InputError(f"data file '{data}' is not there: no folder '{path.parent}'", f"data is {FORMS}", "check the path")
    near = [p.name for p in sorted(path.parent.iterdir()) if p.is_file()]
    close = difflib.get_close_matches(path.name, near, n=1, cutoff=0.5)
    usable = [name for name in near if name.endswith(SUFFIXES)]
    remedy = f"did you mean '{path.parent / close[0]}'? " if close else ""
    remedy += f"data files in '{path.parent}': {', '.join(usable[:20]) or 'none'}"
    raise InputError(f"data file '{data}' is not there", f"data is {FORMS}", remedy)


def file_identity(path: Path) -> dict[str, str]:
    """Return what a local file is: the SHA-256 of its content, and the ending, which decides how it is read."""
    return {"sha256": file_hash(path), "ending": "".join(path.suffixes[-2:])}


def read(data: str) -> Source:
    """Read a local file or a hub data set.

    Raises:
        InputError: it is not there, cannot be fetched, is empty, or a row is not an object.
    """
    path = local_file(data)
    return _hub(data) if path is None else Source(file_identity(path), _file(path))


def _file(path: Path) -> list[Record]:
    """Return the records of a local file."""
    name = path.name
    if name.endswith((".jsonl", ".jsonl.gz")):
        rows = _lines(path)
    elif name.endswith(".json"):
        rows = _json_list(path)
    elif name.endswith(".parquet"):
        rows = _parquet(path)
    else:
        raise InputError(
            f"data file '{path}'", f"data is {FORMS}", f"convert it, or give it the right ending ({', '.join(SUFFIXES)})"
        )
    records = [_record(f"{path}, row {number}", number, value) for number, value in rows]
    if not records:
        raise InputError(
            f"data file '{path}' is empty",
            "a data file holds at least one row",
            "check that it was written or downloaded completely",
        )
    return records


def _record(place: str, number: int, value: Any) -> Record:
    """Return a row as a record; raises InputError where it is no object."""
    size = value if isinstance(value, _Size) else _size(value)
    if size > LARGEST:
        return Record(place, number, {}, f"the row has {size:,} bytes or more, and at most {LARGEST:,} are read")
    if not isinstance(value, dict):
        raise InputError(f"{place}: {kind(value)}", "a row is a JSON object with named fields", "correct or remove this row")
    return Record(place, number, value)


def _size(value: Any) -> int:
    """Return about the bytes of a JSON value, counted no further than ``LARGEST``: its values and the letters of its texts."""
    size, values = 0, [value]
    while values and size <= LARGEST:
        one = values.pop()
        size += len(one) if isinstance(one, str) else 1
        values += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
    return size


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (line number, value) of a JSON-lines file; empty lines are passed over, and so is the content of too large ones."""
    with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as content:
        for number in count(1):
            line, size = _line(content, path)
            if not size:
                return
            if size > LARGEST:
                yield number, _Size(size)
                continue
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if line.strip():
                yield number, _parse(line, f"{path}, row {number}")


def _line(content: BufferedIOBase, path: Path) -> tuple[bytes, int]:
    """Return the next line, or the beginning of a too large one, and its bytes; none are left at the end of the file."""
    try:
        line = part = content.readline(LARGEST + 1)
        size = len(line)
        while len(part) > LARGEST and not part.endswith(b"\n"):
            part = content.readline(LARGEST + 1)
            size += len(part)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(
            f"data file '{path}' cannot be unpacked ({error})", "a .gz file is complete gzip", "download it again"
        ) from error
    return line, size


def _json_list(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) of a JSON file that holds one list."""
    content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if not content.strip():
        return
    value = _parse(content, str(path))
    if not isinstance(value, list):
        raise InputError(
            f"{path}: {kind(value)}", "a .json data file is one list of objects", "for one object a line, name the file .jsonl"
        )
    yield from enumerate(value, start=1)


def _parse(content: bytes, place: str) -> Any:
    """Return the JSON value of some bytes."""
    try:
        return parse_json(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(
            f"{place}: not UTF-8 ({error.reason} at byte {error.start})", "text is UTF-8", "convert the file to UTF-8"
        ) from error
    except ValueError as error:
        raise InputError(f"{place}: not JSON ({error})", "every row is one JSON object", "correct or remove this row") from error


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) of a parquet file."""
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        table = pq.read_table(path)
        _ = table.column_names
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"data file '{path}' is not parquet ({error})", "a .parquet file is readable by pyarrow", "write or download it again"
        ) from error
    try:
        rows = table.to_pylist()
    except Exception:
        _check_values(path, table)
        raise
    yield from enumerate(rows, start=1)


def _check_values(path: Path, table: Any) -> None:
    """Raise InputError for the first value of a parquet table that Python has none for: a text that is not UTF-8, a far date."""
    for name, column in zip(table.column_names, table.columns):
        for number, value in enumerate(column, start=1):
            try:
                value.as_py()
            except Exception as error:
                raise InputError(
                    f"{path}, row {number}, field '{name}': its value cannot be read ({error})",
                    "a value is one that Python can hold: text in UTF-8, a date of the years 1 to 9999",
                    "correct or remove this row",
                ) from error


def _hub(data: str) -> Source:
    """Return a hub data set: its train split, and its test (else validation) split for evaluation."""
    match = _HUB_ID.fullmatch(data)
    if match is None:
        raise InputError(f"data '{data}'", f"data is {FORMS}", "check the name")
    try:
        splits = _download(match["name"], match["config"], match["revision"])
    except Exception as error:  # the client raises errors of many libraries, down to its own parsers'
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise InputError(
            f"data '{data}' is no local file and could not be read from the hub ({reason})",
            f"data is {FORMS}; the hub needs a network and access, or an earlier download in its cache",
            "check the name and the connection (is HF_HUB_OFFLINE set?); or download a file of it elsewhere and give its path",
        ) from error
    train = next((name for name in _TRAIN if name in splits), None)
    test = next((name for name in _TEST if name in splits), None)
    if train is None:
        if len(splits) != 1:
            raise unknown("split", "train", splits, where=f"data '{data}'")
        train, test = next(iter(splits)), None
    used = [name for name in (train, test) if name is not None]
    records = {
        name: [_record(f"{data} ({name}), row {n}", n, row) for n, row in enumerate(splits[name], start=1)] for name in used
    }
    if not records[train]:
        raise InputError(f"split '{train}' of data '{data}' is empty", "a data set holds at least one row", "choose another")
    state = hashlib.sha256()
    for name in used:
        for record in records[name]:
            state.update(json.dumps([name, record.value], sort_keys=True, default=str).encode())
    return Source({"rows_sha256": state.hexdigest()}, records[train], records[test] if test else None)


def _download(name: str, config: str | None, revision: str | None) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of every split; ``config`` is a configuration's name or, where there is none of it, a folder of the set."""
    import datasets

    try:
        found = datasets.load_dataset(name, config, revision=revision)
    except ValueError:
        if config is None:
            raise
        found = datasets.load_dataset(name, data_dir=config, revision=revision)
    return {str(split): rows.to_list() for split, rows in found.items()}


class Fields:
    """The fields of a record; every structural fault is an InputError that names file, row and field."""

    def __init__(self, record: Record) -> None:
        self.record, self.value, self._path = record, record.value, ""

    def fault(self, name: str, found: str, rule: str) -> InputError:
        """Build the error for a field."""
        return InputError(
            f"{self.record.place}, field '{self._path}{name}': {found}",
            rule,
            "correct or remove this row; see `spo-bench tasks show` for the fields",
        )

    def need(self, name: str) -> Any:
        """Return a field that must be there."""
        if name not in self.value:
            raise self.fault(name, f"missing; the row has {_names(self.value) or 'no fields'}", f"a row has the field '{name}'")
        return self.value[name]

    def text(self, name: str) -> str:
        """Return a field that must be text."""
        return self.text_of(name, self.need(name))

    def text_of(self, name: str, value: Any) -> str:
        """Return the value of a field that must be text."""
        if not isinstance(value, str):
            raise self.fault(name, kind(value), f"'{name}' is text")
        return value

    def inside(self, name: str, index: int | None = None) -> Fields:
        """Return the fields of a nested object (of an item of a list, with ``index``)."""
        value = self.need(name) if index is None else self.need(name)[index]
        place = name if index is None else f"{name}[{index}]"
        if not isinstance(value, dict):
            raise self.fault(place, kind(value), f"'{place}' is an object")
        inner = Fields(self.record)
        inner.value, inner._path = value, f"{self._path}{place}."
        return inner

    def items(self, name: str) -> list[Any]:
        """Return a field that must be a list."""
        value = self.need(name)
        if not isinstance(value, list):
            raise self.fault(name, kind(value), f"'{name}' is a list")
        return value

    def label(self, *names: str) -> str | None:
        """Return the first of these optional fields that is set, as text."""
        for name in names:
            value = self.value.get(name)
            if value is not None:
                if isinstance(value, bool) or not isinstance(value, (str, int)):
                    raise self.fault(name, kind(value), f"'{name}' is text or a whole number")
                return str(value)
        return None

    def numbers(self, *names: str) -> tuple[float, ...] | None:
        """Return optional numeric fields, None unless all are set."""
        values = [self.value.get(name) for name in names]
        if any(value is None for value in values):
            return None
        return tuple(self.number_of(name, value) for name, value in zip(names, values))

    def number_of(self, name: str, value: Any) -> float:
        """Return the value of a field that must be a finite number."""
        # Beyond 1e300 a whole number may not fit a float.
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:
            raise self.fault(name, kind(value), f"'{name}' is a finite number")
        return float(value)

    def messages(self, name: str) -> Messages:
        """Return a field that must be a list of chat messages."""
        value = self.need(name)
        if not isinstance(value, list):
            raise self.fault(name, kind(value), f"'{name}' is text or a list of messages")
        messages = []
        for index in range(len(value)):
            message = self.inside(name, index)
            if message.text("role") not in ROLES:
                raise message.fault("role", reprlib.repr(message.value["role"]), f"a role is one of {', '.join(ROLES)}")
            messages.append({"role": message.text("role"), "content": message.text("content").strip()})
        return tuple(messages)


def _names(fields: Mapping[str, Any]) -> str:
    """Return the first names of fields, as a message has room for them."""
    return ", ".join(map(reprlib.repr, islice(fields, 20)))


def kind(value: Any) -> str:
    """Return what a JSON value is, for a message."""
    names = {
        dict: "an object",
        list: "a list",
        str: "text",
        bool: "a truth value",
        int: "a number",
        float: "a number",
        type(None): "null",
    }
    return f"it is {names.get(type(value), type(value).__name__)}"
