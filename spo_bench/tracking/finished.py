"""A finished run, as its directory holds it, for a tracker: what it has already is not sent again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from spo_bench.errors import InputError
from spo_bench.files import read_jsonl
from spo_bench.report.results import Cell, Results, read_results
from spo_bench.store.artifacts import digest

from .base import Entry, Row, Tracker, numbers

TRAININGS = ("train", "sft")  # stages that leave train.jsonl: a cell's own, or that of the policy before
COLUMNS = (
    *("kind", "model", "task", "method", "metric", "baseline", "variant"),
    *("diff", "low", "high", "p", "p_adjusted", "family", "n_prompts", "n_seeds", "estimand"),
)


def entry(run: str, line: Mapping[str, Any], stages: Mapping[str, Mapping[str, Any]]) -> Entry:
    """Return a cell's entry.

    Args:
        run: by which a run is known from another one of the same spec.
        line: of ``cells.jsonl``.
        stages: identities by name; none where the cell was not finished.
    """
    spo = line["spo"]
    variant = "spo" if spo else "sft" if line["method"] == "sft" else "baseline"
    control = [spo["control"]] if spo and spo.get("control") else []
    config: dict[str, Any] = {name: line[name] for name in ("model", "task", "method", "seed")}
    config |= {"spo": (spo or {}).get("label", variant), "axes": dict(line.get("axes") or {})}
    if (training := next((stages[name] for name in TRAININGS if name in stages), None)) is not None:
        config["train"] = training["config"]
    if "generate" in stages:
        config["generate"] = stages["generate"]["config"]["settings"]
    return Entry(
        id=digest({"run": run, "cell": line["id"], "keys": line["keys"]}),
        name=line["id"],
        group="/".join(str(line[name]) for name in ("model", "task", "method")),
        tags=[variant, *control, line["method"], line["task"]],
        config=config,
    )


def send(tracker: Tracker, run: Path, told: Callable[[], object] = lambda: None) -> int:
    """Send what a tracker does not have of a finished run: rows, results, and the comparisons; return the number of cells.

    Args:
        tracker: where to.
        run: the run's directory.
        told: called after every cell.

    Raises:
        InputError: the directory is no finished run's, or something in it is not as it was written.
    """
    results = read_results(run)
    name = str(results.run.get("purse") or results.name)
    measured: dict[str, dict[str, float]] = {}
    for row in _listed(run, "metrics"):
        values = {"": row["value"], "/low": row["low"], "/high": row["high"]}
        measured.setdefault(row["cell"], {}).update(
            numbers({f"{row['metric']}{end}": value for end, value in values.items()}, "eval/")
        )
    for cell in results.cells:
        rows = trained(results, cell)
        session = tracker.begin(entry(name, cell.row, cell.stages))
        if missing := [row for row in rows if row["step"] >= session.sent]:
            session.log(missing)
        if cell.done:
            session.results(measured.get(cell.id, {}), len(rows))
        session.finish(failed=not cell.done)
        told()
    if compared := _listed(run, "comparisons"):
        keys = digest([cell.row["keys"] for cell in results.cells])
        session = tracker.begin(Entry(digest({"run": name, "comparisons": keys}), "comparisons", "comparisons"))
        session.table("comparisons", [{name: row.get(name) for name in COLUMNS} for row in compared])
        session.finish()
    return len(results.cells)


def trained(results: Results, cell: Cell) -> list[Row]:
    """Return the rows of the training that made a cell's policy; of the shared one as long as the store has it."""
    if rows := cell.rows("train"):
        return list(rows)
    key = cell.row["keys"].get("sft")
    shared = Path(str(results.run.get("store"))) / "sft" / str(key) / "train.jsonl"
    return list(read_jsonl(shared)) if cell.method == "sft" and shared.is_file() else []


def _listed(run: Path, name: str) -> list[Row]:
    """Return the rows of one of the run's own lists."""
    try:
        return list(read_jsonl(run / f"{name}.jsonl"))
    except (OSError, ValueError) as error:
        given = f"{run / name}.jsonl cannot be read ({error})"
        raise InputError(
            given, "a finished run has its metrics and comparisons", f"`spo-bench report {run}` writes them"
        ) from error
