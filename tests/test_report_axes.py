"""The report's data axes, from run directories with known numbers: contrasts, areas, table, figures, page."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from synthetic_run import IDS, PLANTS, cell, make_run, noise, write
from test_page_data import Page
from test_report import verdict_box

from spo_bench.errors import InputError
from spo_bench.files import read_jsonl
from spo_bench.report import names, table, write_report
from spo_bench.stats import compare_matrix

SPO = {"label": "+SPO", "gamma": 0.1}


def comparisons(out, **wanted):
    write_report(out)
    rows = read_jsonl(out / "comparisons.jsonl")
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


def rows_of(out, name="axes"):
    return [row["entries"] for row in json.loads(table(out, name, "json"))["rows"]]


# --- axis contrasts -----------------------------------------------------------------------------------------------------


def test_an_axis_contrast_is_changed_minus_plain_data_on_the_same_prompts(tmp_path):
    """Per prompt -.1 and -.3 in turn: -.2 for the baseline; the noisy SPO twin is .1 below its own plain cell everywhere."""
    plain = [0.8] * 12
    noisy = [0.7, 0.5] * 6
    out = write(
        tmp_path,
        [
            cell("dpo", plain),
            cell("dpo", [0.9] * 12, spo=SPO),
            cell("dpo", noisy, label_flip=0.5),
            cell("dpo", [0.8] * 12, spo=SPO, label_flip=0.5),
        ],
    )
    base, twin = comparisons(out, kind="axis")
    assert base["diff"] == pytest.approx(-0.2)
    assert twin["diff"] == pytest.approx(-0.1)
    assert (base["axis"], base["metric"], base["axes"]) == ("label_flip", "true_reward", {"label_flip": 0.5})
    assert (base["baseline"], base["variant"]) == ("dpo", "dpo (label_flip=0.5)")
    assert (twin["baseline"], twin["variant"]) == ("dpo +SPO", "dpo (label_flip=0.5) +SPO")
    expected = compare_matrix([plain, [0.9] * 12], [noisy, [0.8] * 12])[0]
    assert (base["low"], base["high"], base["p"], base["p_adjusted"], base["family"]) == (
        expected.low,
        expected.high,
        expected.p,
        expected.p_adjusted,
        2,
    )


def test_the_spo_contrast_of_changed_data_is_with_the_baseline_on_the_same_data(tmp_path):
    out = write(
        tmp_path,
        [
            cell("dpo", [0.8] * 12),
            cell("dpo", [0.9] * 12, spo=SPO),
            cell("dpo", [0.5] * 12, label_flip=0.5),
            cell("dpo", [0.55] * 12, spo=SPO, label_flip=0.5),
        ],
    )
    found = {json.dumps(row["axes"]): row for row in comparisons(out, kind="spo", metric="true_reward")}
    assert {key: round(row["diff"], 9) for key, row in found.items()} == {"{}": 0.1, '{"label_flip": 0.5}': 0.05}
    assert found['{"label_flip": 0.5}']["baseline"] == "dpo (label_flip=0.5)"
    assert all("axis" not in row for row in found.values())


def test_only_one_axis_differs_in_a_contrast_and_families_are_by_axis_and_metric(tmp_path):
    """fraction × label_flip, two values each: along fraction 2 contrasts (one a flip rate), along label_flip 2 (one a share)."""
    points = [{}, {"fraction": 0.2}, {"label_flip": 0.5}, {"fraction": 0.2, "label_flip": 0.5}]
    out = write(tmp_path, [cell("dpo", noise(i), pairs=noise(9 + i), **axes) for i, axes in enumerate(points)])
    found = comparisons(out, kind="axis")
    assert {(row["axis"], row["metric"], row["baseline"], row["variant"]) for row in found} == {
        (axis, metric, baseline, variant)
        for metric in ("true_reward", "implicit_accuracy")
        for axis, baseline, variant in [
            ("fraction", "dpo", "dpo (fraction=0.2)"),
            ("fraction", "dpo (label_flip=0.5)", "dpo (fraction=0.2, label_flip=0.5)"),
            ("label_flip", "dpo", "dpo (label_flip=0.5)"),
            ("label_flip", "dpo (fraction=0.2)", "dpo (fraction=0.2, label_flip=0.5)"),
        ]
    }
    assert {row["family"] for row in found} == {2}


def test_without_the_plain_cell_there_is_no_axis_contrast(tmp_path):
    cells = [cell("dpo", noise(1), label_flip=0.2), cell("dpo", noise(2), label_flip=0.5), cell("ipo", noise(3))]
    assert comparisons(write(tmp_path, cells), kind="axis") == []


def test_a_failed_plain_cell_makes_no_contrast_and_is_missing_in_the_table(tmp_path):
    cells = [cell("dpo", noise(1), done=False), cell("dpo", noise(2), label_flip=0.5)]
    out = write(tmp_path, cells)
    assert comparisons(out, kind="axis") == []
    plain, flipped = rows_of(out)
    assert plain["True reward:true_reward"]["text"] == flipped["True reward:true_reward difference"]["text"] == "--"
    assert flipped["True reward:true_reward"]["value"] == pytest.approx(np.mean(noise(2)))


def test_several_seeds_are_paired_by_seed(tmp_path):
    cells = [cell("dpo", noise(s), seed=s) for s in (0, 1, 2)]
    cells += [cell("dpo", noise(10 + s), seed=s, regime="online") for s in (2, 0, 1)]
    row = comparisons(write(tmp_path, cells), kind="axis")[0]
    one = compare_matrix([np.array([noise(s) for s in (0, 1, 2)])], [np.array([noise(10 + s) for s in (0, 1, 2)])])[0]
    assert (row["diff"], row["low"], row["high"], row["p"]) == (one.diff, one.low, one.high, one.p)
    assert (row["n_seeds"], row["seeds"], row["estimand"]) == (3, [0, 1, 2], "method")


def test_metrics_of_one_side_only_are_left_out(tmp_path):
    control = {"controllability": [0.5] * 12}
    cells = [cell("dpo", noise(1)), cell("dpo", noise(2), more=control, relabel="reward_augmented")]
    assert {row["metric"] for row in comparisons(write(tmp_path, cells), kind="axis")} == {"true_reward"}


# --- hold-out: other prompts on purpose ---------------------------------------------------------------------------------


def holdout_run(tmp_path, **changed):
    """Plain cells on 12 prompts, hold-out cells on the 6 plants in another order."""
    plain = [0.9, 0.8, 0.7, 0.9, 0.8, 0.7] + [0.1] * 6
    held = {"ids": PLANTS[::-1], "holdout": "plants", "clusters": list("ffeedd")} | changed
    cells = [
        cell("sft", [0.4] * 6 + [0.9] * 6, pairs=[0.5] * 12),
        cell("dpo", plain, pairs=[1.0] * 6 + [0.0] * 6, clusters=list("ddeeffgghhii")),
        cell("dpo", [0.6, 0.6, 0.6, 0.5, 0.5, 0.5], pairs=[1, 0, 1, 0, 1, 0], **held),
        cell("dpo", [0.7, 0.7, 0.7, 0.5, 0.5, 0.5], spo=SPO, **held),
    ]
    return write(tmp_path, cells)


def test_a_holdout_cell_is_compared_on_its_own_prompts_only(tmp_path):
    """In the order of plants: .5 .5 .5 .6 .6 .6 against .9 .8 .7 .9 .8 .7: mean .55 - .8 = -.25; pairs 3 of 6 against 6 of 6."""
    out = holdout_run(tmp_path)
    row = comparisons(out, kind="axis", metric="true_reward")[0]
    assert row["diff"] == pytest.approx(-0.25)
    assert (row["axis"], row["n_prompts"], row["baseline"], row["variant"]) == ("holdout", 6, "dpo", "dpo (holdout=plants)")
    one = compare_matrix([[0.9, 0.8, 0.7, 0.9, 0.8, 0.7]], [[0.5, 0.5, 0.5, 0.6, 0.6, 0.6]], clusters=[list("ddeeff")])[0]
    assert (row["low"], row["high"], row["p"]) == pytest.approx((one.low, one.high, one.p))
    pairs = comparisons(out, kind="axis", metric="implicit_accuracy")[0]
    assert (pairs["diff"], pairs["n_prompts"], pairs["unit"]) == (-0.5, 6, "pair")


def test_a_holdout_cell_is_compared_with_the_sft_policy_on_its_own_prompts(tmp_path):
    rows = comparisons(holdout_run(tmp_path), kind="training", metric="true_reward")
    assert {row["variant"]: (round(row["diff"], 9), row["n_prompts"]) for row in rows} == {
        "dpo": (round(4.8 / 12 + 0.6 / 12 - 0.65, 9), 12),
        "dpo (holdout=plants)": (0.15, 6),
        "dpo (holdout=plants) +SPO": (0.2, 6),
    }


@pytest.mark.parametrize("ids", [["gases-0", *PLANTS[1:]], [PLANTS[0], PLANTS[0], *PLANTS[2:]]])
def test_a_holdout_cell_with_prompts_of_its_own_is_an_error_that_names_them(tmp_path, ids):
    with pytest.raises(InputError, match=r"'gases-0'|'plants-0' more than once"):
        write_report(holdout_run(tmp_path, ids=ids))


def test_fewer_prompts_without_holdout_are_an_error_that_names_them(tmp_path):
    cells = [cell("dpo", noise(1)), cell("dpo", noise(2, size=11), ids=IDS[:-1], label_flip=0.5)]
    with pytest.raises(InputError, match=r"metric 'true_reward'.*'metals-5' only in the second set"):
        write_report(write(tmp_path, cells))


def test_fewer_prompts_than_the_twin_of_the_same_holdout_are_an_error(tmp_path):
    """The hold-out explains why a plain twin has more prompts; it does not explain why the twin of the same hold-out has."""
    cells = [
        cell("dpo", noise(1, size=6), ids=PLANTS, holdout="plants"),
        cell("dpo", noise(2, size=5), ids=PLANTS[:-1], spo=SPO, holdout="plants"),
    ]
    with pytest.raises(InputError, match="'plants-5'"):
        write_report(write(tmp_path, cells))


def test_holdout_cells_are_explained_and_not_ranked_with_others(tmp_path):
    out = holdout_run(tmp_path)
    assert "evaluated on these domains’ prompts only" in table(out, "main", "md")
    marked = {row["method"]["text"]: row["dialogue:true_reward"].get("mark") for row in rows_of(out, "main")}
    assert marked == {"sft": "best", "dpo": None, "dpo (holdout=plants)": None, "dpo (holdout=plants) +SPO": "best"}
    caption = json.loads(table(out, "axes", "json"))["caption"]
    assert "Their Δ plain is over these prompts too, the plain level over all." in caption


# --- area under the data-efficiency curve -------------------------------------------------------------------------------


def curve_run(out, shares=(0.2, 0.6, 1.0), seeds=(0,), drop=(), **spec):
    """SFT, DPO and DPO+SPO at every share; levels rise with the share, SPO helps most at the smallest."""
    cells = [cell("sft", [0.3 + 0.01 * s] * 12, seed=s) for s in seeds]
    for share in shares:
        axes = {} if share == 1 else {"fraction": share}
        for seed in seeds:
            for spo in (False, SPO):
                done = (share, seed, bool(spo)) not in drop
                cells.append(cell("dpo", reward(share, seed, spo), seed=seed, spo=spo, done=done, **axes))
    return write(out, cells, **spec)


def reward(share, seed, spo):
    values = np.array(noise(round(1000 * share) + 7 * seed + bool(spo), 0.4 + 0.4 * share))
    return list(values + (0.2 * (1.2 - share) if spo else 0.0))


def test_area_by_hand(tmp_path):
    """Shares .2, .6, 1 with values a, b, c: (.4(a+b)/2 + .4(b+c)/2) / .8 = (a + 2b + c)/4, for every prompt."""
    out = curve_run(tmp_path)
    row = comparisons(out, metric="auc:true_reward")[0]
    sides = []
    for spo in (False, SPO):
        a, b, c = (np.array(reward(share, 0, spo)) for share in (0.2, 0.6, 1.0))
        sides.append((a + 2 * b + c) / 4)
    one = compare_matrix([sides[0]], [sides[1]])[0]
    assert (row["diff"], row["low"], row["high"], row["p"]) == pytest.approx((one.diff, one.low, one.high, one.p))
    assert (row["kind"], row["axes"], row["baseline"], row["variant"], row["family"]) == ("spo", {}, "dpo", "dpo +SPO", 1)
    levels = [row["True reward:true_reward"]["value"] for row in rows_of(out) if row["value"]["text"] == "area"]
    assert levels == pytest.approx([side.mean() for side in sides])


def test_area_of_shares_that_are_not_evenly_spaced(tmp_path):
    """Shares .2, .4, 1: (.2(a+b)/2 + .6(b+c)/2) / .8 = (a + 4b + 3c)/8."""
    row = comparisons(curve_run(tmp_path, shares=(0.4, 1.0, 0.2)), metric="auc:true_reward")[0]
    a, b, c = (np.mean(reward(share, 0, SPO)) - np.mean(reward(share, 0, False)) for share in (0.2, 0.4, 1.0))
    assert row["diff"] == pytest.approx((a + 4 * b + 3 * c) / 8)


def test_a_prompt_that_is_invalid_at_one_share_has_no_area(tmp_path):
    values = {share: [None if share == 0.2 and i == 3 else 0.5 for i in range(12)] for share in (0.2, 1.0)}
    cells = [cell("dpo", values[0.2], fraction=0.2), cell("dpo", values[1.0])]
    cells += [cell("dpo", [0.6] * 12, spo=SPO, fraction=0.2), cell("dpo", [0.8] * 12, spo=SPO)]
    row = comparisons(write(tmp_path, cells), metric="auc:true_reward")[0]
    assert (row["diff"], row["n_prompts"]) == (pytest.approx(0.2), 11)


def test_a_seed_without_all_shares_is_left_out_of_the_area(tmp_path):
    out = curve_run(tmp_path, seeds=(0, 1, 2), drop=[(0.6, 1, True)])
    row = comparisons(out, metric="auc:true_reward")[0]
    assert (row["n_seeds"], row["seeds"]) == (2, [0, 2])
    none = curve_run(tmp_path / "none", drop=[(0.6, 0, True)])
    assert comparisons(none, metric="auc:true_reward") == []


def test_one_share_has_no_area(tmp_path):
    cells = [cell("dpo", noise(1), fraction=0.2), cell("dpo", noise(2), spo=SPO, fraction=0.2)]
    out = write(tmp_path, cells)
    assert comparisons(out, metric="auc:true_reward") == []
    assert [row["value"]["text"] for row in rows_of(out)] == ["0.2", "0.2"]
    assert not list((out / "figures").glob("axis-*"))


def test_areas_leave_verdict_and_figures_of_effects_alone(tmp_path):
    out = curve_run(tmp_path, seeds=(0, 1))
    write_report(out)
    assert "over 3 contrasts" in verdict_box(out)


# --- table, figures, page -----------------------------------------------------------------------------------------------


def test_the_table_holds_levels_and_both_differences(tmp_path):
    out = curve_run(tmp_path, seeds=(0, 1))
    found = comparisons(out)
    rows = rows_of(out)
    assert [(row["variant"]["text"], row["value"]["text"]) for row in rows] == [
        (variant, value) for variant in ("baseline", "+SPO") for value in ("0.2", "0.6", "1", "area")
    ]
    level, plain, spo = (f"True reward:true_reward{key}" for key in ("", " difference", " spo difference"))
    expected = next(row for row in found if row.get("axis") == "fraction" and row["variant"] == "dpo (fraction=0.2) +SPO")
    assert [rows[4][plain][key] for key in ("value", "low", "high", "p_adjusted")] == [
        expected[key] for key in ("diff", "low", "high", "p_adjusted")
    ]
    assert rows[4][plain]["significant"] is (expected["p_adjusted"] < 0.05)
    area = next(row for row in found if row["metric"] == "auc:true_reward")
    assert (rows[7][spo]["value"], rows[7][spo]["p_adjusted"]) == (area["diff"], area["p_adjusted"])
    assert rows[0][level]["value"] == pytest.approx(np.mean([reward(0.2, seed, False) for seed in (0, 1)]))
    assert all(row[spo]["text"] == "" for row in rows[:4])
    assert all(rows[i][plain]["text"] == "" for i in (2, 3, 6, 7))
    assert table(out, "axes", "csv").count("\n") == 9


def test_other_axes_stand_beside_the_method_and_values_in_order(tmp_path):
    points = [{}, {"list_size": "4 degraded"}, {"list_size": 4}, {"regime": "online"}, {"regime": "semi_online(every=4)"}]
    points += [{"list_size": 4, "fraction": 0.2}, {"fraction": 0.2}]
    rows = rows_of(write(tmp_path, [cell("dpo", noise(i), **axes) for i, axes in enumerate(points)]))
    shown = [tuple(row[key]["text"] for key in ("axis", "method", "value")) for row in rows]
    assert [row[1:] for row in shown if row[0] == "List size"] == [
        ("dpo", "2"),
        ("dpo", "4 degraded"),
        ("dpo", "4"),
        ("dpo (fraction=0.2)", "2"),
        ("dpo (fraction=0.2)", "4"),
    ]
    assert [row[1:] for row in shown if row[0] == "Regime"] == [
        ("dpo", "offline"),
        ("dpo", "online"),
        ("dpo", "semi_online(every=4)"),
    ]


def test_controllability_is_shown_for_relabelled_cells(tmp_path):
    control = {"controllability": [0.5] * 12, "score_at_goal_4": [0.4] * 12}
    twin = {"controllability": [0.7] * 12, "score_at_goal_4": [0.4] * 12}
    changed = {"relabel": "reward_augmented"}
    cells = [cell("dpo", noise(1)), cell("dpo", noise(2), spo=SPO)]
    cells += [cell("dpo", noise(3), more=control, **changed), cell("dpo", noise(4), spo=SPO, more=twin, **changed)]
    rows = rows_of(write(tmp_path, cells))
    key = "Controllability (r):controllability"
    assert [row[key]["value"] for row in rows] == [None, 0.5, None, pytest.approx(0.7)]
    assert [rows[i][key]["text"] for i in (0, 2)] == ["", ""]
    assert rows[3][f"{key} spo difference"]["value"] == pytest.approx(0.2)
    assert f"{key} difference" not in rows[3]


def test_titles_and_directions_of_the_metrics_of_data_axes():
    assert names.title("auc:win_rate_sft") == "AUC: Win % vs. SFT"
    assert (names.scale("auc:win_rate_sft"), names.scale("auc:true_reward")) == (100.0, 1.0)
    assert (names.title("score_at_goal_7"), names.title("controllability")) == ("Score at goal 7", "Controllability (r)")
    directions = [names.direction(name, True) for name in ("controllability", "score_at_goal_10", "score_at_goal_4", "auc:kl")]
    assert directions == ["up", "up", "", ""]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({}, "All shares had equal epochs"),
        ({"data_axes": {"equal": "epochs"}, "train": {"max_steps": None}}, "All shares had equal epochs"),
        ({"data_axes": {"equal": "steps"}}, "All shares had equal optimizer steps"),
        ({"train": {"max_steps": 60}}, "All shares had equal optimizer steps"),
        ({"train": {"max_steps": 60}, "methods": [{"label": "dpo", "train": {"epochs": 2, "max_steps": None}}]}, "equal epochs"),
    ],
)
def test_the_caption_says_what_was_equal_for_all_shares(tmp_path, spec, words):
    out = curve_run(tmp_path, **spec)
    write_report(out)
    assert words in table(out, "axes", "md")
    assert (out / "report.html").read_text(encoding="utf-8").count(words) == 3  # figure, its alternative text, table


def test_methods_with_other_lengths_are_named(tmp_path):
    methods = [{"label": "dpo", "train": {"max_steps": 5}}, {"label": "ipo", "train": {}}]
    cells = [
        cell(m, noise(i), **axes) for i, (m, axes) in enumerate([(m, a) for m in ("dpo", "ipo") for a in ({}, {"fraction": 0.2})])
    ]
    caption = table(write(tmp_path, cells, methods=methods), "axes", "md")
    assert (
        "All shares of dpo had equal optimizer steps: fewer pairs, more passes over them, those of the other methods" in caption
    )


def test_table_and_figures_are_in_every_format_and_on_the_page(tmp_path):
    cells = [
        cell("dpo", noise(i, size=12), spo=spo, fraction=fraction, label_flip=flip)
        for i, (spo, fraction, flip) in enumerate((s, f, r) for s in (False, SPO) for f in (0.2, 0.5) for r in (0.1, 0.2))
    ]
    out = write(tmp_path, cells)
    write_report(out)
    for ending in ("md", "tex", "csv", "html", "json"):
        text = (out / "tables" / f"axes.{ending}").read_text(encoding="utf-8")
        assert text == table(out, "axes", ending)
        assert "nan" not in text.lower()
    assert len({len(row) for row in csv.reader(io.StringIO(table(out, "axes", "csv")))}) == 1
    for name in ("axis-fraction", "axis-label_flip"):
        assert (out / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (out / "figures" / f"{name}.svg").read_text(encoding="utf-8")
    page = Page()
    page.feed((out / "report.html").read_text(encoding="utf-8"))
    assert page.open == []
    assert {"axes", "table-axes"} <= set(page.ids)
    assert "#axes" in page.addresses
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    write_report(out)
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_a_run_on_plain_data_shows_nothing_of_data_axes(tmp_path):
    out = make_run(tmp_path, tasks=("controlled_dialogue",), methods=("dpo",), steps=2)
    write_report(out)
    assert not list((out / "tables").glob("axes.*"))
    assert not list((out / "figures").glob("axis-*"))
    assert "Data axes" not in (out / "report.html").read_text(encoding="utf-8")
    assert {row["kind"] for row in read_jsonl(out / "comparisons.jsonl")} == {"spo", "training"}
    with pytest.raises(InputError, match=r"has no table 'axes'\n.*cells on changed data: give `data_axes`"):
        table(out, "axes", "md")
    assert "† p < .05 after Holm’s correction over all contrasts of a metric (family of 1)." in table(out, "main", "md")
