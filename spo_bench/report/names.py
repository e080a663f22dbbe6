"""How metrics are called and printed. A metric not listed here is shown under its own name."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

AREA = "auc:"
"""Prefix of a metric's mean over the shares of the training data: the area under its data-efficiency curve."""

_TITLES = {
    "true_reward": "True reward",
    "win_rate_sft": "Win % vs. SFT",
    "win_rate_chosen": "Win % vs. chosen",
    "head_to_head": "Win % vs. own baseline",
    "length_controlled_win_rate_sft": "Win % vs. SFT at equal length",
    "length_controlled_win_rate_chosen": "Win % vs. chosen at equal length",
    "length_controlled_head_to_head": "Win % vs. own baseline at equal length",
    "implicit_accuracy": "Implicit accuracy %",
    "degree_accuracy": "Degree accuracy %",
    "chosen_logratio": "Chosen log-ratio",
    "rejected_logratio": "Rejected log-ratio",
    "kl": "KL to reference",
    "length": "Length",
    "rouge_l": "ROUGE-L",
    "controllability": "Controllability (r)",
    "seconds": "Train s",
    "step_seconds": "Steps s",
    "pairs_per_second": "Pairs/s",
    "peak_memory": "Peak GiB",
    "tokens_per_pair": "Tokens/pair",
    "tokens_per_pair_separate": "Tokens/pair unpacked",
}
_NEUTRAL = {"length", "kl", "chosen_logratio", "rejected_logratio", "tokens_per_pair"}
"""Metrics that describe a policy; more of them is neither better nor worse."""
_AT_GOAL = "score_at_goal_"
_HIGHEST_GOAL = 10

_AXES: dict[str, tuple[str, Any]] = {
    "fraction": ("Share of pairs", 1.0),
    "label_flip": ("Label flip", 0.0),
    "holdout": ("Hold-out", "none"),
    "relabel": ("Relabelling", "none"),
    "list_size": ("List size", 2),
    "regime": ("Regime", "offline"),
}
"""Data axis -> its title, and its value for plain data, which a cell's axes leave out."""


def title(metric: str) -> str:
    """Return the metric's name in a header."""
    if metric in _TITLES:
        return _TITLES[metric]
    if metric.startswith(AREA):
        return f"AUC: {title(metric.removeprefix(AREA))}"
    if metric.startswith(_AT_GOAL):
        return f"Score at goal {metric.removeprefix(_AT_GOAL)}"
    if metric.startswith("reward/"):
        return f"Reward: {metric.removeprefix('reward/').rstrip('/').rsplit('/', 1)[-1]}"
    words = metric.replace("_", " ")
    shown = f"{words[:1].upper()}{words[1:]}"
    return f"{shown} %" if is_share(metric) else shown


def is_share(metric: str) -> bool:
    """Return whether the metric lies in [0, 1] and is printed in percent."""
    return "win_rate" in metric or metric.endswith(("head_to_head", "accuracy"))


def bounds(metric: str) -> tuple[float, float]:
    """Return the least and the largest value a metric can have; infinite where it has no such limit, or none is known."""
    base = metric.removeprefix(AREA)
    return (0.0, 1.0) if is_share(base) or base in ("true_reward", "rouge_l") else (-math.inf, math.inf)


def scale(metric: str) -> float:
    """Return the factor from a stored value to the printed one: percent for shares, GiB for bytes."""
    return 100.0 if is_share(metric) else 2.0**-30 if metric == "peak_memory" else 1.0


def direction(metric: str, higher_is_better: bool) -> Literal["", "up", "down"]:
    """Return the arrow of a column: none for a metric that only describes.

    A score at a goal below the highest only describes: a policy that does as it is told scores low there.
    """
    base = metric.removeprefix(AREA)
    if base in _NEUTRAL or (base.startswith(_AT_GOAL) and base != f"{_AT_GOAL}{_HIGHEST_GOAL}"):
        return ""
    return "up" if higher_is_better else "down"


def axis_title(axis: str) -> str:
    """Return a data axis's name in a table; one that is not known is shown under its own name."""
    return _AXES[axis][0] if axis in _AXES else axis.replace("_", " ").capitalize()


def plain_value(axis: str) -> Any:
    """Return a data axis's value for plain data."""
    return _AXES[axis][1] if axis in _AXES else "none"


def decimals(half_widths: Iterable[float]) -> int:
    """Return how many decimals a column shows: two digits of its typical interval's half-width, 0 to 4."""
    known = sorted(width for width in half_widths if math.isfinite(width) and width > 0)
    if not known:
        return 2
    return min(4, max(0, 1 - math.floor(math.log10(known[len(known) // 2]))))
