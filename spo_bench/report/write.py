"""Make everything a finished run shows: metrics, comparisons, tables, figures, and the page."""

from __future__ import annotations

import os
from pathlib import Path

from spo_bench.errors import unknown
from spo_bench.files import write_jsonl, write_text

from .audits import data, degree, evaluation
from .axes import axes
from .judges import judge
from .measure import comparison_rows, metric_rows
from .render import FORMATS, Table
from .results import Results, read_results
from .tables import Numbers, cost, effects, gather, main, training

RESULTS = {"main": main, "training": training, "effects": effects, "cost": cost, "axes": axes}
AUDITS = {"judge": judge, "degree": degree, "audit": evaluation, "data": data}
TABLES = (*RESULTS, *AUDITS)
"""The names of all tables."""


def write_report(run_dir: Path) -> None:
    """Write metrics.jsonl, comparisons.jsonl, tables/, figures/ and report.html of a run; the same bytes every time.

    Reads run.json, cells.jsonl and cells/<id>/; cells that were not finished are shown as missing. Raises InputError where
    the directory is not a run, or where twins were evaluated on different prompts.
    """
    from .figures import draw  # matplotlib is slow to load, and `table` does not need it
    from .page import page

    results = read_results(run_dir)
    write_jsonl(run_dir / "metrics.jsonl", metric_rows(results))
    numbers = gather(results, comparison_rows(results))
    write_jsonl(run_dir / "comparisons.jsonl", numbers.comparisons)
    absent = {"axes"} if not results.axes else set()
    absent |= {"judge"} if not results.judge_audits else set()
    tables = {name: _build(name, results, numbers) for name in TABLES if name not in absent}
    for name, one in tables.items():
        for ending, render in FORMATS.items():
            write_text(run_dir / "tables" / f"{name}.{ending}", render(one))
    drawings = draw(numbers)
    for drawing in drawings:
        _write_bytes(run_dir / "figures" / f"{drawing.name}.png", drawing.png)
        _write_bytes(run_dir / "figures" / f"{drawing.name}.svg", drawing.svg)
    write_text(run_dir / "report.html", page(results, tables, drawings, numbers.comparisons))


rebuild = write_report
"""Rebuilding a report is writing it again from what the cells left."""


def table(run_dir: Path, name: str = "main", format: str = "md") -> str:
    """Return one table of a run as text, made afresh from the cells.

    Args:
        run_dir: a run directory.
        name: main, training, effects, cost, axes, judge, degree, audit or data.
        format: md, tex, csv, html or json.

    Raises InputError for an unknown name or format, naming the known ones.
    """
    if name not in TABLES:
        raise unknown("table", name, TABLES)
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    results = read_results(run_dir)
    numbers = None if name in AUDITS else gather(results, comparison_rows(results))
    return FORMATS[format](_build(name, results, numbers))


def _build(name: str, results: Results, numbers: Numbers | None) -> Table:
    if numbers is None or name in AUDITS:
        return AUDITS[name](results)
    return RESULTS[name](numbers)


def _write_bytes(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_bytes(content)
    os.replace(part, path)
