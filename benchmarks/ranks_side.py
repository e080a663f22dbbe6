"""One training over several processes, a core each: the part of `scaling.py` that runs in processes of its own."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from own_side import Setup, examples_of, objective_of, prepared, spread, whole_rows

from spo_bench.engine.attempt import keep_freed_memory
from spo_bench.files import read_json, write_json
from spo_bench.models.policy import load_policy, load_tokenizer
from spo_bench.processes import Pool
from spo_bench.spo.settings import SpoSettings
from spo_bench.stages.base import Work
from spo_bench.stages.together import together
from spo_bench.training.loop import fit
from spo_bench.training.sharding import Group, shard

AGREE = 1e-4  # of losses, which differ by rounding


def steps(work: Work) -> None:
    """Take training steps over the same rows with the ranks there are; write seconds and losses of all but the first."""
    keep_freed_memory()
    config, ranks = work.config, work.ranks
    setup = Setup(config["pairs"], config["steps"] + 1, 1e-6, config["max_length"], config["dtype"], micro=config["micro_tokens"])
    tokenizer = load_tokenizer(Path(config["model"]))
    records = whole_rows(tokenizer, config["data"], config["task"], None, config["max_length"])[: config["count"]]
    spo, settings = SpoSettings() if config["spo"] else None, setup.loop()
    examples = examples_of(spread(records, config["pairs"]), tokenizer, spo, settings)
    model = prepared(load_policy(Path(config["model"]), setup.numerics), setup)
    objective = replace(objective_of(model, examples, spo, settings, setup.numerics), ranks=ranks)
    if isinstance(ranks, Group):
        objective = replace(objective, sharded=shard(model, setup.numerics, ranks))
    rows: list[dict[str, Any]] = []
    fit(objective, examples, settings, rows.append, [np.arange(len(examples))] * settings.steps)
    found = {name: [row[name] for row in rows[1:]] for name in ("seconds", "loss", "peak_memory")}
    write_json(work.out / "steps.json", found)


def one_core() -> None:
    """Let this process use one core."""
    torch.set_num_threads(1)


def taken(config: Mapping[str, Any], count: int) -> dict[str, list[float]]:
    """Return what ``steps`` writes, by so many processes with a core each; one shards nothing."""
    with tempfile.TemporaryDirectory() as folder:
        numerics = {"device": "cpu", "dtype": config["dtype"], "held": "float32"}
        work = Work(Path(folder), {**config, "numerics": numerics}, {}, {"device": "cpu"})
        if count == 1:
            with Pool(1, one_core) as pool:
                pool.submit(steps, work).result()
        else:
            torch.set_num_threads(count)  # which the processes share
            together(steps, work, count)
        found: dict[str, list[float]] = read_json(work.out / "steps.json")
        return found


def compare(config: Mapping[str, Any], processes: int, rounds: int) -> dict[str, Any]:
    """Measure the same steps by one process on one core and by several, in turn.

    Returns:
        Median seconds of ``one`` and of ``several``; ``efficiency``: seconds of one, over processes times seconds of several; the
        peak memory of a process over that of one alone; how far the losses are apart.
    """
    found: dict[int, list[dict[str, list[float]]]] = {1: [], processes: []}
    for _ in range(rounds):
        for count, some in found.items():
            some.append(taken(config, count))
    apart = max(abs(a - b) for x, y in zip(*found.values(), strict=True) for a, b in zip(x["loss"], y["loss"], strict=True))
    if apart > AGREE:
        raise SystemExit(f"losses of one and of {processes} processes differ by {apart:.3g}")
    seconds = [statistics.median(s for one in some for s in one["seconds"]) for some in found.values()]
    memory = [max(b for one in some for b in one["peak_memory"]) for some in found.values()]
    return {
        "one": seconds[0],
        "several": seconds[1],
        "efficiency": seconds[0] / (processes * seconds[1]),
        "memory": memory[1] / memory[0],
        "losses_apart": apart,
    }
