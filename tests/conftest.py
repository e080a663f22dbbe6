"""What tests share."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

# Workers side by side share the cores; what they start does so too.
os.environ.setdefault(
    "OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))
)

import torch
from endpoint import Endpoint, in_thread, log_of, program
from hypothesis import settings

# Before anything imports a hub client: nothing in a test may reach for the net.
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
settings.register_profile("fixed", derandomize=True, database=None, deadline=None)
settings.load_profile("fixed")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

SHARED = Path(__file__).resolve().parents[1].parent / "shared"
MODELS = ("llama", "gpt2", "gpt_neox", "qwen2")
# A matrix on the embedded model that is as small as one can be: two methods, one step.
SMALL_SPEC = {
    "name": "tiny",
    "models": ["embedded"],
    "tasks": [{"name": "controlled_dialogue", "limit": {"train": 16, "eval": 4, "heldout": 8, "sft": 16}}],
    "methods": ["dpo", "ipo"],
    "train": {"batch_size": 8, "max_steps": 1, "max_length": 128},
    "generate": {"max_new_tokens": 8},
}


# Files of few long tests: begun last, they would leave all but one worker idle at the end.
LONGEST = ("test_real.py", "test_axes.py", "test_chaos.py", "test_checkpoints.py", "test_sampling.py", "test_spo.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data and the script that makes a real model; tests that use it carry the marker `real`."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"no real data: {SHARED} is not there")
    return SHARED


@pytest.fixture(scope="session")
def smollm2(shared: Path) -> Path:
    """A directory with SmolLM2-135M-Instruct; made once, kept between runs."""
    import subprocess

    directory = (
        Path(os.environ.get("SPO_BENCH_TEST_MODELS", Path.home() / ".cache" / "spo-bench-tests")) / "SmolLM2-135M-Instruct"
    )
    directory.parent.mkdir(parents=True, exist_ok=True)
    with directory.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # workers side by side: one makes it, the others wait
        if not (directory / "model.safetensors").is_file():
            command = [sys.executable, str(shared / "bin" / "get-smollm2"), str(directory)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"SmolLM2 cannot be made here: {done.stderr.strip().splitlines()[-1]}")
    return directory


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    """A scripted judge endpoint on this machine, with its key in JUDGE_KEY."""
    from judge_setup import SECRET

    monkeypatch.setenv("JUDGE_KEY", SECRET)
    with in_thread(Endpoint()) as serving:
        yield serving


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., tuple[str, Any]]]:
    """Start the endpoint as a program of its own, which outlives a client that is killed; return its address and its log."""
    with ExitStack() as programs:

        def start(script: str, delay: float = 0.0) -> tuple[str, Any]:
            log = tmp_path / f"{script}.log"
            options = ["--script", script, "--delay", str(delay), "--allow", "16", "--log", str(log)]
            url = programs.enter_context(program(*options))
            return url, lambda: log_of(log)

        yield start


@pytest.fixture(scope="session")
def commands(tmp_path_factory) -> Iterator[Any]:
    """A server of commands: each is a process of its own, which begins at once."""
    from warm_command import Commands

    with Commands(tmp_path_factory.mktemp("streams")) as serving:
        yield serving


@pytest.fixture
def command(monkeypatch, tmp_path, capsys) -> Callable[..., tuple[int, str, str]]:
    """Run the command in this process, since one of its own takes two seconds to begin; return exit code, output and errors."""

    from spo_bench.cli.main import main

    def run(*words: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["spo-bench", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPO_BENCH_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("COLUMNS", "500")
    monkeypatch.setenv("SPO_BENCH_DEBUG", "")  # what --debug sets is for the rest of the process
    return run


@pytest.fixture
def here(monkeypatch, command) -> Callable[..., tuple[int, str, str]]:
    """Run `spo-bench judge` in this process."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    return partial(command, "judge")


def tiny_model(kind: str = "llama", vocabulary: int = 61) -> Any:
    """A small randomly initialised causal language model of an architecture, with room for long sequences."""
    from tiny_models import build

    room = {"n_positions": 1024} if kind == "gpt2" else {"max_position_embeddings": 2048}
    return build(kind, vocab_size=vocabulary, pad_token_id=None, **room)
