"""What a judge says of two answers to one prompt."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Outcome = Literal["a", "b", "tie", "invalid"]
Watch = Callable[[int, int], None]
"""Is told (requests answered, all that are to be sent) while a judge is at work."""


def unwatched(done: int, total: int) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class Question:
    """Two answers to one prompt; ``row`` is the task's record, for judges that know more than the text."""

    id: str
    prompt: str
    a: str
    b: str
    row: Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """The verdict on one question.

    Attributes:
        id: of the question.
        outcome: which answer is better; "invalid" where no verdict could be had.
        score: 1 = a, 0 = b, 0.5 = tie, values between are a judge's probability of a; None = invalid.
        orders: what was said in each order of presentation.
        reason: why it is invalid.
        usage: tokens of all requests made for it, ``{"prompt_tokens", "completion_tokens"}``; None: not reported.
        cost: US dollars, when it was asked; None: prices are not known, or there are none.
        notes: what was asked otherwise than the settings say, because an endpoint would not take it.
    """

    id: str
    outcome: Outcome
    score: float | None
    orders: Sequence[Mapping[str, Any]] = ()
    reason: str | None = None
    usage: Mapping[str, int] | None = None
    cost: float | None = None
    notes: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """Return the verdict as JSON values."""
        return {**vars(self), "notes": list(self.notes)}


class Judge(Protocol):
    """Anything that compares answers."""

    def compare(self, questions: Sequence[Question]) -> list[Verdict]:
        """Return one verdict a question, in order."""
        ...


def by_value(question: Question, a: float, b: float) -> Verdict:
    """Return the verdict of a judge that gives each answer a number."""
    if a != a or b != b:
        return Verdict(question.id, "invalid", None, [{"a": None, "b": None}], "an answer has no finite value")
    score = 1.0 if a > b else 0.0 if b > a else 0.5
    return Verdict(question.id, "a" if score == 1 else "b" if score == 0 else "tie", score, [{"a": a, "b": b}])


def verdict_record(question: Question, found: Verdict) -> dict[str, Any]:
    """Return a line of ``verdicts.jsonl``: the verdict, the lengths of both answers in characters, and the pair's cluster."""
    lengths = {"length_a": len(question.a), "length_b": len(question.b)}
    return {**found.record(), **lengths, "cluster": question.row.get("cluster")}


def named(verdict: Verdict) -> dict[str, str]:
    """Return the verdict of each order that has one, by the answer it showed first; empty for judges without orders."""
    return {order["first"]: order["verdict"] for order in verdict.orders if order.get("verdict") and "first" in order}


def invalid_reasons(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """Return the number of invalid verdicts by the error of their orders, else by their reason, most frequent first."""
    counts: Counter[str] = Counter()
    for verdict in verdicts:
        if verdict.outcome == "invalid":
            errors = {str(order["error"]) for order in verdict.orders if order.get("error")}
            counts.update(errors or {verdict.reason or "no reason given"})
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def fill(template: str, **slots: str) -> str:
    """Fill named slots in one pass; braces anywhere else, in the template or in the text put in, are text."""
    return re.sub(r"\{(" + "|".join(slots) + r")\}", lambda match: slots[match[1]], template)
