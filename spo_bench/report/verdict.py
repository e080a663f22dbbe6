"""The answer in words: what the comparisons of a run say about SPO, and how surely."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import names
from .audits import overlap_notes
from .average import average
from .judges import judge_doubts
from .measure import ALPHA, contrasts, headlines, unjudged_notes
from .render import number
from .results import Results

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """One sentence, and the lines that support it."""

    sentence: str
    lines: Sequence[str]


def verdict(results: Results, comparisons: Sequence[Row]) -> Verdict:
    """Return what the headline comparisons say; controls of SPO are reported apart, since they are not SPO.

    The sentence gives the effect averaged over contrasts (``average``; one clause a headline metric), and how many contrasts
    are significant after the correction. What makes the numbers mean less than they seem to is said first: shared prompts,
    answers that nothing judges, or a judge that people agree with no more than with the longer answer.
    """
    doubts = [*overlap_notes(results), *unjudged_notes(results), *judge_doubts(results)]
    first = {task: (headlines(results, task) or [""])[0] for task in results.tasks}
    shown = [row for row in comparisons if row["metric"] == first[row["task"]] and row["diff"] is not None]
    spo = [row for row in shown if row["kind"] == "spo" and not is_control(row)]
    tested = [row for row in spo if row["p_adjusted"] is not None]
    if not tested:
        why = "one prompt cannot be tested" if spo else "no baseline and SPO twin were both finished"
        return Verdict(f"This run says nothing about SPO: {why}.", [*doubts, *_training_line(shown)])
    support = [*_single(tested), *_findable(results, tested)]
    controls = [row for row in shown if row["kind"] == "spo" and is_control(row)]
    if controls:
        moved = sum(significant(row) for row in controls)
        support.append(f"Controls: {moved} of {len(controls)} differ significantly from the baseline too.")
    return Verdict(_sentence(results, tested), [*doubts, *support, *_training_line(shown)])


def is_control(row: Row) -> bool:
    """Return whether the variant is one of the controls rather than SPO itself."""
    return isinstance(row["spo"], Mapping) and bool(row["spo"].get("control"))


def significant(row: Row) -> bool:
    """Return whether the difference holds after the correction."""
    return row["p_adjusted"] is not None and bool(row["p_adjusted"] < ALPHA)


def gain(row: Row) -> float:
    """Return the difference counted so that more is better."""
    return float(row["diff"]) if row["higher_is_better"] else -float(row["diff"])


def _sentence(results: Results, tested: Sequence[Row]) -> str:
    better, worse = (sum(significant(row) and gain(row) * sign > 0 for row in tested) for sign in (1, -1))
    n, metrics = len(tested), list(dict.fromkeys(row["metric"] for row in tested))
    if n == 1:
        name = _phrase(metrics[0])
        found = (
            f"made {name} significantly {'better' if better else 'worse'}"
            if better or worse
            else f"did not change {name} significantly"
        )
        return f"Adding SPO {found}: {_amount(tested[0])}."
    counts = f"significantly better in {better}, worse in {worse}, undecided in {n - better - worse} after Holm’s correction"
    clauses = [clause for metric in metrics if (clause := _average(results, metric))]
    if not clauses:
        return f"With SPO, {_phrase(metrics[0]) if len(metrics) == 1 else 'the headline metric'} is {counts}."
    return f"Adding SPO changed {' and '.join(clauses)}; {counts}."


def _average(results: Results, metric: str) -> str:
    """Return what SPO changed on average over the contrasts that this metric is the headline of; "" where they share no seed."""
    family = [contrast for contrast in contrasts(results, "spo") if headlines(results, contrast.variant.task)[:1] == [metric]]
    own = [contrast for contrast in family if not is_control({"spo": contrast.variant.spo})]
    mean = average(own, family, metric)
    if mean is None:
        return ""
    amount = _amount({"metric": metric, "diff": mean.diff, "low": mean.low, "high": mean.high})
    return f"{_phrase(metric)} by {amount} on average over {len(own)} contrasts"


def _single(tested: Sequence[Row]) -> list[str]:
    """Return the sentences on how far single contrasts differ, and what those that are not significant still allow."""
    said = []
    if len(tested) > 1:
        lines = [f"{_amount(row)} ({row['variant']}, {row['task']})" for row in sorted(tested, key=gain, reverse=True)]
        said.append(f"Single contrasts, with 95 % intervals: from {lines[-1]} to {lines[0]}.")
    widest = max(tested, key=lambda row: row["high"] - row["low"])
    if not any(map(significant, tested)) and widest["high"] > widest["low"]:
        where = f"the widest interval, of {widest['variant']} on {widest['task']}," if len(tested) > 1 else "the interval"
        said.append(f"Not significant is not the same as no effect: {where} still allows {_ends(widest)}.")
    return said


def _findable(results: Results, tested: Sequence[Row]) -> list[str]:
    """Return the sentence on the smallest effects that contrasts of this design find."""
    from .power import TARGET, powers

    said = []
    for metric in dict.fromkeys(row["metric"] for row in tested):
        found = [one.detectable for contrast, _, one in powers(results, metric) if not is_control({"spo": contrast.variant.spo})]
        sizes = sorted(names.scale(metric) * size for size in found if math.isfinite(size))
        if sizes:
            low, high = (number(size, names.decimals([size])) for size in (sizes[0], sizes[-1]))
            size = low if low == high else f"{low} (the least noisy) to {high} (the noisiest)"
            said.append(f"a change in {_phrase(metric)} of {size}")
    chance = f"With {100 * TARGET:.0f} % power, before correction"
    return [f"{chance}, one contrast of this design finds {' or '.join(said)}."] if said else []


def _phrase(metric: str) -> str:
    name = names.title(metric).removesuffix(" %")
    return name if name[:2].isupper() else f"{name[:1].lower()}{name[1:]}"


def _training_line(shown: Sequence[Row]) -> list[str]:
    trained = [row for row in shown if row["kind"] == "training" and row["p_adjusted"] is not None]
    if not trained:
        return []
    better = sum(significant(row) and gain(row) > 0 for row in trained)
    worse = sum(significant(row) and gain(row) < 0 for row in trained)
    tail = f", {worse} significantly worse" if worse else ""
    count = f"{better} of {len(trained)} trained policies"
    return [f"Preference training itself: {count} are significantly better than their SFT policy{tail}."]


def _digits(row: Row) -> int:
    return names.decimals([names.scale(row["metric"]) * (row["high"] - row["low"]) / 2])


def _ends(row: Row) -> str:
    factor, digits = names.scale(row["metric"]), _digits(row)
    low, high = (number(factor * row[key], digits, sign=True).replace("-", "−") for key in ("low", "high"))
    return f"[{low}, {high}]"


def _amount(row: Row) -> str:
    diff = number(names.scale(row["metric"]) * row["diff"], _digits(row), sign=True).replace("-", "−")
    return f"{diff} {_ends(row)}"
