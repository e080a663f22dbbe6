"""One OpenAI-compatible endpoint: what is sent to it, what it costs, and what each of its answers and refusals means."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace, TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from spo_bench.errors import InputError, StageError
from spo_bench.judging.capabilities import OPENAI, Capabilities, address, key_in_environment
from spo_bench.judging.completion import TOO_LONG, letters_of, refused_parameter, text_of, usage_of, words_of
from spo_bench.judging.language import Reply
from spo_bench.judging.prompt import SCHEMA
from spo_bench.judging.reading import Error
from spo_bench.judging.settings import ApiSettings
from spo_bench.judging.store import ReplyStore
from spo_bench.judging.traffic import Traffic, asked_wait, backoff

if TYPE_CHECKING:  # openai takes a second to import
    from openai import APIConnectionError, APIStatusError

DEFAULT_TEMPERATURE = 0.0
OUTAGE = 20  # requests in a row without a usable answer, each tried several times, after which judging stops
HOPELESS = 3  # the same where none was ever answered
PATIENCE = 600.0  # seconds; an endpoint that asks for a longer wait is to be asked another day
SECRET_LENGTH = 8  # shorter keys are placeholders such as "none", not secrets
TOP = 20  # tokens whose probability is asked for; endpoints report no more
NOBODY = ("ConnectError", "ConnectTimeout", "UnsupportedProtocol")  # of the HTTP library below the client, whichever it is
UNKNOWN = ("not a valid model", "invalid model", "unknown model", "no such model")
TOO_SHORT = ("max_tokens", "max_completion_tokens", "output limit")  # said by models that cannot think in a token
QUOTA = ("insufficient_quota", "billing_hard_limit_reached", "insufficient balance", "insufficient credits")


class After(NamedTuple):
    """What to do after a request: whether to send it again, after how many seconds (None: as long as usual), and whether that
    counts among its tries.
    """

    repeat: bool
    wait: float | None = None
    counts: bool = True


class Stopped(StageError):  # noqa: N818 - says what judging has done
    """Judging had to stop, and can go on another time.

    Args:
        where: which judge stopped.
        why: what stands in its way.
        remedy: what to do before it goes on.
        kept: whether replies outlive this run.
    """

    def __init__(self, where: str, why: str, remedy: str, kept: bool) -> None:
        self.where, self.why, self.remedy, self.kept = where, why, remedy, kept
        after = "then repeat the command" + ("; replies received so far are kept" if kept else "")
        super().__init__(f"judging with {where} stopped: {why}. Resumable: {remedy}, {after}")

    def __reduce__(self) -> tuple[type[Stopped], tuple[str, str, str, bool]]:
        return type(self), (self.where, self.why, self.remedy, self.kept)


class FormError(InputError):
    """The endpoint does not take the parameters that a form of verdict needs."""


class Endpoint:
    """The endpoint of a judge while requests are under way; an async context.

    Remembers what the model would not take, whether anything ever answered, and how many requests failed in a row.

    Raises:
        InputError: base_url is no address, or there is no key.
    """

    def __init__(self, judge: ApiSettings, store: ReplyStore, how: Capabilities) -> None:
        import openai

        self.judge, self.store, self.how = judge, store, how
        self.key = key_in_environment(judge.api_key_env, judge.base_url)
        self.address = self._clean(address(judge.base_url))
        self.client = openai.AsyncOpenAI(
            api_key=self.key or "none",
            base_url=judge.base_url or OPENAI,
            max_retries=0,  # repeated here, where a refusal also slows down all other requests
            timeout=openai.Timeout(judge.timeout, connect=min(judge.timeout, 10.0)),
        )
        self.traffic = Traffic(judge.concurrency)
        self.calls = 0
        self.cost = self._price(0, 0)
        self.reached = False
        self.halted: Exception | None = None
        self.failed_in_a_row = 0
        self.usable = False
        self.paying = 0
        self.settled = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.client.close()

    async def reply(self, prompt: str) -> Reply:
        """Ask for a reply; one that is cut (then with twice the room) or filtered is asked for once more.

        Raises:
            InputError: the key, the model, the address or a parameter is refused.
            StageError: the budget or the quota is used up, or the endpoint keeps failing.
        """
        tokens, spared = self.judge.room, {"cut", "filtered"}
        reply = await self._tried(prompt, tokens)
        while (ended := reply.read(self.how.form).error) in spared:
            spared.remove(ended)
            tokens *= 2 if ended == "cut" else 1
            again = await self._tried(prompt, tokens)
            # Where the next try has no answer, the end of the one before is the reason to show; all are paid for.
            last = again if again.error is None or again.error in spared else reply
            reply = replace(last, usage=_sum(reply.usage, again.usage), cost=_plus(reply.cost, again.cost))
        self.failed_in_a_row = self.failed_in_a_row + 1 if reply.error in ("outage", "unreadable") else 0
        self.usable = self.usable or reply.error not in ("outage", "unreadable")
        if not self.usable and self.failed_in_a_row >= HOPELESS:
            raise self._unusable(f"gave no usable answer to {HOPELESS} requests; the last: {reply.fault}")
        if self.failed_in_a_row >= OUTAGE:
            raise self._stopped(f"{OUTAGE} requests in a row got no usable answer; the last: {reply.fault}")
        return reply

    async def knock(self, prompt: str) -> str | None:
        """Send one request for one token, once; return the fault of an answer that says nothing of the next ones, None for any
        other. It counts in the budget as every request does.

        Raises:
            InputError, StageError: as ``reply``.
        """
        reply, _ = await self._paid(prompt, 1)
        if reply.error == "unreadable":
            raise self._unusable(f"gave no usable answer: {reply.fault}")
        if reply.error != "outage" or reply.fault is None or any(sign in reply.fault for sign in TOO_SHORT):
            return None
        return reply.fault

    async def _tried(self, prompt: str, tokens: int) -> Reply:
        """Send a request until it is answered or its tries are used up; the cost of all tries counts."""
        cost, tries = self._price(0, 0), 0
        while True:
            async with self.traffic.turn():
                if self.halted is not None:  # judging stopped while this one waited for its turn
                    raise self.halted
                reply, after = await self._paid(prompt, tokens)
            cost = _plus(cost, reply.cost)
            tries += after.counts
            if not after.repeat or tries > self.judge.retries:
                break
            if after.counts:
                await asyncio.sleep(backoff(tries) if after.wait is None else after.wait)
        if not self.reached:
            raise self._unreachable(reply.fault or "")
        return replace(reply, cost=cost)

    async def _paid(self, prompt: str, tokens: int) -> tuple[Reply, After]:
        """Send one request within the budget: reserve an upper estimate, then settle what it cost."""
        # A token is a byte at least; the rest is the schema, and what the endpoint writes around a message.
        estimate = self._price(len(prompt.encode()) + 512, tokens)
        await self._reserve(estimate or 0.0)
        self.paying += 1
        paid = estimate  # until more is known: a request that is cut off may have been billed
        try:
            reply, after = await self._send(prompt, tokens, estimate)
            paid = reply.cost
            return reply, after
        except (InputError, StageError):
            paid = self._price(0, 0)
            raise
        finally:
            self.cost = _plus(self.cost, paid)
            self.store.settle(self.judge.budget, estimate or 0.0, paid or 0.0)
            self.paying -= 1
            self.settled.set()

    async def _reserve(self, estimate: float) -> None:
        """Wait until a request fits the budget; what is under way may turn out cheaper than reserved."""
        judge = self.judge
        while not self.store.reserve(judge.budget, estimate, judge.max_cost, judge.max_calls):
            spent = self.store.spent(judge.budget)
            if judge.max_calls is not None and spent.calls >= judge.max_calls:
                raise self._stopped(f"max_calls {judge.max_calls} requests were sent", "raise max_calls")
            if not self.paying:
                raise self._stopped(
                    f"${spent.dollars:.4f} of max_cost ${judge.max_cost:g} is spent, and the next request may cost "
                    f"${estimate:.4f}",
                    "raise max_cost",
                )
            self.settled.clear()
            await self.settled.wait()

    def _price(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """Return US dollars, None where a price is not known."""
        judge = self.judge
        if judge.price_input is None or judge.price_output is None:
            return None
        return (prompt_tokens * judge.price_input + completion_tokens * judge.price_output) / 1e6

    async def _send(self, prompt: str, tokens: int, estimate: float | None) -> tuple[Reply, After]:
        """Send one request and say what came back.

        Where it is not known whether a request was billed, its cost is the estimate.
        """
        import openai

        sent = self._parameters(tokens)
        # The schema is the same in every request and known by its name.
        said = {key: "verdict (json_schema)" if key == "response_format" else value for key, value in sent.items()}
        nothing = Reply(cost=estimate, parameters=said, notes=self.how.notes)
        unpaid = replace(nothing, cost=self._price(0, 0))
        began = time.monotonic()
        self.calls += 1
        try:
            # Not chat.completions.create: its checks of what is sent and received take a third of the client's time.
            body = {"model": self.judge.model, "messages": [{"role": "user", "content": prompt}], **sent}
            text = await self.client.post("/chat/completions", cast_to=str, body=body)
            completion = json.loads(text, object_hook=lambda fields: SimpleNamespace(**fields))
        except openai.APIConnectionError as error:
            if isinstance(error, openai.APITimeoutError):
                self.traffic.refused(began, None)
            return replace(nothing, error="outage", fault=self._silence(error)), After(repeat=True)
        except openai.APIStatusError as error:
            self.reached = True
            if self._learned(error, sent, tokens):
                return unpaid, After(repeat=True, counts=False)
            kind, fault = self._refusal(error)
            return replace(unpaid, error=kind, fault=fault), self._after(error, began)
        except (ValueError, RecursionError) as error:  # JSON that is none
            self.reached = True
            fault = f"the endpoint's answer is not a chat completion ({type(error).__name__})"
            return replace(nothing, error="unreadable", fault=fault), After(repeat=True)
        self.reached = True
        self.traffic.answered()
        reply = self._read(completion, replace(nothing, notes=self.how.notes))
        return reply, After(repeat=reply.error == "unreadable")

    def _after(self, error: APIStatusError, began: float) -> After:
        """Return whether to send a refused request again; a full endpoint slows down all requests."""
        if error.status_code not in (408, 409, 429) and error.status_code < 500:
            return After(repeat=False)  # the same request would be refused again
        wait = asked_wait(error.response.headers)
        if wait is not None and wait > PATIENCE:
            raise self._stopped(f"the endpoint asks to wait {wait:.0f} seconds", "wait") from None
        if error.status_code in (429, 503, 529):
            self.traffic.refused(began, wait)
        return After(repeat=True, wait=wait)

    def _read(self, completion: Any, nothing: Reply) -> Reply:
        """Return the reply in a completion; the client does not check its shape, so nothing is taken for granted."""
        choices: Any = getattr(completion, "choices", None)
        message = getattr(choices[0], "message", None) if isinstance(choices, list) and choices else None
        if message is None:
            said = getattr(completion, "error", None)
            said = getattr(said, "message", said)
            fault = "the endpoint's answer is not a chat completion" + (f": {self._clean(str(said))}" if said else "")
            return replace(nothing, error="unreadable", fault=fault)
        usage = usage_of(completion)
        refusal, content = getattr(message, "refusal", None), getattr(message, "content", None)
        finish_reason, model = getattr(choices[0], "finish_reason", None), getattr(completion, "model", None)
        revision = getattr(completion, "system_fingerprint", None)
        return replace(
            nothing,
            text=self._clean(text_of(content), None),
            finish_reason=self._clean(str(finish_reason)) if finish_reason else None,
            model=self._clean(model) if isinstance(model, str) else None,
            revision=self._clean(revision) if isinstance(revision, str) else None,
            letters=letters_of(choices[0]) if self.how.form == "logprobs" else None,
            usage=usage,
            cost=self._price(usage["prompt_tokens"], usage["completion_tokens"]) if usage else nothing.cost,
            fault=f"the model refused: {self._clean(str(refusal))}" if refusal else None,
            error="refused" if refusal else None,
        )

    def _parameters(self, tokens: int) -> dict[str, Any]:
        """Return what is sent besides model and prompt, by what was learned so far."""
        temperature = DEFAULT_TEMPERATURE if self.judge.temperature is None else self.judge.temperature
        # A temperature that was set is sent even where it is expected to be refused: that is then said, not hidden.
        wanted = self.how.temperature or self.judge.temperature is not None
        sent: dict[str, Any] = {self.how.length_name: tokens} | ({"temperature": temperature} if wanted else {})
        if self.how.form == "json":
            schema = {"name": "verdict", "strict": True, "schema": SCHEMA}
            sent["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif self.how.form == "logprobs":
            sent |= {self.how.length_name: 1, "logprobs": True, "top_logprobs": TOP}
        return sent

    def _learned(self, error: APIStatusError, sent: Mapping[str, Any], tokens: int) -> bool:
        """Return whether a refusal is about a parameter that is sent in another form, or not at all, from now on."""
        if error.status_code not in (400, 422):
            return False
        name = refused_parameter(error.param, words_of(error), sent)
        # A doubled limit may be more than the model takes at all, which says nothing about the parameter's name.
        if name is None or (name == self.how.length_name and tokens != self.judge.room):
            return False
        if sent == self._parameters(tokens):  # else another request has learned it meanwhile
            self._learn(name, self._clean(words_of(error)))
        return True

    def _learn(self, name: str, said: str) -> None:
        """Send a refused parameter in its other form from now on, or raise where it has none."""
        judge = self.judge
        if name in ("response_format", "logprobs", "top_logprobs"):
            raise FormError(
                f"the judge {judge.model} at {self.address} refuses {name}: {said}",
                f"verdicts in the form {self.how.form} need it",
                "leave verdict out, or set it to text",
            ) from None  # what the endpoint said may hold the key: it is told cleaned, above
        if name == "temperature" and judge.temperature is not None:
            raise InputError(
                f"the judge {judge.model} refuses temperature {judge.temperature:g}: {said}",
                "a temperature that was set is never dropped silently",
                "leave temperature out, or choose another model",
            ) from None
        how = self.how.without(name)
        if how is None:
            raise InputError(
                f"the judge {judge.model} refuses {name} {judge.room}: {said}",
                "the endpoint must take a limit on the length of a reply",
                "lower max_tokens, or choose another model",
            ) from None
        self.how = how

    def _silence(self, error: APIConnectionError) -> str:
        """Say why no answer came; where nobody listens before the first answer of all, the address is wrong: an InputError."""
        cause = error.__cause__ or error
        why = self._clean(str(cause) or type(cause).__name__)
        if not self.reached and type(cause).__name__ in NOBODY:
            raise self._unreachable(why) from None
        return f"no answer from the endpoint: {why}"

    def _unusable(self, what: str) -> InputError:
        return InputError(
            f"the judge endpoint {self.address} {what}",
            "an endpoint answers base_url + /chat/completions with chat completions",
            "check base_url (it often ends in /v1), and what the server says",
        )

    def _unreachable(self, why: str) -> InputError:
        return InputError(
            f"no answer from the judge endpoint {self.address}: {why}",
            "the endpoint must be running and reachable from this machine",
            "start it, or set base_url to its address (it often ends in /v1)",
        )

    def _refusal(self, error: APIStatusError) -> tuple[Error, str]:
        """Return error and fault for an HTTP status about this prompt, or a passing one; raise for one about all requests."""
        judge, status, words = self.judge, error.status_code, words_of(error)
        text = f"{error.code or ''} {error.type or ''} {words}".lower()
        if status in (401, 403):
            given = f"the judge endpoint {self.address} refused the key in {judge.api_key_env} (HTTP {status})"
            remedy = f"put a key of this endpoint into {judge.api_key_env}, or correct api_key_env or base_url"
            raise InputError(given, f"the key must be valid for this endpoint and for the model {judge.model}", remedy) from None
        if status == 404 or error.code == "model_not_found" or (status in (400, 422) and any(sign in text for sign in UNKNOWN)):
            given = f"the judge endpoint {self.address} does not serve '{judge.model}' (HTTP {status}: {self._clean(words)})"
            rule = "the endpoint serves the model under base_url + /chat/completions"
            raise InputError(given, rule, "check the judge's name and base_url (it often ends in /v1)") from None
        if status == 402 or (status == 429 and any(sign in text for sign in QUOTA)):
            raise self._stopped(f"the quota behind the key in {judge.api_key_env} is used up", "top it up") from None
        fault = f"HTTP {status}: {self._clean(words)}"
        if status == 413 or any(sign in text for sign in TOO_LONG):
            return "too_long", f"the question is longer than the model reads ({fault})"
        if "content_filter" in text or "content_policy" in text:
            return "filtered", f"the endpoint's content filter refused the question ({fault})"
        return "outage", fault

    def _stopped(self, why: str, remedy: str = "see to the endpoint") -> Stopped:
        """Return the error for judging that can go on later."""
        return Stopped(f"{self.judge.model} at {self.address}", why, remedy, kept=bool(self.judge.cache))

    def _clean(self, text: str, limit: int | None = 300) -> str:
        """Return text without the key, should the endpoint repeat it, not longer than a message should be, and fit for a file:
        half of a surrogate pair, which JSON can spell and UTF-8 cannot, becomes a question mark.
        """
        text = text.encode("utf-8", "replace").decode()
        if len(self.key) >= SECRET_LENGTH:
            text = text.replace(self.key, "[key]")
        return text if limit is None or len(text) <= limit else text[:limit] + "…"


def _sum(one: Mapping[str, int] | None, other: Mapping[str, int] | None) -> Mapping[str, int] | None:
    if one is None or other is None:
        return one or other
    return {name: one[name] + other[name] for name in one}


def _plus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other
