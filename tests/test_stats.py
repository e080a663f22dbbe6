"""Paired comparisons, intervals and alignment: hand values, relations, degenerate inputs. Coverage: test_stats_coverage.py."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from spo_bench.errors import InputError
from spo_bench.stats import align, compare_matrix, interval
from spo_bench.stats.paired import fit_all, total_variance
from spo_bench.stats.resample import EXACT, FLIPS, by_cluster, cluster_numbers, sign_flip


def noise(rng, seeds, prompts, *, prompt=0.3, seed=0.0, rest=0.5):
    """Crossed effects: a (seeds, prompts) array with mean zero."""
    return rng.normal(0, prompt, prompts) + rng.normal(0, seed, (seeds, 1)) + rng.normal(0, rest, (seeds, prompts))


def test_method_interval_by_hand():
    """Two seeds, two prompts, differences [[1, 3], [3, 9]].

    Prompt means 2 and 6, diff 4; variance of diff from prompts: ((-2)^2 + 2^2) / (2 - 1) / 2 = 4.
    Seed means 2 and 6, spread -2 and 2; rest = d - prompt mean - spread = [[1, -1], [-1, 1]].
    Seed square (4 + 4) / 1 = 8; the rest gives a seed mean 4 / (1 * 1) / 2 = 2; seed variance 8 - 2 = 6, over 2 seeds 3.
    Variance 4 + 3 = 7. Freedom: prompt part 4/7 on 1, seed part 8/2 = 4, 4/7 on 1: 1 / (2 (4/7)^2) = 49/32, but no more than
    that of the prompts, 1.
    """
    from scipy import stats

    (one,) = compare_matrix([np.zeros((2, 2))], [np.array([[1.0, 3.0], [3.0, 9.0]])])
    reach = stats.t.ppf(0.975, 1) * math.sqrt(7)
    assert one.diff == pytest.approx(4)
    assert (one.low, one.high) == (pytest.approx(4 - reach), pytest.approx(4 + reach))
    assert one.p == pytest.approx(2 * stats.t.sf(4 / math.sqrt(7), 1))
    assert (one.n_prompts, one.n_seeds, one.estimand, one.family) == (2, 2, "method", 1)


def test_degrees_of_freedom_by_hand():
    """Prompt part 1 on 200 - 1, seed part 1 (square 2, at most the variance) on 24: variance 2, 1 / (1/4/199 + 1/24)."""
    variance, degrees = total_variance(1.0, 200, 1.0, 2.5, 24)
    assert variance == 2
    assert degrees == pytest.approx(1 / (0.25 / 199 + 1 / 24))


def test_standard_error_is_that_of_a_two_way_cluster_covariance():
    """statsmodels: prompts + seeds - cells, each with its factor G / (G - 1) (and (N - 1) / (N - K) = 1 for one mean).

    Ours counts the rest once: prompts + seeds as measured - what the rest gives the seeds. The factors differ in the third term
    only, by 1 / (S - 1) and 1 / (P - 1) of it.
    """
    import statsmodels.api as sm

    seeds, prompts = 4, 60
    d = noise(np.random.default_rng(30), seeds, prompts, seed=0.4) + 0.2
    groups = np.column_stack([np.tile(np.arange(prompts), seeds), np.repeat(np.arange(seeds), prompts)])
    model = sm.OLS(d.reshape(-1), np.ones(d.size))
    bare = {name: model.fit(cov_type="cluster", cov_kwds={"groups": g}).bse[0] ** 2 for name, g in zip("ps", groups.T)}
    white = ((d - d.mean()) ** 2).sum() / d.size**2  # of cells alone, without a factor
    two_way = model.fit(cov_type="cluster", cov_kwds={"groups": groups, "use_correction": False}).bse[0] ** 2
    without = {"p": bare["p"] * (prompts - 1) / prompts, "s": bare["s"] * (seeds - 1) / seeds}
    assert two_way == pytest.approx(without["p"] + without["s"] - white)
    (fit,) = fit_all([np.zeros_like(d)], [d])
    assert fit.prompt_variance == pytest.approx(bare["p"])
    assert fit.seed_square * fit.seed_weight == pytest.approx(bare["s"])
    ours = fit.prompt_variance + (fit.seed_square - fit.rest_square) * fit.seed_weight
    assert ours == pytest.approx(bare["p"] + bare["s"] - white, rel=0.02)


def test_sign_flips_of_binary_outcomes_are_mcnemar():
    """Differences in {-1, 0, 1}: flipping signs leaves the zeros, so the sum over n discordant pairs is 2 Binomial(n, 1/2) - n.

    Exact for up to EXACT prompts; with more, random patterns come within their error.
    """
    from statsmodels.stats.contingency_tables import mcnemar

    rng = np.random.default_rng(31)
    for prompts, tolerance in ((8, 1e-12), (EXACT, 1e-12), (150, 0.015)):
        for _ in range(8):
            a, b = rng.random((2, prompts)) < [[0.6], [0.75]]
            table = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
            (one,) = compare_matrix([a], [b])
            assert one.p == pytest.approx(mcnemar(table, exact=True).pvalue, abs=tolerance)


def test_seed_noise_is_shared_by_the_matrix():
    """A quiet contrast beside noisy ones gets their seed noise; alone it does not."""
    rng = np.random.default_rng(1)
    quiet = noise(rng, 3, 80)
    noisy = [noise(rng, 3, 80, seed=0.8) for _ in range(5)]
    zeros = np.zeros((3, 80))
    alone = compare_matrix([zeros], [quiet])[0]
    together = compare_matrix([zeros] * 6, [quiet, *noisy])[0]
    assert together.diff == alone.diff
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_interval_and_p_of_the_method_agree():
    rng = np.random.default_rng(2)
    for shift in np.linspace(-0.2, 0.2, 21):
        (one,) = compare_matrix([np.zeros((3, 60))], [noise(rng, 3, 60, seed=0.03) + shift])
        assert (one.low <= 0 <= one.high) == (one.p >= 0.05)


def test_sign_flip_exact_by_hand():
    """Sums 1, 2, 3: of the 8 sign patterns only +++ and --- reach |6|, so p = 2/8."""
    assert sign_flip(np.array([1.0, 2.0, 3.0])) == pytest.approx(0.25)


def test_sign_flip_never_zero_and_close_to_t():
    from scipy import stats

    values = np.random.default_rng(3).normal(0.15, 1, 100)
    assert sign_flip(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=0.02)


def test_sign_flip_beyond_what_flips_resolve():
    """Only two of the 2^42 patterns of 42 ones reach their sum; where spread is left, the t test speaks, capped by the flips."""
    from scipy import stats

    assert sign_flip(np.full(EXACT + 30, 1.0)) == 2.0**-41
    values = np.random.default_rng(3).normal(0.8, 1, 100)
    assert sign_flip(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert sign_flip(values) < 0.05 / 1000  # significant among 1,000 rows
    few = np.array([1.0] * 12 + [0.9, 1.1, 30.0])  # far from normal: t is 1.5, and of 2^15 patterns two reach the sum
    assert 2.0**-14 <= sign_flip(few) <= 1 / (1 + FLIPS) * 3


def test_one_seed_asks_about_the_checkpoints_and_a_vector_is_one_seed():
    rng = np.random.default_rng(4)
    a, b = rng.normal(0, 1, 50), rng.normal(0.8, 1, 50)
    row, vector = compare_matrix([a[None]], [b[None]]), compare_matrix([a], [b])
    assert row == vector
    assert row[0].estimand == "checkpoints"
    assert row[0].diff == pytest.approx(float((b - a).mean()))
    assert row[0].low > 0
    assert row[0].p < 0.01


def test_checkpoints_can_be_asked_for_with_several_seeds():
    d = noise(np.random.default_rng(5), 3, 60, seed=1.0)
    (checkpoints,) = compare_matrix([np.zeros((3, 60))], [d], checkpoints=True)
    (method,) = compare_matrix([np.zeros((3, 60))], [d])
    assert checkpoints.estimand == "checkpoints"
    assert checkpoints.n_seeds == 3
    assert checkpoints.diff == pytest.approx(method.diff)
    assert checkpoints.high - checkpoints.low < (method.high - method.low) / 2


def test_swapping_the_sides_mirrors_the_answer():
    rng = np.random.default_rng(6)
    a, b = [rng.normal(0, 1, (3, 40))], [rng.normal(0.2, 1, (3, 40))]
    there, back = compare_matrix(a, b)[0], compare_matrix(b, a)[0]
    assert (there.diff, there.low, there.high) == pytest.approx((-back.diff, -back.high, -back.low))
    assert there.p == pytest.approx(back.p)


def test_holm_equals_statsmodels_and_leaves_out_what_has_no_p():
    rng = np.random.default_rng(7)
    variants = [noise(rng, 1, 40) + shift for shift in (0.0, 0.1, 0.2, 0.4, 0.5)]
    variants.insert(2, np.full((1, 40), np.nan))
    found = compare_matrix([np.zeros((1, 40))] * 6, variants)
    tested = [one for i, one in enumerate(found) if i != 2]
    expected = multipletests([one.p for one in tested], method="holm")[1]
    assert [one.p_adjusted for one in tested] == pytest.approx(list(expected))
    assert {one.family for one in found} == {5}
    assert math.isnan(found[2].p_adjusted)


def test_a_pair_counts_where_both_sides_are_valid():
    """Column 1 is invalid on one side in one seed, column 2 in both: prompts 0 and 1 remain, of 1 and 3."""
    base = np.array([[0.0, np.nan, 0.0], [0.0, 0.0, 0.0]])
    variant = np.array([[1.0, 9.0, np.nan], [1.0, 3.0, np.inf]])
    (one,) = compare_matrix([base], [variant])
    assert one.n_prompts == 2
    assert one.diff == pytest.approx(2.0)


def test_contrasts_may_differ_in_size():
    rng = np.random.default_rng(8)
    shapes = [(3, 40), (2, 70), (1, 25)]
    found = compare_matrix([np.zeros(s) for s in shapes], [rng.normal(0, 1, s) for s in shapes])
    assert [(one.n_seeds, one.n_prompts) for one in found] == shapes
    assert [one.estimand for one in found] == ["method", "method", "checkpoints"]


@pytest.mark.parametrize("seeds", [1, 3])
def test_degenerate_inputs(seeds):
    nothing, single, equal, constant = compare_matrix(
        [np.zeros((seeds, 6)), np.zeros((seeds, 1)), np.ones((seeds, 6)), np.zeros((seeds, 6))],
        [np.full((seeds, 6), np.nan), np.full((seeds, 1), 2.0), np.ones((seeds, 6)), np.full((seeds, 6), 0.1)],
    )
    assert all(math.isnan(x) for x in (nothing.diff, nothing.low, nothing.high, nothing.p, nothing.p_adjusted))
    assert (nothing.n_prompts, nothing.n_seeds) == (0, 0)
    assert single.diff == 2.0
    assert all(math.isnan(x) for x in (single.low, single.high, single.p))
    assert (equal.diff, equal.low, equal.high, equal.p) == (0.0, 0.0, 0.0, 1.0)
    assert constant.low == pytest.approx(0.1)
    assert constant.high == pytest.approx(0.1)
    assert constant.low <= constant.diff <= constant.high
    assert constant.p == pytest.approx(2 / 2**6)  # only all-plus and all-minus of 64 patterns are as far from zero


def test_seed_effects_are_found_where_values_are_missing():
    """No rest: d = prompt + seed, so the seed effects are exact whatever is missing, and the rest adds nothing.

    Seeds -1, 0, 1, seed 2 answers only prompts 0 and 1 of 5: seed square ((-1)^2 + 0 + 1) / 2 = 1.
    """
    d = np.array([[-1.0], [0.0], [1.0]]) + np.array([3.0, 1.0, 4.0, 1.0, 5.0])
    d[2, 2:] = np.nan
    (fit,) = fit_all([np.zeros_like(d)], [d])
    assert fit.spread.tolist() == pytest.approx([-1, 0, 1])
    assert (fit.seed_square, fit.rest_square, fit.seed_freedom) == (pytest.approx(1), pytest.approx(0, abs=1e-12), 2)


def test_seeds_that_share_no_prompt_have_no_interval_of_their_own():
    """Seed 0 answers prompts 0 to 3, seed 1 prompts 4 to 7: seeds and prompts cannot be told apart, unless others tell."""
    rng = np.random.default_rng(32)
    apart, whole = rng.normal(1, 1, (2, 8)), rng.normal(1, 1, (2, 8))
    apart[0, 4:] = apart[1, :4] = np.nan
    (alone,) = compare_matrix([np.zeros((2, 8))], [apart])
    assert math.isfinite(alone.diff)
    assert all(math.isnan(x) for x in (alone.low, alone.high, alone.p))
    beside, _ = compare_matrix([np.zeros((2, 8))] * 2, [apart, whole])
    assert beside.low < beside.diff < beside.high


def test_empty_matrix_and_empty_arrays():
    assert compare_matrix([], []) == []
    (one,) = compare_matrix([np.empty((2, 0))], [np.empty((2, 0))])
    assert one.n_prompts == 0
    assert math.isnan(one.diff)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"contrast 0: baseline \(2, 3\)"):
        compare_matrix([np.zeros((2, 3))], [np.zeros((3, 3))])
    with pytest.raises(ValueError, match="1 baselines and 2 variants"):
        compare_matrix([np.zeros(3)], [np.zeros(3)] * 2)
    with pytest.raises(ValueError, match="confidence 95"):
        compare_matrix([np.zeros(3)], [np.zeros(3)], confidence=95)
    with pytest.raises(ValueError, match="2 cluster labels for 3 prompts"):
        compare_matrix([np.zeros(3)], [np.zeros(3)], clusters=[["a", "b"]])


@pytest.mark.parametrize("seeds", [1, 3])
def test_clusters_of_copies_equal_one_prompt_each(seeds):
    """Every prompt five times over is no more evidence than once, where the copies share a label."""
    d = noise(np.random.default_rng(9), seeds, 30, seed=0.2)
    copies = np.repeat(d, 5, axis=1)
    labels = [str(i // 5) for i in range(150)]
    (once,) = compare_matrix([np.zeros_like(d)], [d])
    (many,) = compare_matrix([np.zeros_like(copies)], [copies], clusters=[labels])
    assert (many.diff, many.low, many.high) == pytest.approx((once.diff, once.low, once.high))
    assert many.p == pytest.approx(once.p)


def test_answers_are_the_same_every_time_and_leave_numpy_alone():
    d = [noise(np.random.default_rng(10), 1, 50)]
    np.random.seed(0)
    state = np.random.get_state()[1].copy()
    first = compare_matrix([np.zeros((1, 50))], d)
    assert first == compare_matrix([np.zeros((1, 50))], d)
    assert (np.random.get_state()[1] == state).all()
    assert dataclasses.asdict(first[0])["estimand"] == "checkpoints"


def test_interval_of_values_and_of_none():
    mean, low, high, n = interval([1.0, 2.0, np.nan, 3.0, 6.0])
    assert (mean, n) == (3.0, 4)
    assert low < mean < high
    assert interval([2.0])[0] == 2.0
    assert all(math.isnan(x) for x in interval([2.0])[1:3])
    assert interval([np.nan])[3] == 0
    assert math.isnan(interval([])[0])
    assert interval([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0, 3)


def test_interval_of_binary_values_is_wilson():
    for wins in (0, 7, 20):
        mean, low, high, n = interval([1.0] * wins + [0.0] * (20 - wins))
        assert (low, high) == pytest.approx(proportion_confint(wins, 20, method="wilson"), abs=1e-12)
        assert low <= mean <= high
        assert n == 20


def test_labels_that_are_all_distinct_are_no_clusters():
    """0 of 20: Wilson's upper end is z^2 / (n + z^2) = 3.841 / 23.841 = .161. 19 of 20: [.764, .991]."""
    labels = [f"prompt-{i}" for i in range(20)]
    assert interval([0.0] * 20, clusters=labels) == pytest.approx((0.0, 0.0, 0.1611, 20), abs=1e-4)
    assert interval([1.0] * 19 + [0.0], clusters=labels) == pytest.approx((0.95, 0.7639, 0.9911, 20), abs=1e-4)
    assert interval([1.0] * 19 + [0.0, np.nan], clusters=[*labels, "prompt-0"])[:3] == interval([1.0] * 19 + [0.0])[:3]
    paired = interval([1.0, 1.0] * 9 + [0.0, 0.0], clusters=[i // 2 for i in range(20)])
    assert paired[1:3] == interval([1.0] * 18 + [0.0] * 2, clusters=[i // 2 for i in range(20)])[1:3]
    assert paired[1] < interval([1.0] * 18 + [0.0] * 2)[1]


def test_interval_has_the_width_of_a_t_interval_and_respects_clusters():
    values = np.random.default_rng(11).normal(0, 1, 200)
    _, low, high, _ = interval(values)
    assert high - low == pytest.approx(2 * 1.972 * values.std(ddof=1) / math.sqrt(200), rel=0.06)
    _, low5, high5, n = interval(np.repeat(values, 5), clusters=list(np.repeat(np.arange(200), 5)))
    assert n == 1000
    assert (low5, high5) == pytest.approx((low, high))


def test_interval_over_many_prompts_is_made_in_blocks():
    values = np.random.default_rng(12).normal(1, 1, 3000)
    mean, low, high, n = interval(values)
    assert n == 3000
    assert high - low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(3000), rel=0.06)
    assert low < mean < high


def test_missing_cluster_labels_stand_alone():
    numbers = cluster_numbers(["a", None, "a", None], 4)
    assert numbers.tolist() == [0, 1, 0, 2]
    sums, counts = by_cluster(np.array([1.0, 2.0, 3.0, 4.0]), numbers)
    assert sums.tolist() == [4.0, 2.0, 4.0]
    assert counts.tolist() == [2.0, 1.0, 1.0]


def test_align_returns_places_and_names_what_is_missing():
    assert align(["a", "b", "c"], ["c", "a", "b"]) == [1, 2, 0]
    with pytest.raises(InputError, match=r"id 'c' only in the first set and id 'd' only in the second set"):
        align(["a", "c"], ["a", "d"])
    with pytest.raises(InputError, match=r"id 'a' more than once in the second set"):
        align(["a"], ["a", "a"])
