"""Whether a metric measured the same thing in two runs: the same prompts, by the same judge, reward model or reward function."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from spo_bench.engine.collect import WIN_RATES, short_fingerprint
from spo_bench.matrix.faults import brief
from spo_bench.matrix.plan import changes

from .results import Cell, Metric, short_model

_OPPONENTS = {name: opponent for opponent, name in WIN_RATES.items()}
_CEILINGS = ("max_invalid",)
"""Settings of a judge that decide when it is given up, and no verdict."""
_TASK: dict[str, Any] = {"data": None}
_JUDGE: dict[str, Any] = {"task": _TASK, "settings": {"model": None}}
_NAMES: dict[str, Any] = {"task": _TASK, "judge": _JUDGE, "labeller": _JUDGE}
"""Where a stage's config names something that may lie in a folder."""
_OTHER = "other content"
_LONGEST = 80
_LOCAL = re.compile(r"^(?:file://|~|/|\\\\|[A-Za-z]:[\\/]|\.\.?[\\/])")


def without_folder(value: Any) -> Any:
    """Return a name of a model, data set or script as it is anywhere: of a local path its last part, anything else unchanged.

    A word before a path stays: ``local:/models/judge`` is ``local:judge``. Only for values that are known to be such names.
    """
    if not isinstance(value, str):
        return value
    kind, colon, name = value.partition(":") if re.match(r"(local|reward|evaluate):", value) else ("", "", value)
    return f"{kind}{colon}{short_model(name)}" if _LOCAL.match(name) else value


def portable(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stage's identity as it is on any machine.

    Identities name contents. The exceptions go by their names: a task's data that is a folder, and the model of an endpoint.
    """
    return {**identity, "config": _at(dict(identity.get("config") or {}), _NAMES)}


def _at(value: Any, places: Mapping[str, Any]) -> Any:
    """Return a JSON value without the folders of the names at some places, which are nested as the value is."""
    if not isinstance(value, Mapping):
        return value
    known = {
        key: _at(value[key], inner) if inner else without_folder(value[key]) for key, inner in places.items() if key in value
    }
    return {**value, **known}


def opponent(metric: str) -> str:
    """Return whose answers a metric holds a policy's against: "sft", "baseline" or "chosen"; empty for other metrics."""
    return _OPPONENTS.get(metric, "")


def other_measure(metric: str, ours: Cell, theirs: Cell) -> str:
    """Return why a metric's values in two cells do not measure the same thing, besides the prompts; empty where they do.

    Settings that change the answers (training, sampling) are no reason: they are what a comparison is about.
    """
    name = f"judge/{_OPPONENTS[metric]}" if metric in _OPPONENTS else metric if metric.startswith("reward/") else "score"
    keys = [cell.row.get("keys", {}).get(name) for cell in (ours, theirs)]
    if keys[0] == keys[1] is not None:
        return ""  # the very same stage
    sides = [_measure(metric, cell) for cell in (ours, theirs)]
    kind = sides[0][0] or sides[1][0]
    identities = [identity for _, identity, _ in sides]
    if None in identities and kind and identities[0] != identities[1]:
        return f"{kind} is recorded on one side only"
    names = [_judge_name(identity) for identity in identities] if kind == "judge" else ["", ""]
    if names[0] != names[1]:
        return f"another judge: {names[0]} → {names[1]}"
    differing = [
        f"{path} {short(before)} -> {short(after)}" if path else "recorded on one side only"
        for path, before, after in changes(*identities)
    ]
    content = _other_content(*(contents for _, _, contents in sides))
    if content and not differing and content != _OTHER:
        return f"{kind}: {content}"
    differing += [content] if content == _OTHER else []
    return f"another {kind} ({', '.join(differing)})" if differing else ""


def _judge_name(identity: Mapping[str, Any] | None) -> str:
    """Return what a person calls a judge: its kind, and the model of an endpoint."""
    judge = identity or {}
    parts = (judge.get("kind"), (judge.get("settings") or {}).get("model"))
    return " ".join(str(part) for part in parts if part)


def short(value: Any) -> str:
    """Write a setting's value for a line of text; a section of settings is its keys with their values."""
    if not isinstance(value, Mapping):
        return brief(value)
    text = ", ".join(f"{key} {short(item)}" for key, item in value.items() if item is not None)
    return f"({text if len(text) <= _LONGEST else f'{text[:_LONGEST]}…'})"


def _other_content(ours: Mapping[str, str | None], theirs: Mapping[str, str | None]) -> str:
    """Return what is to be said of two contents, hash held against hash and key against key; empty where they are the same."""
    for way in ours:
        if ours[way] and theirs.get(way):
            return "" if ours[way] == theirs[way] else _OTHER
    known = [any(side.values()) for side in (ours, theirs)]
    if not ours and not theirs:
        return ""
    return f"its content is recorded on {'one side only' if any(known) else 'neither side'}"


def _measure(metric: str, cell: Cell) -> tuple[str, Any, Mapping[str, str | None]]:
    """Return what measures a metric, in a word, its identity, and what it says of its content, by way of recording it.

    No content where the identity is the whole of it; None in it where it has one that is not recorded.
    """
    stages = {name: portable(stage) for name, stage in cell.stages.items()}
    models: Mapping[str, str] = cell.provenance.get("reward_models") or {}
    if metric in _OPPONENTS:
        name = f"judge/{_OPPONENTS[metric]}"
        stage = stages.get(name)
        return ("judge", None, {}) if stage is None else ("judge", *_judge(stage, models.get(name)))
    if metric.startswith("reward/"):
        key = stages[metric]["inputs"].get("reward_model") if metric in stages else None
        known = {"hash": models.get(metric), "key": key}
        return ("reward model", {}, known) if any(known.values()) else ("reward model", None, {})
    config = stages["score"]["config"] if "score" in stages else {}
    if metric == "true_reward":
        return "reward function", config.get("task"), {}
    scripts = config.get("metrics")
    if metric.startswith("evaluate:") and scripts:
        # Runs once recorded their metrics' names alone.
        content = scripts.get(metric) if isinstance(scripts, Mapping) else None
        return "script", {}, {"hash": content} if content else {}
    return "", None, {}


def _judge(stage: Mapping[str, Any], reward_model: str | None) -> tuple[dict[str, Any], Mapping[str, str | None]]:
    judge = {name: value for name, value in stage["config"]["judge"].items() if name not in _CEILINGS}
    inputs: Mapping[str, str] = stage.get("inputs") or {}
    if "judge_model" in inputs:
        return judge, {"key": inputs["judge_model"]}
    return judge, {"hash": reward_model} if judge.get("kind") == "reward" else {}


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
