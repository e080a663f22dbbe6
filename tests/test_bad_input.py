"""Whatever the command is given that it cannot use, it ends with exit code 2, says what was given, the rule and the remedy, shows
no traceback, and leaves nothing behind. Every case of the table is a process of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import bad_commands  # noqa: F401 - the second part of the table
import pytest
from bad_inputs import CASES, Case
from gate_run import contents, night, write_run
from synthetic_run import make_run
from warm_command import Done


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """Finished runs to begin with, each under the name of its ``Case.begin``."""
    folder = tmp_path_factory.mktemp("begun")
    make_run(folder / "run" / "run", tasks=("controlled_dialogue",), methods=("dpo",), seeds=(0,), prompts=6, steps=4)
    for seed, name in enumerate(("run", "ref")):
        write_run(folder / "nights" / name, night(seed, arms=1, prompts=12))
    return folder


def prepare(case: Case, folder: Path, begun: Path) -> dict[str, str]:
    """Lay out a case's files; return the environment of its process."""
    if case.begin:
        shutil.copytree(begun / case.begin, folder, dirs_exist_ok=True)
    for name, content in case.files.items():
        path = folder / name
        if content is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    usual = {"PATH": os.environ["PATH"], "HOME": str(folder.parent / "home"), "LANG": "C.UTF-8", "COLUMNS": "200"}
    return {**usual, "SPO_BENCH_STORE": "store", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", **case.env}


def check(case: Case, done: Done, before: dict[str, bytes], folder: Path) -> None:
    """Hold what came of a case against what has to."""
    told = " ".join(done.err.split())
    assert done.code == 2, done
    for part in (*case.says, "error:", "rule:", "remedy:"):
        assert part in told, f"{part!r} is not in: {done.err}"
    assert "Traceback" not in done.out + done.err
    assert not done.out, done.out
    assert done.torch == case.torch, "torch was imported" if done.torch else "it needs no torch any more"
    after = contents(folder)
    left = [name for name in after if name not in before and not name.startswith(case.leaves or ("\0",))]
    assert not left
    assert {name: after.get(name) for name in before} == before


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name, tmp_path, commands, begun):
    case, folder = CASES[name], tmp_path / "here"
    folder.mkdir()
    environment = prepare(case, folder, begun)
    before = contents(folder)
    check(case, commands.run(case.words, folder, environment), before, folder)


@pytest.mark.parametrize("name", ['value: {"spo": true}', "data: not JSON", "spec: empty"])
def test_a_process_started_anew_says_the_same(name, tmp_path, commands, begun):
    """The table's processes are forked from one that is warm; that changes nothing of what is said."""
    case, folder = CASES[name], tmp_path / "here"
    folder.mkdir()
    environment = prepare(case, folder, begun) | {"PYTHONPATH": str(Path(__file__).parents[1])}
    warm = commands.run(case.words, folder, environment)
    anew = subprocess.run(
        [sys.executable, "-m", "spo_bench", *case.words], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert (anew.returncode, anew.stdout, anew.stderr) == (warm.code, warm.out, warm.err)


@pytest.mark.parametrize(
    ("group", "code", "words", "says"),
    [
        ("methods", "from spo_bench.methods.dpo import METHOD\n", ["methods", "list"], ["two methods are named 'dpo'", "mine:METHOD", "uninstall one"]),
        ("methods", "METHOD = 3\n", ["methods", "list"], ["mine:METHOD gives a int, not a method", "uninstall the plugin"]),
        ("methods", "import nosuchmodule\nMETHOD = 1\n", ["methods", "show", "mine"], ["'mine'", "mine:METHOD cannot be loaded", "No module named 'nosuchmodule'"]),
        ("tasks", "from tasks.dialogue import Dialogue as METHOD\n", ["tasks", "list"], ["two tasks are named 'dialogue'", "mine 1.0"]),
        ("tasks", "1 / 0\n", ["tasks", "show", "mine"], ["task 'mine' cannot be used", "mine 1.0", "line 1", "ZeroDivisionError"]),
    ],
)  # fmt: skip
def test_packages_that_bring_plugins(group, code, words, says, tmp_path):
    """Entry points are found when an interpreter begins: a process started anew, with a package beside it."""
    here, package = tmp_path / "here", tmp_path / "packages"
    here.mkdir()
    (package / "mine-1.0.dist-info").mkdir(parents=True)
    (package / "mine-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (package / "mine-1.0.dist-info" / "entry_points.txt").write_text(f"[spo_bench.{group}]\nmine = mine:METHOD\n")
    (package / "mine.py").write_text(code)
    paths = os.pathsep.join((str(package), str(Path(__file__).parents[1])))
    done = subprocess.run(
        [sys.executable, "-m", "spo_bench", *words], cwd=here, capture_output=True, text=True,
        env={"PATH": os.environ["PATH"], "HOME": str(here), "PYTHONPATH": paths, "COLUMNS": "200"},
    )  # fmt: skip
    check(Case(tuple(words), tuple(says)), Done(done.returncode, done.stdout, done.stderr, torch=False), {}, here)
