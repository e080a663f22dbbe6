"""What crews on other machines share: a worker's side of an order, and what has to stay on this machine."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from importlib.util import find_spec
from pathlib import Path

from spo_bench import stopping
from spo_bench.engine.attempt import Ended, attempt
from spo_bench.engine.crew import LAG, Crew, Lost, Order
from spo_bench.engine.free import INFINITE, Need
from spo_bench.engine.local import Processes, thread_variables
from spo_bench.engine.shares import asks_endpoint
from spo_bench.errors import InputError, Interrupted, SpoBenchError
from spo_bench.stages.base import Stage
from spo_bench.store.checkpoints import made_by

HANDED_ON = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")  # of this process's environment
Answer = Ended | Lost | SpoBenchError


class Remote(Crew):
    """Makes stages on other machines, each in a process of its own.

    Rows are taken on this machine, since a file or a hub that a person named is seen from here; and a judge behind an endpoint is
    asked from here, where its key is.
    """

    here = False

    def __init__(self, cores: int, jobs: int, device: str) -> None:
        super().__init__(cores, jobs, device)
        self._home = Processes(cores, 2, "cpu")
        self._versions = made_by()

    def room(self) -> tuple[Need, Need]:
        """Return that nobody knows."""
        return Need(INFINITE, INFINITE), Need(INFINITE, INFINITE)

    def takes(self, stage: Stage) -> bool:
        """Say whether a stage may run on another machine."""
        return stage.kind != "data" and not asks_endpoint(stage)

    def submit(self, orders: Sequence[Order]) -> list[Future[Ended]]:
        """Send each order to where it is made."""
        home = [order for order in orders if not self.takes(order.stage)]
        away = [order for order in orders if self.takes(order.stage)]
        futures = dict(zip((id(one) for one in (*home, *away)), (*self._home.submit(home), *self._send(away)), strict=True))
        return [futures[id(order)] for order in orders]

    def _send(self, orders: Sequence[Order]) -> list[Future[Ended]]:
        raise NotImplementedError

    def close(self) -> None:
        """End the processes of this machine."""
        self._home.close()

    def end(self) -> None:
        """Stop the processes of this machine."""
        self._home.end()


def needs_extra(module: str, extra: str) -> None:
    """Check that the package of an engine is there.

    Raises:
        InputError: it is not installed.
    """
    if find_spec(module) is None:
        raise InputError(
            f"--engine {extra}, and the package {module} is not installed",
            "an engine for other machines comes with an extra",
            f"pip install 'spo-bench[{extra}]', on every machine of the run",
        )


def environment(crew: Crew) -> dict[str, str]:
    """Return the environment of a worker: threads of libraries that start their own, and what of this process's is for all."""
    here = {name: os.environ[name] for name in HANDED_ON if name in os.environ}
    return here | thread_variables(max(1, crew.cores // crew.jobs))


def serve(order: Order, versions: Mapping[str, str | None]) -> Answer:
    """Carry an order out in a process for it alone, and say how it ended, whatever happens.

    Args:
        order: which.
        versions: of the packages that numbers depend on, where the run was started.
    """
    with stopping.orderly(also=(signal.SIGUSR2,)):
        try:
            _check_machine(order, versions)
            return attempt(order.stage, order.store, order.threads, order.how)
        except Interrupted as error:
            return Lost(f"its worker on {socket.gethostname()} was asked to stop", moved=True) if stopping.wanted() else error
        except InputError as error:
            return error


def answered(answer: Answer) -> Ended:
    """Return how an order ended, or raise what came of it."""
    if isinstance(answer, Ended):
        return answer
    raise answer


def _check_machine(order: Order, versions: Mapping[str, str | None]) -> None:
    """Check that this machine can make what another one plans.

    Raises:
        InputError: other packages, or a model that is not there.
    """
    machine, own = socket.gethostname(), made_by()
    if differ := [f"{name} {own[name]} in place of {versions[name]}" for name in versions if own[name] != versions[name]]:
        raise InputError(
            f"machine {machine} has {', '.join(differ)}",
            "all machines of a run have the same versions of what numbers depend on",
            f"install the same there, or start the run from a machine like {machine}",
        )
    until = time.monotonic() + LAG
    for source in order.stage.inputs.values():
        if source.on_disk and not Path(source.local["directory"]).is_dir():
            raise InputError(
                f"machine {machine} has no directory {source.local['directory']}",
                "models on disk are seen by all machines of a run under the same path",
                "put them on a file system that every machine has mounted; for the hub's cache, set HF_HOME",
            )
        while not source.done(order.store) and time.monotonic() < until:
            time.sleep(1.0)
