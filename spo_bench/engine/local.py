"""Run stages on this machine: one after the other in this process, or side by side in worker processes."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from spo_bench.engine.free import Need, free_memory
from spo_bench.engine.memory import CUDA_PROCESS, PROCESS, estimate
from spo_bench.engine.schedule import Schedule
from spo_bench.engine.shares import shares
from spo_bench.errors import InputError, Interrupted, SpoBenchError
from spo_bench.processes import Pool
from spo_bench.stages.base import Stage
from spo_bench.stages.registry import execute
from spo_bench.store.artifacts import Store


class Watcher(Protocol):
    """Who is told how a run goes."""

    def started(self, stage: Stage) -> None:
        """A stage begins."""

    def finished(self, stage: Stage, seconds: float) -> None:
        """A stage has left its artifact."""

    def failed(self, stage: Stage, reason: str) -> None:
        """A stage could not be finished."""

    def skipped(self, stage: Stage) -> None:
        """A stage was not tried, because an input of it failed."""


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
    """

    def __init__(
        self, store: Store, jobs: int, watcher: Watcher, memory: float | None = None, whole: Sequence[Stage] | None = None
    ) -> None:
        self.store, self.jobs, self.watcher, self.memory, self.whole = store, jobs, watcher, memory, whole
        self._pool: Pool | None = None
        self._workers = jobs
        self._free: Need | None = None

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

        A failed stage fails what depends on it and nothing else. InputError is raised at once: nothing else would go better.

        Raises:
            InputError: what a person gave cannot be used.
            Interrupted: the user stopped the run; what is finished stays in the store.
        """
        missing = [stage for stage in unique_in_order(stages) if not stage.done(self.store)]
        if not missing:
            return {}
        schedule = self._schedule(stages, missing)
        try:
            return self._in_turn(schedule) if self.jobs == 1 else self._side_by_side(schedule)
        except KeyboardInterrupt as error:
            raise Interrupted("interrupted") from error

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

    def _in_turn(self, schedule: Schedule) -> dict[str, str]:
        failures: dict[str, str] = {}
        while schedule.left:
            for stage, threads in schedule.start():
                self.watcher.started(stage)
                started = time.perf_counter()
                reason = _attempt(stage, self.store, threads)
                self._tell(schedule, stage, reason, time.perf_counter() - started, failures)
        return failures

    def _side_by_side(self, schedule: Schedule) -> dict[str, str]:
        """Run stages in worker processes. A worker that is killed breaks the pool for all: what ran there is tried once more, one
        stage at a time, so that only the stage that kills its worker fails.
        """
        failures: dict[str, str] = {}
        running: dict[Future[str | None], tuple[Stage, float]] = {}
        while schedule.left:
            for stage, threads in schedule.start():
                self.watcher.started(stage)
                running[self._submit(stage, threads)] = (stage, time.perf_counter())
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                stage, started = running.pop(future)
                if not isinstance(future.exception(), BrokenProcessPool):
                    reason = future.result()
                elif schedule.suspect(stage):
                    continue
                else:
                    reason = f"{stage.kind}: its process was killed (out of memory?)"
                self._tell(schedule, stage, reason, time.perf_counter() - started, failures)
        return failures

    def _submit(self, stage: Stage, threads: int) -> Future[str | None]:
        """Give a stage to a worker, of a new pool where the old one is broken, perhaps because an idle worker was killed."""
        if self._pool is not None:
            with suppress(BrokenProcessPool):
                return self._pool.submit(_attempt, stage, self.store, threads)
        self._pool = Pool(self._workers, _few_threads, (max(1, cores_here() // self.jobs),))
        return self._pool.submit(_attempt, stage, self.store, threads)

    def _tell(self, schedule: Schedule, stage: Stage, reason: str | None, seconds: float, failures: dict[str, str]) -> None:
        """Note how a stage ended; what depends on one that failed is skipped for the same reason."""
        if reason is None:
            schedule.finish(stage)
            self.watcher.finished(stage, seconds)
            return
        failures[stage.key] = reason
        self.watcher.failed(stage, reason)
        for other in schedule.fail(stage):
            failures[other.key] = reason
            self.watcher.skipped(other)


def run_stages(stages: Sequence[Stage], store: Store, jobs: int, watcher: Watcher, memory: float | None = None) -> dict[str, str]:
    """Make every missing artifact with an engine of their own; return key -> reason for those that could not be made."""
    with Engine(store, jobs, watcher, memory) as engine:
        return engine.run(stages)


def _few_threads(count: int) -> None:
    """Give the libraries that start threads of their own a worker's share of the cores; torch is told stage by stage."""
    for name in ("RAYON_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, str(count))


def cores_here() -> int:
    """Return how many cores this process may use: less than the machine has in a container or under taskset."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed_memory() -> None:
    """Ask the C library to keep freed memory for the next step: giving it back and touching it anew costs more than a small
    step. Does nothing where the C library is not glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    for setting, value in ((-4, 0), (-1, 2**31 - 1)):  # M_MMAP_MAX: no separate mappings; M_TRIM_THRESHOLD: never shrink
        mallopt(setting, value)


def resident_memory() -> int:
    """Return the bytes this process has in memory; 0 where that cannot be told (not Linux)."""
    with suppress(OSError, AttributeError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def give_back_freed_memory(before: int) -> None:
    """Give memory that was freed back to the system, for what runs beside this process. Of a CUDA device always; of this machine
    (Linux and glibc) where there is much more than ``before``: looking for it takes as long as a small stage.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()
    if resident_memory() > before + PROCESS:
        gc.collect()
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def _attempt(stage: Stage, store: Store, threads: int) -> str | None:
    """Make one artifact; return why it could not be made, None if it was. Input errors are raised."""
    import torch

    torch.set_num_threads(threads)
    keep_freed_memory()
    before = resident_memory()
    try:
        execute(stage, store)
    except InputError:
        raise
    except SpoBenchError as error:
        return f"{stage.kind}: {error}"
    # A stage runs code of plugins, models and libraries: whatever it raises ends this cell, with its place, and no other.
    except Exception as error:  # noqa: BLE001
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{stage.kind}: {type(error).__name__}: {error} ({os.path.basename(where.filename)}:{where.lineno})"
    finally:
        give_back_freed_memory(before)
    return None
