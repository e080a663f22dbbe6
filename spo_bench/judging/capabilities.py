"""What is known of endpoints and models before they are asked: addresses, keys, parameters that a model takes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from spo_bench.errors import InputError
from spo_bench.judging.prompt import Form

OPENAI = "https://api.openai.com/v1"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
LengthName = Literal["max_tokens", "max_completion_tokens"]


@dataclass(frozen=True)
class Capabilities:
    """How a model wants to be asked.

    Attributes:
        form: in which its verdict is asked for.
        length_name: the parameter that limits a reply.
        temperature: whether it takes one.
        notes: what is asked otherwise than usual, because the endpoint would not take it.
    """

    form: Form = "json"
    length_name: LengthName = "max_tokens"
    temperature: bool = True
    notes: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """Return the facts as JSON values."""
        return asdict(self)

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Self:
        """Return the facts of ``record``."""
        return cls(**{**record, "notes": tuple(record["notes"])})

    def without(self, parameter: str) -> Self | None:
        """Return how to ask a model that refuses a parameter, None where there is no other way."""
        if parameter == "max_tokens":
            note = "the model refused max_tokens; the limit was sent as max_completion_tokens"
            return replace(self, length_name="max_completion_tokens", notes=(*self.notes, note))
        if parameter == "temperature":
            note = "the model refused temperature; its own default was used"
            return replace(self, temperature=False, notes=(*self.notes, note))
        return None

    def in_form(self, form: Form, note: str) -> Self:
        """Return the same in another form, with the reason."""
        return replace(self, form=form, notes=(*self.notes, note))


_REASONING = Capabilities(length_name="max_completion_tokens", temperature=False)
# OpenAI's own names only: elsewhere a name says little about what serves it, and refusals are learned.
_KNOWN: tuple[tuple[str, Capabilities], ...] = (
    (r"gpt-5(\.\d+)?-chat|chatgpt-", Capabilities(length_name="max_completion_tokens")),
    (r"o\d|gpt-5", _REASONING),
    (r"gpt-3\.5|gpt-4$|gpt-4-|gpt-4o-2024-05-13", Capabilities(form="text")),  # before schemas were enforced
    (r"gpt-4", Capabilities(length_name="max_completion_tokens")),
)
_ROOM, _REASONING_ROOM = 1024, 8192


def known(model: str, base_url: str | None) -> Capabilities:
    """Return how to ask a model nobody has asked yet."""
    if place(base_url) != place(OPENAI):
        return Capabilities()
    return next((found for pattern, found in _KNOWN if re.match(pattern, model)), Capabilities())


def room(model: str, base_url: str | None) -> int:
    """Return the tokens a reply may have where nobody says: a reasoning model thinks within them."""
    return _ROOM if known(model, base_url).temperature else _REASONING_ROOM


def undated(model: str, base_url: str | None) -> str | None:
    """Return a warning about a model's name that another model may answer to one day, None where it is dated or served here."""
    if is_local(base_url) or re.search(r"20\d\d-?[01]\d-?[0-3]\d|-[01]\d[0-3]\d(?!\d)|-2[4-9][01]\d(?!\d)", model):
        return None
    return (
        f"the judge id '{model}' has no date: the endpoint may serve another model under it one day, and win rates then move by "
        "themselves; name a dated version"
    )


def address(base_url: str | None) -> str:
    """Return an address that can be shown.

    Raises:
        InputError: it is none, or it holds a query or an account, which would be written into the files of a run.
    """
    try:
        parts = urlsplit(base_url or OPENAI)
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    if parts.scheme not in ("http", "https") or not host:
        raise InputError("the judge's base_url is no address", "it starts with http:// or https://", f"for example {OPENAI}")
    if parts.query or parts.fragment:
        raise InputError(
            f"the judge's base_url, an address at {host}, holds a query",
            "requests go to base_url + /chat/completions, and a key comes from the environment only",
            "give the address up to the path (it often ends in /v1)",
        )
    if parts.username or parts.password:
        raise InputError(
            f"the judge's base_url, an address at {host}, holds a user or a password",
            "a key comes from the environment only, never from a file of the run",
            "leave it out of the address, and name the variable that holds it in api_key_env",
        )
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{f':{port}' if port else ''}{parts.path}"


def place(base_url: str | None) -> str:
    """Return what of an address says who answers, for cache keys: ``http://localhost:8000/v1/`` and ``http://127.0.0.1:8000/v1``
    are one place.

    Raises:
        InputError: it is no address.
    """
    parts = urlsplit(address(base_url))
    host = "loopback" if parts.hostname in _LOOPBACK else parts.hostname
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    return f"{host}:{port}{parts.path.rstrip('/')}"


def is_local(base_url: str | None) -> bool:
    """Return whether an endpoint runs on this machine: it needs no key, and bills nobody."""
    return urlsplit(base_url or OPENAI).hostname in _LOOPBACK


def check_variable(api_key_env: str) -> None:
    """Check that what should name the key's variable does not look like the key itself.

    Raises:
        InputError: without what was given.
    """
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", api_key_env):
        raise InputError(
            f"api_key_env holds {len(api_key_env)} characters that are no variable's name",
            "it names the environment variable that holds the key, in capitals; the key itself stands in no file of the run",
            "export JUDGE_KEY=..., and give api_key_env: JUDGE_KEY",
        )


def key_in_environment(api_key_env: str, base_url: str | None) -> str:
    """Return the key, empty for an endpoint on this machine that has none.

    Raises:
        InputError: no key where one is needed, one that no request can carry, or a key in place of its variable's name.
    """
    check_variable(api_key_env)
    key = os.environ.get(api_key_env, "").strip()
    if key and not (key.isascii() and key.isprintable()):
        raise InputError(
            f"the key in {api_key_env} holds a character that no request header can carry",
            "a key is plain ASCII text on one line",
            f"set {api_key_env} again",
        )
    if not key and not is_local(base_url):
        raise InputError(
            f"no key for the judge endpoint {address(base_url)}: the environment variable {api_key_env} is not set",
            "a key comes from the environment only, never from a file of the run",
            f"export {api_key_env}=..., or name the variable that holds it in api_key_env",
        )
    return key
