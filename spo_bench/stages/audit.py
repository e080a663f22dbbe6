"""Whether a task's data may be used at all. No heavy import: every run asks this first."""

from __future__ import annotations

from pathlib import Path

from spo_bench.errors import InputError
from spo_bench.files import read_json


def check_some(task: str, split: str, rows: int) -> None:
    """Refuse a task without rows to train on, or without prompts to answer; raises InputError."""
    if rows == 0 and split in ("train", "eval"):
        raise InputError(
            f"task '{task}' has no {split} rows", "a task needs train and eval rows", "give more data, or raise limit"
        )


def check_dropped(directory: Path, max_dropped: float) -> None:
    """Refuse a run whose data lost too many rows.

    Raises:
        InputError: with the counts and the first dropped rows by number.
    """
    audit = read_json(directory / "audit.json")
    for split, counts in audit["splits"].items():
        check_some(audit["task"], split, counts["rows"])
        if counts["rows"] and counts["dropped"] / counts["rows"] > max_dropped:
            named = [f"row {row['number']}: {row['reason']}" for row in audit["dropped_rows"] if row["split"] == split]
            examples = "; ".join(named[:5]) + ("; …" if len(named) > 5 else "")
            raise InputError(
                f"task '{audit['task']}', split {split}: {counts['dropped']} of {counts['rows']} rows are unusable ({examples})",
                f"at most max_dropped = {max_dropped:g} of a task's rows may be unusable",
                "repair these rows, or raise max_dropped of this task",
            )
        if counts["rows"] and counts["kept"] == 0:
            raise InputError(
                f"task '{audit['task']}', split {split}: no row is left", "a task needs usable rows", "check the data"
            )
    for split, count in audit["overlap"].items():
        if count == 0:
            continue
        prompts = audit["splits"][split]["distinct_prompts"]
        raise InputError(
            f"task '{audit['task']}': {count} of {prompts} {split} prompts are training prompts too",
            "no prompt is in two splits",
            "mend the task's load()",
        )
