"""The effect of SPO averaged over contrasts, with an interval that respects what the contrasts share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from spo_bench.stats import Comparison, compare_matrix

from .measure import CONFIDENCE, Contrast


@dataclass(frozen=True)
class _Differences:
    """Variant minus baseline of one contrast: (seeds, prompts), NaN = invalid; a prompt's label names its task too."""

    task: str
    seeds: Sequence[int]
    prompts: Sequence[tuple[str, str]]
    clusters: Sequence[tuple[str, str]]
    values: NDArray[np.float64]


def average(contrasts: Sequence[Contrast], family: Sequence[Contrast], metric: str) -> Comparison | None:
    """Return the mean effect over contrasts in one metric; None where they have no seed in common.

    Estimand: the mean over tasks, each with the same weight, of the mean over a task's contrasts, each with the same weight, of
    their differences, over the seeds that all contrasts have. With several seeds it speaks of new prompts and new seeds, with
    one of new prompts only.

    Prompts and seeds are paired: a prompt that several contrasts answered is one unit, and so is a seed, so contrasts that move
    together are not taken for independent evidence. Prompts are drawn within tasks. The seed noise is pooled with that of
    ``family``, all contrasts that the tables correct together, under the tables' assumptions: it is alike in all of them, and
    independent. Then the interval is a little wide, since a mean is less noisy than one contrast. Large seed noise that moves
    all contrasts together makes it too narrow: of nominal 95 % intervals 84 to 90 % cover at a seed sd of a third of the prompt
    sd, and 95 to 98 % at a tenth (simulated: 2 or 3 seeds, 100 prompts, 2 to 6 contrasts).
    """
    found = [one for contrast in contrasts if (one := _differences(contrast, metric)) is not None]
    seeds = sorted(set.intersection(*(set(one.seeds) for one in found))) if found else []
    if not seeds:
        return None
    columns = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompt for one in found for prompt in one.prompts))}
    clusters = {prompt: cluster for one in found for prompt, cluster in zip(one.prompts, one.clusters)}
    tasks = [one.task for one in found]
    layers = []
    for one in found:
        layer = np.full((len(seeds), len(columns)), np.nan)
        layer[:, [columns[prompt] for prompt in one.prompts]] = one.values[[one.seeds.index(seed) for seed in seeds]]
        layers.append(layer)
    whole = combine(layers, [1 / (len(set(tasks)) * tasks.count(task)) for task in tasks])
    arrays = [some for contrast in family if (some := contrast.arrays(metric)) is not None]
    return compare_matrix(
        [np.zeros_like(whole), *(some[0] for some in arrays)],
        [whole, *(some[1] for some in arrays)],
        CONFIDENCE,
        clusters=[[clusters[prompt] for prompt in columns], *(some[2].clusters for some in arrays)],
    )[0]


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
    if whole is None:
        return None
    baseline, variant, reference = whole
    pairs = [pair for pair in contrast.pairs if replace(contrast, pairs=[pair]).arrays(metric) is not None]  # a row each
    rows = [i for i, row in enumerate(np.isfinite(variant - baseline)) if row.any()]
    if not rows:
        return None
    task = contrast.variant.task
    clusters = reference.clusters or [None] * len(reference.ids)
    return _Differences(
        task,
        [pairs[i][1].seed for i in rows],
        [(task, name) for name in reference.ids],
        [(task, f"prompt {name}" if cluster is None else f"cluster {cluster}") for name, cluster in zip(reference.ids, clusters)],
        (variant - baseline)[rows],
    )
