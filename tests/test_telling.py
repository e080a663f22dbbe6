"""What the command says of whatever is raised, and with which exit code it ends."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gate_run import night, write_run

from spo_bench.cli.main import main
from spo_bench.cli.telling import said
from spo_bench.errors import InputError, Interrupted, StageError

ROOT = Path(__file__).parents[1]


def raised(error: BaseException) -> BaseException:
    """Return an error as it is when it has been raised."""
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001 - any
        return caught


@pytest.mark.parametrize(
    ("number", "parts"),
    [
        (errno.ENOENT, ["'/a/b'", "check the path"]),
        (errno.EACCES, ["'/a/b'", "check the rights"]),
        (errno.EPERM, ["'/a/b'", "check the rights"]),
        (errno.EROFS, ["'/a/b'", "read-only"]),
        (errno.EISDIR, ["'/a/b'", "name a file"]),
        (errno.ENOTDIR, ["'/a/b'", "a part of it is a file"]),
        (errno.EEXIST, ["'/a/b'", "move it away"]),
        (errno.ENAMETOOLONG, ["'/a/b'", "shorter"]),
        (errno.ELOOP, ["'/a/b'", "circle"]),
    ],
)
def test_what_the_system_refuses_is_bad_input(number, parts):
    kind, text, code = said(raised(OSError(number, os.strerror(number), "/a/b")))
    assert (kind, code) == ("error", 2)
    for part in (*parts, os.strerror(number), "rule:", "remedy:", "--debug"):
        assert part in text


def test_two_paths_are_both_named():
    assert "'a' to 'b'" in said(raised(OSError(errno.EISDIR, "Is a directory", "a", None, "b")))[1]


@pytest.mark.parametrize(
    ("error", "kind", "code", "parts"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "interrupted", 130, ["the disk is full", "make room"]),
        (OSError(errno.EIO, "Input/output error"), "error", 1, ["the system refused", "spo-bench doctor"]),
        (ConnectionResetError(errno.ECONNRESET, "reset"), "error", 1, ["the system refused", "try again"]),
        (MemoryError(), "error", 1, ["memory ran out", "fewer --jobs"]),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "error", 1, ["memory ran out", "batch_size"]),
        (ModuleNotFoundError("No module named 'peft.utils'", name="peft.utils"), "error", 1, ["'peft' is not installed", "doctor"]),
        (KeyboardInterrupt(), "interrupted", 130, ["stopped"]),
        (Interrupted("stopped; the same command goes on"), "interrupted", 130, ["goes on"]),
        (InputError("a", "b", "c"), "error", 2, ["a\n  rule: b\n  remedy: c"]),
        (StageError("train: NaN"), "error", 1, ["train: NaN"]),
        (TypeError("first\nsecond"), "error", 1, ["a fault of spo-bench itself: TypeError: first (test_telling.py:", "--debug", "report it"]),
        (AssertionError(), "error", 1, ["a fault of spo-bench itself: AssertionError (test_telling.py:"]),
    ],
)  # fmt: skip
def test_everything_has_a_message_and_an_exit_code(error, kind, code, parts):
    found = said(raised(error))
    assert (found[0], found[2]) == (kind, code)
    for part in parts:
        assert part in found[1]
    assert "second" not in found[1]


@pytest.fixture
def faulty(monkeypatch, tmp_path, capsys):
    """Run the command in this process with a fault of its own in it; return exit code, output and errors."""

    def run(*words: str, fault: BaseException | None = None) -> tuple[int, str, str]:
        def fail(*_):
            raise fault or ZeroDivisionError("division by zero")

        monkeypatch.setattr("spo_bench.matrix.load.presets", fail)
        monkeypatch.setattr(sys, "argv", ["spo-bench", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    monkeypatch.setenv("SPO_BENCH_DEBUG", "")  # what --debug sets is undone at the end
    return run


def test_a_fault_of_ours_is_one_message(faulty):
    code, out, err = faulty("presets", "list")
    assert (code, out) == (1, "")
    assert err.startswith("error: this is a fault of spo-bench itself: ZeroDivisionError: division by zero (catalogue.py:")
    assert "the same command with --debug shows where" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "words", [("--debug", "presets", "list"), ("presets", "--debug", "list"), ("presets", "list", "--debug")]
)
def test_debug_shows_where_wherever_it_stands(faulty, words):
    code, _, err = faulty(*words)
    assert code == 1
    assert "Traceback" in err
    assert "catalogue.py" in err
    assert err.rstrip().endswith("please report it")


@pytest.mark.parametrize(("value", "shown"), [("1", True), ("yes", True), ("0", False), ("false", False), ("", False)])
def test_debug_by_the_environment(faulty, monkeypatch, value, shown):
    monkeypatch.setenv("SPO_BENCH_DEBUG", value)
    assert ("Traceback" in faulty("presets", "list")[2]) is shown


def test_ctrl_c_ends_with_130(faulty):
    code, _, err = faulty("presets", "list", fault=KeyboardInterrupt())
    assert (code, err) == (130, "interrupted: stopped\n")


def test_what_is_no_exception_is_told_too(faulty):
    class Odd(BaseException):
        pass

    code, _, err = faulty("presets", "list", fault=Odd("odd"))
    assert (code, "Odd: odd" in err, "Traceback" in err) == (1, True, False)


def test_debug_shows_where_bad_input_was_refused(commands, tmp_path):
    for words in (("--debug", "run", "--matrix", "quikc"), ("run", "--matrix", "quikc", "--debug")):
        done = commands.run(words, tmp_path, {})
        assert done.code == 2
        assert "Traceback" in done.err
        assert "in _find" in done.err
        assert "did you mean 'quick'?" in done.err.splitlines()[-1]
    after = commands.run(("init", "--", "--debug"), tmp_path, {})  # after -- it is a name like any other
    assert after.code == 0
    assert (tmp_path / "--debug" / "study.yaml").is_file()


def test_a_fault_in_a_gate_decides_nothing(monkeypatch, tmp_path, capsys):
    """Exit code 1 is kept for what is worse."""
    run = write_run(tmp_path / "run", night(0, arms=1, prompts=12))
    monkeypatch.setattr(sys, "argv", ["spo-bench", "gate", str(run), "--reference", str(run)])
    monkeypatch.setattr("spo_bench.gate.judge.match", lambda *_: 1 / 0)
    with pytest.raises(SystemExit) as ended:
        main()
    errors = capsys.readouterr().err
    assert ended.value.code == 3
    assert "a fault of spo-bench itself: ZeroDivisionError" in errors
    assert "Traceback" not in errors


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def test_a_full_disk_behind_stdout(tmp_path):
    """What is written late, when the buffer is emptied, is told too; the interpreter has nothing to add."""
    command = [sys.executable, "-m", "spo_bench", "presets", "show", "quick"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=ENVIRONMENT)
    assert done.returncode == 130
    assert done.stderr.startswith("interrupted: the disk is full")
    assert "Exception ignored" not in done.stderr
    assert "Traceback" not in done.stderr


def test_streams_that_are_closed(tmp_path):
    done = subprocess.run(["/bin/sh", "-c", f"'{sys.executable}' -m spo_bench presets >&- 2>&-"], cwd=tmp_path, env=ENVIRONMENT)
    assert done.returncode == 0


def test_ctrl_c_while_the_command_is_imported(tmp_path):
    """A finder that waits stands for a slow disk."""
    (tmp_path / "slow.py").write_text(
        "import sys, time\nfrom spo_bench.cli.main import main\n"
        "class Slow:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'spo_bench.cli.app':\n"
        "            print('importing', flush=True)\n"
        "            time.sleep(60)\n"
        "sys.meta_path.insert(0, Slow())\nmain()\n"
    )
    running = subprocess.Popen(
        [sys.executable, "slow.py"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=ENVIRONMENT, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert running.stdout.readline() == "importing\n"
    time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert (running.returncode, errors) == (130, "interrupted: stopped\n")


def test_a_broken_installation_is_told(tmp_path):
    """Without a package that everything needs there is still a message."""
    (tmp_path / "yaml.py").write_text("raise ModuleNotFoundError(\"No module named 'yaml'\", name='yaml')\n")
    done = subprocess.run(
        [sys.executable, "-m", "spo_bench", "presets", "list"], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )  # fmt: skip
    assert done.returncode == 1
    assert "the package 'yaml' is not installed" in done.stderr
    assert "Traceback" not in done.stderr
