"""Non-inferiority: whether a candidate has declined against a reference by more than a margin, three outcomes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from .paired import Estimand, compare_matrix, holm

Outcome = Literal["worse", "fine", "undecided"]


@dataclass(frozen=True)
class Drift:
    """What became of one row: candidate minus reference, judged by a margin.

    Attributes:
        outcome: "worse", "fine" or "undecided"; see ``non_inferiority``.
        diff: candidate - reference as measured, in the metric's own direction and unit.
        low, high: the two one-sided bounds of diff, each at the call's confidence; low <= diff <= high, or both NaN.
        p: one-sided p of "no decline"; NaN where no test is possible.
        p_adjusted: Holm's p over the family; NaN where p is.
        margin: the largest decline that is let pass, in the metric's unit.
        n_prompts, n_seeds, estimand: as in ``Comparison``.
        family: number of rows corrected together: those that have a p.
        higher_is_better: whether a decline is a negative diff.
    """

    outcome: Outcome
    diff: float
    low: float
    high: float
    p: float
    p_adjusted: float
    margin: float
    n_prompts: int
    n_seeds: int
    estimand: Estimand
    family: int
    higher_is_better: bool = True

    @property
    def decline(self) -> float:
        """How far the candidate is below the reference; negative where it is better."""
        return -self.diff if self.higher_is_better else self.diff

    @property
    def bound(self) -> float:
        """The largest decline that cannot be excluded."""
        return -self.low if self.higher_is_better else self.high


def non_inferiority(
    references: Sequence[ArrayLike],
    candidates: Sequence[ArrayLike],
    margins: Sequence[float],
    *,
    higher_is_better: bool | Sequence[bool] = True,
    confidence: float = 0.95,
    checkpoints: bool = False,
    clusters: Sequence[Sequence[Any] | None] | None = None,
) -> list[Drift]:
    """Judge every candidate by its reference, the rows of a call together.

    Args:
        references, candidates: one item a row, (seeds, prompts), as baselines and variants in ``compare_matrix``.
        margins: one positive number a row, in the metric's unit.
        higher_is_better: the metric's direction, for all rows or one a row.
        confidence: of each one-sided bound; above 0.5 and below 1. 1 - confidence is the level of the tests.
        checkpoints, clusters: as in ``compare_matrix``.

    worse: Holm's p of "no decline" is below 1 - confidence, and the measured decline is at least the margin.
    fine: the bound shows that the decline is smaller than the margin. An exact tie, all differences 0, has the bounds 0 whatever
    the seed noise of other rows, and is fine.
    undecided: neither; also wherever there is no interval: nothing valid, or one prompt.
    So a measured decline smaller than the margin is never worse, and a decline as large as the margin is fine with a probability
    of at most 1 - confidence a row. With unchanged rows alone, any is worse in at most 1 - confidence of calls.

    Bounds and p come from ``compare_matrix``: its two-sided interval at 2 * confidence - 1 leaves 1 - confidence on either side.
    Half of its two-sided p is the one-sided p of the side that diff lies on, since both of its null distributions are
    symmetric about 0: t, and the sums under flipped signs.

    Seed noise is pooled over the call, so rows of a call should share a metric; ``as_family`` corrects over several calls.
    Raises ValueError for shapes, margins, directions or a confidence that do not fit.
    """
    if not 0.5 < confidence < 1:
        raise ValueError(f"confidence {confidence}: the level of a one-sided bound lies between 0.5 and 1, such as 0.95")
    upwards = [higher_is_better] * len(margins) if isinstance(higher_is_better, bool) else list(higher_is_better)
    if not len(margins) == len(candidates) == len(upwards):
        raise ValueError(f"{len(candidates)} candidates, {len(margins)} margins, {len(upwards)} directions: give one each a row")
    for row, margin in enumerate(margins):
        if not 0 < margin < math.inf:
            raise ValueError(f"row {row}: margin {margin}: a margin is a positive number in the metric's unit")
    found = compare_matrix(references, candidates, 2 * confidence - 1, checkpoints=checkpoints, clusters=clusters)
    rows = []
    for one, margin, upward, reference, candidate in zip(found, margins, upwards, references, candidates):
        if math.isfinite(one.low) and one.diff == 0 and not np.nan_to_num(np.subtract(candidate, reference)).any():
            one = replace(one, low=0.0, high=0.0)
        declined = one.diff < 0 if upward else one.diff > 0
        p = one.p / 2 if declined else 1 - one.p / 2
        sizes = (one.n_prompts, one.n_seeds, one.estimand)
        rows.append(Drift("undecided", one.diff, one.low, one.high, p, math.nan, float(margin), *sizes, 0, upward))
    return as_family(rows, confidence)


def as_family(drifts: Sequence[Drift], confidence: float = 0.95) -> list[Drift]:
    """Return the rows with Holm's correction over all of them, and judged by it.

    For rows of several calls, such as one a metric, that one gate decides by; ``confidence`` as in those calls.
    """
    adjusted = holm([one.p for one in drifts])
    family = sum(math.isfinite(p) for p in adjusted)
    corrected = [replace(one, p_adjusted=float(p), family=family) for one, p in zip(drifts, adjusted)]
    return [replace(one, outcome=_outcome(one, 1 - confidence)) for one in corrected]


def _outcome(one: Drift, level: float) -> Outcome:
    # NaN compares as false: undecided
    if one.p_adjusted < level and one.decline >= one.margin:
        return "worse"
    return "fine" if one.bound < one.margin else "undecided"
