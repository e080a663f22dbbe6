"""The verdict: the effect averaged over contrasts, by hand, and what the sentences say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from synthetic_run import make_run

from spo_bench.files import read_json, write_json
from spo_bench.report.average import average, combine, stratified
from spo_bench.report.captions import scoring_notes
from spo_bench.report.measure import comparison_rows, contrasts
from spo_bench.report.results import read_results
from spo_bench.report.verdict import verdict
from spo_bench.stats.paired import fit_all, pool

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


def shorten(run, task, prompts):
    """Keep the first prompts of a task only."""
    for path in (run / "cells").glob(f"*-{task}-*/scores.json"):
        scores = read_json(path)
        for metric in scores["metrics"].values():
            metric["ids"], metric["values"] = metric["ids"][:prompts], metric["values"][:prompts]
            metric["clusters"] = metric["clusters"] and metric["clusters"][:prompts]
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
    found = average(family, family, "true_reward")
    assert (found.contrasts, found.seeds, found.left_out) == (4, [0, 1], [])
    mean = found.effect
    assert mean.diff == pytest.approx(sum(diffs[D, one] for one in ("dpo", "ipo", "simpo")) / 6 + diffs[S, "dpo"] / 2)
    assert (mean.n_prompts, mean.n_seeds, mean.estimand) == (48, 2, "method")


def test_with_one_seed_the_interval_is_that_of_the_averaged_differences(tmp_path):
    results, _ = made(tmp_path, tasks=(D,), seeds=(0,))
    family = contrasts(results, "spo")
    pairs = [contrast.arrays("true_reward") for contrast in family]
    means = np.mean([variant - baseline for baseline, variant, *_ in pairs], axis=0)
    expected = scipy.stats.ttest_1samp(means[0], 0)
    ends = expected.confidence_interval(0.95)
    found = average(family, family, "true_reward").effect
    assert (found.diff, found.low, found.high, found.p) == pytest.approx((means.mean(), *ends, expected.pvalue))
    assert found.estimand == "checkpoints"


def test_with_one_task_and_several_seeds_one_contrast_is_judged_as_in_the_tables(tmp_path):
    results, rows = made(tmp_path, tasks=(D,))
    family = contrasts(results, "spo")
    found = average(family[:1], family, "true_reward").effect
    row = next(one for one in rows if one["kind"] == "spo" and one["metric"] == "true_reward")
    assert (found.diff, found.low, found.high, found.p) == pytest.approx([row[key] for key in ("diff", "low", "high", "p")])


def test_tasks_are_strata_each_by_its_own_prompts():
    """Two tasks with variances 4/4 = 1 and 2/2 = 1 of their means: (1 + 1) / 4, on 2² / (1/3 + 1/1) = 3 degrees."""
    first, second = np.array([[0.0, 0.0, 12**0.5, 12**0.5]]), np.array([[4.0, 6.0]])
    found = stratified(fit_all([np.zeros_like(first), np.zeros_like(second)], [first, second]))
    reach = scipy.stats.t.ppf(0.975, 3) * 0.5**0.5
    middle = (3**0.5 + 5) / 2
    assert (found.diff, found.low, found.high) == pytest.approx((middle, middle - reach, middle + reach))
    assert (found.n_prompts, found.n_seeds) == (6, 1)


def test_intervals_cover_where_tasks_differ_in_their_prompts():
    """One seed, tasks of 40 and 5 prompts, two contrasts each; resampling the tasks together covers 85 %."""
    rng, hits, tries = np.random.default_rng(1), 0, 1500
    for _ in range(tries):
        tasks = [rng.normal(0, 0.7, (1, n)) + rng.normal(0, 0.5, (2, n)).mean(axis=0) for n in (40, 5)]
        found = stratified(fit_all([np.zeros_like(task) for task in tasks], tasks))
        hits += found.low <= 0 <= found.high
    assert 0.93 < hits / tries < 0.975


def test_noise_that_seeds_share_does_not_average_out():
    """Two exact tasks moved by ±1 in their two seeds: variance 2 / 2 = 1 of the mean, on the pool's 2 degrees."""
    tasks = [np.array([[1.0] * 9, [-1.0] * 9]), np.array([[-1.0] * 3, [1.0] * 3])]
    fits = fit_all([np.zeros_like(task) for task in tasks], tasks)
    found = stratified(fits, [(0.5, one) for one in pool(fits)])
    reach = scipy.stats.t.ppf(0.975, 2)
    assert (found.diff, found.low, found.high) == pytest.approx((0, -reach, reach))
    assert found.estimand == "method"


def test_a_task_of_one_prompt_has_no_average(tmp_path):
    family = contrasts(read_results(make_run(tmp_path, tasks=(D,), prompts=1, steps=2)), "spo")
    assert average(family, family, "true_reward") is None


def test_contrasts_that_move_together_are_no_independent_evidence(tmp_path):
    """Three copies of one contrast say no more than one of them."""
    run = make_run(tmp_path, tasks=(D,), seeds=(0,), steps=2)
    for side in ("", "-_SPO"):
        values = read_json(run / "cells" / f"embedded-{D}-dpo{side}-s0" / "scores.json")["metrics"]["true_reward"]["values"]
        for method in ("ipo", "simpo"):
            change(run, f"embedded-{D}-{method}{side}-s0", "true_reward", values)
    family = contrasts(read_results(run), "spo")
    whole, one = (average(some, family, "true_reward").effect for some in (family, family[:1]))
    assert (whole.diff, whole.low, whole.high) == pytest.approx((one.diff, one.low, one.high))


def test_only_seeds_that_all_contrasts_have_count(tmp_path):
    results, _ = made(tmp_path / "one", tasks=(D,), failed=((D, "ipo", True, 1),))
    family = contrasts(results, "spo")
    first = [(contrast.arrays("true_reward")[1] - contrast.arrays("true_reward")[0])[0].mean() for contrast in family]
    found = average(family, family, "true_reward")
    assert (found.effect.diff, found.effect.n_seeds) == (pytest.approx(np.mean(first)), 1)
    assert (found.contrasts, found.seeds, found.left_out) == (3, [0], [1])
    sentence = verdict(results, comparison_rows(results)).sentence
    assert "over 3 contrasts and the 1 of 2 seeds that all of them have (these checkpoints)" in sentence
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
    mean = average(family, family, "true_reward").effect
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
    assert "Controls: 2 of 2 differ significantly from the baseline." in found.lines


def test_the_sentence_is_about_the_default_settings_and_others_are_counted_apart(tmp_path):
    """Of four variants the default is in the sentence; here it is neither the first nor the only one."""
    variants = (False, {"label": "+SPO[word]", "unit": "word"}, {"label": "+SPO"}, {"label": "+SPO[mask]", "op": "mask"})
    results, rows = made(tmp_path, methods=("dpo",), variants=variants, effect=0.2)
    found = verdict(results, rows)
    assert "on average over 2 contrasts; significantly better in 2, worse in 0" in found.sentence
    family = contrasts(results, "spo")
    mean = average([one for one in family if one.variant.label == "+SPO"], family, "true_reward").effect
    assert f"by +{mean.diff:.3f} [" in found.sentence
    assert "4 contrasts with further settings of SPO: 4 significantly better than the baseline, 0 worse." in found.lines
    assert not any("[word]" in line or "[mask]" in line for line in found.lines)


def test_a_run_without_the_default_settings_speaks_of_the_first(tmp_path):
    variants = (False, {"label": "+SPO[word]", "unit": "word"}, {"label": "+SPO[mask]", "op": "mask"})
    found = said(tmp_path, tasks=(D,), methods=("dpo",), variants=variants, effect=0.2)
    assert found.sentence.startswith("Adding SPO made true reward significantly better")
    assert any(line.startswith("1 contrast with further settings of SPO: 1 significantly better") for line in found.lines)


def test_the_last_line_says_what_the_verdict_rests_on(tmp_path):
    size = "2 seeds × 24 prompts: speaks of the method, that is of new prompts and new training seeds."
    results, rows = made(tmp_path / "two", tasks=(D,))
    (judged,) = scoring_notes(results, ["true_reward"])
    assert verdict(results, rows).lines[-1] == f"{size} {judged}"
    run = make_run(tmp_path / "one", seeds=(0,), methods=("dpo",), steps=2)
    shorten(run, S, 5)
    results = read_results(run)
    size = "One seed, 5 to 24 prompts: speaks of these checkpoints only; what retraining would change is not in it."
    assert verdict(results, comparison_rows(results)).lines[-1] == f"{size} {judged}"


def test_contrasts_that_can_find_nothing_are_named(tmp_path):
    run = make_run(tmp_path, seeds=(0,), methods=("dpo", "ipo"), steps=2)
    shorten(run, S, 5)
    results = read_results(run)
    (line,) = [line for line in verdict(results, comparison_rows(results)).lines if "80 % power" in line]
    assert line.endswith("; 2 of 4 contrasts can find nothing (5 prompts).")
    shorten(run, D, 4)
    results = read_results(run)
    assert "4 of 4 contrasts can find nothing (4 to 5 prompts)." in verdict(results, comparison_rows(results)).lines


def test_a_run_that_is_not_finished_has_no_verdict(tmp_path):
    results, rows = made(tmp_path, tasks=(D,), methods=("dpo",), effect=0.2, failed=((D, "dpo", True, 1),))
    found = verdict(replace(results, run={**results.run, "finished": None, "status": "interrupted"}), rows)
    assert found.sentence == "This run is not finished: what is shown is of 5 finished cells, and no verdict yet."
    assert not any("SPO" in line for line in found.lines)


def test_what_the_design_could_have_found_is_said(tmp_path):
    found = said(tmp_path, tasks=(D,), effect=0)
    (line,) = [line for line in found.lines if "80 % power" in line]
    assert line.startswith("With 80 % power, before correction, one contrast of this design finds a change in true reward of 0.")


def test_a_run_without_contrasts_says_nothing(tmp_path):
    words = said(tmp_path, methods=("dpo",), variants=(False,), seeds=(0,)).sentence
    assert words == "This run says nothing about SPO: no baseline and SPO twin were both finished."
