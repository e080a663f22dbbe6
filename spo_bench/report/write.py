"""Make everything a finished run shows: metrics, comparisons, tables, figures, and the page."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from spo_bench.errors import InputError, unknown
from spo_bench.files import write_jsonl, write_text
from spo_bench.garbage import few_collections

from .ablation import ablation
from .audits import data, degree, evaluation
from .axes import axes
from .grid import Table
from .hyperparameters import hyperparameters
from .judges import judge
from .mark import leave_mark
from .measure import comparison_rows, metric_rows
from .power import power
from .ranking import ranking
from .render import FORMATS
from .results import Results, read_results
from .tables import Numbers, cost, effects, gather, main, training

RESULTS: Mapping[str, Callable[[Numbers], Table]] = {
    "main": main,
    "ranking": ranking,
    "ablation": ablation,
    "training": training,
    "effects": effects,
    "power": power,
    "cost": cost,
    "axes": axes,
}
AUDITS: Mapping[str, Callable[[Results], Table]] = {
    "hyperparameters": hyperparameters,
    "judge": judge,
    "degree": degree,
    "audit": evaluation,
    "data": data,
}
"""Tables without comparisons: quick to make alone."""
TABLES = (*RESULTS, *AUDITS)
"""The names of all tables. A run has those that have rows."""
NEEDS: Mapping[str, str] = {
    "main": "cells",
    "ranking": "finished cells with verdicts against the SFT policy: give it a `judge`",
    "ablation": "two or more SPO variants of one method: list them under `spo`",
    "axes": "cells on changed data: give `data_axes` a value other than the plain one",
    "training": "a finished policy and a metric that its SFT policy has too",
    "effects": "a baseline and its SPO twin that are both finished",
    "power": "a baseline and its SPO twin that are both finished, with a headline metric",
    "cost": "cells with preference training",
    "hyperparameters": "cells",
    "judge": "an audit of its judge: a `judge` that is no known reward, and a task with human preferences",
    "degree": "a finished cell with SPO",
    "audit": "a finished cell",
    "data": "data audits in run.json",
}
"""What a run has that has the table."""


@few_collections()
def write_report(run_dir: Path) -> None:
    """Write metrics.jsonl, comparisons.jsonl, tables/, figures/ and report.html of a run; the same bytes every time.

    Reads run.json, cells.jsonl and cells/<id>/; cells that were not finished are shown as missing. A table the run does not
    have is not written, and removed where it stands from before. Raises InputError where the directory is not a run, or where
    twins were evaluated on different prompts.
    """
    from .figures import draw  # matplotlib is slow to load, and `table` does not need it
    from .page import page

    results = read_results(run_dir)
    write_jsonl(run_dir / "metrics.jsonl", metric_rows(results))
    numbers = gather(results, comparison_rows(results))
    write_jsonl(run_dir / "comparisons.jsonl", numbers.comparisons)
    made = {name: RESULTS[name](numbers) if name in RESULTS else AUDITS[name](results) for name in TABLES}
    tables = {name: one for name, one in made.items() if one.rows}
    files = [run_dir / "metrics.jsonl", run_dir / "comparisons.jsonl", run_dir / "report.html"]
    for name in TABLES:
        for ending, render in FORMATS.items():
            path = run_dir / "tables" / f"{name}.{ending}"
            if name in tables:
                write_text(path, render(tables[name]))
                files.append(path)
            else:
                path.unlink(missing_ok=True)
    drawings = draw(numbers)
    for drawing in drawings:
        for ending, content in (("png", drawing.png), ("svg", drawing.svg), ("pdf", drawing.pdf)):
            files.append(run_dir / "figures" / f"{drawing.name}.{ending}")
            _write_bytes(files[-1], content)
    write_text(run_dir / "report.html", page(results, tables, drawings, numbers.comparisons))
    leave_mark(run_dir, files)


rebuild = write_report
"""Rebuilding a report is writing it again from what the cells left."""


def table(run_dir: Path, name: str = "main", format: str = "md", bold: str = "best") -> str:
    """Return one table of a run as text, made afresh from the cells.

    Args:
        run_dir: a run directory.
        name: one of ``TABLES``.
        format: md, tex, csv, html or json.
        bold: in the table main: "best", or "undominated": all that are not significantly worse than the best.

    Raises InputError for an unknown name or format, naming the known ones, for a table that this run does not have, saying what
    would make it appear, and for marks asked of a table that has none.
    """
    check_table(name, format, bold)
    results = read_results(run_dir)
    if name in AUDITS:
        one = AUDITS[name](results)
    else:
        numbers = gather(results, comparison_rows(results))
        one = main(numbers, "undominated" if bold == "undominated" else "best") if name == "main" else RESULTS[name](numbers)
    if not one.rows:
        rule, remedy = f"it is there for a run with {NEEDS[name]}", "ask for another table, or for a run that has this"
        raise InputError(f"'{run_dir}' has no table '{name}'", rule, remedy)
    return FORMATS[format](one)


def check_table(name: str, format: str, bold: str) -> None:
    """Raise InputError for a table, format or way of marking that is not known, or that do not go together."""
    if name not in TABLES:
        raise unknown("table", name, TABLES)
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if bold not in ("best", "undominated"):
        raise unknown("way of marking", bold, ("best", "undominated"))
    if bold != "best" and name != "main":
        raise InputError(f"--bold {bold} for the table '{name}'", "only the table main marks its best", "leave --bold out")


def _write_bytes(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_bytes(content)
    os.replace(part, path)
