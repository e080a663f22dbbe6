"""The mark a report leaves: what it was made from, so that a run that has not changed is not reported on again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import spo_bench
from spo_bench.files import file_hash, fingerprint, read_json, write_json
from spo_bench.store.provenance import packages
from spo_bench.store.sealed import entry, file_fault

MARK = ".report.json"


def leave_mark(run_dir: Path, files: Sequence[Path]) -> None:
    """Note from what the report of a run was made, and which files it has."""
    known = {str(path.relative_to(run_dir)): entry(path) for path in sorted(files)}
    write_json(run_dir / MARK, {"made_from": _sources(run_dir), "files": known})


def is_current(run_dir: Path) -> bool:
    """Say whether the report of a run is there, each file as it was, and would be made from the same by the same code."""
    try:
        mark = read_json(run_dir / MARK)
        changed = any(file_fault(run_dir / name, known) for name, known in mark["files"].items())
        return not changed and bool(mark["made_from"] == _sources(run_dir))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False


def _sources(run_dir: Path) -> str:
    """Return one hash of the run's two lists, its cells' marks, this package's files and the versions of others."""
    own = Path(spo_bench.__file__).parent
    code = sorted(path for path in own.rglob("*") if path.is_file() and path.suffix not in (".pyc", ".part"))
    cells = sorted(run_dir.glob("cells/*/DONE"))
    lists = [path for path in (run_dir / "run.json", run_dir / "cells.jsonl") if path.is_file()]
    hashes = [f"{path.relative_to(own)} {file_hash(path)}" for path in code]
    hashes += [f"{path.relative_to(run_dir)} {file_hash(path)}" for path in (*lists, *cells)]
    return fingerprint(str(packages()), *hashes)
