"""How a verdict is read from a reply: how the reply ended comes before what it says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import exp
from typing import Any, Literal

from spo_bench.files import is_too_deep
from spo_bench.judging.prompt import Form

PARSER = 1  # raised whenever a reply may be read in another way; kept replies are then read again, and nothing is asked again
FAINT = 0.01  # probability of both letters below which they say nothing of the answers
LETTERS = ("A", "B")  # verdicts that are asked for by their log-probabilities
MARGIN = 0.02  # mean scores of log-probabilities nearer to 0.5 than this are a tie

Error = Literal["cut", "filtered", "refused", "no_verdict", "off_menu", "too_long", "unreadable", "outage", "not_asked"]
"""Why an order has no verdict: how the reply ended, what it says, or why there is none."""
FROM_TEXT: tuple[Error, ...] = ("no_verdict", "off_menu")
"""What a better parser may still read."""

_MENU: Mapping[str, float] = {"A": 1.0, "B": 0.0, "C": 0.5}
_ANCHORED = re.compile(r"\[\[([^\[\]]*)\]\]")
_DECODER = json.JSONDecoder()
MOST_BRACES = 300  # that begin no object, after which a text is no reply in JSON
MOST_VAIN = 20_000_000  # characters read for such braces, some of them again and again; a reply has fewer
_CUT: tuple[Error, str] = ("cut", "the reply was cut, and so it was with more room; raise max_tokens")
_ENDS: Mapping[str, tuple[Error, str]] = {
    **dict.fromkeys(("length", "max_tokens", "model_length"), _CUT),
    "error": ("cut", "the endpoint failed before the reply's end"),
    "content_filter": ("filtered", "the endpoint's content filter stopped the reply"),
    "tool_calls": ("no_verdict", "the reply is a tool call"),
    "function_call": ("no_verdict", "the reply is a tool call"),
}


@dataclass(frozen=True)
class Reading:
    """What a reply says: the score of the answer shown first (1 it won, 0 it lost, 0.5 neither), or why there is none."""

    first: float | None
    error: Error | None = None
    reason: str | None = None


def read(form: Form, text: str | None, finish_reason: str | None, letters: Mapping[str, float] | None = None) -> Reading:
    """Return the reading of one reply.

    Args:
        form: in which the verdict was asked for.
        text: what the judge wrote.
        finish_reason: how it ended, as the endpoint says; a reply of one letter always ends at its limit.
        letters: log-probabilities (nats) of the verdicts A and B, for the form "logprobs".
    """
    end = _ENDS.get((finish_reason or "").lower())
    if end is not None and not (form == "logprobs" and end is _CUT):
        return Reading(None, *end)
    if form == "logprobs":
        return _read_letters(letters)
    if not text or not text.strip():
        return Reading(None, "no_verdict", "the reply is empty")
    return _read_json(text) if form == "json" else _read_marks(text)


def _read_letters(letters: Mapping[str, float] | None) -> Reading:
    """P(A) / (P(A) + P(B)); a letter that is not among the reported tokens has a probability of nearly 0."""
    if not letters:
        return Reading(None, "no_verdict", "neither A nor B is among the most probable tokens")
    if sum(exp(min(value, 0.0)) for value in letters.values()) < FAINT:
        return Reading(None, "no_verdict", f"A and B together have less than {100 * FAINT:g} % of the probability")
    behind = letters.get("B", -1e9) - letters.get("A", -1e9)
    return Reading(1 / (1 + exp(max(min(behind, 700.0), -700.0))))


def _read_marks(text: str) -> Reading:
    """Only the last anchored mark counts: earlier ones are part of the reasoning. One that is not on the menu is no verdict."""
    marks = _ANCHORED.findall(text)
    if not marks:
        return Reading(None, "no_verdict", "the reply holds no verdict [[A]], [[B]] or [[C]]")
    first = _MENU.get(marks[-1].strip().upper())
    if first is None:
        return Reading(None, "off_menu", f"the verdict [[{marks[-1][:40]}]] is not one of [[A]], [[B]] and [[C]]")
    return Reading(first)


def _read_json(text: str) -> Reading:
    """The last JSON object with the key "verdict" counts; models wrap it into prose or code marks at times.

    Where another such key follows it, a verdict may stand in an object that is broken: then there is none to be had.
    """
    found = [(value, end) for value, end in _objects(text) if "verdict" in value]
    if not found or '"verdict"' in text[found[-1][1] :]:
        return Reading(None, "no_verdict", 'the reply holds no JSON object with the key "verdict"')
    said = found[-1][0]["verdict"]
    first = _MENU.get(said.strip().upper()) if isinstance(said, str) else None
    if first is None:
        return Reading(None, "off_menu", f"the verdict {json.dumps(said)[:40]} is not one of A, B and C")
    return Reading(first)


def _objects(text: str) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield (object, where it ends) for the JSON objects of a text that are not inside one another."""
    place, failed, vain = text.find("{"), 0, 0
    while place != -1 and failed < MOST_BRACES and vain < MOST_VAIN:
        try:
            value, end = _DECODER.raw_decode(text, place)
            if is_too_deep(value):  # else how deep the parser goes would depend on where it is called
                raise RecursionError
        except (ValueError, RecursionError) as error:
            vain += getattr(error, "pos", len(text)) - place
            end, failed = place + 1, failed + 1
        else:
            if isinstance(value, dict):
                yield value, end
        place = text.find("{", end)


def mean_outcome(score: float, form: Form) -> Literal["a", "b", "tie"]:
    """Return who won by a pair's mean score; scores of log-probabilities are never exactly even, so near ones are a tie."""
    margin = MARGIN if form == "logprobs" else 0.0
    return "tie" if abs(score - 0.5) <= margin else "a" if score > 0.5 else "b"
