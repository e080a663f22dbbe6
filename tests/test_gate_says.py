"""What a gate says and advises: evaluation margins, remedies, names of metrics, tables of fine nights."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from gate_run import night, write_run

from spo_bench.errors import InputError
from spo_bench.files import read_json, read_jsonl, write_json, write_jsonl
from spo_bench.gate import accept, gate, junit, markdown
from spo_bench.gate.output import sentences
from spo_bench.report.pairing import changed_settings, match
from spo_bench.report.results import read_results

ROW = "{better: higher, retraining: 0.2, evaluation: 0.2}"


@pytest.fixture
def fixed(tmp_path):
    """Three arms that keep their policies, and the reference they became with the margins that accept writes."""
    values = night(0, arms=3)
    run = write_run(tmp_path / "first", values, policies="saved")
    accept(run, tmp_path / "reference", "x", "me")
    return values, run, tmp_path / "reference"


# --- margins of evaluation ------------------------------------------------------------------------------------------------


def test_a_lower_evaluation_of_the_same_policies_is_worse(fixed, tmp_path):
    """By 0.09 everywhere: far less than seeds differ by, but the same policies give the same answers with the same seeds."""
    values, run, reference = fixed
    margin = yaml.safe_load((reference / "gate.yaml").read_text())["metrics"]["true_reward"]
    assert (margin["evaluation"], margin["retraining"] > 0.09) == (0.02, True)
    lower = write_run(tmp_path / "run", {arm: one - 0.09 for arm, one in values.items()}, policies="saved")
    verdict = gate(lower, reference)
    assert (verdict.exit_code, verdict.counts["worse"]) == (1, 3)
    assert gate(run, reference).exit_code == 0


def test_margins_of_other_metrics_follow_their_spread(tmp_path):
    values = {arm: 10 * one for arm, one in night(0, arms=2).items()}
    found = accept(write_run(tmp_path / "run", values, metric="reward/rm"), tmp_path / "reference", "x", "me")
    spread = np.mean([row.std() for one in values.values() for row in one])
    assert found.margins.metrics["reward/rm"].evaluation == pytest.approx(0.05 * spread)


def test_the_largest_decline_is_said_on_a_fine_night(fixed, tmp_path):
    values, run, reference = fixed
    said = "true_reward, evaluation drift: identical to the reference in all 3 rows."
    assert said in sentences(gate(run, reference))
    moved = write_run(tmp_path / "run", {**values, "m1": values["m1"] - 0.004, "m2": values["m2"] + 0.1}, policies="saved")
    verdict = gate(moved, reference)
    assert verdict.exit_code == 0
    text = "\n".join(sentences(verdict))
    assert "largest decline 0.004, m1 on embedded / dialogue; 1 of 3 rows identical to the reference" in text
    assert verdict.record()["largest_decline"][0]["decline"] == pytest.approx(0.004)
    better = write_run(tmp_path / "better", {arm: one + 0.1 for arm, one in values.items()}, policies="saved")
    assert "no row declined" in "\n".join(sentences(gate(better, reference)))


# --- one remedy a cause ---------------------------------------------------------------------------------------------------


def test_remedies_fit_their_causes(fixed, tmp_path):
    values, _, reference = fixed
    place = tmp_path / "run"
    accepting = f"spo-bench gate {place} --reference {reference} --accept --why TEXT"

    run = write_run(place, values, policies="saved", ids="other{}")
    assert gate(run, reference).remedies == [
        f"use the reference's limits, data and judge, or accept the run if the change is meant: {accepting}"
    ]
    write_json(run / "run.json", {**read_json(run / "run.json"), "status": "interrupted", "finished": None})
    assert gate(run, reference).remedies == ["the run is not finished: run the same command again: what is finished is kept"]
    (without,) = gate(run, tmp_path / "none").remedies
    assert without.startswith("finish the run")
    assert without.endswith(f"spo-bench gate {place} --reference {tmp_path / 'none'} --accept --why TEXT")

    run = write_run(place, values, policies="saved", failed={("m0", 1): "killed"})
    write_jsonl(run / "cells.jsonl", [row for row in read_jsonl(run / "cells.jsonl") if row["id"] != "m2-s0"])
    failed, lost = gate(run, reference).remedies
    assert failed.startswith("remove the reason why cells failed")
    assert lost == f"let run and reference hold the same cells and metrics, or accept the run if the change is meant: {accepting}"

    run = write_run(place, {**values, "m0": np.full_like(values["m0"], np.nan)}, policies="saved")
    (invalid,) = gate(run, reference).remedies
    assert "invalid" in invalid
    assert gate(write_run(place, values, policies="saved"), reference).remedies == []


def test_a_run_s_own_directory_is_not_advised_as_a_place_to_accept_to(fixed, tmp_path):
    values, run, _ = fixed
    other = write_run(tmp_path / "other", values, ids="other{}")
    (remedy,) = gate(other, run).remedies
    assert "--reference DIR --accept" in remedy


# --- what is guarded ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("true_rewad", "did you mean 'true_reward'"),
        ("reward/*", "a metric of the reference, which has true_reward"),
    ],
)
def test_a_name_that_fits_nothing_is_refused(fixed, name, said):
    """By the gate and by accept, as it was typed, and without advice about specs."""
    _, run, reference = fixed
    (reference / "gate.yaml").write_text(f"schema_version: 1\nmetrics:\n  true_reward: {ROW}\n  {name}: {ROW}\n")
    for refusing in (lambda: gate(run, reference), lambda: accept(run, reference, "x", "me")):
        with pytest.raises(InputError) as raised:
            refusing()
        text = str(raised.value)
        assert f"'{name}'" in text
        assert said in text
        assert "docs/nightly.md" in raised.value.remedy


@pytest.mark.parametrize(
    "text", ["- 1\n", "", f"metrics:\n  true_reward: {ROW}\n", "schema_version: 1\nmetrics: {a: {better: up}}\n"]
)
def test_a_faulty_gate_yaml_is_no_spec(fixed, text):
    _, run, reference = fixed
    (reference / "gate.yaml").write_text(text)
    with pytest.raises(InputError) as raised:
        gate(run, reference)
    assert "docs/nightly.md" in str(raised.value)
    assert "presets" not in str(raised.value)
    assert "spec" not in raised.value.rule


def both_metrics(folder, values, judge):
    """Write a run with true rewards and a win rate."""
    run = write_run(folder, values, judge=judge)
    for path in run.glob("cells/*/scores.json"):
        scores = read_json(path)
        one = scores["metrics"]["true_reward"]
        write_json(path, {**scores, "metrics": {"true_reward": one, "win_rate_sft": one, "length": one}})
    return run


def test_a_swapped_judge_is_noticed(tmp_path):
    """accept guards a win rate beside the true reward, and says what it does not guard."""
    values = night(0, arms=2)
    found = accept(both_metrics(tmp_path / "first", values, {"kind": "gold"}), tmp_path / "reference", "x", "me")
    assert [*found.margins.metrics] == ["true_reward", "win_rate_sft"]
    assert found.unguarded == ["length"]
    judge = {"kind": "openai", "settings": {"model": "gpt-9", "n": 1}}
    run = both_metrics(tmp_path / "run", values, judge)
    verdict = gate(run, tmp_path / "reference")
    assert (verdict.exit_code, verdict.counts["fine"], verdict.counts["not comparable"]) == (3, 2, 2)
    assert {row.reason for row in verdict.not_fine} == {"another judge: gold → openai gpt-9"}
    assert (verdict.guarded, verdict.unguarded) == (["true_reward", "win_rate_sft"], ["length"])
    assert "Guarded: true_reward, win_rate_sft; measured, but judged by nothing: length." in sentences(verdict)
    assert any("settings null -> (model 'gpt-9', n 1)" in text for text in verdict.changed)


def test_built_in_margins_are_named(fixed):
    _, run, _ = fixed
    assert "true_reward 0.1 (retraining), 0.02 (evaluation)" in gate(run, run).margins


def test_a_run_without_hashes_is_judged_as_retrained(fixed):
    _, run, reference = fixed
    for path in run.glob("cells/*/provenance.json"):
        write_json(path, {key: value for key, value in read_json(path).items() if key != "policy"})
    verdict = gate(run, reference)
    assert "No hash of weights is recorded in the run: judged as retrained." in verdict.notes
    assert {row.family for row in verdict.rows} == {"retraining"}


def test_all_arms_of_a_method_are_named_together(tmp_path):
    """Two tasks make two arms a method; one of them alone is named by itself."""
    values = night(0, arms=3, seeds=1)

    def run(name, changed):
        out = write_run(tmp_path / name, values)
        rows = [*read_jsonl(out / "cells.jsonl")]
        write_jsonl(
            out / "cells.jsonl", [{**row, "method": "dpo" if row["id"] != "m2-s0" else "sft", "task": row["id"]} for row in rows]
        )
        for cell in changed:
            path = out / "cells" / cell / "spec.json"
            spec = read_json(path)
            spec["stages"]["train"]["config"]["settings"]["beta"] = 0.3
            write_json(path, spec)
        return read_results(out)

    first = run("first", [])
    (some,) = changed_settings(match(first, run("some", ["m0-s0", "m1-s0"])))
    assert some.endswith("(all dpo arms)")
    (one,) = changed_settings(match(first, run("one", ["m0-s0"])))
    assert one.endswith("(embedded / m0-s0 / dpo)")


# --- the tables of a fine night -------------------------------------------------------------------------------------------


def test_a_fine_night_has_a_table_and_numbers(fixed):
    values, run, reference = fixed
    verdict = gate(run, reference)
    text = markdown(verdict)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 3
    assert "one-sided 95 % bounds" in rows[0]
    for part in ("Arm", "Metric", "Reference", "Margin") if len(verdict.guarded) > 1 else ("Arm", "Reference", "Margin"):
        assert part in rows[0]
    mean = f"{values['m0'].mean():.4g}"
    assert rows[2].split(" | ")[:3] == ["| m0", mean, mean]
    assert "<details>" not in text
    many = replace(verdict, rows=[*verdict.rows] * 11)
    assert "<details><summary>33 fine rows</summary>" in markdown(many)
    cases = [*ElementTree.fromstring(junit(verdict)).iter("testcase")]
    assert len(cases) == 3
    for case in cases:
        said = case.findtext("system-out")
        assert "margin 0.02" in said
        assert "identical to the reference" in said
    assert f"reference {mean}; run {mean}; difference 0.0000" in cases[0].findtext("system-out")


def test_one_row_is_no_rows(tmp_path):
    run = write_run(tmp_path / "run", night(0, arms=1))
    accept(run, tmp_path / "reference", "x", "me")
    assert gate(run, tmp_path / "reference").estimands == ["evaluation drift: 1 row, estimand “these checkpoints”"]


def test_a_cell_without_its_folder_is_said_once(fixed):
    _, run, reference = fixed
    (run / "cells" / "m1-s1").rename(run / "gone")
    with pytest.raises(InputError, match="cell m1-s1 is listed as done, but its folder") as raised:
        gate(run, reference)
    assert str(raised.value).count("m1-s1") == 2  # the cell, and its folder
