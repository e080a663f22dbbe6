"""Win rates of many verdicts, raw and at equal length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from spo_bench.stats.length_control import length_controlled
from spo_bench.stats.resample import Floats, by_cluster, cluster_numbers, interval

Side = Literal["a", "b"]


@dataclass(frozen=True)
class Pairing:
    """One verdict and what it was about.

    Attributes:
        score: in [0, 1], 1 = the subject won, 0.5 = tie; None = invalid.
        length_a, length_b: characters of the two answers; None where not known.
        cluster: pairs of one label are not independent; None: the pair stands alone.
        outcome: which side won where the file says so, in terms of a and b; None: what the score says.
    """

    score: float | None
    length_a: int | None
    length_b: int | None
    cluster: str | None = None
    outcome: str | None = None


@dataclass(frozen=True)
class Rates:
    """What the verdicts say of one side, in percent of the valid ones; None where there is no such number.

    Attributes:
        win_rate: mean score; a tie is half a win, invalid verdicts are left out.
        standard_error: of win_rate: standard deviation (n - 1) over the root of n; robust to clusters where they repeat.
        low, high: the 95 % interval of win_rate (``spo_bench.stats.interval``).
        length_controlled_win_rate: the rate at equal length (``spo_bench.stats.length_controlled``), with its 95 % interval
            length_controlled_low, length_controlled_high; None where it is refused, and then length_controlled_reason says why.
        n, n_invalid: valid and invalid verdicts; n = wins + losses + ties.
        mean_length_a, mean_length_b: characters, over all pairs whose lengths are known, valid or not.
    """

    win_rate: float | None
    standard_error: float | None
    low: float | None
    high: float | None
    length_controlled_win_rate: float | None
    length_controlled_low: float | None
    length_controlled_high: float | None
    length_controlled_reason: str | None
    n: int
    n_invalid: int
    wins: int
    losses: int
    ties: int
    mean_length_a: float | None
    mean_length_b: float | None

    def record(self) -> dict[str, Any]:
        """Return the rates as JSON values."""
        return asdict(self)


def rates(pairings: Sequence[Pairing], subject: Side = "a") -> Rates:
    """Return the rates of the side that the scores speak of."""
    scores = _column([pairing.score for pairing in pairings])
    lengths_a, lengths_b = _column([p.length_a for p in pairings]), _column([p.length_b for p in pairings])
    clusters = [pairing.cluster for pairing in pairings]
    mean, low, high, n = interval(scores, clusters=clusters)
    longer = lengths_a - lengths_b if subject == "a" else lengths_b - lengths_a
    controlled = length_controlled(scores, longer, clusters=clusters)
    return Rates(
        win_rate=_percent(mean),
        standard_error=_percent(_standard_error(scores, clusters)),
        low=_percent(low),
        high=_percent(high),
        length_controlled_win_rate=_percent(controlled.rate),
        length_controlled_low=_percent(controlled.low),
        length_controlled_high=_percent(controlled.high),
        length_controlled_reason=controlled.reason,
        n=n,
        n_invalid=len(pairings) - n,
        **_counts(pairings, subject),
        mean_length_a=_mean(lengths_a),
        mean_length_b=_mean(lengths_b),
    )


def _counts(pairings: Sequence[Pairing], subject: Side) -> dict[str, int]:
    """Return wins, losses and ties of the subject; a judge that gives probabilities calls near ones a tie."""
    counts = {"wins": 0, "losses": 0, "ties": 0}
    for one in pairings:
        if one.score is None:
            continue
        if one.outcome is not None:
            counts["ties" if one.outcome == "tie" else "wins" if one.outcome == subject else "losses"] += 1
        else:
            counts["wins" if one.score > 0.5 else "losses" if one.score < 0.5 else "ties"] += 1
    return counts


def _standard_error(scores: Floats, clusters: Sequence[str | None]) -> float:
    """Return the standard error of the mean; where each pair stands alone, the formula is that of independent values."""
    valid = np.isfinite(scores)
    if not valid.any():
        return math.nan
    kept = scores[valid]
    sums, _ = by_cluster(kept - kept.mean(), cluster_numbers(clusters, scores.size)[valid])
    if sums.size < 2:
        return math.nan
    return math.sqrt(float((sums**2).sum()) * sums.size / (sums.size - 1)) / kept.size


def _column(values: Sequence[float | None]) -> Floats:
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def _percent(value: float) -> float | None:
    return 100 * value if math.isfinite(value) else None


def _mean(values: Floats) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else None
