"""The command in processes that begin at once: a server imports it, without torch, and forks a process for every command.

Each has its own arguments, working directory, environment, streams and exit code, as if it had been started from a shell.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

WARM = (
    *("cli.app", "cli.telling", "cli.machine", "cli.judge_audit", "api", "matrix.load", "matrix.plan", "matrix.judge_cost"),
    *("gate.judge", "gate.output", "report.compare", "report.write", "report.page", "report.figures", "engine.attempt"),
    *("judging.api", "judging.annotations", "judging.pairs", "judging.records"),
)


class Done(NamedTuple):
    """How a command ended; ``torch``: whether it imported torch."""

    code: int
    out: str
    err: str
    torch: bool


class Commands:
    """A server of commands; a context that ends with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Self:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONUTF8": "1", "HF_HUB_OFFLINE": "1"}
        self.server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.server.communicate(timeout=60)

    def run(self, words: Sequence[str], cwd: Path, env: Mapping[str, str]) -> Done:
        """Run ``spo-bench WORDS`` to its end."""
        streams = {name: str(self.folder / name) for name in ("out", "err")}
        self.server.stdin.write(json.dumps({"words": list(words), "cwd": str(cwd), "env": dict(env), **streams}) + "\n")
        self.server.stdin.flush()
        ended = json.loads(self.server.stdout.readline())
        texts = [Path(path).read_text(encoding="utf-8", errors="surrogateescape") for path in streams.values()]
        return Done(ended["code"], *texts, ended["torch"])


def serve() -> None:
    """Fork a process for every line of stdin, and answer with a line once it has ended."""
    for name in (*(f"spo_bench.{name}" for name in WARM), "huggingface_hub", "openai"):
        import_module(name)
    import_module("spo_bench.methods").discover()
    import_module("spo_bench.plugins").find_tasks()
    assert "torch" not in sys.modules
    gc.freeze()  # collecting would touch, and so copy, what the processes share
    for line in sys.stdin:
        reader, writer = os.pipe()
        if (child := os.fork()) == 0:
            os.close(reader)
            _be(json.loads(line), writer)
        os.close(writer)
        with os.fdopen(reader) as noted:
            torch = noted.read() == "torch"
        _, status = os.waitpid(child, 0)
        sys.stdout.write(json.dumps({"code": os.waitstatus_to_exitcode(status), "torch": torch}) + "\n")
        sys.stdout.flush()


def _be(job: Mapping[str, Any], writer: int) -> None:
    """Be the command, to the end of this process."""
    from spo_bench.cli.main import main

    os.set_inheritable(writer, False)
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["env"])
    writes = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    for number, (path, mode) in enumerate(((os.devnull, os.O_RDONLY), (job["out"], writes), (job["err"], writes))):
        os.dup2(os.open(path, mode, 0o600), number)
    sys.argv = ["spo-bench", *job["words"]]
    code: Any = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    except BaseException:  # noqa: BLE001 - as an interpreter would
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(writer, b"torch" if "torch" in sys.modules else b"-")
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


if __name__ == "__main__":
    serve()
