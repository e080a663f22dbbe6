"""What a command costs that makes nothing: the plan of 10,000 cells, and a finished run of 1,000 cells started again.

Usage: python benchmarks/planning.py [--rounds 3] [--json]

Models are ten local directories of the embedded architecture with different weights, tasks the built-in worlds. The plan is of an
empty store: 10 models x 5 tasks x 20 methods x {baseline, +SPO} x 5 seeds, and the SFT policies. The finished run is laid out as
a run leaves it, with seals in place of artifacts, because what is looked at are seals: 10 models x 5 tasks x 5 methods x
{baseline, +SPO} x 2 seeds, and the SFT policies. Seconds are those of the whole command, the start of Python included.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measuring import add_output, describe, show, table

from spo_bench import api
from spo_bench.engine.collect import DONE, cell_record, write_record
from spo_bench.engine.engine import unique_in_order
from spo_bench.files import write_json, write_jsonl, write_text
from spo_bench.matrix.load import load_spec
from spo_bench.models.embedded import build_embedded
from spo_bench.report.mark import leave_mark
from spo_bench.store.sealed import SEAL, entry, listed, signed

METHODS = (
    *("dpo", "ipo", "kto", "hinge", "cdpo", "ada_dpo", "alpha_dpo", "aot", "apo_down", "apo_zero"),
    *("beta_dpo", "dpo_norm", "dpop", "exo", "f_dpo", "lrml", "margin_dpo", "nca", "robust", "rpo"),
)
WORLDS = ("controlled_dialogue", "controlled_dialogue_tone", "controlled_summarization", "controlled_summarization_brevity")

FILES = ("spec.json", "provenance.json", "scores.json", "samples.jsonl", "judgments.jsonl", "train.jsonl")


def spec(name: str, models: Sequence[Path], methods: Sequence[str], seeds: int) -> dict[str, Any]:
    """Return a matrix over all models and five tasks."""
    return {
        "name": name,
        "models": [str(model) for model in models],
        "tasks": [*WORLDS, {"name": WORLDS[0], "label": "once_more"}],
        "methods": list(methods),
        "spo": [False, True],
        "seeds": list(range(seeds)),
        "train": {"max_length": 128},
        "generate": {"max_new_tokens": 48},
        "sft": {"steps": 100},
    }


def finish(file: Path, out: Path, store: Path) -> int:
    """Lay out a finished run with marks in place of its artifacts; return its number of cells."""
    loaded = load_spec(str(file))
    cells = api.cells_of(loaded, store, "cpu")
    for stage in unique_in_order([stage for cell in cells for stage in cell.stages.values()]):
        if not stage.on_disk:
            seal = {"kind": stage.kind, "key": stage.key, "identity": stage.identity, "files": {}}
            write_json(store / stage.kind / stage.key / SEAL, signed(seal))
    for cell in cells:
        folder, keys = out / "cells" / cell.id, {name: stage.key for name, stage in cell.stages.items()}
        for name in FILES:
            write_text(folder / name, "{}\n")
        write_json(folder / DONE, signed({"keys": keys, "retry": 0, "files": listed(folder)}))
        if "train" in cell.stages:
            (folder / "policy").mkdir()
    write_jsonl(out / "cells.jsonl", [cell_record(cell, {}) for cell in cells])
    run = {"schema_version": 1, "status": "done", "spec": loaded.model_dump(mode="json"), "store": str(store), "purse": "none"}
    write_record(out, {**run, "files": {"cells.jsonl": entry(out / "cells.jsonl")}})
    write_text(out / "tables" / "main.md", "\n")
    leave_mark(out, [out / "tables" / "main.md"])
    return len(cells)


def seconds(command: Sequence[str], rounds: int) -> float:
    """Return the median seconds of a command of this package.

    Raises:
        SystemExit: it failed, or made something; what it said is shown.
    """
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "spo_bench", *command], capture_output=True, text=True, check=False)
        taken.append(time.perf_counter() - started)
        if done.returncode or (command[0] == "run" and " 0 stages to make" not in done.stderr):
            raise SystemExit(done.stderr)
    return statistics.median(taken)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    add_output(parser)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        models = [folder / f"model{number}" for number in range(10)]
        for number, model in enumerate(models):
            build_embedded(model, number)
        large, small = folder / "large.yaml", folder / "small.yaml"
        write_json(large, spec("large", models, METHODS, 5))  # JSON is YAML
        write_json(small, spec("small", models, METHODS[:5], 2))
        planned = len(api.cells_of(load_spec(str(large)), folder / "store", "cpu"))
        finished = finish(small, folder / "run", folder / "store")
        place = ["--store", str(folder / "store")]
        found = {
            f"plan of {planned:,} cells": seconds(["plan", "--matrix", str(large), *place], wanted.rounds),
            f"finished run of {finished:,} cells, again": seconds(
                ["run", "--matrix", str(small), "--out", str(folder / "run"), *place], wanted.rounds
            ),
        }
    rows = [[what, f"{taken:.2f}"] for what, taken in found.items()]
    show({"about": describe(), "seconds": found}, wanted, lambda: table(["what", "seconds"], rows))


if __name__ == "__main__":
    main()
