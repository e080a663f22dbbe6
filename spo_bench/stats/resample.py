"""Bootstrap intervals and sign-flip tests over prompts, or over clusters of prompts. Deterministic: own generator, fixed seed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]
Kind = Literal["counts", "signs"]

RESAMPLES = 4000
FLIPS = 9999
EXACT = 12
"""Up to this many units all 2^n sign patterns are tried instead of ``FLIPS`` random ones."""

MANY = 20_000
"""Above this many units intervals are computed without resampling."""

_SEED = 20240917
_KEPT = 1024  # draws for at most so many units are kept in memory (at most 80 MB a matrix), larger ones are made in blocks
_ROWS = 256
_TOGETHER = 16
"""Rows that are resampled at once."""


def interval(
    values: ArrayLike, confidence: float = 0.95, clusters: Sequence[Any] | None = None
) -> tuple[float, float, float, int]:
    """Return (mean, low, high, n) of one cell's metric over prompts.

    Args:
        values: shape (prompts,), any unit; NaN = invalid and left out.
        confidence: two-sided level in (0, 1).
        clusters: a label a prompt; prompts of one label are drawn together. None: each prompt stands alone.

    The interval is a bootstrap over clusters, percentile, widened for few units (``bootstrap``). Values that are all 0 or 1,
    unclustered (no two valid prompts share a label), get Wilson's interval instead, which stays honest at 0 of n and n of n.
    n counts the valid prompts.
    No valid prompt: mean, low and high are NaN. One unit: low and high are NaN, since it shows no spread.
    """
    return intervals([values], confidence, [clusters])[0]


def intervals(
    rows: Sequence[ArrayLike], confidence: float = 0.95, clusters: Sequence[Sequence[Any] | None] | None = None
) -> list[tuple[float, float, float, int]]:
    """Return ``interval`` of many rows, each (prompts,) with its own clusters, in a fraction of the time."""
    check_confidence(confidence)
    found: list[tuple[float, float, float, int]] = []
    drawn: list[tuple[Floats, Floats]] = []
    places: list[int] = []
    for place, values in enumerate(rows):
        flat = np.asarray(values, dtype=np.float64).reshape(-1)
        valid = np.isfinite(flat)
        kept = flat[valid]
        if not kept.size:
            found.append((math.nan, math.nan, math.nan, 0))
            continue
        labels = None if clusters is None else clusters[place]
        sums, counts = (
            (kept, np.ones(kept.size)) if labels is None else by_cluster(kept, cluster_numbers(labels, flat.size)[valid])
        )
        mean = float(kept.mean())
        if sums.size == kept.size > 1 and bool(((kept == 0.0) | (kept == 1.0)).all()):
            low, high = _wilson(int(kept.sum()), kept.size, confidence)
            found.append((mean, min(low, mean), max(high, mean), int(kept.size)))
            continue
        found.append((mean, math.nan, math.nan, int(kept.size)))
        drawn.append((sums, counts))
        places.append(place)
    for place, (mean, low, high) in zip(places, bootstraps(drawn, confidence)):
        found[place] = (mean, low, high, found[place][3])
    return found


@lru_cache(maxsize=4096)
def _wilson(hits: int, n: int, confidence: float) -> tuple[float, float]:
    low, high = stats.binomtest(hits, n).proportion_ci(confidence, method="wilson")
    return float(low), float(high)


def bootstrap(sums: Floats, counts: Floats, confidence: float) -> tuple[float, float, float]:
    """Return (mean, low, high) of a mean over prompts by a bootstrap over units; see ``bootstraps``."""
    return bootstraps([(sums, counts)], confidence)[0]


def bootstraps(rows: Sequence[tuple[Floats, Floats]], confidence: float) -> list[tuple[float, float, float]]:
    """Return (mean, low, high) of many means over prompts, each by a bootstrap over its units.

    Args:
        rows: (sums, counts) each of shape (units,): the sum of the values of a unit's prompts, and their number.

    Percentile interval whose tails are widened by sqrt(n / (n - 1)) and from normal to t(n - 1), which repairs its
    undercoverage at few units (the "expanded percentile" interval of Hesterberg, 2015, arXiv 1411.5279, section 5.3). Above
    ``MANY`` units it is the t interval of a ratio of sums, which no resampling could tell from it.
    """
    found = [_by_t(sums, counts, confidence) for sums, counts in rows]
    sizes: dict[int, list[int]] = {}
    for place, (sums, _) in enumerate(rows):
        if 2 <= sums.size <= MANY:
            sizes.setdefault(sums.size, []).append(place)
    for n, places in sizes.items():
        tail = stats.norm.cdf(math.sqrt(n / (n - 1)) * stats.t.ppf((1 - confidence) / 2, n - 1))
        for start in range(0, len(places), _TOGETHER):
            some = places[start : start + _TOGETHER]
            means = _resampled([rows[place] for place in some], n)
            lows, highs = np.quantile(means, (tail, 1 - tail), axis=1)
            for place, low, high in zip(some, lows.tolist(), highs.tolist()):
                mean = found[place][0]
                found[place] = (mean, min(low, mean), max(high, mean))
    return found


def _by_t(sums: Floats, counts: Floats, confidence: float) -> tuple[float, float, float]:
    """Return the mean with the t interval of a ratio of sums where there are more than ``MANY`` units, else without one."""
    n, total = sums.size, float(counts.sum())
    mean = float(sums.sum()) / total
    if n <= MANY:
        return mean, math.nan, math.nan
    spread = math.sqrt(float(((sums - mean * counts) ** 2).sum()) * n / (n - 1)) / total
    reach = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * spread
    return mean, mean - reach, mean + reach


def _resampled(rows: Sequence[tuple[Floats, Floats]], n: int) -> Floats:
    """Return the means (rows, resamples) of rows that all have n units."""
    # Columns of a product get other last bits when their number changes, so it never does: a number must not depend on what
    # else is in a run.
    sums, counts = np.zeros((n, _TOGETHER)), np.ones((n, _TOGETHER))
    for at, (some, many) in enumerate(rows):
        sums[:, at], counts[:, at] = some, many
    plain = bool((counts == 1).all())
    return np.concatenate(
        [(block @ sums / (n if plain else block @ counts))[:, : len(rows)].T for block in _draws("counts", n)], axis=1
    )


def sign_flip(sums: Floats) -> float:
    """Return the two-sided p of a zero mean by flipping the sign of whole units; ``sums`` has shape (units,).

    Exact for at most ``EXACT`` units; else (1 + hits) / (1 + FLIPS) over random patterns (Phipson and Smyth, 2010). Where no
    pattern reaches the observed sum, p is that of the t test, at most 1 / (1 + FLIPS) and at least 2 / 2^n, the smallest that
    flipping can give: a bound at 1 / (1 + FLIPS) would leave nothing significant after Holm's correction over hundreds of rows.
    """
    n = sums.size
    observed = abs(float(sums.sum()))
    floor = observed - 1e-9 * max(1e-300, float(np.abs(sums).sum()))  # sums in another order differ in the last bits
    if n <= EXACT:
        patterns = np.array(list(itertools.product((1.0, -1.0), repeat=n)))
        return float(np.mean(np.abs(patterns @ sums) >= floor))
    hits = sum(int(np.count_nonzero(np.abs(block @ sums) >= floor)) for block in _draws("signs", n))
    if hits:
        return (1 + hits) / (1 + FLIPS)
    error = math.sqrt(n * float(sums.var(ddof=1)))
    tail = 2 * float(stats.t.sf(observed / error, n - 1)) if error else 0.0
    return max(2.0 ** (1 - n), min(tail, 1 / (1 + FLIPS)))


def cluster_numbers(clusters: Sequence[Any] | None, size: int) -> NDArray[np.intp]:
    """Return a cluster number a prompt, shape (prompts,); a missing label (None) means the prompt stands alone."""
    if clusters is None:
        return np.arange(size)
    if len(clusters) != size:
        raise ValueError(f"{len(clusters)} cluster labels for {size} prompts: give one label a prompt")
    names = [("alone", i) if label is None else ("label", label) for i, label in enumerate(clusters)]
    seen: dict[tuple[str, Any], int] = {}
    return np.array([seen.setdefault(name, len(seen)) for name in names], dtype=np.intp)


def by_cluster(values: Floats, numbers: NDArray[np.intp]) -> tuple[Floats, Floats]:
    """Return (sums, counts), each (clusters,), of values (prompts,) under their cluster numbers."""
    _, numbers = np.unique(numbers, return_inverse=True)
    return np.bincount(numbers, weights=values).astype(np.float64), np.bincount(numbers).astype(np.float64)


def check_confidence(confidence: float) -> None:
    """Raise ValueError unless the level lies strictly between 0 and 1."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence}: a level lies strictly between 0 and 1, such as 0.95")


def _draws(kind: Kind, n: int) -> Iterator[Floats]:
    if n <= _KEPT:
        yield _kept(kind, n)
    else:
        yield from _made(kind, n)


@lru_cache(maxsize=6)
def _kept(kind: Kind, n: int) -> Floats:
    return np.concatenate(list(_made(kind, n)))


def _made(kind: Kind, n: int) -> Iterator[Floats]:
    rng = np.random.default_rng((_SEED, n))
    total = RESAMPLES if kind == "counts" else FLIPS
    for start in range(0, total, _ROWS):
        rows = min(_ROWS, total - start)
        if kind == "signs":
            yield np.where(rng.integers(0, 2, (rows, n)) == 1, 1.0, -1.0)
        else:
            drawn = rng.integers(0, n, (rows, n)) + np.arange(rows)[:, None] * n
            yield np.bincount(drawn.reshape(-1), minlength=rows * n).reshape(rows, n).astype(np.float64)
