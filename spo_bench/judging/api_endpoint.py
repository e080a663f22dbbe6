"""One OpenAI-compatible endpoint: what is sent to it, what it costs, and what each of its answers and refusals means."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import urlsplit

from spo_bench.errors import InputError, SpoBenchError, StageError
from spo_bench.judging.api_store import ReplyStore
from spo_bench.judging.api_text import check_template

if TYPE_CHECKING:  # openai takes a second to import
    from openai import APIConnectionError, APIStatusError

OPENAI = "https://api.openai.com/v1"
DEFAULT_TEMPERATURE = 0.0
OUTAGE = 3  # requests in a row without a usable answer, each tried several times, after which judging stops
SECRET_LENGTH = 8  # shorter keys are placeholders such as "none", not secrets
QUOTA = ("insufficient_quota", "billing_hard_limit_reached", "insufficient balance", "insufficient credits")
TOO_LONG = ("context_length_exceeded", "context length", "context window", "prompt is too long", "too many tokens")


@dataclass(frozen=True)
class ApiSettings:
    """Which model is asked, where, how, and for how much.

    Attributes:
        model: the endpoint's name of the model.
        template: instructions with the slots {prompt}, {a} and {b}.
        base_url: address of the endpoint; None: OpenAI's.
        api_key_env: environment variable that holds the key; an endpoint on this machine needs none.
        max_tokens: longest reply; a reply that is cut is asked for once more with twice as many.
        temperature: of sampling. Only the default may be left out for a model that takes none.
        concurrency: requests under way at once.
        max_cost: US dollars that all requests of ``budget`` may cost; judging stops before it passes them.
        price_input, price_output: US dollars a million prompt and completion tokens.
        cache: an SQLite file of replies and spending that outlives this run; None: nothing is kept.
        budget: the name under which spending counts together in ``cache``.
        seed: of the marks that fence the answers.
        retries: further tries of a request that met a full, faulty or silent endpoint.
        timeout: seconds a reply may take.

    Raises:
        InputError: a template without its slots, or ``max_cost`` without prices.
    """

    model: str
    template: str
    base_url: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    max_tokens: int = 512
    temperature: float = 0.0
    concurrency: int = 8
    max_cost: float | None = None
    price_input: float | None = None
    price_output: float | None = None
    cache: Path | None = None
    budget: str = ""
    seed: int = 0
    retries: int = 5
    timeout: float = 300.0

    def __post_init__(self) -> None:
        check_template(self.template)
        if self.max_cost is not None and (self.price_input is None or self.price_output is None):
            raise InputError(
                f"max_cost {self.max_cost:g} for the judge {self.model} without its prices",
                "a limit can only be kept where the cost of a request is known",
                "set price_input and price_output, US dollars a million tokens (0 for an endpoint that costs nothing)",
            )


@dataclass(frozen=True)
class Reply:
    """What came back for one prompt.

    Attributes:
        text, finish_reason, model: as the endpoint gave them; the model may be a dated version of the one asked for.
        usage: tokens of all requests made for it; None: not reported.
        cost: US dollars of all requests made for it; None: prices are not known.
        parameters: what the last request sent besides the prompt.
        notes: what was sent otherwise than the settings say, and why.
        fault: why there is no text.
        kind: of the fault: "question" (this prompt is refused), "outage" (the endpoint fails), "unreadable" (not a completion).
    """

    text: str | None
    finish_reason: str | None
    model: str | None
    usage: Mapping[str, int] | None
    cost: float | None
    parameters: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    fault: str | None = None
    kind: Literal["question", "outage", "unreadable"] | None = None


class Endpoint:
    """The endpoint of a judge while requests are under way; an async context.

    Remembers what the model would not take, whether anything ever answered, and how many requests failed in a row.

    Raises:
        InputError: base_url is no address, or there is no key.
    """

    def __init__(self, judge: ApiSettings, store: ReplyStore) -> None:
        import openai

        self.judge, self.store = judge, store
        self.key = key_in_environment(judge.api_key_env, judge.base_url)
        self.address = self._clean(_address(judge.base_url))
        self.client = openai.AsyncOpenAI(
            api_key=self.key or "none",
            base_url=judge.base_url or OPENAI,
            max_retries=judge.retries,  # of 429, 5xx, timeouts and lost connections: backoff with jitter, or Retry-After
            timeout=openai.Timeout(judge.timeout, connect=min(judge.timeout, 10.0)),
        )
        self.length_name = "max_tokens"
        self.sends_temperature = True
        self.notes: tuple[str, ...] = ()
        self.reached = False
        self.failed_in_a_row = 0
        self.paying = 0
        self.settled = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.client.close()

    async def reply(self, prompt: str) -> Reply:
        """Ask for a reply; one that is cut (with twice the tokens) or unreadable is asked for once more.

        Raises:
            InputError: the key, the model, the address or a parameter is refused.
            StageError: the budget or the quota is used up, or the endpoint keeps failing.
        """
        tokens = self.judge.max_tokens
        reply = await self._paid(prompt, tokens)
        if reply.finish_reason == "length" or reply.kind == "unreadable":
            again = await self._paid(prompt, 2 * tokens if reply.finish_reason == "length" else tokens)
            # Where the second try has no answer, the first one's end is the reason to show; both are paid for.
            reply = replace(
                reply if again.fault else again, usage=_sum(reply.usage, again.usage), cost=_plus(reply.cost, again.cost)
            )
        self.failed_in_a_row = self.failed_in_a_row + 1 if reply.kind in ("outage", "unreadable") else 0
        if self.failed_in_a_row >= OUTAGE:
            raise self._stopped(f"{OUTAGE} requests in a row got no usable answer; the last: {reply.fault}")
        return reply

    async def _paid(self, prompt: str, tokens: int) -> Reply:
        """Send one request within the budget: reserve an upper estimate, then settle what it cost."""
        # Three bytes a token is few for ordinary text; the rest is what the endpoint writes around a message.
        estimate = self._price(len(prompt.encode()) // 3 + 32, tokens)
        if estimate is None:
            return await self._send(prompt, tokens, None)
        await self._reserve(estimate)
        self.paying += 1
        paid = estimate  # until more is known: a request that is cut off may have been billed
        try:
            reply = await self._send(prompt, tokens, estimate)
            paid = reply.cost or 0.0
            return reply
        except SpoBenchError:
            paid = 0.0
            raise
        finally:
            self.store.settle(self.judge.budget, estimate, paid)
            self.paying -= 1
            self.settled.set()

    async def _reserve(self, estimate: float) -> None:
        """Wait until a request fits the budget; what is under way may turn out cheaper than reserved."""
        limit = self.judge.max_cost
        while not self.store.reserve(self.judge.budget, estimate, limit):
            if not self.paying:
                spent = self.store.spent(self.judge.budget)
                raise self._stopped(
                    f"${spent:.4f} of max_cost ${limit:g} is spent, and the next request may cost ${estimate:.4f}",
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

    async def _send(self, prompt: str, tokens: int, estimate: float | None) -> Reply:
        """Send one request (the client repeats it after passing faults) and say what came back.

        Where it is not known whether a request was billed, its cost is the estimate.
        """
        import openai

        unpaid = None if estimate is None else 0.0
        nothing = Reply(None, None, None, None, estimate, self._parameters(tokens), self.notes)
        try:
            completion, sent = await self._create(prompt, tokens)
        except openai.APIConnectionError as error:
            return replace(nothing, fault=self._silence(error), kind="outage")
        except openai.APIStatusError as error:
            return replace(nothing, cost=unpaid, **self._refusal(error))
        except (ValueError, openai.APIResponseValidationError) as error:  # JSON that is none, or of another shape
            self.reached = True
            return replace(
                nothing, fault=f"the endpoint's answer is not a chat completion ({type(error).__name__})", kind="unreadable"
            )
        self.reached = True
        return self._read(completion, replace(nothing, parameters=sent, notes=self.notes))

    def _read(self, completion: Any, nothing: Reply) -> Reply:
        """Return the reply in a completion; the client does not check its shape, so nothing is taken for granted."""
        choices: Any = getattr(completion, "choices", None)
        message = getattr(choices[0], "message", None) if isinstance(choices, list) and choices else None
        if message is None:
            said = getattr(completion, "error", None)
            fault = "the endpoint's answer is not a chat completion" + (f": {self._clean(str(said))}" if said else "")
            return replace(nothing, fault=fault, kind="unreadable")
        usage = _usage(completion)
        refusal, content = getattr(message, "refusal", None), getattr(message, "content", None)
        finish_reason, model = getattr(choices[0], "finish_reason", None), getattr(completion, "model", None)
        return replace(
            nothing,
            text=self._clean(content, None) if isinstance(content, str) else "",
            finish_reason=self._clean(str(finish_reason)) if finish_reason else None,
            model=self._clean(model) if isinstance(model, str) else None,
            usage=usage,
            cost=self._price(usage["prompt_tokens"], usage["completion_tokens"]) if usage else nothing.cost,
            fault=f"the model refused: {self._clean(str(refusal))}" if refusal else None,
            kind="question" if refusal else None,
        )

    def _parameters(self, tokens: int) -> dict[str, Any]:
        """Return what is sent besides model and prompt, by what was learned so far."""
        return {self.length_name: tokens} | ({"temperature": self.judge.temperature} if self.sends_temperature else {})

    async def _create(self, prompt: str, tokens: int) -> tuple[Any, dict[str, Any]]:
        """Return (what came back, parameters sent); where the model refuses a parameter, learn its other form once and repeat."""
        import openai

        while True:
            sent = self._parameters(tokens)
            try:
                completion = await self.client.chat.completions.create(
                    model=self.judge.model, messages=[{"role": "user", "content": prompt}], **sent
                )
                return completion, sent
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                self.reached = True
                name = refused_parameter(error.param, _words(error), sent)
                # A doubled limit may be more than the model takes at all, which says nothing about the parameter's name.
                if name is None or (name == self.length_name and tokens != self.judge.max_tokens):
                    raise
                if sent == self._parameters(tokens):  # else another request has learned it meanwhile
                    self._learn(name, self._clean(_words(error)))

    def _learn(self, name: str, said: str) -> None:
        """Send a refused parameter in its other form from now on, or raise where it has none."""
        judge = self.judge
        if name == "max_tokens":
            self.length_name = "max_completion_tokens"
            self.notes += ("the model refused max_tokens; the limit was sent as max_completion_tokens",)
        elif name == "temperature" and judge.temperature == DEFAULT_TEMPERATURE:
            self.sends_temperature = False
            self.notes += ("the model refused temperature; its own default was used",)
        elif name == "temperature":
            rule, remedy = (
                "a temperature that was set is never dropped silently",
                "leave temperature out, or choose another model",
            )
            raise InputError(f"the judge {judge.model} refuses temperature {judge.temperature:g}: {said}", rule, remedy)
        else:
            rule, remedy = "the endpoint must take a limit on the length of a reply", "lower max_tokens, or choose another model"
            raise InputError(f"the judge {judge.model} refuses max_tokens {judge.max_tokens}: {said}", rule, remedy)

    def _silence(self, error: APIConnectionError) -> str:
        """Say why no answer came; before the first answer of all it is the address that is wrong, an InputError."""
        why = self._clean(str(error.__cause__ or error) or type(error.__cause__).__name__)
        if not self.reached:
            raise InputError(
                f"no answer from the judge endpoint {self.address}: {why}",
                "the endpoint must be running and reachable from this machine",
                "start it, or set judge.base_url to its address (it often ends in /v1)",
            ) from None
        return f"no answer from the endpoint: {why}"

    def _refusal(self, error: APIStatusError) -> dict[str, Any]:
        """Return fault and kind for an HTTP status about this prompt, or a passing one; raise for one about all requests."""
        self.reached = True
        judge, status, words = self.judge, error.status_code, _words(error)
        text = f"{error.code or ''} {error.type or ''} {words}".lower()
        if status in (401, 403):
            given = f"the judge endpoint {self.address} refused the key in {judge.api_key_env} (HTTP {status})"
            remedy = f"put a key of this endpoint into {judge.api_key_env}, or correct judge.api_key_env or judge.base_url"
            raise InputError(given, f"the key must be valid for this endpoint and for the model {judge.model}", remedy) from None
        if status == 404 or error.code == "model_not_found":
            given = f"the judge endpoint {self.address} does not serve '{judge.model}' (HTTP {status}: {self._clean(words)})"
            rule = "the endpoint serves the model under base_url + /chat/completions"
            raise InputError(given, rule, "check judge.model and judge.base_url (it often ends in /v1)") from None
        if status == 402 or (status == 429 and any(sign in text for sign in QUOTA)):
            raise self._stopped(f"the quota behind the key in {judge.api_key_env} is used up", "top it up") from None
        if status == 429:
            raise self._stopped(
                f"still too many requests after {judge.retries + 1} tries", "wait, or lower concurrency"
            ) from None
        fault = f"HTTP {status}: {self._clean(words)}"
        if status == 413 or any(sign in text for sign in TOO_LONG):
            return {"fault": f"the question is longer than the model reads ({fault})", "kind": "question"}
        if "content_filter" in text or "content_policy" in text:
            return {"fault": f"the endpoint's content filter refused the question ({fault})", "kind": "question"}
        return {"fault": fault, "kind": "outage"}

    def _stopped(self, why: str, remedy: str = "see to the endpoint") -> StageError:
        """Return the error for judging that can go on later."""
        remedy += ", then repeat the command" + ("; replies received so far are kept" if self.judge.cache else "")
        return StageError(f"judging with {self.judge.model} at {self.address} stopped: {why}. Resumable: {remedy}")

    def _clean(self, text: str, limit: int | None = 300) -> str:
        """Return text without the key, should the endpoint repeat it, and not longer than a message should be."""
        if len(self.key) >= SECRET_LENGTH:
            text = text.replace(self.key, "[key]")
        return text if limit is None or len(text) <= limit else text[:limit] + "…"


def refused_parameter(param: str | None, words: str, sent: Mapping[str, Any]) -> str | None:
    """Return which of the sent parameters a refusal is about, if any: the one it names as such, else one its text speaks of."""
    if any(sign in words.lower() for sign in TOO_LONG):  # names max_tokens at times, but it is the prompt that does not fit
        return None
    if param is not None:
        return param if param in sent else None
    return next((name for name in sent if re.search(rf"\b{name}\b", words)), None)


def key_in_environment(api_key_env: str, base_url: str | None) -> str:
    """Return the key, empty for an endpoint on this machine that has none.

    Raises:
        InputError: no key where one is needed, or one that no request can carry.
    """
    key = os.environ.get(api_key_env, "").strip()
    if key and not (key.isascii() and key.isprintable()):
        raise InputError(
            f"the key in {api_key_env} holds a character that no request header can carry",
            "a key is plain ASCII text on one line",
            f"set {api_key_env} again",
        )
    if not key and urlsplit(base_url or OPENAI).hostname not in ("localhost", "127.0.0.1", "::1"):
        raise InputError(
            f"no key for the judge endpoint {_address(base_url)}: the environment variable {api_key_env} is not set",
            "a key comes from the environment only, never from a file of the run",
            f"export {api_key_env}=..., or name the variable that holds it in judge.api_key_env",
        )
    return key


def _address(base_url: str | None) -> str:
    """Return an address that can be shown: without user, password or query."""
    try:
        parts = urlsplit(base_url or OPENAI)
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    if parts.scheme not in ("http", "https") or not host:
        raise InputError("judge.base_url is no address", "it starts with http:// or https://", f"for example {OPENAI}")
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{f':{port}' if port else ''}{parts.path}"


def _words(error: APIStatusError) -> str:
    """Return what the endpoint says about a refusal."""
    said = error.body.get("message") if isinstance(error.body, dict) else None
    return said if isinstance(said, str) else error.message


def _usage(completion: Any) -> dict[str, int] | None:
    """Return the token counts of a completion, where it has both."""
    counts = {name: getattr(completion.usage, name, None) for name in ("prompt_tokens", "completion_tokens")}
    return {name: count for name, count in counts.items() if isinstance(count, int)} if None not in counts.values() else None


def _sum(one: Mapping[str, int] | None, other: Mapping[str, int] | None) -> Mapping[str, int] | None:
    if one is None or other is None:
        return one or other
    return {name: one[name] + other[name] for name in one}


def _plus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other
