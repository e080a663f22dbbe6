"""Length control: a hand value, symmetry, what the ridge does, coverage by simulation, and every refusal."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, logit

from spo_bench.stats import LengthControlled, length_controlled
from spo_bench.stats.length_control import FEWEST, PRIOR_SD


def pairs(seed, n, at_zero, slope, longer=0.0):
    """Verdicts of a judge whose log-odds are at_zero + slope tanh(difference / sd); the subject is longer by ``longer`` sd."""
    rng = np.random.default_rng(seed)
    differences = 400 * (rng.normal(size=n) + longer)
    chance = expit(at_zero + slope * np.tanh(differences / differences.std(ddof=1)))
    return (rng.random(n) < chance).astype(float), differences


def test_by_hand():
    """Half of the pairs are longer, half shorter, by the same length L; shares 3/4 and 1/4 of them are won.

    By symmetry the intercept is 0 and the rate 1/2. The standard deviation is L sqrt(n / (n - 1)), so x = tanh(sqrt((n - 1) / n)).
    The slope b solves n x (3/4 - p) = b / PRIOR_SD^2 with p = expit(b x). Intercept and slope do not mix, so the variance of
    the intercept is n / (n - 1) * sum of (y - p)^2 / (n p (1 - p))^2, the sum being n (3/4 (1 - p)^2 + 1/4 p^2).
    """
    n = 80
    differences = np.repeat([120.0, -120.0], n // 2)
    verdicts = np.concatenate([np.tile([1.0, 1.0, 1.0, 0.0], n // 8), np.tile([0.0, 0.0, 0.0, 1.0], n // 8)])
    found = length_controlled(verdicts, differences)
    x = math.tanh(math.sqrt((n - 1) / n))
    p = expit(found.slope * x)
    assert n * x * (0.75 - p) == pytest.approx(found.slope / PRIOR_SD**2, abs=1e-9)
    variance = n / (n - 1) * n * (0.75 * (1 - p) ** 2 + 0.25 * p**2) / (n * p * (1 - p)) ** 2
    reach = stats.t.ppf(0.975, n - 2) * math.sqrt(variance)
    assert found.rate == pytest.approx(0.5)
    assert (found.low, found.high) == (pytest.approx(expit(-reach)), pytest.approx(expit(reach)))
    assert (found.n, found.reason) == (n, None)


def test_the_other_side_gets_the_rest():
    verdicts, differences = pairs(0, 300, 1.0, 1.5, longer=0.5)
    one, other = length_controlled(verdicts, differences), length_controlled(1 - verdicts, -differences)
    assert other.rate == pytest.approx(1 - one.rate)
    assert (other.low, other.high) == (pytest.approx(1 - one.high), pytest.approx(1 - one.low))
    assert other.slope == pytest.approx(one.slope)


def test_unit_of_length_and_invalid_pairs_do_not_matter():
    verdicts, differences = pairs(1, 200, 0.5, 1.0)
    plain = length_controlled(verdicts, differences)
    assert length_controlled(verdicts, differences / 4.2).rate == pytest.approx(plain.rate)
    holed = length_controlled([*verdicts, math.nan, 1.0], [*differences, 5000.0, math.nan])
    assert holed == plain


def test_it_takes_the_advantage_of_length_out():
    """The subject wins over 80 %, and 50 % at equal length: it is longer by 1.5 standard deviations, and length wins."""
    verdicts, differences = pairs(2, 4000, 0.0, 2.5, longer=1.5)
    assert verdicts.mean() > 0.8
    assert length_controlled(verdicts, differences).rate == pytest.approx(0.5, abs=0.06)


def test_the_ridge_fades():
    """The estimate of a slope of 3, at 100,000 pairs, is not pulled to 0 by more than 0.05."""
    verdicts, differences = pairs(3, 100_000, 0.5, 3.0)
    assert length_controlled(verdicts, differences).slope == pytest.approx(3.0, abs=0.05)


@pytest.mark.parametrize(
    ("raw", "slope", "longer", "n"), [(0.5, 1.0, 0.0, 60), (0.95, 0.0, 2.0, 100), (0.9, 1.5, 1.0, 150), (0.95, 2.0, 2.0, 400)]
)
def test_coverage(raw, slope, longer, n):
    """The 95 % interval holds the true rate in about 95 % of 300 samples; a true .95 stays in (.915, .98) 99 % of the time."""
    shifts = np.tanh(stats.norm.ppf((np.arange(4000) + 0.5) / 4000) + longer)
    low, high = -12.0, 12.0
    for _ in range(60):  # the intercept that gives the raw rate
        middle = (low + high) / 2
        low, high = (middle, high) if expit(middle + slope * shifts).mean() < raw else (low, middle)
    found = [length_controlled(*pairs((n, seed), n, low, slope, longer)) for seed in range(300)]
    given = [one for one in found if one.reason is None]
    assert len(given) > 240
    assert 0.915 < np.mean([one.low <= expit(low) <= one.high for one in given]) <= 1


def test_clusters_widen_the_interval():
    """Every pair four times over says nothing new: with clusters the interval is that of the pairs once, but for the ridge, which fades."""
    verdicts, differences = pairs(5, 100, 0.5, 1.0)
    once = length_controlled(verdicts, differences)
    alone = length_controlled(np.tile(verdicts, 4), np.tile(differences, 4))
    together = length_controlled(np.tile(verdicts, 4), np.tile(differences, 4), clusters=[*range(100)] * 4)
    assert alone.high - alone.low < 0.6 * (once.high - once.low)
    assert together.high - together.low == pytest.approx(once.high - once.low, rel=0.05)


def test_shares_count_as_shares():
    """A judge that says .7 in the words of probabilities is a judge that wins 7 of 10, with a narrower interval."""
    _, differences = pairs(6, 500, 0.0, 0.0)
    shares = expit(logit(0.7) + np.random.default_rng(6).normal(0, 0.3, 500))
    found = length_controlled(shares, differences)
    assert found.rate == pytest.approx(0.7, abs=0.02)
    assert found.high - found.low < 0.03


def test_refusals_say_why():
    verdicts, differences = pairs(7, 200, 0.0, 1.0)
    longer_wins = (differences > 0).astype(float)
    nearly = longer_wins.copy()
    nearly[:2] = 1 - nearly[:2]
    one_lost = np.ones(200)
    one_lost[int(np.argsort(differences)[100])] = 0
    cases = [
        (verdicts[: FEWEST - 1], differences[: FEWEST - 1], "19 independent pairs"),
        (np.ones(200), differences, "all 200 verdicts are the same"),
        (np.full(200, 0.5), differences, "all 200 verdicts are the same"),
        (verdicts, np.full(200, 31.0), "the lengths do not vary"),
        (verdicts, np.zeros(200), "the lengths do not vary"),
        (verdicts, differences + 1e6, "no pair is anywhere near equal length"),
        (longer_wins, differences, "length alone decides every verdict"),
        (1 - longer_wins, differences, "length alone decides every verdict"),
        (nearly, differences, "length alone decides nearly every verdict"),
        (one_lost, differences + 1800, "to tell what length does"),
        (*pairs(9, 40, 0.0, 1.0, longer=2.0), "the interval would reach from 6% to 86%"),
        ([], [], "0 independent pairs"),
        ([math.nan] * 30, [1.0] * 30, "0 independent pairs"),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for given, lengths, reason in cases:
            found = length_controlled(given, lengths)
            assert found.reason is not None, reason
            assert reason in found.reason
            assert all(math.isnan(x) for x in (found.rate, found.low, found.high, found.slope))
    assert "19 independent pairs" in str(length_controlled(verdicts, differences, clusters=[i % 19 for i in range(200)]).reason)


def test_no_warning_reaches_the_user():
    """Lopsided, tiny, huge, soft and hard: either a rate inside its interval, or a reason; never a warning."""
    rng = np.random.default_rng(9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(200):
            n = int(rng.integers(20, 120))
            a, b = 10.0 ** rng.uniform(-3, 1, 2)
            verdicts = rng.beta(a, b, n) if rng.random() < 0.5 else (rng.random(n) < rng.random()).astype(float)
            found = length_controlled(verdicts, rng.standard_cauchy(n) * 10.0 ** rng.uniform(-3, 6) + rng.normal(0, 1000))
            assert isinstance(found, LengthControlled)
            assert found.reason is not None or 0 <= found.low <= found.rate <= found.high <= 1


def test_bad_input():
    with pytest.raises(ValueError, match="3 scores and 2 length"):
        length_controlled([0, 1, 1], [1, 2])
    with pytest.raises(ValueError, match="lies in"):
        length_controlled([0, 2.0], [1, 2])
    with pytest.raises(ValueError, match="confidence"):
        length_controlled([0, 1.0], [1, 2], confidence=95)
