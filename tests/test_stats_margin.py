"""Non-inferiority: the decision rule by hand, directions, ties, and what cannot be judged. Error rates: test_stats_coverage.py."""

from __future__ import annotations

import math

import numpy as np
import pytest

from spo_bench.stats import as_family, compare_matrix, holm, non_inferiority


def drifting(shift, seeds=3, prompts=150, rng=20, sd=0.5):
    return np.random.default_rng(rng).normal(shift, sd, (seeds, prompts))


def judged(candidate, margin=0.1, **settings):
    (one,) = non_inferiority([np.zeros_like(candidate)], [candidate], [margin], **settings)
    return one


def test_bounds_and_p_are_one_sided():
    """The interval is compare_matrix at .90; the t statistic of p two-sided 2q has the one-sided q on the side of diff."""
    for shift in (-0.1, 0.1):
        d = drifting(shift)
        one, (both,) = judged(d), compare_matrix([np.zeros_like(d)], [d], 0.9)
        assert (one.diff, one.low, one.high) == (both.diff, both.low, both.high)
        assert one.p == pytest.approx(both.p / 2 if shift < 0 else 1 - both.p / 2)
        assert (one.p < 0.05) == (one.high < 0)
        assert (one.estimand, one.n_prompts, one.n_seeds, one.family, one.margin) == ("method", 150, 3, 1, 0.1)


def test_outcomes_by_a_margin():
    """A decline of about .2 +- .04: worse at .1, undecided at .22 (not as large, not excluded), fine at .4."""
    d = drifting(-0.2)
    decline = -float(d.mean())
    assert judged(d, 0.1).outcome == "worse"
    assert judged(d, decline + 0.01).outcome == "undecided"
    assert judged(d, 0.4).outcome == "fine"
    assert judged(d, 0.4).p < 0.05  # a decline that is certain, and smaller than the margin
    assert judged(d, 0.1).decline == pytest.approx(decline)
    assert judged(d, 0.1).bound == -judged(d, 0.1).low


def test_direction_mirrors_everything():
    d = drifting(0.2)
    up, down = judged(d), judged(d, higher_is_better=False)
    assert (up.outcome, down.outcome) == ("fine", "worse")
    assert up.diff == down.diff
    assert up.p == pytest.approx(1 - down.p)
    assert down.bound == down.high
    mirrored = judged(-d)
    assert (mirrored.outcome, mirrored.p, mirrored.bound) == (down.outcome, down.p, pytest.approx(down.bound))


def test_ties_are_fine_and_constants_are_judged_by_their_size():
    for seeds in (1, 3):
        assert judged(np.zeros((seeds, 40)), 1e-9).outcome == "fine"
        assert judged(np.full((seeds, 40), -0.2)).outcome == "worse"
        assert judged(np.full((seeds, 40), -0.05)).outcome == "fine"
        assert judged(np.full((seeds, 3), -0.2)).outcome == "undecided"  # of 8 sign patterns 2 are as far: p is never below 1/8


def test_a_tie_beside_noisy_rows_is_still_a_tie():
    noisy = drifting(0.0) + np.array([[-1.0], [0.0], [1.0]])
    rows = [noisy, np.zeros((3, 150)), np.where(np.arange(150) < 75, -1.0, 1.0) * np.ones((3, 1)), np.full((3, 150), np.nan)]
    rows[1][0, 5] = np.nan
    found = non_inferiority([np.zeros_like(d) for d in rows], rows, [0.01] * 4)
    assert [one.outcome for one in found] == ["undecided", "fine", "undecided", "undecided"]
    assert (found[1].low, found[1].high) == (0, 0)


@pytest.mark.parametrize("values", [np.full((3, 5), np.nan), np.full((3, 1), -9.0), np.empty((2, 0)), np.full((1, 1), -9.0)])
def test_what_cannot_be_judged_is_undecided(values):
    one = judged(values)
    assert one.outcome == "undecided"
    assert all(math.isnan(x) for x in (one.low, one.high, one.p, one.p_adjusted))
    assert one.family == 0


def test_one_seed_and_checkpoints_ask_about_these_policies():
    d = drifting(-0.3) + np.array([[-3.0], [0.0], [3.0]])
    assert judged(d[:1]).estimand == "checkpoints"
    fixed = judged(d, checkpoints=True)
    assert (fixed.estimand, fixed.n_seeds, fixed.outcome) == ("checkpoints", 3, "worse")
    assert judged(d).outcome == "undecided"  # retraining moves it by 3


def test_family_is_corrected_together_over_calls():
    shifts = (-0.12, -0.1, 0.0, 0.1)
    rows = [drifting(shift, rng=21 + i) for i, shift in enumerate(shifts)]
    first = non_inferiority([np.zeros_like(d) for d in rows[:2]], rows[:2], [0.02] * 2)
    second = non_inferiority([np.zeros_like(d) for d in rows[2:]], rows[2:], [0.02] * 2)
    together = as_family([*first, *second])
    assert [one.p_adjusted for one in together] == pytest.approx(list(holm([one.p for one in [*first, *second]])))
    assert {one.family for one in together} == {4}
    assert as_family(first) == first
    crowd = as_family([first[0], *[second[1]] * 40])
    assert (first[0].outcome, crowd[0].outcome) == ("worse", "undecided")


def test_labels_and_directions_belong_to_rows():
    d = drifting(-0.2, seeds=1)
    copies = np.repeat(d, 4, axis=1)
    rows = non_inferiority(
        [np.zeros_like(copies)] * 2,
        [copies, copies],
        [0.1, 0.3],
        higher_is_better=[True, False],
        clusters=[[i // 4 for i in range(600)], None],
    )
    assert (rows[0].high - rows[0].low) > 1.5 * (rows[1].high - rows[1].low)
    assert [one.outcome for one in rows] == ["worse", "fine"]
    assert [one.margin for one in rows] == [0.1, 0.3]


def test_what_does_not_fit_is_refused():
    d = np.zeros((2, 3))
    for margin in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="row 0: margin"):
            judged(d, margin)
    with pytest.raises(ValueError, match=r"confidence 0\.5"):
        judged(d, confidence=0.5)
    with pytest.raises(ValueError, match="1 candidates, 2 margins"):
        non_inferiority([d], [d], [1.0, 2.0])
    with pytest.raises(ValueError, match="2 directions"):
        non_inferiority([d], [d], [1.0], higher_is_better=[True, False])
    assert non_inferiority([], [], []) == []
