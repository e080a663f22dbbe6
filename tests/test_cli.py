"""The command, as a person runs it: real subprocesses, their output and exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

SPEC = {
    "name": "tiny",
    "models": ["embedded"],
    "tasks": [{"name": "controlled_dialogue", "limit": {"train": 32, "eval": 8, "heldout": 8, "sft": 32}}],
    "methods": ["dpo", "ipo"],
    "seeds": [0],
    "sft": {"steps": 2, "batch_size": 16, "learning_rate": 1e-3},
    "train": {"batch_size": 8, "max_steps": 2, "learning_rate": 1e-4, "max_length": 128},
    "generate": {"max_new_tokens": 8, "batch_size": 8},
}


def spo_bench(*words, cwd: Path, env=None, timeout=120):
    return subprocess.run(
        [sys.executable, "-c", "from spo_bench.cli.main import main; main()", *map(str, words)],
        cwd=cwd, capture_output=True, text=True, timeout=timeout,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "COLUMNS": "200", "SPO_BENCH_STORE": str(cwd / "store"), **(env or {})},
    )  # fmt: skip


def written(folder: Path, spec=None, name="spec.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump({**SPEC, **(spec or {})}))
    return path


def test_run_plan_table_report(tmp_path):
    spec = written(tmp_path)
    dry = spo_bench("run", "--matrix", spec, "--dry-run", cwd=tmp_path)
    assert dry.returncode == 0, dry.stderr
    assert "missing" in dry.stdout
    dry = spo_bench("run", "--matrix", spec, "--dry-run", "--jobs", 2, "--memory", 3, cwd=tmp_path)
    assert "2 stages at a time, side by side within 3 GiB" in dry.stdout
    refused = spo_bench("run", "--matrix", spec, "--dry-run", "--jobs", 1, "--memory", 3, cwd=tmp_path)
    assert refused.returncode == 2
    assert "leave --memory out, or give --jobs 2 or more" in refused.stderr
    assert not (tmp_path / "results").exists()

    done = spo_bench("run", "--matrix", spec, "--jobs", 1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "5 of 5 cells done" in done.stderr
    assert "SPO is a reconstruction" in done.stdout
    run = tmp_path / "results" / "tiny"
    assert json.loads((run / "run.json").read_text())["status"] == "done"

    plan = spo_bench("plan", "--matrix", spec, "--json", cwd=tmp_path)
    assert {s["state"] for s in json.loads(plan.stdout)["stages"]} == {"done"}

    again = spo_bench("run", "--matrix", spec, "--jobs", 1, cwd=tmp_path)
    assert "0 stages to make" in again.stderr

    before = (run / "tables" / "main.tex").read_bytes()
    assert spo_bench("report", run, cwd=tmp_path).returncode == 0
    assert (run / "tables" / "main.tex").read_bytes() == before
    for form, mark in (("md", "| dpo"), ("tex", "\\toprule"), ("csv", "dpo"), ("html", "<table"), ("json", "{")):
        shown = spo_bench("table", run, "--format", form, cwd=tmp_path)
        assert shown.returncode == 0
        assert mark in shown.stdout

    narrow = spo_bench("plan", "--matrix", spec, "--method", "ipo", "--json", cwd=tmp_path)
    assert not any("-dpo-" in cell for cell in json.loads(narrow.stdout)["cells"])


def test_interrupt_leaves_a_run_that_goes_on(tmp_path):
    spec = written(tmp_path, {"sft": {"steps": 400, "batch_size": 16, "learning_rate": 1e-3}})
    running = subprocess.Popen(
        [sys.executable, "-c", "from spo_bench.cli.main import main; main()", "run", "--matrix", str(spec), "--jobs", "1"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "SPO_BENCH_STORE": str(tmp_path / "store")},
        # A test runner in the background of a shell ignores SIGINT, and hands that down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    # The embedded weights are in the store: supervised fine-tuning has begun, or is about to.
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("store/model/*/SEAL")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1)
    running.send_signal(signal.SIGINT)
    _, text = running.communicate(timeout=60)
    assert running.returncode == 130, text
    assert "same command goes on" in text
    assert "Traceback" not in text
    assert json.loads((tmp_path / "results" / "tiny" / "run.json").read_text())["status"] == "interrupted"
    assert not list(tmp_path.glob("store/*/*.part"))
    short = written(tmp_path)
    assert spo_bench("run", "--matrix", short, "--jobs", 1, cwd=tmp_path).returncode == 0


def test_matrix_without_a_value_is_quick(tmp_path):
    plan = spo_bench("plan", "--matrix", "--json", cwd=tmp_path)
    assert plan.returncode == 0, plan.stderr
    assert json.loads(plan.stdout)["name"] == "quick"


def test_it_works_outside_the_repository_and_is_not_shadowed(tmp_path):
    """A `tasks` package of the user's own, in the working directory, does not hide the built-in tasks."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "__init__.py").write_text("raise RuntimeError('not ours')")
    listed = spo_bench("tasks", "list", "--json", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    controlled = {task["name"] for task in json.loads(listed.stdout) if task["controlled"]}
    assert {
        "controlled_dialogue",
        "controlled_dialogue_tone",
        "controlled_summarization",
        "controlled_summarization_brevity",
    } == controlled


def test_init_makes_a_study_that_validates(tmp_path):
    assert spo_bench("init", "study", cwd=tmp_path).returncode == 0
    checked = spo_bench("tasks", "validate", "study/tasks", cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr
    assert "true reward of its chosen answer 1.000" in checked.stdout
    planned = spo_bench("plan", "--matrix", "study/study.yaml", "--tasks", "study/tasks", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    assert spo_bench("init", "study", cwd=tmp_path).returncode == 2


def test_catalogue_and_doctor(tmp_path):
    names = {m["name"] for m in json.loads(spo_bench("methods", "list", "--json", cwd=tmp_path).stdout)}
    assert {"dpo", "ipo", "simpo", "kto", "orpo"} <= names
    assert "log sigmoid" in spo_bench("methods", "show", "dpo", cwd=tmp_path).stdout
    assert "judge_prompt" in spo_bench("tasks", "show", "dialogue", cwd=tmp_path).stdout
    assert "quick" in spo_bench("presets", cwd=tmp_path).stdout
    assert "models:" in spo_bench("presets", "show", "paper", cwd=tmp_path).stdout
    doctor = spo_bench("doctor", "--json", cwd=tmp_path)
    assert {check["check"] for check in json.loads(doctor.stdout)} >= {"torch", "device", "store", "disk"}


def test_every_command_has_help_with_an_example(tmp_path, commands):
    every = [
        ["run"],
        ["plan"],
        ["report"],
        ["table"],
        ["init"],
        ["doctor"],
        ["methods", "show"],
        ["tasks", "list"],
        ["tasks", "validate"],
        ["presets", "show"],
    ]
    for words in every:
        shown = commands.run((*words, "--help"), tmp_path, {"COLUMNS": "200"})
        assert shown.code == 0
        assert "Example: spo-bench " + words[0] in " ".join(shown.out.split()), words
