"""gate.yaml: which metrics are guarded, which way is better, and how large a decline is still none."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError

from spo_bench.errors import InputError, suggestion
from spo_bench.matrix.faults import as_input_error
from spo_bench.matrix.load import parse_yaml, place_in
from spo_bench.matrix.sections import Number, Section, Share
from spo_bench.report.names import is_share

FILE = "gate.yaml"
Family = Literal["evaluation", "retraining"]
FAMILIES: tuple[Family, ...] = ("evaluation", "retraining")

BOUNDED = {"retraining": 0.10, "evaluation": 0.02}
"""Built-in margins of metrics that lie in [0, 1]."""
RELATIVE = {"retraining": 0.50, "evaluation": 0.05}
"""Built-in margins of all others, as a share of the spread of the reference's values over prompts."""
_REMEDY = "docs/nightly.md, Margins"
_PATTERN = re.compile(r"[*?\[]")
MAX_INVALID = 0.05
"""Built-in share of the reference's values that may be invalid in a run."""
_UNIT = ("true_reward", "rouge_l", "distinct_2")


class Margin(Section):
    """How one metric is guarded; margins are in its own unit."""

    better: Literal["higher", "lower"] = Field(description="which way is better")
    retraining: Annotated[Number, Field(gt=0)] = Field(description="decline that is still fine where policies were trained anew")
    evaluation: Annotated[Number, Field(gt=0)] = Field(description="the same where they are the same bit for bit")

    def of(self, family: Family) -> float:
        """Return the margin of a family."""
        return self.evaluation if family == "evaluation" else self.retraining


class _File(Section):
    """What gate.yaml holds."""

    schema_version: Literal[1] = Field(description="of this file's form")
    confidence: Annotated[Number, Field(gt=0.5, lt=1)] = Field(0.95, description="one-sided level of every decision")
    max_invalid: Share = Field(MAX_INVALID, description="share of the reference's values that may be invalid in the run")
    metrics: Annotated[dict[str, Any], Field(min_length=1)] = Field(description="a metric's name, or a pattern such as reward/*")


@dataclass(frozen=True)
class Margins:
    """The margins of a gate: by metric name or pattern; ``source`` says in words where they come from.

    ``max_invalid``: share of a row's values, among those valid in the reference, that may be invalid in the run.
    """

    confidence: float
    metrics: Mapping[str, Margin]
    source: str
    max_invalid: float = MAX_INVALID

    def of(self, metric: str) -> Margin | None:
        """Return a metric's margin: of its own name, else of the first pattern it fits; None: it is not guarded."""
        if metric in self.metrics:
            return self.metrics[metric]
        return next((margin for name, margin in self.metrics.items() if fnmatchcase(metric, name)), None)

    def unmatched(self, known: Iterable[str]) -> list[str]:
        """Return the names and patterns that fit none of the metrics."""
        metrics = list(known)
        return [name for name in self.metrics if not any(fnmatchcase(metric, name) or metric == name for metric in metrics)]

    def check_names(self, kept: Iterable[str], also: Iterable[str] = ()) -> None:
        """Refuse a name or pattern that fits no metric, those the reference has (``kept``) or others; raises InputError."""
        metrics, listed = {*kept, *also}, ", ".join(sorted(kept)) or "none"
        for name in self.unmatched(metrics):
            raise InputError(
                f"{self.source}: {'pattern' if _PATTERN.search(name) else 'metric'} '{name}' fits nothing",
                f"what is guarded is a metric of the reference, which has {listed}",
                f"{suggestion(name, metrics)}; see {_REMEDY}",
            )

    def check(self, known: Mapping[str, bool]) -> None:
        """Refuse a direction that contradicts the metric's own (name -> more is better); raises InputError."""
        for metric, higher in known.items():
            margin = self.of(metric)
            if margin is not None and (margin.better == "higher") != higher:
                raise InputError(
                    f"{self.source}: '{metric}' with better: {margin.better}",
                    f"the runs say that {'more' if higher else 'less'} of it is better",
                    "correct the direction, or leave the metric out",
                )


def read_margins(directory: Path) -> Margins | None:
    """Return the margins in a reference directory's gate.yaml, None where it has none.

    Raises:
        InputError: unknown keys, missing ones, or values a key cannot take, each with file and line.
    """
    path = directory / FILE
    if not path.is_file():
        return None
    raw = parse_yaml(path, FILE, f"see {_REMEDY}")
    try:
        found = _File.model_validate(raw.value)
    except ValidationError as error:
        raise as_input_error(error, _File, lambda where: place_in(raw.marks, where, str(path)), f"see {_REMEDY}") from None
    margins = {}
    for name, given in found.metrics.items():
        try:
            margins[name] = Margin.model_validate(given)
        except ValidationError as error:
            at = place_in(raw.marks, ("metrics", name), str(path))
            raise as_input_error(error, Margin, lambda _, at=at, name=name: f"{at}, metric '{name}'", f"see {_REMEDY}") from None  # type: ignore[misc]
    return Margins(found.confidence, margins, str(path), found.max_invalid)


def built_in(metric: str, higher_is_better: bool, spread: float) -> Margin:
    """Return the margin of a metric where nothing better is known; ``spread`` is the sd of its values over prompts, or NaN."""
    bounded = metric in _UNIT or is_share(metric)
    known = BOUNDED if bounded else {family: share * (spread if spread > 0 else 1.0) for family, share in RELATIVE.items()}
    return Margin(better="higher" if higher_is_better else "lower", **known)


def rounded_up(value: float) -> float:
    """Return a number rounded up to two digits."""
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / step - 1e-9) * step:.12g}")


def margins_text(margins: Margins) -> str:
    """Return the text of a gate.yaml."""
    head = [
        "# What `spo-bench gate` guards, and how large a decline is still fine.",
        "# Margins are in the metric's own unit: true reward in points of [0, 1], win rates and accuracies as fractions (0.05 is",
        "# five percentage points), reward models in points of their own scale.",
        "#   retraining   the policies were trained anew: seeds and prompts are noise; guards against large breaks only",
        "#   evaluation   the policies are the same bit for bit: only evaluation can have changed. Small, since the same",
        "#                policies with the same seeds of sampling give the same answers: where nothing changed, nothing",
        "#                differs. Make it larger where that is not so, as with a judge behind an API",
        "# `spo-bench gate RUN --reference DIR --accept` prints the smallest margins that an unchanged night passes.",
        f"# max_invalid (optional, {MAX_INVALID:g}): of a row's values that are valid in the reference, the share that may be",
        "# invalid in the run; with more of them the row is not comparable.",
    ]
    body = {
        "schema_version": 1,
        "confidence": margins.confidence,
        "metrics": {name: margin.model_dump() for name, margin in margins.metrics.items()},
    }
    return "\n".join([*head, yaml.safe_dump(body, sort_keys=False, allow_unicode=True)])
