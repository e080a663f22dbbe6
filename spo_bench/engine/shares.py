"""How many cores a stage gets: what the run as a whole allows, never what happens to be free when it starts.

So the seconds of two trainings can be compared, and numbers that depend on how sums are split over threads come out the same
another time, also of a run that was interrupted and goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from spo_bench.engine.memory import model_of
from spo_bench.processes import LARGE
from spo_bench.stages.base import Stage, plain_data
from spo_bench.stages.registry import devices

# Inputs that are models which the stage runs; the `model` of data and copies is a tokenizer to them.
RUN = {"policy", "reward_model", "judge_model", "labeller"}


class Share(NamedTuple):
    """What a stage has of the cores.

    Attributes:
        threads: it may use, at least one.
        cores: it takes from others; none where it reads, counts and writes, or waits for an endpoint.
        beside: whether it runs beside the jobs, because it waits for an endpoint most of the time.
        devices: on how many it computes, where the machine has GPUs.
    """

    threads: int
    cores: int
    beside: bool = False
    devices: int = 0


def shares(stages: Sequence[Stage], jobs: int, cores: int) -> dict[str, Share]:
    """Return key -> share for all stages of a run, those that are done included.

    Stages of one kind come together: with as many of them as jobs each has its part of the cores, and one that has no peer has
    all of them, and so runs beside nothing else that needs cores.
    """
    peers = Counter(stage.kind for stage in stages if needs_cores(stage))
    found = {}
    for stage in stages:
        if needs_cores(stage):
            threads = min(max(1, cores // min(jobs, peers[stage.kind])), stage.local.get("threads", cores))
            threads = max(threads, devices(stage))  # which share them
            found[stage.key] = Share(threads, threads, devices=gpus(stage))
        else:
            found[stage.key] = Share(1, 0, jobs > 1 and asks_endpoint(stage), gpus(stage))
    return found


def gpus(stage: Stage) -> int:
    """Return on how many GPUs a stage computes where there are any; none if it runs no model."""
    return devices(stage) if "numerics" in stage.config and model_of(stage) is not None else 0


def needs_cores(stage: Stage) -> bool:
    """Say whether a stage has use for a core of its own: it runs a model, computes metrics, or makes very many copies."""
    if stage.kind == "copies":
        data = plain_data(stage)
        rows = None if data is None else data.config["limit"]["train"]
        return rows is None or rows >= 2 * LARGE
    return stage.kind in ("sft", "score") or bool(RUN & stage.inputs.keys())


def asks_endpoint(stage: Stage) -> bool:
    """Say whether a stage sends requests to a judge behind an endpoint, and so has little to do itself for hours."""
    return stage.kind in ("judge", "judge_audit") and stage.config["judge"]["kind"] == "openai"
