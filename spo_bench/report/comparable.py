"""Whether a metric measured the same thing in two runs: the same prompts, by the same judge, reward model or reward function."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from spo_bench.engine.collect import WIN_RATES, short_fingerprint
from spo_bench.matrix.faults import brief
from spo_bench.matrix.plan import changes

from .results import Cell, Metric

_OPPONENTS = {name: opponent for opponent, name in WIN_RATES.items()}
_CEILINGS = ("max_invalid",)
"""Settings of a judge that decide when it is given up, and no verdict."""


def other_measure(metric: str, ours: Cell, theirs: Cell) -> str:
    """Return why a metric's values in two cells do not measure the same thing, besides the prompts; empty where they do.

    Settings that change the answers (training, sampling) are no reason: they are what a comparison is about.
    """
    sides = [_measure(metric, cell) for cell in (ours, theirs)]
    kind = sides[0][0] or sides[1][0]
    if None in (sides[0][1], sides[1][1]) and kind and sides[0][1] != sides[1][1]:
        return f"{kind} is recorded on one side only"
    differing = list(_different(sides[0][1], sides[1][1]))
    return f"another {kind} ({', '.join(differing)})" if differing else ""


def _measure(metric: str, cell: Cell) -> tuple[str, Any]:
    """Return what measures a metric, in a word, and its identity."""
    stages = cell.stages
    models: Mapping[str, str] = cell.provenance.get("reward_models") or {}
    if metric in _OPPONENTS:
        stage = stages.get(f"judge/{_OPPONENTS[metric]}")
        return "judge", None if stage is None else _judge(stage, models.get(f"judge/{_OPPONENTS[metric]}"))
    if metric.startswith("reward/"):
        stage = stages.get(metric)
        key = None if stage is None else {"model": stage["inputs"].get("reward_model")}
        return "reward model", {"model": models[metric]} if metric in models else key
    config = stages["score"]["config"] if "score" in stages else {}
    if metric == "true_reward":
        return "reward function", config.get("task")
    if metric in config.get("metrics", {}):
        return "script", {"content": config["metrics"][metric]}
    return "", None


def _judge(stage: Mapping[str, Any], reward_model: str | None) -> dict[str, Any]:
    judge = {key: value for key, value in stage["config"]["judge"].items() if key not in _CEILINGS}
    inputs: Mapping[str, str] = stage.get("inputs") or {}
    if "judge_model" in inputs:
        judge["model"] = inputs["judge_model"]
    return judge | ({"model": reward_model} if reward_model else {})


def _different(ours: Any, theirs: Any) -> Iterator[str]:
    for path, before, after in changes(ours, theirs):
        hashes = path in ("model", "content")  # nobody reads them
        yield "other content" if hashes else f"{path} {brief(before)} -> {brief(after)}" if path else "recorded on one side only"


def fingerprints(cell: Cell) -> dict[str, Mapping[str, str]]:
    """Return what stands behind the ids of a cell's metrics: "prompt", "chosen" and "pair" -> id -> fingerprint, those known.

    Runs made before fingerprints were recorded have their prompts' texts only.
    """
    known: dict[str, Mapping[str, str]] = dict(cell.scores.get("prompts") or {})
    if "prompt" not in known and (rows := cell.rows("samples")):
        known["prompt"] = {str(row["id"]): short_fingerprint(row["prompt"]) for row in rows}
    return known


def changed_texts(metric: str, ours: Cell, theirs: Cell) -> set[str] | None:
    """Return the ids both cells have, but with another text behind them; None where that cannot be told."""
    mine, other = fingerprints(ours), fingerprints(theirs)
    keys = [cell.row.get("keys", {}).get("data") for cell in (ours, theirs)]
    one_artifact = keys[0] == keys[1] is not None
    changed: set[str] = set()
    for kind in texts_behind(metric, ours.metrics[metric]):
        if kind in mine and kind in other:
            both = mine[kind].keys() & other[kind].keys()
            changed |= {name for name in both if mine[kind][name] != other[kind][name]}
        elif not one_artifact:
            return None
    return changed


def texts_behind(metric: str, of: Metric) -> tuple[str, ...]:
    """Return the texts that a metric's values depend on, besides the answers."""
    return ("pair",) if of.unit == "pair" else ("prompt", "chosen") if metric == "win_rate_chosen" else ("prompt",)
