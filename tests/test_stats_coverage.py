"""Statistics by simulation with known truth: coverage of intervals, levels and power of tests.

The bounds leave about three standard errors of the simulation around what benchmarks/coverage.py measures with more of it.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from spo_bench.stats import compare_matrix, power_matrix, seed_spread

_SPEC = importlib.util.spec_from_file_location("coverage_simulation", Path(__file__).parents[1] / "benchmarks" / "coverage.py")
simulation = importlib.util.module_from_spec(_SPEC)  # by path: a package of that name may be installed
sys.modules[_SPEC.name] = simulation
_SPEC.loader.exec_module(simulation)
crossed, nights, ranked, simulated, uneven = (
    getattr(simulation, name) for name in ("crossed", "nights", "ranked", "simulated", "uneven")
)


@pytest.mark.parametrize("seed", [0.0, 0.03, 0.06])
def test_coverage_of_the_method_interval(seed):
    """Nominal 95 %, 12 contrasts, 3 seeds, 200 prompts: .93 to .98, and an alarm in at most 8 % of families."""
    found = simulated(500, (12, 3, 200), seed)
    assert 0.93 <= found.coverage <= 0.98
    assert found.alarms <= 0.08


@pytest.mark.parametrize(
    ("shape", "invalid"), [((12, 2, 200), 0.0), ((2, 3, 200), 0.0), ((12, 3, 10), 0.0), ((12, 3, 2), 0.0), ((12, 3, 100), 0.3)]
)
def test_coverage_with_few_seeds_contrasts_prompts_and_values(shape, invalid):
    """Seed noise as large as the prompts' share: never far below .95, and families keep their level, with 2 prompts too."""
    found = simulated(250, shape, 0.06, invalid=invalid)
    assert found.coverage >= 0.925
    assert found.alarms <= 0.09


def test_uneven_seed_noise_undercovers_and_is_sometimes_noticed():
    """A contrast with 4 times the seed noise of the 11 others: pooling is wrong there, and safe for the others."""
    noisy, others, noticed = uneven(250, 4)
    assert noisy < 0.88
    assert others > 0.94
    assert noticed > 0.2


@pytest.mark.parametrize("seeds", [2, 3])
def test_a_contrast_that_diverged_in_one_seed_is_left_to_its_own_noise(seeds):
    """One policy of 12 breaks in its last seed: it is named, nothing is claimed of it, and the others keep their intervals."""
    rng = np.random.default_rng(43)
    zeros = [np.zeros((seeds, 100))] * 12
    for _ in range(20):
        drawn = list(crossed(rng, 12, seeds, 100, 0.03))
        before = compare_matrix(zeros, drawn)
        drawn[4] = drawn[4] + np.array([*[0.0] * (seeds - 1), 3.0])[:, None]
        after = compare_matrix(zeros, drawn)
        assert [one.own_noise for one in after] == [i == 4 for i in range(12)]
        assert after[4].p > 0.05
        for i in (0, 11):
            assert after[i].high - after[i].low < 1.4 * (before[i].high - before[i].low)


def test_exact_ties_do_not_count_as_quiet_seeds():
    """Eleven arms without any difference must not take the seed noise of the twelfth for theirs, nor it their silence."""
    rng = np.random.default_rng(44)
    zeros, drawn = [np.zeros((3, 100))] * 3, list(crossed(rng, 3, 3, 100, 0.3))
    alone = compare_matrix(zeros, drawn)
    among = compare_matrix([*zeros, *[np.zeros((3, 100))] * 9], [*drawn, *[np.zeros((3, 100))] * 9])
    assert [(one.low, one.high) for one in among[:3]] == [(one.low, one.high) for one in alone]
    assert not any(one.own_noise for one in among)


@pytest.mark.parametrize(("contrasts", "seeds"), [(12, 3), (3, 5)])
def test_seed_spread_keeps_its_level_and_is_uniform(contrasts, seeds):
    """Even noise: p below .05 in at most 8 % of matrices, and every tenth of [0, 1] holds about a tenth of them."""
    rng = np.random.default_rng(40)
    found = []
    for _ in range(500):
        drawn = list(crossed(rng, contrasts, seeds, 40, 0.1))
        found.append(seed_spread([np.zeros_like(one) for one in drawn], drawn))
    assert np.mean(np.array(found) < 0.05) <= 0.08
    counts, _ = np.histogram(found, bins=10, range=(0, 1))
    assert counts.min() > 20
    assert counts.max() < 85


def test_seed_spread_needs_three_seeds_twice():
    """Half of the contrasts with three times the noise of the rest: too many to be odd ones, and found with 12 seeds."""
    rng = np.random.default_rng(41)
    zeros = [np.zeros((12, 200))] * 8
    uneven_noise = list(crossed(rng, 8, 12, 200, np.array([0.9] * 4 + [0.3] * 4)))
    assert sum(one.own_noise for one in compare_matrix(zeros, uneven_noise)) < 2
    assert seed_spread(zeros, uneven_noise) < 0.05
    assert math.isnan(seed_spread(zeros[:1], uneven_noise[:1]))
    assert math.isnan(seed_spread(zeros, zeros))
    assert math.isnan(seed_spread([np.zeros((2, 9))] * 2, list(crossed(rng, 2, 2, 9))))


@pytest.mark.parametrize("prompts", [12, 100])
def test_coverage_of_the_checkpoint_interval(prompts):
    found = simulated(50, (12, 1, prompts))
    assert 0.92 <= found.coverage <= 0.98
    assert found.rejected <= 0.08


def test_clusters_cover_and_prompts_taken_for_independent_do_not():
    """40 sources of 5 prompts that share their effect (sd .3 of .58): bootstrap and sign flips of whole clusters hold."""
    given, ignored = (simulated(120, (6, 1, 200), size=5, labelled=labelled) for labelled in (True, False))
    assert 0.92 <= given.coverage <= 0.98
    assert given.rejected <= 0.075
    assert ignored.coverage < 0.89
    assert ignored.rejected > 0.1
    method = simulated(150, (6, 3, 200), 0.03, size=5)
    assert 0.93 <= method.coverage <= 0.985


@pytest.mark.parametrize(
    ("shape", "seed", "effect"),
    [((12, 3, 200), 0.03, 0.1), ((12, 2, 60), 0.06, 0.25), ((3, 3, 30), 0.0, 0.2), ((6, 1, 80), 0.0, 0.15)],
)
def test_predicted_power_is_simulated_power(shape, seed, effect):
    rng = np.random.default_rng(42)
    predicted = []
    for _ in range(12):
        drawn = list(crossed(rng, *shape, seed) + effect)
        predicted += [one.power for one in power_matrix([np.zeros_like(d) for d in drawn], drawn, [effect] * len(drawn))]
    found = simulated(600 // shape[0], shape, seed, truth=effect)
    assert found.rejected == pytest.approx(np.mean(predicted), abs=0.06)


def test_prompts_and_seeds_needed_give_the_power_asked_for():
    """From one pilot: its needed numbers, simulated with its own standard deviations, find the effect in 80 %."""
    rng = np.random.default_rng(43)
    pilot = list(crossed(rng, 12, 3, 200, 0.06))
    zeros = [np.zeros_like(d) for d in pilot]
    one = power_matrix(zeros, pilot, [0.12] * 12)[0]

    def share(seeds, prompts):
        hits = []
        for _ in range(50):
            drawn = rng.normal(0, one.prompt_sd, (12, 1, prompts)) + rng.normal(0, one.seed_sd, (12, seeds, 1))
            drawn = drawn + rng.normal(0, one.rest_sd, (12, seeds, prompts)) + 0.12
            hits += [found.p < 0.05 for found in compare_matrix(list(np.zeros_like(drawn)), list(drawn))]
        return np.mean(hits)

    assert share(3, one.prompts_needed) == pytest.approx(0.8, abs=0.06)
    assert share(one.seeds_needed, 200) > 0.74


def test_gate_is_silent_on_unchanged_nights():
    """24 rows, seed sd .03, 3 seeds, 200 prompts: any row worse in at most 8 % of nights, whatever the margin."""
    found = nights(250, [0.0] * 24, 1e-6)
    assert (found == "worse").any(axis=1).mean() <= 0.08


def test_gate_hears_a_big_drop_and_lets_no_margin_pass_as_fine():
    """A drop of .25 is worse in nearly all nights; a decline as large as the margin, .1, is fine in 5 %."""
    found = nights(200, [-0.25] + [-0.1] * 11 + [0.0] * 12, 0.1)
    assert (found[:, 0] == "worse").mean() > 0.9
    assert (found[:, 1:12] == "fine").mean() <= 0.07
    assert (found[:, 12:] == "fine").mean() > 0.6


@pytest.mark.parametrize(("players", "seeds", "seed", "low"), [(5, 3, 0.1, 0.92), (2, 3, 0.0, 0.94), (5, 1, 0.0, 0.92)])
def test_coverage_of_strengths(players, seeds, seed, low):
    """Where seeds make no difference among two players, the interval is too wide, as that of any single contrast."""
    assert low <= ranked(100, players, seeds, 100, seed) <= (0.98 if players > 2 else 1)
