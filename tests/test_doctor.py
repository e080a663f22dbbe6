"""spo-bench doctor: what it sees of a machine, and what it says where something is broken."""

from __future__ import annotations

import fcntl
import json
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from endpoint import Answer, shown
from endpoint import said as answered
from gate_run import contents
from judge_setup import SECRET

from spo_bench.cli import machine
from spo_bench.cli.machine import Check, JudgeAsked, examine


def checks(tmp_path: Path, **more) -> dict[str, Check]:
    """Examine this machine, with store and results in a folder of the test."""
    return {check.name: check for check in examine(tmp_path / "store", tmp_path / "results", **more)}


def test_this_machine_is_ready_and_nothing_is_asked_or_left(tmp_path, commands, monkeypatch):
    """A process of its own: every check is well; the key is not shown; nothing stays."""
    environment = {
        "SPO_BENCH_STORE": "store",
        "HOME": str(tmp_path),
        "OPENAI_API_KEY": SECRET,
        "LANG": "C.UTF-8",
        "COLUMNS": "200",
    }
    done = commands.run(("doctor", "--json"), tmp_path, environment)
    found = {check["check"]: check for check in json.loads(done.out)}
    assert done.code == 0, [check for check in found.values() if not check["ok"]]
    expected = {
        "python",
        "torch",
        "transformers",
        "pydantic",
        "memory",
        "cores",
        "store",
        "disk",
        "results",
        "disk of results",
        "plugins",
    }
    assert expected | {"git", "judge key", "hub", "device", "CUDA"} <= found.keys()
    assert "computes" in found["device"]["seen"]
    assert ">=2.8" in found["torch"]["seen"]
    assert found["judge key"]["seen"] == "OPENAI_API_KEY is set"
    assert SECRET not in done.out + done.err
    assert contents(tmp_path) == {}


def test_no_network_is_touched_unless_it_is_asked_for(tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    found = checks(tmp_path)
    assert found["hub"].ok
    assert "judge" not in found
    assert all(check.ok for check in found.values()), found


def test_packages_are_held_against_what_is_asked_for(tmp_path, monkeypatch):
    real = machine.version

    def version(name: str) -> str:
        if name == "peft":
            raise PackageNotFoundError(name)
        return {"torch": "2.2.0", "transformers": "9.0"}.get(name) or real(name)

    monkeypatch.setattr(machine, "version", version)
    found = {check.name: check for check in machine._packages()}
    for name, said in {"torch": "2.2.0", "transformers": "9.0", "peft": "not installed"}.items():
        assert not found[name].ok
        assert said in found[name].seen
        assert f"pip install '{name}" in found[name].seen
    assert found["numpy"].ok


def test_places_that_will_not_do(tmp_path, monkeypatch):
    (tmp_path / "store").write_text("a file")
    found = checks(tmp_path)
    assert not found["store"].ok
    assert "is a file; give another place" in found["store"].seen
    assert found["results"].ok

    def nowhere(handle, how):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", nowhere)
    found = {check.name: check for check in machine._place("results", tmp_path / "results")}
    assert found["results"].ok  # a run can do without
    assert "without locks (Operation not supported)" in found["results"].seen


def test_a_broken_check_does_not_stop_the_others(tmp_path, monkeypatch):
    def broken():
        raise ValueError("no such file\nas this")

    monkeypatch.setattr("spo_bench.engine.free.available", broken)
    found = checks(tmp_path)
    assert found["memory"] == Check("memory", False, "ValueError: no such file")
    assert found["device"].ok


def test_little_memory_and_a_container_are_said(monkeypatch):
    monkeypatch.setattr("spo_bench.engine.free.available", lambda: 8 * 2.0**30)
    monkeypatch.setattr("spo_bench.engine.free.left_in_group", lambda: 2.0**30)
    memory = next(iter(machine._memory()))
    assert not memory.ok
    assert memory.seen.startswith("8.0 GiB free; the container leaves 1.0 GiB; less than")


def test_broken_plugins_are_named(tmp_path, commands):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.py").write_text("import nosuchmodule\n")
    done = commands.run(
        ("doctor", "--tasks", "tasks"), tmp_path, {"SPO_BENCH_STORE": "store", "HOME": str(tmp_path), "COLUMNS": "200"}
    )
    assert done.code == 1
    (line,) = [line for line in done.out.splitlines() if line.startswith("FAIL")]
    assert line.startswith("FAIL task plugin mine: ")
    assert line.endswith("tasks/mine.py cannot be loaded: ModuleNotFoundError: No module named 'nosuchmodule'")


@contextmanager
def hub(status: int):
    """A hub that answers with this status, and notes what it was asked."""
    asked = []

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"[]")

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def test_the_hub_is_asked_where_that_is_wanted(monkeypatch):
    from huggingface_hub import constants

    assert next(iter(machine._hub(online=True))).seen.startswith("offline mode")  # as tests run
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert "--online asks" in next(iter(machine._hub(online=False))).seen
    with hub(200) as (url, asked):
        monkeypatch.setattr(constants, "ENDPOINT", url)
        check = next(iter(machine._hub(online=True)))
        assert check.ok
        assert f"{url} answered" in check.seen
        assert asked == ["/api/models?limit=1"]
    check = next(iter(machine._hub(online=True)))  # it is gone
    assert not check.ok
    assert "--offline" in check.seen
    with hub(503) as (url, _):
        monkeypatch.setattr(constants, "ENDPOINT", url)
        assert not next(iter(machine._hub(online=True))).ok


def test_a_judge_is_asked_once(endpoint):
    endpoint.script = lambda body, number: answered(body, "A" if "four" in shown(body)[0] else "B")
    (check,) = machine._judge(JudgeAsked("judge-2030-01-01", endpoint.url, "JUDGE_KEY"))
    assert check.ok, check
    assert "1 request in" in check.seen
    assert "verdict a, the right one" in check.seen
    assert SECRET not in check.seen
    assert len(endpoint.bodies) == 1


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(status=401, body=b'{"error": {"message": "wrong key"}}'), "refused the key"),
        (Answer(status=404, body=b'{"error": {"message": "no such model"}}'), "no such model"),
        (Answer(text="I cannot say."), "no verdict"),
        (Answer(status=500, body=b"oops"), "500"),
    ],
    ids=["key", "model", "words", "fault"],
)
def test_a_judge_that_will_not_do(endpoint, answer, said):
    endpoint.script = lambda body, number: answer
    (check,) = machine._judge(JudgeAsked("judge", endpoint.url, "JUDGE_KEY"))
    assert not check.ok
    assert said in check.seen
    assert "\n" not in check.seen


def test_a_judge_without_a_key_or_an_address():
    (check,) = machine._judge(JudgeAsked("judge", "https://example.invalid/v1", "NO_SUCH_KEY"))
    assert not check.ok
    assert "NO_SUCH_KEY is not set" in check.seen
    (check,) = machine._judge(JudgeAsked("judge", "nonsense", "NO_SUCH_KEY"))
    assert not check.ok
    assert "http://" in check.seen


def test_a_device_that_computes_wrongly_is_no_device():
    import torch

    class Wrong:
        """Torch, whose ones are twos."""

        def ones(self, *shape, **more):
            return torch.full(shape, 2.0, requires_grad=True)

    check = machine._computes(Wrong(), "cuda:0", "a GPU")
    assert (check.name, check.ok, check.seen) == ("device cuda:0", False, "a GPU; computes wrongly")
    broken = machine._computes(torch, "cuda:7", "a GPU")
    assert not broken.ok
    assert broken.seen.startswith("a GPU; it cannot compute: ")
