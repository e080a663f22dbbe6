"""The engine: what is missing is made, in order, by a crew; what failed, was lost or is damaged is tried again or told."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Self

from spo_bench import stopping
from spo_bench.engine.attempt import Ended
from spo_bench.engine.crew import LAG, Crew, Lost, Order
from spo_bench.engine.free import INFINITE, NOTHING, free_here
from spo_bench.engine.local import local
from spo_bench.engine.machines import this_machine
from spo_bench.engine.memory import estimate, idle_worker
from spo_bench.engine.schedule import Schedule
from spo_bench.engine.shares import Share, shares
from spo_bench.engine.timings import keep, timing_of
from spo_bench.errors import InputError, Interrupted
from spo_bench.stages.base import Stage, smaller
from spo_bench.stages.registry import How
from spo_bench.store.artifacts import Store
from spo_bench.store.checkpoints import EVERY

MOST_HALVINGS = 4  # of a micro-batch, before a stage that finds too little memory fails
MOST_MOVES = 20  # of a stage whose machine was lost or whose job ran out of time, before it fails
PATIENCE = 0.5  # seconds until a stage that another process makes is looked at again
UNLIMITED = sys.maxsize


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
    """Has stages made by a crew, with which it ends; it serves all calls.

    Args:
        store: where artifacts are.
        crew: who makes the stages.
        watcher: who is told.
        memory: bytes that stages may take together where they compute, on this machine or on each of its GPUs; None: what is
            free when the first of them starts. One stage always may run.
        whole: the stages of the run, which decide with all they need how many threads each has; None: those that ``run`` is
            given.
        every: seconds between the checkpoints of a stage.
        retry_failed: whether stages that failed before are tried again, which with the same inputs would fail the same way.
        live: whether somebody follows the rows of trainings.
    """

    def __init__(
        self,
        store: Store,
        crew: Crew,
        watcher: Watcher,
        memory: float | None = None,
        whole: Sequence[Stage] | None = None,
        every: float = EVERY,
        retry_failed: bool = False,
        live: bool = False,
    ) -> None:
        self.store, self.crew, self.watcher, self.memory, self.whole = store, crew, watcher, memory, whole
        self.every, self.retry_failed, self.live = every, retry_failed, live
        self._free: tuple[float, dict[str, float]] | None = None
        self._failures: dict[str, str] = {}
        self._halvings: dict[str, int] = {}
        self._moves: dict[str, int] = {}
        self._damaged: dict[str, str] = {}  # keys of artifacts that were found damaged in this pass -> why
        self._remade: set[str] = set()
        self._resumed: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.crew.__exit__(kind, error, trace)

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
                self._make(self._schedule(stages, missing))
                if not self._damaged:
                    break
                for key, why in self._damaged.items():
                    self._make_again(by_key[key], why)
                self._damaged = {}
        except KeyboardInterrupt as error:
            raise Interrupted(stopping.STOPPED) from error
        return {stage.key: self._failures[stage.key] for stage in every if stage.key in self._failures}

    def plan(self, stages: Sequence[Stage]) -> list[Order]:
        """Return the orders that ``run`` would give if every stage were made at the first attempt; nothing is made."""
        schedule, found = self._schedule(stages, self._missing(unique_in_order(stages))), list[Order]()
        while schedule.left:
            for stage, threads in schedule.start():
                found.append(self._order(schedule, stage, threads))
                schedule.finish(stage)
        return found

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
        missing, there = [], self.store.listing()
        for stage in every:
            if stage.key in self._failures or stage.done(there):
                continue
            failed = next((self._failures[one.key] for one in stage.inputs.values() if one.key in self._failures), None)
            before = failed is None and not self.retry_failed and there.failure(stage.kind, stage.key)
            if failed:
                self._failures[stage.key] = failed
                self.watcher.skipped(stage)
            elif before:
                self._failures[stage.key] = before
                self.watcher.failed(stage, f"{before} (in an earlier run; --retry-failed tries again)")
            else:
                missing.append(stage)
                if self.store.checkpoint(stage.kind, stage.key).is_dir():
                    self._resumed.add(stage.key)
        return missing

    def _schedule(self, stages: Sequence[Stage], missing: Sequence[Stage]) -> Schedule:
        crew = self.crew
        share = shares(unique_in_order(stages if self.whole is None else self.whole), crew.jobs, crew.cores)

        def of(stage: Stage) -> Share:
            return share[stage.key]

        if not crew.here:  # whoever has the machines knows what fits on them
            return Schedule(missing, UNLIMITED, UNLIMITED, INFINITE, lambda stage: NOTHING, of, apart=True)
        if self._free is None:
            self._free = free_here(crew.gpus)
        (room, gpus), idle = self._free, idle_worker(crew.gpus)
        if self.memory is not None and gpus:
            gpus = dict.fromkeys(gpus, self.memory)
        elif self.memory is not None:
            room = self.memory
        crew.beside = any(one.beside for one in share.values())
        need = partial(estimate, store=self.store)
        return Schedule(missing, crew.jobs, crew.cores, room, need, of, idle, crew.workers, gpus=gpus)

    def _make(self, schedule: Schedule) -> None:
        """Have all that is left of a schedule made."""
        running: dict[Future[Ended], Stage] = {}
        while schedule.left:
            begun = schedule.start()
            for stage, _ in begun:
                self.watcher.started(stage)
            orders = [self._order(schedule, stage, threads) for stage, threads in begun]
            running.update(zip(self.crew.submit(orders), (stage for stage, _ in begun), strict=True))
            if not running:
                time.sleep(PATIENCE)
            for future in wait(running, PATIENCE if schedule.waits else None, return_when=FIRST_COMPLETED).done:
                stage = running.pop(future)
                try:
                    ended = future.result()
                except Lost as lost:
                    if self._may_go_on(schedule, stage, lost):
                        continue
                    ended = Ended("memory" if lost.memory else "passing", f"{stage.kind}: {lost.why}")
                self._tell(schedule, stage, ended)

    def _order(self, schedule: Schedule, stage: Stage, threads: int) -> Order:
        tail = schedule.tail(stage, self.crew.takes) if self.crew.tails else ()
        then = tuple(Order(one, self.store, its, self._how(one)) for one, its in tail)
        how = self._how(stage, schedule.places(stage))
        return Order(stage, self.store, threads, how, schedule.is_suspect(stage), then)

    def _may_go_on(self, schedule: Schedule, stage: Stage, lost: Lost) -> bool:
        """Put a stage back whose worker is lost: to go on elsewhere where that was none of its doing; else once, alone, so that
        only the stage that kills its worker fails.
        """
        if not lost.moved:
            return schedule.suspect(stage)
        self._moves[stage.key] = self._moves.get(stage.key, 0) + 1
        if self._moves[stage.key] > MOST_MOVES:
            return False
        self.watcher.retried(stage, lost.why)
        schedule.put_back(stage)
        return True

    def _how(self, stage: Stage, places: tuple[str, ...] = ()) -> How:
        return How(self._halvings.get(stage.key, 0), self.every, wait=False, live=self.live, places=places)

    def _tell(self, schedule: Schedule, stage: Stage, ended: Ended) -> None:
        """Note how an attempt ended; what depends on a stage that failed is skipped for the same reason."""
        if not self.crew.here:
            self._check_shared(stage, ended)
        if ended.how == "made":
            schedule.finish(stage)
            self.watcher.finished(stage, ended.seconds)
            self._time(stage, schedule.share(stage).threads, ended.seconds)
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

    def _time(self, stage: Stage, threads: int, seconds: float) -> None:
        """Keep what a stage took on this machine, for plans; one that went on says nothing of a whole one."""
        device = stage.local.get("device", "cpu")
        if self.crew.here and stage.key not in self._resumed:
            machine, parts = this_machine(device).name, threads if device == "cpu" else 1
            with suppress(OSError, ValueError, KeyError):  # a plan's times are worth no run
                keep(self.store, [timing_of(stage, self.store, machine, parts, self.crew.jobs, seconds, "measured")])

    def _may_need_less(self, schedule: Schedule, stage: Stage) -> bool:
        """Put a stage back that found too little memory: alone first, then with half of what goes through the model at once."""
        if self.crew.together > 1 and schedule.suspect(stage):
            return True
        halvings = self._halvings.get(stage.key, 0) + 1
        if halvings > MOST_HALVINGS or smaller(stage.config, halvings) == smaller(stage.config, halvings - 1):
            return False
        self._halvings[stage.key] = halvings
        schedule.put_back(stage)
        return True

    def _check_shared(self, stage: Stage, ended: Ended) -> None:
        """Check that this machine sees what another one made, and that one what is here.

        Raises:
            InputError: they have stores of their own.
        """
        until = time.monotonic() + LAG
        if ended.how == "made":
            while not (seen := stage.done(self.store)) and time.monotonic() < until:
                time.sleep(PATIENCE)
        else:
            seen = ended.how != "damaged" or ended.entry is None or self.store.fault(*ended.entry) is not None
        if not seen:
            raise InputError(
                f"the store of this machine and that of the one that makes {stage.kind}/{stage.key} do not have the same in them",
                "all machines of a run use one store",
                "give --store with a path that every machine has mounted",
            )


def run_stages(stages: Sequence[Stage], store: Store, jobs: int, watcher: Watcher, memory: float | None = None) -> dict[str, str]:
    """Make every missing artifact with an engine of their own; return key -> reason for those that could not be made."""
    with Engine(store, local(jobs), watcher, memory) as engine:
        return engine.run(stages)
