"""Who makes stages: what the engine asks of a place where attempts run, be it this process, processes beside it, or a cluster."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

from spo_bench.engine.attempt import Ended
from spo_bench.engine.free import Need, all_memory, free_memory
from spo_bench.stages.base import Stage
from spo_bench.stages.registry import How
from spo_bench.store.artifacts import Store

LAG = 60.0  # seconds until what another machine wrote is seen, over a network's file system
T = TypeVar("T")


@dataclass(frozen=True)
class Order:
    """A stage that shall be made now.

    Attributes:
        stage: which.
        store: where its artifact belongs.
        threads: it may use.
        how: it is made.
        alone: whether it shall have a machine to itself, because it found too little memory beside others, or its worker died.
        then: orders that may follow at once where it was made, because no training waits for them (``Schedule.tail``).
    """

    stage: Stage
    store: Store
    threads: int
    how: How
    alone: bool = False
    then: tuple[Order, ...] = ()


class Lost(Exception):  # noqa: N818 - says what happened to a worker
    """A worker ended before it could say how its stage went.

    Args:
        why: in words.
        memory: whether memory ran out.
        moved: whether the place is gone, and not because of this stage: it goes on elsewhere.
    """

    def __init__(self, why: str, memory: bool = False, moved: bool = False) -> None:
        self.why, self.memory, self.moved = why, memory, moved
        super().__init__(why)


class Crew(ABC):
    """Who makes stages; a context that ends with them.

    Attributes:
        cores, jobs: of one machine, and how many stages it has side by side: they decide how many threads each has.
        device: on which they compute, "cpu" or "cuda[:i]".
        gpus: of this machine on which the engine places stages.
        here: whether they take cores and memory of this machine, which the engine gives out then.
        tails: whether an order shall say what may follow at once.
        beside: whether some run beside the jobs, which takes a worker more; the engine says so.
        workers: processes that are there already.
    """

    here = True
    tails = False

    def __init__(self, cores: int, jobs: int, device: str) -> None:
        self.cores, self.jobs, self.device = cores, jobs, device
        self.gpus: tuple[str, ...] = ()
        self.beside = False

    @property
    def workers(self) -> int:
        """How many worker processes are there already, on this machine."""
        return 0

    @property
    def together(self) -> int:
        """How many stages may be under way at a time."""
        return self.jobs

    @property
    def told(self) -> str:
        """How it works, in words."""
        return f"{self.jobs} stage{'s' if self.jobs > 1 else ''} at a time"

    def room(self) -> tuple[Need, Need]:
        """Return all the memory a stage could ever have, and what is free now, each infinite where nobody knows."""
        return all_memory(self.device), free_memory(self.device)

    def takes(self, stage: Stage) -> bool:
        """Say whether a stage may run where most do."""
        return True

    def scripts(self, orders: Sequence[Order]) -> Iterator[tuple[str, int, str]]:
        """Yield what would be handed on for some orders, of those that are alike a name, how many they are, and the text."""
        yield from ()

    @abstractmethod
    def submit(self, orders: Sequence[Order]) -> list[Future[Ended]]:
        """Return how each order will have ended. A future raises Lost where that is not known, and what ``attempt`` raises."""

    @abstractmethod
    def close(self) -> None:
        """End; nothing is under way."""

    def end(self) -> None:
        """Ask what is under way to stop where it can go on, wait until it has, and end; whoever does not wait (a further signal)
        kills it.
        """
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.close()
        else:
            self.end()


def translated(inner: Future[T], answer: Callable[[Future[T]], Ended]) -> Future[Ended]:
    """Return a future of what ``answer`` returns or raises once another future is done."""
    outer: Future[Ended] = Future()

    def settle(done: Future[Any]) -> None:
        try:
            outer.set_result(answer(done))
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
            outer.set_exception(error)

    inner.add_done_callback(settle)
    return outer


def unanswered(future: Future[Ended]) -> bool:
    """Say whether it is known of a future that nobody knows how its order ended."""
    return future.done() and isinstance(future.exception(), Lost)
