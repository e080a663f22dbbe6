"""A matrix here against one TRL job a cell: wall-clock seconds of everything, from an empty store to the report.

Usage: python benchmarks/matrix.py MODEL_DIRECTORY PAIRS.jsonl[.gz] [--steps 4] [--batch 4] [--methods dpo ipo] [--seeds 0 1]
       [--trl-jobs N] [--json]

Cells: methods x {baseline, +SPO} x seeds, full fine-tuning. Here they are one ``spo-bench run`` with an empty store, all of which
counts: data, the reference pass, training, saving, and also what TRL's jobs do not do at all: answers to two prompts a cell (with
those of the SFT policy), their scores, the statistics and the report. TRL has no SPO, so a +SPO cell stands against a job of the
plain method, which does less work. A TRL job is a process of its own, as a script would start it: it loads the model, tokenises,
makes its own reference pass (``precompute_ref_log_probs``), takes as many steps on as many pairs, and saves nothing.

Half of TRL's jobs run before our matrix and half after it. With ``--trl-jobs`` fewer of them than cells are run, and the mean of
those stands for the others.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measuring import add_output, describe, show, table
from own_side import Setup, whole_rows
from trl_side import dpo_trainer

from spo_bench.engine.attempt import keep_freed_memory
from spo_bench.engine.free import cores_here
from spo_bench.files import read_json, read_jsonl, write_json
from spo_bench.models.policy import load_policy, load_tokenizer

LOSSES = {"dpo": "sigmoid", "ipo": "ipo"}
LEARNING_RATE = 1e-6


def spec(wanted: argparse.Namespace) -> dict[str, Any]:
    """Return our matrix."""
    return {
        "name": "matrix",
        "models": [str(wanted.model.resolve())],
        "tasks": [
            {
                "name": wanted.task,
                "data": str(wanted.data.resolve()),
                "limit": {"train": wanted.steps * wanted.batch, "eval": 2, "heldout": 0, "sft": 0},
                "max_dropped": 0.5,
            }
        ],
        "methods": wanted.methods,
        "spo": [False, True],
        "seeds": wanted.seeds,
        "train": {
            "batch_size": wanted.batch,
            "max_steps": wanted.steps,
            "max_length": wanted.max_length,
            "learning_rate": LEARNING_RATE,
            "schedule": "constant",
            "warmup": 0.0,
            "dtype": wanted.dtype,
        },
        "generate": {"max_new_tokens": 8, "batch_size": 2},
    }


def own_matrix(wanted: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run our matrix by its command; return its seconds, and those of its training steps."""
    write_json(folder / "matrix.yaml", spec(wanted))  # JSON is YAML
    out = folder / "run"
    command = [sys.executable, "-m", "spo_bench", "run", "--matrix", str(folder / "matrix.yaml"), "--out", str(out)]
    command += ["--store", str(folder / "store"), "--device", "cpu", "--jobs", wanted.jobs, "--offline"]
    seconds = timed(command)
    cells = [cell for cell in read_jsonl(out / "cells.jsonl") if cell["method"] != "sft"]
    trained = [read_json(out / "cells" / cell["id"] / "scores.json")["scalars"] for cell in cells]
    return {
        "seconds": seconds,
        "cells": len(cells),
        "training_seconds": [one["seconds"]["value"] for one in trained],
        "step_seconds": [one["step_seconds"]["value"] for one in trained],
        "peak_memory": max(one["peak_memory"]["value"] for one in trained),
    }


def timed(command: Sequence[str]) -> float:
    """Return how long a command takes.

    Raises:
        SystemExit: it failed; what it said is shown.
    """
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    return time.perf_counter() - started


def trl_jobs(wanted: argparse.Namespace, jobs: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
    """Run TRL jobs (method, seed) one after the other, a process each."""
    same = [
        str(wanted.model),
        str(wanted.data),
        "--task",
        wanted.task,
        "--steps",
        str(wanted.steps),
        "--batch",
        str(wanted.batch),
    ]
    same += ["--max-length", str(wanted.max_length), "--dtype", wanted.dtype]
    found = []
    for method, seed in jobs:
        command = [sys.executable, __file__, *same, "--as-trl-job", method, str(seed)]
        found.append({"method": method, "seed": seed, "seconds": timed(command)})
    return found


def trl_job(wanted: argparse.Namespace, method: str, seed: int) -> None:
    """Train once with TRL at its best settings here, in this process."""
    import torch

    torch.set_num_threads(cores_here())
    keep_freed_memory()
    setup = Setup(
        wanted.batch, wanted.steps, LEARNING_RATE, wanted.max_length, wanted.dtype, "cpu", micro=wanted.batch, seed=seed
    )
    tokenizer = load_tokenizer(wanted.model)
    records = whole_rows(tokenizer, str(wanted.data), wanted.task, wanted.steps * wanted.batch, wanted.max_length)
    model = load_policy(wanted.model, setup.numerics)
    with tempfile.TemporaryDirectory() as folder:
        trainer = dpo_trainer(model, tokenizer, records, setup, Path(folder), setup.micro, loss=LOSSES[method])
        trainer.train()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--task", default="dialogue")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--methods", nargs="+", choices=tuple(LOSSES), default=list(LOSSES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--jobs", default="auto", help="of our matrix")
    parser.add_argument("--trl-jobs", type=int, help="run only so many; 0: none")
    parser.add_argument("--as-trl-job", nargs=2, metavar=("METHOD", "SEED"), help="be one TRL job")
    add_output(parser)
    wanted = parser.parse_args()
    if wanted.as_trl_job:
        trl_job(wanted, wanted.as_trl_job[0], int(wanted.as_trl_job[1]))
        return
    cells = [(method, seed) for method in wanted.methods for _ in ("baseline", "+SPO") for seed in wanted.seeds]
    jobs = cells[: wanted.trl_jobs]
    with tempfile.TemporaryDirectory() as folder:
        before = trl_jobs(wanted, jobs[: len(jobs) // 2])
        own = own_matrix(wanted, Path(folder))
        theirs = before + trl_jobs(wanted, jobs[len(jobs) // 2 :])
    result: dict[str, Any] = {"about": describe(), "settings": spec(wanted), "cells": len(cells), "own": own, "trl": theirs}
    if theirs:
        every = sum(job["seconds"] for job in theirs) / len(theirs) * len(cells)
        result |= {"trl_seconds": every, "ratio": every / own["seconds"]}

    def text() -> str:
        training = sum(own["training_seconds"])
        rows = [["one matrix here, everything", f"{own['seconds']:.0f}", ""], ["  of it training", f"{training:.0f}", ""]]
        if theirs:
            ran = "" if len(theirs) == len(cells) else f" (from the mean of {len(theirs)})"
            rows.append([f"{len(cells)} TRL jobs{ran}", f"{result['trl_seconds']:.0f}", f"{result['ratio']:.2f}"])
        lines = [f"{len(cells)} cells of {wanted.steps} steps of {wanted.batch} pairs, {wanted.dtype}"]
        return "\n\n".join([*lines, table(["what", "seconds", "ratio"], rows)])

    show(json.loads(json.dumps(result, default=str)), wanted, text)


if __name__ == "__main__":
    main()
