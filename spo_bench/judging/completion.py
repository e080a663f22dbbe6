"""What stands in an endpoint's answers and refusals. Nothing of their shape is taken for granted: servers differ."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from math import exp, inf, log1p
from typing import TYPE_CHECKING, Any

from spo_bench.judging.reading import LETTERS

if TYPE_CHECKING:  # openai takes a second to import
    from openai import APIStatusError

TOO_LONG = ("context_length_exceeded", "context length", "context window", "prompt is too long", "too many tokens")


def refused_parameter(param: object, words: str, sent: Mapping[str, Any]) -> str | None:
    """Return which of the sent parameters a refusal is about, if any: the one it names as such, else one its text speaks of."""
    if any(sign in words.lower() for sign in TOO_LONG):  # names max_tokens at times, but it is the prompt that does not fit
        return None
    if isinstance(param, str) and param not in ("", "None"):
        return param if param in sent else None
    words = re.sub(r"response[ -]format|json_schema", "response_format", words, flags=re.IGNORECASE)
    return next((name for name in sent if re.search(rf"\b{name}\b", words)), None)


def words_of(error: APIStatusError) -> str:
    """Return what the endpoint says about a refusal; a list of faults without the input that some repeat in it."""
    body: Any = error.body
    for name in ("error", "message", "detail"):
        body = body.get(name, body) if isinstance(body, dict) else body
    if isinstance(body, list):
        faults = [one for one in body if isinstance(one, dict)]
        places = [one.get("loc") for one in faults]
        names = [".".join(map(str, place)) if isinstance(place, list) else str(place or "") for place in places]
        body = "; ".join(f"{name}: {one.get('msg')}" for name, one in zip(names, faults, strict=True))
    if isinstance(body, str) and body:
        return body
    return json.dumps(body, default=str) if body else error.message


def text_of(content: object) -> str:
    """Return the text of a message, whose content may be a list of parts."""
    if isinstance(content, list):
        parts = [part for part in content if getattr(part, "type", None) == "text"]
        return "".join(part.text for part in parts if isinstance(getattr(part, "text", None), str))
    return content if isinstance(content, str) else ""


def usage_of(completion: Any) -> dict[str, int] | None:
    """Return the token counts of a completion, where it has both as sensible whole numbers."""
    names = ("prompt_tokens", "completion_tokens")
    given = {name: getattr(getattr(completion, "usage", None), name, None) for name in names}
    counts = {name: count for name, count in given.items() if type(count) is int and 0 <= count < 10**9}
    return counts if len(counts) == len(names) else None


def letters_of(choice: Any) -> dict[str, float] | None:
    """Return the log-probabilities (nats) of the verdict's letters as the reply's first token, where any is reported.

    Several tokens may be the same letter, with and without a space: their probabilities add up.
    """
    content = getattr(getattr(choice, "logprobs", None), "content", None)
    tops = getattr(content[0], "top_logprobs", None) if isinstance(content, list) and content else None
    found: dict[str, float] = {}
    for one in tops if isinstance(tops, list) else ():
        letter, value = str(getattr(one, "token", "")).strip(" ▁Ġ\n"), getattr(one, "logprob", None)
        if letter in LETTERS and isinstance(value, int | float) and value != -inf:
            if not abs(value) < 1e300:  # NaN, infinite, or a whole number that no float holds
                return None  # nobody knows how probable the letter is
            other = found.get(letter)
            # The larger one stands outside the logarithm: endpoints report -9999 for what is as good as impossible.
            found[letter] = float(value) if other is None else max(other, value) + log1p(exp(-abs(other - value)))
    return found or None
