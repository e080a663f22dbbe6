"""What a judge leaves in files: a line a verdict, and a summary that says how the verdicts were come by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from spo_bench.errors import InputError
from spo_bench.judging.language import KEPT, Said, order, reread, verdict
from spo_bench.judging.prompt import CLOSINGS
from spo_bench.judging.rates import Pairing, rates
from spo_bench.judging.reading import FROM_TEXT, PARSER, Reading
from spo_bench.judging.verdict import Verdict, invalid_reasons, named

SCHEMA_VERSION = 1
_ENDED = (*FROM_TEXT, "cut", "filtered", None)
"""Errors of orders that have a reply; in the others there is nothing to read."""


def read_again(record: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return a line of ``verdicts.jsonl`` as the present parser reads its replies; nothing is asked.

    Raises:
        InputError: the line holds no replies of a language model.
    """
    orders = record.get("orders")
    if not orders or not all(isinstance(one, dict) and one.get("form") in CLOSINGS for one in orders):
        raise InputError(
            f"{place}: no replies",
            "only verdicts of a language model hold raw replies in `orders`",
            "give the verdicts.jsonl that `spo-bench judge run` wrote",
        )
    again = []
    for one in orders:
        for name in (*KEPT, "first", "error", "cached"):
            if name not in one:
                raise InputError(
                    f"{place}: an order without '{name}'",
                    "an order holds its reply as `spo-bench judge run` wrote it",
                    "judge these pairs again: replies that are kept cost nothing",
                )
        reading = reread(one, one["form"]) if one["error"] in _ENDED else Reading(None, one["error"], one["reason"])
        again.append(
            order(
                one["first"],
                Said(reading, {name: one[name] for name in KEPT}),
                one["form"],
                one["cached"],
                one.get("request", f"{record['id']} {one['first']}"),
            )
        )
    return {**record, **verdict(record["id"], again, orders[0]["form"]).record()}


def summary(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what lines of ``verdicts.jsonl`` say together: rates in percent (of a), and counts."""
    pairings = [Pairing(row["score"], row["length_a"], row["length_b"], row["cluster"], row["outcome"]) for row in records]
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
