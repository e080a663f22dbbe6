"""A run's own side of its trackers: a process for each, told what to follow, and when the run has ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from spo_bench.engine.collect import cell_record
from spo_bench.matrix.cells import Cell
from spo_bench.store.artifacts import Store
from spo_bench.store.live import LIVE
from spo_bench.store.provenance import without_secrets

from .base import Place
from .finished import TRAININGS, entry
from .follow import FINISHED, Training

PATIENCE = 180.0  # seconds without a sign of life, when the run has ended: a connection is given up sooner
STOPPING = 10.0  # seconds, when it was stopped


@contextmanager
def tracked(
    names: Sequence[str], place: Place, run: str, cells: Sequence[Cell], store: Store, warn: Callable[[str], object]
) -> Iterator[None]:
    """Feed trackers while the context lasts, and with the finished run when it ends well. Nothing of them fails it.

    Args:
        names: of the trackers.
        place: of the run.
        run: by which it is known from another one of the same spec.
        cells: of the run.
        store: where their trainings leave their rows.
        warn: is told once for each tracker that something went wrong.
    """
    followed = list(trainings(run, cells, store))
    feeders, well = list[_Feeder](), False
    for name in names:
        try:
            feeders.append(_Feeder(name, place, followed, warn))
        except OSError as error:  # no process can be started
            warn(_warning(name, place, str(error)))
    try:
        yield
        well = True
    finally:
        for feeder in feeders:
            feeder.end(well)
        for feeder in feeders:
            feeder.wait(PATIENCE if well else STOPPING)


def trainings(run: str, cells: Sequence[Cell], store: Store) -> Iterator[Training]:
    """Yield what is to follow: of every cell the training that makes its policy."""
    for cell in cells:
        stage = next((cell.stages[name] for name in TRAININGS if name in cell.stages), None)
        if stage is not None and stage.kind in TRAININGS:  # not a policy that is there already
            found = entry(run, cell_record(cell, {}), {name: one.identity for name, one in cell.stages.items()})
            yield Training(found, stage.path(store), store.checkpoint(stage.kind, stage.key) / LIVE)


class _Feeder:
    """The process that feeds one tracker."""

    def __init__(self, name: str, place: Place, followed: Sequence[Training], warn: Callable[[str], object]) -> None:
        self.name, self.place, self.warn = name, place, warn
        self.told, self.heard = False, time.monotonic()
        asked = {"tracker": name, "project": place.project, "out": str(place.out.absolute()), "offline": place.offline}
        asked["trainings"] = [training.record() for training in followed]
        # A session of its own: Ctrl-C is meant for the run, which says what follows from it.
        self.process = subprocess.Popen(  # noqa: S603 - our own module  # nosec B603
            [sys.executable, "-P", "-m", __package__],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()
        self._say(json.dumps(asked))

    def end(self, well: bool) -> None:
        """Let the process send what is left, or only close what is open where the run did not end ``well``."""
        if well:
            self._say(FINISHED)
        with suppress(OSError):
            self.process.stdin.close()  # type: ignore[union-attr]
        self.heard = time.monotonic()

    def wait(self, patience: float) -> None:
        """Wait until the process has ended; end it after so many seconds without a sign of life."""
        try:
            while self.process.poll() is None and time.monotonic() - self.heard < patience:
                time.sleep(0.05)
            if self.process.poll() is None:
                self._warn(f"gave no sign of life for {patience:.0f} s")
            elif self.process.returncode:
                self._warn(f"its process ended with {self.process.returncode}")
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)  # with what it started itself
            self.process.wait()
            self.listener.join()

    def _say(self, word: str) -> None:
        with suppress(OSError):  # it is gone, and ``end`` says so
            print(word, file=self.process.stdin, flush=True)

    def _listen(self) -> None:
        for line in self.process.stdout or ():
            self.heard = time.monotonic()
            answer: Mapping[str, str | None] = json.loads(line)
            if answer["failed"]:
                self._warn(answer["failed"])

    def _warn(self, why: str) -> None:
        if not self.told:
            self.told = True
            self.warn(_warning(self.name, self.place, why))


def _warning(name: str, place: Place, why: str) -> str:
    (shown,) = without_secrets([why])
    again = f"`spo-bench track {place.out} --to {name}` sends what is missing when the run is finished"
    return f"tracker {name}: {shown}; the run goes on, and {again}"
