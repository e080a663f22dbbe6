"""Which stages may start now: what they read is there, and jobs, cores and memory have room for them."""

from __future__ import annotations

import time
from bisect import insort
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from spo_bench.engine.free import NOTHING, Need
from spo_bench.engine.memory import TRAINING
from spo_bench.engine.shares import Share
from spo_bench.stages.base import Stage

Place = tuple[bool, int, int]  # in the order of preference, the least first


class Running(NamedTuple):
    """What a stage that runs has: its share of the cores, the memory it takes, and the GPUs it is on."""

    share: Share
    need: Need
    places: tuple[str, ...]


class Schedule:
    """The stages that are left, and what runs of them.

    Args:
        stages: inputs before what reads them; of two for which as much waits, the first is preferred.
        jobs: how many may run at a time; those that run beside the jobs do not count, of which there is one at a time.
        cores: how many they may take together; none takes more than all.
        memory: of this machine that they may take together, bytes. A stage that needs more runs alone, or beside one that waits
            for an endpoint.
        need: what a stage takes of memory at its peak.
        share: what a stage has of the cores.
        idle: what a worker process keeps that has nothing to do.
        workers: how many of them there are already.
        apart: whether stages run in places of their own, so that one which may have killed its process does not wait for others.
        gpus: names of the GPUs on which stages are placed, with the bytes they may take of each.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        jobs: int,
        cores: int,
        memory: float,
        need: Callable[[Stage], Need],
        share: Callable[[Stage], Share],
        idle: Need = NOTHING,
        workers: int = 0,
        apart: bool = False,
        gpus: Mapping[str, float] | None = None,
    ) -> None:
        self.jobs, self.cores, self.memory, self.need, self.share, self.idle = jobs, cores, memory, need, share, idle
        self.apart, self.gpus = apart, gpus or {}
        self.left = {stage.key: stage for stage in stages}
        self._waits: dict[str, set[str]] = {}
        self._readers: dict[str, list[str]] = defaultdict(list)
        self._running: dict[str, Running] = {}
        self._workers = workers
        self._suspects: set[str] = set()
        self._later: dict[str, float] = {}  # stages that another process makes, and when they are looked at again
        for key, stage in self.left.items():
            self._waits[key] = {source.key for source in stage.inputs.values()} & self.left.keys()
            for source in self._waits[key]:
                self._readers[source].append(key)
        behind = self._behind()
        self._trained_on = self._before_training()
        asked = self._before_asking()
        self._place = {key: (key not in asked, -behind[key], place) for place, key in enumerate(self.left)}
        self._ready: list[tuple[Place, str]] = []
        self._beside: list[tuple[Place, str]] = []
        for key, waits in self._waits.items():
            if not waits:
                self._enlist(key)

    def _enlist(self, key: str) -> None:
        """Note that a stage may start."""
        insort(self._beside if self.share(self.left[key]).beside else self._ready, (self._place[key], key))

    def _behind(self) -> dict[str, int]:
        """Return how many stages wait for each, directly or not."""
        found: dict[str, set[str]] = {}
        for key in reversed(self.left):
            found[key] = set(self._readers[key]).union(*(found[reader] for reader in self._readers[key]))
        return {key: len(waiting) for key, waiting in found.items()}

    def _before_training(self) -> set[str]:
        """Return the keys of all trainings, and of what one of them waits for, directly or not."""
        found: set[str] = set()
        for key, stage in reversed(self.left.items()):
            if stage.kind in TRAINING or not found.isdisjoint(self._readers[key]):
                found.add(key)
        return found

    def _before_asking(self) -> set[str]:
        """Return the keys of stages that run beside the jobs, and of what one of them waits for after all training: an endpoint
        has its own time, and shall not wait until everything is trained.
        """
        found: set[str] = set()
        for key, stage in reversed(self.left.items()):
            if key not in self._trained_on and (self.share(stage).beside or not found.isdisjoint(self._readers[key])):
                found.add(key)
        return found

    def start(self) -> list[tuple[Stage, int]]:
        """Return the stages that begin now, each with its number of threads; they count as running from here on.

        What an endpoint waits for comes first, then that for which most others wait. One that finds too few cores or too little
        memory is not overtaken by a later one that takes cores, so that it has its turn as soon as what runs has ended.
        """
        begun: list[tuple[Stage, int]] = []
        held_back = False
        for place, key in self._candidates():
            if self._jobs_taken() == self.jobs:
                break
            stage = self.left[key]
            share = self.share(stage)
            if share.cores and held_back:
                continue
            need = self.need(stage)
            if (places := self._room(share, need)) is None:
                held_back = True
                continue
            self._ready.remove((place, key))
            begun.append(self._begin(stage, Running(share, need, places)))
        if (self.apart or not self._suspects) and self._jobs_taken() == len(self._running):
            for place, key in [one for one in self._beside if not self._rests(one[1])][:1]:
                stage = self.left[key]
                share, need = self.share(stage), self.need(stage)
                if (places := self._room(share, need)) is not None:
                    self._beside.remove((place, key))
                    begun.append(self._begin(stage, Running(share, need, places)))
        return begun

    def _rests(self, key: str) -> bool:
        return self._later.get(key, 0.0) > time.monotonic()

    @property
    def waits(self) -> bool:
        """Whether a stage that could start is left to another process for now."""
        return any(self._rests(key) for _, key in (*self._ready, *self._beside))

    def _begin(self, stage: Stage, running: Running) -> tuple[Stage, int]:
        self._running[stage.key] = running
        self._workers = max(self._workers, len(self._running))
        return stage, running.share.threads

    def places(self, stage: Stage) -> tuple[str, ...]:
        """Return the GPUs of a stage that runs; none where it needs none, or somebody else places it."""
        return self._running[stage.key].places

    def _candidates(self) -> list[tuple[Place, str]]:
        """Return what is ready, the most wanted first; of stages that may have killed their process one, and that alone."""
        if self.apart or not self._suspects:
            return [one for one in self._ready if not self._rests(one[1])]
        return [] if self._running else [one for one in self._ready if one[1] in self._suspects][:1]

    def _jobs_taken(self) -> int:
        return sum(not one.share.beside for one in self._running.values())

    def _room(self, share: Share, need: Need) -> tuple[str, ...] | None:
        """Return the GPUs on which a stage may begin; None while cores, memory or GPUs do not suffice. One that would run alone
        always has room.
        """
        alone = not self._jobs_taken()
        idle = self.idle * max(0, self._workers - len(self._running) - 1)
        cores = sum(one.share.cores for one in self._running.values()) + share.cores
        memory = sum(one.need.host for one in self._running.values()) + need.host + idle.host
        if not alone and (cores > self.cores or memory > self.memory):
            return None
        count = min(share.devices, len(self.gpus))
        ranked = []
        for order, (name, free) in enumerate(self.gpus.items() if count else ()):
            there = [one.need.device for one in self._running.values() if name in one.places]
            left = free - sum(there) - idle.device
            if alone or left >= need.device:
                ranked.append((len(there), -left, order, name))
        return tuple(name for *_, name in sorted(ranked)[:count]) if len(ranked) >= count else None

    def finish(self, stage: Stage) -> None:
        """Note that a stage has left its artifact: what reads it may be ready."""
        self._end(stage)
        for reader in self._readers[stage.key]:
            self._waits[reader].discard(stage.key)
            if not self._waits[reader] and reader in self.left:
                self._enlist(reader)

    def fail(self, stage: Stage) -> list[Stage]:
        """Note that a stage could not be made; return all that reads it, directly or not, which is not tried any more."""
        self._end(stage)
        lost, found = [stage.key], list[Stage]()
        while lost:
            for reader in self._readers[lost.pop()]:
                if reader in self.left:
                    found.append(self.left.pop(reader))
                    lost.append(reader)
        return found

    def put_back(self, stage: Stage) -> None:
        """Note that a stage which ran has still to be made."""
        self._running.pop(stage.key)
        self._enlist(stage.key)

    def postpone(self, stage: Stage, seconds: float) -> None:
        """Put a stage back that another process makes, to be looked at later; others go on."""
        self._later[stage.key] = time.monotonic() + seconds
        self.put_back(stage)

    def suspect(self, stage: Stage) -> bool:
        """Put a stage whose process was killed back, to run alone; False where it ran alone already, so it was that stage."""
        if stage.key in self._suspects:
            return False
        self._running.pop(stage.key)
        self._suspects.add(stage.key)
        insort(self._ready, (self._place[stage.key], stage.key))
        return True

    def is_suspect(self, stage: Stage) -> bool:
        """Say whether a stage has to run alone, since it may have killed its process or found too little memory beside others."""
        return stage.key in self._suspects

    def tail(self, stage: Stage, may: Callable[[Stage], bool]) -> list[tuple[Stage, int]]:
        """Return what can follow a stage at once, inputs first, each with its threads: all that waits for it and its like alone,
        and for which no training waits, such as the answers of a policy, their scores and verdicts. What a training waits for
        starts as soon as it can, elsewhere.

        Args:
            stage: that begins.
            may: whether a stage may run where that one does.
        """
        found = {stage.key: stage}
        for key, one in self.left.items():
            if self._waits[key] and self._waits[key] <= found.keys() and key not in self._trained_on and may(one):
                found[key] = one
        return [(one, self.share(one).threads) for one in found.values() if one is not stage]

    def _end(self, stage: Stage) -> None:
        del self.left[stage.key], self._running[stage.key]
        self._suspects.discard(stage.key)
