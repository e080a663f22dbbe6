"""Files of verdicts: our own (``verdicts.jsonl``, a run's ``judgments.jsonl``) and AlpacaEval's annotations."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spo_bench.errors import InputError
from spo_bench.judging.rates import Pairing, Side

OUTCOMES = ("a", "b", "tie", "invalid")
_REMEDY = "give a file that `spo-bench judge run` wrote, or AlpacaEval annotations"
_OURS = "a line of verdicts has id, outcome (a, b, tie or invalid), score (0 to 1, null where invalid), length_a and length_b"
_ALPACA = "an AlpacaEval annotation has output_1 and output_2 (texts) and preference (1 to 2; null where there is none)"


@dataclass(frozen=True)
class Judged:
    """The verdicts on one subject against one opponent, in the file's order.

    Attributes:
        subject: what the scores speak of: "a", or the name of output_2's generator ("output_2" where the file names none).
        opponent: the name of the other side; "b" or "output_1" where the file names none.
        side: the side of the pairings that is the subject.
        pairings: the scores are the subject's.
    """

    subject: str
    opponent: str
    side: Side
    pairings: Sequence[Pairing]


def read_judged(path: Path) -> list[Judged]:
    """Read a file of verdicts, plain or gzip, JSON lines or a JSON list: one item a pair of subject and opponent, as they come.

    AlpacaEval's preferences are read as its own public numbers read them: 1 = output_1, 2 = output_2, 1.5 and (old files)
    0 = tie, anything between is a share; null, NaN and all beyond [1, 2], such as -1, are invalid. Its side a is output_1,
    its subject output_2.

    Raises:
        InputError: the file holds something else; names file, row and field.
    """
    rows = _rows(path)
    form = _form(path, rows[0])
    groups: dict[tuple[str, str], list[Pairing]] = {}
    seen: set[tuple[str, str, str]] = set()
    for number, row in enumerate(rows, 1):
        place = f"{path}, row {number}"
        if not isinstance(row, dict):
            raise InputError(f"{place}: {_shown(row)}", "each row is a JSON object", _REMEDY)
        if form == "alpaca":
            subject, opponent = (_name(place, row, f"generator_{i}", f"output_{i}") for i in (2, 1))
            pairing = _annotation(place, row)
        else:
            subject, opponent = "a", _name(place, row, "opponent", "b")
            pairing = _verdict(place, row)
            name = (subject, opponent, str(_field(place, row, "id", _OURS)))
            if name in seen:
                raise InputError(f"{place}: id '{name[2]}' again", "a pair is judged once", "remove one of the two rows")
            seen.add(name)
        groups.setdefault((subject, opponent), []).append(pairing)
    side: Side = "b" if form == "alpaca" else "a"
    return [Judged(subject, opponent, side, pairings) for (subject, opponent), pairings in groups.items()]


def _rows(path: Path) -> list[Any]:
    """Return the rows of a JSON list, or of JSON lines; at least one."""
    text = _text(path)
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: not JSON: {error}", "a file that begins with [ is one JSON list", _REMEDY) from None
    else:
        rows = []
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except (ValueError, RecursionError) as error:
                    raise InputError(
                        f"{path}, line {number}: not JSON: {error}", "a file of verdicts is JSON lines or one JSON list", _REMEDY
                    ) from None
    if not rows:
        raise InputError(f"{path} is empty", "a file of verdicts has at least one row", _REMEDY)
    return list(rows)


def _text(path: Path) -> str:
    if path.is_dir():
        raise InputError(
            f"{path} is a directory", "verdicts are read from a file", f"give the file in it, such as {path / 'verdicts.jsonl'}"
        )
    try:
        raw = path.read_bytes()
        if raw.startswith(b"\x1f\x8b"):
            raw = gzip.decompress(raw)
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error})", "a file of verdicts is JSON in UTF-8", _REMEDY) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: broken gzip ({error})", "a file is whole", "make or fetch it again") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}", "the file can be read", "check its name and your rights") from None


def _form(path: Path, row: Any) -> str:
    """Return "ours" or "alpaca" by the first row's fields."""
    keys = set(row) if isinstance(row, dict) else set()
    if keys & {"preference", "output_1", "output_2"}:
        return "alpaca"
    if keys & {"outcome", "score"}:
        return "ours"
    if {"a", "b"} <= keys:
        raise InputError(f"{path} holds pairs without verdicts", _OURS, f"judge them first: spo-bench judge run {path}")
    if keys:
        found = "fields " + ", ".join(sorted(map(str, keys))[:12])
        raise InputError(f"{path}, row 1 has {found}", f"{_OURS}; {_ALPACA}", _REMEDY)
    raise InputError(f"{path}, row 1: {_shown(row)}", f"{_OURS}; {_ALPACA}", _REMEDY)


def _annotation(place: str, row: Mapping[str, Any]) -> Pairing:
    """Return the pairing of one AlpacaEval annotation; the score is output_2's."""
    length_a, length_b = (len(_field(place, row, name, _ALPACA, str)) for name in ("output_1", "output_2"))
    preference = _field(place, row, "preference", _ALPACA)
    if preference is None:
        return Pairing(None, length_a, length_b)
    if not _is_number(preference):
        raise InputError(
            f"{place}: preference is {_shown(preference)}",
            _ALPACA,
            "write a number from 1 to 2, or null where no verdict was had",
        )
    if preference == 0:
        preference = 1.5
    return Pairing(preference - 1 if 1 <= preference <= 2 else None, length_a, length_b)


def _verdict(place: str, row: Mapping[str, Any]) -> Pairing:
    """Return the pairing of one of our verdicts; the score is a's."""
    outcome, score = _field(place, row, "outcome", _OURS), _field(place, row, "score", _OURS)
    if outcome not in OUTCOMES:
        raise InputError(f"{place}: outcome is {_shown(outcome)}", _OURS, "write one of a, b, tie, invalid")
    if score is not None and not (_is_number(score) and 0 <= score <= 1):
        raise InputError(f"{place}: score is {_shown(score)}", _OURS, "write a number from 0 to 1, or null where invalid")
    if (score is None) != (outcome == "invalid"):
        raise InputError(
            f"{place}: outcome is '{outcome}' and score is {_shown(score)}",
            "an invalid verdict, and no other, has the score null",
            "mend the row, or judge again",
        )
    cluster = row.get("cluster")
    if cluster is not None and not isinstance(cluster, (str, int)):
        raise InputError(f"{place}: cluster is {_shown(cluster)}", "a cluster is a label: a text or null", "mend the row")
    length_a, length_b = _length(place, row, "length_a"), _length(place, row, "length_b")
    return Pairing(score, length_a, length_b, None if cluster is None else str(cluster))


def _length(place: str, row: Mapping[str, Any], name: str) -> int | None:
    value = _field(place, row, name, _OURS)
    if value is None:
        return None
    if not _is_number(value) or value != value // 1 or value < 0:
        raise InputError(
            f"{place}: {name} is {_shown(value)}", "a length is a number of characters, or null", "write a whole number"
        )
    return int(value)


def _field(place: str, row: Mapping[str, Any], name: str, rule: str, kind: type = object) -> Any:
    if name not in row:
        raise InputError(f"{place}: no field '{name}'", rule, _REMEDY)
    if not isinstance(row[name], kind):
        raise InputError(f"{place}: {name} is {_shown(row[name])}, not a text", rule, _REMEDY)
    return row[name]


def _name(place: str, row: Mapping[str, Any], field: str, default: str) -> str:
    value = row.get(field)
    if value is None:
        return default
    if not isinstance(value, str):
        raise InputError(f"{place}: {field} is {_shown(value)}", "the name of a side is a text", "write its name in quotes")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    text = "NaN" if isinstance(value, float) and math.isnan(value) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
