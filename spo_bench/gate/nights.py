"""How fine a gate can see: the smallest margin that nights on which nothing changed pass, by the noise of a reference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from spo_bench.stats.paired import fit_all

from .margins import Family

Floats = NDArray[np.float64]

NIGHTS = 4000
PASSED = 0.95
"""Share of unchanged nights that a margin as small as the resolution lets pass."""
RECOMMENDED = 0.99
"""The same for the margins that are recommended."""
_SEED = 20240917


@dataclass(frozen=True)
class Noise:
    """The noise of one arm's metric: what a second run of the same thing differs by.

    Attributes:
        seeds: policies of the arm, or answers of one policy.
        square: variance of one seed's mean over prompts, everything included.
        rest: the part of it that comes from prompts answered differently by chance.
        units: clusters of prompts.
        retrained: whether seeds have policies of their own, so that ``square`` tells of training.
    """

    seeds: int
    square: float
    rest: float
    units: int
    retrained: bool

    @classmethod
    def of(cls, values: Floats, clusters: Sequence[str | None] | None, policies: int | None) -> Noise:
        """Return the noise in values (seeds, prompts), NaN = invalid; ``policies``: how many different ones, None: not known."""
        (fit,) = fit_all([np.zeros_like(values)], [values], [clusters])
        if not fit.seed_freedom:  # chance within a prompt cannot be told from what prompts differ by: an upper bound
            return cls(fit.n_seeds, fit.prompt_variance, fit.prompt_variance, fit.n_units, retrained=False)
        retrained = policies is None or policies > 1
        return cls(fit.n_seeds, fit.seed_square, fit.rest_square, fit.n_units, retrained)


@dataclass(frozen=True)
class Resolution:
    """What a gate can see of one metric in one family.

    Attributes:
        smallest: margin that ``PASSED`` of unchanged nights pass in all rows; NaN where the noise is not known.
        recommended: the same for ``RECOMMENDED``.
        rows: of the metric.
    """

    metric: str
    family: Family
    smallest: float
    recommended: float
    rows: int


def resolutions(noises: Mapping[str, Sequence[Noise]], confidence: float = 0.95) -> list[Resolution]:
    """Return the resolution of every metric (name -> noise of its arms) in both families.

    Simulated: in each of ``NIGHTS`` nights every row's difference is drawn with the noise of a second run of the same arm, twice
    that of one; the seed variance is drawn as it would be estimated over the metric's rows; and the smallest margin is noted at
    which all rows are fine, each by its one-sided t bound. All metrics together are to pass, so each one passes with the share
    that its rows have in them.
    """
    total = sum(len(some) for some in noises.values())
    found = []
    for metric, arms in noises.items():
        for family in ("evaluation", "retraining"):
            needed = _margins(arms, family == "retraining", confidence)
            share = len(arms) / total
            smallest, recommended = (float(np.quantile(needed, level**share)) for level in (PASSED, RECOMMENDED))
            found.append(Resolution(metric, family, smallest, recommended, len(arms)))
    return found


def _margins(arms: Sequence[Noise], retraining: bool, confidence: float) -> Floats:
    """Return the smallest margin that all rows pass with, a simulated night each, (NIGHTS,)."""
    rng = np.random.default_rng(_SEED)
    pooling = [arm for arm in arms if arm.retrained]
    freedom = sum(arm.seeds - 1 for arm in pooling)
    if (retraining and not freedom) or not all(math.isfinite(arm.rest) for arm in arms):
        return np.full(NIGHTS, math.nan)
    seeds, rest, units = (np.array([getattr(arm, name) for arm in arms], dtype=np.float64) for name in ("seeds", "rest", "units"))
    pooled = np.array([retraining and arm.retrained for arm in arms])
    square = sum((arm.seeds - 1) * arm.square for arm in pooling) / freedom if freedom else 0.0
    chance = sum((arm.seeds - 1) * arm.rest for arm in pooling) / freedom if freedom else 0.0
    true = 2 * (rest + pooled * max(0.0, square - chance)) / seeds
    drawn = square * rng.chisquare(max(1, freedom), (NIGHTS, 1)) / max(1, freedom)
    seed_part = 2 * pooled * np.maximum(0.0, drawn - chance) / seeds
    estimated = 2 * rest / seeds + seed_part
    with np.errstate(divide="ignore", invalid="ignore"):  # no noise at all: any margin will do
        uncertain = np.minimum(2 * pooled * drawn / seeds, estimated)  # as compare_matrix counts degrees of freedom
        degrees = 1 / ((2 * rest / seeds / estimated) ** 2 / (units - 1) + (uncertain / estimated) ** 2 / max(1, freedom))
        quantile = stats.t.ppf(confidence, np.where(np.isfinite(degrees), degrees, 1.0))
    decline = rng.standard_normal(estimated.shape) * np.sqrt(true)
    needed: Floats = (decline + quantile * np.sqrt(estimated)).max(axis=1)
    return needed
