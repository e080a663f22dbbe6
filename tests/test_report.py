"""The report, from real files of a synthetic run: contract, tables, figures, page."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from spo_bench.cli.main import app
from spo_bench.errors import InputError
from spo_bench.files import read_json, read_jsonl, write_json, write_jsonl
from spo_bench.report import TABLES, rebuild, table, write_report
from spo_bench.report.render import FORMATS, Column, Entry, Table, number, tex_escape, to_csv, to_html, to_json, to_md, to_tex
from spo_bench.stats import compare_matrix, interval

EVIL = "<script>alert('x')</script> & \"quotes\" | _pipe_ \\ $5 100% #1"
STEP_KEYS = ["step", "loss", "alignment_loss", "degree_loss", "degree_accuracy", "reward_accuracy", "margin", "chosen_logratio"]
STEP_KEYS += ["rejected_logratio", "grad_norm", "learning_rate", "tokens", "pairs", "seconds", "peak_memory"]


def make_run(
    out: Path,
    *,
    tasks=("controlled_dialogue", "controlled_summarization"),
    methods=("dpo", "ipo", "simpo"),
    variants=(False, {"label": "+SPO", "gamma": 0.1, "control": None}),
    seeds=(0, 1),
    prompts=24,
    steps=40,
    effect=0.05,
    model="embedded",
    failed=(),
    overlap=0,
) -> Path:
    """Write the files a run leaves before its report: every baseline, its SPO variants and an SFT cell a task and seed."""
    cells, rng = [], np.random.default_rng(7)
    for task in tasks:
        ids = [f"{task[:14]}-{i:03d}" for i in range(prompts)]
        hardness = rng.normal(0, 0.15, prompts)
        for seed in seeds:
            for method, spo in [("sft", False), *((m, v) for m in methods for v in variants)]:
                label = spo["label"] if spo else ""
                name = "-".join(part for part in (model, task, method, label, f"s{seed}") if part)
                cell = {
                    "id": re.sub(r"[^\w.-]+", "_", name),
                    "model": model,
                    "task": task,
                    "method": method,
                    "spo": spo,
                    "seed": seed,
                    "status": "done",
                    "reason": None,
                    "keys": {"train": "0" * 8},
                    "axes": {},
                }
                if (task, method, bool(spo), seed) in failed:
                    cell |= {"status": "failed", "reason": f"loss is NaN at step 12 {EVIL}"}
                cells.append(cell)
                if cell["status"] == "done":
                    level = 0.6 if method == "sft" else 0.8 + (effect if spo else 0) + rng.normal(0, 0.01)
                    reward = np.clip(level + hardness + rng.normal(0, 0.08, prompts), 0, 1)
                    write_cell(out / "cells" / cell["id"], cell, ids, reward, rng, steps)
    counts = {"rows": 100, "kept": 98, "dropped": 2, "distinct_prompts": 97, "truncated_chosen": 3, "truncated_rejected": 4}
    audit = {
        "splits": {split: {**counts, "boundary_merges": 0} for split in ("train", "heldout", "eval", "sft")},
        "dropped_rows": [{"split": "train", "number": 17, "id": "row-17", "reason": f"chosen is empty {EVIL}"}],
        "overlap": {"eval": overlap, "heldout": 0},
    }
    write_json(
        out / "run.json",
        {
            "schema_version": 1,
            "spec": {"name": "quick <demo>", "models": [model], "seeds": list(seeds), "judge": "gold"},
            "status": "failed" if failed else "done",
            "provenance": {
                "git": {"commit": "abc", "dirty": False},
                "packages": {"torch": "2.13.0"},
                "hardware": {"device": "cpu"},
                "command": ["spo-bench", "run", "--matrix", "quick"],
            },
            "started": "2026-01-01T10:00:00+00:00",
            "finished": "2026-01-01T10:04:10+00:00",
            "seconds": 250.4,
            "audits": {f"{model}/{task}": {"task": task, **audit} for task in tasks},
            "tokens": {"embedded": 1},
        },
    )
    write_jsonl(out / "cells.jsonl", cells)
    return out


def write_cell(directory, cell, ids, reward, rng, steps):
    """Write one finished cell's files."""
    trained, spo = cell["method"] != "sft", bool(cell["spo"])

    def metric(values, higher=True, unit="prompt"):
        values = [None if value is None else float(value) for value in values]
        return {"ids": ids, "values": values, "clusters": None, "higher_is_better": higher, "unit": unit}

    metrics = {
        "true_reward": metric(reward),
        "length": metric(rng.integers(8, 30, len(ids)), higher=False),
        "distinct_2": metric(rng.uniform(0.5, 1, len(ids))),
        "win_rate_chosen": metric([None, *rng.choice([0, 0.5, 1], len(ids) - 1)]),
    }
    scalars = {}
    if trained:
        metrics["win_rate_sft"] = metric(rng.choice([0, 0.5, 1], len(ids), p=[0.1, 0.2, 0.7]))
        metrics["implicit_accuracy"] = metric(rng.integers(0, 2, len(ids)), unit="pair")
        scalars = {
            "seconds": {"value": 3.0 + spo, "higher_is_better": False},
            "pairs_per_second": {"value": 300.5 - 100 * spo, "higher_is_better": True},
            "peak_memory": {"value": 2.5e9, "higher_is_better": False},
        }
    if spo:
        metrics["head_to_head"] = metric(rng.choice([0, 0.5, 1], len(ids), p=[0.2, 0.3, 0.5]))
        metrics["degree_accuracy"] = metric(rng.integers(0, 2, len(ids)))
    write_json(directory / "scores.json", {"metrics": metrics, "scalars": scalars})
    for name in ("spec.json", "provenance.json"):
        write_json(directory / name, {})
    samples = [
        {
            "id": one,
            "prompt": f"Question {i}: what does the fern need, and where does it grow? {EVIL if i < 3 else ''}",
            "answer": f"{cell['method']}: the fern needs shade and wet ground, and grows by the river. {EVIL if i < 3 else ''}",
            "finish": "length" if i % 10 == 9 else "stop",
            "tokens": 12 + i % 5,
            "chosen": "It needs shade.",
        }
        for i, one in enumerate(ids)
    ]
    write_jsonl(directory / "samples.jsonl", samples)
    opponent = "baseline" if spo else "chosen"
    judged = [
        {"id": one, "opponent": opponent, "score": score, "outcome": outcome, "orders": [], "reason": "because"}
        for one, (score, outcome) in zip(ids, [(None, "invalid"), (1.0, "a"), (0.5, "tie"), (0.0, "b")] * len(ids))
    ]
    write_jsonl(directory / "judgments.jsonl", judged)
    if trained:
        falling = np.exp(-np.arange(steps) / 15)
        noise = rng.normal(0, 0.05, (steps, 3))
        rows = []
        for i in range(steps):
            row = dict.fromkeys(STEP_KEYS, 0.0) | {"step": i, "loss": 0.69 * falling[i] + noise[i, 0]}
            row |= {"alignment_loss": row["loss"], "reward_accuracy": float(np.clip(1 - falling[i] / 2 + noise[i, 1], 0, 1))}
            row |= {"degree_accuracy": float(np.clip(0.9 - 0.6 * falling[i] + noise[i, 2], 0, 1)) if spo else None}
            if spo:
                row["degree_accuracy_bins"] = {"16-32": [3 if i < 30 else 1, 4], "0-16": [2, 2]}
            rows.append(row)
        write_jsonl(directory / "train.jsonl", rows)
    (directory / "DONE").write_text("")


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
    for name in ("main", "training", "effects", "cost", "degree", "audit", "data"):
        for ending in FORMATS:
            text = (run / "tables" / f"{name}.{ending}").read_text(encoding="utf-8")
            assert text == table(run, name, ending)
            assert "nan" not in text.lower().replace("loss is nan", "")
        rows = list(csv.reader(io.StringIO(table(run, name, "csv"))))
        assert len({len(row) for row in rows}) == 1
        assert len(rows) > 1


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
    assert line == "| dpo +SPO | -- | -- | -- |"
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
    metrics = [column["key"].partition(":")[2] for column in whole["columns"][2:]]
    assert metrics == ["implicit_accuracy", "implicit_accuracy difference", "length"]
    words = "Nothing judges the answers (no known reward, judge or reward model)"
    assert words in whole["caption"]
    assert words in verdict_box(out)


def test_without_anything_to_judge_by_length_is_shown_once(tmp_path):
    out = make_run(tmp_path, tasks=("controlled_dialogue",), methods=("dpo",), steps=2)
    without_metrics(out, *JUDGING, "implicit_accuracy")
    write_report(out)
    whole = json.loads(table(out, "main", "json"))
    assert [column["key"] for column in whole["columns"][2:]] == ["controlled_dialogue:length"]
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


def small_table():
    return Table(
        "x",
        EVIL,
        [Column("method", "Method_α", numeric=False), Column("r", "Reward", "Task #1", "up")],
        [
            [Entry("=1+1", "=1+1"), Entry(0.1234567890123, "0.123", "[-0.1, +0.2]", low=-0.1, mark="best", significant=True)],
            [Entry("@b|c", "@b|c"), Entry(-0.5, "-0.500", mark="second")],
            [Entry("ok", "ok"), Entry()],
        ],
        ["a", "a", "b"],
        ["One note."],
    )


def test_csv_keeps_precision_and_disarms_formulas():
    rows = list(csv.reader(io.StringIO(to_csv(small_table()))))
    assert rows[0] == ["method", "Task #1:r", "Task #1:r:low"]
    assert rows[1:] == [["'=1+1", "0.1234567890123", "-0.1"], ["'@b|c", "-0.5", ""], ["ok", "", ""]]


def test_markdown_escapes_pipes_and_marks():
    text = to_md(small_table())
    assert r"| @b\|c | _-0.500_ |" in text
    assert "**0.123†**" in text
    assert "| ok | -- |" in text


def test_tex_escapes_everything_and_rules_are_booktabs():
    text = to_tex(small_table())
    assert r"\multicolumn{1}{c}{Task \#1}" in text
    assert r"\textbf{0.123}$^{\dagger}$ {\scriptsize {[}$-$0.1, $+$0.2{]}}" in text
    assert r"\underline{$-$0.500}" in text
    assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\cmidrule")] == [1, 2, 1, 1]
    assert tex_escape("a_b%&#${}~^\\") == (r"a\_b\%\&\#\$\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}")


@pytest.mark.skipif(not (shutil.which("pdflatex") and shutil.which("kpsewhich")), reason="no pdflatex here")
def test_tex_compiles(run, tmp_path):
    if subprocess.run(["kpsewhich", "booktabs.sty"], capture_output=True, check=False).returncode:
        pytest.skip("pdflatex has no booktabs here")
    tables = "\n".join(table(run, name, "tex") for name in ("main", "effects", "data")) + to_tex(small_table())
    packages = r"\documentclass{article}\usepackage[utf8]{inputenc}\usepackage{textcomp,booktabs}"
    source = packages + r"\begin{document}" + tables + r"\end{document}"
    (tmp_path / "t.tex").write_text(source, encoding="utf-8")
    done = subprocess.run(["pdflatex", "-halt-on-error", "t.tex"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_html_escapes_text_and_json_keeps_numbers():
    text = to_html(small_table())
    assert "<script>" not in text
    assert 'data-v="0.1234567890123"' in text
    entries = json.loads(to_json(small_table()))["rows"][0]["entries"]
    assert entries["Task #1:r"] == {
        "value": 0.1234567890123,
        "text": "0.123 [-0.1, +0.2]",
        "low": -0.1,
        "significant": True,
        "mark": "best",
    }


def test_number_has_no_negative_zero():
    assert [number(-0.0001, 2), number(-0.0001, 2, sign=True)] == ["0.00", "0.00"]
    assert [number(None, 2), number(math.nan, 1)] == ["--", "--"]
    assert number(1234.5, 1) == "1,234.5"


def test_the_command_knows_every_table_and_its_help_names_them(run):
    command = get_command(app).commands["table"]
    said = {option.name: option.help for option in command.params}
    assert re.findall(r"\w+", said["name"].partition(":")[2].replace(" or ", " ")) == list(TABLES)
    assert re.findall(r"\w+", said["format"].replace(" or ", " ")) == list(FORMATS)
    for name in TABLES:
        shown = CliRunner().invoke(app, ["table", str(run), "--name", name])
        assert shown.exit_code == 0
        assert shown.stdout.strip() == table(run, name).strip()


def test_unknown_table_and_format_are_named(run):
    with pytest.raises(InputError, match="did you mean 'main'"):
        table(run, "mian")
    with pytest.raises(InputError, match="did you mean 'tex'"):
        table(run, "main", "text")
    with pytest.raises(InputError, match=r"has no run\.json"):
        table(run / "tables")


# --- page and figures ---------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Collects tags that are still open, scripts, and addresses."""

    VOID = frozenset(["meta", "link", "img", "br", "hr", "input"])

    def __init__(self):
        super().__init__()
        self.open, self.scripts, self.addresses, self.ids = [], 0, [], []

    def handle_starttag(self, tag, attributes):
        self.scripts += tag == "script"
        self.addresses += [value for key, value in attributes if key in ("src", "href")]
        self.ids += [value for key, value in attributes if key == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_one_well_formed_file_with_everything_escaped(run):
    page = Page()
    text = (run / "report.html").read_text(encoding="utf-8")
    page.feed(text)
    assert page.open == []
    assert page.scripts == 1
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    for words in ("quick &lt;demo&gt;", "loss is NaN at step 12", "chosen is empty", "--matrix quick", "took 4 min 10 s"):
        assert words in text


def test_page_shows_answers_side_by_side_spread_over_the_range(run):
    text = (run / "report.html").read_text(encoding="utf-8")
    assert text.count('class="gallery"') == 6
    assert text.count('class="side base"') == text.count('class="side spo"') == 6 * 20
    assert "20 of 24 prompts" in text
    assert "no valid verdict" in text


@pytest.mark.parametrize(
    ("effect", "words"), [(0.2, "is significantly better in 3 of 3"), (-0.2, "worse in 3 of 3"), (0, "in none of 3")]
)
def test_verdict_says_what_the_comparisons_say(tmp_path, effect, words):
    out = make_run(tmp_path, tasks=("controlled_dialogue",), effect=effect, steps=2, prompts=40)
    write_report(out)
    sentence = re.search(r'aria-label="Verdict">\s*<p>(.*?)</p>', (out / "report.html").read_text(encoding="utf-8")).group(1)
    assert words in sentence


def test_controls_do_not_count_as_spo(tmp_path):
    control = {"label": "+SPO[gamma_zero]", "control": "gamma_zero"}
    out = make_run(tmp_path, methods=("dpo",), variants=(False, {"label": "+SPO"}, control), effect=0.2, steps=2)
    write_report(out)
    text = (out / "report.html").read_text(encoding="utf-8")
    assert "better in 2 of 2" in text
    assert "Controls: 2 of 2 differ" in text
    assert {row["variant"] for row in comparisons(out, kind="spo")} == {"dpo +SPO", "dpo +SPO[gamma_zero]"}


def test_figures_are_png_and_svg(run):
    names = {path.stem for path in (run / "figures").iterdir()}
    assert names == {"levels", "effects", "training-controlled_dialogue", "training-controlled_summarization"}
    for name in names:
        assert (run / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (run / "figures" / f"{name}.svg").read_text(encoding="utf-8")


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
