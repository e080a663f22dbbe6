"""Captions: what a table's numbers rest on, who judged, what ± is, which test, which family, and what is questionable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from . import names
from .entries import p_text
from .judges import judge_notes
from .measure import ALPHA, Level
from .results import Cell, Results, short_model

RECONSTRUCTION = "SPO is a reconstruction from public descriptions: no reference code exists, and its settings here are ours."

FEWEST = 6
"""Prompts that a sign-flip test needs to reach p < .05: with n of them p is at least 2 / 2^n."""


def method_notes(rows: Sequence[Mapping[str, Any]], family_of: str = "a metric") -> list[str]:
    """Return the caption's sentences on estimand, test and family, true for these comparisons, with a warning where unequal
    seed noise makes the pooled one questionable.

    ``family_of`` says in words what the contrasts of one family share.
    """
    if not rows:
        return ["No comparison could be made."]
    notes = []
    estimands = dict.fromkeys(row["estimand"] for row in rows)
    if "method" in estimands:
        spreads = [row["seed_spread_p"] for row in rows if row["estimand"] == "method" and row["seed_spread_p"] is not None]
        check = f"Levene’s p {p_text(min(spreads))}" if spreads else "which takes three seeds or more to check"
        size = f"{_range(rows, 'n_prompts', 'method')} prompts × {_range(rows, 'n_seeds', 'method')} seeds, both random"
        notes.append(
            f"Estimand “the method” ({size}): two-way interval and t test, seed variance pooled over the contrasts of "
            f"{family_of}; equal seed noise is assumed, {check}."
        )
        notes += [*_noise_warning(rows), *_own_noise(rows)]
    if "checkpoints" in estimands:
        notes.append(
            f"Estimand “these checkpoints” ({_range(rows, 'n_prompts', 'checkpoints')} prompts, one seed: nothing is said about "
            "retraining): bootstrap over prompts, sign-flip test."
        )
        if min(row["n_prompts"] for row in rows if row["estimand"] == "checkpoints") < FEWEST:
            notes.append(f"With fewer than {FEWEST} prompts no p below .05 is possible in this test.")
    family = _range(rows, "family")
    notes.append(f"† p < .05 after Holm’s correction over all contrasts of {family_of} (family of {family}).")
    return notes


def threads_notes(cells: Iterable[Cell]) -> list[str]:
    """Return a warning where the trainings of a table had unequal numbers of threads, so that their seconds do not compare."""
    found = sorted({cell.threads for cell in cells if cell.done and cell.threads})
    if len(found) < 2:
        return []
    return [f"Trainings ran on {found[0]} to {found[-1]} threads: seconds compare only between those with equally many."]


def _noise_warning(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Warn where Levene's test says that contrasts which share one seed variance do not have one."""
    unequal: dict[str, float] = {}
    for row in rows:
        p = row["seed_spread_p"]
        if row["estimand"] == "method" and p is not None and p < ALPHA:
            unequal[row["metric"]] = min(p, unequal.get(row["metric"], 1.0))
    if not unequal:
        return []
    where = ", ".join(f"{names.title(metric)} (Levene’s p {p_text(p)})" for metric, p in unequal.items())
    return [
        f"Warning: the contrasts differ in their seed noise in {where}, so one pooled noise is questionable for these: intervals "
        "may be too narrow for the noisier and too wide for the steadier."
    ]


def _own_noise(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name the contrasts whose seed noise was kept out of the pooled one, such as a policy that diverged in one seed."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        if row.get("own_noise"):
            found.setdefault(f"{row['variant']} on {row['task']}", {})[names.title(row["metric"])] = None
    if not found:
        return []
    which = [f"{who} ({', '.join(metrics)})" for who, metrics in found.items()]
    more = f" and {len(which) - 6} more" if len(which) > 6 else ""
    return [
        f"Seeds far apart: {'; '.join(which[:6])}{more}. This seed noise is kept out of the pooled one, and these intervals rest "
        "on their own few seeds."
    ]


def level_note(found: Iterable[Level]) -> str:
    """Return the sentence on what stands behind a mean and its ±."""
    known = [level for level in found if level.n]
    what = "Mean ± half the width of its 95 % interval, or the interval itself where it is lopsided"
    if not known:
        return f"{what}."
    size = f"over {_span([level.n for level in known])} prompts × {_span([level.seeds for level in known])} seeds"
    if all(level.seeds == 1 for level in known):
        size = f"over {_span([level.n for level in known])} prompts of one seed (bootstrap; Wilson’s for a share of yes and no)"
    return f"{what}, {size}."


def scoring_notes(results: Results, metrics: Iterable[str]) -> list[str]:
    """Return the sentences on where these metrics come from: the known reward, who judged and how far to trust it, whose reward.

    Text and log-probability metrics need none.
    """
    shown = list(dict.fromkeys(metric.removeprefix(names.AREA) for metric in metrics))
    notes = []
    if "true_reward" in shown:
        notes.append("True reward: the world’s known reward function, from 0 to 1; no judge.")
    notes += [_reward_note(metric.removeprefix("reward/")) for metric in shown if metric.startswith("reward/")]
    if any(is_verdict(metric) for metric in shown):
        notes += [*_judge_note(results), *judge_notes(results)]
    return notes


def is_verdict(metric: str) -> bool:
    """Return whether a metric is made of verdicts on pairs of answers."""
    return "win_rate" in metric or metric.endswith("head_to_head")


def _reward_note(model: str) -> str:
    if model == "trained":
        return "Reward: trained: score of a reward model trained on this run’s held-out pairs."
    return f"Reward: {short_model(model)}: score of this reward model, on its own scale."


def _judge_note(results: Results) -> list[str]:
    """Say who judged, and whether that was audited; nothing where the spec does not say who."""
    found = results.spec.get("judge")
    spec: Mapping[str, Any] = found if isinstance(found, Mapping) else {"backend": found or ""}
    model = str(spec.get("model") or "")
    if spec["backend"] == "gold":
        return ["Win rates: by the world’s known reward (gold), exact and so not audited."]
    trained = (
        "a reward model trained on this run’s held-out pairs" if model == "trained" else f"reward model {short_model(model)}"
    )
    who = {
        "reward": trained,
        "local": f"local model {short_model(model)}",
        "openai": f"{model}, an endpoint at {urlsplit(str(spec.get('base_url') or 'https://api.openai.com')).hostname}",
    }.get(str(spec["backend"]))
    if who is None:
        return []
    audited = {task for _, task in results.judge_audits}
    state = (
        "audited"
        if audited >= set(results.tasks)
        else f"audited on {', '.join(sorted(audited))} only"
        if audited
        else "not audited"
    )
    reasons = dict.fromkeys(f"Not audited on {task}: {reason}" for (_, task), reason in results.judge_unaudited.items())
    return [f"Win rates: judged by {who}; {state}.", *reasons]


def answer_notes(results: Results) -> list[str]:
    """Return the sentence on how answers were sampled, and in what their length is; the latter alone where nothing is known."""
    temperature = (results.spec.get("generate") or {}).get("temperature")
    how = (
        ""
        if temperature is None
        else "; answers are greedy"
        if temperature == 0
        else f"; answers sampled at temperature {temperature:g}"
    )
    return [f"Length: of the answers, in tokens{how}."]


def holdout_notes(results: Results) -> list[str]:
    """Say which prompts hold-out cells are evaluated on; nothing where there are none."""
    return ["Cells with held-out domains are evaluated on these domains’ prompts only."] if "holdout" in results.axes else []


def _range(rows: Sequence[Mapping[str, Any]], key: str, estimand: str | None = None) -> str:
    return _span([row[key] for row in rows if estimand in (None, row["estimand"])])


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"
