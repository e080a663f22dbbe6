"""The entries of a spec's ``methods``: a method, its hyperparameters, what is added to it, and its own training settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_serializer, model_validator

from spo_bench.errors import InputError, suggestion
from spo_bench.matrix.faults import as_input_error, brief, fault, from_input_error
from spo_bench.matrix.sections import Label, Section, Text, TrainSpec, once
from spo_bench.methods import SFT, addition_names, check_additions, get_method, resolve, resolve_addition


def named(value: Any, key: str) -> Any:
    """Return a mapping for an entry that was given as its name alone."""
    return {key: value} if isinstance(value, str) else dict(value) if isinstance(value, Mapping) else value


# What a method may set for itself. Everything else decides what all methods share: the rows, the reference, the numbers' type.
PER_METHOD = ("learning_rate", "epochs", "max_steps", "batch_size", "warmup", "schedule", "weight_decay", "clip")


class AdditionSpec(Section):
    """Something added to a method's training, with all its settings."""

    name: Text = Field(description="name of an addition (`spo-bench methods`)")
    settings: dict[str, Any] = Field(description="all of them; written beside the name, defaults filled in")

    @model_validator(mode="before")
    @classmethod
    def _flat_form(cls, value: Any) -> Any:
        value = named(value, "name")
        if not isinstance(value, dict) or not isinstance(name := value.get("name"), str):
            return value
        try:
            return {"name": name, "settings": resolve_addition(name, {str(k): v for k, v in value.items() if k != "name"})}
        except InputError as error:
            raise from_input_error(error) from error

    @model_serializer
    def _as_written(self) -> dict[str, Any]:
        return {"name": self.name, **self.settings}

    def label(self) -> str:
        """Return the name shown in tables, with the settings that differ from the defaults."""
        default = resolve_addition(self.name)
        shown = ", ".join(f"{key}={value:g}" for key, value in self.settings.items() if value != default[key])
        return f"+{self.name}({shown})" if shown else f"+{self.name}"


class MethodSpec(Section):
    """A method with all its hyperparameters and additions, and what its training does differently."""

    name: Text = Field(description="name of a method (`spo-bench methods`)")
    hyperparameters: dict[str, Any] = Field(description="all of them; written beside the name, defaults filled in")
    plus: tuple[AdditionSpec, ...] = Field(
        (), description=f"what is added to it: {', '.join(addition_names())}; `dpo+sft` is short for dpo with plus: [sft]"
    )
    train: dict[str, Any] = Field({}, description=f"what it replaces in the section train: {', '.join(PER_METHOD)}")
    label: Label | Literal[""] = Field(
        "", description="name in tables and for --method; default: the name, and what tells entries of one name apart"
    )

    @model_validator(mode="before")
    @classmethod
    def _flat_form(cls, value: Any) -> Any:
        value = named(value, "name")
        if not isinstance(value, dict) or not isinstance(name := value.get("name"), str):
            return value
        if name == SFT:
            raise fault(
                "'sft' listed as a method",
                "the SFT policy is always a row of its own, because every method is compared with it",
                "leave it out",
            )
        name, *short = (part.strip() for part in name.split("+"))
        if short and "plus" in value:
            raise fault(f"'{value['name']}' with plus", "additions are written in the name or under plus", "write them once")
        own = {key: value[key] for key in ("train", "label", "plus") if key in value} | {"name": name}
        try:
            own["hyperparameters"] = resolve(name, {str(k): v for k, v in value.items() if k not in own})
        except InputError as error:
            raise from_input_error(error) from error
        return {**own, "plus": short} if short else own

    @field_validator("train", mode="before")
    @classmethod
    def _own_training(cls, given: Any) -> dict[str, Any]:
        if not isinstance(given, Mapping):
            raise fault(
                f"given {brief(given)}", "a mapping of keys of the section train", f"for example train: {{{PER_METHOD[0]}: 1e-6}}"
            )
        for key in given:
            if key in TrainSpec.model_fields and key not in PER_METHOD:
                rule = "methods share rows, reference and numerics; one may set " + ", ".join(PER_METHOD)
                raise fault(f"'{key}' for one method", rule, "set it in the section train")
            if key not in PER_METHOD:
                raise fault(f"unknown key '{key}'", "only keys of the section train are known", suggestion(str(key), PER_METHOD))
        try:
            checked = TrainSpec.model_validate(given)
        except ValidationError as error:
            raise from_input_error(as_input_error(error, TrainSpec, lambda path: "of this method")) from error
        own = {key: getattr(checked, key) for key in given}
        # Its own number of epochs sets aside a number of steps meant for all.
        return {**own, "max_steps": None} if "epochs" in own and "max_steps" not in own else own

    @model_validator(mode="after")
    def _additions_fit(self) -> Self:
        names = [one.name for one in self.plus]
        once(names, names, "add it once")
        try:
            check_additions(get_method(self.name), names)
        except InputError as error:
            raise from_input_error(error) from error
        return self

    @model_serializer
    def _as_written(self) -> dict[str, Any]:
        train = {"train": dict(self.train)} if self.train else {}
        plus = {"plus": [one.model_dump() for one in self.plus]} if self.plus else {}
        return {"name": self.name, **self.hyperparameters, **plus, **train, "label": self.label}

    @property
    def full_name(self) -> str:
        """The method with its additions, as tables show it."""
        return self.name + "".join(one.label() for one in self.plus)


def label_methods(entries: Sequence[MethodSpec]) -> tuple[MethodSpec, ...]:
    """Give every entry without a label its method's name, with the values that differ from the default where they tell
    entries of one name apart.
    """
    named: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        named.setdefault(entry.full_name, []).append({**entry.hyperparameters, **entry.train})
    differing = {
        name: {key for key in set().union(*settings) if len({one.get(key) for one in settings}) > 1}
        for name, settings in named.items()
    }
    labelled = []
    for entry in entries:
        default, own = resolve(entry.name), {**entry.hyperparameters, **entry.train}
        telling = [key for key in own if key in differing[entry.full_name] and own[key] != default.get(key)]
        shown = ", ".join(f"{key}={own[key]:g}" if isinstance(own[key], float) else f"{key}={own[key]}" for key in telling)
        labelled.append(
            entry
            if entry.label
            else entry.model_copy(update={"label": f"{entry.full_name}({shown})" if shown else entry.full_name})
        )
    return tuple(labelled)
