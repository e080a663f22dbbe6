"""The settings of judges. No heavy import: planning uses this."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from spo_bench.errors import InputError
from spo_bench.judging.capabilities import room
from spo_bench.judging.prompt import Form, check_template
from spo_bench.models.source import layers_and_positions

LONGEST = 8192  # tokens of a question to a judge on this machine; memory grows with it


@dataclass(frozen=True)
class ApiSettings:
    """Which model is asked, where, how, and for how much.

    Attributes:
        model: the endpoint's name of the model.
        template: instructions with the slots {prompt}, {a} and {b}.
        base_url: address of the endpoint; None: OpenAI's.
        api_key_env: environment variable that holds the key; an endpoint on this machine needs none.
        verdict: form in which verdicts are asked for; "auto": a JSON schema where the endpoint takes one, else marks in text,
            else the log-probabilities of the verdict's letter.
        max_tokens: longest reply; None: enough for a few sentences, more for a model that thinks first. A reply that is cut is
            asked for once more with twice as many.
        temperature: of sampling; None: 0 where the model takes it. One that was set is never left out.
        concurrency: most requests under way at once.
        max_cost, max_calls: US dollars and requests that all use of ``budget`` may come to; judging stops before it passes them.
        price_input, price_output: US dollars a million prompt and completion tokens.
        cache: an SQLite file of replies and spending that outlives this run; None: nothing is kept.
        budget: the name under which spending counts together in ``cache``.
        retries: further tries of a request that met a full, faulty or silent endpoint.
        timeout: seconds a reply may take.

    Raises:
        InputError: a template without its slots, or ``max_cost`` without prices.
    """

    model: str
    template: str
    base_url: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    verdict: Literal["auto"] | Form = "auto"
    max_tokens: int | None = None
    temperature: float | None = None
    concurrency: int = 32
    max_cost: float | None = None
    max_calls: int | None = None
    price_input: float | None = None
    price_output: float | None = None
    cache: Path | None = None
    budget: str = ""
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

    @property
    def room(self) -> int:
        """The tokens a reply may have."""
        return room(self.model, self.base_url) if self.max_tokens is None else self.max_tokens


def longest(directory: Path) -> int:
    """Return the most tokens a question may have for a model on this machine."""
    return min(LONGEST, layers_and_positions(directory)[1] or LONGEST)
