"""The gate's decisions: unchanged nights, declines, and everything that must not pass because it is not there."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from gate_run import contents, night, write_run

from spo_bench.errors import InputError
from spo_bench.files import read_json, read_jsonl, write_json, write_jsonl
from spo_bench.gate import accept, gate
from spo_bench.gate.nights import Noise, resolutions


def accepted(folder: Path, values, gate_yaml: str = "", **options) -> Path:
    """Accept a run of these values as the reference in ``folder / reference``."""
    run, reference = write_run(folder / "first", values, **options), folder / "reference"
    if gate_yaml:
        reference.mkdir()
        (reference / "gate.yaml").write_text(gate_yaml)
    accept(run, reference, "first", "me")
    return reference


def margins(metric: str = "true_reward", better: str = "higher", margin: float = 0.2) -> str:
    row = f"{{better: {better}, retraining: {margin}, evaluation: {margin}}}"
    return f"schema_version: 1\nmetrics:\n  {metric}: {row}\n"


def outcomes(verdict) -> dict[str, str]:
    return {f"{row.arm}{'' if row.seed is None else f' s{row.seed}'}": row.outcome for row in verdict.rows}


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A reference of three arms, with a margin of 0.2."""
    folder = tmp_path_factory.mktemp("three")
    return accepted(folder, night(0, arms=3), margins()), night(1, arms=3), contents(folder / "reference")


def test_unchanged_nights_pass(tmp_path):
    """24 retrained rows, 3 seeds of sd .03, 200 prompts, margins as accept recommends them: those that 99 % of such nights pass
    by its simulation from the reference's own noise. Of 40 nights at most 3 may end otherwise, and none as worse.
    """
    reference = accepted(tmp_path, night(0, arms=24))
    codes = []
    for number in range(1, 41):
        verdict = gate(write_run(tmp_path / "night", night(number, arms=24)), reference)
        assert len(verdict.rows) == 24
        assert {row.family for row in verdict.rows} == {"retraining"}
        codes.append(verdict.exit_code)
    assert codes.count(1) == 0
    assert 40 - codes.count(0) <= 3


def test_resolution_is_what_unchanged_nights_need():
    """The smallest margin at which 95 % of nights pass, found by gating 200 nights drawn as the reference, is what accept prints."""
    from spo_bench.stats import non_inferiority

    def rows(number):
        return list(night(number, arms=8, prompts=100).values())

    reference = rows(0)
    (printed,) = [
        one.smallest
        for one in resolutions({"x": [Noise.of(values, None, 3) for values in reference]})
        if one.family == "retraining"
    ]
    needed = [max(one.bound for one in non_inferiority(reference, rows(number), [1.0] * 8)) for number in range(1, 201)]
    assert printed == pytest.approx(np.quantile(needed, 0.95), rel=0.2)


def test_a_decline_is_worse_and_says_what_was_changed(three, tmp_path):
    reference, values, _ = three
    run = write_run(tmp_path / "run", {**values, "m1": values["m1"] - 0.6}, train={"learning_rate": 0.0})
    verdict = gate(run, reference)
    assert verdict.exit_code == 1
    assert outcomes(verdict) == {"m0": "fine", "m1": "worse", "m2": "fine"}
    (row,) = verdict.not_fine
    assert row.diff == pytest.approx(row.run - row.reference)
    assert row.estimand == "method"
    assert row.diff < -0.5
    assert "declined by" in row.reason
    assert verdict.changed == ["train.settings.learning_rate 0.0001 -> 0.0 (all arms)"]


def test_an_improvement_is_fine(three, tmp_path):
    reference, values, _ = three
    assert gate(write_run(tmp_path / "run", {arm: one + 0.6 for arm, one in values.items()}), reference).exit_code == 0


def test_lower_is_better(tmp_path):
    """The same rise is a decline of a metric of which less is better."""
    values = night(1, arms=3)
    reference = accepted(tmp_path, night(0, arms=3), margins("cost", "lower"), metric="cost", higher=False)
    for shift, code in ((0.6, 1), (-0.6, 0)):
        run = write_run(tmp_path / "run", {arm: one + shift for arm, one in values.items()}, metric="cost", higher=False)
        assert gate(run, reference).exit_code == code


def test_a_decline_inside_the_noise_is_undecided(three, tmp_path):
    reference, values, _ = three
    verdict = gate(write_run(tmp_path / "run", {**values, "m0": values["m0"] - 0.12}), reference)
    assert verdict.exit_code == 3
    (row,) = verdict.not_fine
    assert row.outcome == "undecided"
    assert "cannot be excluded" in row.reason


def test_the_same_policies_are_evaluation_drift(tmp_path):
    """Policies that are the same bit for bit: exact ties are fine at any margin; a small shift of all answers is seen."""
    values = night(0, arms=2, rest_sd=0.05)
    reference = accepted(tmp_path, values, margins(margin=0.02), policies="saved")
    same = gate(write_run(tmp_path / "same", values, policies="saved"), reference)
    assert same.exit_code == 0
    assert {(row.family, row.estimand, row.diff, row.reach) for row in same.rows} == {("evaluation", "checkpoints", 0.0, 0.0)}
    lower = gate(write_run(tmp_path / "lower", {arm: one - 0.03 for arm, one in values.items()}, policies="saved"), reference)
    assert lower.exit_code == 1
    assert {row.family for row in lower.rows} == {"evaluation"}


def test_families_are_corrected_apart(tmp_path):
    """Two arms keep their policies and two do not: Holm counts two rows in each family."""
    values, other = night(0, arms=4), night(1, arms=4)
    reference = accepted(tmp_path, values, margins(), policies="saved")
    run = write_run(tmp_path / "run", {arm: (values if arm in ("m0", "m1") else other)[arm] for arm in values}, policies="saved")
    for arm in ("m2", "m3"):
        for seed in range(3):
            path = run / "cells" / f"{arm}-s{seed}" / "provenance.json"
            write_json(path, {**read_json(path), "policy": f"other {arm} {seed}"})
    rows = {row.arm: row for row in gate(run, reference).rows}
    assert [rows[arm].family for arm in values] == ["evaluation", "evaluation", "retraining", "retraining"]
    raw = sorted(rows[arm].p for arm in ("m2", "m3"))
    assert sorted(rows[arm].p_adjusted for arm in ("m2", "m3")) == pytest.approx(
        [min(1, 2 * raw[0]), max(raw[1], min(1, 2 * raw[0]))]
    )


def test_one_retrained_seed_is_judged_as_these_checkpoints(tmp_path):
    reference = accepted(tmp_path, night(0, arms=2, seeds=1), margins())
    values = night(1, arms=2, seeds=1)
    verdict = gate(write_run(tmp_path / "run", {**values, "m0": values["m0"] - 1}), reference)
    assert outcomes(verdict) == {"m0": "worse", "m1": "fine"}
    assert {row.estimand for row in verdict.rows} == {"checkpoints"}
    assert all("noise of retraining is not in it" in row.notes[0] for row in verdict.rows)


# --- nothing passes by missing --------------------------------------------------------------------------------------------


def test_vanished_and_failed_cells_are_missing(three, tmp_path):
    reference, values, _ = three
    run = write_run(tmp_path / "run", values, failed={("m0", 1): "loss is NaN at step 3"})
    write_jsonl(run / "cells.jsonl", [row for row in read_jsonl(run / "cells.jsonl") if row["id"] != "m2-s0"])
    verdict = gate(run, reference)
    assert verdict.exit_code == 3
    found = {(row.arm, row.seed): row.reason for row in verdict.rows if row.outcome == "missing"}
    assert set(found) == {("m0", 1), ("m2", 0)}
    assert "loss is NaN at step 3" in found["m0", 1]
    assert found["m2", 0] == "the cell is not in the run"
    # The seeds that are there are still judged.
    assert {row.n_seeds for row in verdict.rows if row.judged} == {2, 3}


def test_a_decline_beside_a_missing_cell_is_worse(three, tmp_path):
    reference, values, _ = three
    run = write_run(tmp_path / "run", {**values, "m1": values["m1"] - 0.6}, failed={("m0", 1): "killed"})
    assert gate(run, reference).exit_code == 1


def test_a_missing_metric_is_missing(three, tmp_path):
    reference, values, _ = three
    run = write_run(tmp_path / "run", values)
    for seed in range(3):
        write_json(run / "cells" / f"m1-s{seed}" / "scores.json", {"metrics": {}})
    verdict = gate(run, reference)
    assert verdict.exit_code == 3
    assert outcomes(verdict) == {"m0": "fine", "m1": "missing", "m2": "fine"}


def test_a_name_that_only_the_run_has_is_missing(tmp_path):
    """The reference was accepted before it was guarded."""
    values = night(0, arms=2)
    reference = accepted(tmp_path, values)
    text = (reference / "gate.yaml").read_text()
    (reference / "gate.yaml").write_text(text + "  rouge_l: {better: higher, retraining: 0.1, evaluation: 0.1}\n")
    run = write_run(tmp_path / "run", values)
    for path in run.glob("cells/*/scores.json"):
        scores = read_json(path)
        write_json(path, {**scores, "metrics": {**scores["metrics"], "rouge_l": scores["metrics"]["true_reward"]}})
    verdict = gate(run, reference)
    assert verdict.exit_code == 3
    assert [(row.metric, row.outcome) for row in verdict.not_fine] == [("rouge_l", "missing")]
    assert verdict.remedies[0].endswith("--accept --why TEXT")


@pytest.mark.parametrize("status", ["running", "interrupted"])
def test_an_unfinished_run_has_no_cells(three, tmp_path, status):
    """Cells that are listed are those of an earlier run in the same directory."""
    reference, values, _ = three
    run = write_run(tmp_path / "run", values)
    write_json(run / "run.json", {**read_json(run / "run.json"), "status": status, "finished": None})
    verdict = gate(run, reference)
    assert verdict.exit_code == 3
    assert verdict.counts["missing"] == len(verdict.rows) == 9
    assert status in verdict.rows[0].reason
    (run / "cells.jsonl").unlink()
    assert gate(run, reference).exit_code == 3


def test_without_a_reference_nothing_is_fine(tmp_path):
    run = write_run(tmp_path / "run", night(0, arms=1))
    for place in (tmp_path / "none", tmp_path):
        verdict = gate(run, place)
        assert (verdict.exit_code, verdict.counts["missing"]) == (3, 1)
        assert verdict.remedies == [f"accept a first reference: spo-bench gate {run} --reference {place} --accept --why TEXT"]


def test_no_judged_row_is_not_fine(tmp_path):
    """A reference whose only cell failed: nothing is missing from the run, and nothing was tested."""
    reference = write_run(tmp_path / "plain", night(0, arms=1, seeds=1), failed={("m0", 0): "killed"})
    verdict = gate(write_run(tmp_path / "run", night(0, arms=1, seeds=1)), reference)
    assert (verdict.exit_code, verdict.counts["missing"]) == (3, 1)


def test_only_invalid_values_are_not_comparable(three, tmp_path):
    reference, values, _ = three
    verdict = gate(write_run(tmp_path / "run", {**values, "m0": np.full_like(values["m0"], math.nan)}), reference)
    assert outcomes(verdict) == {"m0": "not comparable", "m1": "fine", "m2": "fine"}
    assert verdict.exit_code == 3


def test_new_arms_and_seeds_decide_nothing(three, tmp_path):
    reference, values, _ = three
    more = {arm: np.vstack([one, one[:1]]) for arm, one in values.items()}
    verdict = gate(write_run(tmp_path / "run", {**more, "extra": values["m0"] - 5}), reference)
    assert verdict.exit_code == 0
    assert "embedded / dialogue / extra" in verdict.new
    assert "embedded / dialogue / m0, seed 3" in verdict.new


# --- what cannot be compared ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "changed", "said"),
    [
        (
            "win_rate_sft",
            {"judge": {"kind": "openai", "settings": {"model": "judge-2026-02-02"}}},
            "another judge: openai judge-2026-01-01 → openai judge-2026-02-02",
        ),
        ("win_rate_sft", {"judge": {"kind": "gold"}}, "another judge: openai judge-2026-01-01 → gold"),
        ("reward/rm", {"reward_model": "bb"}, "another reward model"),
        ("true_reward", {"ids": "q{:03d}"}, "other prompts: 200 of the reference's 200"),
        ("true_reward", {"prompt": "Another question {}?"}, "with another text behind their id"),
        ("true_reward", {"prompt": "Another question {}?", "texts": "samples"}, "with another text behind their id"),
        ("win_rate_chosen", {"prompt": "Another question {}?"}, "with another text behind their id"),
    ],
)
def test_not_comparable(tmp_path, metric, changed, said):
    """Even a large decline cannot be judged, and the reason is said; other metrics' measures do not matter."""
    values = night(0, arms=2)
    reference = accepted(tmp_path, values, margins(metric if "/" not in metric else "reward/*"), metric=metric)
    assert gate(write_run(tmp_path / "same", values, metric=metric), reference).exit_code == 0
    lower = {arm: one - 0.6 for arm, one in values.items()}
    verdict = gate(write_run(tmp_path / "run", lower, metric=metric, **changed), reference)
    assert verdict.exit_code == 3
    assert {row.outcome for row in verdict.rows} == {"not comparable"}
    assert said in verdict.rows[0].reason
    if changed.keys() & {"judge", "reward_model"}:
        own = tmp_path / "own"
        assert gate(write_run(own / "run", values, **changed), accepted(own, values)).exit_code == 0


def test_further_prompts_do_not_matter(three, tmp_path):
    reference, values, _ = three
    more = {arm: np.hstack([one, one[:, :50] - 5]) for arm, one in values.items()}
    verdict = gate(write_run(tmp_path / "run", more), reference)
    assert verdict.exit_code == 0
    assert {row.n_prompts for row in verdict.rows} == {200}
    assert "on the reference's 200 prompts of the run's 250" in verdict.rows[0].notes


def test_a_contradicting_direction_is_refused(tmp_path):
    reference = accepted(tmp_path, night(0, arms=1))
    (reference / "gate.yaml").write_text(margins(better="lower"))
    with pytest.raises(InputError, match="better: lower"):
        gate(tmp_path / "first", reference)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (margins().replace("retraining", "retrainig"), "did you mean 'retraining'"),
        (margins() + "confidnce: 0.9\n", "did you mean 'confidence'"),
        (margins(margin=0), "greater than 0"),
        (margins(margin=-0.1), "greater than 0"),
        (margins(better="up"), "'higher'"),
        (margins().replace("1", "2", 1), "schema_version"),
        ("schema_version: 1\nmetrics: {}\n", "metrics"),
        (margins() + "confidence: 0.4\n", "0.5"),
        ("- 1\n", "mapping"),
    ],
)
def test_a_faulty_gate_yaml_is_refused(tmp_path, text, said):
    reference = accepted(tmp_path, night(0, arms=1))
    (reference / "gate.yaml").write_text(text)
    with pytest.raises(InputError, match=r"gate\.yaml") as raised:
        gate(tmp_path / "first", reference)
    assert said in str(raised.value)


def test_a_plain_run_is_a_reference_with_built_in_margins(tmp_path):
    plain = write_run(tmp_path / "plain", night(0, arms=2, rest_sd=0.1, seed_sd=0.0))
    verdict = gate(write_run(tmp_path / "run", night(1, arms=2, rest_sd=0.1, seed_sd=0.0)), plain)
    assert verdict.exit_code == 0
    assert "built-in" in verdict.margins
    assert {row.margin for row in verdict.rows} == {0.1}


def test_gating_leaves_the_reference_as_it_is(three):
    reference, _, before = three
    assert contents(reference) == before
    assert not [path for path in reference.parent.iterdir() if path.name.startswith(".")]


def test_the_record_is_json_without_nan(three, tmp_path):
    reference, values, _ = three
    verdict = gate(write_run(tmp_path / "run", values, failed={("m0", 1): "killed"}), reference)
    record = json.loads(json.dumps(verdict.record(), allow_nan=False))
    assert record["exit_code"] == 3
    assert record["counts"] == {"worse": 0, "not comparable": 0, "missing": 1, "undecided": 0, "fine": 3}
    assert record["estimands"] == ["retraining drift: 3 rows, estimand “the method”"]
    assert record["smallest_decline"][0]["decline"] == pytest.approx(max(row.reach for row in verdict.rows if row.judged))
    shutil.rmtree(tmp_path / "run")
