"""A run that is tracked: nothing of it changes, and nothing is there where no tracker is asked for."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tracked
from test_cli import spo_bench

from spo_bench import api
from spo_bench.engine.engine import Engine, Watcher, unique_in_order
from spo_bench.engine.local import local
from spo_bench.files import read_jsonl
from spo_bench.store.artifacts import Store
from spo_bench.store.live import LIVE
from spo_bench.tracking import is_installed

FLOAT = 2.0**-23  # TensorBoard keeps 24 bits of a number


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tracked run, made by the command with stages side by side."""
    folder = tmp_path_factory.mktemp("run")
    words = ("run", "--matrix", tracked.written(folder), "--out", folder / "run", "--jobs", 2, "--track", "tensorboard")
    done = spo_bench(*words, cwd=folder, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "tracker" not in done.stderr
    return folder


def policies(run: Path) -> dict[str, str]:
    return {
        path.parent.name: hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()
        for path in run.glob("cells/*/policy")
    }


def test_everything_is_there_and_nothing_is_changed(folder, tmp_path):
    """Keys, and policies to the bit, are those of a run that is not tracked."""
    tracked.check_complete(tracked.tensorboard(folder / "run"), folder / "run", folder / "store", FLOAT)
    api.run(folder / "spec.yaml", tmp_path / "run", store=tmp_path / "store")
    assert (tmp_path / "run" / "cells.jsonl").read_bytes() == (folder / "run" / "cells.jsonl").read_bytes()
    assert policies(tmp_path / "run") == policies(folder / "run") != {}
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_what_is_made_already_is_sent_too_and_once(folder, tmp_path, command):
    """Trainings from the store in a run of its own; then that run again, which is finished."""
    for _ in range(2):
        code, _, err = command(
            *("run", "--matrix", folder / "spec.yaml", "--out", tmp_path / "run", "--store", folder / "store"),
            *("--jobs", 1, "--track", "tensorboard,tensorboard", "--track", "tensorboard"),
        )
        assert code == 0, err
        tracked.check_complete(tracked.tensorboard(tmp_path / "run"), tmp_path / "run", folder / "store", FLOAT)


def test_what_cannot_be_written_costs_one_warning(folder, tmp_path, command):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").write_text("a file where its folder would be")
    words = ("run", "--matrix", folder / "spec.yaml", "--out", tmp_path / "run", "--store", folder / "store", "--jobs", 1)
    code, out, err = command(*words, "--track", "tensorboard")
    assert code == 0, err
    assert "3 of 3 cells done" in err
    assert err.count("warning: tracker tensorboard: ") == 1
    assert f"`spo-bench track {tmp_path / 'run'} --to tensorboard` sends what is missing" in err
    assert "| dpo" in out
    code, out, err = command("track", tmp_path / "run", "--to", "tensorboard")
    assert (code, out) == (1, "")
    assert "tracker tensorboard: " in err


def test_what_is_not_there_is_refused_with_everything_else(folder, tmp_path, command, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed, where it is
    (tmp_path / "a_folder").mkdir()  # as W&B leaves one of its own name where it was used
    monkeypatch.syspath_prepend(tmp_path)
    assert (is_installed("a_folder"), is_installed("tensorboard")) == (False, True)
    spec = tracked.written(tmp_path, models=[str(tmp_path / "nowhere")])
    code, _, err = command("run", "--matrix", spec, "--out", tmp_path / "run", "--track", "wandb,tensorbord")
    assert code == 2
    assert "3 problems before anything was run" in err
    assert "pip install 'spo-bench[wandb]'" in err
    assert "unknown tracker 'tensorbord'" in err
    assert "did you mean 'tensorboard'?" in err
    assert "nowhere" in err
    assert not (tmp_path / "run").exists()
    for words in (("run", "--matrix", spec, "--dry-run", "--track", "wandb"), ("track", folder / "run", "--to", "wandb")):
        code, _, err = command(*words)
        assert (code, "pip install 'spo-bench[wandb]'" in err) == (2, True)


def test_nothing_is_there_without_a_tracker(folder, tmp_path):
    """Neither a library, nor our own side of it, nor a file of rows beside the checkpoints; which is there with one."""
    asked = "import spo_bench.api, spo_bench.cli.app, sys; print(*sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", asked], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    names = {name.split(".")[0] for name in found.stdout.split()}
    assert not names & {"wandb", "trackio", "mlflow", "tensorboard"}
    assert not {"spo_bench.tracking.beside", "spo_bench.tracking.follow"} & set(found.stdout.split())

    for followed in (False, True):
        store = Store(tmp_path / str(followed))
        cells = api.cells_of(api.load_spec(folder / "spec.yaml"), store.root, "cpu")
        sft = next(cell.stages["sft"] for cell in cells)
        seen: list[bool] = []

        class Looking(Watcher):
            def finished(self, stage, seconds):
                seen.append((store.checkpoint("sft", sft.key) / LIVE).exists())  # noqa: B023 - called in this turn

        cleared = pytest.MonkeyPatch()
        with cleared.context() as patch:
            patch.setattr("spo_bench.store.checkpoints.Checkpoint.clear", lambda self: None)
            with Engine(store, local(1), Looking(), live=followed) as engine:
                engine.run(unique_in_order([sft]))
        assert seen[-1] == followed


def test_a_run_that_is_killed_goes_on_with_the_same_curves(tmp_path):
    """The rows of a training are there before it is finished; after the kill nothing is missing, and nothing is there twice."""
    steps = 60
    spec = tracked.written(tmp_path, sft={"steps": steps, "batch_size": 32})
    words = [
        "run",
        "--matrix",
        str(spec),
        "--out",
        str(tmp_path / "run"),
        "--jobs",
        "2",
        "--checkpoint",
        "0",
    ]  # which takes its time
    words += ["--track", "tensorboard"]
    running = subprocess.Popen(
        [sys.executable, "-c", "from spo_bench.cli.main import main; main()", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "SPO_BENCH_STORE": str(tmp_path / "store")},
        stderr=subprocess.DEVNULL,
    )
    live: list[tuple[int, float]] = []
    until = time.monotonic() + 600
    while not live and running.poll() is None and time.monotonic() < until:
        time.sleep(0.5)
        if list(tmp_path.glob("run/tensorboard/*/events*")):
            live = tracked.tensorboard(tmp_path / "run")["sft"].series.get("train/loss", [])
    assert not list((tmp_path / "store" / "sft").glob("*/SEAL")), "it was finished before anybody looked"
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert 0 < len(live) < steps

    done = spo_bench(*words, cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stderr
    assert len(tracked.tensorboard(tmp_path / "run")["sft"].series["train/loss"]) == steps
    tracked.check_complete(tracked.tensorboard(tmp_path / "run"), tmp_path / "run", tmp_path / "store", FLOAT)
    assert not list((tmp_path / "store" / "checkpoints").glob(f"*/{LIVE}"))
    assert len(list(read_jsonl(tmp_path / "run" / "cells.jsonl"))) == 3
