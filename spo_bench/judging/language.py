"""What all judges that read texts share: each order is a request, its reply is kept and read, and both make a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal, NamedTuple

from spo_bench.errors import SpoBenchError
from spo_bench.files import canonical_json
from spo_bench.judging.prompt import Form, Side, prompts
from spo_bench.judging.reading import Error, Reading, mean_outcome, read
from spo_bench.judging.store import ReplyStore
from spo_bench.judging.verdict import Question, Verdict

KEY_FORMAT = 2  # raised whenever a reply is asked for in another way, so that kept ones are not mistaken for it
KEY_SHOWN = 16  # hexadecimal digits of a key by which an order names its request
Orders = Literal["both", "one"]


AT_ONCE = 250  # questions rendered at a time; prompts whose replies are kept are not held


class Request(NamedTuple):
    """One order of presentation of one question."""

    first: Side
    prompt: str
    key: str


@dataclass(frozen=True)
class Plan:
    """What is to be asked.

    Attributes:
        orders: a question: (which answer is shown first, key of the request) an order.
        kept: what was said before by key, all with a verdict.
        missing: the requests still to be sent, one a key.
    """

    orders: Sequence[Sequence[tuple[Side, str]]]
    kept: Mapping[str, Said]
    missing: Sequence[Request]


@dataclass(frozen=True)
class Reply:
    """What came back for one request.

    Attributes:
        text, finish_reason, model: as the judge gave them; the model may be a dated version of the one asked for.
        revision: what the endpoint says of the version behind the model's name.
        letters: log-probabilities (nats) of the verdicts A and B, where these were asked for.
        usage: tokens of all requests made for it; None: not reported.
        cost: US dollars of all requests made for it; None: prices are not known.
        parameters: what the last request sent besides the prompt.
        notes: what was sent otherwise than the settings say, and why.
        error, fault: what kind of fault left no reply at all, and why.
    """

    text: str | None = None
    finish_reason: str | None = None
    model: str | None = None
    revision: str | None = None
    letters: Mapping[str, float] | None = None
    usage: Mapping[str, int] | None = None
    cost: float | None = None
    parameters: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    error: Error | None = None
    fault: str | None = None

    def read(self, form: Form) -> Reading:
        """Return what it says; faults come before text."""
        if self.error is not None:
            return Reading(None, self.error, self.fault)
        return read(form, self.text, self.finish_reason, self.letters)

    def record(self) -> dict[str, Any]:
        """Return what is kept of a reply, as JSON values."""
        return {**{name: getattr(self, name) for name in KEPT}, "notes": list(self.notes)}


KEPT = ("text", "finish_reason", "model", "revision", "letters", "usage", "cost", "parameters", "notes")


class Said(NamedTuple):
    """What a reply says, and its record."""

    reading: Reading
    record: Mapping[str, Any]


@dataclass(frozen=True)
class Judged:
    """Verdicts, and how they were come by.

    Attributes:
        verdicts: one a question, in order.
        form: in which they were asked for.
        stopped: why judging ended early; the questions that were not asked are invalid then. None: all were asked.
        calls: requests sent now; kept replies cost none.
        cost: US dollars spent now; None: prices are not known.
        warnings: what a reader should know of the judge.
    """

    verdicts: list[Verdict]
    form: Form
    stopped: SpoBenchError | None = None
    calls: int = 0
    cost: float | None = None
    warnings: tuple[str, ...] = ()


def sides(question: Question, orders: Orders, seed: int) -> tuple[Side, ...]:
    """Return which answer is shown first in each request: both in turn, or one that its prompt and the seed decide."""
    if orders == "both":
        return ("a", "b")
    return ("a",) if sha256(f"{seed}\0{question.prompt}".encode("utf-8", "replace")).digest()[0] % 2 else ("b",)


def plan(
    store: ReplyStore,
    questions: Sequence[Question],
    template: str,
    form: Form,
    orders: Orders,
    seed: int,
    identity: Sequence[Any],
) -> Plan:
    """Return what is to be asked for verdicts on all questions; kept replies without a verdict are asked for again.

    A key holds all that can change a reply: the judge's ``identity`` (model, place, parameters, epoch), the order and the whole
    prompt. How a reply is read is no part of it.
    """
    start = sha256(canonical_json([KEY_FORMAT, form, *identity]).encode())
    found: list[list[tuple[Side, str]]] = []
    before: dict[str, Said] = {}
    missing: dict[str, Request] = {}
    for place in range(0, len(questions), AT_ONCE):
        part = []
        for question in questions[place : place + AT_ONCE]:
            firsts = sides(question, orders, seed)
            asked = []
            for first, prompt in zip(firsts, prompts(template, question, firsts, form, seed), strict=True):
                key = start.copy()
                key.update(f"\0{first}\0{prompt}".encode())
                asked.append((first, key.hexdigest()))
                part.append(Request(first, prompt, asked[-1][1]))
            found.append(asked)
        records = store.replies([request.key for request in part])
        for request in part:
            record = records.get(request.key)
            said = None if record is None else Said(reread(record, form), record)
            if said is not None and said.reading.first is not None:
                before[request.key] = said
            else:
                missing[request.key] = request
    return Plan(found, before, list(missing.values()))


def reread(record: Mapping[str, Any], form: Form) -> Reading:
    """Return what a kept reply says to the present parser."""
    return read(form, record["text"], record["finish_reason"], record["letters"])


def verdicts(questions: Sequence[Question], planned: Plan, now: Mapping[str, Reply], form: Form) -> list[Verdict]:
    """Return one verdict a question from its replies, those kept from before and those of now."""
    fresh = {key: Said(reply.read(form), reply.record()) for key, reply in now.items()}
    found = []
    for question, asked in zip(questions, planned.orders, strict=True):
        orders = [
            order(first, planned.kept.get(key) or fresh[key], form, key in planned.kept, key[:KEY_SHOWN]) for first, key in asked
        ]
        found.append(verdict(question.id, orders, form))
    return found


def order(first: Side, said: Said, form: Form, cached: bool, request: str) -> dict[str, Any]:
    """Return the record of one order; its verdict is in terms of a and b, whichever was shown first.

    ``request`` names the request: orders of equal texts share one, which was paid once.
    """
    reading = said.reading
    score = reading.first if first == "a" or reading.first is None else 1 - reading.first
    return {
        "first": first,
        "request": request,
        "verdict": None if score is None else mean_outcome(score, form),
        "score": score,
        "error": reading.error,
        "reason": reading.reason,
        "form": form,
        **{name: said.record[name] for name in KEPT},
        "cached": cached,
    }


def verdict(name: str, orders: Sequence[Mapping[str, Any]], form: Form) -> Verdict:
    """Average the orders of one question, or say why there is nothing to average."""
    usages = [one["usage"] for one in orders if one["usage"]]
    costs = [one["cost"] for one in orders]
    paid: dict[str, Any] = {
        "usage": {key: sum(usage[key] for usage in usages) for key in usages[0]} if usages else None,
        "cost": None if None in costs else sum(costs),
        "notes": tuple(dict.fromkeys(note for one in orders for note in one["notes"])),
    }
    reasons = [f"{one['first']} shown first: {one['reason']}" for one in orders if one["verdict"] is None]
    if reasons:
        return Verdict(name, "invalid", None, orders, "; ".join(reasons), **paid)
    score = sum(one["score"] for one in orders) / len(orders)
    return Verdict(name, mean_outcome(score, form), score, orders, **paid)


def too_many_invalid(found: Sequence[Verdict], max_invalid: float) -> str | None:
    """Return what is wrong where more than a share of the verdicts is invalid, None where it is not."""
    invalid = [one for one in found if one.outcome == "invalid"]
    if len(invalid) <= max_invalid * len(found):
        return None
    reasons: dict[str, int] = {}
    for one in invalid:
        reasons[one.reason or ""] = reasons.get(one.reason or "", 0) + 1
    most = max(reasons, key=lambda reason: reasons[reason])
    return (
        f"{len(invalid)} of {len(found)} verdicts are invalid, more than max_invalid = {max_invalid:g} allows; the most frequent "
        f"reason ({reasons[most]} times): {most}"
    )
