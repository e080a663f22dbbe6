"""Run stages on this machine: one after the other in this process, or side by side in worker processes."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
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
        """A stage could not be finished, or an input of it could not."""


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
        reason = _broken_input(stage, failures)
        started = time.perf_counter()
        if reason is None:
            watcher.started(stage)
            reason = _attempt(stage, store, threads=os.cpu_count() or 1)
        if reason is None:
            watcher.finished(stage, time.perf_counter() - started)
        else:
            failures[stage.key] = reason
            watcher.failed(stage, reason)
    return failures


def _side_by_side(missing: Sequence[Stage], store: Store, jobs: int, watcher: Watcher) -> dict[str, str]:
    failures: dict[str, str] = {}
    waiting = {stage.key: stage for stage in missing}
    running: dict[Future[str | None], tuple[Stage, float]] = {}
    cores = os.cpu_count() or 1
    pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))
    try:
        while waiting or running:
            for stage in list(waiting.values()):
                reason = _broken_input(stage, failures)
                if reason is not None:
                    del waiting[stage.key]
                    failures[stage.key] = reason
                    watcher.failed(stage, reason)
                elif len(running) < jobs and not any(source.key in waiting or _is_running(source, running) for source in stage.inputs.values()):
                    del waiting[stage.key]
                    watcher.started(stage)
                    threads = cores if stage.kind in ALL_CORES else max(1, cores // jobs)
                    running[pool.submit(_attempt, stage, store, threads)] = (stage, time.perf_counter())
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                stage, started = running.pop(future)
                reason = future.result()
                if reason is None:
                    watcher.finished(stage, time.perf_counter() - started)
                else:
                    failures[stage.key] = reason
                    watcher.failed(stage, reason)
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
    return failures


def _is_running(stage: Stage, running: Mapping[Future[str | None], tuple[Stage, float]]) -> bool:
    return any(other.key == stage.key for other, _ in running.values())


def _broken_input(stage: Stage, failures: Mapping[str, str]) -> str | None:
    """Say which input's failure makes this stage impossible, None if all inputs are well."""
    return next((failures[source.key] for source in stage.inputs.values() if source.key in failures), None)


def _attempt(stage: Stage, store: Store, threads: int) -> str | None:
    """Make one artifact; return why it could not be made, None if it was. Input errors are raised."""
    import torch

    torch.set_num_threads(threads)
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
