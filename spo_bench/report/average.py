"""The effect of SPO averaged over contrasts, with an interval that respects what the contrasts share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from spo_bench.stats import Comparison
from spo_bench.stats.paired import Estimand, Fit, Pooled, fit_all, pool, total_variance

from .measure import CONFIDENCE, Contrast


@dataclass(frozen=True)
class _Differences:
    """Variant minus baseline of one contrast, named by its variant: (seeds, prompts), NaN = invalid."""

    contrast: str
    task: str
    seeds: Sequence[int]
    prompts: Sequence[str]
    clusters: Sequence[str]
    values: NDArray[np.float64]


@dataclass(frozen=True)
class Average:
    """A mean effect.

    Attributes:
        effect: its size, interval and p.
        contrasts: how many it is a mean of.
        seeds: the seeds it is over: those that all of them have.
        left_out: the seeds that only some of them have.
    """

    effect: Comparison
    contrasts: int
    seeds: Sequence[int]
    left_out: Sequence[int]


def average(contrasts: Sequence[Contrast], family: Sequence[Contrast], metric: str) -> Average | None:
    """Return the mean effect over contrasts in one metric; None where they have no seed in common, or a task has one prompt.

    Estimand: the mean over tasks, each with the same weight, of the mean over a task's contrasts, each with the same weight, of
    their differences, over the seeds that all contrasts have. With several seeds it speaks of new prompts and new seeds, with
    one of new prompts only.

    Prompts are drawn within tasks: a prompt that several contrasts answered is one unit, so contrasts that move together are not
    taken for independent evidence; the tasks are strata (``stratified``). The seed noise of a contrast is what the tables take
    it for: pooled over ``family``, all contrasts that they correct together, or its own where it is far above the others'. Seeds
    may move all contrasts together, so the mean counts as no less noisy than its contrasts: its seed sd is the mean of theirs.

    Of nominal 95 % intervals 94 to 96 % cover with one seed, and 93 to 99 % with 2 or 3 (simulated: two tasks of 40 and 5, 40
    and 40, 200 and 20 prompts, two contrasts a task). Only where seeds move all contrasts together, by a third of what prompts
    do, and there are many prompts, does the pool count seeds for more than they are: then 86 to 90 % cover.
    """
    found = [one for contrast in contrasts if (one := _differences(contrast, metric)) is not None]
    seeds = sorted(set.intersection(*(set(one.seeds) for one in found))) if found else []
    if not seeds:
        return None
    strata = [_stratum([one for one in found if one.task == task], seeds) for task in dict.fromkeys(one.task for one in found)]
    if not all(math.isfinite(fit.prompt_variance) for fit in strata):
        return None
    noise: list[tuple[float, Pooled]] = []
    if len(seeds) > 1:
        pooled = _pooled(family, metric)
        counts = {task: sum(one.task == task for one in found) for task in dict.fromkeys(one.task for one in found)}
        noise = [(1 / (len(strata) * counts[one.task]), pooled[one.contrast]) for one in found]
        if not all(one.freedom for _, one in noise):
            return None
    effect = stratified(strata, noise)
    return Average(effect, len(found), seeds, sorted({seed for one in found for seed in one.seeds} - set(seeds)))


def stratified(strata: Sequence[Fit], noise: Sequence[tuple[float, Pooled]] = ()) -> Comparison:
    """Return the mean over strata of equal weight, with its t interval.

    Args:
        strata: an averaged contrast each; their prompts are drawn independently, the seeds are the same in all.
        noise: weight and seed noise of every contrast in the mean, the weights with the sum 1; none with one seed.

    The variance from prompts is the sum of the strata's, each by its own n - 1, over the squared number of strata, on the
    degrees of freedom of Welch and Satterthwaite (1946). The part of the seeds joins it as in ``compare_matrix``. No spread at
    all gives low = diff = high, and no p.
    """
    k = len(strata)
    diff = sum(fit.diff for fit in strata) / k
    n_prompts, n_seeds = sum(fit.means.size for fit in strata), max(fit.n_seeds for fit in strata)
    estimand: Estimand = "method" if noise else "checkpoints"
    parts = [(fit.prompt_variance / k**2, fit.n_units - 1) for fit in strata]
    prompt, seed, square, freedom = sum(part for part, _ in parts), 0.0, 0.0, 1.0
    if noise:
        weight = (sum(math.sqrt(fit.seed_weight) for fit in strata) / k) ** 2
        seed = weight * sum(share * math.sqrt(one.variance) for share, one in noise) ** 2
        sources: dict[Pooled, float] = {}
        for share, one in noise:
            sources[one] = sources.get(one, 0.0) + share * math.sqrt(one.square)
        square = weight * sum(sources.values()) ** 2
        if square:
            freedom = sum(sources.values()) ** 2 / sum(part**2 / one.freedom for one, part in sources.items())
    if math.sqrt(prompt + seed) <= 1e-12 * max(float(np.abs(fit.means).max()) for fit in strata):
        return Comparison(diff, diff, diff, math.nan, math.nan, n_prompts, n_seeds, estimand, 1)
    units = 1 + prompt**2 / sum(part**2 / degrees for part, degrees in parts) if prompt else min(fit.n_units for fit in strata)
    variance, degrees = total_variance(prompt, units, seed, square, freedom)
    error = math.sqrt(variance)
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, degrees)) * error
    p = float(2 * stats.t.sf(abs(diff) / error, degrees))
    return Comparison(diff, diff - reach, diff + reach, p, p, n_prompts, n_seeds, estimand, 1)


def _stratum(found: Sequence[_Differences], seeds: Sequence[int]) -> Fit:
    """Return the mean of a task's contrasts over these seeds, split into its effects."""
    columns = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompt for one in found for prompt in one.prompts))}
    clusters = {prompt: cluster for one in found for prompt, cluster in zip(one.prompts, one.clusters)}
    layers = []
    for one in found:
        layer = np.full((len(seeds), len(columns)), np.nan)
        layer[:, [columns[prompt] for prompt in one.prompts]] = one.values[[one.seeds.index(seed) for seed in seeds]]
        layers.append(layer)
    whole = combine(layers, [1 / len(layers)] * len(layers))
    return fit_all([np.zeros_like(whole)], [whole], [[clusters[prompt] for prompt in columns]])[0]


def _pooled(family: Sequence[Contrast], metric: str) -> Mapping[str, Pooled]:
    """Return the seed noise of every contrast that has the metric, by the id of its variant."""
    known = [(contrast.variant.id, arrays) for contrast in family if (arrays := contrast.arrays(metric)) is not None]
    fits = fit_all(
        [arrays.baseline for _, arrays in known],
        [arrays.variant for _, arrays in known],
        [arrays.metric.clusters for _, arrays in known],
    )
    return {name: one for (name, _), one in zip(known, pool(fits))}


def combine(layers: Sequence[NDArray[np.float64]], weights: Sequence[float]) -> NDArray[np.float64]:
    """Return one array whose mean is the weighted mean of several, and whose prompts and seeds vary as that mean does.

    A layer's mean is that over its prompts of the mean over seeds. Each layer's deviations from its mean are added up, those of
    a layer with fewer prompts counting the more: a prompt moves the mean of 10 prompts twice as much as that of 20. With equal
    prompts and nothing missing this is the weighted sum of the layers.

    Args:
        layers: (seeds, prompts) each, NaN = missing; every layer has a value.
        weights: one a layer, with the sum 1.

    Returns:
        (seeds, prompts), NaN for prompts without any value.
    """
    some = np.any([np.isfinite(layer).any(axis=0) for layer in layers], axis=0)
    total, deviations = 0.0, np.zeros_like(layers[0])
    for layer, weight in zip(layers, weights):
        valid = np.isfinite(layer)
        here = valid.any(axis=0)
        means = np.where(valid, layer, 0.0).sum(axis=0) / np.maximum(valid.sum(axis=0), 1)
        mean = float(means[here].mean())
        total += weight * mean
        deviations += np.where(here, weight * some.sum() / here.sum() * (np.where(valid, layer, means) - mean), 0.0)
    return np.where(some, total + deviations, np.nan)


def _differences(contrast: Contrast, metric: str) -> _Differences | None:
    """Return a contrast's differences, over the seeds that have the metric; None where there is no valid pair."""
    whole = contrast.arrays(metric)
    if whole is None or not whole.used:
        return None
    reference = whole.metric
    rows = [i for i, seed in enumerate(whole.seeds) if seed in whole.used]
    clusters = reference.clusters or [None] * len(reference.ids)
    return _Differences(
        contrast.variant.id,
        contrast.variant.task,
        whole.used,
        reference.ids,
        [f"prompt {name}" if cluster is None else f"cluster {cluster}" for name, cluster in zip(reference.ids, clusters)],
        (whole.variant - whole.baseline)[rows],
    )
