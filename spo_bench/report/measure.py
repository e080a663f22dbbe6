"""The numbers of a run: metrics of cells, and comparisons of cells with their twins."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spo_bench.stats import compare_matrix, interval, intervals, seed_spread

from .areas import FRACTION, areas
from .results import SFT, Cell, Metric, Results

CONFIDENCE = 0.95
ALPHA = 0.05
EVEN = {"head_to_head": 0.5}
"""Metrics that are a comparison with the own baseline already -> their value when there is no difference."""
EVEN_SFT = {"win_rate_sft": 0.5}
"""The same for comparisons with the SFT policy."""

NOT_ABLATED = ("degree_accuracy",)
"""Metrics that SPO variants are not compared in: what guessing reaches depends on their settings."""

Kind = Literal["spo", "training", "axis", "ablation"]
_EVEN: Mapping[Kind, Mapping[str, float]] = {"spo": EVEN, "training": EVEN_SFT, "axis": {}, "ablation": {}}


class Paired(NamedTuple):
    """One metric of a contrast: (seeds, prompts) each, NaN = invalid; the metric whose ids order the prompts; the seeds."""

    baseline: NDArray[np.float64]
    variant: NDArray[np.float64]
    metric: Metric
    seeds: Sequence[int]

    @property
    def used(self) -> list[int]:
        """Return the seeds with a valid pair."""
        differences = self.variant - self.baseline
        return [seed for seed, row in zip(self.seeds, differences) if np.isfinite(row).any()]


@dataclass(frozen=True)
class Contrast:
    """Cells and their twins over seeds, all else equal.

    Attributes:
        kind: "spo" (variant: with SPO), "training" (variant: a trained policy, baseline: its SFT policy), "axis" (variant:
            trained on changed data, baseline: on plain data, as far as one data axis goes) or "ablation" (variant: with
            other SPO settings, baseline: with SPO's default settings).
        pairs: (baseline, variant) a seed, both finished; a baseline may be None for training contrasts without an SFT cell.
        axis: the data axis of an "axis" contrast.
    """

    kind: Kind
    pairs: Sequence[tuple[Cell | None, Cell]]
    axis: str = ""

    @property
    def variant(self) -> Cell:
        """Return the variant of the first seed."""
        return self.pairs[0][1]

    @property
    def baseline_name(self) -> str:
        """Return the baseline's row in a table; an SFT policy that has no cell is called so too."""
        baseline = self.pairs[0][0]
        return SFT if baseline is None else baseline.name

    def arrays(self, metric: str) -> Paired | None:
        """Return a metric over the seeds that have it; None where none has."""
        even = _EVEN[self.kind].get(metric)
        rows = []
        reference: Metric | None = None
        for baseline, variant in self.pairs:
            mine = variant.metrics.get(metric)
            theirs = baseline.metrics.get(metric) if baseline else None
            if mine is None or (theirs is None and even is None):
                continue
            reference = reference or mine
            values = mine.like(reference, f"cell {variant.id}, metric '{metric}'")
            if even is not None:
                against = np.full(values.shape, even)
            else:
                assert baseline is not None  # noqa: S101 - it has the metric
                assert theirs is not None  # noqa: S101 - or the pair was left out above
                if _held_out(baseline, variant):
                    theirs = theirs.among(reference.ids)
                against = theirs.like(reference, f"cells {baseline.id} and {variant.id}, metric '{metric}'")
            rows.append((against, values, variant.seed))
        if reference is None:
            return None
        return Paired(np.stack([row[0] for row in rows]), np.stack([row[1] for row in rows]), reference, [row[2] for row in rows])


def _held_out(baseline: Cell, variant: Cell) -> bool:
    """Return whether the variant may be evaluated on a part of the baseline's prompts.

    These are held-out domains, or the prompts that still fit once they state a goal.
    """
    return any(axis in variant.axes and baseline.axes.get(axis) != variant.axes[axis] for axis in ("holdout", "relabel"))


def metric_rows(results: Results) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl: a cell and metric each, with interval; scalars have none.

    A length-controlled win rate has no values by prompt; where it is refused, its value is None and scores.json has the reason.
    """
    rows = []
    whole = [metric for cell in results.done for metric in cell.metrics.values()]
    found = iter(intervals([metric.values for metric in whole], CONFIDENCE, [metric.clusters for metric in whole]))
    for cell in results.done:
        place: dict[str, Any] = {"cell": cell.id, "model": cell.model, "task": cell.task, "method": cell.method}
        place |= {"spo": cell.row.get("spo", False), "seed": cell.seed, "axes": cell.axes}
        for name, metric in cell.metrics.items():
            mean, low, high, n = next(found)
            rows.append(
                place
                | {"metric": name, "value": finite(mean), "n": n, "low": finite(low), "high": finite(high)}
                | {"higher_is_better": metric.higher_is_better, "unit": metric.unit, "n_invalid": len(metric.ids) - n}
            )
        for name, rate in cell.length_controlled.items():
            numbers = {key: rate[key] for key in ("value", "n", "low", "high", "higher_is_better", "n_invalid")}
            rows.append(place | {"metric": name} | numbers | {"unit": "prompt"})
        for name, (value, better) in cell.scalars.items():
            known = int(math.isfinite(value))
            rows.append(
                place
                | {"metric": name, "value": finite(value), "n": known, "low": None, "high": None}
                | {"higher_is_better": better, "unit": "cell", "n_invalid": 1 - known}
            )
    return rows


def contrasts(results: Results, kind: Literal["spo", "training"]) -> list[Contrast]:
    """Return the contrasts of a kind whose both sides are finished in at least one seed."""
    groups: dict[tuple[Any, ...], list[tuple[Cell | None, Cell]]] = {}
    baselines = {(*cell.place, cell.seed): cell for cell in results.done if cell.spo is None}
    sft = {(cell.model, cell.task, cell.seed): cell for cell in results.done if cell.method == SFT}
    for cell in results.done:
        if cell.method == SFT or (kind == "spo" and cell.spo is None):
            continue
        if kind == "spo":
            twin = baselines.get((*cell.place, cell.seed))
            if twin is None:
                continue
        else:
            twin = sft.get((cell.model, cell.task, cell.seed))
        groups.setdefault((*cell.place, cell.settings), []).append((twin, cell))
    return [Contrast(kind, sorted(pairs, key=lambda pair: pair[1].seed)) for pairs in groups.values()]


def axis_contrasts(results: Results, axis: str) -> list[Contrast]:
    """Return the contrasts of changed with plain data along one axis, everything else equal; none where plain is not there."""
    groups: dict[tuple[str, ...], list[tuple[Cell | None, Cell]]] = {}
    cells = {(*cell.place, cell.settings, cell.seed): cell for cell in results.done}
    for cell in results.done:
        plain = cells.get((*cell.place_without(axis), cell.settings, cell.seed))
        if axis in cell.axes and plain is not None:
            groups.setdefault((*cell.place, cell.settings), []).append((plain, cell))
    return [Contrast("axis", sorted(pairs, key=lambda pair: pair[1].seed), axis) for pairs in groups.values()]


def plain_spo(cells: Iterable[Cell]) -> Cell | None:
    """Return the first cell with SPO as it is by default, else with the first SPO settings that are no control; None without."""
    own = [cell for cell in cells if cell.spo is not None and not cell.spo.get("control")]
    return next((cell for cell in own if cell.label == "+SPO"), own[0] if own else None)


def ablation_contrasts(results: Results) -> list[Contrast]:
    """Return the contrasts of every SPO variant and control with plain SPO (``plain_spo``) of the same method and data."""
    plain = plain_spo(results.cells)
    if plain is None:
        return []
    twins = {(*cell.place, cell.seed): cell for cell in results.done if cell.settings == plain.settings}
    groups: dict[tuple[str, ...], list[tuple[Cell | None, Cell]]] = {}
    for cell in results.done:
        twin = twins.get((*cell.place, cell.seed))
        if cell.spo is not None and cell.settings != plain.settings and twin is not None:
            groups.setdefault((*cell.place, cell.settings), []).append((twin, cell))
    return [Contrast("ablation", sorted(pairs, key=lambda pair: pair[1].seed)) for pairs in groups.values()]


def undominated(policies: Sequence[Sequence[Cell]], found: Sequence[Level | None], metric: str) -> list[bool]:
    """Return which policies are not significantly worse than the best of them in a metric.

    Args:
        policies: the finished cells of each, over its seeds.
        found: the level of each; None or NaN = it has none, and is False.
        metric: its name.

    Each is compared with the best over the prompts and seeds they share (``compare_matrix``), Holm's correction over the call.
    A policy that shares no seed with the best, or that no test is possible for, has not been shown to be worse: True. The best
    was chosen by the same data, which makes the others look a little worse than they are.
    """
    known = {i: level for i, level in enumerate(found) if level is not None and math.isfinite(level.value)}
    if not known:
        return [False] * len(policies)
    sign = 1 if all(level.higher_is_better for level in known.values()) else -1
    top = max(known, key=lambda i: sign * known[i].value)
    shared = {i: both for i in known if i != top and (both := _shared(policies[top], policies[i], metric))}
    compared = compare_matrix(
        [best for best, _, _ in shared.values()],
        [other for _, other, _ in shared.values()],
        CONFIDENCE,
        clusters=[clusters for *_, clusters in shared.values()],
    )
    worse = {i for i, one in zip(shared, compared) if one.p_adjusted < ALPHA and sign * one.diff < 0}
    return [i in known and i not in worse for i in range(len(policies))]


def _shared(
    best: Sequence[Cell], others: Sequence[Cell], metric: str
) -> tuple[NDArray[np.float64], NDArray[np.float64], Sequence[str | None] | None] | None:
    """Return (best, other, clusters) over the seeds and prompts that both have; None where they share no seed."""
    mine = {cell.seed: cell.metrics[metric] for cell in best if metric in cell.metrics}
    rows = [(mine[cell.seed], cell.metrics[metric]) for cell in others if cell.seed in mine and metric in cell.metrics]
    if not rows:
        return None
    first = rows[0][0].among(rows[0][1].ids)  # one of the two may be evaluated on a part of the other's prompts
    mine_too, theirs = (np.stack([pair[i].among(first.ids).like(first, f"metric '{metric}'") for pair in rows]) for i in (0, 1))
    return mine_too, theirs, first.clusters


def curve_areas(results: Results) -> Results:
    """Return the areas under the data-efficiency curves of the headline metrics as cells of their own (``areas``)."""
    return replace(results, cells=areas(results.cells, {task: headlines(results, task) for task in results.tasks}))


def comparison_rows(results: Results) -> list[dict[str, Any]]:
    """Return the rows of comparisons.jsonl: a contrast and metric each.

    A family is all contrasts of one kind and metric, and of one axis where data axes are compared. Areas under curves are
    metrics of their own, named with ``names.AREA``; they are compared for SPO only.
    """
    rows = [*_compared(contrasts(results, "spo")), *_compared(contrasts(results, "training"))]
    rows += _compared(ablation_contrasts(results), NOT_ABLATED)
    for axis in results.axes:
        rows += _compared(axis_contrasts(results, axis))
    if FRACTION in results.axes:
        rows += _compared(contrasts(curve_areas(results), "spo"))
    return rows


def _compared(found: Sequence[Contrast], leave_out: Sequence[str] = ()) -> Iterable[dict[str, Any]]:
    names = dict.fromkeys(name for contrast in found for _, cell in contrast.pairs for name in cell.metrics)
    for name in (name for name in names if name not in leave_out):
        family = [(contrast, arrays) for contrast in found if (arrays := contrast.arrays(name)) is not None]
        if not family:
            continue
        baselines, variants = [arrays.baseline for _, arrays in family], [arrays.variant for _, arrays in family]
        spread = seed_spread(baselines, variants)
        comparisons = compare_matrix(baselines, variants, CONFIDENCE, clusters=[arrays.metric.clusters for _, arrays in family])
        for (contrast, arrays), comparison in zip(family, comparisons):
            cell = contrast.variant
            yield {
                "kind": contrast.kind,
                **({"axis": contrast.axis} if contrast.axis else {}),
                "model": cell.model,
                "task": cell.task,
                "method": cell.method,
                "metric": name,
                "baseline": contrast.baseline_name,
                "variant": cell.name,
                **{key: finite(value) if isinstance(value, float) else value for key, value in asdict(comparison).items()},
                "confidence": CONFIDENCE,
                "higher_is_better": arrays.metric.higher_is_better,
                "unit": arrays.metric.unit,
                "seeds": arrays.used,
                "seed_spread_p": finite(spread),
                "spo": cell.row.get("spo", False),
                "axes": cell.axes,
            }


@dataclass(frozen=True)
class Level:
    """A metric's mean over prompts and seeds, with its interval; NaN where there is none."""

    value: float
    low: float
    high: float
    n: int
    seeds: int
    higher_is_better: bool


def levels(results: Results, metric: str) -> dict[tuple[str, ...], Level]:
    """Return a metric's level for every (model, task, method, axes, settings), seeds taken together.

    One seed: the interval of ``interval``. Several: the two-way interval of ``compare_matrix`` against zero, so that the ± of
    a level and the interval of a difference speak of the same thing.
    """
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in results.done:
        if metric in cell.metrics:
            groups.setdefault((*cell.place, cell.settings), []).append(cell)
    out, several = {}, []
    for key, cells in groups.items():
        first = cells[0].metrics[metric]
        if len(cells) == 1:
            mean, low, high, n = interval(first.values, CONFIDENCE, first.clusters)
            out[key] = Level(mean, low, high, n, 1, first.higher_is_better)
        else:
            rows = [cell.metrics[metric].like(first, f"cell {cell.id}, metric '{metric}'") for cell in cells]
            several.append((key, np.stack(rows), first))
    found = compare_matrix(
        [np.zeros_like(values) for _, values, _ in several],
        [values for _, values, _ in several],
        CONFIDENCE,
        clusters=[first.clusters for _, _, first in several],
    )
    for (key, _, first), one in zip(several, found):
        out[key] = Level(one.diff, one.low, one.high, one.n_prompts, one.n_seeds, first.higher_is_better)
    return out


def headlines(results: Results, task: str) -> list[str]:
    """Return the metrics a task is judged by, the first the most telling.

    The known reward where there is one; else a win rate (against the chosen answers before the SFT policy) and a reward model.
    Where nothing judges the answers: the accuracy on held-out pairs, else a text metric that was asked for, else none.
    """
    names = results.measured.get(task, [])
    if judging := _judging(names):
        return judging
    texts = [name for name in names if name == "rouge_l" or name.startswith("evaluate:")]
    return ["implicit_accuracy"] if "implicit_accuracy" in names else texts[:1]


def unjudged_notes(results: Results) -> list[str]:
    """Return the sentence that names the tasks whose answers nothing judges; none where there is no such task."""
    tasks = [task for task in results.tasks if (names := results.measured.get(task, [])) and not _judging(names)]
    if not tasks:
        return []
    where = "" if tasks == results.tasks else f" of {', '.join(tasks)}"
    shown = any("implicit_accuracy" in headlines(results, task) for task in tasks)
    rest = ": implicit accuracy is about the data's held-out pairs" if shown else ""
    return [f"Nothing judges the answers{where} (no known reward, judge or reward model){rest}."]


def _judging(names: Sequence[str]) -> list[str]:
    """Return the headline metrics among these that say how good answers are."""
    if "true_reward" in names:
        return ["true_reward"]
    rates = [name for name in ("win_rate_chosen", "win_rate_sft") if name in names][:1]
    return rates + [name for name in names if name.startswith("reward/")][:1]


def finite(value: float) -> float | None:
    """Return the number, or None where it is NaN or infinite: JSON has no such numbers."""
    return float(value) if math.isfinite(value) else None
