"""Which stages may start now, and on how many cores: what they read is there, and cores and memory have room for them."""

from __future__ import annotations

from bisect import insort
from collections import defaultdict
from collections.abc import Callable, Sequence

from spo_bench.stages.base import Stage


class Schedule:
    """The stages that are left, and what runs of them.

    Args:
        stages: in the order in which they are preferred, inputs before what reads them.
        jobs: how many may run at a time.
        cores: how many threads they may have together; every stage has at least one.
        memory: how many bytes they may take together. A stage that needs more runs alone.
        need: the bytes a stage takes at its peak.
    """

    def __init__(self, stages: Sequence[Stage], jobs: int, cores: int, memory: float, need: Callable[[Stage], float]) -> None:
        self.jobs, self.cores, self.memory, self.need = jobs, max(cores, jobs), memory, need
        self.left = {stage.key: stage for stage in stages}
        self._place = {key: place for place, key in enumerate(self.left)}
        self._waits: dict[str, set[str]] = {}
        self._readers: dict[str, list[str]] = defaultdict(list)
        self._ready: list[tuple[int, str]] = []
        self._running: dict[str, tuple[int, float]] = {}  # key -> threads, bytes
        self._suspects: dict[str, None] = {}
        for key, stage in self.left.items():
            self._waits[key] = {source.key for source in stage.inputs.values()} & self.left.keys()
            for source in self._waits[key]:
                self._readers[source].append(key)
            if not self._waits[key]:
                self._ready.append((self._place[key], key))

    def start(self) -> list[tuple[Stage, int]]:
        """Return the stages that begin now, each with its number of threads; they count as running from here on.

        Those that begin together share the free cores; one that begins alone has all of them.
        """
        chosen = self._choose()
        free = self.cores - sum(threads for threads, _ in self._running.values())
        begun = []
        for place, stage in enumerate(chosen):
            threads = min(max(1, free // (len(chosen) - place)), stage.local.get("threads", self.cores))
            free -= threads
            self._ready.remove((self._place[stage.key], stage.key))
            self._running[stage.key] = (threads, self.need(stage))
            begun.append((stage, threads))
        return begun

    def _choose(self) -> list[Stage]:
        free = self.cores - sum(threads for threads, _ in self._running.values())
        places = min(self.jobs - len(self._running), free)
        ready = (
            [key for _, key in self._ready] if not self._suspects else [key for key in self._suspects if not self._running][:1]
        )
        taken, chosen = sum(bytes_ for _, bytes_ in self._running.values()), list[Stage]()
        for key in ready:
            if len(chosen) >= places:
                break
            need = self.need(self.left[key])
            if (self._running or chosen) and taken + need > self.memory:
                continue
            chosen.append(self.left[key])
            taken += need
        return chosen

    def finish(self, stage: Stage) -> None:
        """Note that a stage has left its artifact: what reads it may be ready."""
        self._end(stage)
        for reader in self._readers[stage.key]:
            self._waits[reader].discard(stage.key)
            if not self._waits[reader] and reader in self.left:
                insort(self._ready, (self._place[reader], reader))

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

    def suspect(self, stage: Stage) -> bool:
        """Put a stage whose process was killed back, to run alone; False where it ran alone already, so it was that stage."""
        if stage.key in self._suspects:
            return False
        self._running.pop(stage.key)
        self._suspects[stage.key] = None
        insort(self._ready, (self._place[stage.key], stage.key))
        return True

    def _end(self, stage: Stage) -> None:
        del self.left[stage.key], self._running[stage.key]
        self._suspects.pop(stage.key, None)
