"""What of SPO can be set. The method's paper leaves most of this open: every default is this project's own choice."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

# Raise it whenever the same settings give other copies, another head or another loss: it is part of every training key.
VERSION = 1

Control = Literal["gamma_zero", "random_removal", "shuffled_degrees", "detached_trunk", "length_only"]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, strict=True)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]


class SideGamma(BaseModel):
    """A weight each for the degree loss of chosen and of rejected answers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    chosen: Weight = Field(description="weight of the degree loss of chosen answers")
    rejected: Weight = Field(description="weight of the degree loss of rejected answers")


def _gamma_form(value: Any) -> str:
    """Tell which form of gamma was given, so that a fault gives one message instead of one a form."""
    return "sides" if isinstance(value, SideGamma | Mapping) else "number"


Gamma = Annotated[Annotated[Weight, Tag("number")] | Annotated[SideGamma, Tag("sides")], Discriminator(_gamma_form)]


class SpoSettings(BaseModel):
    """Settings of the SPO augmentation: degraded copies, the head that tells their degree, the loss that is added."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    degrees: int = Field(4, ge=2, le=64, strict=True, description="number of degrees, the intact answer included")
    order: Literal["score_desc", "score_asc", "position", "random"] = Field(
        "score_desc", description="which key content goes first: highest RAKE score, lowest, as it stands in the text, or random"
    )
    unit: Literal["phrase", "word"] = Field("phrase", description="what is removed at a time: a key phrase or one word of it")
    op: Literal["delete", "mask"] = Field("delete", description="delete the unit, or put ___ in its place")
    side: Literal["chosen", "rejected", "both"] = Field("both", description="which answers get degraded copies")
    text: Literal["dataset", "on_policy"] = Field(
        "dataset", description="degrade the data's answers, or answers of the SFT policy"
    )
    layer: int = Field(-1, strict=True, description="hidden states the head reads: -1 the last layer, 0 the embeddings")
    pool: Literal["last_token", "mean_completion"] = Field("mean_completion", description="one vector from a completion's tokens")
    head: Literal["linear", "mlp"] = Field("linear", description="the classifier on that vector")
    head_per_side: bool = Field(False, strict=True, description="one head each for chosen and rejected answers")
    head_learning_rate: float = Field(
        1e-3,
        gt=0,
        allow_inf_nan=False,
        strict=True,
        description="peak learning rate of the head, which starts from random weights",
    )
    loss: Literal["softmax_ce", "ordinal_logit", "regression"] = Field("softmax_ce", description="the degree loss")
    gamma: Gamma = Field(0.1, description="weight of the degree loss; a number, or {chosen: ..., rejected: ...}")
    warmup: int = Field(0, ge=0, strict=True, description="optimizer steps over which gamma grows linearly to its value")
    fractions: tuple[Share, ...] | None = Field(
        None, description="share of key content removed at each degree, from 0 up; null: k / (degrees - 1)"
    )
    control: Control | None = Field(None, description="a control that takes away what SPO is claimed to work by")

    @model_validator(mode="after")
    def _fractions_fit(self) -> Self:
        """Check that removal fractions are 0 = rho_0 < rho_1 < ... <= 1, one a degree."""
        given = self.fractions
        if given is None:
            return self
        if len(given) != self.degrees:
            raise ValueError(f"fractions has {len(given)} values, degrees is {self.degrees}: give one a degree")
        if given[0] != 0 or not all(low < high for low, high in pairwise(given)):
            raise ValueError(f"fractions {list(given)} must start at 0 and rise strictly")
        return self

    @model_validator(mode="after")
    def _on_policy_has_no_sides(self) -> Self:
        """Refuse per-side settings for the policy's own answers, which are neither chosen nor rejected."""
        if self.text == "on_policy" and (self.side != "both" or self.head_per_side or isinstance(self.gamma, SideGamma)):
            raise ValueError(
                "text on_policy goes without side, head_per_side and a gamma for each side: its answers have no side"
            )
        return self

    def rho(self) -> tuple[float, ...]:
        """Return the share of key content removed at each degree, (degrees,)."""
        return self.fractions or tuple(k / (self.degrees - 1) for k in range(self.degrees))

    def gammas(self) -> tuple[float, float]:
        """Return the full weights (chosen, rejected) as the loss uses them: 0 under the control ``gamma_zero``."""
        if self.control == "gamma_zero":
            return 0.0, 0.0
        return (self.gamma.chosen, self.gamma.rejected) if isinstance(self.gamma, SideGamma) else (self.gamma, self.gamma)

    def label(self) -> str:
        """Return the name shown in tables: "+SPO" and what differs from the defaults."""
        control = f"[{self.control}]" if self.control else ""
        differing = []
        for key, field in type(self).model_fields.items():
            value = getattr(self, key)
            if key != "control" and value != field.default:
                differing.append(f"{key}={_short(value)}")
        return f"+SPO{control}" + (f"({', '.join(differing)})" if differing else "")

    def copies(self) -> dict[str, Any]:
        """Return the settings that decide the degraded copies and their labels, as JSON values; the others at their defaults."""
        decide = ("degrees", "order", "unit", "op", "side", "text", "fractions")
        found = {name: value for name, value in self.model_dump(mode="json").items() if name in decide}
        return found | {"control": self.control if self.control in ("random_removal", "shuffled_degrees") else None}

    def draws(self) -> bool:
        """Say whether the degraded copies or their labels are drawn, so that they differ from seed to seed."""
        return self.order == "random" or self.control in ("random_removal", "shuffled_degrees")

    def identity(self) -> dict[str, Any]:
        """Return everything that decides the numbers, as JSON values, for keys and records."""
        return {"version": VERSION, **self.model_dump(mode="json")}


def _short(value: Any) -> str:
    """Write a value of a setting briefly, and never two values alike."""
    if isinstance(value, SideGamma):
        return f"{_short(value.chosen)}/{_short(value.rejected)}"
    if isinstance(value, tuple):
        return "/".join(map(_short, value))
    return str(value).lower() if isinstance(value, bool) else str(value).removesuffix(".0")


def gamma_at(settings: SpoSettings, step: int) -> tuple[float, float]:
    """Return the weights (chosen, rejected) of the degree loss at an optimizer step, counted from 0.

    With a warm-up of n steps the weights are 1/(n+1), 2/(n+1), ... of their value, and full from step n on.
    """
    factor = min(1.0, (step + 1) / (settings.warmup + 1))
    chosen, rejected = settings.gammas()
    return factor * chosen, factor * rejected
