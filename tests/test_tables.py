"""Tables of settings, ablations, power and ranking, marks and captions: numbers that can be worked out by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from synthetic_run import cell, make_run, noise, write

from spo_bench.errors import InputError
from spo_bench.files import read_json, write_json
from spo_bench.report import table, write_report
from spo_bench.report.captions import method_notes
from spo_bench.report.entries import level_entries
from spo_bench.report.hyperparameters import OPTIMIZER
from spo_bench.report.measure import Level, comparison_rows, undominated
from spo_bench.report.results import read_results
from spo_bench.stats import power_matrix

TASK = "controlled_dialogue"
PLAIN = {"label": "+SPO", "gamma": 0.1, "control": None}
STRONG = {"label": "+SPO(gamma=0.3)", "gamma": 0.3, "control": None}
CONTROL = {"label": "+SPO[gamma_zero]", "gamma": 0.1, "control": "gamma_zero"}


def whole(out, name, **options):
    return json.loads(table(out, name, "json", **options))


def entries(out, name, **options):
    return [row["entries"] for row in whole(out, name, **options)["rows"]]


def compared(out, **wanted):
    return [row for row in comparison_rows(read_results(out)) if all(row[key] == value for key, value in wanted.items())]


def without_true_reward(out):
    for path in out.glob("cells/*/scores.json"):
        scores = read_json(path)
        scores["metrics"].pop("true_reward")
        write_json(path, scores)


# --- ablation -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ablated(tmp_path_factory):
    """Two methods with a stronger SPO, a control, and plain SPO listed last."""
    out = tmp_path_factory.mktemp("ablated")
    return make_run(out, tasks=(TASK,), methods=("dpo", "ipo"), variants=(False, STRONG, CONTROL, PLAIN), steps=8)


def test_variants_are_compared_with_plain_spo_in_a_family_of_their_own(ablated):
    found = compared(ablated, kind="ablation", metric="true_reward")
    assert [(row["baseline"], row["variant"]) for row in found] == [
        (f"{method} +SPO", f"{method} {variant['label']}") for method in ("dpo", "ipo") for variant in (STRONG, CONTROL)
    ]
    assert {row["family"] for row in found} == {4}
    mean = {label: np.mean([values(ablated, "dpo", label, seed) for seed in (0, 1)]) for label in ("_SPO", "_SPO_gamma_0.3_")}
    assert found[0]["diff"] == pytest.approx(mean["_SPO_gamma_0.3_"] - mean["_SPO"])
    assert "degree_accuracy" not in {row["metric"] for row in compared(ablated, kind="ablation")}


def values(out, method, label, seed, metric="true_reward"):
    return read_json(out / "cells" / f"embedded-{TASK}-{method}-{label}-s{seed}" / "scores.json")["metrics"][metric]["values"]


def test_the_ablation_table_has_plain_spo_first_and_both_differences(ablated):
    rows = entries(ablated, "ablation")
    labels = [variant["label"] for variant in (PLAIN, STRONG, CONTROL)]
    names = [(row["method"]["value"], row["variant"]["value"]) for row in rows]
    assert names == [(method, label) for method in ("dpo", "ipo") for label in labels]
    own = compared(ablated, kind="spo", metric="true_reward", variant=f"dpo {STRONG['label']}")[0]
    plain = compared(ablated, kind="ablation", metric="true_reward", variant=f"dpo {STRONG['label']}")[0]
    for key, expected in ((f"{TASK}:true_reward difference", own), (f"{TASK}:true_reward ablation", plain)):
        shown = rows[1][key]
        assert [shown[one] for one in ("value", "low", "high", "p", "p_adjusted")] == [
            expected[one] for one in ("diff", "low", "high", "p", "p_adjusted")
        ]
        assert shown["n"] == expected["n_prompts"]
    assert (rows[0][f"{TASK}:true_reward ablation"]["value"], rows[0][f"{TASK}:true_reward ablation"]["text"]) == (None, "")
    degrees = rows[1][f"{TASK}:degree_accuracy"]
    expected = np.mean([values(ablated, "dpo", "_SPO_gamma_0.3_", seed, "degree_accuracy") for seed in (0, 1)])
    assert (degrees["value"], degrees["source"]) == (pytest.approx(expected), "held-out rows")
    caption = whole(ablated, "ablation")["caption"]
    assert "Δ +SPO: minus +SPO of the same method and data" in caption
    assert "(family of 4–6)" in caption


def test_degree_accuracy_of_training_is_marked_where_nothing_was_held_out(tmp_path):
    """8 steps, the last two count: 3 of 4 and 2 of 2 right a step and seed."""
    out = make_run(tmp_path, tasks=(TASK,), methods=("dpo",), variants=(False, PLAIN, STRONG), steps=8)
    for path in out.glob("cells/*/scores.json"):
        scores = read_json(path)
        scores["metrics"].pop("degree_accuracy", None)
        write_json(path, scores)
    shown = entries(out, "ablation")[0][f"{TASK}:degree_accuracy"]
    assert (shown["value"], shown["n"], shown["text"]) == (pytest.approx(5 / 6), 24, "83.3 (train)")


def test_without_default_settings_the_first_that_is_no_control_is_plain(tmp_path):
    weak = {"label": "+SPO(gamma=0.03)", "gamma": 0.03}
    out = make_run(tmp_path, tasks=(TASK,), methods=("dpo",), variants=(False, CONTROL, weak, STRONG), seeds=(0,), steps=2)
    assert {row["baseline"] for row in compared(out, kind="ablation")} == {"dpo +SPO(gamma=0.03)"}
    assert entries(out, "ablation")[0]["variant"]["value"] == "+SPO(gamma=0.03)"


def test_a_table_the_run_does_not_have_says_what_would_make_it_and_leaves_no_old_file(tmp_path):
    out = make_run(tmp_path, tasks=(TASK,), methods=("dpo",), seeds=(0,), steps=2)
    (out / "tables").mkdir()
    (out / "tables" / "ablation.md").write_text("from before")
    write_report(out)
    with pytest.raises(InputError, match="two or more SPO variants of one method"):
        table(out, "ablation")
    assert not (out / "tables" / "ablation.md").exists()
    assert (out / "tables" / "hyperparameters.csv").exists()


# --- marks --------------------------------------------------------------------------------------------------------------


def test_undominated_has_all_in_bold_that_are_not_significantly_worse(tmp_path):
    """ipo is the best; dpo has other noise and is .002 lower on average, kto is .2 lower."""
    level, other = np.array(noise(1)), np.array(noise(2))
    runs = {"dpo": other - other.mean() + level.mean() - 0.002, "ipo": level, "kto": level + (other - other.mean()) / 10 - 0.2}
    out = write(tmp_path, [cell(method, list(values)) for method, values in runs.items()])
    marks = {row["method"]["value"]: row["dialogue:true_reward"].get("mark") for row in entries(out, "main")}
    assert marks == {"dpo": "second", "ipo": "best", "kto": None}
    honest = {row["method"]["value"]: row["dialogue:true_reward"].get("mark") for row in entries(out, "main", bold="undominated")}
    assert honest == {"dpo": "best", "ipo": "best", "kto": None}
    assert "Bold: not significantly worse than the best" in table(out, "main", "tex", bold="undominated")


def test_only_main_can_be_marked_so(tmp_path):
    out = write(tmp_path, [cell("dpo", noise(1))])
    with pytest.raises(InputError, match="only the table main marks"):
        table(out, "cost", bold="undominated")
    with pytest.raises(InputError, match="did you mean 'undominated'"):
        table(out, "main", bold="undominate")


def test_undominated_knows_directions_missing_levels_and_parts_of_the_prompts(tmp_path):
    """Lower is better: a (.7) is the best, b is .2 above it on half of the prompts only, c has no value."""
    low = noise(1)
    high = [value + 0.2 + (0.01 if i % 2 else 0) for i, value in enumerate(low)]
    half = [cell("a", low), cell("b", high[:6], ids=[f"plants-{i}" for i in range(6)]), cell("c", [None] * 12)]
    out = write(tmp_path, half)
    for path in out.glob("cells/*/scores.json"):
        scores = read_json(path)
        scores["metrics"]["true_reward"]["higher_is_better"] = False
        write_json(path, scores)
    a, b, c = ([one] for one in read_results(out).cells)
    levels = [Level(0.7, 0.6, 0.8, 12, 1, False), Level(0.9, 0.8, 1.0, 6, 1, False), None]
    assert undominated([a, b, c], levels, "true_reward") == [True, False, False]
    swapped = [Level(0.95, 0.6, 0.8, 12, 1, False), levels[1], Level(math.nan, math.nan, math.nan, 0, 1, False)]
    assert undominated([a, b, c], swapped, "true_reward") == [True, True, False]  # b is called the best; a is lower than it
    assert undominated([c], [None], "true_reward") == [False]


# --- levels and differences ----------------------------------------------------------------------------------------------


def test_a_lopsided_interval_is_shown_itself_and_none_leaves_the_metric_s_range():
    def shown(value, low, high, metric="win_rate_sft"):
        (one,) = level_entries([Level(value, low, high, 12, 1, True)], metric, places=1)
        return f"{one.text} {one.small}"

    assert shown(0.5, 0.4, 0.6) == "50.0 ±10.0"
    assert shown(0.5, 0.3995, 0.6) == "50.0 ±10.0"
    assert shown(0.5, 0.39, 0.6) == "50.0 [39.0, 60.0]"
    assert shown(1.0, 0.78, 1.0) == "100.0 [78.0, 100.0]"
    assert shown(0.95, 0.88, 1.02) == "95.0 [88.0, 100.0]"  # a t interval knows no limits
    assert shown(0.9, 0.7, 1.1, "true_reward") == "0.9 [0.7, 1.0]"
    assert shown(1.2, 0.9, 1.5, "true_reward") == "1.2 ±0.3"  # a reward of another range
    assert shown(3.0, 2.0, 4.0, "kl") == "3.0 ±1.0"
    assert shown(0.5, math.nan, math.nan) == "50.0 "


def test_differences_of_one_metric_have_as_many_decimals_in_all_rows(tmp_path):
    """The first task's twins differ by the same everywhere, the second's by much and unevenly."""
    level, other = noise(1), noise(5)
    sides = [("a", [value + 0.01 + i / 1e5 for i, value in enumerate(level)]), ("b", [1 - value for value in other])]
    cells = [one for task, twin in sides for one in (cell("dpo", level, task=task), cell("dpo", twin, spo=PLAIN, task=task))]
    rows = [row for row in entries(write(tmp_path, cells), "effects") if row["metric"]["value"] == "true_reward"]
    decimals = {len(row["difference"]["text"].split()[0].partition(".")[2]) for row in rows}
    assert (len(rows), len(decimals)) == (2, 1)
    assert [row["estimand"]["text"] for row in rows] == ["these checkpoints"] * 2
    assert rows[0]["estimand"]["value"] == "checkpoints"


# --- captions -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("judge", "words"),
    [
        ("gold", "Win rates: by the world’s known reward (gold), exact and so not audited."),
        (
            {"backend": "reward", "model": "trained"},
            "judged by a reward model trained on this run’s held-out pairs; not audited.",
        ),
        ({"backend": "reward", "model": "hub/big-rm"}, "judged by reward model big-rm; not audited."),
        ({"backend": "local", "model": "hub/small-lm"}, "judged by local model small-lm; not audited."),
        (
            {"backend": "openai", "model": "gpt-x-2026-01-01", "base_url": "https://user:secret@judge.example:8443/v1"},
            "judged by gpt-x-2026-01-01, an endpoint at judge.example; not audited.",
        ),
    ],
)
def test_the_caption_says_who_judged(tmp_path, judge, words):
    out = make_run(tmp_path, tasks=(TASK,), methods=("dpo",), steps=2, spec={"judge": judge})
    assert "True reward: the world’s known reward function" in whole(out, "main")["caption"]
    assert "Win rates" not in whole(out, "main")["caption"]
    assert words in whole(out, "ranking")["caption"]
    without_true_reward(out)
    caption = whole(out, "main")["caption"]
    assert words in caption
    assert "secret" not in caption
    assert "over 23 prompts × 2 seeds" in caption  # one verdict is invalid in both
    assert "both random): two-way interval and t test" in caption
    assert "equal seed noise is assumed, which takes three seeds or more to check" in caption


def test_unequal_seed_noise_is_a_warning():
    row = {"metric": "true_reward", "estimand": "method", "n_prompts": 128, "n_seeds": 3, "family": 6, "seed_spread_p": 0.2}
    steady = method_notes([row])
    few = row | {"estimand": "checkpoints", "n_prompts": 5}
    assert "With fewer than 6 prompts no p below .05 is possible in this test." in method_notes([few])
    assert "Levene’s p .200" in steady[0]
    assert not any("Warning" in note for note in steady)
    (warning,) = [note for note in method_notes([row, row | {"metric": "kl", "seed_spread_p": 0.012}]) if "Warning" in note]
    assert "KL to reference (Levene’s p .012)" in warning
    assert "True reward" not in warning


def test_cost_has_lengths_and_what_judging_took(tmp_path):
    out = make_run(tmp_path, tasks=(TASK,), methods=("dpo",), steps=2)
    write_json(out / "run.json", read_json(out / "run.json") | {"judge_spent": {"calls": 1234, "dollars": 0.5}})
    found = {row["method"]["value"]: row for row in entries(out, "cost")}
    lengths = [read_json(path)["metrics"]["length"]["values"] for path in out.glob("cells/*dpo-_SPO-*/scores.json")]
    assert found["dpo +SPO"]["length"]["value"] == pytest.approx(np.mean(lengths))
    assert [found["dpo"][key]["value"] for key in ("seconds", "pairs_per_second", "peak_memory")] == [3.0, 300.5, 2.5e9]
    assert "All judging of this run took 1,234 requests and $0.5000" in whole(out, "cost")["caption"]


def test_seconds_on_unequal_threads_are_said_to_compare_badly(tmp_path):
    out = make_run(tmp_path, tasks=(TASK,), methods=("dpo",), steps=2)
    trained = sorted(out.glob("cells/*dpo*/scores.json"))
    for path in trained:
        write_json(path, read_json(path) | {"threads": 2})
    assert not any("threads" in whole(out, name)["caption"] for name in ("main", "cost"))
    write_json(trained[0], read_json(trained[0]) | {"threads": 8})
    assert all("Trainings ran on 2 to 8 threads" in whole(out, name)["caption"] for name in ("main", "cost"))


# --- hyperparameters ----------------------------------------------------------------------------------------------------

SPEC = {
    "train": {"batch_size": 32, "learning_rate": 1e-5, "epochs": 1.0, "max_steps": None, "warmup": 0.1, "lora": None},
    "generate": {"temperature": 0.7, "top_p": 0.9},
    "sft": {"steps": 200, "batch_size": 16, "learning_rate": 2e-5, "warmup": 0.1},
    "methods": [
        {"name": "dpo", "beta": 0.1, "label": "dpo"},
        {"name": "dpo", "beta": 0.5, "label": "dpo(beta=0.5)"},
        {"name": "dpo", "beta": 0.1, "plus": [{"name": "sft", "eta": 0.4}], "train": {"max_steps": 50}, "label": "mine"},
        {"name": "gone", "tau": 3.0, "label": "gone"},
    ],
}


@pytest.fixture(scope="module")
def settled(tmp_path_factory):
    """Four methods, of which one is dpo with another beta, one dpo with an addition, and one from a plugin that is gone."""
    out = make_run(
        tmp_path_factory.mktemp("settled"),
        tasks=(TASK,),
        methods=[one["label"] for one in SPEC["methods"]],
        variants=(False, PLAIN | {"head": "linear"}, STRONG | {"head": "linear"}, CONTROL | {"head": "linear"}),
        seeds=(0,),
        steps=2,
        spec=SPEC,
    )
    for path in out.glob("cells/*/spec.json"):
        stage = "sft" if "-sft-" in path.parent.name else "train"
        write_json(path, {"stages": {stage: {"config": {"numerics": {"dtype": "float32"}}}}})
    return {row["arm"]["value"]: row for row in entries(out, "hyperparameters")}, out


def test_settings_have_their_value_and_where_it_is_from(settled):
    rows, _ = settled

    def of(arm, key):
        return rows[arm][key].get("value"), rows[arm][key].get("source")

    assert of("dpo", "Method:beta") == (0.1, "TRL's DPOConfig")
    assert of("dpo(beta=0.5) +SPO", "Method:beta") == (0.5, "spec")
    assert of("mine", "Added:sft eta") == (0.4, "spec")
    assert of("gone", "Method:tau") == (3.0, "spec")
    assert of("dpo", "Training:batch_size") == (32, "default")
    assert of("dpo", "Training:learning_rate") == (1e-5, "spec")
    assert of("dpo", "Training:lora") == ("none", "default")
    assert [of("dpo", f"Training:{key}") for key in ("epochs", "max_steps")] == [(1.0, "default"), (None, None)]
    passes = (round(50 * 32 / 98, 2), "computed")
    assert [of("mine", f"Training:{key}") for key in ("epochs", "max_steps")] == [passes, (50, "spec")]
    sft = [of("sft", f"Training:{key}") for key in ("batch_size", "learning_rate", "epochs", "max_steps")]
    assert sft == [(16, "spec"), (2e-5, "default"), (None, None), (200, "spec")]
    assert of("dpo +SPO(gamma=0.3)", "SPO:gamma") == (0.3, "spec")
    assert of("dpo +SPO", "SPO:gamma") == (0.1, "ours")
    assert of("dpo +SPO[gamma_zero]", "SPO:control") == ("gamma_zero", "spec")
    assert of("dpo +SPO[gamma_zero]", "SPO:gamma") == (0.0, "spec")
    assert of("dpo", "SPO:gamma") == (None, None)
    assert of("dpo", "Decoding:temperature") == (0.7, "default")
    assert of("dpo", "Training:optimizer") == (OPTIMIZER, "default")
    assert {row["Training:dtype"]["value"] for row in rows.values()} == {"float32"}


def test_tried_counts_settings_of_a_method_with_and_without_spo(settled):
    """dpo has two betas and, with SPO, two gammas each; dpo with an addition is another method; controls are not counted."""
    rows, _ = settled
    tried = {arm: row["tried"]["value"] for arm, row in rows.items()}
    assert (tried["sft"], tried["dpo"], tried["dpo(beta=0.5)"], tried["mine"]) == (1, 2, 2, 1)
    assert (tried["dpo +SPO"], tried["dpo(beta=0.5) +SPO(gamma=0.3)"], tried["mine +SPO"]) == (4, 4, 2)
    assert tried["dpo +SPO[gamma_zero]"] is None


def test_settings_that_are_equal_where_they_are_stand_in_the_caption(settled):
    _, out = settled
    shown = table(out, "hyperparameters", "md")
    assert "SPO: head linear (ours)." in shown
    assert "warmup 0.1 (default)" in shown
    assert "Added (mine): sft eta 0.4 (spec)." in shown
    assert "Decoding: temperature 0.7 (default), top p 0.9 (spec)." in shown
    assert "Run: seeds 0 (spec)." in shown
    assert "(a): TRL's DPOConfig." in shown
    assert "What was tuned before or outside this run is not seen here" in shown
    heads = next(line for line in shown.splitlines() if line.startswith("| Arm"))
    assert all(word in heads for word in ("Method beta", "Training batch size", "SPO gamma", "SPO control", "Tried"))


def test_the_optimizer_is_what_torch_has_by_default():
    known = torch.optim.AdamW([torch.zeros(1, requires_grad=True)]).defaults
    assert f"AdamW, β {' '.join(map(str, known['betas']))}, ε {known['eps']:g}" == OPTIMIZER


def test_an_sft_policy_that_was_not_trained_has_no_training_settings(tmp_path):
    spec = {**SPEC, "sft": {"steps": 0}, "methods": SPEC["methods"][:1]}
    out = make_run(tmp_path, tasks=(TASK,), methods=("dpo",), seeds=(0,), steps=2, spec=spec)
    shown = table(out, "hyperparameters", "md")
    assert "Training (all but sft): optimizer AdamW" in shown
    assert "Training:" not in shown


# --- power and ranking --------------------------------------------------------------------------------------------------


def test_power_is_power_matrix_over_the_family(tmp_path):
    out = make_run(tmp_path, tasks=(TASK,), methods=("dpo", "ipo"), effect=0.01, steps=2)
    sides = [[[values_of(out, m, label, s) for s in (0, 1)] for m in ("dpo", "ipo")] for label in ("", "-_SPO")]
    for row, one in zip(entries(out, "power"), power_matrix(*map(np.array, sides))):
        assert row["detectable"]["value"] == one.detectable
        assert [row[key]["value"] for key in ("Prompts:n_prompts", "Seeds:n_seeds")] == [24, 2]
        needed = [row[key]["value"] for key in ("Prompts:prompts_needed", "Seeds:seeds_needed")]
        assert needed == [one.prompts_needed, one.seeds_needed]


def values_of(out, method, label, seed):
    return read_json(out / "cells" / f"embedded-{TASK}-{method}{label}-s{seed}" / "scores.json")["metrics"]["true_reward"][
        "values"
    ]


def test_what_no_number_finds_is_infinite_and_one_seed_tells_nothing_of_seeds(tmp_path):
    """An effect of exactly 0, with noise around it, is found by no number of prompts."""
    base = noise(1)
    twin = [value + (0.1 if i % 2 else -0.1) for i, value in enumerate(base)]
    out = write(tmp_path, [cell("dpo", base), cell("dpo", twin, spo=PLAIN)])
    (row,) = entries(out, "power")
    assert [row[key]["text"] for key in ("Prompts:prompts_needed", "Seeds:seeds_needed")] == ["∞", "--"]
    assert "what retraining would change is not known" in whole(out, "power")["caption"]
    few = write(tmp_path / "few", [cell("dpo", base[:1], ids=["a"]), cell("dpo", twin[:1], ids=["a"], spo=PLAIN)])
    assert entries(few, "power")[0]["detectable"]["text"] == "--"
    assert "so few prompts find nothing, however large" in whole(few, "power")["caption"]
    with pytest.raises(InputError, match="a baseline and its SPO twin"):
        table(write(tmp_path / "no", [cell("dpo", base)]), "power")


def test_strengths_rank_by_wins_against_sft(tmp_path):
    """a beats SFT in 9 of 12, b in 3 of 12, with one draw more: ln(9.5 / 3.5) and its opposite."""
    wins = {"a": [1.0] * 9 + [0.0] * 3, "b": [1.0] * 3 + [0.0] * 9}
    cells = [cell(method, noise(1), more={"win_rate_sft": values}) for method, values in wins.items()]
    out = write(tmp_path, [cell("sft", noise(2)), *cells])
    rows = entries(out, "ranking")
    assert [(row["rank"]["value"], row["policy"]["value"]) for row in rows] == [(1, "a"), (2, "sft"), (3, "b")]
    strength = math.log(9.5 / 3.5)
    assert [row["strength"]["value"] for row in rows] == pytest.approx([strength, 0, -strength], abs=1e-6)
    assert rows[0]["win_sft"]["value"] == pytest.approx(9.5 / 13)
    assert rows[0]["strength"]["low"] < strength < rows[0]["strength"]["high"]
    assert [row["n_prompts"]["value"] for row in rows] == [12, 12, 12]
    shares = [1 / (1 + math.exp(-rows[0]["strength"][end])) for end in ("low", "high")]
    assert [rows[0]["win_sft"][end] for end in ("low", "high")] == pytest.approx(shares)


def test_every_kind_of_verdict_counts_and_prompts_are_paired_by_id(tmp_path):
    out = make_run(tmp_path, tasks=(TASK,), methods=("dpo",), steps=2)
    before = entries(out, "ranking")
    assert {row["policy"]["value"] for row in before} == {"sft", "dpo", "dpo +SPO", "chosen answers"}
    path = out / "cells" / f"embedded-{TASK}-dpo-_SPO-s1" / "scores.json"
    scores = read_json(path)
    for name in ("win_rate_sft", "win_rate_chosen", "head_to_head"):
        for key in ("ids", "values"):
            scores["metrics"][name][key].reverse()
    write_json(path, scores)
    after = entries(out, "ranking")
    for key in ("value", "low", "high"):
        assert [row["strength"].get(key) for row in after] == pytest.approx([row["strength"].get(key) for row in before])
    scores["metrics"].pop("head_to_head")
    write_json(path, scores)
    assert [row["strength"]["value"] for row in entries(out, "ranking")] != [row["strength"]["value"] for row in before]


def test_without_verdicts_there_is_no_ranking(tmp_path):
    out = write(tmp_path, [cell("sft", noise(2)), cell("dpo", noise(1))])
    with pytest.raises(InputError, match="verdicts against the SFT policy"):
        table(out, "ranking")
