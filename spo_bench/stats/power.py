"""Power: which effects a design finds, and how many prompts or seeds an effect needs. For planning the next study."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from scipy.optimize import brentq

from .paired import Fit, Pooled, fit_all, pool, total_variance
from .resample import Floats, check_confidence

MOST = 10**12
"""An effect that needs more prompts or seeds than this counts as one that no number of them finds."""


@dataclass(frozen=True)
class Power:
    """What a contrast's design can find, in the metric's unit.

    Attributes:
        effect: the absolute effect asked about.
        power: probability that a design like this one finds that effect; NaN where the noise is not known.
        detectable: smallest effect found with the target's power; NaN where power is, or where no effect could be found.
        prompts_needed: prompts that give the target's power at these seeds; None where seed noise alone hides the effect.
        seeds_needed: seeds (of every contrast) that give it at these prompts; None where prompt noise alone hides the effect,
            or where there is one seed, so that seed noise is not known.
        prompt_sd: standard deviation of the effects of prompts.
        seed_sd: that of the effects of seeds, pooled over the call; NaN with one seed.
        n_prompts, n_seeds: of this design.
        rest_sd: what neither explains, a value of one prompt in one seed; NaN with one seed, where it is part of prompt_sd.
    """

    effect: float
    power: float
    detectable: float
    prompts_needed: int | None
    seeds_needed: int | None
    prompt_sd: float
    seed_sd: float
    n_prompts: int
    n_seeds: int
    rest_sd: float = math.nan


@dataclass(frozen=True)
class _Design:
    """Parts of the variance of diff at the present numbers of prompts, units and seeds."""

    prompt: float
    rest: float
    seed: float
    square_rest: float  # what the rest adds to the measured seed variance
    n_prompts: int
    n_units: int
    n_seeds: int
    freedom: int  # of the seed variance

    def power(self, effect: Any, prompts: Any, seeds: Any, level: float) -> Floats:
        """Return the power of a two-sided test at ``level``; numbers or arrays that broadcast."""
        fewer, rarer = self.n_prompts / prompts, self.n_seeds / seeds
        units = self.n_units / fewer
        variance, degrees = total_variance(
            (self.prompt + self.rest * rarer) * fewer,
            units,
            self.seed * rarer,
            (self.seed + self.square_rest * fewer) * rarer,
            self.freedom * (seeds - 1) / (self.n_seeds - 1) if self.n_seeds > 1 else 1,
        )
        shift, critical = effect / np.sqrt(variance), stats.t.isf(level / 2, degrees)
        other = np.nan_to_num(stats.nct.cdf(-critical, degrees, shift))  # NaN where too small to be computed
        found: Floats = stats.nct.sf(critical, degrees, shift) + other
        # flipping the signs of n units gives no p below 2 / 2^n
        return found if self.n_seeds > 1 else np.where(2.0 ** (1 - np.asarray(units)) < level, found, 0.0)


def power_matrix(
    baselines: Sequence[ArrayLike],
    variants: Sequence[ArrayLike],
    effects: Sequence[float | None] | None = None,
    *,
    target: float = 0.8,
    confidence: float = 0.95,
    clusters: Sequence[Sequence[Any] | None] | None = None,
) -> list[Power]:
    """Return the power of every contrast's design, with the noise that the contrasts of a call show.

    Args:
        baselines, variants, clusters: as in ``compare_matrix``.
        effects: one a contrast, in the metric's unit, the sign does not matter; None: the measured one.
        target: the power that detectable and the needed numbers are for; above 1 - confidence and below 1.
        confidence: 1 - confidence is the level of the two-sided test of one contrast. Holm's correction over m contrasts asks
            its first step for 1 - (1 - confidence) / m; give that here for the power to find an effect whatever the others do.

    The variance of diff is prompt_sd² / P + seed_sd² / S + rest_sd² / (P S) over P prompts (with clusters: as many to a cluster
    as now) and S seeds, the seed part pooled over the call. Power is that of the noncentral t with the degrees of freedom that
    ``compare_matrix`` has at P and S. Needed numbers are searched upwards from 2, so they are rounded up, and may be smaller
    than the present ones.

    Power at the measured effect is for planning the next study only. It is a function of the p of this one: an effect that is
    just significant has about 50 % whatever the design, so it cannot explain why one was not found.

    One seed: seed noise is unknown, the power is about these checkpoints, and a sign-flip test of fewer than 6 units finds
    nothing at .05. An effect of 0 has the level as its power, and no number finds it.
    Degenerate inputs: nothing valid, one prompt or one cluster, or seeds that share no prompt: NaN and None. No spread at all:
    the standard deviations are 0, the rest NaN and None, since there is no noise to plan by.
    Raises ValueError for shapes, effects or a target that do not fit.
    """
    check_confidence(confidence)
    level = 1 - confidence
    if not level < target < 1:
        raise ValueError(f"target {target}: a power lies between the level of the test, {level:g}, and 1, such as 0.8")
    fits = fit_all(baselines, variants, clusters)
    if effects is not None and len(effects) != len(fits):
        raise ValueError(f"{len(effects)} effects for {len(fits)} contrasts: give one a contrast, or None")
    given = effects if effects is not None else [None] * len(fits)
    return [
        _power(fit, pooled, abs(fit.diff if effect is None else effect), target, level)
        for fit, pooled, effect in zip(fits, pool(fits), given)
    ]


def _power(fit: Fit, pooled: Pooled, effect: float, target: float, level: float) -> Power:
    one, sizes = fit.n_seeds == 1, (fit.means.size, fit.n_seeds)
    if fit.means.size == 0 or fit.n_units < 2 or not (one or pooled.freedom):
        return Power(effect, math.nan, math.nan, None, None, math.nan, math.nan, *sizes)
    # the rest is one part of the spread of prompts; both are measured, so it may come out larger by chance
    rest = 0.0 if one else min(fit.rest_square * fit.seed_weight, fit.prompt_variance)
    seed = 0.0 if one else pooled.variance * fit.seed_weight
    square_rest = 0.0 if one else (pooled.square - pooled.variance) * fit.seed_weight
    now = _Design(fit.prompt_variance - rest, rest, seed, square_rest, fit.means.size, fit.n_units, fit.n_seeds, pooled.freedom)
    known = {
        "prompt_sd": math.sqrt(now.prompt * now.n_prompts),
        "seed_sd": math.nan if one else math.sqrt(pooled.variance),
        "rest_sd": math.nan if one else math.sqrt(rest * now.n_prompts * now.n_seeds),
    }
    error = math.sqrt(fit.prompt_variance + seed)
    if error <= 1e-12 * float(np.abs(fit.means).max()):
        return Power(effect, math.nan, math.nan, None, None, **known, n_prompts=sizes[0], n_seeds=sizes[1])
    fewest = math.ceil(2 * now.n_prompts / now.n_units)
    return Power(
        effect,
        float(now.power(effect, *sizes, level)),
        error * _shift(lambda shift: float(now.power(shift * error, *sizes, level)), target),
        _fewest(lambda prompts: now.power(effect, prompts, now.n_seeds, level), fewest, target) if effect else None,
        _fewest(lambda seeds: now.power(effect, now.n_prompts, seeds, level), 2, target) if effect and not one else None,
        **known,
        n_prompts=sizes[0],
        n_seeds=sizes[1],
    )


def _shift(power: Callable[[float], float], target: float) -> float:
    """Return the effect, in standard errors, that has the target's power; NaN where none has."""
    top = 4.0
    while power(top) < target:
        top *= 2
        if top > 1e6:
            return math.nan
    return float(brentq(lambda shift: power(shift) - target, 0, top, xtol=1e-9))


def _fewest(power: Callable[[Floats], Floats], least: int, target: float) -> int | None:
    """Return the smallest whole number from ``least`` on with the target's power; None where ``MOST`` has not."""
    # Power need not grow all the way: many prompts leave the few degrees of freedom of the seeds. So a grid first.
    grid = np.unique(np.geomspace(least, MOST, 240).round())
    enough = power(grid) >= target
    if not enough.any():
        return None
    first = int(enough.argmax())
    low, high = int(grid[max(0, first - 1)]), int(grid[first])
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(np.array([float(middle)]))[0] >= target else (middle, high)
    return high
