"""Stages as jobs of Slurm, through submitit.

A job makes one stage and then all that waits for it and its like alone, and for which no training waits: a training, its answers,
their scores and verdicts. So a cell waits in the queue once, a matrix of small cells pays for few processes, and every job is as
large as its training; nothing but Slurm decides what runs where. Who wants processes that serve many stages starts a Ray cluster
in one allocation.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from spo_bench.engine.attempt import Ended
from spo_bench.engine.crew import Lost, Order, unanswered
from spo_bench.engine.memory import GIB, estimate
from spo_bench.engine.remote import Answer, Remote, answered, environment, serve
from spo_bench.engine.shares import gpus, needs_cores
from spo_bench.engine.slurm_options import Options
from spo_bench.errors import Busy, InputError
from spo_bench.stages.base import Stage

POLL = 2.0  # seconds between two looks at what jobs have left
ASK = 60.0  # seconds between two questions to Slurm, which knows of jobs that ended without a word
MOVED = ("PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "TIMEOUT", "CANCELLED", "REQUEUED")  # states for which no stage is to blame
LEAVE = 60.0  # seconds that jobs have to end once they are told to
MARGIN = 1.5  # of the memory that is estimated: Slurm kills what takes more than it asked for


class Job:
    """A job under way: its orders in turn, and what will be known of each."""

    def __init__(self, order: Order) -> None:
        self.orders = [order, *order.then]
        self.futures: list[Future[Ended]] = [Future() for _ in self.orders]
        self.submitted: Any = None
        self.since = time.monotonic()

    @property
    def left(self) -> list[tuple[Order, Future[Ended]]]:
        """Orders of which it is not known how they ended."""
        return [(order, future) for order, future in zip(self.orders, self.futures, strict=True) if not future.done()]


class SlurmCrew(Remote):
    """Makes stages in jobs of Slurm, or on this machine through the same path.

    Args:
        folder: for what submitit writes, which all machines see; removed where nothing went wrong.
        options: what a user asks of Slurm.
        cores: a job may have.
        jobs: stages side by side on a machine; of ``cluster=local``, jobs at a time.
        device: on which stages compute.
    """

    tails = True

    def __init__(self, folder: Path, options: Options, cores: int, jobs: int, device: str) -> None:
        super().__init__(cores, jobs, device)
        self.folder, self.options = folder, options
        self._waiting: list[Job] = []
        self._running: list[Job] = []
        self._ahead: dict[str, Future[Ended]] = {}  # of stages that follow in a job under way
        self._lock, self._over = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        self._asked, self._trouble = time.monotonic(), False
        logging.getLogger("submitit").setLevel(logging.ERROR)
        if options.is_local:
            os.environ.update(environment(self))  # which its jobs inherit

    @property
    def together(self) -> int:
        """How many stages may be under way at a time."""
        return self.jobs if self.options.is_local else self.options.parallel

    @property
    def told(self) -> str:
        """How it works, in words."""
        return "jobs of Slurm" if not self.options.is_local else f"jobs on this machine, {self.jobs} at a time"

    def takes(self, stage: Stage) -> bool:
        """Say whether a stage is worth a job: what runs no model takes less time than a job needs to begin."""
        return super().takes(stage) and needs_cores(stage)

    # What is submitted.

    def _send(self, orders: Sequence[Order]) -> list[Future[Ended]]:
        found, begun = [], []
        for order in orders:
            known = self._ahead.pop(order.stage.key, None)
            if known is not None and not unanswered(known):
                found.append(known)
            elif _is_made_elsewhere(order):
                found.append(Future[Ended]())
                found[-1].set_result(Ended("busy"))
            else:
                job = Job(replace(order, how=replace(order.how, wait=True)))
                begun.append(job)
                found.append(job.futures[0])
                self._ahead |= {one.stage.key: future for one, future in zip(job.orders[1:], job.futures[1:], strict=True)}
        with self._lock:
            self._waiting += begun
            self._start()
        if self._thread is None:
            self._thread = threading.Thread(target=self._follow, daemon=True)
            self._thread.start()
        return found

    def _start(self) -> None:
        """Submit what waits: of one kind together, as an array; on this machine as many as have room."""
        room = self.jobs - len(self._running) if self.options.is_local else len(self._waiting)
        now, self._waiting = self._waiting[:room], self._waiting[room:]
        for kind in dict.fromkeys(_name(job.orders) for job in now):
            alike = [job for job in now if _name(job.orders) == kind]
            for needs in {str(self.needs(job.orders)): self.needs(job.orders) for job in alike}.values():
                self._submit([job for job in alike if self.needs(job.orders) == needs], needs)

    def _submit(self, jobs: Sequence[Job], needs: Mapping[str, Any]) -> None:
        import submitit

        executor = submitit.AutoExecutor(self.folder, cluster=self.options.cluster)
        executor.update_parameters(**self._generic(needs), **{f"slurm_{name}": value for name, value in needs.items()})
        try:
            with _deaf(), executor.batch():
                submitted = [executor.submit(serve_all, job.orders, self._versions) for job in jobs]
        except (submitit.core.utils.FailedJobError, OSError) as error:
            refused = InputError(
                f"Slurm refused a job ({' '.join(str(error).split())[-300:]})",
                "a job asks for what its cluster has, under an account that may",
                "see --slurm KEY=VALUE (partition, account, qos, time, mem_gb, …), and what `run --dry-run` would submit",
            )
            for future in (future for job in jobs for _, future in job.left):
                future.set_exception(refused)
            return
        for job, given in zip(jobs, submitted, strict=True):
            job.submitted = given
        self._running += jobs

    def _generic(self, needs: Mapping[str, Any]) -> dict[str, Any]:
        """Return what submitit's executor on this machine is told; that of Slurm has its own words."""
        return {"timeout_min": self.options.minutes, "gpus_per_node": needs.get("gpus_per_node", 0)}

    def needs(self, orders: Sequence[Order]) -> dict[str, Any]:
        """Return the parameters of sbatch for a job that makes some stages one after the other, as submitit names them."""
        most = max(gpus(order.stage) for order in orders) if self.device.startswith("cuda") else 0
        peak = max(estimate(order.stage, order.store).host for order in orders)
        found: dict[str, Any] = {
            "job_name": f"spo-bench-{_name(orders, '-')}",
            "time": self.options.minutes,
            "cpus_per_task": max(order.threads for order in orders),
            "mem": f"{math.ceil(MARGIN * peak / GIB)}GB",
            "nodes": 1,
            "ntasks_per_node": 1,
            "array_parallelism": self.options.parallel,
        }
        setup = [f"export {name}={value}" for name, value in environment(self).items()]
        if most:
            found["gpus_per_node"] = most
        if orders[0].alone:
            found |= {"exclusive": True, "mem": "0"}  # all memory of a node
        return {**found, **self.options.given, "setup": [*setup, *self.options.given.get("setup", ())]}

    def scripts(self, orders: Sequence[Order]) -> Iterator[tuple[str, int, str]]:
        """Yield what would be submitted: of jobs that make the same kinds of stages these, how many they are, and the script of
        the largest.
        """
        import submitit

        jobs, ahead = list[list[Order]](), set[str]()
        for order in orders:
            if self.takes(order.stage) and order.stage.key not in ahead:
                jobs.append([order, *order.then])
                ahead |= {one.stage.key for one in order.then}

        class OnPaper(submitit.SlurmExecutor):
            """Writes scripts also where there is no Slurm."""

            @classmethod
            def affinity(cls) -> int:
                return 1

        counts = Counter(_name(job) for job in jobs)
        largest: dict[str, dict[str, Any]] = {}
        for job in jobs:
            needs = self.needs(job)
            known = largest.setdefault(_name(job), needs)
            if _size(needs) > _size(known):
                largest[_name(job)] = needs
        for name, needs in largest.items():
            executor = OnPaper(self.folder)
            executor.update_parameters(**needs)
            if counts[name] > 1:
                executor.parameters["map_count"] = counts[name]
            yield name, counts[name], executor._make_submission_file_text(executor._submitit_command_str, "")

    # What becomes of it.

    def _follow(self) -> None:
        while not self._over.wait(POLL / 4 if self.options.is_local else POLL):
            with self._lock:
                self._look()
                self._start()

    def _look(self) -> None:
        """Note what jobs have left."""
        ask = time.monotonic() - self._asked > ASK
        for job in list(self._running):
            while job.left and (order := job.left[0][0]).stage.done(order.store):
                now = time.monotonic()
                job.left[0][1].set_result(Ended("made", seconds=now - job.since))
                job.since = now
            if job.submitted.done(force_check=ask):
                ask, self._asked = False, time.monotonic() if ask else self._asked
                self._running.remove(job)
                self._settle(job)

    def _settle(self, job: Job) -> None:
        """Note how the orders of a job ended that is over."""
        answers, why = list[Answer](), ""
        try:
            answers = job.submitted.result()
        except Exception as error:  # noqa: BLE001 - submitit's, where there is no result, or Slurm's
            why = _last_words(job, error)
        if len(answers) < len(job.orders):
            state = _state(job) if why else ""
            self._trouble |= bool(why)
            lost = Lost(f"its job ended without a word: {state or why}", "OUT_OF_ME" in state, state.startswith(MOVED))
        for place, future in enumerate(job.futures):
            if future.done():
                continue
            try:
                if place >= len(answers):
                    raise lost
                future.set_result(answered(answers[place]))
            except Exception as error:  # noqa: BLE001 - it is raised where the result is asked for
                future.set_exception(error)

    # The end.

    def close(self) -> None:
        """End; nothing is under way."""
        self._over.set()
        super().close()
        if not self._trouble:
            shutil.rmtree(self.folder, ignore_errors=True)

    def end(self) -> None:
        """Cancel all jobs; those that run have a while to keep what they did."""
        self._over.set()
        with self._lock:
            running, self._running, self._waiting = self._running, [], []
        for job in running:
            if self.options.is_local:  # submitit's own way leaves them a second
                with suppress(OSError):
                    os.kill(int(job.submitted.job_id), signal.SIGTERM)
            else:
                job.submitted.cancel(check=False)
        super().end()
        until = time.monotonic() + LEAVE
        while any(not job.submitted.done() for job in running) and time.monotonic() < until:
            time.sleep(0.2)


def serve_all(orders: Sequence[Order], versions: Mapping[str, str | None]) -> list[Answer]:
    """Carry orders out one after the other, as far as each is made; return how they ended."""
    answers: list[Answer] = []
    for order in orders:
        answers.append(serve(order, versions))
        if not isinstance(answers[-1], Ended) or answers[-1].how != "made":
            break
    return answers


def _is_made_elsewhere(order: Order) -> bool:
    """Say whether a job makes this stage already, perhaps of a run whose command was killed."""
    try:
        with order.store.making(order.stage.kind, order.stage.key, wait=False):
            return False
    except Busy:
        return True


def _state(job: Job) -> str:
    """Return what Slurm says of a job; nothing where it keeps no accounts."""
    try:
        state = str(job.submitted.state)
    except Exception:  # noqa: BLE001 - of submitit's, which asks a program
        return ""
    return "" if state in ("UNKNOWN", "FINISHED") else state


def _last_words(job: Job, error: Exception) -> str:
    """Return the last line that a job wrote, or what submitit says of it."""
    with suppress(OSError):
        lines = [line for line in job.submitted.paths.stderr.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip() if lines else "no output"
    return " ".join(str(error).split())[-200:]


def _name(orders: Sequence[Order], between: str = ", ") -> str:
    """Return the kinds of stages in a job, each once, in order."""
    return between.join(dict.fromkeys(order.stage.kind for order in orders))


def _size(needs: Mapping[str, Any]) -> tuple[int, int]:
    return int(str(needs["mem"]).rstrip("GMB")), int(needs["cpus_per_task"])


@contextmanager
def _deaf() -> Iterator[None]:
    """Start processes that do not hear a terminal's Ctrl-C, which is for this one."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
