"""A run that is played through with estimated times: when every stage would begin and end. Nothing runs here.

The order is the engine's own: the same ``Schedule`` says what starts, and only the clock is another.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from spo_bench.engine.free import INFINITE, NOTHING
from spo_bench.engine.schedule import Schedule
from spo_bench.engine.shares import Share, asks_endpoint
from spo_bench.stages.base import Stage

Seconds = Callable[[Stage], float]


@dataclass(frozen=True)
class Played:
    """A run that was played through.

    Attributes:
        seconds: from its beginning to its end.
        path: the longest chain of stages that wait for one another, in order.
        path_seconds: how long they take together: no number of devices makes the run shorter.
        busy: seconds of all devices together.
        devices: how many there are.
    """

    seconds: float
    path: Sequence[Stage]
    path_seconds: float
    busy: float
    devices: int

    @property
    def utilisation(self) -> float:
        """The share of the devices' time in which they compute."""
        return self.busy / (self.seconds * self.devices) if self.seconds else 0.0


def play(schedule: Schedule, seconds: Seconds) -> float:
    """Return how long it takes until nothing is left of a schedule."""
    clock, running = 0.0, list[tuple[float, int, Stage]]()
    begun = 0
    while schedule.left:
        for stage, _ in schedule.start():
            heapq.heappush(running, (clock + seconds(stage), begun, stage))
            begun += 1
        clock = running[0][0]
        while running and running[0][0] == clock:
            schedule.finish(heapq.heappop(running)[2])
    return clock


def on_devices(stages: Sequence[Stage], devices: int, takes: Callable[[Stage], int], seconds: Seconds) -> Played:
    """Return a run on a number of devices.

    Args:
        stages: what is left to make, inputs before what reads them.
        devices: how many there are.
        takes: how many devices a stage computes on, none for one that needs none: such stages wait for nothing but their inputs.
        seconds: a stage on as many as it takes.
    """
    shares = {stage.key: Share(1, takes(stage), asks_endpoint(stage)) for stage in stages}  # a device is what a core is here
    everything = Schedule(stages, len(stages) + 1, devices, INFINITE, lambda _: NOTHING, lambda stage: shares[stage.key])
    busy = sum(seconds(stage) * takes(stage) for stage in stages)
    path, longest = critical_path(stages, seconds)
    return Played(play(everything, seconds), path, longest, busy, devices)


def bound(stages: Sequence[Stage], devices: int, takes: Callable[[Stage], int], seconds: Seconds) -> Played:
    """Return a run as ``on_devices`` does, by a bound that no list scheduling exceeds where every stage takes one device: the
    work over the devices, and the longest chain (Graham 1969); judges behind an endpoint are asked after all that.
    """
    path, longest = critical_path(stages, seconds)
    busy = sum(seconds(stage) * takes(stage) for stage in stages)
    asking = sum(seconds(stage) for stage in stages if asks_endpoint(stage))
    return Played(busy / devices + longest + asking, path, longest, busy, devices)


def critical_path(stages: Sequence[Stage], seconds: Seconds) -> tuple[list[Stage], float]:
    """Return the longest chain of stages that wait for one another, and its seconds.

    Args:
        stages: inputs before what reads them; inputs that are not among them are there.
        seconds: how long each takes.
    """
    ends: dict[str, float] = {}
    before: dict[str, Stage | None] = {}
    for stage in stages:
        waits = [source for source in stage.inputs.values() if source.key in ends]
        latest = max(waits, key=lambda source: ends[source.key], default=None)
        ends[stage.key] = seconds(stage) + (ends[latest.key] if latest is not None else 0.0)
        before[stage.key] = latest
    if not ends:
        return [], 0.0
    longest, path = max(ends.values()), list[Stage]()
    last: Stage | None = max(stages, key=lambda one: ends[one.key])
    while last is not None:
        path.append(last)
        last = before[last.key]
    return path[::-1], longest


def local(stages: Sequence[Stage], schedule: Callable[[], Schedule], jobs: int, seconds: Seconds) -> Played:
    """Return a run on this machine, whose devices are the stages that run at a time."""
    path, longest = critical_path(stages, seconds)
    busy = sum(seconds(stage) for stage in stages)
    return Played(play(schedule(), seconds), path, longest, busy, jobs)
