"""The process beside a run that feeds one tracker: it follows the trainings by their files until the run has ended.

On stdin: one line of JSON that says what to follow; later the line ``finished`` when the run's directory is whole. Where stdin
ends without it, the run was stopped. On stdout: a line of JSON whenever something was done, with the reason where it failed.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spo_bench.files import read_jsonl
from spo_bench.store.live import Tail
from spo_bench.store.sealed import SEAL

from . import connect
from .base import Entry, Place, Row, Session, Tracker
from .finished import send

EVERY = 2.0  # seconds between two looks at what is new
REST = 300.0  # seconds after a failure
FINISHED = "finished"


@dataclass(frozen=True)
class Training:
    """What is followed.

    Attributes:
        entry: of the cell.
        artifact: the directory of the training's artifact, which may be there already.
        live: the file of its rows while it is under way.
    """

    entry: Entry
    artifact: Path
    live: Path

    def record(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"entry": asdict(self.entry), "artifact": str(self.artifact), "live": str(self.live)}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Training:
        """Return what ``record`` was made from."""
        return cls(Entry(**record["entry"]), Path(record["artifact"]), Path(record["live"]))


class Following:
    """Sends what is new of trainings, and closes the entry of one that is finished.

    Args:
        tracker: where to.
        trainings: what is followed.
    """

    def __init__(self, tracker: Tracker, trainings: Iterable[Training]) -> None:
        self.tracker = tracker
        self.left = {training.entry.id: training for training in trainings}
        self.open: dict[str, Session] = {}
        self.tails: dict[str, Tail] = {}

    def look(self) -> None:
        """Send what is new."""
        for name, training in list(self.left.items()):
            whole = (training.artifact / SEAL).is_file()
            if whole:
                rows = list(read_jsonl(training.artifact / "train.jsonl"))
            else:
                rows = list(self.tails.setdefault(name, Tail(training.live)).rows())
            if not rows:
                continue
            if name not in self.open:
                self.open[name] = self.tracker.begin(training.entry)
            session = self.open[name]
            if new := following(rows, session.sent):
                session.log(new)
            if whole:
                self.open.pop(name).finish()
                del self.left[name]

    def close(self, stopped: bool) -> None:
        """Close what is open; a training that was ``stopped`` goes on another time."""
        while self.open:
            self.open.popitem()[1].finish(failed=stopped)


def following(rows: Iterable[Row], sent: int) -> list[Row]:
    """Return the rows from a step on, up to the first gap."""
    found: list[Row] = []
    for row in rows:
        if row["step"] == sent + len(found):
            found.append(row)
    return found


def feed(
    name: str,
    place: Place,
    trainings: Sequence[Training],
    said: Callable[[float], str | None],
    tell: Callable[[Exception | None], object],
) -> None:
    """Feed a tracker until the run has ended; whatever goes wrong is told, and tried again later.

    Args:
        name: of the tracker.
        place: of the run.
        trainings: what to follow.
        said: waits so many seconds for a word of the run; "" where there was none, None when there will be none.
        tell: takes what went wrong, or None as a sign of life.
    """
    followed: Following | None = None
    rests_until = 0.0
    word: str | None = ""
    while word == "":
        try:
            if time.monotonic() >= rests_until:
                followed = followed or Following(connect(name, place), trainings)
                if followed.tracker.live:
                    followed.look()
            tell(None)
        except Exception as error:  # noqa: BLE001 - of whatever a tracker does
            tell(error)
            rests_until = time.monotonic() + REST
            with suppress(Exception):
                if followed is not None:
                    followed.close(stopped=True)
            followed = None
        word = said(EVERY)
    try:
        if followed is not None:
            followed.close(stopped=word != FINISHED)
        if word == FINISHED:
            send(followed.tracker if followed else connect(name, place), place.out, lambda: tell(None))
    except Exception as error:  # noqa: BLE001 - of whatever a tracker does
        tell(error)


def main() -> None:
    """Read on stdin what to feed, and feed it."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # trackers greet, and tell of their progress
        os.dup2(nowhere, stream)
    asked = json.loads(sys.stdin.readline())
    words: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            words.put(line.strip())
        words.put(None)

    threading.Thread(target=listen, daemon=True).start()

    def said(seconds: float) -> str | None:
        with suppress(queue.Empty):
            return words.get(timeout=seconds)
        return ""

    def tell(error: Exception | None) -> None:
        text = None if error is None else (str(error).strip() or type(error).__name__).splitlines()[0]
        with suppress(OSError):  # the run is gone
            print(json.dumps({"failed": text}), file=answers, flush=True)

    place = Place(asked["project"], Path(asked["out"]), asked["offline"])
    feed(asked["tracker"], place, [Training.of_record(one) for one in asked["trainings"]], said, tell)
    os._exit(0)  # whatever a tracker still waits for
