"""Every tracker: what it really holds, read back, all on this machine. TensorBoard comes with the tests; `.ci/run` has the others."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tracked

from spo_bench import api
from spo_bench.files import write_jsonl
from spo_bench.store import live
from spo_bench.store.sealed import SEAL
from spo_bench.tracking import beside, connect
from spo_bench.tracking.base import Entry, Place
from spo_bench.tracking.follow import Following, Training

NAMES = ("tensorboard", "wandb", "mlflow", "trackio")
SECRET = "0123456789abcdef0123456789abcdef5ec2e7ff"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A finished run that was not tracked, beside its store."""
    folder = tmp_path_factory.mktemp("made")
    api.run(tracked.written(folder), folder / "run", store=folder / "store")
    return folder


@pytest.fixture(scope="module")
def trackio_folder(tmp_path_factory) -> Path:
    """Where Trackio keeps what it has: it asks for that once, when it is imported."""
    os.environ.setdefault("TRACKIO_DIR", str(tmp_path_factory.mktemp("trackio")))
    return Path(os.environ["TRACKIO_DIR"])


def ready(name: str, folder: Path, monkeypatch) -> str:
    if name != "tensorboard":  # whose library comes with the tests
        pytest.importorskip(name, reason=f"the extra {name} is not installed")
    for variable, value in {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(folder),
        "WANDB_API_KEY": SECRET,
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "MLFLOW_TRACKING_TOKEN": SECRET,
        "TRACKIO_WRITE_TOKEN": SECRET,
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(variable, value)
    return name


@pytest.fixture(params=NAMES)
def tracker(request, tmp_path, monkeypatch, trackio_folder) -> str:
    return ready(request.param, tmp_path, monkeypatch)


def held(name: str, folder: Path, project: str) -> dict[str, tracked.Held]:
    return {
        "tensorboard": lambda: tracked.tensorboard(folder / "run"),
        "wandb": lambda: tracked.wandb(folder / "wandb"),
        "mlflow": lambda: tracked.mlflow(project),
        "trackio": lambda: tracked.trackio(project),
    }[name]()


def test_a_finished_run_is_sent_whole_and_once(tracker, made, tmp_path, trackio_folder, command):
    """Also the second time: what is there is not sent again. No key stands in any file that this leaves."""
    shutil.copytree(made / "run", tmp_path / "run", symlinks=True)
    for _ in range(2):
        code, out, err = command("track", tmp_path / "run", "--to", tracker)
        assert (code, out) == (0, ""), err
        assert f"{tracker}: 3 cells of tracked" in err
        # TensorBoard keeps 24 bits of a number.
        rounded = 2.0**-23 if tracker == "tensorboard" else 0.0
        tracked.check_complete(held(tracker, tmp_path, "tracked"), tmp_path / "run", made / "store", rounded)
    for path in (*tmp_path.rglob("*"), *trackio_folder.rglob("*")):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


def test_rows_are_followed_without_gap_or_repetition(tracker, tmp_path, trackio_folder, monkeypatch):
    """Six steps; then the run is killed with a checkpoint after step 3, goes on, and leaves an artifact of ten steps."""
    monkeypatch.setattr(live, "EVERY", 0)
    monkeypatch.chdir(tmp_path)
    place = Place("followed", tmp_path / "run")
    kept, artifact = tmp_path / "checkpoints" / "live.jsonl", tmp_path / "artifact"
    training = Training(Entry("ab" * 16, "-dpo-s0", "model/task/dpo", ["baseline"], {"train": {"lr": 0.1}}), artifact, kept)
    rows = [{"step": step, "loss": 1 / (step + 1), "degree_accuracy_bins": {"0": [1, 2]}} for step in range(10)]

    def seen() -> list[tuple[int, float]]:
        return held(tracker, tmp_path, "followed")["dpo"].series["train/loss"]

    first = Following(connect(tracker, place), [training])
    if tracker == "wandb":
        assert not first.tracker.live  # offline, nobody could see its rows before they are sent
        return
    first.look()
    assert not first.open  # an entry begins with its first row
    log = live.Live(kept).log([])
    for row in rows[:6]:
        log(dict(row))
        first.look()
    assert kept.is_file()
    first.close(stopped=True)

    second = Following(connect(tracker, place), [training])
    log = live.Live(kept).log([dict(row) for row in rows[:4]])
    second.look()
    for row in rows[4:8]:
        log(dict(row))
        second.look()
    assert second.open
    second.close(stopped=True)
    if tracker != "mlflow":  # which says of a run that was stopped that it failed, and is read by what is finished
        assert [step for step, _ in seen()] == list(range(8))

    third = Following(connect(tracker, place), [training])
    write_jsonl(artifact / "train.jsonl", rows)
    (artifact / SEAL).write_text("{}")
    third.look()
    assert not third.open
    assert not third.left
    assert seen() == [(row["step"], pytest.approx(row["loss"], rel=1e-7)) for row in rows]


@pytest.mark.parametrize("answers", [False, True], ids=["nobody listens", "nobody answers"])
def test_a_tracker_that_cannot_be_reached_costs_a_warning(answers, made, tmp_path, monkeypatch, trackio_folder):
    ready("mlflow", tmp_path, monkeypatch)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(beside, "PATIENCE", 8.0)
    warnings: list[str] = []
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if answers:
            server.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://somebody:{SECRET}@127.0.0.1:{server.getsockname()[1]}")
        done = api.run(made / "spec.yaml", tmp_path / "run", store=made / "store", track=["mlflow"], warn=warnings.append)
    assert (done.done, done.failed) == (3, {})
    (warning,) = [text for text in warnings if "tracker" in text]
    assert warning.startswith("tracker mlflow: ")
    assert "track" in warning
    assert f"{tmp_path / 'run'} --to mlflow` sends" in warning
    assert ("no sign of life for 8 s" in warning) == answers
    assert SECRET not in warning


def test_wandb_asks_nobody_for_a_key(tmp_path, monkeypatch, trackio_folder):
    """In a process of its own, since it remembers a key."""
    ready("wandb", tmp_path, monkeypatch)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.delenv("WANDB_MODE")
    place = f"Place('tracked', Path({str(tmp_path)!r})"
    for offline, code, words in (("", 1, "no key: `wandb login` once"), (", offline=True", 0, "False")):
        asked = f"from spo_bench.tracking import *; from pathlib import Path; print(connect('wandb', {place}{offline})).live)"
        done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, cwd=Path(__file__).parents[1])
        assert (done.returncode, words in done.stdout + done.stderr) == (code, True), done.stderr
