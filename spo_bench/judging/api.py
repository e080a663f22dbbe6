"""A judge behind an OpenAI-compatible endpoint: both orders of presentation, a budget, and replies that are kept."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from spo_bench.errors import StageError
from spo_bench.files import canonical_json
from spo_bench.judging.capabilities import Capabilities, known, place, undated
from spo_bench.judging.endpoint import Endpoint, FormError
from spo_bench.judging.language import Judged, Orders, Plan, Reply, Request, plan, verdicts
from spo_bench.judging.prompt import Form, prompts
from spo_bench.judging.settings import ApiSettings
from spo_bench.judging.store import ReplyStore
from spo_bench.judging.verdict import Question, Verdict, Watch, unwatched

NO_SCHEMA = "the endpoint refused response_format; verdicts were read from text"
PROBES = 4  # replies without a verdict, after which another form of asking is tried
HELLO = Question("hello", "Say hello.", "Hello.", "Goodbye.", {})
PATIENCE = 30.0  # seconds for the answer to it
T = TypeVar("T")


class Knock(NamedTuple):
    """What came of a first question.

    Attributes:
        address: of the endpoint.
        fault: why it was not answered, where that may pass; None: nothing stands in the way of the next ones.
        cost: US dollars; none where prices are not known.
    """

    address: str
    fault: str | None
    cost: float


@dataclass(frozen=True)
class ApiJudge(ApiSettings):
    """A language model behind an endpoint, asked in both orders which answer is better; the score is the mean of the two.

    A question of which an order has no verdict is invalid, with the reason; it is never a tie or a loss.

    Attributes:
        orders: "both", or "one" that the prompt and the seed decide; a position bias then averages out over prompts only.
        seed: of the marks that fence the answers, and of which order is the one.
        epoch: replies of one epoch are not used in another: judging again in the next one shows how a judge agrees with itself.
    """

    orders: Orders = "both"
    seed: int = 0
    epoch: int = 0

    def compare(self, questions: Sequence[Question]) -> list[Verdict]:
        """Return one verdict a question, in order.

        Replies are kept in the cache as they arrive; a later call asks only for what is missing or has no verdict.

        Raises:
            InputError: no key, a key or a model that the endpoint refuses, no such endpoint, a parameter it does not take.
            StageError: ``max_cost`` or ``max_calls`` is reached, the quota is used up, or the endpoint fails over and over.
        """
        judged = self.judge(questions)
        if judged.stopped is not None:
            raise judged.stopped
        return judged.verdicts

    def judge(self, questions: Sequence[Question], watch: Watch = unwatched) -> Judged:
        """Return the verdicts with how they were come by; where judging had to stop, the rest is invalid.

        ``watch`` is told (verdicts of orders that are there, all of them).

        Raises:
            InputError: as ``compare``.
        """
        try:
            return _run(self._judge(questions, watch))
        except FormError:
            if not self._turn_to_text():
                raise
            return _run(self._judge(questions, watch))

    def knock(self) -> Knock:
        """Ask one question about two words, for one token: whether the endpoint is there, knows the key and the model, and takes
        what is sent. Nothing is learned from it, and the reply is not kept; it counts in the budget.

        Raises:
            InputError, StageError: as ``compare``.
        """
        return _run(self._knock())

    async def _knock(self) -> Knock:
        with ReplyStore(self.cache) as store:
            how = self._how(store.learned(self._name))
            (prompt,) = prompts(self.template, HELLO, ("a",), how.form, self.seed)
            async with Endpoint(replace(self, timeout=min(self.timeout, PATIENCE)), store, how) as endpoint:
                try:
                    fault = await endpoint.knock(prompt)
                except FormError:
                    if self.verdict != "auto":
                        raise
                    fault = None
                return Knock(endpoint.address, fault, endpoint.cost or 0.0)

    def _turn_to_text(self) -> bool:
        """Learn that an endpoint takes no schema any more, which it took once; say whether that is what was known."""
        with ReplyStore(self.cache) as store:
            facts = store.learned(self._name)
            if self.verdict != "auto" or facts.get("form") != "json":
                return False
            store.learn(self._name, Capabilities.of_record(facts).in_form("text", NO_SCHEMA).record())
            return True

    @property
    def _name(self) -> str:
        """What facts about the model are learned under."""
        return canonical_json([self.model, place(self.base_url), self.verdict])

    async def _judge(self, questions: Sequence[Question], watch: Watch) -> Judged:
        name = self._name
        with ReplyStore(self.cache) as store:
            facts = store.learned(name)
            how = self._how(facts)
            planned = self._plan(store, questions, how.form)
            warning = undated(self.model, self.base_url)
            judged = Judged([], how.form, warnings=(warning,) if warning else ())
            now: dict[str, Reply] = {}
            if planned.missing:
                async with Endpoint(self, store, how) as endpoint:
                    settled = bool(facts)
                    stopped: StageError | None = None
                    if not settled:
                        try:
                            settled = await self._settle(endpoint, store, questions)
                            if settled:  # at once, so that it outlives an interruption
                                store.learn(name, endpoint.how.record())
                        except StageError as error:
                            stopped = error
                        planned = self._plan(store, questions, endpoint.how.form)
                    if stopped is None:
                        stopped = await self._ask(endpoint, store, planned.missing, now, watch)
                    if settled:
                        store.learn(name, endpoint.how.record())
                    judged = replace(judged, form=endpoint.how.form, stopped=stopped, calls=endpoint.calls, cost=endpoint.cost)
                if stopped is not None:
                    rest = Reply(error="not_asked", fault=f"not asked: {stopped}")
                    now = {request.key: rest for request in planned.missing} | now
        found = verdicts(questions, planned, now, judged.form)
        return replace(judged, verdicts=found)

    def has_to_ask(self, questions: Sequence[Question]) -> bool:
        """Say whether any of these would be asked: whether not all of their verdicts are kept."""
        with ReplyStore(self.cache) as store:
            return bool(self._plan(store, questions, self._how(store.learned(self._name)).form).missing)

    def _how(self, facts: Mapping[str, Any]) -> Capabilities:
        """Return how to ask the model, by what was learned of it, if anything was."""
        if facts:
            return Capabilities.of_record(facts)
        how = known(self.model, self.base_url)
        return how if self.verdict == "auto" else replace(how, form=self.verdict)

    def _plan(self, store: ReplyStore, questions: Sequence[Question], form: Form) -> Plan:
        """Return what is to be asked in a form."""
        parameters = {"max_tokens": self.room, "temperature": self.temperature}
        identity = [self.model, place(self.base_url), parameters, self.epoch]
        return plan(store, questions, self.template, form, self.orders, self.seed, identity)

    async def _settle(self, endpoint: Endpoint, store: ReplyStore, questions: Sequence[Question]) -> bool:
        """Find the form in which this model gives verdicts, with a few questions; return whether it was found."""
        if self.verdict != "auto":
            return True
        if endpoint.how.form == "json":
            try:
                found = await self._probe(endpoint, store, questions, 2)
            except FormError:
                endpoint.how = endpoint.how.in_form("text", NO_SCHEMA)
            else:
                if found is not False:
                    return bool(found)
                endpoint.how = endpoint.how.in_form("text", "the reply was no JSON; verdicts were read from text")
        found = await self._probe(endpoint, store, questions, PROBES)
        if found is not False:
            return bool(found)
        in_text = endpoint.how
        endpoint.how = in_text.in_form("logprobs", "replies held no verdict; verdicts were read from log-probabilities")
        try:
            found = await self._probe(endpoint, store, questions, 1)
        except FormError:
            found = False
        if not found:
            endpoint.how = in_text
        return True

    async def _probe(self, endpoint: Endpoint, store: ReplyStore, questions: Sequence[Question], enough: int) -> bool | None:
        """Return whether replies in the endpoint's present form hold verdicts: True with the first that does, False after
        ``enough`` that do not, None where neither was seen in a few questions.
        """
        without, planned = 0, self._plan(store, questions[:PROBES], endpoint.how.form)
        if planned.kept:
            return True  # this form has given verdicts before
        first = {orders[0][1] for orders in planned.orders}  # different pairs, as two orders of one may both be hopeless
        tried = [request for request in planned.missing if request.key in first]
        enough = min(enough, len(tried))
        for request in tried:
            reply = await endpoint.reply(request.prompt)
            _keep(store, request, reply, endpoint.how.form)
            reading = reply.read(endpoint.how.form)
            if reading.first is not None or reading.error == "off_menu":
                return True
            without += reading.error == "no_verdict"
            if without == enough:
                return False
        return None

    async def _ask(
        self,
        endpoint: Endpoint,
        store: ReplyStore,
        missing: Sequence[Request],
        replies: dict[str, Reply],
        watch: Watch,
    ) -> StageError | None:
        """Ask for replies, several at once, and put them into ``replies`` by key; return why it had to stop, if it had.

        The first goes alone, so that a refused key or parameter is met only once.

        Raises:
            InputError: what was given cannot be used at all.
        """
        failures: list[Exception] = []
        queue = iter(missing)

        async def work(share: Iterator[Request]) -> None:
            for request in share:
                if failures:  # the others finish what they have begun, since it is paid for
                    return
                try:
                    reply = await endpoint.reply(request.prompt)
                    replies[request.key] = reply
                    _keep(store, request, reply, endpoint.how.form)
                    watch(len(replies), len(missing))
                except Exception as error:  # noqa: BLE001 - raised below, when the others have come to their end
                    failures.append(error)
                    endpoint.halted = error
                    return

        await work(iter(list(islice(queue, 1))))
        await asyncio.gather(*(work(queue) for _ in range(min(self.concurrency, len(missing)))))
        stops = [error for error in failures if isinstance(error, StageError)]
        for error in failures:
            if error not in stops:
                raise error
        return stops[0] if stops else None


def _keep(store: ReplyStore, request: Request, reply: Reply, form: Form) -> None:
    """Keep what is a reply at all, also without a verdict: a better parser may find one. It never takes the place of a verdict,
    which another process may have had meanwhile.
    """
    if reply.error is None:
        store.keep(request.key, reply.record(), replace=reply.read(form).first is not None)


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, also from a notebook, whose thread already runs a loop."""
    done: list[T] = []

    async def hold() -> None:  # asyncio's signal handling prints the finished task: its result must not be 100,000 verdicts
        done.append(await work)

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(hold())
    else:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, hold()).result()
    return done[0]
