"""Run stages on this machine: one after the other in this process, or side by side in worker processes."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Self

from spo_bench import stopping
from spo_bench.engine.attempt import Ended, attempt
from spo_bench.engine.free import Need, free_memory, oom_kills
from spo_bench.engine.memory import CUDA_PROCESS, PROCESS, estimate
from spo_bench.engine.schedule import Schedule
from spo_bench.engine.shares import shares
from spo_bench.errors import Interrupted
from spo_bench.processes import Pool
from spo_bench.stages.base import Stage, smaller
from spo_bench.stages.registry import How
from spo_bench.store.artifacts import Store
from spo_bench.store.checkpoints import EVERY

MOST_HALVINGS = 4  # of a micro-batch, before a stage that finds too little memory fails
PATIENCE = 0.5  # seconds until a stage that another process makes is looked at again


class Watcher:
    """Who is told how a run goes; this one says nothing."""

    def started(self, stage: Stage) -> None:
        """A stage begins."""

    def finished(self, stage: Stage, seconds: float) -> None:
        """A stage has left its artifact."""

    def failed(self, stage: Stage, reason: str) -> None:
        """A stage could not be finished."""

    def skipped(self, stage: Stage) -> None:
        """A stage was not tried, because an input of it failed."""

    def retried(self, stage: Stage, why: str) -> None:
        """A stage that was under way is tried again, otherwise."""

    def remade(self, stage: Stage, why: str) -> None:
        """A stage that was done is made again, since its artifact is damaged."""


def unique_in_order(stages: Sequence[Stage]) -> list[Stage]:
    """Return stages and everything they need, each once, inputs before what reads them."""
    seen: dict[str, Stage] = {}

    def visit(stage: Stage) -> None:
        if stage.key not in seen:
            for source in stage.inputs.values():
                visit(source)
            seen.setdefault(stage.key, stage)

    for stage in stages:
        visit(stage)
    return list(seen.values())


class Engine:
    """Runs stages on this machine; a context that ends with its worker processes, which serve all calls.

    Args:
        store: where artifacts are.
        jobs: how many stages run at a time; one runs in this process. Several run in processes of their own, and one more
            beside them where a judge behind an endpoint is asked.
        watcher: who is told.
        memory: bytes that stages may take together where they compute; None: what is free when the first of them starts. One
            stage always may run.
        whole: the stages of the run, which decide with all they need how many threads each has; None: those that ``run`` is
            given.
        every: seconds between the checkpoints of a stage.
        retry_failed: whether stages that failed before are tried again, which with the same inputs would fail the same way.
        live: whether somebody follows the rows of trainings.
    """

    def __init__(
        self,
        store: Store,
        jobs: int,
        watcher: Watcher,
        memory: float | None = None,
        whole: Sequence[Stage] | None = None,
        every: float = EVERY,
        retry_failed: bool = False,
        live: bool = False,
    ) -> None:
        self.store, self.jobs, self.watcher, self.memory, self.whole = store, jobs, watcher, memory, whole
        self.every, self.retry_failed, self.live = every, retry_failed, live
        self._pool: Pool | None = None
        self._workers = jobs
        self._free: Need | None = None
        self._failures: dict[str, str] = {}
        self._halvings: dict[str, int] = {}
        self._damaged: dict[str, str] = {}  # keys of artifacts that were found damaged in this pass -> why
        self._remade: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._pool is None:
            return
        if error is None:
            self._pool.shutdown()
        else:
            self._pool.end()
        self._pool = None

    def run(self, stages: Sequence[Stage]) -> dict[str, str]:
        """Make every missing artifact; return key -> reason for those that could not be made.

        A failed stage fails what depends on it and nothing else. One that finds an input damaged waits until that was made
        again; one that finds too little memory is tried again alone, then with smaller micro-batches; one that another process
        makes is waited for, while others go on. InputError is raised at once: nothing else would go better.

        Raises:
            InputError: what a person gave cannot be used.
            Interrupted: the user stopped the run, or the disk is full; what is finished stays in the store.
        """
        every = unique_in_order(stages)
        by_key = {stage.key: stage for stage in every}
        try:
            while missing := self._missing(every):
                schedule = self._schedule(stages, missing)
                (self._in_turn if self.jobs == 1 else self._side_by_side)(schedule)
                if not self._damaged:
                    break
                for key, why in self._damaged.items():
                    self._make_again(by_key[key], why)
                self._damaged = {}
        except KeyboardInterrupt as error:
            raise Interrupted(stopping.STOPPED) from error
        return {stage.key: self._failures[stage.key] for stage in every if stage.key in self._failures}

    def run_and_check(self, stages: Sequence[Stage]) -> dict[str, str]:
        """Make what is missing, and make again whatever is not as it was made, for who will read all but the weights."""
        while True:
            failures = self.run(stages)
            damaged = [
                (stage, why)
                for stage in stages
                if stage.key not in failures and not stage.on_disk and (why := self.store.fault(stage.kind, stage.key, False))
            ]
            if not damaged:
                return failures
            for stage, why in damaged:
                if stage.key in self._remade:
                    self._failures[stage.key] = f"{stage.kind}: its artifact is damaged again ({why}): check the disk"
                else:
                    self._make_again(stage, f"{stage.kind}/{stage.key}: {why}")

    def _make_again(self, stage: Stage, why: str) -> None:
        self._remade.add(stage.key)
        self.store.discard(stage.kind, stage.key)
        self.watcher.remade(stage, why)

    def _missing(self, every: Sequence[Stage]) -> list[Stage]:
        """Return what is to be made; what failed, now or before, and what reads it, is not."""
        missing = []
        for stage in every:
            if stage.key in self._failures or stage.done(self.store):
                continue
            failed = next((self._failures[one.key] for one in stage.inputs.values() if one.key in self._failures), None)
            before = failed is None and not self.retry_failed and self.store.failure(stage.kind, stage.key)
            if failed:
                self._failures[stage.key] = failed
                self.watcher.skipped(stage)
            elif before:
                self._failures[stage.key] = before
                self.watcher.failed(stage, f"{before} (in an earlier run; --retry-failed tries again)")
            else:
                missing.append(stage)
        return missing

    def _schedule(self, stages: Sequence[Stage], missing: Sequence[Stage]) -> Schedule:
        cores = cores_here()
        device = next((one.local["device"] for one in missing if "device" in one.local), "cpu")
        if self._free is None:
            self._free = free_memory(device)
        room, idle = self._free, Need(PROCESS)
        if device.startswith("cuda"):
            idle = Need(CUDA_PROCESS, PROCESS)
            room = room if self.memory is None else room._replace(device=self.memory)
        elif self.memory is not None:
            room = room._replace(host=self.memory)
        share = shares(unique_in_order(stages if self.whole is None else self.whole), self.jobs, cores)
        self._workers = self.jobs + any(one.beside for one in share.values())
        workers = len(self._pool.started) if self._pool is not None else 0
        need = partial(estimate, store=self.store)
        return Schedule(missing, self.jobs, cores, room, need, lambda stage: share[stage.key], idle, workers)

    def _in_turn(self, schedule: Schedule) -> None:
        while schedule.left:
            begun = schedule.start()
            for stage, threads in begun:
                self.watcher.started(stage)
                started = time.perf_counter()
                ended = attempt(stage, self.store, threads, self._how(stage))
                self._tell(schedule, stage, ended, time.perf_counter() - started)
            if not begun:
                time.sleep(PATIENCE)

    def _side_by_side(self, schedule: Schedule) -> None:
        """Run stages in worker processes. A worker that is killed breaks the pool for all: what ran there is tried once more, one
        stage at a time, so that only the stage that kills its worker fails.
        """
        running: dict[Future[Ended], tuple[Stage, float]] = {}
        kills = oom_kills()
        while schedule.left:
            for stage, threads in schedule.start():
                self.watcher.started(stage)
                running[self._submit(stage, threads)] = (stage, time.perf_counter())
            if not running:
                time.sleep(PATIENCE)
            for future in wait(running, PATIENCE if schedule.waits else None, return_when=FIRST_COMPLETED).done:
                stage, started = running.pop(future)
                if not isinstance(future.exception(), BrokenProcessPool):
                    ended = future.result()
                elif schedule.suspect(stage):
                    continue
                elif oom_kills() > kills:
                    kills, ended = oom_kills(), Ended("memory", f"{stage.kind}: its process was killed: out of memory")
                else:
                    ended = Ended("passing", f"{stage.kind}: its process was killed (out of memory?)")
                self._tell(schedule, stage, ended, time.perf_counter() - started)

    def _submit(self, stage: Stage, threads: int) -> Future[Ended]:
        """Give a stage to a worker, of a new pool where the old one is broken, perhaps because an idle worker was killed."""
        if self._pool is not None:
            with suppress(BrokenProcessPool):
                return self._pool.submit(attempt, stage, self.store, threads, self._how(stage))
        self._pool = Pool(self._workers, _begin_worker, (max(1, cores_here() // self.jobs),))
        return self._pool.submit(attempt, stage, self.store, threads, self._how(stage))

    def _how(self, stage: Stage) -> How:
        return How(self._halvings.get(stage.key, 0), self.every, wait=False, live=self.live)

    def _tell(self, schedule: Schedule, stage: Stage, ended: Ended, seconds: float) -> None:
        """Note how an attempt ended; what depends on a stage that failed is skipped for the same reason."""
        if ended.how == "made":
            schedule.finish(stage)
            self.watcher.finished(stage, seconds)
        elif ended.how == "busy":
            schedule.postpone(stage, PATIENCE)
        elif ended.how == "memory" and self._may_need_less(schedule, stage):
            self.watcher.retried(stage, ended.reason)
        elif ended.how == "damaged" and ended.entry is not None and ended.entry[1] not in self._remade:
            self._damaged[ended.entry[1]] = ended.reason
            schedule.fail(stage)
        else:
            if ended.how == "failed":
                self.store.fail(stage.kind, stage.key, ended.reason)
            self._failures[stage.key] = ended.reason
            self.watcher.failed(stage, ended.reason)
            for other in schedule.fail(stage):
                self._failures[other.key] = ended.reason
                self.watcher.skipped(other)

    def _may_need_less(self, schedule: Schedule, stage: Stage) -> bool:
        """Put a stage back that found too little memory: alone first, then with half of what goes through the model at once."""
        if self.jobs > 1 and schedule.suspect(stage):
            return True
        halvings = self._halvings.get(stage.key, 0) + 1
        if halvings > MOST_HALVINGS or smaller(stage.config, halvings) == smaller(stage.config, halvings - 1):
            return False
        self._halvings[stage.key] = halvings
        schedule.put_back(stage)
        return True


def run_stages(stages: Sequence[Stage], store: Store, jobs: int, watcher: Watcher, memory: float | None = None) -> dict[str, str]:
    """Make every missing artifact with an engine of their own; return key -> reason for those that could not be made."""
    with Engine(store, jobs, watcher, memory) as engine:
        return engine.run(stages)


def _begin_worker(count: int) -> None:
    """Let a worker be stopped by its parent, and give the libraries that start threads of their own its share of the cores; torch
    is told stage by stage.
    """
    stopping.as_worker()
    for name in ("RAYON_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, str(count))


def cores_here() -> int:
    """Return how many cores this process may use: less than the machine has in a container or under taskset."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
