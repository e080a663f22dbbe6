"""Weights & Biases. Its own variables say where and how: WANDB_API_KEY, WANDB_ENTITY, WANDB_BASE_URL, WANDB_MODE, WANDB_DIR."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import wandb

from .base import Entry, Place, Row, Session, Tracker, numbers


class WandB(Tracker):
    """Runs of a project; with ``WANDB_MODE=offline`` in folders that ``wandb sync`` sends."""

    def __init__(self, place: Place) -> None:
        self.project = place.project
        self.mode: Any = os.environ.get("WANDB_MODE") or ("offline" if place.offline else "online")
        self.live = self.mode != "offline"  # and what is offline cannot be resumed: each entry is written once, as a whole
        if self.mode == "online" and not wandb.api.api_key:  # where there is a terminal, it would be asked for
            raise PermissionError("no key: `wandb login` once, set WANDB_API_KEY, or keep it here with WANDB_MODE=offline")

    def begin(self, entry: Entry) -> Session:
        """Open the entry's run."""
        run = wandb.init(
            project=self.project,
            id=entry.id,
            name=entry.name,
            group=entry.group[:128],
            tags=[tag[:64] for tag in entry.tags],
            config=dict(entry.config),
            mode=self.mode,
            resume="allow",
            reinit="create_new",
            # Command, environment and load are of the process that sends, not of the training.
            settings=wandb.Settings(
                console="off", silent=True, x_disable_meta=True, x_disable_stats=True, x_save_requirements=False, disable_git=True
            ),
        )
        return _Run(run)


class _Run(Session):
    def __init__(self, run: Any) -> None:
        self.run, self.sent = run, run.step

    def log(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self.run.log(numbers(row, "train/"), step=row["step"])
            self.sent = row["step"] + 1

    def results(self, values: Mapping[str, float], step: int) -> None:
        self.run.summary.update(dict(values))

    def table(self, name: str, rows: Sequence[Row]) -> None:
        if not self.sent:
            self.run.log({name: wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])}, step=0)

    def finish(self, failed: bool = False) -> None:
        self.run.finish(exit_code=int(failed))
