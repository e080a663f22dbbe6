"""Bradley-Terry: hand values, relations, and records without a finite fit. Coverage: test_stats_coverage.py."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
from scipy.special import expit, logit

from spo_bench.stats import Games, bradley_terry


def strengths(games, anchor, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return {one.name: one for one in bradley_terry(games, anchor, **settings)}


def verdicts(rng, odds, seeds=3, prompts=200):
    """Both orders averaged: 0, .5 or 1."""
    return (rng.random((2, seeds, prompts)) < expit(odds)).mean(axis=0)


def league(levels, rng=60, **sizes):
    rng = np.random.default_rng(rng)
    return [Games(a, b, verdicts(rng, levels[a] - levels[b], **sizes)) for a, b in itertools.combinations(levels, 2)]


def test_two_players_by_hand():
    """3 wins, a tie and a loss on 5 prompts, and the added draw: 4 of 6, log(4 / 2)."""
    found = strengths([Games("a", "b", [1, 1, 0.5, 1, 0])], "b")
    assert found["a"].strength == pytest.approx(math.log(2))
    assert strengths([Games("a", "b", [1, 1, 0.5, 1, 0])], "a")["b"].strength == pytest.approx(-math.log(2))
    assert (found["b"].strength, found["b"].low, found["b"].high) == (0, 0, 0)
    assert (found["a"].n_prompts, found["a"].n_seeds, found["a"].estimand) == (5, 1, "checkpoints")


def test_two_players_have_the_logit_of_the_mean_score():
    scores = verdicts(np.random.default_rng(61), 0.7)
    (first,) = (one for one in bradley_terry([Games("a", "b", scores)], "b") if one.name == "a")
    assert first.strength == pytest.approx(logit((scores.sum() + 1.5) / (scores.size + 3)))
    assert first.strength == pytest.approx(logit(scores.mean()), abs=0.01)
    assert (first.n_prompts, first.n_seeds, first.estimand) == (200, 3, "method")


def test_interval_of_two_players_is_that_of_their_mean_score():
    """On the logit scale by the delta method, d logit = d mean / (mean (1 - mean)); the added draw widens it by little."""
    from spo_bench.stats import compare_matrix

    scores = verdicts(np.random.default_rng(62), 0.7)
    found = strengths([Games("a", "b", scores)], "b")["a"]
    (mean,) = compare_matrix([np.zeros_like(scores)], [scores])
    slope = 1 / (scores.mean() * (1 - scores.mean()))
    assert found.high - found.low == pytest.approx(slope * (mean.high - mean.low), rel=0.02)


def test_known_strengths_are_recovered():
    levels = {"sft": 0.0, "dpo": 0.6, "spo": 1.1, "ipo": -0.4}
    found = strengths(league(levels, prompts=3000), "sft")
    assert {name: one.strength for name, one in found.items()} == pytest.approx(levels, abs=0.06)
    assert list(found) == ["spo", "dpo", "sft", "ipo"]
    assert all(one.low < one.strength < one.high for name, one in found.items() if name != "sft")


def test_players_that_never_met_are_placed_through_others():
    levels = {"a": 1.0, "b": 0.5, "c": 0.0}
    games = [one for one in league(levels, prompts=2000) if (one.first, one.second) != ("a", "c")]
    found = strengths(games, "c")
    assert found["a"].strength == pytest.approx(1, abs=0.1)
    assert found["a"].high - found["a"].low > found["b"].high - found["b"].low


def test_order_of_games_sides_and_names_do_not_matter():
    games = league({"a": 0.5, "b": 0.0, "c": 0.2}, prompts=60)
    plain = strengths(games, "b")
    turned = [Games(one.second, one.first, 1 - np.asarray(one.scores)) for one in reversed(games)]
    renamed = {"a": "z", "b": "y", "c": "x"}
    other = strengths([Games(renamed[one.first], renamed[one.second], one.scores) for one in turned], "y")
    for name, one in plain.items():
        twin = other[renamed[name]]
        assert (twin.strength, twin.low, twin.high) == pytest.approx((one.strength, one.low, one.high), abs=1e-9)


def test_anchors_shift_and_pieces_of_a_pair_add_up():
    games = league({"a": 0.5, "b": 0.0, "c": 0.2}, prompts=60)
    by_b, by_c = strengths(games, "b"), strengths(games, "c")
    assert by_c["a"].strength == pytest.approx(by_b["a"].strength - by_b["c"].strength)
    scores = np.asarray(games[0].scores)
    early, late = (np.where(half, scores, np.nan) for half in (np.arange(60) < 30, np.arange(60) >= 30))
    pieces = [Games("a", "b", early), Games("b", "a", 1 - late), *games[1:]]
    for name, one in strengths(pieces, "b").items():
        assert (one.strength, one.low, one.high) == pytest.approx((by_b[name].strength, by_b[name].low, by_b[name].high))


@pytest.mark.parametrize("seeds", [1, 3])
def test_who_wins_all_games_is_finite_and_uncertain(seeds):
    """200 wins: log(401) = 5.99. Clopper and Pearson's lower end for 200 of 200 is .025^(1/200), 3.98 in log-odds."""
    found = strengths([Games("a", "b", np.ones((seeds, 200)))], "b")["a"]
    assert found.strength == pytest.approx(math.log(401))
    assert found.low == pytest.approx(logit(0.025 ** (1 / 200)), abs=1.1)
    assert found.high > 6.5
    ladder = [Games(f"p{i}", f"p{i + 1}", np.ones((seeds, 200))) for i in range(8)]
    assert strengths(ladder, "p8")["p0"].strength == pytest.approx(8 * math.log(401))


def test_ties_only_are_zero_throughout():
    found = strengths([Games("a", "b", np.full((3, 50), 0.5)), Games("b", "c", np.full((3, 50), 0.5))], "c")
    for one in found.values():
        assert (one.strength, one.low, one.high) == pytest.approx((0, 0, 0), abs=1e-12)


def test_players_without_a_way_to_the_anchor_are_unknown():
    scores = verdicts(np.random.default_rng(63), 0.3)
    games = [Games("a", "sft", scores), Games("x", "y", scores), Games("lost", "sft", np.full_like(scores, np.nan))]
    found = strengths(games, "sft")
    assert list(found) == ["a", "sft", "lost", "x", "y"]
    for name in ("lost", "x", "y"):
        assert all(math.isnan(x) for x in (found[name].strength, found[name].low, found[name].high))
    assert (found["lost"].n_prompts, found["x"].n_prompts) == (0, 200)
    assert found["a"] == strengths(games[:1], "sft")["a"]
    assert math.isnan(strengths(games[1:], "sft")["x"].strength)


def test_one_prompt_or_cluster_has_no_interval_and_two_have():
    one = strengths([Games("a", "b", np.ones((3, 1)))], "b")["a"]
    assert one.strength == pytest.approx(math.log(3))
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    scores = verdicts(np.random.default_rng(64), 0.3, prompts=30)
    assert math.isnan(strengths([Games("a", "b", scores)], "b", clusters=["x"] * 30)["a"].low)
    two = strengths([Games("a", "b", scores[:, :2])], "b")["a"]
    assert two.low < two.strength < two.high


def test_clusters_widen():
    scores = np.repeat(verdicts(np.random.default_rng(65), 0.5, seeds=1, prompts=60), 4, axis=1)
    plain = strengths([Games("a", "b", scores)], "b")["a"]
    grouped = strengths([Games("a", "b", scores)], "b", clusters=[i // 4 for i in range(240)])["a"]
    assert grouped.high - grouped.low > 1.6 * (plain.high - plain.low)


def test_a_player_of_one_seed_has_one_seed():
    """Its cells of the other seeds failed: its strength rests on one seed, and says so, as in any comparison."""
    rng = np.random.default_rng(66)
    lonely = verdicts(rng, 0.8)
    lonely[1:] = np.nan
    found = strengths([Games("a", "sft", lonely), Games("b", "sft", verdicts(rng, 0.3))], "sft")
    assert (found["a"].n_seeds, found["a"].estimand) == (1, "checkpoints")
    assert (found["b"].n_seeds, found["b"].estimand) == (3, "method")
    alone = strengths([Games("a", "sft", lonely[:1])], "sft")["a"]
    assert (found["a"].low, found["a"].high) == pytest.approx((alone.low, alone.high), abs=0.03)


def test_what_does_not_fit_is_refused():
    d = np.full((2, 3), 0.5)
    for games, anchor, message in (
        ([Games("a", "b", d)], "c", "anchor 'c' plays in no game; the players are a, b"),
        ([], "c", "the players are none"),
        ([Games("a", "b", d + 1)], "a", r"'a' against 'b': scores outside \[0, 1\]"),
        ([Games("a", "a", d)], "a", "does not play itself"),
        ([Games("a", "b", d), Games("a", "c", d[:1])], "a", r"scores \(1, 3\), others \(2, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            bradley_terry(games, anchor)
    with pytest.raises(ValueError, match="2 cluster labels for 3 prompts"):
        bradley_terry([Games("a", "b", d)], "a", clusters=["x", "y"])
