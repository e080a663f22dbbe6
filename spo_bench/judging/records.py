"""What a judge leaves in files: a line a verdict, and a summary that says how the verdicts were come by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from spo_bench.errors import InputError
from spo_bench.judging.annotations import pairing_of
from spo_bench.judging.language import KEPT, Said, order, reread, verdict
from spo_bench.judging.prompt import Form, Side
from spo_bench.judging.rates import Pairing, rates
from spo_bench.judging.reading import FROM_TEXT, PARSER, Error, Reading
from spo_bench.judging.rows import field
from spo_bench.judging.verdict import Verdict, invalid_reasons, named

SCHEMA_VERSION = 1
_ENDED = (*FROM_TEXT, "cut", "filtered", None)
"""Errors of orders that have a reply; in the others there is nothing to read."""

_Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: int


class _Order(TypedDict):
    """What is read again of an order, and written again."""

    first: Side
    form: Form
    error: Error | None
    reason: str | None
    cached: bool
    request: NotRequired[str]
    text: str | None
    finish_reason: str | None
    model: str | None
    revision: str | None
    letters: dict[Literal["A", "B"], _Finite] | None
    usage: _Usage | None
    cost: _Finite | None
    parameters: dict[str, Any] | None
    notes: list[str]


_ORDERS = TypeAdapter(list[_Order])


def read_again(record: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return a line of ``verdicts.jsonl`` as the present parser reads its replies; nothing is asked.

    Raises:
        InputError: the line holds no replies of a language model.
    """
    orders: Any = record.get("orders")
    forms = [one["form"] for one in orders if isinstance(one, dict) and "form" in one] if isinstance(orders, list) else []
    if not forms or len(forms) < len(orders):
        raise InputError(
            f"{place}: no replies",
            "only verdicts of a language model hold raw replies in `orders`",
            "give the verdicts.jsonl that `spo-bench judge run` wrote",
        )
    try:
        _ORDERS.validate_python(orders, strict=True)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise InputError(
            f"{place}, orders.{'.'.join(map(str, fault['loc']))}: {fault['msg']}",
            "an order holds its reply as `spo-bench judge run` wrote it",
            "judge these pairs again: replies that are kept cost nothing",
        ) from None
    pairing_of(place, record)
    name = field(place, record, "id", "a verdict has the id of its pair", "judge these pairs again")
    again = []
    for one in orders:
        reading = reread(one, one["form"]) if one["error"] in _ENDED else Reading(None, one["error"], one["reason"])
        again.append(
            order(
                one["first"],
                Said(reading, {name: one[name] for name in KEPT}),
                one["form"],
                one["cached"],
                one.get("request", f"{name} {one['first']}"),
            )
        )
    return {**record, **verdict(name, again, orders[0]["form"]).record()}


def summary(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what lines of ``verdicts.jsonl`` say together: rates in percent (of a), and counts."""
    pairings = [Pairing(row["score"], row["length_a"], row["length_b"], row.get("cluster"), row["outcome"]) for row in records]
    verdicts = [verdict_of(row) for row in records]
    orders = [order for one in verdicts for order in one.orders]
    requests = {
        order.get("request", place): order for place, order in enumerate(orders)
    }  # equal texts are one request, paid once
    costs = [order["cost"] for order in requests.values()]
    usages = [order["usage"] for order in requests.values() if order["usage"]]
    seen = sorted({(one["model"] or "", one["revision"] or "") for one in orders if one["model"] or one["revision"]})
    return {
        "schema_version": SCHEMA_VERSION,
        **rates(pairings).record(),
        **presentation(verdicts),
        "invalid_reasons": invalid_reasons(verdicts),
        "usage": {key: sum(usage[key] for usage in usages) for key in usages[0]} if usages else None,
        "cost": None if None in costs else sum(costs),
        "answered_by": [{"model": model or None, "revision": revision or None} for model, revision in seen],
        "forms": sorted({one["form"] for one in orders}),
        "parser": PARSER,
        "notes": list(dict.fromkeys(note for one in verdicts for note in one.notes)),
    }


def presentation(verdicts: Sequence[Verdict]) -> dict[str, float | None]:
    """Return how the order of presentation bears on verdicts, in percent, None where nothing shows it.

    ``flip_rate``: of the valid verdicts asked in both orders, those whose orders name different answers; ``tie_rate``: of the
    valid verdicts; ``first_shown_rate``: of the orders that name an answer, those that name the one shown first (50: no bias).
    """
    valid = [one for one in verdicts if one.outcome != "invalid"]
    orders = [named(one) for one in valid]
    both = [one for one in orders if len(one) == 2]
    decided = [(first, winner) for one in orders for first, winner in one.items() if winner != "tie"]
    return {
        "flip_rate": _percent(sum(set(one.values()) == {"a", "b"} for one in both), len(both)),
        "tie_rate": _percent(sum(one.outcome == "tie" for one in valid), len(valid)),
        "first_shown_rate": _percent(sum(first == winner for first, winner in decided), len(decided)),
    }


def verdict_of(record: Mapping[str, Any]) -> Verdict:
    """Return the verdict of a line of ``verdicts.jsonl``, or of a run's ``judgments.jsonl``."""
    values = {field.name: record[field.name] for field in fields(Verdict) if field.name in record}
    return Verdict(**{**values, "notes": tuple(record.get("notes") or ())})


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None
