"""Bradley-Terry strengths of policies from pairwise verdicts, with intervals over prompts and seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse.csgraph import connected_components
from scipy.special import expit
from statsmodels.genmod.families import Binomial
from statsmodels.genmod.generalized_linear_model import GLM

from .paired import Estimand, compare_matrix
from .resample import Floats, check_confidence, cluster_numbers


@dataclass(frozen=True)
class Games:
    """Verdicts between two players.

    Attributes:
        first, second: their names.
        scores: shape (seeds, prompts), the first player's share in [0, 1]: 1 = won, 0.5 = tie, 0 = lost; NaN = no verdict.
    """

    first: str
    second: str
    scores: ArrayLike


@dataclass(frozen=True)
class Strength:
    """How strong a player is against the anchor.

    Attributes:
        name: of the player.
        strength: log-odds (nats) of winning against the anchor; 0 for the anchor, NaN where no games connect the two.
        low, high: its two-sided interval; NaN where strength is, or where there is no interval (one prompt).
        n_prompts, n_seeds: prompts and seeds that the player has a verdict in.
        estimand: as in ``Comparison``.
    """

    name: str
    strength: float
    low: float
    high: float
    n_prompts: int
    n_seeds: int
    estimand: Estimand


def bradley_terry(
    games: Sequence[Games], anchor: str, *, confidence: float = 0.95, clusters: Sequence[Any] | None = None
) -> list[Strength]:
    """Return the players, strongest first, by the model of Bradley and Terry (1952): logit P(a beats b) = s(a) - s(b).

    Args:
        games: verdicts, all on one (seeds, prompts) grid; every verdict counts once, and several items may hold one pair.
        anchor: the player whose strength is 0.
        confidence: two-sided level in (0, 1).
        clusters: a label a prompt, (prompts,), or None where each prompt stands alone.

    A tie counts one half. One more prompt is added, on which every pair of players that met in a seed draws in that seed. So a
    player that won all its games has a finite strength, log(2n + 1) with n prompts against one opponent, and an interval; the
    strengths of others move a little towards 0, as by one verdict in n.

    Intervals: each verdict's influence on a strength, that is the change if it counted a little more (infinitesimal jackknife),
    is put at its prompt and seed, and ``compare_matrix`` treats these values like any metric: prompts and seeds are crossed,
    seed noise is pooled over the players, one seed speaks of these checkpoints.

    Strengths are on one scale only as far as the model holds: who beats whom must not turn in a circle.
    Ties only: every strength, and both its bounds, are 0. No games between two groups of players: NaN for those without the
    anchor. One prompt, or one cluster: strengths without bounds.
    Raises ValueError for scores outside [0, 1], shapes that differ, a player against itself, or an anchor that is no player.
    """
    check_confidence(confidence)
    names = sorted({name for one in games for name in (one.first, one.second)})
    if anchor not in names:
        raise ValueError(f"anchor '{anchor}' plays in no game; the players are {', '.join(names) or 'none'}")
    pairs, wins, counts = _tally(games, names)
    met = counts.any(axis=(1, 2))
    played = np.stack([counts[(pairs == i).any(axis=1)].any(axis=0) for i in range(len(names))])  # (players, seeds, prompts)
    graph = np.zeros((len(names), len(names)))
    graph[tuple(pairs[met].T)] = 1
    _, part = connected_components(graph, directed=False)
    zero = names.index(anchor)
    connected = part == part[zero]
    rated = [i for i in np.flatnonzero(connected).tolist() if i != zero]
    found = dict.fromkeys(range(len(names)), (math.nan, math.nan, math.nan)) | {zero: (0.0, 0.0, 0.0)}
    if rated:
        inside = met & connected[pairs[:, 0]]
        used = counts[inside].any(axis=0)
        seeds, prompts = used.any(axis=1), used.any(axis=0)
        units = cluster_numbers(clusters, prompts.size)[prompts]
        wins, counts = (one[inside][:, seeds][:, :, prompts] for one in (wins, counts))
        found |= dict(zip(rated, _rated(pairs[inside], wins, counts, rated, played[rated][:, seeds], units, confidence)))
    sizes = [(int(one.any(axis=0).sum()), int(one.any(axis=1).sum())) for one in played]
    strengths = [
        Strength(names[i], *found[i], n_prompts, n_seeds, "method" if n_seeds > 1 else "checkpoints")
        for i, (n_prompts, n_seeds) in enumerate(sizes)
    ]
    return sorted(strengths, key=lambda one: (math.isnan(one.strength), -one.strength, one.name))


def _tally(games: Sequence[Games], names: Sequence[str]) -> tuple[NDArray[np.intp], Floats, Floats]:
    """Return (pairs, wins, counts): players (pairs, 2), and their first one's wins and their games, (pairs, seeds, prompts)."""
    held: dict[tuple[int, int], tuple[Floats, Floats]] = {}
    shape = np.atleast_2d(np.asarray(games[0].scores, dtype=np.float64)).shape
    for one in games:
        scores = np.atleast_2d(np.asarray(one.scores, dtype=np.float64))
        who = f"'{one.first}' against '{one.second}'"
        if scores.shape != shape or scores.ndim != 2:
            raise ValueError(f"{who}: scores {scores.shape}, others {shape}: all games share one (seeds, prompts) grid")
        if one.first == one.second:
            raise ValueError(f"{who}: a player does not play itself")
        valid = np.isfinite(scores)
        if not ((scores[valid] >= 0) & (scores[valid] <= 1)).all():
            raise ValueError(f"{who}: scores outside [0, 1]: a score is the first player's share, NaN where there is no verdict")
        first, second = names.index(one.first), names.index(one.second)
        share = np.where(valid, scores if first < second else 1 - scores, 0.0)
        wins, counts = held.get(key := (min(first, second), max(first, second)), (np.zeros(shape), np.zeros(shape)))
        held[key] = wins + share, counts + valid
    order = sorted(held)
    wins, counts = (np.stack([held[key][side] for key in order]) for side in (0, 1))
    return np.array(order), wins, counts


def _rated(
    pairs: NDArray[np.intp],
    wins: Floats,
    counts: Floats,
    rated: Sequence[int],
    played: NDArray[np.bool_],
    units: NDArray[np.intp],
    confidence: float,
) -> list[tuple[float, float, float]]:
    """Return (strength, low, high) of the players ``rated``, who are connected with the anchor.

    Shapes: pairs (pairs, 2); wins and counts (pairs, seeds, prompts); played (rated, seeds, …); units (prompts,).
    """
    drawn = counts.any(axis=2, keepdims=True)  # the added prompt
    wins, counts = np.concatenate([wins, 0.5 * drawn], axis=2), np.concatenate([counts, drawn], axis=2)
    won, games = wins.sum(axis=(1, 2)), counts.sum(axis=(1, 2))
    design = np.stack([(pairs[:, 0] == i).astype(float) - (pairs[:, 1] == i) for i in rated], axis=1)
    outcomes = np.repeat([1.0, 0.0], len(pairs))
    model = GLM(outcomes, np.vstack([design, design]), family=Binomial(), freq_weights=np.concatenate([won, games - won]))
    strengths = [float(one) for one in model.fit(maxiter=200, tol=1e-12).params]
    if np.unique(units).size < 2:
        return [(strength, math.nan, math.nan) for strength in strengths]
    expected = expit(design @ strengths)
    information = design.T @ (design * (games * expected * (1 - expected))[:, None])
    surprise = wins - counts * expected[:, None, None]
    influence = np.tensordot(np.linalg.solve(information, design.T), surprise, axes=1)  # (rated, seeds, prompts)
    values = []
    for i, (strength, one) in enumerate(zip(strengths, influence)):
        seeds = played[i].any(axis=1)
        n = int(seeds.sum())
        # seeds without this player count through the others only, and are no seeds of its own
        values.append(strength + n * one.shape[1] * (one[seeds] + one[~seeds].sum(axis=0) / n))
    labels = [[*units.tolist(), None]] * len(values)
    compared = compare_matrix([np.zeros_like(one) for one in values], values, confidence, clusters=labels)
    return [(strength, min(one.low, strength), max(one.high, strength)) for strength, one in zip(strengths, compared)]
