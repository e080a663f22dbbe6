"""Files of verdicts: our own (``verdicts.jsonl``, a run's ``judgments.jsonl``) and AlpacaEval's annotations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spo_bench.errors import InputError
from spo_bench.judging.rates import Pairing, Side
from spo_bench.judging.rows import field, is_number, read_rows, shown

OUTCOMES = ("a", "b", "tie", "invalid")
LONGEST = 10**12  # characters of an answer
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
    form = ""
    groups: dict[tuple[str, str], list[Pairing]] = {}
    seen: set[tuple[str, str, str]] = set()
    for place, row in read_rows(path, _REMEDY):
        form = form or _form(path, row)
        if form == "alpaca":
            subject, opponent = (_name(place, row, f"generator_{i}", f"output_{i}") for i in (2, 1))
            pairing = _annotation(place, row)
        else:
            subject, opponent = "a", _name(place, row, "opponent", "b")
            pairing = pairing_of(place, row)
            name = (subject, opponent, str(field(place, row, "id", _OURS, _REMEDY)))
            if name in seen:
                raise InputError(f"{place}: id '{name[2]}' again", "a pair is judged once", "remove one of the two rows")
            seen.add(name)
        groups.setdefault((subject, opponent), []).append(pairing)
    side: Side = "b" if form == "alpaca" else "a"
    return [Judged(subject, opponent, side, pairings) for (subject, opponent), pairings in groups.items()]


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
    raise InputError(f"{path}, row 1: {shown(row)}", f"{_OURS}; {_ALPACA}", _REMEDY)


def _annotation(place: str, row: Mapping[str, Any]) -> Pairing:
    """Return the pairing of one AlpacaEval annotation; the score is output_2's."""
    length_a, length_b = (len(field(place, row, name, _ALPACA, _REMEDY, str)) for name in ("output_1", "output_2"))
    preference = field(place, row, "preference", _ALPACA, _REMEDY)
    if preference is None:
        return Pairing(None, length_a, length_b)
    if not is_number(preference):
        raise InputError(
            f"{place}: preference is {shown(preference)}",
            _ALPACA,
            "write a number from 1 to 2, or null where no verdict was had",
        )
    if preference == 0:
        preference = 1.5
    return Pairing(preference - 1 if 1 <= preference <= 2 else None, length_a, length_b)


def pairing_of(place: str, row: Mapping[str, Any]) -> Pairing:
    """Return the pairing of one of our verdicts; the score is a's. Raises InputError for what is none."""
    outcome, score = field(place, row, "outcome", _OURS, _REMEDY), field(place, row, "score", _OURS, _REMEDY)
    if outcome not in OUTCOMES:
        raise InputError(f"{place}: outcome is {shown(outcome)}", _OURS, "write one of a, b, tie, invalid")
    if score is not None and not (is_number(score) and 0 <= score <= 1):
        raise InputError(f"{place}: score is {shown(score)}", _OURS, "write a number from 0 to 1, or null where invalid")
    if (score is None) != (outcome == "invalid"):
        raise InputError(
            f"{place}: outcome is '{outcome}' and score is {shown(score)}",
            "an invalid verdict, and no other, has the score null",
            "mend the row, or judge again",
        )
    cluster = row.get("cluster")
    if cluster is not None and not isinstance(cluster, (str, int)):
        raise InputError(f"{place}: cluster is {shown(cluster)}", "a cluster is a label: a text or null", "mend the row")
    length_a, length_b = _length(place, row, "length_a"), _length(place, row, "length_b")
    return Pairing(score, length_a, length_b, None if cluster is None else str(cluster), outcome)


def _length(place: str, row: Mapping[str, Any], name: str) -> int | None:
    value = field(place, row, name, _OURS, _REMEDY)
    if value is None:
        return None
    if not is_number(value) or not 0 <= value <= LONGEST or value != value // 1:
        raise InputError(
            f"{place}: {name} is {shown(value)}", "a length is a number of characters, or null", "write a whole number"
        )
    return int(value)


def _name(place: str, row: Mapping[str, Any], key: str, default: str) -> str:
    value = row.get(key)
    if value is None:
        return default
    if not isinstance(value, str):
        raise InputError(f"{place}: {key} is {shown(value)}", "the name of a side is a text", "write its name in quotes")
    return value
