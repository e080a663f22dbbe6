"""Run stages on this machine: one after the other in this process, or side by side in worker processes."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import time
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Protocol

from spo_bench.errors import InputError, Interrupted, SpoBenchError
from spo_bench.stages.base import Stage
from spo_bench.stages.registry import execute
from spo_bench.store.artifacts import Store

# Stages many cells wait for get all cores; the others share them.
ALL_CORES = ("sft", "reward_model")


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


def run_stages(stages: Sequence[Stage], store: Store, jobs: int, watcher: Watcher) -> dict[str, str]:
    """Make every missing artifact; return key -> reason for those that could not be made.

    A failed stage fails what depends on it and nothing else. InputError is raised at once: nothing else would go better.

    Raises:
        InputError: what a person gave cannot be used.
        Interrupted: the user stopped the run; what is finished stays in the store.
    """
    missing = [stage for stage in unique_in_order(stages) if not stage.done(store)]
    try:
        return _in_turn(missing, store, watcher) if jobs == 1 else _side_by_side(missing, store, jobs, watcher)
    except KeyboardInterrupt as error:
        raise Interrupted("interrupted") from error


def _in_turn(missing: Sequence[Stage], store: Store, watcher: Watcher) -> dict[str, str]:
    failures: dict[str, str] = {}
    for stage in missing:
        if _skip(stage, failures, watcher):
            continue
        watcher.started(stage)
        started = time.perf_counter()
        _tell(stage, _attempt(stage, store, threads=cores_here()), time.perf_counter() - started, failures, watcher)
    return failures


def _skip(stage: Stage, failures: dict[str, str], watcher: Watcher) -> bool:
    """Skip a stage an input of which failed; its reason is the input's."""
    reason = next((failures[source.key] for source in stage.inputs.values() if source.key in failures), None)
    if reason is not None:
        failures[stage.key] = reason
        watcher.skipped(stage)
    return reason is not None


def _tell(stage: Stage, reason: str | None, seconds: float, failures: dict[str, str], watcher: Watcher) -> None:
    """Note how a stage ended."""
    if reason is None:
        watcher.finished(stage, seconds)
    else:
        failures[stage.key] = reason
        watcher.failed(stage, reason)


def _side_by_side(missing: Sequence[Stage], store: Store, jobs: int, watcher: Watcher) -> dict[str, str]:
    """Run stages in worker processes. A worker that is killed breaks the pool for all: what ran there is tried once more, one
    stage at a time, so that only the stage that kills its worker fails.
    """
    failures: dict[str, str] = {}
    waiting = {stage.key: stage for stage in missing}
    running: dict[Future[str | None], tuple[Stage, float]] = {}
    suspects: set[str] = set()
    cores = cores_here()
    pool = _pool(jobs)
    try:
        while waiting or running:
            for stage in list(waiting.values()):
                if _skip(stage, failures, watcher):
                    del waiting[stage.key]
                    continue
                alone = bool(suspects & {*waiting, *(other.key for other, _ in running.values())})
                if len(running) >= (1 if alone else jobs) or (alone and stage.key not in suspects):
                    continue
                if any(source.key in waiting or _is_running(source, running) for source in stage.inputs.values()):
                    continue
                del waiting[stage.key]
                watcher.started(stage)
                threads = cores if stage.kind in ALL_CORES else max(1, cores // jobs)
                running[pool.submit(_attempt, stage, store, threads)] = (stage, time.perf_counter())
            finished = wait(running, return_when=FIRST_COMPLETED).done
            if any(isinstance(future.exception(), BrokenProcessPool) for future in finished):
                wait(running)
                broken = {f: running.pop(f) for f in list(running) if isinstance(f.exception(), BrokenProcessPool)}
                for stage, started in broken.values():
                    if stage.key in suspects:
                        seconds = time.perf_counter() - started
                        _tell(stage, f"{stage.kind}: its process was killed (out of memory?)", seconds, failures, watcher)
                        suspects.discard(stage.key)
                    else:
                        suspects.add(stage.key)
                        waiting[stage.key] = stage
                pool = _pool(jobs)
            for future in [future for future in running if future.done()]:
                stage, started = running.pop(future)
                suspects.discard(stage.key)
                _tell(stage, future.result(), time.perf_counter() - started, failures, watcher)
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
    return failures


def _pool(jobs: int) -> ProcessPoolExecutor:
    # Fresh interpreters: a forked one would share torch's threads with its parent, and hang.
    return ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))


def _is_running(stage: Stage, running: Mapping[Future[str | None], tuple[Stage, float]]) -> bool:
    return any(other.key == stage.key for other, _ in running.values())


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


def _attempt(stage: Stage, store: Store, threads: int) -> str | None:
    """Make one artifact; return why it could not be made, None if it was. Input errors are raised."""
    import torch

    torch.set_num_threads(min(threads, stage.local.get("threads", threads)))
    keep_freed_memory()
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
    return None
