"""A run's files without a run: what the report is made from, with numbers from a fixed seed."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from spo_bench.files import write_json, write_jsonl

EVIL = "<script>alert('x')</script> & \"quotes\" | _pipe_ \\ $5 100% #1"
STEP_KEYS = ["step", "loss", "alignment_loss", "degree_loss", "degree_accuracy", "reward_accuracy", "margin", "chosen_logratio"]
STEP_KEYS += ["rejected_logratio", "grad_norm", "learning_rate", "tokens", "pairs", "seconds", "peak_memory"]


def make_run(
    out: Path,
    *,
    tasks=("controlled_dialogue", "controlled_summarization"),
    methods=("dpo", "ipo", "simpo"),
    variants=(False, {"label": "+SPO", "gamma": 0.1, "control": None}),
    seeds=(0, 1),
    prompts=24,
    steps=40,
    effect=0.05,
    model="embedded",
    failed=(),
    overlap=0,
    spec=None,
) -> Path:
    """Write the files a run leaves before its report: every baseline, its SPO variants and an SFT cell a task and seed.

    ``effect`` is what SPO adds to the true reward; ``failed`` holds (task, method, with SPO, seed) of cells that failed;
    ``spec`` has more sections of the spec in run.json.
    """
    cells, rng = [], np.random.default_rng(7)
    for task in tasks:
        ids = [f"{task[:14]}-{i:03d}" for i in range(prompts)]
        hardness = rng.normal(0, 0.15, prompts)
        for seed in seeds:
            for method, spo in [("sft", False), *((m, v) for m in methods for v in variants)]:
                label = spo["label"] if spo else ""
                name = "-".join(part for part in (model, task, method, label, f"s{seed}") if part)
                cell = {
                    "id": re.sub(r"[^\w.-]+", "_", name),
                    "model": model,
                    "task": task,
                    "method": method,
                    "spo": spo,
                    "seed": seed,
                    "status": "done",
                    "reason": None,
                    "keys": {"train": "0" * 8},
                    "axes": {},
                }
                if (task, method, bool(spo), seed) in failed:
                    cell |= {"status": "failed", "reason": f"loss is NaN at step 12 {EVIL}"}
                cells.append(cell)
                if cell["status"] == "done":
                    level = 0.6 if method == "sft" else 0.8 + (effect if spo else 0) + rng.normal(0, 0.01)
                    reward = np.clip(level + hardness + rng.normal(0, 0.08, prompts), 0, 1)
                    write_cell(out / "cells" / cell["id"], cell, ids, reward, rng, steps)
    counts = {"rows": 100, "kept": 98, "dropped": 2, "distinct_prompts": 97, "truncated_chosen": 3, "truncated_rejected": 4}
    audit = {
        "splits": {split: {**counts, "boundary_merges": 0} for split in ("train", "heldout", "eval", "sft")},
        "dropped_rows": [{"split": "train", "number": 17, "id": "row-17", "reason": f"chosen is empty {EVIL}"}],
        "overlap": {"eval": overlap, "heldout": 0},
    }
    write_json(
        out / "run.json",
        {
            "schema_version": 1,
            "spec": {"name": "quick <demo>", "models": [model], "seeds": list(seeds), "judge": "gold", **(spec or {})},
            "status": "failed" if failed else "done",
            "provenance": {
                "git": {"commit": "abc", "dirty": False},
                "packages": {"torch": "2.13.0"},
                "hardware": {"device": "cpu"},
                "command": ["spo-bench", "run", "--matrix", "quick"],
            },
            "started": "2026-01-01T10:00:00+00:00",
            "finished": "2026-01-01T10:04:10+00:00",
            "seconds": 250.4,
            "audits": {f"{model}/{task}": {"task": task, **audit} for task in tasks},
            "tokens": {"embedded": 1},
        },
    )
    write_jsonl(out / "cells.jsonl", cells)
    return out


def write_cell(directory, cell, ids, reward, rng, steps):
    """Write one finished cell's files."""
    trained, spo = cell["method"] != "sft", bool(cell["spo"])

    def metric(values, higher=True, unit="prompt"):
        values = [None if value is None else float(value) for value in values]
        return {"ids": ids, "values": values, "clusters": None, "higher_is_better": higher, "unit": unit}

    metrics = {
        "true_reward": metric(reward),
        "length": metric(rng.integers(8, 30, len(ids)), higher=False),
        "distinct_2": metric(rng.uniform(0.5, 1, len(ids))),
        "win_rate_chosen": metric([None, *rng.choice([0, 0.5, 1], len(ids) - 1)]),
    }
    scalars = {}
    if trained:
        metrics["win_rate_sft"] = metric(rng.choice([0, 0.5, 1], len(ids), p=[0.1, 0.2, 0.7]))
        metrics["implicit_accuracy"] = metric(rng.integers(0, 2, len(ids)), unit="pair")
        scalars = {
            "seconds": {"value": 3.0 + spo, "higher_is_better": False},
            "pairs_per_second": {"value": 300.5 - 100 * spo, "higher_is_better": True},
            "peak_memory": {"value": 2.5e9, "higher_is_better": False},
        }
    if spo:
        metrics["head_to_head"] = metric(rng.choice([0, 0.5, 1], len(ids), p=[0.2, 0.3, 0.5]))
        metrics["degree_accuracy"] = metric(rng.integers(0, 2, len(ids)))
    write_json(directory / "scores.json", {"metrics": metrics, "scalars": scalars})
    for name in ("spec.json", "provenance.json"):
        write_json(directory / name, {})
    samples = [
        {
            "id": one,
            "prompt": f"Question {i}: what does the fern need, and where does it grow? {EVIL if i < 3 else ''}",
            "answer": f"{cell['method']}: the fern needs shade and wet ground, and grows by the river. {EVIL if i < 3 else ''}",
            "finish": "length" if i % 10 == 9 else "stop",
            "tokens": 12 + i % 5,
            "chosen": "It needs shade.",
        }
        for i, one in enumerate(ids)
    ]
    write_jsonl(directory / "samples.jsonl", samples)
    opponent = "baseline" if spo else "chosen"
    judged = [
        {"id": one, "opponent": opponent, "score": score, "outcome": outcome, "orders": [], "reason": "because"}
        for one, (score, outcome) in zip(ids, [(None, "invalid"), (1.0, "a"), (0.5, "tie"), (0.0, "b")] * len(ids))
    ]
    write_jsonl(directory / "judgments.jsonl", judged)
    if trained:
        falling = np.exp(-np.arange(steps) / 15)
        noise = rng.normal(0, 0.05, (steps, 3))
        rows = []
        for i in range(steps):
            row = dict.fromkeys(STEP_KEYS, 0.0) | {"step": i, "loss": 0.69 * falling[i] + noise[i, 0]}
            row |= {"alignment_loss": row["loss"], "reward_accuracy": float(np.clip(1 - falling[i] / 2 + noise[i, 1], 0, 1))}
            row |= {"degree_accuracy": float(np.clip(0.9 - 0.6 * falling[i] + noise[i, 2], 0, 1)) if spo else None}
            if spo:
                row["degree_accuracy_bins"] = {"16-32": [3 if i < 30 else 1, 4], "0-16": [2, 2]}
            rows.append(row)
        write_jsonl(directory / "train.jsonl", rows)
    (directory / "DONE").write_text("{}\n")


PLANTS, METALS = [f"plants-{i}" for i in range(6)], [f"metals-{i}" for i in range(6)]
IDS = PLANTS + METALS


def cell(method, values, *, spo=False, seed=0, task="dialogue", ids=IDS, clusters=None, done=True, pairs=None, more=None, **axes):
    """Return (line of cells.jsonl, metrics); ``values`` are the true rewards, ``pairs`` the implicit accuracies, a value an id."""
    name = "-".join([task, method, *(["SPO"] if spo else []), *(f"{k}={v}" for k, v in axes.items()), f"s{seed}"])
    row = {"id": re.sub(r"[^\w.=-]+", "_", name), "model": "embedded", "task": task, "method": method, "spo": spo, "seed": seed}
    row |= {"axes": axes, "status": "done" if done else "failed", "reason": None if done else "loss is NaN", "keys": {}}
    per = {"true_reward": values, **({"implicit_accuracy": pairs} if pairs else {}), **(more or {})}
    units = {"implicit_accuracy": "pair"}
    metrics = {
        key: {
            "ids": list(ids),
            "values": [None if value is None else float(value) for value in some],
            "clusters": clusters,
            "higher_is_better": True,
            "unit": units.get(key, "prompt"),
        }
        for key, some in per.items()
    }
    return row, metrics


def write(out: Path, cells, **spec) -> Path:
    """Write a run directory of these cells."""
    write_json(out / "run.json", {"schema_version": 1, "spec": {"name": "axes", **spec}, "status": "done", "provenance": {}})
    write_jsonl(out / "cells.jsonl", [row for row, _ in cells])
    for row, metrics in cells:
        if row["status"] == "done":
            write_json(out / "cells" / row["id"] / "scores.json", {"metrics": metrics, "scalars": {}})
    return out


def noise(seed, level=0.7, size=12):
    return list(level + np.random.default_rng(seed).normal(0, 0.05, size))
