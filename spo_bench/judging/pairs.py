"""Pairs of answers that somebody wants judged: ``{id, prompt, a, b}`` rows, for an audit with the label people gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from spo_bench.errors import InputError
from spo_bench.judging.audit_record import LABELS, Case, Label
from spo_bench.judging.rows import field, read_rows, shown
from spo_bench.judging.verdict import Question
from spo_bench.models.chat import ROLES, plain_text
from spo_bench.task import Row

_RULE = "a row has id, prompt (a text, or messages with role and content), a and b (texts)"
_REMEDY = "give JSON lines with id, prompt, a and b; an audit also needs label: a, b or tie"


def read_questions(path: Path) -> list[Question]:
    """Return the questions of a file of pairs; a row's ``cluster`` stays in ``Question.row``.

    Raises:
        InputError: a row is not a pair, or an id comes twice; names file, row and field.
    """
    found: dict[str, Question] = {}
    for place, row in read_rows(path, _REMEDY):
        question = _question(place, row)
        if question.id in found:
            raise InputError(f"{place}: id '{question.id}' again", "every pair has an id of its own", "rename one of the two")
        found[question.id] = question
    return list(found.values())


def read_cases(path: Path) -> list[Case]:
    """Return the labelled pairs of a file.

    Raises:
        InputError: as ``read_questions``; or a row has no label.
    """
    return [
        Case(question, _label(f"{path}, id '{question.id}'", question.row), question.row.get("cluster"))
        for question in read_questions(path)
    ]


def case_of(row: Row) -> Case:
    """Return a preference as a case; the row's id draws which answer is a, so that neither side is always the better one."""
    chosen_first = sha256(f"audit/{row.id}".encode()).digest()[0] % 2 == 0
    a, b = (row.chosen, row.rejected) if chosen_first else (row.rejected, row.chosen)
    label: Label = "a" if chosen_first else "b"
    return Case(Question(row.id, plain_text(row.prompt), a, b, {}), label, row.cluster)


def is_preferences(path: Path) -> bool:
    """Return whether a file holds preferences (chosen and rejected), which a task reads, in place of pairs.

    Raises:
        InputError: it holds no rows.
    """
    _, row = next(read_rows(path, _REMEDY))
    return "a" not in row and ("chosen" in row or "responses" in row or "summaries" in row)


def _question(place: str, row: Mapping[str, Any]) -> Question:
    name = field(place, row, "id", _RULE, _REMEDY)
    if isinstance(name, bool) or not isinstance(name, (str, int)) or name == "":
        raise InputError(f"{place}: id is {shown(name)}", "an id is a text or a whole number", "give the pair a name")
    prompt = field(place, row, "prompt", _RULE, _REMEDY)
    if not isinstance(prompt, str):
        prompt = plain_text(_messages(place, prompt))
    a, b = (field(place, row, side, _RULE, _REMEDY, str) for side in ("a", "b"))
    cluster = row.get("cluster")
    if isinstance(cluster, bool) or not isinstance(cluster, (str, int, type(None))):
        raise InputError(f"{place}: cluster is {shown(cluster)}", "a cluster is a label: a text or null", "mend the row")
    for label in (name, cluster):
        if isinstance(label, str) and any("\ud800" <= sign <= "\udfff" for sign in label):
            raise InputError(f"{place}: {label!r}", "id and cluster can be written to a file", "mend the half surrogate pair")
    kept = {key: row[key] for key in ("label",) if key in row}
    return Question(str(name), prompt, a, b, {**kept, "cluster": None if cluster is None else str(cluster)})


def _messages(place: str, prompt: Any) -> Sequence[Mapping[str, str]]:
    whole = isinstance(prompt, list) and prompt
    if not whole or not all(isinstance(m, dict) and m.get("role") in ROLES and isinstance(m.get("content"), str) for m in prompt):
        raise InputError(
            f"{place}: prompt is {shown(prompt)}", _RULE, f"write a text, or messages with a role of {', '.join(ROLES)}"
        )
    return list(prompt)


def _label(place: str, row: Mapping[str, Any]) -> Label:
    label = row.get("label")
    if label not in LABELS:
        given = "no label" if "label" not in row else f"label {shown(label)}"
        raise InputError(f"{place}: {given}", "an audit's rows have the label people gave: a, b or tie", "add it to every row")
    found: Label = label
    return found
