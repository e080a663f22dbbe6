"""Paired comparisons of baseline and variant over prompts and seeds, a whole family at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from .resample import Floats, bootstrap, by_cluster, check_confidence, cluster_numbers, sign_flip

Estimand = Literal["method", "checkpoints"]


@dataclass(frozen=True)
class Comparison:
    """What a contrast shows: variant minus baseline, over the prompts both answered.

    Attributes:
        diff: mean over prompts of the mean over seeds of (variant - baseline), in the metric's unit.
        low, high: the two-sided interval of diff; low <= diff <= high, or both NaN.
        p: two-sided p of diff = 0, before correction; NaN where no test is possible.
        p_adjusted: Holm's p over the family; NaN where p is.
        n_prompts: prompts with a valid pair in at least one seed.
        n_seeds: seeds with a valid pair.
        estimand: "method" (prompts and seeds are random) or "checkpoints" (prompts are random, the policies are given).
        family: number of contrasts corrected together: those of the call that have a p.
    """

    diff: float
    low: float
    high: float
    p: float
    p_adjusted: float
    n_prompts: int
    n_seeds: int
    estimand: Estimand
    family: int


@dataclass(frozen=True)
class _Fit:
    """A contrast split into prompt and seed effects: d[s, p] = diff + seed[s] + prompt[p] + rest[s, p]."""

    diff: float
    means: Floats  # (prompts,), mean over seeds
    units: NDArray[np.intp]  # (prompts,), cluster numbers
    n_seeds: int
    prompt_variance: float  # of diff, from the spread of prompts
    seed_square: float  # variance of one seed's mean, rest included
    seed_variance: float  # the same with the rest taken out; may be negative
    seed_weight: float  # sum of squared seed weights in diff; 1 / seeds when nothing is missing
    spread: Floats  # (seeds,), deviations of the seeds

    @property
    def n_units(self) -> int:
        return int(np.unique(self.units).size)


@dataclass(frozen=True)
class _Pooled:
    """Seed noise over the whole matrix, in the terms of ``_Fit``; the variance is never negative, freedom is K(S - 1)."""

    variance: float
    square: float
    freedom: int


def compare_matrix(
    baselines: Sequence[ArrayLike],
    variants: Sequence[ArrayLike],
    confidence: float = 0.95,
    *,
    checkpoints: bool = False,
    clusters: Sequence[Sequence[Any] | None] | None = None,
) -> list[Comparison]:
    """Compare every variant with its baseline and correct all of them together.

    Args:
        baselines, variants: one item a contrast, each of shape (seeds, prompts) or (prompts,) for one seed, in the same
            unit and direction; row s of both is the same seed, column p the same prompt. NaN = invalid: a pair counts
            where both sides are valid. Contrasts may differ in their numbers of seeds and prompts.
        confidence: two-sided level in (0, 1).
        checkpoints: ask about these very policies even where there are several seeds.
        clusters: one item a contrast: labels of its prompts, (prompts,), or None where each prompt stands alone.

    Several seeds, estimand "method": prompts and seeds are crossed random effects. The variance of diff is that of the
    prompt means (seed effects cancel in it) plus that of the seed effects. The second is estimated over the whole matrix,
    since three seeds say nothing about a variance, and is 0 where it comes out negative. Interval and p come from one t
    statistic with Satterthwaite's degrees of freedom, between those of the pooled seeds, K(S - 1), and those of the
    prompts. The assumption, similar seed noise in all contrasts of a call, is checked by ``seed_spread``.

    One seed, or ``checkpoints``: bootstrap over clusters of prompts, p by flipping the signs of whole clusters.

    Degenerate inputs: no valid pair gives NaN everywhere and 0 prompts. One prompt (or one cluster) gives diff, and NaN for
    interval and p. No spread at all gives low = diff = high; p is then the sign-flip p, 1 for diff = 0.
    Raises ValueError for shapes that do not fit together.
    """
    check_confidence(confidence)
    if len(baselines) != len(variants):
        raise ValueError(f"{len(baselines)} baselines and {len(variants)} variants: a contrast needs one of each")
    if clusters is not None and len(clusters) != len(variants):
        raise ValueError(f"{len(clusters)} lists of clusters for {len(variants)} contrasts: give one a contrast")
    fits = [
        _fit(_differences(i, base, variant), clusters[i] if clusters is not None else None)
        for i, (base, variant) in enumerate(zip(baselines, variants))
    ]
    pooled = _pool(fits)
    found = [
        _method(fit, pooled, confidence) if fit.n_seeds > 1 and not checkpoints else _checkpoints(fit, confidence) for fit in fits
    ]
    return _holm(found)


def seed_spread(baselines: Sequence[ArrayLike], variants: Sequence[ArrayLike]) -> float:
    """Return the p of equal seed noise in all contrasts (Levene's test on the seed means, centred on their medians).

    Pooling the seed variance assumes it. NaN where fewer than two contrasts have three or more seeds.
    """
    fits = [_fit(_differences(i, base, variant), None) for i, (base, variant) in enumerate(zip(baselines, variants))]
    spreads = [fit.spread for fit in fits if fit.n_seeds > 2]
    if len(spreads) < 2 or not any(np.ptp(spread) > 0 for spread in spreads):
        return math.nan
    p = float(stats.levene(*spreads, center="median").pvalue)
    return p if math.isfinite(p) else math.nan


def _differences(number: int, baseline: ArrayLike, variant: ArrayLike) -> Floats:
    base, other = (np.atleast_2d(np.asarray(x, dtype=np.float64)) for x in (baseline, variant))
    if base.shape != other.shape or base.ndim != 2:
        raise ValueError(f"contrast {number}: baseline {base.shape} and variant {other.shape} must be one (seeds, prompts) shape")
    both = np.isfinite(base) & np.isfinite(other)
    return np.where(both, np.where(both, other, 0.0) - np.where(both, base, 0.0), math.nan)


def _fit(differences: Floats, clusters: Sequence[Any] | None) -> _Fit:
    """Split a contrast (seeds, prompts) into its effects; see ``_Fit``."""
    units = cluster_numbers(clusters, differences.shape[1])
    valid = np.isfinite(differences)
    seeds, prompts = valid.any(axis=1), valid.any(axis=0)
    valid, units = valid[seeds][:, prompts], units[prompts]
    d = np.where(valid, differences[seeds][:, prompts], 0.0)
    n_seeds, n_prompts = d.shape
    if not n_prompts:
        return _Fit(math.nan, np.empty(0), units, 0, math.nan, math.nan, math.nan, math.nan, np.empty(0))
    answered = valid.sum(axis=0)
    means = d.sum(axis=0) / answered
    diff = float(means.mean())
    sums, _ = by_cluster(means - diff, units)
    c = sums.size
    prompt_variance = float((sums**2).sum()) / n_prompts**2 * c / (c - 1) if c > 1 else math.nan
    nothing = (math.nan, math.nan, math.nan)
    if n_seeds < 2 or c < 2:
        return _Fit(diff, means, units, n_seeds, prompt_variance, *nothing, spread=np.zeros(n_seeds))
    # deviations of the seeds, prompts taken out; then what neither explains
    per_seed = valid.sum(axis=1)
    spread = np.where(valid, d - means, 0.0).sum(axis=1) / per_seed
    spread[np.abs(spread) < 1e-12 * float(np.abs(d).max())] = 0.0  # rounding is no noise
    rest = np.where(valid, d - means - spread[:, None], 0.0)
    rest_sums = np.stack([by_cluster(row, units)[0] for row in rest])
    rest_square = float((rest_sums**2).sum()) / ((n_seeds - 1) * (c - 1)) * c / n_prompts**2  # variance it gives a seed's mean
    seed_square = float((spread**2).sum()) / (n_seeds - 1)
    weight = float(((valid / answered).mean(axis=1) ** 2).sum())
    return _Fit(diff, means, units, n_seeds, prompt_variance, seed_square, seed_square - rest_square, weight, spread)


def _pool(fits: Sequence[_Fit]) -> _Pooled:
    used = [fit for fit in fits if math.isfinite(fit.seed_variance)]
    freedom = sum(fit.n_seeds - 1 for fit in used)
    if not freedom:
        return _Pooled(0.0, 0.0, 0)
    variance = sum((fit.n_seeds - 1) * fit.seed_variance for fit in used) / freedom
    square = sum((fit.n_seeds - 1) * fit.seed_square for fit in used) / freedom
    return _Pooled(max(0.0, variance), square, freedom)


def _method(fit: _Fit, pooled: _Pooled, confidence: float) -> Comparison:
    variance = fit.prompt_variance + pooled.variance * fit.seed_weight
    if not math.isfinite(variance):
        return _comparison(fit, math.nan, math.nan, math.nan, "method")
    if variance <= (1e-12 * float(np.abs(fit.means).max())) ** 2:
        return _comparison(fit, fit.diff, fit.diff, sign_flip(by_cluster(fit.means, fit.units)[0]), "method")
    # Satterthwaite; the seed part was found as (square - rest), so its uncertainty is that of the square
    seed_part = min(pooled.square * fit.seed_weight, variance)
    degrees = 1 / ((fit.prompt_variance / variance) ** 2 / (fit.n_units - 1) + (seed_part / variance) ** 2 / pooled.freedom)
    error = math.sqrt(variance)
    reach = float(stats.t.ppf((1 + confidence) / 2, degrees)) * error
    p = float(2 * stats.t.sf(abs(fit.diff) / error, degrees))
    return _comparison(fit, fit.diff - reach, fit.diff + reach, p, "method")


def _checkpoints(fit: _Fit, confidence: float) -> Comparison:
    if fit.n_units < 2:
        return _comparison(fit, math.nan, math.nan, math.nan, "checkpoints")
    sums, counts = by_cluster(fit.means, fit.units)
    _, low, high = bootstrap(sums, counts, confidence)
    return _comparison(fit, min(low, fit.diff), max(high, fit.diff), sign_flip(sums), "checkpoints")


def _comparison(fit: _Fit, low: float, high: float, p: float, estimand: Estimand) -> Comparison:
    return Comparison(fit.diff, low, high, p, math.nan, fit.means.size, fit.n_seeds, estimand, 0)


def _holm(found: Sequence[Comparison]) -> list[Comparison]:
    # statsmodels' multipletests gives the same numbers (tested), but collects garbage at every call: seconds beside a model
    p = np.array([one.p for one in found], dtype=np.float64)
    order = np.argsort(p)[: int(np.isfinite(p).sum())]  # NaN sorts last
    adjusted = np.full(p.size, math.nan)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(order.size, 0, -1)))
    return [replace(one, p_adjusted=float(q), family=order.size) for one, q in zip(found, adjusted)]
