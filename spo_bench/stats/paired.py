"""Paired comparisons of baseline and variant over prompts and seeds, a whole family at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from .resample import Floats, bootstrap, by_cluster, check_confidence, cluster_numbers, sign_flip

Estimand = Literal["method", "checkpoints"]

_NULL = 1999
_DIVERGED = 0.01
"""Level at which a contrast's seed noise is too large to be pooled."""
_SEED = 20240917


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
        own_noise: whether the seed noise is far above that of the other contrasts, so that it was kept out of their pool, and
            interval and p rest on the contrast's own few seeds.
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
    own_noise: bool = False


@dataclass(frozen=True)
class Fit:
    """A contrast split into prompt and seed effects: d[s, p] = diff + seed[s] + prompt[p] + rest[s, p]."""

    diff: float
    means: Floats  # (prompts,), mean over seeds
    units: NDArray[np.intp]  # (prompts,), cluster numbers
    n_seeds: int
    prompt_variance: float  # of diff, from the spread of prompts: prompt effects and rest
    seed_square: float = math.nan  # variance of one seed's effect as measured, rest included
    rest_square: float = math.nan  # what the rest gives to it; the difference is the seed variance, and may be negative
    seed_weight: float = math.nan  # sum of squared seed weights in diff; 1 / seeds when nothing is missing
    seed_freedom: int = 0  # seeds - 1, less where seeds share no prompt; 0 = seeds cannot be told apart
    spread: Floats = field(default_factory=lambda: np.empty(0))  # (seeds,), the measured seed effects
    tie: bool = False  # every difference is exactly 0

    @property
    def n_units(self) -> int:
        """Number of clusters, or of prompts where each stands alone."""
        return int(np.unique(self.units).size)


@dataclass(frozen=True)
class Pooled:
    """Seed noise over the whole matrix, in the terms of ``Fit``; the variance is never negative, freedom is K(S - 1).

    ``own``: it is that of one contrast alone, which differs too much from the others.
    """

    variance: float
    square: float
    freedom: int
    own: bool = False


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
    since three seeds say nothing about a variance, and is 0 where it comes out negative. A contrast whose seed noise is far
    above the others' (``pool``), such as one that diverged in a seed, is left to its own noise and does not widen theirs.
    Interval and p come from one t statistic with Satterthwaite's degrees of freedom, never more than those of the prompts.
    The assumption, similar seed noise in all contrasts of a call, is checked by ``seed_spread``. A single contrast with two
    seeds has one degree of freedom for seed noise, which is too few: where that noise dominates, its 95 % interval covers
    about 89 %. docs/statistics.md has the measured coverage.

    One seed, or ``checkpoints``: bootstrap over clusters of prompts, p by flipping the signs of whole clusters.

    Degenerate inputs: no valid pair gives NaN everywhere and 0 prompts. One prompt (or one cluster), or seeds that share no
    prompt in any contrast, gives diff, and NaN for interval and p. No spread at all, and no seed
    noise in other contrasts, gives low = diff = high; p is then the sign-flip p, 1 for diff = 0.
    Raises ValueError for shapes that do not fit together.
    """
    check_confidence(confidence)
    fits = fit_all(baselines, variants, clusters)
    found = [
        _method(fit, pooled, confidence) if fit.n_seeds > 1 and not checkpoints else _checkpoints(fit, confidence)
        for fit, pooled in zip(fits, pool(fits))
    ]
    adjusted = holm([one.p for one in found])
    family = int(np.isfinite(adjusted).sum())
    return [replace(one, p_adjusted=float(q), family=family) for one, q in zip(found, adjusted)]


def seed_spread(baselines: Sequence[ArrayLike], variants: Sequence[ArrayLike]) -> float:
    """Return the p of equal seed noise in all contrasts (Levene's test on the seed effects, centred on their medians).

    Pooling the seed variance assumes it; contrasts that are not pooled are left out. NaN where fewer than two contrasts have
    three or more seeds, or no seed differs.

    The statistic is referred to its own distribution under equal normal noise, drawn ``_NULL`` times. Of three values one is the
    median, so one deviation is always 0, and against the usual F distribution the test finds nothing: simulated, it rejects in
    0.0 % of matrices of 12 contrasts and 3 seeds, whatever their noise.
    """
    fits = fit_all(baselines, variants)
    spreads = [fits[i].spread for i in _alike(fits) if fits[i].seed_freedom > 1]
    if len(spreads) < 2 or not any(np.ptp(spread) > 0 for spread in spreads):
        return math.nan
    found = _levene([spread[None] for spread in spreads])[0]
    null = _levene_null(tuple(sorted(spread.size for spread in spreads)))
    return float(1 + np.count_nonzero(null >= found)) / (1 + _NULL)


def _levene(groups: Sequence[Floats]) -> Floats:
    """Return Levene's statistic up to a constant factor, (draws,), of groups that each have shape (draws, seeds)."""
    sizes = np.array([group.shape[1] for group in groups])
    apart = [np.abs(group - np.median(group, axis=1, keepdims=True)) for group in groups]
    means = np.stack([one.mean(axis=1) for one in apart], axis=1)
    within = sum(one.var(axis=1) * one.shape[1] for one in apart)
    between: Floats = (sizes * (means - np.average(means, axis=1, weights=sizes)[:, None]) ** 2).sum(axis=1)
    return between / within


@lru_cache(maxsize=64)
def _levene_null(sizes: tuple[int, ...]) -> Floats:
    rng = np.random.default_rng((_SEED, *sizes))
    return _levene([rng.standard_normal((_NULL, size)) for size in sizes])


def fit_all(
    baselines: Sequence[ArrayLike], variants: Sequence[ArrayLike], clusters: Sequence[Sequence[Any] | None] | None = None
) -> list[Fit]:
    """Split every contrast into its effects; arguments and errors as in ``compare_matrix``."""
    if len(baselines) != len(variants):
        raise ValueError(f"{len(baselines)} baselines and {len(variants)} variants: a contrast needs one of each")
    if clusters is not None and len(clusters) != len(variants):
        raise ValueError(f"{len(clusters)} lists of clusters for {len(variants)} contrasts: give one a contrast")
    return [
        _fit(_differences(i, base, variant), clusters[i] if clusters is not None else None)
        for i, (base, variant) in enumerate(zip(baselines, variants))
    ]


def pool(fits: Sequence[Fit]) -> list[Pooled]:
    """Return the seed noise that goes into every contrast's interval.

    That is the average over the contrasts, each weighted by its degrees of freedom; all 0 where none has several seeds. Exact
    ties do not count: policies that never differ say nothing of the noise of those that do. Neither does a contrast whose noise
    is far above the others', which gets its own. Which one that is, Cochran's C tells (1941): the largest share that one
    contrast has in the sum of (measured / expected) variances, held against its own distribution under equal normal noise,
    drawn ``_NULL`` times, at the level ``_DIVERGED``; again and again until none is found. Unlike Levene's test it needs no more
    than two seeds.
    """
    alike = _alike(fits)
    whole = _averaged([fits[i] for i in alike] or [fit for fit in fits if fit.seed_freedom])
    return [
        replace(_averaged([fit]), own=True) if fit.seed_freedom and not fit.tie and i not in alike else whole
        for i, fit in enumerate(fits)
    ]


def _averaged(fits: Sequence[Fit]) -> Pooled:
    freedom = sum(fit.seed_freedom for fit in fits)
    if not freedom:
        return Pooled(0.0, 0.0, 0)
    square = sum(fit.seed_freedom * fit.seed_square for fit in fits) / freedom
    rest = sum(fit.seed_freedom * fit.rest_square for fit in fits) / freedom
    return Pooled(max(0.0, square - rest), square, freedom)


def _alike(fits: Sequence[Fit]) -> list[int]:
    """Return the places of the contrasts whose seed noise is pooled."""
    places = [i for i, fit in enumerate(fits) if fit.seed_freedom and not fit.tie]
    while len(places) > 2:  # of two, neither is the odd one
        some = [fits[i] for i in places]
        pooled = _averaged(some).variance
        expected = np.array([pooled + fit.rest_square for fit in some])
        squares = np.array([fit.seed_square for fit in some])
        if not (expected > 0).all() or not squares.any():
            break
        shares = squares / expected
        null = _largest_share(tuple(sorted(fit.seed_freedom for fit in some)))
        if 1 + np.count_nonzero(null >= shares.max() / shares.sum()) > _DIVERGED * (1 + _NULL):
            break
        places.pop(int(shares.argmax()))
    return places


@lru_cache(maxsize=64)
def _largest_share(freedoms: tuple[int, ...]) -> Floats:
    rng = np.random.default_rng((_SEED, *freedoms))
    squares = rng.chisquare(freedoms, (_NULL, len(freedoms))) / freedoms
    share: Floats = squares.max(axis=1) / squares.sum(axis=1)
    return share


def total_variance(prompt: Any, units: Any, seed: Any, square: Any, freedom: Any) -> tuple[Any, Any]:
    """Return the variance of diff and its degrees of freedom; numbers or arrays that broadcast.

    Args:
        prompt: variance of diff from the spread of prompts, found on ``units`` - 1 degrees of freedom.
        seed: variance of diff from the seeds.
        square: the same with the rest still in it, found on ``freedom`` degrees.

    Satterthwaite's approximation. The seed part was found as (square - rest), so its uncertainty is that of the square. The
    degrees never exceed those of the prompts: among few prompts a prompt part that is small by chance would else borrow the
    degrees of the seeds (2 prompts, 12 contrasts: a false alarm in 20 % of families, and in no more than 5 % with this bound).
    """
    variance = prompt + seed
    degrees = 1 / ((prompt / variance) ** 2 / (units - 1) + (np.minimum(square, variance) / variance) ** 2 / freedom)
    return variance, np.minimum(degrees, units - 1)


def holm(p: Sequence[float]) -> Floats:
    """Return Holm's p (1979) over a family, shape (tests,); NaN stays NaN and does not count.

    statsmodels' ``multipletests`` gives the same numbers, but collects garbage at every call: seconds beside a model.
    """
    raw = np.asarray(p, dtype=np.float64)
    order = np.argsort(raw)[: int(np.isfinite(raw).sum())]  # NaN sorts last
    adjusted = np.full(raw.size, math.nan)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(raw[order] * np.arange(order.size, 0, -1)))
    return adjusted


def _differences(number: int, baseline: ArrayLike, variant: ArrayLike) -> Floats:
    base, other = (np.atleast_2d(np.asarray(x, dtype=np.float64)) for x in (baseline, variant))
    if base.shape != other.shape or base.ndim != 2:
        raise ValueError(f"contrast {number}: baseline {base.shape} and variant {other.shape} must be one (seeds, prompts) shape")
    both = np.isfinite(base) & np.isfinite(other)
    return np.where(both, np.where(both, other, 0.0) - np.where(both, base, 0.0), math.nan)


def _fit(differences: Floats, clusters: Sequence[Any] | None) -> Fit:
    """Split a contrast (seeds, prompts) into its effects; see ``Fit``."""
    units = cluster_numbers(clusters, differences.shape[1])
    valid = np.isfinite(differences)
    seeds, prompts = valid.any(axis=1), valid.any(axis=0)
    valid, units = valid[seeds][:, prompts], units[prompts]
    d = np.where(valid, differences[seeds][:, prompts], 0.0)
    n_seeds, n_prompts = d.shape
    if not n_prompts:
        return Fit(math.nan, np.empty(0), units, 0, math.nan)
    answered = valid.sum(axis=0)
    means = d.sum(axis=0) / answered
    diff = float(means.mean())
    sums, _ = by_cluster(means - diff, units)
    c = sums.size
    prompt_variance = float((sums**2).sum()) / n_prompts**2 * c / (c - 1) if c > 1 else math.nan
    if n_seeds < 2 or c < 2:
        return Fit(diff, means, units, n_seeds, prompt_variance, tie=not d.any())
    # Seed effects by least squares, prompts taken out. Where nothing is missing they are the seeds' mean deviations; where
    # something is, those would be too small, since a prompt's mean then follows the seeds that answered it.
    normal = np.diag(valid.sum(axis=1)) - (valid / answered) @ valid.T
    inverse = np.linalg.pinv(normal, rcond=1e-9, hermitian=True)
    freedom = round(float(np.trace(inverse @ normal)))
    effects = inverse @ np.where(valid, d - means, 0.0).sum(axis=1)
    effects[np.abs(effects) < 1e-12 * float(np.abs(d).max())] = 0.0  # rounding is no noise
    rest = np.where(valid, d - means - effects[:, None] + (effects @ valid) / answered, 0.0)
    rest_effects = inverse @ np.stack([by_cluster(row, units)[0] for row in rest])
    weight = float(((valid / answered).mean(axis=1) ** 2).sum())
    seed_square = float((effects**2).sum()) / max(1, freedom)
    rest_square = float((rest_effects**2).sum()) / max(1, freedom) * c / (c - 1)
    return Fit(diff, means, units, n_seeds, prompt_variance, seed_square, rest_square, weight, freedom, effects, not d.any())


def _method(fit: Fit, pooled: Pooled, confidence: float) -> Comparison:
    if fit.n_units < 2 or not pooled.freedom:
        return _comparison(fit, math.nan, math.nan, math.nan, "method")
    if fit.prompt_variance + pooled.variance * fit.seed_weight <= (1e-12 * float(np.abs(fit.means).max())) ** 2:
        return _comparison(fit, fit.diff, fit.diff, sign_flip(by_cluster(fit.means, fit.units)[0]), "method")
    variance, degrees = total_variance(
        fit.prompt_variance, fit.n_units, pooled.variance * fit.seed_weight, pooled.square * fit.seed_weight, pooled.freedom
    )
    error = math.sqrt(variance)
    reach = float(stats.t.ppf((1 + confidence) / 2, degrees)) * error
    p = float(2 * stats.t.sf(abs(fit.diff) / error, degrees))
    return replace(_comparison(fit, fit.diff - reach, fit.diff + reach, p, "method"), own_noise=pooled.own)


def _checkpoints(fit: Fit, confidence: float) -> Comparison:
    if fit.n_units < 2:
        return _comparison(fit, math.nan, math.nan, math.nan, "checkpoints")
    sums, counts = by_cluster(fit.means, fit.units)
    _, low, high = bootstrap(sums, counts, confidence)
    return _comparison(fit, min(low, fit.diff), max(high, fit.diff), sign_flip(sums), "checkpoints")


def _comparison(fit: Fit, low: float, high: float, p: float, estimand: Estimand) -> Comparison:
    return Comparison(fit.diff, low, high, p, math.nan, fit.means.size, fit.n_seeds, estimand, 0)
