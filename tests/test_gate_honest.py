"""What must not pass a gate, be lost by it, or look like a regression: invalid values, broken files, interrupted accepts."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from gate_run import contents, night, write_run
from test_gate import accepted, margins, outcomes
from test_gate_accept import spo_bench

from spo_bench.errors import InputError
from spo_bench.files import read_json, read_jsonl, write_json, write_jsonl
from spo_bench.gate import accept, gate, markdown
from spo_bench.gate import reference as accepting
from spo_bench.gate.margins import built_in, margins_text, read_margins
from spo_bench.report.pairing import arms
from spo_bench.report.results import read_results


def edit(run: Path, name: str, change, cells: str = "*") -> None:
    """Change a JSON file of some cells in place."""
    for path in run.glob(f"cells/{cells}/{name}.json"):
        content = read_json(path)
        change(content)
        write_json(path, content)


# --- values that are not there ------------------------------------------------------------------------------------------


def test_values_that_became_invalid_are_not_fine(tmp_path):
    """170 of 200 answers without a value: what is left ties, and may be what went well."""
    values = night(0, arms=2)
    reference = accepted(tmp_path, values, margins())
    lost = {**values, "m0": values["m0"].copy()}
    lost["m0"][:, :170] = np.nan
    verdict = gate(write_run(tmp_path / "run", lost), reference)
    assert outcomes(verdict) == {"m0": "not comparable", "m1": "fine"}
    assert verdict.not_fine[0].reason == "510 of 600 values of the reference are invalid in the run"
    assert verdict.exit_code == 3


def test_two_valid_prompts_that_tie_are_not_fine(tmp_path):
    values = night(0, arms=1, prompts=50)
    reference = accepted(tmp_path, values, margins())
    two = values["m0"].copy()
    two[:, 2:] = np.nan
    run = write_run(tmp_path / "run", {"m0": two})
    assert outcomes(gate(run, reference)) == {"m0": "not comparable"}
    with (reference / "gate.yaml").open("a") as file:
        file.write("max_invalid: 1.0\n")
    (row,) = gate(run, reference).rows
    assert (row.outcome, row.reason) == ("undecided", "too few prompts: 2 that are valid on both sides, of at least 5")


@pytest.mark.parametrize(("prompts", "outcome"), [(1, "undecided"), (4, "undecided"), (5, "fine")])
def test_a_few_prompts_decide_nothing(tmp_path, prompts, outcome):
    run = write_run(tmp_path / "run", night(0, arms=1, prompts=prompts))
    (row,) = gate(run, run).rows
    assert row.outcome == outcome
    assert "nan" not in row.reason
    assert (row.reason == "one prompt cannot be tested") == (prompts == 1)


def test_a_few_invalid_values_are_named_and_their_share_is_a_setting(tmp_path):
    """6 of 600 values are 1 %: fine by the built-in 5 %, and said also where all is fine; too many where 0 are let pass."""
    values = night(0, arms=2)
    reference = accepted(tmp_path, values, margins())
    values["m1"][:, :2] = np.nan
    run = write_run(tmp_path / "run", values)
    verdict = gate(run, reference)
    assert verdict.exit_code == 0
    assert "6 of 600 values are invalid in the run and left out" in verdict.rows[1].notes
    said = "invalid in the run and left out: 6 of 600 values of one row, at most 1.0% (dialogue / m1 / true_reward)"
    assert said in markdown(verdict)
    assert said in " ".join(spo_bench("gate", run, "--reference", reference, cwd=tmp_path).stdout.split())
    with (reference / "gate.yaml").open("a") as file:
        file.write("max_invalid: 0\n")
    assert outcomes(gate(run, reference)) == {"m0": "fine", "m1": "not comparable"}
    assert "max_invalid" in margins_text(read_margins(reference))


def test_what_the_reference_has_not_either_is_not_lost(tmp_path):
    values = night(0, arms=1)
    values["m0"][:, :100] = np.nan
    reference = accepted(tmp_path, values, margins())
    (row,) = gate(tmp_path / "first", reference).rows
    assert (row.outcome, row.invalid, row.valid) == ("fine", 0, 300)
    assert "300 of 600 values are invalid in the reference and left out" in row.notes


def test_a_metric_of_one_seed_is_judged_as_these_checkpoints(tmp_path):
    values = night(0, arms=1)
    reference = accepted(tmp_path, values, margins())
    run = write_run(tmp_path / "run", night(1, arms=1))
    for seed in (1, 2):
        edit(run, "scores", lambda scores: scores.update(metrics={}), f"m0-s{seed}")
    missing, row = gate(run, reference).rows
    assert missing.reason.endswith("seeds 1, 2")
    assert (row.n_seeds, row.estimand) == (1, "checkpoints")
    assert row.notes[0].startswith("one seed: judged as these checkpoints")


# --- accepting ----------------------------------------------------------------------------------------------------------


def test_models_of_one_folder_name_are_not_merged(tmp_path):
    """Two models whose paths end alike would be one in a reference that keeps no folders; six cells would be three seeds twice."""
    run = write_run(tmp_path / "run", night(0, arms=2))
    lines = list(read_jsonl(run / "cells.jsonl"))
    write_jsonl(run / "cells.jsonl", [{**one, "method": "m", "model": f"/data/{one['id'][:2]}/model"} for one in lines])
    with pytest.raises(InputError, match="'/data/m0/model' and '/data/m1/model' are both 'model'"):
        accept(run, tmp_path / "reference", "x", "me")
    assert not (tmp_path / "reference").exists()
    write_jsonl(run / "cells.jsonl", [{**one, "method": "m", "model": "model"} for one in lines])
    with pytest.raises(InputError, match="m0-s0, m0-s1, m0-s2, m1-s0, m1-s1, m1-s2 are the same arm with the same seed"):
        arms(read_results(run))
    assert len(arms(read_results(write_run(tmp_path / "other", night(0, arms=2))))) == 2


def test_an_interrupted_accept_leaves_the_reference_before(tmp_path, monkeypatch):
    run, reference = write_run(tmp_path / "run", night(0, arms=1)), tmp_path / "reference"
    accept(run, reference, "one", "me")
    before, replaced = contents(reference), os.replace

    def interrupted(source, target):
        if Path(target) == reference:
            raise KeyboardInterrupt
        replaced(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(
            accepting.os, "replace", lambda a, b: interrupted(a, b) if ".reference.part" in str(a) else replaced(a, b)
        )
        with pytest.raises(KeyboardInterrupt):
            accept(run, reference, "two", "me")
    assert contents(reference) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reference", "run"]


def test_a_killed_accept_is_undone_by_the_next(tmp_path):
    """Killed between the two renames: the reference lies beside its place. A gate says so and writes nothing."""
    run, reference = write_run(tmp_path / "run", night(0, arms=1)), tmp_path / "reference"
    accept(run, reference, "one", "me")
    (reference / "gate.yaml").write_text(margins(margin=0.123))
    old = tmp_path / ".reference.old"
    reference.rename(old)
    before = contents(tmp_path)
    verdict = gate(run, reference)
    assert verdict.exit_code == 3
    assert str(old) in verdict.rows[0].reason
    assert contents(tmp_path) == before
    reference.mkdir()  # by a person, or a checkout
    with pytest.raises(InputError, match=r"an accept was interrupted"):
        accept(run, reference, "two", "me")
    assert contents(tmp_path) == before
    reference.rmdir()
    accept(run, reference, "two", "me")
    assert [line["why"] for line in read_jsonl(reference / "accepted.jsonl")] == ["one", "two"]
    assert "0.123" in (reference / "gate.yaml").read_text()
    assert not old.exists()


def test_links_in_a_reference_stay_links(tmp_path):
    run, reference = write_run(tmp_path / "run", night(0, arms=1)), tmp_path / "reference"
    accept(run, reference, "one", "me")
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "file").write_text("x")
    (reference / "notes").mkdir()
    for link in (reference / "large", reference / "notes" / "large"):
        link.symlink_to(tmp_path / "large", target_is_directory=True)
    accept(run, reference, "two", "me")
    assert (reference / "large").is_symlink()
    assert (reference / "notes" / "large").is_symlink()


def test_only_names_lose_their_folders(tmp_path):
    """A judge's prompt that reads like a path stays, or the judge would be another one; models, data and scripts are named alone."""
    judge = {"kind": "local", "settings": {"template": "/no_think Which is better, A or B? Answer A/B."}}
    run = write_run(tmp_path / "run", night(0, arms=1), metric="win_rate_sft", judge=judge, model="/home/me/models/tiny")
    record = read_json(run / "run.json")
    record["spec"] |= {
        "models": [{"path": "/home/me/models/tiny", "adapter": "~/lora", "label": "/home/me/models/tiny"}],
        "tasks": [{"name": "dialogue", "data": "C:\\me\\pairs.jsonl", "metrics": ["evaluate:/home/me/score.py", "rouge_l"]}],
        "rewards": ["/home/me/rm", "org/rm"],
        "judge": {"backend": "local", "model": "/home/me/judge"},
        "data_axes": {"regime": [{"name": "online", "models": ["./other"], "labeller": "reward:/home/me/rm"}]},
    }
    write_json(run / "run.json", record)
    edit(run, "spec", lambda spec: spec["stages"].update(data={"kind": "data", "config": {"task": {"data": "/home/me/folder"}}}))
    reference = tmp_path / "reference"
    accept(run, reference, "x", "me")
    assert gate(run, reference).exit_code == 0
    assert gate(run, reference).changed == []
    assert (
        json.loads((reference / "cells" / "m0-s0" / "spec.json").read_text())["stages"]["judge/sft"]["config"]["judge"] == judge
    )
    spec = read_json(reference / "run.json")["spec"]
    assert spec["models"] == [{"path": "tiny", "adapter": "lora", "label": "tiny"}]
    assert (spec["tasks"][0]["data"], spec["tasks"][0]["metrics"]) == ("pairs.jsonl", ["evaluate:score.py", "rouge_l"])
    assert (spec["rewards"], spec["judge"]["model"]) == (["rm", "org/rm"], "judge")
    assert spec["data_axes"]["regime"] == [{"name": "online", "models": ["other"], "labeller": "reward:rm"}]
    assert b"/home/me" not in b"".join(contents(reference).values())


def test_a_local_path_in_an_identity_is_refused(tmp_path):
    """It can be told from text, since it leads somewhere."""
    run = write_run(tmp_path / "run", night(0, arms=1), train={"prompt_file": str(tmp_path)})
    with pytest.raises(InputError, match="would hold the local path"):
        accept(run, tmp_path / "reference", "x", "me")
    assert not (tmp_path / "reference").exists()


@pytest.mark.parametrize(
    ("metric", "values", "said"),
    [
        ("kl", night(0, arms=1), "no metric that would be guarded"),
        ("reward/rm", {"m0": np.full((3, 9), np.nan)}, "has no valid value of reward/rm"),
    ],
)
def test_a_run_with_nothing_to_guard_is_refused(tmp_path, metric, values, said):
    run = write_run(tmp_path / "run", values, metric=metric)
    with pytest.raises(InputError, match=said):
        accept(run, tmp_path / "reference", "x", "me")
    assert not (tmp_path / "reference").exists()


def test_a_reference_that_cannot_be_read_is_replaced(tmp_path):
    run, reference = write_run(tmp_path / "run", night(0, arms=1)), tmp_path / "reference"
    accept(run, reference, "one", "me")
    (reference / "cells.jsonl").write_text("{")
    found = accept(run, reference, "two", "me")
    assert any("could not be read" in text for text in found.warnings)
    assert gate(run, reference).exit_code == 0


# --- no fault looks like a regression -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run.json", "[]"),
        ("run.json", "{"),
        ("run.json", '{"finished": 1, "spec": [1]}'),
        ("cells.jsonl", '{"id": 1}\n'),
        ("cells.jsonl", "[]\n"),
        ("cells.jsonl", "{\n"),
    ],
)
def test_broken_files_are_bad_input(tmp_path, name, text):
    run = write_run(tmp_path / "run", night(0, arms=1))
    broken = tmp_path / "broken"
    shutil.copytree(run, broken)
    (broken / name).write_text(text)
    for pair in ((broken, run), (run, broken)):
        with pytest.raises(InputError, match=name):
            gate(*pair)


def test_a_crash_is_no_regression(tmp_path, monkeypatch):
    """Whatever breaks, the exit code 1 is kept for what is worse; and a reader who has read enough does not change it."""
    import spo_bench.gate.judge
    from spo_bench.cli.main import main

    run = write_run(tmp_path / "run", night(0, arms=1))
    monkeypatch.setattr("sys.argv", ["spo-bench", "gate", str(run), "--reference", str(run)])
    monkeypatch.setattr(spo_bench.gate.judge, "match", lambda *_: 1 / 0)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 3


def test_the_reference_may_be_the_current_directory(tmp_path):
    run, place = write_run(tmp_path / "run", night(0, arms=1)), tmp_path / "place"
    place.mkdir()
    for why in ("one", "two"):
        done = spo_bench("gate", run, "--reference", ".", "--accept", "--why", why, "--who", "me", cwd=place)
        assert done.returncode == 0, done.stderr
    assert spo_bench("gate", run, "--reference", ".", cwd=place).returncode == 0
    assert len(list(read_jsonl(place / "accepted.jsonl"))) == 2


def test_a_spread_that_is_not_known_has_a_built_in_margin(tmp_path):
    run = write_run(tmp_path / "run", {"m0": np.full((2, 9), np.nan)}, metric="reward/rm")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gate(run, run).exit_code == 3
    assert built_in("reward/rm", True, float("nan")) == built_in("reward/rm", True, 1.0) == built_in("reward/rm", True, 0.0)
