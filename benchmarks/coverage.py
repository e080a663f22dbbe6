"""Measured coverage of the intervals and error rates of the tests, by simulation with known truth, as Markdown tables.

Usage: python benchmarks/coverage.py [--repeats 400]
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from spo_bench.stats import Comparison, Games, bradley_terry, compare_matrix, non_inferiority, power_matrix, seed_spread

Floats = NDArray[np.float64]
SEED = 1
SEED_SDS = (0.0, 0.03, 0.06, 0.15)
POWERS = ((3, 200, 0.03, 0.1), (3, 200, 0.06, 0.1), (2, 200, 0.06, 0.15), (3, 30, 0.03, 0.2), (1, 200, 0.0, 0.1))
"""(seeds, prompts, seed sd, true effect) at which power is simulated."""


def crossed(
    rng: np.random.Generator,
    contrasts: int,
    seeds: int,
    prompts: int,
    seed: float | Floats = 0.0,
    *,
    size: int = 1,
    invalid: float = 0.0,
) -> Floats:
    """Return differences of mean zero, (contrasts, seeds, prompts): crossed effects of prompts (sd .3) and seeds, a rest (.5).

    Args:
        rng: where they are drawn from.
        contrasts, seeds, prompts: the shape.
        seed: standard deviation of the seed effects; one for all or one a contrast, (contrasts,).
        size: so many prompts in a row share their prompt effect, as do prompts from one source.
        invalid: share of values that are NaN.
    """
    effects = rng.normal(0, 0.3, (contrasts, 1, -(-prompts // size)))
    drawn: Floats = np.repeat(effects, size, axis=2)[..., :prompts] + rng.normal(0, 0.5, (contrasts, seeds, prompts))
    drawn += np.reshape(seed, (-1, 1, 1)) * rng.normal(0, 1, (contrasts, seeds, 1))
    if invalid:
        drawn[rng.random(drawn.shape) < invalid] = np.nan
    return drawn


@dataclass(frozen=True)
class Rates:
    """What was found over simulated matrices.

    Attributes:
        coverage: share of intervals that hold the truth.
        rejected: share of contrasts with p < .05.
        alarms: share of matrices with any p_adjusted < .05.
    """

    coverage: float
    rejected: float
    alarms: float

    def __str__(self) -> str:
        return f"{short(self.coverage)} ({short(self.alarms)})"


def rates(found: Sequence[Sequence[Comparison]], truth: float = 0.0) -> Rates:
    """Count over matrices."""
    flat = [one for matrix in found for one in matrix]
    return Rates(
        float(np.mean([one.low <= truth <= one.high for one in flat])),
        float(np.mean([one.p < 0.05 for one in flat])),
        float(np.mean([any(one.p_adjusted < 0.05 for one in matrix) for matrix in found])),
    )


def simulated(
    repeats: int,
    shape: tuple[int, int, int],
    seed: float = 0.0,
    *,
    truth: float = 0.0,
    size: int = 1,
    labelled: bool = True,
    invalid: float = 0.0,
) -> Rates:
    """Compare ``repeats`` matrices of ``crossed`` differences around a truth; ``labelled``: sources are given as clusters."""
    rng = np.random.default_rng(SEED)
    found = []
    for _ in range(repeats):
        drawn = crossed(rng, *shape, seed, size=size, invalid=invalid) + truth
        clusters = [[i // size for i in range(drawn.shape[2])]] * len(drawn) if size > 1 and labelled else None
        found.append(compare_matrix(list(np.zeros_like(drawn)), list(drawn), clusters=clusters))
    return rates(found, truth)


def uneven(repeats: int, factor: float) -> tuple[float, float, float]:
    """Return the coverage of one contrast of 12 that is noisier by a factor, that of the others, and how often it is noticed:
    left to its own noise, or by Levene's p of ``seed_spread`` below .05.
    """
    rng = np.random.default_rng(SEED)
    sds = np.array([0.03 * factor] + [0.03] * 11)
    covered, noticed = [], []
    for _ in range(repeats):
        drawn = list(crossed(rng, 12, 3, 200, sds))
        zeros = [np.zeros_like(one) for one in drawn]
        compared = compare_matrix(zeros, drawn)
        covered.append([one.low <= 0 <= one.high for one in compared])
        noticed.append(compared[0].own_noise or seed_spread(zeros, drawn) < 0.05)
    noisy = np.array(covered)
    return float(noisy[:, 0].mean()), float(noisy[:, 1:].mean()), float(np.mean(noticed))


def nights(
    repeats: int, true: Sequence[float], margin: float, seed: float = 0.03, seeds: int = 3, prompts: int = 200
) -> NDArray[np.str_]:
    """Return the outcomes of ``non_inferiority`` on simulated nights, (repeats, rows); ``true`` is each row's true difference."""
    rng = np.random.default_rng(SEED)
    found = []
    for _ in range(repeats):
        drawn = crossed(rng, len(true), seeds, prompts, seed) + np.reshape(true, (-1, 1, 1))
        found.append([one.outcome for one in non_inferiority(np.zeros_like(drawn), drawn, [margin] * len(true))])
    return np.array(found)


def tournament(rng: np.random.Generator, strengths: Floats, seeds: int, prompts: int, seed: float, prompt: float) -> list[Games]:
    """Return verdicts of all pairs: two games a prompt, won by the odds of the strengths with effects of seeds and prompts."""
    players = len(strengths)
    skill = strengths[:, None, None] + rng.normal(0, seed, (players, seeds, 1)) + rng.normal(0, prompt, (players, 1, prompts))
    return [
        Games(f"p{i}", f"p{j}", (rng.random((2, seeds, prompts)) < expit(skill[i] - skill[j])).mean(axis=0))
        for i, j in itertools.combinations(range(players), 2)
    ]


def expected_strengths(strengths: Floats, noise: float) -> dict[str, float]:
    """Return what the strengths are in the mean over effects: those that fit the expected shares of all pairs.

    ``noise`` is the standard deviation of the effects in the difference of two players, normal.
    """
    at, weights = np.polynomial.hermite_e.hermegauss(40)
    games = [
        Games(
            f"p{i}",
            f"p{j}",
            np.full((2, 10_000), float(weights @ expit(strengths[i] - strengths[j] + noise * at) / weights.sum())),
        )
        for i, j in itertools.combinations(range(len(strengths)), 2)
    ]
    return {one.name: one.strength for one in bradley_terry(games, "p0")}


def ranked(repeats: int, players: int, seeds: int, prompts: int, seed: float, prompt: float = 0.5) -> float:
    """Return the coverage of Bradley-Terry intervals."""
    rng = np.random.default_rng(SEED)
    strengths = np.linspace(0, 1, players)
    truth = expected_strengths(strengths, float(np.sqrt(2 * (seed**2 + prompt**2))))
    found = [one for _ in range(repeats) for one in bradley_terry(tournament(rng, strengths, seeds, prompts, seed, prompt), "p0")]
    return float(np.mean([one.low <= truth[one.name] <= one.high for one in found if one.name != "p0"]))


def short(share: float) -> str:
    """Return a share as papers print it."""
    return f"{share:.3f}".removeprefix("0")


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table; floats are shares."""
    print(f"\n{title}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(short(cell) if isinstance(cell, float) else str(cell) for cell in row)} |", flush=True)


def method(repeats: int) -> None:
    """Print what holds for several seeds."""
    rows: list[list[object]] = []
    for contrasts, seeds in itertools.product((1, 3, 12), (2, 3, 5)):
        many = repeats * (4 if contrasts == 1 else 1)
        rows.append([contrasts, seeds, *(simulated(many, (contrasts, seeds, 200), sd) for sd in SEED_SDS)])
    table(
        "Several seeds, 200 prompts: coverage (share of matrices with any adjusted p < .05)",
        ["contrasts", "seeds", *(f"seed sd {sd:g}" for sd in SEED_SDS)],
        rows,
    )
    shapes = {f"{n} prompts": (n, 0.0) for n in (2, 5, 10, 30)}
    shapes |= {f"200 prompts, {share:.0%} of values invalid": (200, share) for share in (0.05, 0.3)}
    rows = [
        [name, *(simulated(repeats, (12, 3, prompts), sd, invalid=invalid) for sd in SEED_SDS)]
        for name, (prompts, invalid) in shapes.items()
    ]
    table("The same with 12 contrasts, 3 seeds", ["", *(f"seed sd {sd:g}" for sd in SEED_SDS)], rows)
    table(
        "One contrast of 12 noisier than the others (their seed sd .03; 3 seeds, 200 prompts)",
        ["its seed sd", "its coverage", "coverage of the others", "noticed"],
        [[f"{factor} times", *uneven(repeats, factor)] for factor in (1, 2, 4, 10, 30)],
    )


def checkpoints(repeats: int) -> None:
    """Print what holds for one seed."""
    shapes = {f"{n} prompts": (n, 1, False) for n in (6, 12, 30, 200)}
    shapes["200 prompts from 40 sources, given as clusters"] = (200, 5, True)
    shapes["200 prompts from 40 sources, ignored"] = (200, 5, False)
    rows = []
    for name, (prompts, size, labelled) in shapes.items():
        one = simulated(repeats // 2, (12, 1, prompts), size=size, labelled=labelled)
        rows.append([name, one.coverage, one.rejected, one.alarms])
    table("One seed, 12 contrasts", ["", "coverage", "p < .05", "any adjusted p < .05"], rows)


def gate(repeats: int) -> None:
    """Print the error rates of non-inferiority."""
    rows = []
    for sd in (0.0, 0.03, 0.06):
        still = nights(repeats, [0.0] * 24, 0.1, sd)
        row: list[object] = [sd, float((still == "worse").any(axis=1).mean()), float((still == "fine").mean())]
        for drop in (0.1, 0.15, 0.2, 0.25):
            first = nights(repeats, [-drop] + [0.0] * 23, 0.1, sd)[:, 0]
            row.append(f"{short(float((first == 'worse').mean()))} / {short(float((first == 'fine').mean()))}")
        rows.append(row)
    table(
        "Non-inferiority, 24 rows, 3 seeds, 200 prompts, margin .10: nothing changed, or one row declined by … (worse / fine)",
        ["seed sd", "unchanged: any row worse", "unchanged: a row is fine", ".10", ".15", ".20", ".25"],
        [[f"{row[0]:g}", *row[1:]] for row in rows],
    )


def power(repeats: int) -> None:
    """Print predicted and simulated power."""
    rows: list[list[object]] = []
    for seeds, prompts, sd, effect in POWERS:
        rng = np.random.default_rng(SEED)
        drawn = [list(crossed(rng, 12, seeds, prompts, sd) + effect) for _ in range(20)]
        predicted = [one.power for some in drawn for one in power_matrix([np.zeros_like(d) for d in some], some, [effect] * 12)]
        found = simulated(repeats // 2, (12, seeds, prompts), sd, truth=effect).rejected
        rows.append([seeds, prompts, f"{sd:g}", f"{effect:g}", float(np.mean(predicted)), found])
    table("Power, 12 contrasts", ["seeds", "prompts", "seed sd", "effect", "predicted", "simulated"], rows)


def ranking(repeats: int) -> None:
    """Print the coverage of Bradley-Terry intervals."""
    shapes = ((2, 3, 200, 0.0), (2, 3, 200, 0.1), (5, 3, 200, 0.0), (5, 3, 200, 0.1), (5, 3, 30, 0.1), (5, 1, 200, 0.0))
    rows = [[*shape[:3], f"{shape[3]:g}", ranked(repeats // 2, *shape)] for shape in shapes]
    table("Bradley-Terry, all pairs, prompt sd .5 nats", ["players", "seeds", "prompts", "seed sd", "coverage"], rows)


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=400, help="simulated matrices")
    repeats = parser.parse_args().repeats
    for part in (method, checkpoints, gate, power, ranking):
        part(repeats)


if __name__ == "__main__":
    main()
