"""TensorBoard: event files in the run's directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from .base import FIRST, Entry, Place, Row, Session, Tracker, flat, numbers


class TensorBoard(Tracker):
    """Writes DIR/tensorboard/CELL."""

    def __init__(self, place: Place) -> None:
        self.folder = place.out / "tensorboard"

    def begin(self, entry: Entry) -> Session:
        """Open a new event file of the entry; what its others hold counts."""
        return _Events(self.folder / entry.label, entry)


class _Events(Session):
    def __init__(self, folder: Path, entry: Entry) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        there = EventAccumulator(str(folder), size_guidance={SCALARS: 0}).Reload()
        tags = there.Tags()
        self.sent = max((one.step + 1 for one in there.Scalars(FIRST)), default=0) if FIRST in tags["scalars"] else 0
        self.values = {tag: there.Scalars(tag)[-1].value for tag in tags["scalars"]}
        self.texts = {tag.removesuffix("/text_summary") for tag in tags["tensors"]}
        self.writer = SummaryWriter(str(folder))
        if entry.config and "config" not in self.texts:
            described: dict[str, Any] = {"group": entry.group, "tags": ", ".join(entry.tags), **dict(flat(entry.config))}
            self.writer.add_text("config", markdown([{"setting": name, "value": value} for name, value in described.items()]))

    def log(self, rows: Sequence[Row]) -> None:
        for row in rows:
            for name, value in numbers(row, "train/").items():
                self.writer.add_scalar(name, value, row["step"])
            self.sent = row["step"] + 1
        self.writer.flush()

    def results(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            if self.values.get(name) != np.float32(value):  # as which it is kept
                self.writer.add_scalar(name, value, step)

    def table(self, name: str, rows: Sequence[Row]) -> None:
        if name not in self.texts:
            self.writer.add_text(name, markdown(rows))

    def finish(self, failed: bool = False) -> None:
        self.writer.close()


def markdown(rows: Sequence[Row]) -> str:
    """Return rows as a table in Markdown."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(row.values() for row in rows)]
    return "\n".join("| " + " | ".join(str(value).replace("|", "\\|") for value in line) + " |" for line in lines)
