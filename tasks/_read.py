"""Records from a local file or a hub data set, with the place of every fault."""

from __future__ import annotations

import difflib
import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spo_bench.errors import InputError, unknown
from spo_bench.files import file_hash

Messages = tuple[Mapping[str, str], ...]
ROLES = ("system", "user", "assistant")

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet")
FORMS = "a local .jsonl, .jsonl.gz, .json (a list of objects) or .parquet file, or a hub id ORG/NAME[:CONFIG][@REVISION]"
_HUB_ID = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?")
_TRAIN, _TEST = ("train", "train_prefs"), ("test", "test_prefs", "validation")


@dataclass(frozen=True)
class Record:
    """One object of a source. ``place`` names its file and row in messages; ``number`` counts from 1."""

    place: str
    number: int
    value: Mapping[str, Any]


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
    path = Path(data).expanduser()
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
    records = []
    for number, value in rows:
        place = f"{path}, row {number}"
        if not isinstance(value, dict):
            raise InputError(f"{place}: {kind(value)}", "a row is a JSON object with named fields", "correct or remove this row")
        records.append(Record(place, number, value))
    if not records:
        raise InputError(
            f"data file '{path}' is empty",
            "a data file holds at least one row",
            "check that it was written or downloaded completely",
        )
    return records


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (line number, value) of a JSON-lines file; empty lines are passed over."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(
            f"data file '{path}' cannot be unpacked ({error})", "a .gz file is complete gzip", "download it again"
        ) from error
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            yield number, _parse(line, f"{path}, row {number}")


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
        return json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(
            f"{place}: not UTF-8 ({error.reason} at byte {error.start})", "text is UTF-8", "convert the file to UTF-8"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: not JSON ({error})", "every row is one JSON object", "correct or remove this row") from error


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) of a parquet file."""
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        yield from enumerate(pq.read_table(path).to_pylist(), start=1)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"data file '{path}' is not parquet ({error})", "a .parquet file is readable by pyarrow", "write or download it again"
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
        name: [Record(f"{data} ({name}), row {n}", n, row) for n, row in enumerate(splits[name], start=1)] for name in used
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
            raise self.fault(
                name, f"missing; the row has {', '.join(map(repr, self.value)) or 'no fields'}", f"a row has the field '{name}'"
            )
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
                raise message.fault("role", repr(message.value["role"]), f"a role is one of {', '.join(ROLES)}")
            messages.append({"role": message.text("role"), "content": message.text("content").strip()})
        return tuple(messages)


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
