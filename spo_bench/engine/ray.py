"""Stages on a Ray cluster: each is a task with what it needs of cores, GPUs and memory, near what it reads if there is room."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from typing import Any

from spo_bench.engine.attempt import Ended
from spo_bench.engine.crew import Lost, Order, translated
from spo_bench.engine.free import INFINITE, Need
from spo_bench.engine.memory import TRAINING, estimate
from spo_bench.engine.remote import Answer, Remote, answered, environment, needs_extra, serve
from spo_bench.engine.shares import gpus
from spo_bench.errors import InputError
from spo_bench.stages.base import Stage

ADDRESS = "RAY_ADDRESS"
# Ray's own wishes: no reports over the net, no warnings of its core, and no device hidden from a stage that asked for none.
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
KNOCK = 10.0  # seconds
OBJECTS = 100 * 2**20  # bytes of Ray's object store, through which nothing of ours goes


class RayCrew(Remote):
    """Makes stages as tasks of a Ray cluster.

    Args:
        nodes: the cluster's machines that are alive, as resources.
        jobs: stages side by side on one machine.
        cores: of one machine.
        device: on which stages compute.
        ours: whether the cluster was started by this process, and ends with it.
    """

    def __init__(self, nodes: Sequence[Mapping[str, float]], cores: int, jobs: int, device: str, ours: bool) -> None:
        super().__init__(cores, jobs, device)
        import ray

        self._nodes, self._ours, self._ray = nodes, ours, ray
        self._memory = max((node.get("memory", 0.0) for node in nodes), default=0.0)
        self._refs: dict[Future[Ended], Any] = {}
        self._made_on: dict[str, str] = {}  # key -> node

    @property
    def together(self) -> int:
        """How many stages may be under way at a time, with the machines that are there now."""
        kind = "CPU" if self.device == "cpu" else "GPU"
        return max(2, int(sum(node.get(kind, 0.0) for node in self._nodes)))

    @property
    def told(self) -> str:
        """How it works, in words."""
        cores, gpus = (int(sum(node.get(kind, 0.0) for node in self._nodes)) for kind in ("CPU", "GPU"))
        return f"Ray with {len(self._nodes)} nodes, {cores} cores, {gpus} GPUs"

    def room(self) -> tuple[Need, Need]:
        """Return that nobody knows what could be, and what the largest node is said to have for tasks."""
        return super().room()[0], Need(self._memory or INFINITE, INFINITE)

    def _send(self, orders: Sequence[Order]) -> list[Future[Ended]]:
        return [self._one(order) for order in orders]

    @cached_property
    def _task(self) -> Any:
        return self._ray.remote(max_retries=0, runtime_env={"env_vars": environment(self)})(_on_node)

    def _one(self, order: Order) -> Future[Ended]:
        reference = self._task.options(**self.needs(order), **self._near(order.stage)).remote(order, self._versions)
        future = translated(reference.future(), partial(self._answer, order.stage.key))
        self._refs[future] = reference
        future.add_done_callback(lambda done: self._refs.pop(done, None))
        return future

    def needs(self, order: Order) -> dict[str, float]:
        """Return what a task asks of a node: a stage that takes no core has one all the same, so that a node is not flooded; more
        memory than any node has is asked of none.
        """
        need = estimate(order.stage, order.store).host
        return {
            "num_cpus": self.cores if order.alone else order.threads,
            "num_gpus": gpus(order.stage) if self.device.startswith("cuda") else 0,
            "memory": self._memory if order.alone else min(need, self._memory),
        }

    def _near(self, stage: Stage) -> dict[str, Any]:
        """Prefer the node that made what a stage reads, weights first: it has them in memory still. Where that node is busy or
        gone, any other will do.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        sources = sorted(stage.inputs.values(), key=lambda one: one.kind not in TRAINING)
        node = next((self._made_on[one.key] for one in sources if one.key in self._made_on), None)
        if node is None:
            return {}
        return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=True, _spill_on_unavailable=True)}

    def _answer(self, key: str, done: Future[tuple[str, Answer]]) -> Ended:
        errors = self._ray.exceptions
        try:
            node, answer = done.result()
        except errors.OutOfMemoryError as error:
            raise Lost("its process was killed: its node is out of memory", memory=True) from error
        except errors.NodeDiedError as error:
            raise Lost("its node is gone", moved=True) from error
        except errors.TaskCancelledError as error:
            raise Lost("it was stopped", moved=True) from error
        except errors.WorkerCrashedError as error:
            raise Lost("its process was killed (out of memory?)") from error
        self._made_on[key] = node
        return answered(answer)

    def close(self) -> None:
        """Leave the cluster."""
        super().close()
        if self._ours:
            self._ray.shutdown()

    def end(self) -> None:
        """Ask every task to stop: one that trains does so after its step, one that waits does not begin."""
        try:
            for reference in list(self._refs.values()):
                self._ray.cancel(reference)
            wait(list(self._refs))
            super().end()
        except BaseException:
            for reference in list(self._refs.values()):
                self._ray.cancel(reference, force=True)
            raise
        finally:
            if self._ours:
                self._ray.shutdown()


def connect(address: str | None) -> tuple[list[dict[str, float]], bool]:
    """Join a Ray cluster, or start one on this machine; return the resources of each node that is alive, and whether this process
    joined now.

    Args:
        address: "HOST:PORT" of its head; None: ``$RAY_ADDRESS``, else a cluster is started here.

    Raises:
        InputError: Ray is not installed, or no cluster answers.
    """
    needs_extra("ray", "ray")
    address = address or os.environ.get(ADDRESS) or "local"
    if address.startswith("ray://"):
        raise InputError(
            f"Ray address '{address}'",
            "stages are followed from a machine of the cluster, not through Ray's client",
            "start the command on a node of the cluster, with HOST:PORT of its head or `auto`, or with `ray job submit`",
        )
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    joined = not ray.is_initialized()
    if joined:
        here: dict[str, Any] = {"include_dashboard": False, "object_store_memory": OBJECTS, "_node_ip_address": "127.0.0.1"}
        try:
            _knock(address)
            with _own_signals():
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **here if address == "local" else {})
        except Exception as error:  # of whatever kind Ray chose
            raise InputError(
                f"no Ray cluster at '{address}' ({(str(error).splitlines() or [''])[0]})",
                "a cluster that is named is there and has the same versions of Ray and Python",
                "start one (`ray start --head`), name another with --ray-address HOST:PORT, or leave the address out to start "
                "one here",
            ) from error
        _say_nothing()
    return [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")], joined


def _knock(address: str) -> None:
    """Check that something listens at "HOST:PORT"; Ray itself would try for many minutes.

    Raises:
        OSError: nothing does.
    """
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK).close()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep this process's own answers to signals, which Ray replaces as it starts."""
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)} if main else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say_nothing() -> None:
    """Let Ray not print pages of its logs where a node or worker is lost: what matters of it is told stage by stage."""
    with suppress(ImportError):
        from ray._private import worker

        worker.print_to_stdstream = lambda *words, **more: None


def _on_node(order: Order, versions: Mapping[str, str | None]) -> tuple[str, Answer]:
    """Carry an order out; return the node where that was, and how it ended."""
    import ray

    return ray.get_runtime_context().get_node_id(), serve(order, versions)
