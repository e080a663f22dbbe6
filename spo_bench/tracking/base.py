"""What every tracker does: it takes the rows of a training and the results of a cell, and knows what it has of them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
FIRST = "train/loss"  # which every row of every training has


@dataclass(frozen=True)
class Place:
    """Where a run is tracked.

    Attributes:
        project: the spec's name.
        out: the run's directory.
        offline: never ask anybody outside this machine.
    """

    project: str
    out: Path
    offline: bool = False


@dataclass(frozen=True)
class Entry:
    """What a tracker calls a run: a cell with its training and its results, or the comparisons of all of them.

    Attributes:
        id: 32 hex digits, the same whenever the same cell of the same run directory is sent: what is there is not sent twice.
        name: the cell's id.
        group: model/task/method.
        tags: spo, baseline or sft; a control; method and task.
        config: the resolved settings, in mappings.
    """

    id: str
    name: str
    group: str
    tags: Sequence[str] = ()
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """A name that no other entry of the project has."""
        return f"{self.name}.{self.id[:8]}"


class Session(ABC):
    """An entry that is open.

    Attributes:
        sent: the first step that the tracker does not have.
    """

    sent: int

    @abstractmethod
    def log(self, rows: Sequence[Row]) -> None:
        """Take rows of the training, in order, from step ``sent`` on."""

    @abstractmethod
    def results(self, values: Mapping[str, float], step: int) -> None:
        """Take the results of the cell, after so many steps; those that are there already stay, since an id has one result."""

    @abstractmethod
    def table(self, name: str, rows: Sequence[Row]) -> None:
        """Take a table, unless it is there already; all rows have the same columns."""

    @abstractmethod
    def finish(self, failed: bool = False) -> None:
        """Send what waits, and close the entry."""


class Tracker(ABC):
    """Where entries go. Whatever its methods raise is told, and fails no run.

    Attributes:
        live: whether anybody can see rows before the entry is finished.
    """

    live: bool = True

    @abstractmethod
    def __init__(self, place: Place) -> None:
        """Get ready."""

    @abstractmethod
    def begin(self, entry: Entry) -> Session:
        """Open an entry, the one that is there if it is."""


def numbers(row: Row, prefix: str) -> dict[str, float]:
    """Return the finite numbers of a row under their names with a prefix; its step is no number of its own."""
    return {
        f"{prefix}{name}": value
        for name, value in row.items()
        if name != "step" and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested settings as ("train.settings.learning_rate", value); empty mappings are left out."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
