"""MLflow. Its own variables say where: MLFLOW_TRACKING_URI, MLFLOW_TRACKING_TOKEN; without them mlflow.db in this folder."""

from __future__ import annotations

import csv
import io
import os
import re
import time
from collections.abc import Mapping, Sequence

from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from .base import FIRST, Entry, Place, Row, Session, Tracker, flat, numbers

ID = "spo_bench.id"
AT_ONCE = 1000  # metrics of one request
PARAMS_AT_ONCE = 100
LONGEST = 500  # characters of a setting's value, as older servers have it


class Mlflow(Tracker):
    """Runs of an experiment that is named as the project."""

    def __init__(self, place: Place) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # its 7 take minutes where nobody answers
        self.client = MlflowClient()
        there = self.client.get_experiment_by_name(place.project)
        self.experiment = there.experiment_id if there else self.client.create_experiment(place.project)

    def begin(self, entry: Entry) -> Session:
        """Open the entry's run."""
        there = self.client.search_runs([self.experiment], f"tags.`{ID}` = '{entry.id}'")
        if there:
            return _Run(self.client, there[0].info.run_id)
        run = self.client.create_run(self.experiment, run_name=entry.name, tags={ID: entry.id}).info.run_id
        tags = [RunTag("group", entry.group), *(RunTag(tag, "true") for tag in entry.tags)]
        self.client.log_batch(run, tags=tags)
        params = [Param(name, str(value)[:LONGEST]) for name, value in flat(entry.config)]
        for start in range(0, len(params), PARAMS_AT_ONCE):
            self.client.log_batch(run, params=params[start : start + PARAMS_AT_ONCE])
        return _Run(self.client, run)


class _Run(Session):
    def __init__(self, client: MlflowClient, run: str) -> None:
        self.client, self.run = client, run
        self.sent = max((one.step + 1 for one in client.get_metric_history(run, FIRST)), default=0)
        self.known = client.get_run(run).data.metrics
        client.update_run(run, status="RUNNING")

    def log(self, rows: Sequence[Row]) -> None:
        now = round(time.time() * 1000)
        waiting: list[Metric] = []
        for row in rows:
            of_row = [Metric(name, value, now, row["step"]) for name, value in numbers(row, "train/").items()]
            if len(waiting) + len(of_row) > AT_ONCE:  # a row is sent whole, so that its loss speaks for it
                self.client.log_batch(self.run, metrics=waiting)
                waiting = []
            waiting += of_row
            self.sent = row["step"] + 1
        self.client.log_batch(self.run, metrics=waiting)

    def results(self, values: Mapping[str, float], step: int) -> None:
        now = round(time.time() * 1000)
        named = {re.sub(r"[^\w\-. /]", "_", name): value for name, value in values.items()}
        new = [Metric(name, value, now, step) for name, value in named.items() if self.known.get(name) != value]
        for start in range(0, len(new), AT_ONCE):
            self.client.log_batch(self.run, metrics=new[start : start + AT_ONCE])

    def table(self, name: str, rows: Sequence[Row]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        self.client.log_text(self.run, text.getvalue(), f"{name}.csv")

    def finish(self, failed: bool = False) -> None:
        self.client.set_terminated(self.run, "FAILED" if failed else "FINISHED")
