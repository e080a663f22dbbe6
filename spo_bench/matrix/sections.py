"""The sections of a spec that say under which conditions a matrix is run. Unknown keys are faults, values do not change."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from spo_bench.errors import InputError
from spo_bench.judging.capabilities import address, check_variable
from spo_bench.matrix.faults import brief, fault, from_input_error

LONGEST_LABEL = 120  # characters
_HIDDEN = ("Cc", "Cs", "Zl", "Zp")  # categories of control characters, halves of characters, and line ends
_TURNING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")  # marks that show a text in another order


def check_texts(value: Any, where: str = "") -> None:
    """Refuse texts, of keys too, with characters that no terminal, table or file name should be given.

    Raises:
        a validation error that names the first such text.
    """
    if isinstance(value, str):
        hidden = next((one for one in value if not one.isprintable() and _is_hidden(one)), None)
        if hidden is not None:
            raise fault(
                f"{where or 'a text'} is {brief(value)}, with the character U+{ord(hidden):04X}",
                "texts of a spec are one line, and hold no control characters and no marks that change the order of letters",
                "remove the character",
            )
    elif isinstance(value, Mapping):
        for key, item in value.items():
            check_texts(key, f"a key {f'of {where}' if where else 'here'}")
            check_texts(item, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            check_texts(item, f"{where}[{place}]")


def _is_hidden(letter: str) -> bool:
    return unicodedata.category(letter) in _HIDDEN or unicodedata.bidirectional(letter) in _TURNING


def _shown(label: str) -> str:
    """Refuse a label that does not look in a table like what it is."""
    if not label.isprintable() or label != label.strip() or len(label) > LONGEST_LABEL:
        raise fault(
            f"the label {brief(label)}",
            f"a label is at most {LONGEST_LABEL} visible characters, with no space at its ends",
            "give a plain `label`",
        )
    return label


Count = Annotated[int, Field(strict=True, ge=1)]
Natural = Annotated[int, Field(strict=True, ge=0)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Rate = Annotated[Number, Field(gt=0, le=1)]
Share = Annotated[Number, Field(ge=0, le=1)]
Weight = Annotated[Number, Field(ge=0)]
Flag = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(min_length=1)]
Label = Annotated[Text, AfterValidator(_shown)]
Dtype = Literal["auto", "float32", "bfloat16"]
COLDEST = 0.01  # temperature of drawn answers
MOST_ROWS = 10_000  # of the tables under one model, task and seed; a few short lists have billions of combinations
Schedule = Literal["cosine", "constant", "linear"]


class Section(BaseModel):
    """A part of the spec: unknown keys are faults, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def once(items: Sequence[Any], names: Sequence[str], remedy: str) -> None:
    """Refuse a list that holds something twice."""
    if (name := repeated(names)) is not None:
        raise fault(f"'{name}' is listed twice", "everything in this list is there once", remedy)


def repeated(names: Sequence[str]) -> str | None:
    """Return the first name that stands twice, None where each stands once."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


class Lora(Section):
    """A low-rank adapter that is trained in place of the full weights."""

    rank: Count = Field(16, description="rank of the update")
    alpha: Annotated[Number, Field(gt=0)] = Field(32.0, description="scale: the update is multiplied by alpha / rank")
    dropout: Annotated[Number, Field(ge=0, lt=1)] = Field(0.0, description="dropout before the adapter")
    target_modules: Annotated[tuple[Text, ...], Field(min_length=1)] | Literal["all-linear"] = Field(
        "all-linear", description="names of the modules that get an adapter, or all-linear"
    )


class TrainSpec(Section):
    """Preference training."""

    batch_size: Count = Field(32, description="pairs an optimizer step")
    learning_rate: Share = Field(1e-6, description="peak learning rate; 0 leaves the policy as it is: a control")
    epochs: Annotated[Number, Field(gt=0)] = Field(1.0, description="passes over the training pairs")
    max_steps: Count | None = Field(None, description="optimizer steps; set, it decides the length in place of epochs")
    max_length: Count = Field(1024, description="tokens of prompt and completion together")
    micro_tokens: Count | None = Field(None, description="token budget of one forward pass; null: 1024 on a CPU, 16384 on a GPU")
    lora: Lora | None = Field(None, description="train an adapter; null: the full weights")
    dtype: Dtype = Field("auto", description="compute type; auto: bfloat16 on a GPU, else float32")
    packing: Literal["trie", "separate"] = Field(
        "trie", description="shared prefixes once, or each sequence alone (the reference)"
    )
    warmup: Annotated[Number, Field(ge=0, lt=1)] = Field(0.1, description="share of the steps with a rising learning rate")
    schedule: Schedule = Field("cosine", description="learning rate after the warm-up")
    weight_decay: Weight = Field(0.0, description="decoupled weight decay")
    clip: Annotated[Number, Field(gt=0)] = Field(1.0, description="largest gradient norm")
    gradient_checkpointing: Flag = Field(False, description="compute activations twice to hold fewer")
    devices_per_cell: Count = Field(1, description="devices that train, answer and score together, each a part of every batch")

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        _check_length(self)
        return self


class SftSpec(Section):
    """Supervised fine-tuning on the demonstrations of all tasks, before anything else; every other setting is train's."""

    steps: Natural = Field(0, description="optimizer steps; 0: the model is the SFT policy already")
    batch_size: Count = Field(32, description="demonstrations an optimizer step")
    learning_rate: Rate = Field(2e-5, description="peak learning rate")
    warmup: Annotated[Number, Field(ge=0, lt=1)] = Field(0.1, description="share of the steps with a rising learning rate")


class RewardTraining(Section):
    """How the reward model `trained` is fitted to held-out pairs; every other setting is train's."""

    batch_size: Count = Field(32, description="pairs an optimizer step")
    learning_rate: Rate = Field(1e-5, description="peak learning rate")
    epochs: Annotated[Number, Field(gt=0)] = Field(1.0, description="passes over the held-out pairs")
    max_steps: Count | None = Field(None, description="optimizer steps; set, it decides the length in place of epochs")
    warmup: Annotated[Number, Field(ge=0, lt=1)] = Field(0.1, description="share of the steps with a rising learning rate")
    schedule: Schedule = Field("cosine", description="learning rate after the warm-up")
    weight_decay: Weight = Field(0.0, description="decoupled weight decay")
    clip: Annotated[Number, Field(gt=0)] = Field(1.0, description="largest gradient norm")

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        _check_length(self)
        return self


def _check_length(section: TrainSpec | RewardTraining) -> None:
    """Refuse a length given both in epochs and in steps, of which one would be ignored."""
    if section.max_steps is not None and section.epochs != type(section).model_fields["epochs"].default:
        raise fault(
            f"both epochs {section.epochs:g} and max_steps {section.max_steps}",
            "max_steps decides the length in place of epochs",
            "leave epochs out, or set max_steps: null",
        )


class GenerateSpec(Section):
    """How answers are sampled."""

    max_new_tokens: Count = Field(256, description="longest answer, tokens")
    temperature: Weight = Field(0.7, description="0: greedy; else at least 0.01")
    top_p: Rate = Field(1.0, description="sample from the most probable tokens that hold this share of the probability")
    batch_size: Count = Field(64, description="answers under way at once, at most")
    backend: Literal["transformers", "vllm"] = Field(
        "transformers", description="what answers; vllm: on CUDA, from the extra `spo-bench[vllm]`"
    )

    @field_validator("temperature")
    @classmethod
    def _warm(cls, temperature: float) -> float:
        if 0 < temperature < COLDEST:
            raise fault(
                f"temperature {temperature:g}",
                f"answers are greedy (0), or drawn at {COLDEST} or above: logits over less are beyond what numbers hold",
                f"set 0, or at least {COLDEST}",
            )
        return temperature


class JudgeSpec(Section):
    """Who says which of two answers is better."""

    backend: Literal["gold", "reward", "local", "openai"] = Field(
        description="gold: known reward of controlled tasks; reward: reward model; local: language model; openai: endpoint"
    )
    model: Text | None = Field(None, description="reward model (or `trained`), local model, or the endpoint's model name")
    base_url: Text | None = Field(None, description="address of an OpenAI-compatible endpoint; null: OpenAI's")
    api_key_env: Text = Field("OPENAI_API_KEY", description="environment variable that holds the key")
    verdict: Literal["auto", "json", "text", "logprobs"] = Field(
        "auto", description="form in which the endpoint gives verdicts; auto: a JSON schema where it takes one"
    )
    max_tokens: Count | None = Field(
        None, description="longest reply of the endpoint, tokens; null: enough for its kind of model"
    )
    temperature: Weight | None = Field(None, description="sampling temperature of the endpoint; null: 0 where the model takes it")
    concurrency: Count = Field(32, description="requests under way at once, at most")
    timeout: Annotated[Number, Field(gt=0)] = Field(300.0, description="seconds a reply of the endpoint may take")
    max_calls: Count | None = Field(None, description="most requests a run may send to the endpoint; judging stops there")
    max_cost: Weight | None = Field(
        None, description="most US dollars the judge may cost a run; judging stops there; needs price_input and price_output"
    )
    price_input: Weight | None = Field(None, description="US dollars a million prompt tokens; null: unknown")
    price_output: Weight | None = Field(None, description="US dollars a million completion tokens; null: unknown")
    orders: Literal["both", "one"] = Field(
        "both", description="both: the answers are shown in both orders; one: in one that the prompt's id decides"
    )
    max_invalid: Share = Field(0.05, description="share of a policy's verdicts that may be invalid before its cell fails")
    audit: Natural = Field(100, description="human preferences of the task's data on which the judge is audited; 0: none")

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        backend, colon, model = value.partition(":")
        if value != "gold" and not (backend in ("reward", "local") and model):
            raise fault(f"judge '{value}'", "a judge is gold, reward:MODEL, local:MODEL, or a mapping with backend: openai", "")
        return {"backend": backend, "model": model} if colon else {"backend": backend}

    @field_validator("base_url", "api_key_env")
    @classmethod
    def _no_secret(cls, value: str | None, info: ValidationInfo) -> str | None:
        """Refuse what holds a key, which would be written into the run's files; what is refused is not repeated."""
        try:
            if info.field_name == "api_key_env":
                check_variable(str(value))
            else:
                address(value)
        except InputError as error:
            raise from_input_error(error) from None
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.model is None) != (self.backend == "gold"):
            rule = "the judge gold has no model" if self.backend == "gold" else f"the judge {self.backend} needs a model"
            raise fault(f"backend {self.backend} with model {self.model}", rule)
        extra = sorted(key for key in self.model_fields_set if self.backend not in _who_has(key))
        if extra:
            backends = dict.fromkeys(_who_has(key) for key in extra)
            rules = [_rule(some, [key for key in extra if _who_has(key) == some]) for some in backends]
            raise fault(f"{', '.join(extra)} for the judge {self.backend}", "; ".join(rules), "leave them out")
        priced = [key for key in ("max_cost", "price_input", "price_output") if getattr(self, key) is not None]
        unpriced = [key for key in ("price_input", "price_output") if getattr(self, key) is None]
        if priced and unpriced:
            raise fault(
                f"{' and '.join(priced)} without {' and '.join(unpriced)}",
                "what judging costs is counted from both prices",
                "set price_input and price_output, US dollars a million tokens (0 for an endpoint that costs nothing)",
                priced[0],
            )
        return self

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        return {key: value for key, value in values.items() if self.backend in _who_has(key)}

    def __str__(self) -> str:
        return self.backend if self.model is None else f"{self.backend}:{self.model}"


_JUDGE_KEYS: dict[str, tuple[str, ...]] = {
    "backend": ("gold", "reward", "local", "openai"),
    "model": ("gold", "reward", "local", "openai"),
    "orders": ("local", "openai"),
    "max_invalid": ("local", "openai"),
    "audit": ("reward", "local", "openai"),
}


def _who_has(key: str) -> tuple[str, ...]:
    """Return the backends that have a key of a judge."""
    return _JUDGE_KEYS.get(key, ("openai",))


def _rule(backends: Sequence[str], keys: Sequence[str]) -> str:
    """Return "only the backend openai has max_calls"."""
    several = len(backends) > 1
    return (
        f"only the backend{'s' if several else ''} {' and '.join(backends)} {'have' if several else 'has'} {' and '.join(keys)}"
    )
