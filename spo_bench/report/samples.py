"""Prompts with the answers of a baseline and its SPO twin side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import names
from .measure import Contrast, contrasts, headlines
from .render import number
from .results import Cell, Results, short_model

PER_CONTRAST = 20
IN_ALL = 600
LONGEST = 6000


@dataclass(frozen=True)
class Side:
    """One policy's answer: its text, its values in the metrics that are shown, how it ended."""

    name: str
    text: str
    facts: str


@dataclass(frozen=True)
class Sample:
    """One prompt with both answers."""

    id: str
    prompt: str
    chosen: str
    baseline: Side
    variant: Side
    difference: str
    outcome: str
    verdict: str


@dataclass(frozen=True)
class Gallery:
    """The samples of one contrast."""

    name: str
    total: int
    samples: Sequence[Sample]


def galleries(results: Results) -> list[Gallery]:
    """Return the samples of every SPO contrast, first seed: evenly spaced from SPO's largest loss to its largest gain."""
    found = contrasts(results, "spo")
    limit = max(3, min(PER_CONTRAST, IN_ALL // max(1, len(found))))
    several = len({contrast.variant.model for contrast in found}) > 1
    return [gallery for contrast in found if (gallery := _gallery(contrast, results, limit, several)).samples]


def _gallery(contrast: Contrast, results: Results, limit: int, with_model: bool) -> Gallery:
    baseline, variant = contrast.pairs[0]
    assert baseline is not None  # noqa: S101 - an SPO contrast has a baseline by construction
    metric = (headlines(results, variant.task) or [""])[0]
    answers = {str(row["id"]): row for row in baseline.rows("samples")}
    pairs = [(answers[str(row["id"])], row) for row in variant.rows("samples") if str(row["id"]) in answers]
    values = [_values(cell) for cell in (baseline, variant)]
    higher = metric not in variant.metrics or variant.metrics[metric].higher_is_better
    gains = [_gain(values, str(row["id"]), metric) * (1 if higher else -1) for _, row in pairs]
    order = sorted(range(len(pairs)), key=lambda i: (math.isnan(gains[i]), gains[i] if math.isfinite(gains[i]) else 0.0, i))
    places = sorted({round(at) for at in np.linspace(0, len(order) - 1, min(limit, len(order)))})
    verdicts = {str(row["id"]): row for row in variant.rows("judgments") if row.get("opponent") == "baseline"}
    samples = [_sample(pairs[order[i]], (baseline, variant), values, metric, gains[order[i]], verdicts) for i in places]
    model = [short_model(variant.model)] if with_model else []
    return Gallery(" · ".join([*model, variant.task, variant.name, f"seed {variant.seed}"]), len(pairs), samples)


def _sample(
    rows: tuple[Mapping[str, Any], Mapping[str, Any]],
    cells: tuple[Cell, Cell],
    values: Sequence[Mapping[str, Mapping[str, float]]],
    metric: str,
    gain: float,
    verdicts: Mapping[str, Mapping[str, Any]],
) -> Sample:
    name = str(rows[1]["id"])
    sides = [
        Side(cell.name, _cut(row.get("answer")), _facts(row, {key: some[name] for key, some in known.items() if name in some}))
        for row, cell, known in zip(rows, cells, values)
    ]
    judged = verdicts.get(name)
    outcome = "" if math.isnan(gain) else "gain" if gain > 0 else "loss" if gain < 0 else "same"
    shown = (values[1][metric][name] - values[0][metric][name]) * names.scale(metric) if outcome else math.nan
    difference = f"Δ {names.title(metric)} {number(shown, 2, sign=True).replace('-', '−')}" if outcome else "not comparable"
    prompt, chosen = _cut(rows[1].get("prompt")), _cut(rows[1].get("chosen"))
    return Sample(name, prompt, chosen, sides[0], sides[1], difference, outcome, _judged(judged) if judged else "")


def _values(cell: Cell) -> dict[str, dict[str, float]]:
    listed = ("true_reward", "win_rate_sft", "win_rate_chosen")
    shown = [name for name in cell.metrics if name in listed or name.startswith("reward/")]
    return {name: dict(zip(cell.metrics[name].ids, cell.metrics[name].values.tolist())) for name in shown}


def _gain(values: Sequence[Mapping[str, Mapping[str, float]]], name: str, metric: str) -> float:
    before, after = (some.get(metric, {}).get(name, math.nan) for some in values)
    return after - before


def _facts(row: Mapping[str, Any], values: Mapping[str, float]) -> str:
    facts = [
        f"{names.title(key)} {number(names.scale(key) * value, 0 if names.is_share(key) else 2)}" for key, value in values.items()
    ]
    if row.get("tokens") is not None:
        facts.append(f"{row['tokens']} tokens")
    if row.get("finish") == "length":
        facts.append("cut off")
    return " · ".join(facts).replace("-", "−") if facts else ""


def _judged(row: Mapping[str, Any]) -> str:
    if row.get("score") is None:
        words = "no valid verdict"
    else:
        score = float(row["score"])
        words = "SPO preferred" if score > 0.5 else "baseline preferred" if score < 0.5 else "tie"
    reason = str(row.get("reason") or "").strip()
    return f"Judge: {words}{' – ' + _cut(reason, 400) if reason else ''}"


def _cut(text: Any, longest: int = LONGEST) -> str:
    whole = str(text or "")
    return whole if len(whole) <= longest else f"{whole[:longest]} … ({len(whole) - longest:,} more characters)"
