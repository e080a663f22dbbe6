"""What a tracker really holds, read back through its own library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from spo_bench.files import read_jsonl

SPEC = {
    "name": "tracked",
    "models": ["embedded"],
    "tasks": [{"name": "controlled_dialogue", "limit": {"train": 32, "eval": 4, "heldout": 8, "sft": 32}}],
    "methods": ["dpo"],
    "sft": {"steps": 3, "batch_size": 8},
    "train": {"batch_size": 8, "max_steps": 4, "max_length": 128},
    "generate": {"max_new_tokens": 8},
}
CELLS = ("sft", "dpo", "dpo-SPO")


class Held(NamedTuple):
    """An entry of a tracker: metric -> [(step, value)], and the text of its settings and tables."""

    series: dict[str, list[tuple[int, float]]]
    text: str


def written(folder: Path, **spec: Any) -> Path:
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump({**SPEC, **spec}))
    return path


def cell_of(name: str) -> str:
    """The short name of a cell, whatever a tracker makes of its id."""
    return next((short for short in reversed(CELLS) if f"-{short}-s0" in name), name.split(".")[0])


def check_complete(held: dict[str, Held], run: Path, store: Path, rounded: float = 0.0) -> None:
    """Every step of every training once and in order, every metric of every cell, the settings, and the comparisons."""
    assert held.keys() == {*CELLS, "comparisons"}
    lines = {cell_of(line["id"]): line for line in read_jsonl(run / "cells.jsonl")}
    metrics = [(cell_of(row["cell"]), row) for row in read_jsonl(run / "metrics.jsonl")]
    for cell, line in lines.items():
        kind = "sft" if cell == "sft" else "train"
        rows = list(read_jsonl(store / kind / line["keys"][kind] / "train.jsonl"))
        wanted = ["loss", "grad_norm"] if cell == "sft" else ["loss", "alignment_loss", "margin", "learning_rate", "tokens"]
        for name in [*wanted, *(["degree_loss"] if cell == "dpo-SPO" else [])]:
            steps, values = zip(*held[cell].series[f"train/{name}"], strict=True)
            assert list(steps) == [row["step"] for row in rows], (cell, name)
            assert all(abs(a - row[name]) <= rounded * abs(row[name]) for a, row in zip(values, rows, strict=True)), (cell, name)
        for row in [row for of, row in metrics if of == cell]:
            for end in ("value", "low", "high"):
                if row[end] is not None:
                    name = f"eval/{row['metric']}{'' if end == 'value' else '/' + end}"
                    ((step, value),) = held[cell].series[name]
                    assert step == len(rows), (cell, name)
                    assert abs(value - row[end]) <= rounded * abs(row[end]), (cell, name)
        for part in ("learning_rate", "controlled_dialogue", "0.7"):
            assert part in held[cell].text, (cell, part)
    for row in read_jsonl(run / "comparisons.jsonl"):
        assert row["metric"] in held["comparisons"].text
        assert row["variant"] in held["comparisons"].text


def tensorboard(folder: Path) -> dict[str, Held]:
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    found = {}
    for path in (folder / "tensorboard").iterdir():
        there = EventAccumulator(str(path), size_guidance={SCALARS: 0}).Reload()
        # Files of one second are read in any order.
        series = {tag: sorted((one.step, one.value) for one in there.Scalars(tag)) for tag in there.Tags()["scalars"]}
        tensors = [one.tensor_proto for tag in there.Tags()["tensors"] for one in there.Tensors(tag)]
        found[cell_of(path.name)] = Held(series, "\n".join(text.decode() for one in tensors for text in one.string_val))
    return found


def mlflow(project: str) -> dict[str, Held]:
    from mlflow.tracking import MlflowClient

    client, found = MlflowClient(), {}
    for run in client.search_runs([client.get_experiment_by_name(project).experiment_id]):
        assert run.info.status == "FINISHED"
        assert cell_of(run.info.run_name) not in found
        series = {
            name: [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, name)] for name in run.data.metrics
        }
        tables = [path.read_text() for path in Path(run.info.artifact_uri.removeprefix("file://")).glob("*.csv")]
        found[cell_of(run.info.run_name)] = Held(series, "\n".join([json.dumps(run.data.params), *tables]))
    return found


def trackio(project: str) -> dict[str, Held]:
    from trackio import Api
    from trackio.sqlite_storage import SQLiteStorage

    found = {}
    for run in Api().runs(project):
        assert cell_of(run.name) not in found
        series: dict[str, list[tuple[int, float]]] = {}
        texts = [json.dumps(run.config)]
        for row in SQLiteStorage.get_logs(project, run.name):
            for name, value in row.items():
                if isinstance(value, int | float) and name != "step":
                    series.setdefault(name, []).append((row["step"], value))
                elif isinstance(value, dict):
                    texts.append(json.dumps(value))
        found[cell_of(run.name)] = Held(series, "\n".join(texts))
    return found


def wandb(folder: Path) -> dict[str, Held]:
    """Runs that were kept offline; one that is there more than once counts as it was last, as `wandb sync` has it."""
    found = {}
    for path in sorted(folder.glob("offline-run-*/*.wandb")):
        name, last = "", -1
        texts: list[str] = []
        summary: dict[str, float] = {}
        series: dict[str, list[tuple[int, float]]] = {}
        for record in wandb_records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                name = record.run.display_name
                texts += [f"{one.key} {one.value_json}" for one in record.run.config.update]
                texts += [record.run.run_group, *record.run.tags]
            elif kind == "history":
                last = record.history.step.num
                for one in record.history.item:
                    key, value = one.key or "/".join(one.nested_key), json.loads(one.value_json)
                    if isinstance(value, int | float) and not key.startswith("_"):
                        series.setdefault(key, []).append((last, value))
            elif kind == "summary":
                for one in record.summary.update:
                    summary[one.key or "/".join(one.nested_key)] = json.loads(one.value_json)
        texts += [table.read_text() for table in path.parent.rglob("*.table.json")]
        results = {key: [(last + 1, value)] for key, value in summary.items() if key.startswith("eval/")}  # of no step
        found[cell_of(name)] = Held(series | results, "\n".join(texts))
    return found


def wandb_records(path: Path) -> list[Any]:
    """The records of a run's file: a head of 7 bytes, then blocks of 32 KiB of parts (checksum 4, length 2, kind 1: whole, first,
    middle, last). Each record is a message of the library's own protocol; it has no public reader.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts, found = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            found.append(Record.FromString(parts))
            parts = b""
    return found
