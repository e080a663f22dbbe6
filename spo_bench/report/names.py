"""How metrics are called and printed. A metric not listed here is shown under its own name."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

_TITLES = {
    "true_reward": "True reward",
    "win_rate_sft": "Win % vs. SFT",
    "win_rate_chosen": "Win % vs. chosen",
    "head_to_head": "Win % vs. own baseline",
    "implicit_accuracy": "Implicit accuracy %",
    "degree_accuracy": "Degree accuracy %",
    "chosen_logratio": "Chosen log-ratio",
    "rejected_logratio": "Rejected log-ratio",
    "kl": "KL to reference",
    "length": "Length",
    "rouge_l": "ROUGE-L",
    "seconds": "Train s",
    "step_seconds": "Steps s",
    "pairs_per_second": "Pairs/s",
    "peak_memory": "Peak GiB",
    "tokens_per_pair": "Tokens/pair",
    "tokens_per_pair_separate": "Tokens/pair unpacked",
}
_NEUTRAL = {"length", "kl", "chosen_logratio", "rejected_logratio", "tokens_per_pair"}
"""Metrics that describe a policy; more of them is neither better nor worse."""


def title(metric: str) -> str:
    """Return the metric's name in a header."""
    if metric in _TITLES:
        return _TITLES[metric]
    if metric.startswith("reward/"):
        return f"Reward: {metric.removeprefix('reward/').rstrip('/').rsplit('/', 1)[-1]}"
    words = metric.replace("_", " ")
    shown = f"{words[:1].upper()}{words[1:]}"
    return f"{shown} %" if is_share(metric) else shown


def is_share(metric: str) -> bool:
    """Return whether the metric lies in [0, 1] and is printed in percent."""
    return "win_rate" in metric or metric == "head_to_head" or metric.endswith("accuracy")


def scale(metric: str) -> float:
    """Return the factor from a stored value to the printed one: percent for shares, GiB for bytes."""
    return 100.0 if is_share(metric) else 2.0**-30 if metric == "peak_memory" else 1.0


def direction(metric: str, higher_is_better: bool) -> Literal["", "up", "down"]:
    """Return the arrow of a column: none for a metric that only describes."""
    return "" if metric in _NEUTRAL else "up" if higher_is_better else "down"


def decimals(half_widths: Iterable[float]) -> int:
    """Return how many decimals a column shows: two digits of its typical interval's half-width, 0 to 4."""
    known = sorted(width for width in half_widths if math.isfinite(width) and width > 0)
    if not known:
        return 2
    return min(4, max(0, 1 - math.floor(math.log10(known[len(known) // 2]))))
