"""Trackio. Its own variables say where: TRACKIO_SPACE_ID or TRACKIO_SERVER_URL; without them on this machine, in TRACKIO_DIR."""

from __future__ import annotations

import contextvars
from collections.abc import Mapping, Sequence
from typing import Any

import trackio

from .base import Entry, Place, Row, Session, Tracker, numbers


class Trackio(Tracker):
    """Runs of a project."""

    def __init__(self, place: Place) -> None:
        self.project = place.project

    def begin(self, entry: Entry) -> Session:
        """Open the entry's run, in a context of its own: it ends the one that was opened before in the same."""
        run = contextvars.copy_context().run(
            trackio.init,
            project=self.project,
            name=entry.label,  # by which it knows runs
            group=entry.group,
            config={**entry.config, "tags": list(entry.tags)},
            resume="allow",
            embed=False,
            auto_log_gpu=False,  # of the process that sends
            auto_log_cpu=False,
        )
        return _Run(run)


class _Run(Session):
    def __init__(self, run: Any) -> None:
        self.run = run
        self.sent: int = run._next_step  # which it asks of wherever the run is; nothing public says it

    def log(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self.run.log(numbers(row, "train/"), step=row["step"])
            self.sent = row["step"] + 1

    def results(self, values: Mapping[str, float], step: int) -> None:
        if self.sent <= step:
            self.run.log(dict(values), step=step)

    def table(self, name: str, rows: Sequence[Row]) -> None:
        if not self.sent:
            table = trackio.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
            self.run.log({name: table}, step=0)

    def finish(self, failed: bool = False) -> None:
        self.run.finish()
