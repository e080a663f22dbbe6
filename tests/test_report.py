"""The report, from real files of a synthetic run: contract, tables, figures, page."""

from __future__ import annotations

import csv
import html
import io
import json
import re

import numpy as np
import pytest
from synthetic_run import make_run
from typer.main import get_command
from typer.testing import CliRunner

from spo_bench.cli.app import app
from spo_bench.errors import InputError
from spo_bench.files import read_json, read_jsonl, write_json
from spo_bench.report import TABLES, rebuild, table, write_report
from spo_bench.report.render import FORMATS
from spo_bench.stats import compare_matrix, interval


def verdict_box(out):
    text = (out / "report.html").read_text(encoding="utf-8")
    return html.unescape(re.search(r'aria-label="Verdict">(.*?)</section>', text, re.DOTALL).group(1))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A reported run with one failed cell."""
    out = make_run(tmp_path_factory.mktemp("run"), failed=(("controlled_dialogue", "ipo", True, 1),))
    write_report(out)
    return out


def comparisons(run, **wanted):
    return [row for row in read_jsonl(run / "comparisons.jsonl") if all(row[key] == value for key, value in wanted.items())]


def values_of(run, cell, metric):
    return read_json(run / "cells" / cell / "scores.json")["metrics"][metric]["values"]


# --- metrics and comparisons --------------------------------------------------------------------------------------------


def test_metrics_hold_every_metric_of_every_finished_cell(run):
    rows = list(read_jsonl(run / "metrics.jsonl"))
    cells = {row["id"]: row for row in read_jsonl(run / "cells.jsonl")}
    assert {row["cell"] for row in rows} == {name for name, cell in cells.items() if cell["status"] == "done"}
    name = "embedded-controlled_dialogue-dpo-_SPO-s0"
    scores = read_json(run / "cells" / name / "scores.json")
    mine = {row["metric"]: row for row in rows if row["cell"] == name}
    assert set(mine) == set(scores["metrics"]) | set(scores["scalars"])
    values = scores["metrics"]["true_reward"]["values"]
    assert (mine["true_reward"]["value"], mine["true_reward"]["low"]) == interval(values)[:2]
    assert (mine["win_rate_chosen"]["n"], mine["win_rate_chosen"]["n_invalid"]) == (23, 1)
    assert mine["peak_memory"] | {"value": 2.5e9, "n": 1, "low": None, "high": None} == mine["peak_memory"]


def test_spo_comparison_is_compare_matrix_over_the_family(run):
    found = comparisons(run, kind="spo", metric="true_reward")
    assert len(found) == 6
    baselines, variants = [], []
    for row in found:
        seeds = [0] if row["n_seeds"] == 1 else [0, 1]
        stem = f"embedded-{row['task']}-{row['method']}"
        sides = [[values_of(run, f"{stem}{label}-s{seed}", "true_reward") for seed in seeds] for label in ("", "-_SPO")]
        baselines.append(np.array(sides[0]))
        variants.append(np.array(sides[1]))
    for row, one in zip(found, compare_matrix(baselines, variants)):
        assert (row["diff"], row["low"], row["high"], row["p"], row["p_adjusted"]) == (
            one.diff,
            one.low,
            one.high,
            one.p,
            one.p_adjusted,
        )
        assert (row["family"], row["baseline"], row["variant"]) == (6, row["method"], f"{row['method']} +SPO")
    assert {row["estimand"] for row in found} == {"method", "checkpoints"}  # one contrast lost a seed


def test_prompts_are_paired_by_id_not_by_place(tmp_path):
    out = make_run(tmp_path, tasks=("controlled_dialogue",), methods=("dpo",), steps=2)
    write_report(out)
    before = comparisons(out, metric="true_reward")
    path = out / "cells" / "embedded-controlled_dialogue-dpo-_SPO-s1" / "scores.json"
    scores = read_json(path)
    for metric in scores["metrics"].values():
        metric["ids"], metric["values"] = metric["ids"][::-1], metric["values"][::-1]
    write_json(path, scores)
    write_report(out)
    after = comparisons(out, metric="true_reward")
    assert [row["diff"] for row in after] == pytest.approx([row["diff"] for row in before])
    assert [row["p"] for row in after] == pytest.approx([row["p"] for row in before])


def test_other_prompts_on_one_side_are_refused(tmp_path):
    out = make_run(tmp_path, tasks=("controlled_dialogue",), methods=("dpo",), seeds=(0,), steps=2)
    path = out / "cells" / "embedded-controlled_dialogue-dpo-_SPO-s0" / "scores.json"
    scores = read_json(path)
    scores["metrics"]["true_reward"]["ids"][0] = "another"
    write_json(path, scores)
    with pytest.raises(InputError, match=r"metric 'true_reward'.*'another' only in the"):
        write_report(out)


def test_head_to_head_and_win_rate_against_sft_are_tested_against_a_half(run):
    row = comparisons(run, kind="spo", metric="head_to_head", task="controlled_dialogue", method="dpo")[0]
    values = [values_of(run, f"embedded-controlled_dialogue-dpo-_SPO-s{seed}", "head_to_head") for seed in (0, 1)]
    assert row["diff"] == pytest.approx(np.mean(values) - 0.5)
    trained = comparisons(run, kind="training", metric="win_rate_sft", task="controlled_dialogue", method="dpo")
    assert [row["variant"] for row in trained] == ["dpo", "dpo +SPO"]
    assert all(row["baseline"] == "sft" and row["diff"] > 0 for row in trained)


def test_training_contrasts_are_a_family_of_their_own(run):
    found = comparisons(run, kind="training", metric="true_reward")
    assert len(found) == 12
    assert {row["family"] for row in found} == {12}
    assert {row["baseline"] for row in found} == {"sft"}
    assert all(row["diff"] > 0.1 for row in found)


# --- tables -------------------------------------------------------------------------------------------------------------


def test_every_table_in_every_format(run):
    names = [name for name in TABLES if name not in ("ablation", "axes", "judge")]
    assert {path.name for path in (run / "tables").iterdir()} == {f"{name}.{ending}" for name in names for ending in FORMATS}
    for path in (run / "tables").iterdir():
        text = path.read_text(encoding="utf-8")
        assert "nan" not in text.lower().replace("loss is nan", "")
        if path.suffix == ".csv":
            rows = list(csv.reader(io.StringIO(text)))
            assert len({len(row) for row in rows}) == 1
            assert len(rows) > 1
    for name, ending in zip(names, [*FORMATS, *FORMATS]):
        assert (run / "tables" / f"{name}.{ending}").read_text(encoding="utf-8") == table(run, name, ending)


def test_main_holds_the_numbers_of_the_comparisons(run):
    rows = list(csv.DictReader(io.StringIO(table(run, "main", "csv"))))
    assert [row["method"] for row in rows] == ["sft", "dpo", "dpo +SPO", "ipo", "ipo +SPO", "simpo", "simpo +SPO"]
    column = "controlled_summarization:true_reward difference"
    expected = comparisons(run, kind="spo", metric="true_reward", task="controlled_summarization", method="simpo")[0]
    for suffix, key in (("", "diff"), (":low", "low"), (":high", "high"), (":p", "p"), (":p_adjusted", "p_adjusted")):
        assert float(rows[-1][column + suffix]) == expected[key]
    assert rows[1][column] == ""
    assert "reconstruction" in table(run, "main", "md")


def test_main_marks_the_best_on_unrounded_values(run):
    whole = json.loads(table(run, "main", "json"))
    key = "controlled_summarization:true_reward"
    values = {row["entries"]["method"]["text"]: row["entries"][key] for row in whole["rows"]}
    ranked = sorted(values, key=lambda name: -values[name]["value"])
    assert values[ranked[0]]["mark"] == "best"
    assert values[ranked[1]]["mark"] == "second"
    assert sum("mark" in entry for entry in values.values()) == 2


def test_missing_is_two_dashes_and_never_zero(tmp_path):
    task = "controlled_dialogue"
    out = make_run(tmp_path, tasks=(task,), methods=("dpo",), seeds=(0,), steps=2, failed=((task, "dpo", True, 0),))
    write_report(out)
    line = next(row for row in table(out, "main", "md").splitlines() if "dpo +SPO" in row)
    assert line == "| dpo +SPO | -- | -- | -- | -- |"
    assert comparisons(out, kind="spo") == []
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "says nothing about SPO: no baseline and SPO twin were both finished" in page
    assert "loss is NaN at step 12" in page


def test_degree_accuracy_is_shown_by_length_late_in_training(run):
    """The last 10 of 40 steps: 16-32 tokens 1 of 4 right each, 0-16 all right; 2 seeds: 20 of 80 and 40 of 40."""
    row = json.loads(table(run, "degree", "json"))["rows"][0]["entries"]
    assert [row[key]["value"] for key in ("0-16", "16-32", "all")] == [1.0, 0.25, 0.5]
    assert [row[key]["n"] for key in ("0-16", "16-32", "all")] == [40, 80, 120]
    assert "Measured on: training rows, last quarter of the steps." in table(run, "degree", "md")


def test_degree_accuracy_of_held_out_rows_comes_before_that_of_training(tmp_path):
    """Two seeds: 3 of 4 and 1 of 4 of 8-token copies, 2 of 2 of longer ones in one seed: .5, 1, and 6 of 10 in all."""
    out = make_run(tmp_path, tasks=("controlled_dialogue",), methods=("dpo", "ipo"), steps=4)
    for seed, bins in enumerate([{"0-16": [3, 4], "16-32": [2, 2]}, {"0-16": [1, 4]}]):
        path = out / "cells" / f"embedded-controlled_dialogue-dpo-_SPO-s{seed}" / "scores.json"
        write_json(path, read_json(path) | {"degree_bins": bins})
    dpo, ipo = (row["entries"] for row in json.loads(table(out, "degree", "json"))["rows"])
    assert [dpo[key]["value"] for key in ("0-16", "16-32", "all")] == [0.5, 1.0, 0.6]
    assert [dpo[key]["n"] for key in ("0-16", "16-32", "all")] == [8, 2, 10]
    assert [row["rows"]["value"] for row in (dpo, ipo)] == ["held-out rows", "training rows, last quarter of the steps"]


def test_data_audit_counts_splits_and_overlap(run):
    rows = [row["entries"] for row in json.loads(table(run, "data", "json"))["rows"]]
    assert [row["split"]["value"] for row in rows] == ["sft", "train", "heldout", "eval"] * 2
    assert [row["task"]["value"] for row in rows[::4]] == ["controlled_dialogue", "controlled_summarization"]
    shown = ("rows", "kept", "dropped", "truncated_chosen", "truncated_rejected")
    assert all([row[key]["value"] for key in shown] == [100, 98, 2, 3, 4] for row in rows)
    assert [row["overlap"]["value"] for row in rows[:4]] == [None, None, 0, 0]
    assert "Not held out" not in (run / "report.html").read_text(encoding="utf-8")


def test_prompts_seen_in_training_are_said_in_the_verdict(tmp_path):
    out = make_run(tmp_path, tasks=("controlled_dialogue",), methods=("dpo",), steps=2, overlap=5)
    write_report(out)
    words = "Not held out: 5 of 97 eval prompts of controlled_dialogue are also among those policies are trained on."
    assert words in verdict_box(out)
    assert words in table(out, "data", "md")


def test_cost_is_relative_to_the_own_baseline(run):
    """Training takes 3 s, with SPO 4 s."""
    rows = [row["entries"] for row in json.loads(table(run, "cost", "json"))["rows"]]
    relative = {row["method"]["text"]: row["seconds relative"]["value"] for row in rows}
    assert relative["dpo +SPO"] == pytest.approx(4 / 3)
    assert relative["dpo"] is None


JUDGING = ("true_reward", "win_rate_chosen", "win_rate_sft", "head_to_head")


def without_metrics(out, *gone):
    for path in out.glob("cells/*/scores.json"):
        scores = read_json(path)
        length = {"length": scores["metrics"].pop("length")}  # comes first in a real run
        write_json(path, scores | {"metrics": length | {k: v for k, v in scores["metrics"].items() if k not in gone}})


def test_without_a_judge_the_headline_is_implicit_accuracy_and_the_caption_says_so(tmp_path):
    out = make_run(tmp_path, tasks=("controlled_dialogue",), methods=("dpo",), steps=2)
    without_metrics(out, *JUDGING)
    write_report(out)
    whole = json.loads(table(out, "main", "json"))
    metrics = [column["key"].rpartition(":")[2] for column in whole["columns"][2:]]
    assert metrics == ["implicit_accuracy", "implicit_accuracy difference", "length", "seconds"]
    words = "Nothing judges the answers (no known reward, judge or reward model)"
    assert words in whole["caption"]
    assert words in verdict_box(out)


def test_without_anything_to_judge_by_length_is_shown_once(tmp_path):
    out = make_run(tmp_path, tasks=("controlled_dialogue",), methods=("dpo",), steps=2)
    without_metrics(out, *JUDGING, "implicit_accuracy")
    write_report(out)
    whole = json.loads(table(out, "main", "json"))
    assert [column["key"] for column in whole["columns"][2:]] == ["controlled_dialogue:length", "seconds"]
    assert "Nothing judges the answers" in whole["caption"]


def test_only_tasks_without_a_judge_are_named(tmp_path):
    out = make_run(tmp_path, methods=("dpo",), steps=2)
    for path in out.glob("cells/*summarization*/scores.json"):
        scores = read_json(path)
        write_json(path, scores | {"metrics": {k: v for k, v in scores["metrics"].items() if k not in JUDGING}})
    assert "Nothing judges the answers of controlled_summarization (no known" in table(out, "main", "md")
    assert "Nothing judges" not in table(make_run(tmp_path / "judged", methods=("dpo",), steps=2), "main", "md")


def test_a_lost_seed_is_said(run):
    assert "Fewer seeds than planned: ipo +SPO on controlled_dialogue (1 of 2)" in table(run, "main", "md")


def test_the_command_knows_every_table_and_its_help_names_them(run):
    command = get_command(app).commands["table"]
    said = {option.name: option.help for option in command.params}
    assert re.findall(r"\w+", said["name"].partition(":")[2].replace(" or ", " ")) == list(TABLES)
    assert re.findall(r"\w+", said["format"].replace(" or ", " ")) == list(FORMATS)
    for name in ("main", "ranking", "hyperparameters", "data"):
        shown = CliRunner().invoke(app, ["table", str(run), "--name", name])
        assert shown.exit_code == 0
        assert shown.stdout.strip() == table(run, name).strip()
    honest = CliRunner().invoke(app, ["table", str(run), "--bold", "undominated"])
    assert honest.stdout.strip() == table(run, bold="undominated").strip()
    assert honest.stdout.strip() != table(run).strip()


def test_unknown_table_and_format_are_named(run):
    with pytest.raises(InputError, match="did you mean 'main'"):
        table(run, "mian")
    with pytest.raises(InputError, match="did you mean 'tex'"):
        table(run, "main", "text")
    with pytest.raises(InputError, match=r"has no run\.json"):
        table(run / "tables")


# --- the whole -----------------------------------------------------------------------------------------------------------


def test_figures_are_png_svg_and_pdf(run):
    names = {path.stem for path in (run / "figures").iterdir()}
    assert names >= {"levels", "effects", "training-controlled_dialogue", "training-controlled_summarization"}
    for name in names:
        assert (run / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (run / "figures" / f"{name}.svg").read_text(encoding="utf-8")
        assert (run / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_rebuilding_gives_the_same_bytes(run):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    rebuild(run)
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert before == after


def test_a_run_without_spo_or_without_any_finished_cell_still_has_a_report(tmp_path):
    plain = make_run(tmp_path / "plain", methods=("dpo",), variants=(False,), seeds=(0,), steps=2)
    write_report(plain)
    assert "says nothing about SPO" in (plain / "report.html").read_text(encoding="utf-8")
    every = tuple(("controlled_dialogue", method, spo, 0) for method in ("sft", "dpo") for spo in (False, True))
    nothing = make_run(tmp_path / "nothing", tasks=("controlled_dialogue",), methods=("dpo",), seeds=(0,), steps=2, failed=every)
    write_report(nothing)
    assert list(read_jsonl(nothing / "metrics.jsonl")) == []
    assert table(nothing, "main", "md").count("dpo") == 2
