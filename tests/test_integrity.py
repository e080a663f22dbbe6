"""What is not as it was written is found, named and made again: every file of the store, of checkpoints, and of a run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
import torch
from conftest import SMALL_SPEC

from spo_bench.cli.main import main
from spo_bench.errors import InputError
from spo_bench.files import read_json, write_json
from spo_bench.report.results import read_results
from spo_bench.store import sealed
from spo_bench.store.artifacts import Store
from spo_bench.store.checkpoints import Checkpoint

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from chaos import differences

SPEC = {**SMALL_SPEC, "methods": ["dpo"], "sft": {"steps": 1, "batch_size": 8}}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Store, Path]:
    """A spec, the store of a run of it, and the run."""
    folder = tmp_path_factory.mktemp("made")
    write_json(folder / "spec.yaml", SPEC)  # JSON is YAML
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["spo-bench", *words(folder / "spec.yaml", folder / "store", folder / "run")])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 0
    return folder / "spec.yaml", Store(folder / "store"), folder / "run"


def words(spec: Path, store: Path, out: Path) -> list[str]:
    return ["run", "--matrix", str(spec), "--store", str(store), "--out", str(out), "--jobs", "1"]


def flipped(content: bytes, at: int, mask: int) -> bytes:
    return content[:at] + bytes([content[at] ^ mask]) + content[at + 1 :]


def flip(path: Path, at: int) -> None:
    path.write_bytes(flipped(path.read_bytes(), at, 1))


def damaged(content: bytes, count: int, draw: Random) -> Iterator[bytes]:
    """A file with its first, its last, and some other bytes changed in one bit or all; cut in many places; with a byte more."""
    size = len(content)
    for at in sorted({0, size - 1, *(draw.randrange(size) for _ in range(count))} if size else ()):
        yield flipped(content, at, 1 << draw.randrange(8))
        yield flipped(content, at, 0xFF)
    for length in sorted({0, 1, size // 2, size - 1, *(draw.randrange(size) for _ in range(5))} - {size} if size else ()):
        yield content[:length]
    yield content + b"\n"


# --- an entry of the store ----------------------------------------------------------------------------------------------


@pytest.fixture(params=["data", "train", "generate"])
def entry(request, made, tmp_path) -> tuple[Store, str, str]:
    """A copy of a real entry: rows, a trained policy with its log, or answers."""
    kind, store = request.param, Store(tmp_path / "store")
    source = sorted((made[1].root / kind).iterdir())[0]
    shutil.copytree(source, store.path(kind, source.name))
    assert store.fault(kind, source.name) is None
    return store, kind, source.name


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def found(store: Store, kind: str, key: str) -> str | None:
    """What a process says that has not read the entry before."""
    sealed.forget(store.path(kind, key))
    return store.fault(kind, key)


def test_every_byte_that_is_flipped_cut_or_added_is_found(entry):
    store, kind, key = entry
    draw, tried = Random(0), 0
    for path in files(store.path(kind, key)):
        before = path.read_bytes()
        for content in damaged(before, 100 if path.name == "SEAL" else 15, draw):
            path.write_bytes(content)
            why = found(store, kind, key)
            assert why is not None, (path, content)
            assert path.name in why, why
            tried += 1
        path.unlink()
        assert f"{path.name} is missing" in found(store, kind, key)
        path.write_bytes(before)
    assert tried > 200
    assert found(store, kind, key) is None


def test_files_that_are_added_or_swapped_and_entries_in_another_place_are_found(entry, made):
    store, kind, key = entry
    folder = store.path(kind, key)
    for name in ("more", "policy/more", ".hidden"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("")
        assert found(store, kind, key) == f"{name} does not belong to it"
        (folder / name).unlink()
    own = [path for path in files(folder) if path.name != "SEAL"]
    for one, two in pairwise(own):
        contents = one.read_bytes(), two.read_bytes()
        one.write_bytes(contents[1])
        two.write_bytes(contents[0])
        assert found(store, kind, key) is not None, (one, two)
        one.write_bytes(contents[0])
        two.write_bytes(contents[1])
    others = [path for path in sorted((made[1].root / kind).iterdir()) if path.name != key]
    for other in others[:1]:
        for path in files(other):
            before = (folder / path.relative_to(other)).read_bytes()
            if before != path.read_bytes():
                shutil.copyfile(path, folder / path.relative_to(other))
                assert found(store, kind, key) is not None, path
                (folder / path.relative_to(other)).write_bytes(before)
    assert found(store, kind, key) is None
    os.rename(folder, folder.with_name("0" * 32))
    assert found(store, kind, "0" * 32) == "it is another entry's"


def test_a_process_that_has_read_an_entry_sees_that_it_was_changed_since(entry):
    store, kind, key = entry
    path = files(store.path(kind, key))[0]
    os.utime(path, ns=(1, 1))
    assert store.fault(kind, key) is None
    flip(path, 0)
    assert path.name in store.fault(kind, key)


# --- a run on a store with damage ---------------------------------------------------------------------------------------


def remove(store: Store, *kinds: str) -> None:
    """Remove all artifacts of some kinds, so that what they are made from is read."""
    for kind in kinds:
        shutil.rmtree(store.root / kind)


# What is damaged, and what is made from it and gone, where nothing else would read it.
DAMAGE = {
    "data": ("eval.jsonl", ()),
    "sft": ("model.safetensors", ("train",)),
    "train": ("policy/model.safetensors", ("generate", "score")),
    "generate": ("samples.jsonl", ()),
    "score": ("scores.json", ()),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_run_names_what_is_damaged_makes_it_again_and_ends_with_the_same_numbers(kind, made, tmp_path, command):
    spec, store, run = made
    name, gone = DAMAGE[kind]
    remove(store, *gone)
    key = sorted(path.name for path in (store.root / kind).iterdir())[-1]
    path = store.path(kind, key) / name
    flip(path, path.stat().st_size // 2)
    code, _, errors = command(*words(spec, store.root, tmp_path / "again"))
    assert code == 0, errors
    assert f"made again, since it is damaged: {kind}/{key}: {name} has another content than when it was made" in errors
    assert store.fault(kind, key) is None
    assert differences(tmp_path / "again", run) == 0


def test_a_cut_seal_and_a_missing_file_are_repaired_too(made, tmp_path, command):
    spec, store, run = made
    one, two = sorted(path.name for path in (store.root / "judge").iterdir())[:2]
    seal = store.path("judge", one) / "SEAL"
    seal.write_bytes(seal.read_bytes()[:-40])
    (store.path("judge", two) / "judgments.jsonl").unlink()
    code, _, errors = command(*words(spec, store.root, tmp_path / "again"))
    assert code == 0, errors
    assert f"judge/{one}: SEAL cannot be read" in errors
    assert f"judge/{two}: judgments.jsonl is missing" in errors
    assert differences(tmp_path / "again", run) == 0


def test_two_runs_that_meet_the_same_damage_at_once_end_with_the_same_numbers(made, tmp_path):
    spec, store, run = made
    remove(store, "generate", "score")
    (key,) = (path.name for path in (store.root / "data").iterdir())
    flip(store.path("data", key) / "eval.jsonl", 10)
    runs = [tmp_path / "one", tmp_path / "two"]
    started = [
        subprocess.Popen([sys.executable, "-m", "spo_bench", *words(spec, store.root, out)], stderr=subprocess.PIPE, text=True)
        for out in runs
    ]
    errors = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], errors
    assert any(f"damaged: data/{key}: eval.jsonl" in text for text in errors)
    assert [differences(out, run) for out in runs] == [0, 0]


# --- checkpoints --------------------------------------------------------------------------------------------------------


def checkpoint(folder: Path) -> Path:
    """Keep a state that no training could go on from; return its folder."""
    kept = Checkpoint(folder, every=0)
    kept.step(lambda: ({"weights": torch.arange(8.0)}, {"step": 1}))
    return folder / "1"


def test_a_checkpoint_with_any_damaged_file_is_not_used(tmp_path):
    folder, draw = checkpoint(tmp_path / "kept"), Random(2)
    assert Checkpoint(tmp_path / "kept").load().values == {"step": 1}
    for path in files(folder):
        before = path.read_bytes()
        for content in damaged(before, 60, draw):
            path.write_bytes(content)
            sealed.forget(folder)
            assert Checkpoint(tmp_path / "kept").load() is None, (path, content)
        path.write_bytes(before)
    sealed.forget(folder)
    assert Checkpoint(tmp_path / "kept").load() is not None


def test_a_run_that_finds_a_damaged_checkpoint_begins_that_stage_anew(made, tmp_path, command, caplog):
    spec, store, run = made
    key = sorted(path.name for path in (store.root / "train").iterdir())[0]
    remove(store, "train")
    path = checkpoint(store.checkpoint("train", key)) / "00000.safetensors"
    flip(path, path.stat().st_size - 1)
    sealed.forget(path.parent)
    code, _, errors = command(*words(spec, store.root, tmp_path / "again"))
    assert code == 0, errors
    assert "is not used: 00000.safetensors has another content" in caplog.text
    assert differences(tmp_path / "again", run) == 0
    assert not store.checkpoint("train", key).exists()


# --- a run's directory --------------------------------------------------------------------------------------------------


@pytest.fixture
def copied(made, tmp_path) -> Path:
    """A copy of the run, with all its times."""
    return shutil.copytree(made[2], tmp_path / "run", symlinks=True)


def read(run: Path) -> None:
    """Read all of a run that reports, tables, comparisons and gates are made from."""
    for cell in read_results(run).done:
        _ = cell.metrics, cell.stages, cell.provenance
        for name in ("samples", "judgments", "train"):
            cell.rows(name)


def of_dpo(run: Path) -> Path:
    return next(path for path in sorted((run / "cells").iterdir()) if "-dpo-s0" in path.name)


def test_any_damaged_file_of_a_run_is_refused_by_name(copied):
    read(copied)
    draw, tried = Random(3), 0
    for path in [copied / "run.json", copied / "cells.jsonl", *files(of_dpo(copied))]:
        before = path.read_bytes()
        for content in damaged(before, 12, draw):
            path.write_bytes(content)
            with pytest.raises(InputError, match=path.name):
                read(copied)
            tried += 1
        if path.name != "DONE":  # without it, nobody knows of checksums
            path.unlink()
            with pytest.raises(InputError, match=path.name):
                read(copied)
        path.write_bytes(before)
    assert tried > 200
    read(copied)


def other_digit(path: Path) -> None:
    """Change one digit of a file's numbers, as a bad sector or a careless editor would."""
    text = path.read_text()
    at = max(text.rfind(digit) for digit in "123456789")
    path.write_text(text[:at] + ("1" if text[at] == "9" else str(int(text[at]) + 1)) + text[at + 1 :])


COMMANDS: dict[str, Callable[[Path, Path], list]] = {
    "report": lambda run, other: ["report", run],
    "table": lambda run, other: ["table", run],
    "compare": lambda run, other: ["compare", other, run],
    "gate": lambda run, other: ["gate", run, "--reference", other],
    "accept": lambda run, other: ["gate", run, "--reference", run.with_name("new"), "--accept", "--why", "test"],
}


@pytest.mark.parametrize("what", COMMANDS)
def test_commands_refuse_a_damaged_number(what, made, copied, command):
    path = of_dpo(copied) / "scores.json"
    other_digit(path)
    code, output, errors = command(*COMMANDS[what](copied, made[2]))
    assert (code, output) == (2, "")
    assert f"error: {path} has another content than when it was made" in errors
    assert "remedy: run the same command again" in errors


@pytest.mark.parametrize("damage", ["cut", "missing", "edited", "DONE", "run.json", "metrics.jsonl", "policy"])
def test_the_same_command_writes_anew_what_is_damaged_in_a_run(damage, made, copied, command):
    spec, store, run = made
    cell = of_dpo(copied)
    places = {"DONE": cell / "DONE", "policy": cell / "policy", "run.json": copied / damage, "metrics.jsonl": copied / damage}
    path = places.get(damage, cell / "scores.json")
    if damage in ("missing", "policy"):
        path.unlink()
    elif damage in ("cut", "DONE"):
        path.write_bytes(path.read_bytes()[:-3])
    else:
        other_digit(path)
    code, _, errors = command(*words(spec, store.root, copied))
    assert code == 0, errors
    assert "0 stages to make" in errors
    read(copied)
    assert differences(copied, run) == 0
    if damage == "policy":
        assert path.resolve().is_relative_to(store.root)


def test_a_number_that_changed_without_a_trace_is_refused_with_a_remedy_that_helps(made, copied, command):
    """A disk that returns another byte leaves size and times: reports see it, a finished run looks at no content."""
    spec, store, _ = made
    path = of_dpo(copied) / "scores.json"
    times = path.stat()
    other_digit(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    code, _, errors = command("table", copied)
    assert code == 2
    assert "remedy: delete this cell's folder and run the same command again" in errors
    shutil.rmtree(path.parent)
    assert command(*words(spec, store.root, copied))[0] == 0
    assert command("table", copied)[0] == 0


def test_runs_without_checksums_are_read_and_get_them(made, copied, command):
    """As an older version wrote them, and as a reference is."""
    spec, store, run = made
    for done in (copied / "cells").glob("*/DONE"):
        write_json(done, {name: value for name, value in read_json(done).items() if name in ("keys", "retry")})
    record = {name: value for name, value in read_json(copied / "run.json").items() if name not in ("files", "checksum")}
    write_json(copied / "run.json", record)
    read(copied)
    assert command("table", copied, "--format", "json")[1] == command("table", run, "--format", "json")[1]
    assert command(*words(spec, store.root, copied))[0] == 0
    for done in (copied / "cells").glob("*/DONE"):
        assert sealed.read_signed(done)["files"]
    assert json.loads((copied / "run.json").read_text())["checksum"]
