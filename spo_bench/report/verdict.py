"""The answer in words: what the comparisons of a run say about SPO, and how surely."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spo_bench.files import canonical_json

from . import names
from .audits import overlap_notes
from .average import average
from .captions import scoring_notes
from .judges import judge_doubts
from .measure import ALPHA, contrasts, headlines, plain_spo, unjudged_notes
from .render import number
from .results import Cell, Results

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """One sentence, and the lines that support it."""

    sentence: str
    lines: Sequence[str]


def verdict(results: Results, comparisons: Sequence[Row]) -> Verdict:
    """Return what the headline comparisons say of SPO as it is by default (``plain_spo``).

    The sentence gives the effect averaged over contrasts (``average``; one clause a headline metric), and how many contrasts
    are significant after the correction. Other settings of SPO and its controls are counted apart. What makes the numbers mean
    less than they seem to is said first: shared prompts, answers that nothing judges, or a judge that people agree with no more
    than with the longer answer. What they rest on is said last. A run that was not finished gets no verdict.
    """
    doubts = [*overlap_notes(results), *unjudged_notes(results), *judge_doubts(results)]
    first = {task: (headlines(results, task) or [""])[0] for task in results.tasks}
    shown = [row for row in comparisons if row["metric"] == first[row["task"]] and row["diff"] is not None]
    if "finished" in results.run and results.run["finished"] is None:
        size = f"{len(results.done)} finished {'cell' if len(results.done) == 1 else 'cells'}"
        return Verdict(f"This run is not finished: what is shown is of {size}, and no verdict yet.", doubts)
    spo = [row for row in shown if row["kind"] == "spo" and not is_control(row)]
    default = _defaults(results)
    plain = [row for row in spo if default.get(_place(row)) == canonical_json(row["spo"])]
    tested = [row for row in plain if row["p_adjusted"] is not None]
    others = [*_others(spo, plain), *_controls(shown), *_training_line(shown)]
    if not tested:
        why = "one prompt cannot be tested" if plain else "no baseline and SPO twin were both finished"
        what = "SPO as it is by default" if spo and not plain else "SPO"
        return Verdict(f"This run says nothing about {what}: {why}.", [*doubts, *others])
    support = [*_single(tested), *_findable(results, tested)]
    return Verdict(_sentence(results, tested), [*doubts, *support, *others, _basis(results, tested)])


def _place(row: Row) -> tuple[str, ...]:
    return row["model"], row["task"], row["method"], canonical_json(row["axes"])


def _defaults(results: Results) -> dict[tuple[str, ...], str]:
    """Return the settings of plain SPO by the place of a method."""
    places: dict[tuple[str, ...], list[Cell]] = {}
    for cell in results.cells:
        places.setdefault(cell.place, []).append(cell)
    return {place: plain.settings for place, cells in places.items() if (plain := plain_spo(cells)) is not None}


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
    family, default = contrasts(results, "spo"), _defaults(results)
    headed = [contrast for contrast in family if headlines(results, contrast.variant.task)[:1] == [metric]]
    plain = [contrast for contrast in headed if default.get(contrast.variant.place) == contrast.variant.settings]
    mean = average(plain, family, metric)
    if mean is None:
        return ""
    amount = _amount({"metric": metric, "diff": mean.effect.diff, "low": mean.effect.low, "high": mean.effect.high})
    where = f"{mean.contrasts} contrasts"
    if mean.left_out:
        where += f" and the {len(mean.seeds)} of {len(mean.seeds) + len(mean.left_out)} seeds that all of them have"
    return f"{_phrase(metric)} by {amount} on average over {where}{' (these checkpoints)' if len(mean.seeds) == 1 else ''}"


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
    """Return the sentence on the smallest effects that contrasts of this design find, and on those that find none."""
    from .power import TARGET, powers

    said, blind, count, default = [], [], 0, _defaults(results)
    for metric in dict.fromkeys(row["metric"] for row in tested):
        whole = [(contrast.variant, one) for contrast, _, one in powers(results, metric)]
        found = [one for cell, one in whole if default.get(cell.place) == cell.settings]
        sizes = sorted(names.scale(metric) * one.detectable for one in found if math.isfinite(one.detectable))
        # without any spread there is no noise to plan by, which does not mean that nothing can be found
        unknown = [one for one in found if math.isnan(one.detectable)]
        blind += [one.n_prompts for one in unknown if math.isnan(one.prompt_sd) or math.isfinite(one.power)]
        count += len(found)
        if sizes:
            low, high = (number(size, names.decimals([size])) for size in (sizes[0], sizes[-1]))
            size = low if low == high else f"{low} (the least noisy) to {high} (the noisiest)"
            said.append(f"a change in {_phrase(metric)} of {size}")
    chance, none = f"With {100 * TARGET:.0f} % power, before correction", ""
    if blind:
        few = f"{_span(blind)} {'prompt' if max(blind) == 1 else 'prompts'}"
        none = f"{len(blind)} of {count} {'contrast' if count == 1 else 'contrasts'} can find nothing ({few})"
    if said:
        return [f"{chance}, one contrast of this design finds {' or '.join(said)}{f'; {none}' if none else ''}."]
    return [f"{none}."] if none else []


def _others(spo: Sequence[Row], plain: Sequence[Row]) -> list[str]:
    """Return the sentence on settings of SPO that are not the default ones; none where there are none."""
    others = [row for row in spo if row not in plain]
    if not others:
        return []
    better, worse = (sum(significant(row) and gain(row) * sign > 0 for row in others) for sign in (1, -1))
    count = f"{len(others)} {'contrast' if len(others) == 1 else 'contrasts'} with further settings of SPO"
    return [f"{count}: {better} significantly better than the baseline, {worse} worse."]


def _controls(shown: Sequence[Row]) -> list[str]:
    controls = [row for row in shown if row["kind"] == "spo" and is_control(row)]
    moved = sum(map(significant, controls))
    return [f"Controls: {moved} of {len(controls)} differ significantly from the baseline."] if controls else []


def _basis(results: Results, tested: Sequence[Row]) -> str:
    """Return what the verdict rests on: seeds, prompts and what they speak of, and what the headline metrics are judged by."""
    said = []
    method = [row for row in tested if row["estimand"] == "method"]
    given = [row for row in tested if row["estimand"] != "method"]
    if method:
        size = f"{_span([row['n_seeds'] for row in method])} seeds × {_span([row['n_prompts'] for row in method])} prompts"
        said.append(f"{size}: speaks of the method, that is of new prompts and new training seeds.")
    if given:
        size = f"One seed, {_span([row['n_prompts'] for row in given])} prompts"
        said.append(f"{size}: speaks of these checkpoints only; what retraining would change is not in it.")
    return " ".join([*said, *scoring_notes(results, dict.fromkeys(row["metric"] for row in tested))])


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


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
