"""The answer in words: what the comparisons of a run say about SPO, and how surely."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import names
from .audits import overlap_notes
from .judges import judge_doubts
from .measure import ALPHA, headlines, unjudged_notes
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

    What makes the numbers mean less than they seem to is said first: shared prompts, answers that nothing judges, or a judge that
    people agree with no more than with the longer answer.
    """
    doubts = [*overlap_notes(results), *unjudged_notes(results), *judge_doubts(results)]
    first = {task: (headlines(results, task) or [""])[0] for task in results.tasks}
    shown = [row for row in comparisons if row["metric"] == first[row["task"]] and row["diff"] is not None]
    spo = [row for row in shown if row["kind"] == "spo" and not is_control(row)]
    tested = [row for row in spo if row["p_adjusted"] is not None]
    if not tested:
        why = "one prompt cannot be tested" if spo else "no baseline and SPO twin were both finished"
        return Verdict(f"This run says nothing about SPO: {why}.", [*doubts, *_training_line(shown)])
    better, worse = ([row for row in tested if significant(row) and gain(row) * sign > 0] for sign in (1, -1))
    lines = [f"{_amount(row)} ({row['variant']}, {row['task']})" for row in sorted(tested, key=gain, reverse=True)]
    extremes = lines if len(lines) == 1 else [f"from {lines[-1]} to {lines[0]}"]
    support = [f"Effects of SPO with 95 % intervals: {extremes[0]}."]
    if len(tested) > 1 and not better and not worse:
        widest = max(tested, key=lambda row: row["high"] - row["low"])
        support.append(
            f"Not significant is not the same as no effect: the widest interval, of {widest['variant']} on {widest['task']}, "
            f"still allows {_ends(widest)}."
        )
    controls = [row for row in shown if row["kind"] == "spo" and is_control(row)]
    if controls:
        moved = sum(significant(row) for row in controls)
        support.append(f"Controls: {moved} of {len(controls)} differ significantly from the baseline too.")
    return Verdict(_sentence(tested, better, worse), [*doubts, *support, *_training_line(shown)])


def is_control(row: Row) -> bool:
    """Return whether the variant is one of the controls rather than SPO itself."""
    return isinstance(row["spo"], Mapping) and bool(row["spo"].get("control"))


def significant(row: Row) -> bool:
    """Return whether the difference holds after the correction."""
    return row["p_adjusted"] is not None and bool(row["p_adjusted"] < ALPHA)


def gain(row: Row) -> float:
    """Return the difference counted so that more is better."""
    return float(row["diff"]) if row["higher_is_better"] else -float(row["diff"])


def _sentence(tested: Sequence[Row], better: Sequence[Row], worse: Sequence[Row]) -> str:
    metrics = list(dict.fromkeys(names.title(row["metric"]).removesuffix(" %") for row in tested))
    what = metrics[0][:1].lower() + metrics[0][1:] if len(metrics) == 1 else "the headline metric"
    n = len(tested)
    if not better and not worse and n == 1:
        return f"Adding SPO did not change {what} significantly: {_amount(tested[0])}."
    if not better and not worse:
        return f"Adding SPO changed {what} significantly in none of {n} contrasts."
    if n == 1:
        return f"Adding SPO made {what} significantly {'better' if better else 'worse'}: {_amount(tested[0])}."
    parts = [f"better in {len(better)}"] if better else []
    parts += [f"worse in {len(worse)}"] if worse else []
    rest = n - len(better) - len(worse)
    parts += [f"undecided in {rest}"] if rest else []
    return f"With SPO, {what} is significantly {', '.join(parts)} of {n} contrasts, after Holm’s correction."


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
