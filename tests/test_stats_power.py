"""Power: hand values, relations, and inputs that show no noise. Against simulation: test_stats_coverage.py."""

from __future__ import annotations

import math

import numpy as np
import pytest
from statsmodels.stats.power import TTestPower

from spo_bench.stats import compare_matrix, power_matrix
from spo_bench.stats.power import MOST


def design(values, effect=None, **settings):
    values = np.asarray(values, dtype=float)
    return power_matrix([np.zeros_like(values)], [values], None if effect is None else [effect], **settings)[0]


def pilot(seed, seeds=3, prompts=120, rng=50):
    rng = np.random.default_rng(rng)
    return rng.normal(0, 0.3, prompts) + rng.normal(0, 1, (seeds, 1)) * seed + rng.normal(0, 0.5, (seeds, prompts)) + 0.1


def test_one_seed_is_a_paired_t_test():
    """statsmodels' TTestPower on the effect in standard deviations; its sample size, rounded up, is what is needed."""
    values = np.random.default_rng(51).normal(0.1, 0.7, (1, 90))
    one, sd = design(values, 0.2), float(values.std(ddof=1))
    t = TTestPower()
    assert one.prompt_sd == pytest.approx(sd)
    assert one.power == pytest.approx(t.power(0.2 / sd, 90, 0.05))
    assert one.detectable == pytest.approx(t.solve_power(nobs=90, alpha=0.05, power=0.8) * sd, rel=1e-4)
    assert one.prompts_needed == math.ceil(t.solve_power(0.2 / sd, alpha=0.05, power=0.8))
    assert (one.seeds_needed, one.n_seeds, one.n_prompts) == (None, 1, 90)
    assert all(math.isnan(x) for x in (one.seed_sd, one.rest_sd))


def test_components_by_hand():
    """Differences [[1, 3], [3, 9]]: see test_stats.test_method_interval_by_hand.

    The rest gives a seed's mean 2, so 2 P = 4 a value, sd 2. Prompt part of diff 4, rest 2 / S = 1 of it: (4 - 1) P = 6.
    Seed variance 6.
    """
    one = design([[1, 3], [3, 9]])
    assert (one.effect, one.prompt_sd, one.seed_sd, one.rest_sd) == pytest.approx((4, math.sqrt(6), math.sqrt(6), 2))
    assert one.prompt_sd**2 / 2 + one.seed_sd**2 / 2 + one.rest_sd**2 / 4 == pytest.approx(7)


def test_standard_deviations_make_up_the_interval():
    """Where every part is positive, the width of compare_matrix's interval is that of the three parts."""
    from scipy import stats

    values = pilot(0.3, seeds=4)
    one, (found,) = design(values), compare_matrix([np.zeros_like(values)], [values])
    variance = one.prompt_sd**2 / 120 + one.seed_sd**2 / 4 + one.rest_sd**2 / 480
    assert one.effect == pytest.approx(abs(found.diff))
    assert abs(found.diff) / math.sqrt(variance) == pytest.approx(stats.t.isf(found.p / 2, _degrees(found, variance)))


def _degrees(found, variance):
    from scipy import optimize, stats

    return optimize.brentq(lambda df: stats.t.ppf(0.975, df) * math.sqrt(variance) - (found.high - found.diff), 0.5, 1e4)


def test_detectable_has_the_power_asked_for():
    values = pilot(0.05)
    for target in (0.5, 0.8, 0.95):
        one = design(values, target=target)
        assert design(values, one.detectable).power == pytest.approx(target, abs=1e-6)
        assert design(values, -one.detectable) == design(values, one.detectable)


def test_needed_numbers_are_the_smallest_that_suffice():
    """A pilot with the same parts but other sizes has the power that the search found: with n, and not with n - 1."""
    values = np.random.default_rng(52).normal(0, 1, (1, 60))
    needed = design(values, 0.2).prompts_needed
    sd, t = float(values.std(ddof=1)), TTestPower()
    assert t.power(0.2 / sd, needed, 0.05) >= 0.8 > t.power(0.2 / sd, needed - 1, 0.05)
    assert design(values, 0.2, target=0.9).prompts_needed > needed
    assert design(values, 0.2, confidence=0.99).prompts_needed > needed


def test_seed_noise_alone_and_prompt_noise_alone_hide_an_effect():
    """Seed sd about 1 in 3 seeds: no number of prompts shows .1, seeds do. Without seed noise, it is the other way round."""
    noisy, quiet = design(pilot(1.0), 0.1), design(pilot(0.0, prompts=30), 0.02)
    assert noisy.prompts_needed is None
    assert noisy.seeds_needed > 100
    assert quiet.seed_sd < 0.1
    assert quiet.seeds_needed is None
    assert quiet.prompts_needed is None or quiet.prompts_needed > 300


def test_measured_effects_are_the_default_and_zero_is_found_by_nothing():
    values = [pilot(0.03, rng=seed) for seed in (53, 54)]
    zeros = [np.zeros_like(one) for one in values]
    found = compare_matrix(zeros, values)
    assert [one.effect for one in power_matrix(zeros, values)] == pytest.approx([abs(one.diff) for one in found])
    mixed = power_matrix(zeros, values, [None, 0.0])
    assert mixed[0] == power_matrix(zeros, values)[0]
    assert mixed[1].power == pytest.approx(0.05)
    assert (mixed[1].prompts_needed, mixed[1].seeds_needed) == (None, None)
    assert mixed[1].detectable > 0
    assert design(np.random.default_rng(0).normal(0, 1, (1, 30)), 1e-9).prompts_needed is None  # beyond MOST
    assert MOST == 10**12


def test_seed_noise_is_pooled_over_the_call():
    quiet, noisy = pilot(0.0, rng=55), pilot(1.0, rng=56)
    zeros = np.zeros_like(quiet)
    alone, together = design(quiet, 0.3), power_matrix([zeros] * 2, [quiet, noisy], [0.3, 0.3])[0]
    assert together.seed_sd > alone.seed_sd
    assert together.power < alone.power


def test_few_units_of_one_seed_find_nothing():
    """Flipping the signs of 5 units gives no p below 2/32 = .0625; 6 units give .031."""
    values = np.arange(1.0, 6.0)[None]
    assert design(values).power == 0
    assert math.isnan(design(values).detectable)
    assert design(values, 1e3).prompts_needed == 6
    assert design(np.arange(1.0, 7.0)[None]).power > 0.9


def test_clusters_are_the_units():
    values = np.random.default_rng(57).normal(0.1, 1, (1, 40))
    copies = np.repeat(values, 3, axis=1)
    once = design(values, 0.4)
    thrice = power_matrix([np.zeros_like(copies)], [copies], [0.4], clusters=[[i // 3 for i in range(120)]])[0]
    assert thrice.power == pytest.approx(once.power)
    assert 3 * once.prompts_needed - 3 < thrice.prompts_needed <= 3 * once.prompts_needed


@pytest.mark.parametrize("seeds", [1, 3])
def test_degenerate_inputs(seeds):
    nothing, single, constant = (design(x) for x in (np.full((seeds, 6), np.nan), np.ones((seeds, 1)), np.ones((seeds, 6))))
    for one in (nothing, single, constant):
        assert math.isnan(one.power)
        assert math.isnan(one.detectable)
        assert (one.prompts_needed, one.seeds_needed) == (None, None)
    assert math.isnan(nothing.effect)
    assert (single.effect, constant.effect, constant.prompt_sd) == (1, 1, 0)
    assert (nothing.n_prompts, nothing.n_seeds, single.n_prompts) == (0, 0, 1)
    assert power_matrix([], []) == []


def test_two_prompts_have_an_answer():
    one = design([[1, 3], [3, 9]])
    assert 0.05 < one.power < 0.2
    assert one.detectable > 40


def test_what_does_not_fit_is_refused():
    d = np.zeros((2, 3))
    with pytest.raises(ValueError, match=r"target 0\.01"):
        design(d, target=0.01)
    with pytest.raises(ValueError, match="2 effects for 1 contrasts"):
        power_matrix([d], [d], [1.0, 2.0])
    with pytest.raises(ValueError, match="confidence 1"):
        design(d, confidence=1)
    with pytest.raises(ValueError, match="1 baselines and 2 variants"):
        power_matrix([d], [d, d])
