"""A judge behind an OpenAI-compatible endpoint: both orders of presentation, a budget, and replies that are kept."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any, TypeVar, get_args

from spo_bench.errors import SpoBenchError
from spo_bench.files import canonical_json
from spo_bench.judging.api_endpoint import OPENAI, ApiSettings, Endpoint, Reply
from spo_bench.judging.api_store import ReplyStore
from spo_bench.judging.api_text import Side, read_verdict, render
from spo_bench.judging.verdict import Outcome, Question, Verdict

KEY_FORMAT = 1  # raised whenever a reply is asked for in another way, so that kept ones are not mistaken for it
T = TypeVar("T")


@dataclass(frozen=True)
class ApiVerdict(Verdict):
    """A verdict that was paid for.

    Attributes:
        usage: tokens of all requests made for it, ``{"prompt_tokens", "completion_tokens"}``; None: not reported.
        cost: US dollars, when it was asked; None: prices are not known.
        notes: what was asked otherwise than the settings say, because the endpoint would not take it.
    """

    usage: Mapping[str, int] | None = None
    cost: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Request:
    """One order of presentation of one question."""

    question: Question
    first: Side
    prompt: str
    key: str


@dataclass(frozen=True)
class ApiJudge(ApiSettings):
    """A language model behind an endpoint, asked in both orders which answer is better; the score is the mean of the two.

    A question of which an order has no verdict is invalid, with the reason; it is never a tie or a loss.
    """

    def compare(self, questions: Sequence[Question]) -> list[Verdict]:
        """Return one verdict a question (each an ApiVerdict), in order.

        Replies are kept in the cache as they arrive; a later call asks only for what is missing or has no verdict.

        Raises:
            InputError: no key, a key or a model that the endpoint refuses, no such endpoint, a parameter it does not take.
            StageError: ``max_cost`` is reached, the quota is used up, or the endpoint fails over and over.
        """
        return _run(self._compare(questions))

    async def _compare(self, questions: Sequence[Question]) -> list[Verdict]:
        requests = [self._request(question, first) for question in questions for first in get_args(Side)]
        with ReplyStore(self.cache) as store:
            kept = {place: reply for place, request in enumerate(requests) if (reply := _kept(store, request))}
            missing = [place for place in range(len(requests)) if place not in kept]
            asked = await self._ask(requests, missing, store) if missing else {}
        orders = [_order(request.first, (kept | asked)[place], place in kept) for place, request in enumerate(requests)]
        return [_verdict(question, orders[2 * number : 2 * number + 2]) for number, question in enumerate(questions)]

    def _request(self, question: Question, first: Side) -> _Request:
        prompt = render(self.template, question, first, self.seed)
        parameters = {"max_tokens": self.max_tokens, "temperature": self.temperature}
        identity = [KEY_FORMAT, self.model, self.base_url or OPENAI, prompt, parameters, first]
        return _Request(question, first, prompt, sha256(canonical_json(identity).encode("utf-8", "replace")).hexdigest())

    async def _ask(self, requests: Sequence[_Request], places: Sequence[int], store: ReplyStore) -> dict[int, Reply]:
        """Ask for replies, several at once. The first goes alone, so that a refused key or parameter is met only once."""
        replies: dict[int, Reply] = {}
        failures: list[SpoBenchError] = []
        queue = iter(places)

        async def work(endpoint: Endpoint, share: Iterator[int]) -> None:
            for place in share:
                if failures:  # the others finish what they have begun, since it is paid for
                    return
                try:
                    reply = await endpoint.reply(requests[place].prompt)
                except SpoBenchError as error:
                    failures.append(error)
                    return
                replies[place] = reply
                if _shown(reply)[0]:
                    store.keep(requests[place].key, asdict(reply))

        async with Endpoint(self, store) as endpoint:
            await work(endpoint, iter([next(queue)]))
            await asyncio.gather(*(work(endpoint, queue) for _ in range(self.concurrency)))
        if failures:
            raise failures[0]
        return replies


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, also from a notebook, whose thread already runs a loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def _kept(store: ReplyStore, request: _Request) -> Reply | None:
    """Return the kept reply to a request, if a verdict can be read from it."""
    record = store.reply(request.key)
    reply = Reply(**record | {"notes": tuple(record["notes"])}) if record else None
    return reply if reply and _shown(reply)[0] else None


def _shown(reply: Reply) -> tuple[str | None, str | None]:
    """Return (which of the answers shown won, why none): how the reply ended is read before what it says."""
    if reply.fault or reply.text is None:
        return None, reply.fault or "the reply is empty"
    if reply.finish_reason == "length":
        return None, "the reply was cut, and so it was with twice the tokens; raise max_tokens"
    if reply.finish_reason == "content_filter":
        return None, "the endpoint's content filter stopped the reply"
    if reply.finish_reason in ("tool_calls", "function_call"):
        return None, "the reply is a tool call"
    return read_verdict(reply.text)


def _order(first: Side, reply: Reply, cached: bool) -> dict[str, Any]:
    """Return the record of one order; its verdict is in terms of a and b, whichever was shown first."""
    shown, reason = _shown(reply)
    second = "b" if first == "a" else "a"
    verdict = {"first": first, "second": second, "tie": "tie", None: None}[shown]
    record = asdict(reply)
    del record["fault"], record["kind"]
    return {"first": first, "verdict": verdict, "reason": reason, **record, "cached": cached}


def _verdict(question: Question, orders: Sequence[Mapping[str, Any]]) -> ApiVerdict:
    """Average the two orders, or say why there is nothing to average."""
    usages = [order["usage"] for order in orders if order["usage"]]
    usage = {name: sum(one[name] for one in usages) for name in usages[0]} if usages else None
    costs = [order["cost"] for order in orders]
    paid: dict[str, Any] = {
        "usage": usage,
        "cost": None if None in costs else sum(costs),
        "notes": tuple(dict.fromkeys(note for order in orders for note in order["notes"])),
    }
    reasons = [f"{order['first']} shown first: {order['reason']}" for order in orders if order["verdict"] is None]
    if reasons:
        return ApiVerdict(question.id, "invalid", None, orders, "; ".join(reasons), **paid)
    score = sum({"a": 1.0, "b": 0.0, "tie": 0.5}[order["verdict"]] for order in orders) / len(orders)
    outcome: Outcome = "a" if score > 0.5 else "b" if score < 0.5 else "tie"
    return ApiVerdict(question.id, outcome, score, orders, **paid)
