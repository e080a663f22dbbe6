"""The verdict: the effect averaged over contrasts, by hand, and what the sentences say."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic_run import make_run

from spo_bench.files import read_json, write_json
from spo_bench.report.average import average, combine
from spo_bench.report.measure import comparison_rows, contrasts
from spo_bench.report.results import read_results
from spo_bench.report.verdict import verdict
from spo_bench.stats import compare_matrix

NAN = np.nan
D, S = "controlled_dialogue", "controlled_summarization"


def made(path, **settings):
    """A run's results and comparisons."""
    results = read_results(make_run(path, steps=2, **settings))
    return results, comparison_rows(results)


def said(path, **settings):
    return verdict(*made(path, **settings))


def change(run, cell, metric, values):
    """Write other values of a metric into a cell."""
    path = run / "cells" / cell / "scores.json"
    scores = read_json(path)
    scores["metrics"][metric]["values"] = list(values)
    write_json(path, scores)


# --- combining ----------------------------------------------------------------------------------------------------------


def test_layers_of_the_same_prompts_are_averaged():
    first, second = np.array([[1.0, 3.0], [2.0, 6.0]]), np.array([[3.0, 5.0], [0.0, 0.0]])
    assert combine([first, second], [0.5, 0.5]) == pytest.approx((first + second) / 2)


def test_layers_of_other_prompts_count_by_their_weights():
    """Means 2 of two prompts and 1 of four: 1.5. Deviations of 1 count 6/2 and 6/4 times a half: 1.5 and 0.75."""
    layers = [np.array([[1, 3, NAN, NAN, NAN, NAN]]), np.array([[NAN, NAN, 0, 0, 2, 2]])]
    assert combine(layers, [0.5, 0.5])[0] == pytest.approx([0, 3, 0.75, 0.75, 2.25, 2.25])


def test_the_variance_is_that_of_a_mean_of_independent_tasks():
    """Var = (var_1 / 40 + var_2 / 160) / 4, each by its own prompts."""
    rng = np.random.default_rng(0)
    one, two = rng.normal(0, 1, 40), rng.normal(5, 1, 160)
    layers = [np.full((1, 200), NAN), np.full((1, 200), NAN)]
    layers[0][0, :40], layers[1][0, 40:] = one, two
    whole = combine(layers, [0.5, 0.5])[0]
    assert whole.mean() == pytest.approx((one.mean() + two.mean()) / 2)
    assert whole.var() / 200 == pytest.approx((one.var() / 40 + two.var() / 160) / 4)


def test_missing_pairs_leave_the_weighted_mean_as_it_is():
    """Layer means are 2 (prompt means 1 and 3) and 4 (of its one prompt); a prompt without any value stays missing."""
    layers = [np.array([[1.0, NAN, NAN], [1.0, 3.0, NAN]]), np.array([[NAN, 3.0, NAN], [NAN, 5.0, NAN]])]
    whole = combine(layers, [0.25, 0.75])
    assert np.isnan(whole[:, 2]).all()
    assert np.nanmean(whole) == pytest.approx(0.25 * 2 + 0.75 * 4)


# --- the average --------------------------------------------------------------------------------------------------------


def test_tasks_count_the_same_and_so_do_contrasts_within_one(tmp_path):
    """Three contrasts of one task and one of the other: a weight of 1/6 each, and 1/2."""
    failed = [(S, method, True, seed) for method in ("ipo", "simpo") for seed in (0, 1)]
    results, rows = made(tmp_path, failed=tuple(failed))
    family = contrasts(results, "spo")
    diffs = {(row["task"], row["method"]): row["diff"] for row in rows if row["kind"] == "spo" and row["metric"] == "true_reward"}
    assert set(diffs) == {(D, "dpo"), (D, "ipo"), (D, "simpo"), (S, "dpo")}
    mean = average(family, family, "true_reward")
    assert mean.diff == pytest.approx(sum(diffs[D, one] for one in ("dpo", "ipo", "simpo")) / 6 + diffs[S, "dpo"] / 2)
    assert (mean.n_prompts, mean.n_seeds, mean.estimand) == (48, 2, "method")


def test_with_one_seed_the_interval_is_that_of_the_averaged_differences(tmp_path):
    results, _ = made(tmp_path, tasks=(D,), seeds=(0,))
    family = contrasts(results, "spo")
    pairs = [contrast.arrays("true_reward") for contrast in family]
    means = np.mean([variant - baseline for baseline, variant, _ in pairs], axis=0)
    expected = compare_matrix([np.zeros_like(means)], [means])[0]
    found = average(family, family, "true_reward")
    assert (found.diff, found.low, found.high) == pytest.approx((expected.diff, expected.low, expected.high))
    assert found.estimand == "checkpoints"


def test_contrasts_that_move_together_are_no_independent_evidence(tmp_path):
    """Three copies of one contrast say no more than one of them."""
    run = make_run(tmp_path, tasks=(D,), seeds=(0,), steps=2)
    for side in ("", "-_SPO"):
        values = read_json(run / "cells" / f"embedded-{D}-dpo{side}-s0" / "scores.json")["metrics"]["true_reward"]["values"]
        for method in ("ipo", "simpo"):
            change(run, f"embedded-{D}-{method}{side}-s0", "true_reward", values)
    family = contrasts(read_results(run), "spo")
    whole, one = average(family, family, "true_reward"), average(family[:1], family, "true_reward")
    assert (whole.diff, whole.low, whole.high) == pytest.approx((one.diff, one.low, one.high))


def test_only_seeds_that_all_contrasts_have_count(tmp_path):
    results, _ = made(tmp_path / "one", tasks=(D,), failed=((D, "ipo", True, 1),))
    family = contrasts(results, "spo")
    first = [(contrast.arrays("true_reward")[1] - contrast.arrays("true_reward")[0])[0].mean() for contrast in family]
    found = average(family, family, "true_reward")
    assert (found.diff, found.n_seeds) == (pytest.approx(np.mean(first)), 1)
    results, _ = made(tmp_path / "none", tasks=(D,), methods=("dpo", "ipo"), failed=((D, "ipo", True, 1), (D, "dpo", True, 0)))
    family = contrasts(results, "spo")
    assert average(family, family, "true_reward") is None


# --- the words ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("effect", "words"),
    [(0.2, "better in 3, worse in 0, undecided in 0"), (-0.2, "better in 0, worse in 3, undecided in 0"), (0, "undecided in 3")],
)
def test_verdict_says_what_the_comparisons_say(tmp_path, effect, words):
    found = said(tmp_path, tasks=(D,), effect=effect, prompts=40)
    assert words in found.sentence
    assert found.sentence.startswith("Adding SPO changed true reward by ")
    assert "on average over 3 contrasts; significantly " in found.sentence


def test_the_sentence_holds_the_average_with_its_interval(tmp_path):
    results, rows = made(tmp_path, tasks=(D,))
    family = contrasts(results, "spo")
    mean = average(family, family, "true_reward")
    shown = [
        float(one.replace("−", "-"))
        for one in verdict(results, rows).sentence.split(" by ")[1].split(" on ")[0].strip("]").replace(" [", ", ").split(", ")
    ]
    assert shown == pytest.approx([mean.diff, mean.low, mean.high], abs=0.0006)


def test_one_contrast_is_told_by_itself(tmp_path):
    words = said(tmp_path / "up", tasks=(D,), methods=("dpo",), effect=0.2).sentence
    assert words.startswith("Adding SPO made true reward significantly better: +0.")
    found = said(tmp_path / "same", tasks=(D,), methods=("dpo",), effect=0)
    assert found.sentence.startswith("Adding SPO did not change true reward significantly: ")
    assert found.lines[0].startswith("Not significant is not the same as no effect: the interval still allows [−0.")


def test_contrasts_without_a_common_seed_have_no_average(tmp_path):
    failed = ((D, "ipo", True, 1), (D, "dpo", True, 0))
    words = said(tmp_path, tasks=(D,), methods=("dpo", "ipo"), effect=0.2, prompts=60, failed=failed).sentence
    assert words == "With SPO, true reward is significantly better in 2, worse in 0, undecided in 0 after Holm’s correction."


def test_every_headline_metric_has_a_clause_of_its_own(tmp_path):
    run = make_run(tmp_path, steps=2)
    for path in (run / "cells").glob(f"*{S}*/scores.json"):
        scores = read_json(path)
        del scores["metrics"]["true_reward"]
        write_json(path, scores)
    results = read_results(run)
    words = verdict(results, comparison_rows(results)).sentence
    assert "changed true reward by " in words
    assert " on average over 3 contrasts and win % vs. chosen by " in words
    assert words.endswith("after Holm’s correction.")


def test_controls_are_neither_averaged_nor_counted(tmp_path):
    control = {"label": "+SPO[gamma_zero]", "control": "gamma_zero"}
    variants = (False, {"label": "+SPO"}, control)
    found = said(tmp_path, methods=("dpo",), variants=variants, effect=0.2)
    assert "on average over 2 contrasts; significantly better in 2" in found.sentence
    assert "Controls: 2 of 2 differ significantly from the baseline too." in found.lines


def test_what_the_design_could_have_found_is_said(tmp_path):
    found = said(tmp_path, tasks=(D,), effect=0)
    (line,) = [line for line in found.lines if "80 % power" in line]
    assert line.startswith("With 80 % power, before correction, one contrast of this design finds a change in true reward of 0.")


def test_a_run_without_contrasts_says_nothing(tmp_path):
    words = said(tmp_path, methods=("dpo",), variants=(False,), seeds=(0,)).sentence
    assert words == "This run says nothing about SPO: no baseline and SPO twin were both finished."
