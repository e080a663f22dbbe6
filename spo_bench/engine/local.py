"""Stages on this machine: one after the other in this process, or side by side in worker processes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress

from spo_bench import stopping
from spo_bench.engine.attempt import Ended, attempt
from spo_bench.engine.crew import Crew, Lost, Order, translated
from spo_bench.engine.free import cores_here, gpu_names, oom_kills
from spo_bench.processes import Pool

KILLED = "its process was killed"


def local(jobs: int, device: str = "cpu", gpus: int = 1) -> Crew:
    """Return who makes so many stages at a time on this machine, of whose GPUs that many are there for "cuda"."""
    crew = Inline(cores_here(), 1, device) if jobs == 1 else Processes(cores_here(), jobs, device)
    crew.gpus = gpu_names(device, gpus)
    return crew


class Inline(Crew):
    """Makes a stage in this process, as soon as it is asked to."""

    def submit(self, orders: Sequence[Order]) -> list[Future[Ended]]:
        """Make the stages one after the other."""
        found = []
        for order in orders:
            done: Future[Ended] = Future()
            done.set_result(attempt(order.stage, order.store, order.threads, order.how))
            found.append(done)
        return found

    def close(self) -> None:
        """Do nothing: there is nothing to end."""


class Processes(Crew):
    """Makes stages in processes of their own, which serve all orders. One that is killed breaks the pool for all: what ran there
    is lost, and the next order has a new pool.
    """

    def __init__(self, cores: int, jobs: int, device: str) -> None:
        super().__init__(cores, jobs, device)
        self.pool: Pool | None = None
        self._kills = 0

    @property
    def workers(self) -> int:
        """How many worker processes are there already."""
        return len(self.pool.started) if self.pool is not None else 0

    def submit(self, orders: Sequence[Order]) -> list[Future[Ended]]:
        """Give each order to a worker."""
        return [translated(self._give(order), self._answer) for order in orders]

    def _give(self, order: Order) -> Future[Ended]:
        """Give an order to a worker, of a new pool where the old one is broken, perhaps because an idle worker was killed."""
        if self.pool is not None:
            with suppress(BrokenProcessPool):
                return self.pool.submit(attempt, order.stage, order.store, order.threads, order.how)
        self._kills = oom_kills()
        self.pool = Pool(self.jobs + self.beside, _begin_worker, (max(1, self.cores // self.jobs),))
        return self.pool.submit(attempt, order.stage, order.store, order.threads, order.how)

    def _answer(self, done: Future[Ended]) -> Ended:
        try:
            return done.result()
        except BrokenProcessPool as error:
            memory = oom_kills() > self._kills
            raise Lost(f"{KILLED}: out of memory" if memory else f"{KILLED} (out of memory?)", memory) from error

    def close(self) -> None:
        """End the workers, which have nothing to do."""
        if self.pool is not None:
            self.pool.shutdown()
            self.pool = None

    def end(self) -> None:
        """Ask the workers to stop."""
        if self.pool is not None:
            self.pool.end()
            self.pool = None


def _begin_worker(count: int) -> None:
    """Let a worker be stopped by its parent, and give the libraries that start threads of their own its share of the cores; torch
    is told stage by stage.
    """
    stopping.as_worker()
    for name, value in thread_variables(count).items():
        os.environ.setdefault(name, value)


def thread_variables(count: int) -> dict[str, str]:
    """Return the environment that gives libraries which start threads of their own so many."""
    return dict.fromkeys(("RAYON_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(count))
