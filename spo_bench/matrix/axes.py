"""The data axes: changes of the training data that every method and its SPO twin are crossed with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from spo_bench.errors import InputError
from spo_bench.matrix.faults import fault
from spo_bench.matrix.sections import Count, Flag, Natural, Rate, Section, Share, Text, repeated

NONE = "none"
AXES = ("fraction", "label_flip", "holdout", "relabel", "list_size", "regime")
LARGEST_LIST = 16


def _listed(value: Any) -> Any:
    """Return a list for one value."""
    return value if isinstance(value, list | tuple) else (value,)


class Named(Section):
    """A section that may be given, and is written, as its first value alone where the others are plain; null is `none`."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        first = next(iter(cls.model_fields))
        return value if isinstance(value, Mapping | Section) else {first: NONE if value is None else value}

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> Any:
        values: dict[str, Any] = handler(self)
        first, *others = values
        plain = all(getattr(self, key) == type(self).model_fields[key].default for key in others)
        return values[first] if plain else values

    def label(self) -> str | int:
        """Return what is shown in tables: the first value, with the others that differ from their defaults."""
        first, *others = type(self).model_fields
        differing = [
            f"{key}={'+'.join(map(_short, value)) if isinstance(value, tuple) else _short(value)}"
            for key in others
            if (value := getattr(self, key)) != type(self).model_fields[key].default
        ]
        return f"{getattr(self, first)}({', '.join(differing)})" if differing else str(getattr(self, first))


class Relabel(Named):
    """How preference pairs are made into other ones."""

    name: Literal["none", "reward_augmented"] = Field(description="none, or reward_augmented: one pair a goal, two a pair")
    scores: Annotated[str, Field(pattern=r"^(data|implicit|reward:.+)$")] = Field(
        "data", description="quality of the answers: the data's, a DPO policy's implicit rewards, or reward:MODEL"
    )
    goal: Annotated[int, Field(strict=True, ge=1, le=10)] = Field(10, description="goal that evaluation asks for, of 10")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.name == NONE and self.model_fields_set - {"name"}:
            raise fault("scores or goal without relabelling", "only reward_augmented has these keys", "leave them out")
        return self


class Answers(Named):
    """How many answers a prompt has, and where more than two come from."""

    size: Annotated[int, Field(strict=True, ge=2, le=LARGEST_LIST)] = Field(description="answers a prompt")
    source: Literal["data", "degraded"] = Field(
        "data", description="the data's scored answers, or the chosen one and its degraded copies"
    )

    def label(self) -> str | int:
        """Return what is shown in tables: the size, marked where the answers are degraded copies."""
        return self.size if self.source == "data" else f"{self.size} degraded"


class Regime(Named):
    """Where the pairs come from: the data, or the policy's own answers, labelled."""

    name: Literal["offline", "semi_online", "online"] = Field(
        description="offline: the data's pairs; semi_online: own answers, sampled anew every few steps; online: every step"
    )
    every: Count | None = Field(
        None, description="batches of prompts answered in one round: its optimizer steps, times reuse (semi_online)"
    )
    reuse: Count = Field(1, description="passes over a round's pairs")
    samples: Annotated[int, Field(strict=True, ge=0, le=LARGEST_LIST)] = Field(2, description="own answers a prompt")
    human: Flag = Field(False, description="the data's two answers compete with the policy's own")
    greedy: Flag = Field(False, description="the reference's greedy answer competes too, as in SELM")
    models: tuple[Text, ...] = Field((), description="further models whose answers compete, as in TSO: directories or hub ids")
    refresh: Natural = Field(0, description="rounds after which the reference becomes the policy of that time; 0: never")
    labeller: Annotated[str, Field(pattern=r"^(gold|judge|reward:.+)$")] | None = Field(
        None, description="who ranks: gold, reward:MODEL, judge (the spec's); null: gold in controlled worlds, else the judge"
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        extra = sorted(self.model_fields_set - {"name"})
        if self.name == "offline" and extra:
            raise fault(f"{', '.join(extra)} of the offline regime", "it has the data's pairs and no settings", "leave them out")
        if (self.every is not None) != (self.name == "semi_online"):
            given = "without every" if self.every is None else f"with every {self.every}"
            raise fault(
                f"{self.name} {given}", "semi_online says after how many steps it samples anew, online samples every step", ""
            )
        if self.name != "offline" and self.samples + 2 * self.human + self.greedy + len(self.models) < 2:
            raise fault("one answer a prompt", "a preference needs two", "raise samples, or set human or greedy")
        return self


def _short(value: Any) -> str:
    """Return a value for tables: of a path its last part, so that names do not depend on where a model lies."""
    if not isinstance(value, str):
        return str(value).lower() if isinstance(value, bool) else str(value)
    kind, colon, name = value.rpartition(":") if value.startswith("reward:") else ("", "", value)
    return f"{kind}{colon}{Path(name).name}" if Path(name).is_absolute() else value


class Point(Section):
    """One point of the data axes: what a cell's training data is."""

    fraction: float = 1.0
    label_flip: float = 0.0
    holdout: tuple[str, ...] = ()
    relabel: Relabel = Relabel(name="none")
    list_size: Answers = Answers(size=2)
    regime: Regime = Regime(name="offline")

    def axes(self) -> dict[str, Any]:
        """Return what differs from the plain data, for cells, tables and records."""
        shown: dict[str, Any] = {
            "fraction": self.fraction,
            "label_flip": self.label_flip,
            "holdout": "+".join(self.holdout),
            "relabel": self.relabel.label(),
            "list_size": self.list_size.label(),
            "regime": self.regime.label(),
        }
        plain = {"fraction": 1.0, "label_flip": 0.0, "holdout": "", "relabel": NONE, "list_size": 2, "regime": "offline"}
        return {key: value for key, value in shown.items() if value != plain[key]}


def _holdout(value: Any) -> Any:
    """Return domains as a tuple of names; `none` and null are no domain."""
    return () if value in (None, NONE) else (value,) if isinstance(value, str) else value


Holdout = Annotated[tuple[Text, ...], BeforeValidator(_holdout)]


class DataAxes(Section):
    """Changes of the training data that the matrix is crossed with; one value or a list each."""

    fraction: Annotated[tuple[Rate, ...], Field(min_length=1), BeforeValidator(_listed)] = Field(
        (1.0,), description="shares of the training pairs; nested"
    )
    equal: Literal["epochs", "steps"] = Field(
        "epochs", description="what is the same for all fractions: passes over their pairs, or optimizer steps"
    )
    label_flip: Annotated[tuple[Share, ...], Field(min_length=1), BeforeValidator(_listed)] = Field(
        (0.0,), description="shares of the training pairs whose preference is turned round; nested"
    )
    holdout: Annotated[tuple[Holdout, ...], Field(min_length=1), BeforeValidator(_listed)] = Field(
        ((),), description="none; domain (a third of the domains); a domain, or a list of them: evaluated, not trained on"
    )
    relabel: Annotated[tuple[Relabel, ...], Field(min_length=1), BeforeValidator(_listed)] = Field(
        (Relabel(name="none"),), description="none, or reward_augmented"
    )
    list_size: Annotated[tuple[Answers, ...], Field(min_length=1), BeforeValidator(_listed)] = Field(
        (Answers(size=2),), description="answers a prompt, or {size, source: degraded}"
    )
    regime: Annotated[tuple[Regime, ...], Field(min_length=1), BeforeValidator(_listed)] = Field(
        (Regime(name="offline"),), description="offline, semi_online, online, or a mapping"
    )

    @model_validator(mode="after")
    def _once(self) -> Self:
        for name in AXES:
            shown = [str(Point(**{name: value}).axes().get(name, "the plain value")) for value in getattr(self, name)]
            if (twice := repeated(shown)) is not None:
                raise fault(f"'{twice}' is listed twice", "every value of an axis is there once", "remove one", name)
        return self

    def points(self) -> Iterator[Point]:
        """Yield every combination, in the order written."""
        for values in product(*(getattr(self, name) for name in AXES)):
            yield Point(**dict(zip(AXES, values, strict=True)))


def check_point(point: Point) -> None:
    """Raise InputError for a combination of axes that makes no sense, with the reason."""
    changed = point.axes()
    rules = [
        (
            "regime" in changed and {"label_flip", "relabel", "list_size"} & changed.keys(),
            "the policy's own answers are labelled as they are sampled: only offline pairs can be flipped, relabelled or listed",
        ),
        ("relabel" in changed and "list_size" in changed, "a goal belongs to a pair: lists cannot be relabelled"),
        (
            point.relabel.scores == "implicit" and "label_flip" in changed,
            "implicit rewards come from a policy trained on these labels: what would be flipped is no longer one thing",
        ),
    ]
    for broken, rule in rules:
        if broken:
            given = ", ".join(f"{key}={value}" for key, value in changed.items())
            raise InputError(f"data_axes with {given}", rule, "run these axes in matrices of their own")


__all__ = ["Answers", "DataAxes", "Point", "Regime", "Relabel", "check_point"]
