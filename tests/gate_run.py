"""Small run directories with known noise, for tests of comparisons and of the gate."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from spo_bench.engine.collect import short_fingerprint
from spo_bench.files import write_json, write_jsonl, write_text

JUDGE = {"kind": "openai", "settings": {"model": "judge-2026-01-01"}}
FINISHED = "2026-01-01T00:00:00Z"


def night(
    seed: int, *, arms: int, seeds: int = 3, prompts: int = 200, seed_sd: float = 0.03, rest_sd: float = 0.5
) -> dict[str, np.ndarray]:
    """Return a night's values by arm, (seeds, prompts): prompt effects are the same every night, seeds and answers are not."""
    fixed, rng = np.random.default_rng(1), np.random.default_rng(1000 + seed)
    hardness = fixed.normal(0.7, 0.3, (arms, 1, prompts))
    noise = rng.normal(0, seed_sd, (arms, seeds, 1)) + rng.normal(0, rest_sd, (arms, seeds, prompts))
    return {f"m{i}": values for i, values in enumerate(hardness + noise)}


def write_run(
    out: Path,
    values: Mapping[str, np.ndarray],
    *,
    metric: str = "true_reward",
    higher: bool = True,
    policies: str = "retrained",
    model: str = "embedded",
    seeds: tuple[int, ...] = (),
    train: Mapping[str, Any] | None = None,
    methods: Mapping[str, Mapping[str, Any]] | None = None,
    judge: Mapping[str, Any] = JUDGE,
    reward_model: str = "aa",
    failed: Mapping[tuple[str, int], str] | None = None,
    prompt: str = "Question {}?",
    ids: str = "p{:03d}",
    texts: str = "recorded",
    git: Mapping[str, Any] | None = None,
) -> Path:
    """Write the files of a run whose arms have these values, (seeds, prompts).

    ``policies``: "retrained" gives every cell weights of its own in every call, any other text the same ones for that text.
    """
    cells = []
    for arm, table in values.items():
        for place, row in enumerate(table):
            seed = (seeds or range(len(table)))[place]
            cell = {
                "id": re.sub(r"[^\w.=-]+", "_", f"{arm}-s{seed}"),
                "model": model,
                "task": "dialogue",
                "method": arm,
                "spo": False,
                "seed": seed,
                "axes": {},
            }
            reason = (failed or {}).get((arm, seed))
            status = {"status": "failed" if reason else "done", "reason": reason, "keys": {"data": "d", "sft": "base"}}
            cells.append({**cell, **status})
            if reason:
                continue
            names = [ids.format(i) for i in range(len(row))]
            one = {
                "ids": names,
                "values": [None if np.isnan(value) else float(value) for value in row],
                "clusters": names,
                "higher_is_better": higher,
                "unit": "prompt",
            }
            folder = out / "cells" / cell["id"]
            recorded = {"prompts": {"prompt": fingerprints(prompt, ids, len(row))}} if texts == "recorded" else {}
            write_text(folder / "scores.json", json.dumps({"metrics": {metric: one}, **recorded}))
            if texts == "samples":  # as runs had it before fingerprints were recorded
                write_jsonl(folder / "samples.jsonl", [{"id": name, "prompt": prompt.format(i)} for i, name in enumerate(names)])
            weights = str(out) if policies == "retrained" else policies
            provenance = {
                "policy": f"{weights}-{arm}-{seed}",
                "reward_models": {metric: reward_model},
                "command": f"run --out {out}",
            }
            write_json(folder / "provenance.json", provenance)
            settings = {"settings": {"learning_rate": 1e-4, "seed": seed, **(train or {})}}
            stages = {
                "sft": {"kind": "model", "version": 1, "config": {}, "inputs": {}},
                "train": {"kind": "train", "version": 1, "config": settings, "inputs": {}},
                "judge/sft": {"kind": "judge", "version": 1, "config": {"judge": judge, "opponent": "sft"}, "inputs": {}},
            }
            write_json(folder / "spec.json", {"id": cell["id"], "stages": stages})
    entries = [{"name": arm, "label": arm, **(methods or {}).get(arm, {})} for arm in values]
    record = {
        "schema_version": 1,
        "spec": {"name": "nightly", "methods": entries, "tasks": [{"name": "dialogue", "data": "/home/me/pairs.jsonl"}]},
        "status": "failed" if failed else "done",
        "started": FINISHED,
        "finished": FINISHED,
        "seconds": 1.0,
        "store": "/home/me/store",
        "provenance": {"git": git or {"commit": "abc", "dirty": False}, "command": f"spo-bench run --out {out}"},
    }
    write_json(out / "run.json", record)
    write_jsonl(out / "cells.jsonl", cells)
    return out


@cache
def fingerprints(prompt: str, ids: str, count: int) -> dict[str, str]:
    return {ids.format(i): short_fingerprint(prompt.format(i)) for i in range(count)}


def contents(directory: Path) -> dict[str, bytes]:
    """Return every file below a directory, to see that none is touched."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}
