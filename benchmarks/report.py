"""Rendering the report of a large run, and opening its page.

Usage: python benchmarks/report.py [--cells 1000] [--prompts 500] [--keep DIR] [--json]

A synthetic run is written first: 4 models × 5 tasks × 10 arms (SFT, and three methods alone, with SPO and with a control) ×
seeds, whose files have the shapes and about the sizes of real ones. `spo-bench report` then runs as a program of its own: its
time and peak memory are the figures. Last, Chromium opens the page, and the time until the first samples are listed is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spo_bench.engine.collect import DONE
from spo_bench.files import write_json
from spo_bench.store.sealed import listed, signed

MODELS = [f"models/policy-{size}" for size in ("135M", "360M", "1.7B", "7B")]
TASKS = ["dialogue", "summarization", "code", "safety", "facts"]
METHODS = ["dpo", "ipo", "simpo"]
SETTINGS = {
    "degrees": 4,
    "order": "score_desc",
    "unit": "phrase",
    "op": "delete",
    "side": "both",
    "text": "dataset",
    "gamma": 0.1,
}
SPO = {**SETTINGS, "control": None, "label": "+SPO"}
CONTROL = {**SETTINGS, "control": "random_removal", "label": "+SPO[random_removal]"}
ARMS: list[tuple[str, Any]] = [("sft", False), *((method, spo) for method in METHODS for spo in (False, SPO, CONTROL))]
WORDS = [
    "the",
    "a",
    "of",
    "and",
    "which",
    "some",
    "water",
    "light",
    "house",
    "river",
    "walks",
    "takes",
    "finds",
    "small",
    "garden",
    "letter",
]
STEPS = 200


def cells(count: int) -> Iterator[dict[str, Any]]:
    """Yield so many lines of cells.jsonl, seed after seed of the whole matrix."""
    place = 0
    for seed in range(count):
        for model in MODELS:
            for task in TASKS:
                for method, spo in ARMS:
                    if place == count:
                        return
                    name = "-".join(
                        [
                            model.rsplit("/", 1)[1],
                            task,
                            method,
                            *([spo["label"].strip("+").replace("[", "_")] if spo else []),
                            f"s{seed}",
                        ]
                    )
                    yield {
                        "id": name.replace("]", ""),
                        "model": model,
                        "task": task,
                        "method": method,
                        "spo": spo,
                        "seed": seed,
                        "axes": {},
                        "status": "done",
                        "reason": None,
                        "keys": {},
                    }  # fmt: skip
                    place += 1


def write_run(directory: Path, count: int, prompts: int) -> None:
    """Write the files a run of so many cells leaves before its report."""
    draw, noise = random.Random(0), np.random.default_rng(0)
    lines = list(cells(count))
    texts = [" ".join(draw.choices(WORDS, k=40)) for _ in range(400)]
    hard = {task: noise.normal(0, 0.3, prompts) for task in TASKS}
    for line in lines:
        folder = directory / "cells" / line["id"]
        folder.mkdir(parents=True)
        write_cell(folder, line, [f"{line['task'][:4]}{i:012x}" for i in range(prompts)], hard[line["task"]], texts, noise)
    write_lines(directory / "cells.jsonl", lines)
    spec = {
        "name": "large",
        "models": MODELS,
        "tasks": TASKS,
        "methods": METHODS,
        "seeds": sorted({line["seed"] for line in lines}),
    }
    run = {"schema_version": 1, "spec": spec, "status": "done", "provenance": {"command": "synthetic"}, "seconds": 3600.0}
    write_text(directory / "run.json", json.dumps(run))


def write_cell(folder: Path, cell: dict[str, Any], ids: Sequence[str], hard: Any, texts: Sequence[str], noise: Any) -> None:
    """Write one cell's files."""
    n, trained, spo = len(ids), cell["method"] != "sft", cell["spo"]
    level = 0.5 + 0.3 * trained + 0.02 * bool(spo) + noise.normal(0, 0.02)
    score = level + hard + noise.normal(0, 0.3, n)

    def metric(values: Any, higher: bool = True, unit: str = "prompt") -> dict[str, Any]:
        return {
            "ids": ids,
            "values": np.asarray(values, float).tolist(),
            "clusters": None,
            "higher_is_better": higher,
            "unit": unit,
        }

    metrics = {"length": metric(noise.integers(20, 90, n), False), "distinct_2": metric(noise.uniform(0.5, 1, n))}
    metrics |= {
        "cut_off": metric(noise.integers(0, 2, n), False),
        "rouge_l": metric(noise.uniform(0, 1, n)),
        "reward/trained": metric(score),
    }
    opponents = {"chosen": "win_rate_chosen"}
    scalars = {}
    if trained:
        opponents |= {"sft": "win_rate_sft"}
        metrics |= {
            "kl": metric(noise.exponential(2, n), False),
            "implicit_accuracy": metric(noise.integers(0, 2, n), unit="pair"),
        }
        metrics |= {f"{side}_logratio": metric(noise.normal(0, 2, n), unit="pair") for side in ("chosen", "rejected")}
        scalars = {
            name: {"value": 10.0 + noise.uniform(), "higher_is_better": False}
            for name in ("seconds", "step_seconds", "peak_memory")
        }
    if spo:
        opponents |= {"baseline": "head_to_head"}
        metrics["degree_accuracy"] = metric(noise.uniform(0, 1, n), unit="pair")
    judged = []
    for opponent, name in opponents.items():
        wins = (score + noise.normal(0, 0.5, n) > 0.6).astype(float)
        metrics[name] = metric(wins)
        for one, win in zip(ids, wins, strict=True):
            side = "a" if win else "b"
            orders = [
                {"first": first, "raw": f"Verdict: [[{side.upper()}]]", "verdict": side, "finish": "stop"} for first in ("a", "b")
            ]
            row = {"opponent": opponent, "id": one, "outcome": side, "score": win, "orders": orders, "reason": None}
            judged.append({**row, "length_a": 200, "length_b": 190, "cluster": None})
    bins = {"0-16": [330, 398], "16-32": [400, 536], "32-64": [16, 21]} if spo else {}
    write_text(
        folder / "scores.json", json.dumps({"metrics": metrics, "scalars": scalars, "length_controlled": {}, "degree_bins": bins})
    )
    start = int(noise.integers(0, len(texts)))
    samples = [
        {
            "id": one,
            "prompt": texts[i % len(texts)],
            "answer": texts[(start + i) % len(texts)],
            "ids": list(range(50)),
            "tokens": 50,
        }
        | {"finish": "stop", "chosen": texts[(i + 7) % len(texts)]}
        for i, one in enumerate(ids)
    ]
    write_lines(folder / "samples.jsonl", samples)
    write_lines(folder / "judgments.jsonl", judged)
    for name in ("spec.json", "provenance.json"):
        write_text(folder / name, "{}")
    if trained:
        names = [
            "loss",
            "alignment_loss",
            "reward_accuracy",
            "margin",
            "chosen_logratio",
            "rejected_logratio",
            "grad_norm",
            "seconds",
        ]
        steps = noise.uniform(0, 1, (STEPS, len(names)))
        log = [
            {"step": i, **dict(zip(names, row.tolist(), strict=True)), **({"degree_accuracy": row[0]} if spo else {})}
            for i, row in enumerate(steps)
        ]
        write_lines(folder / "train.jsonl", log)
    write_json(folder / DONE, signed({"keys": {}, "retry": 0, "files": listed(folder)}))


def write_text(path: Path, text: str) -> None:
    """Write a file."""
    path.write_text(text, encoding="utf-8")


def write_lines(path: Path, rows: Sequence[Any]) -> None:
    """Write one JSON value a line."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def opened(page: Path) -> dict[str, Any] | None:
    """Return what Chromium takes to open the page until samples are listed; None where it is not installed."""
    browser_path = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )
    if browser_path is None:
        return None
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1300, "height": 900})
        tab.goto("about:blank")
        started = time.perf_counter()
        tab.goto(page.as_uri(), wait_until="load")
        loaded = time.perf_counter() - started
        tab.wait_for_selector("[data-sample]", state="attached", timeout=60_000)
        listed = time.perf_counter() - started
        embedded = tab.evaluate("Number(document.documentElement.dataset.samples || 0)")
        browser.close()
    return {"samples": embedded, "megabytes": page.stat().st_size / 1e6, "load_seconds": loaded, "listed_seconds": listed}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--keep", type=Path, help="write the run here and leave it; an existing one is used as it is")
    parser.add_argument("--json", action="store_true")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = wanted.keep or Path(name) / "run"
        if not (directory / "run.json").exists():
            write_run(directory, wanted.cells, wanted.prompts)
        size = sum(path.stat().st_size for path in (directory / "cells").rglob("*") if path.is_file())
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "spo_bench", "report", str(directory)], check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        result = {
            "versions": {"python": platform.python_version(), "numpy": np.__version__},
            "cores": os.cpu_count(),
            "cells": sum(1 for _ in (directory / "cells").iterdir()),
            "input_megabytes": size / 1e6,
            "seconds": seconds,
            "peak_memory_gib": peak,
            "page": opened(directory / "report.html"),
        }
    if wanted.json:
        print(json.dumps(result, indent=1))
        return
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores")
    print(
        f"{result['cells']} cells × {wanted.prompts} prompts, {size / 1e6:,.0f} MB of files: {seconds:.1f} s, peak {peak:.2f} GiB"
    )
    if result["page"]:
        page = result["page"]
        size_and_count = f"page of {page['megabytes']:.1f} MB with {page['samples']:,} samples"
        print(f"{size_and_count}: loaded {page['load_seconds']:.2f} s, listed {page['listed_seconds']:.2f} s")


if __name__ == "__main__":
    main()
