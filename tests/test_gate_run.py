"""The gate on real runs: a training that learns nothing is worse, changed settings are shown, fixed checkpoints are evaluated."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from gate_run import contents

import spo_bench
from spo_bench.files import read_json
from spo_bench.gate import accept, gate

SPEC = {
    "name": "tiny",
    "models": ["embedded"],
    "tasks": [{"name": "controlled_dialogue", "limit": {"train": 96, "eval": 48, "heldout": 0, "sft": 256}}],
    "methods": ["dpo+sft"],
    "spo": [False],
    "seeds": [0, 1],
    "sft": {"steps": 8, "batch_size": 16, "learning_rate": 2e-3},
    "train": {"batch_size": 16, "max_steps": 12, "learning_rate": 1e-3, "max_length": 128, "micro_tokens": 1024},
    "generate": {"max_new_tokens": 8, "batch_size": 48},
}
GUARDED = """
schema_version: 1
metrics:
  chosen_logratio: {better: higher, retraining: 1.5, evaluation: 1.5}
  true_reward: {better: higher, retraining: 0.1, evaluation: 0.1}
"""


@pytest.fixture(scope="module")
def nightly(tmp_path_factory):
    """A run, its store, and the reference it became: chosen answers are several nats likelier after training."""
    folder = tmp_path_factory.mktemp("nightly")
    run = spo_bench.run(SPEC, folder / "run", store=folder / "store").out
    reference = folder / "reference"
    reference.mkdir()
    (reference / "gate.yaml").write_text(GUARDED)
    accept(run, reference, "first", "me")
    return folder, run, reference


def test_a_learning_rate_of_0_is_worse(nightly, tmp_path):
    """The policies stay their SFT policy, so that chosen answers are exactly as likely as before: a ratio of 0."""
    folder, _, reference = nightly
    before = contents(reference)
    run = spo_bench.run({**SPEC, "train": {**SPEC["train"], "learning_rate": 0}}, tmp_path / "run", store=folder / "store").out
    command = [
        sys.executable,
        "-c",
        "from spo_bench.cli.main import main; main()",
        "gate",
        str(run),
        "--reference",
        str(reference),
    ]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    record = json.loads(done.stdout)
    (worse,) = [row for row in record["rows"] if row["outcome"] == "worse"]
    assert (worse["arm"], worse["metric"], worse["run"], worse["family"]) == ("dpo+sft", "chosen_logratio", 0.0, "retraining")
    assert worse["reference"] > 2
    assert "train.settings.learning_rate 0.001 -> 0.0 (embedded / controlled_dialogue / dpo+sft)" in record["changed"]
    # The SFT policy is the same bit for bit, and answered the same.
    assert {row["family"] for row in record["rows"] if row["arm"] == "sft"} == {"evaluation"}
    assert contents(reference) == before


def test_the_same_run_again_is_evaluation_drift_of_nothing(nightly, tmp_path):
    folder, _, reference = nightly
    again = spo_bench.run(SPEC, tmp_path / "again", store=folder / "store")
    assert again.made == 0
    verdict = gate(again.out, reference)
    assert (verdict.exit_code, len(verdict.rows), verdict.changed) == (0, 3, [])
    assert verdict.notes == ["Nothing was trained anew: only evaluation was tested."]
    assert {(row.family, row.diff) for row in verdict.rows} == {("evaluation", 0.0)}


def test_a_changed_beta_is_shown_and_judged(nightly, tmp_path):
    folder, _, reference = nightly
    spec = {**SPEC, "methods": [{"name": "dpo", "plus": ["sft"], "beta": 0.2}]}
    verdict = gate(spo_bench.run(spec, tmp_path / "run", store=folder / "store").out, reference)
    judged = {row.metric: row for row in verdict.rows if row.arm == "dpo+sft"}
    assert judged.keys() == {"chosen_logratio", "true_reward"}
    assert all(row.judged and row.family == "retraining" for row in judged.values())
    assert any("method.hyperparameters.beta 0.1 -> 0.2" in text for text in verdict.changed)


def test_saved_policies_are_gated_without_training(nightly, tmp_path):
    """A matrix without methods whose models are the saved policies: evaluation drift alone, here by another temperature."""
    folder, run, _ = nightly
    cell = next(path for path in (run / "cells").iterdir() if (path / "policy").exists())
    fixed = {
        **SPEC,
        "models": [{"path": str(cell / "policy"), "label": "tuesday"}],
        "methods": [],
        "sft": {"steps": 0},
    }
    first = spo_bench.run(fixed, tmp_path / "first", store=folder / "store").out
    weights = {read_json(path)["policy"] for path in first.glob("cells/*/provenance.json")}
    assert weights == {read_json(cell / "provenance.json")["policy"]}
    accept(first, tmp_path / "reference", "fixed checkpoints", "me")
    assert gate(first, tmp_path / "reference").exit_code == 0
    hot = {**fixed, "generate": {**SPEC["generate"], "temperature": 1.5}}
    verdict = gate(spo_bench.run(hot, tmp_path / "hot", store=folder / "store").out, tmp_path / "reference")
    assert {(row.family, row.metric) for row in verdict.rows} == {
        ("evaluation", "true_reward"),
        ("evaluation", "win_rate_chosen"),
    }
    assert verdict.changed == ["generate.settings.temperature 0.7 -> 1.5 (tuesday / controlled_dialogue / sft)"]


def test_what_a_cell_records(nightly):
    """Fingerprints of what its ids stand for, and hashes of its policy and of those it is judged against; SFT has one policy."""
    _, run, reference = nightly
    policies, against = {}, set()
    for folder in (run / "cells").iterdir():
        scores, provenance = read_json(folder / "scores.json"), read_json(folder / "provenance.json")
        texts = scores["prompts"]
        assert list(texts["prompt"]) == scores["metrics"]["true_reward"]["ids"]
        assert texts["chosen"].keys() == texts["prompt"].keys()
        assert set(scores["metrics"].get("chosen_logratio", {"ids": []})["ids"]) <= set(texts["pair"])
        names = {"sft"} if "train" in read_json(folder / "spec.json")["stages"] else set()
        assert provenance["opponents"].keys() == names
        against.update(provenance["opponents"].values())
        policies.setdefault(read_json(folder / "spec.json")["method"], set()).add(provenance["policy"])
    assert (len(policies["sft"]), len(policies["dpo+sft"])) == (1, 2)
    assert against == policies["sft"]
    text = "".join(path.read_text() for path in Path(reference).rglob("*") if path.is_file())
    assert str(run.parent) not in text
