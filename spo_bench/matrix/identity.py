"""What the parts of a cell are, for keys and for tables."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spo_bench.errors import InputError
from spo_bench.files import canonical_json, file_hash
from spo_bench.matrix.spec import MethodSpec, Spec
from spo_bench.methods import get_addition, get_method
from spo_bench.plugins import is_built_in
from spo_bench.store.artifacts import digest
from spo_bench.task import Task

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w.-]+)?(@[\w./-]+)?")


def task_identity(task: Task, assume: bool = False) -> dict[str, Any]:
    """Return what a task is: what it says itself, and for a plugin also its folder's code, which no version may record.

    Args:
        task: any.
        assume: whether a data set of the hub that cannot be had stands by its name, for a plan.
    """
    try:
        return _identity(task)
    except InputError:
        if not assume or task.data is None or Path(task.data).exists() or not _HUB_ID.fullmatch(task.data):
            raise
        return {"task": task.name, "version": task.version, "assumed": task.data}


def _identity(task: Task) -> dict[str, Any]:
    if is_built_in(type(task)):
        return task.identity()
    source = Path(inspect.getfile(type(task))).resolve()
    try:
        canonical_json(task.identity())
    except (TypeError, ValueError) as error:
        raise InputError(
            f"identity() of task '{task.name}' cannot be written as JSON ({error})",
            "it says in texts, numbers, lists and mappings with texts as keys which rows the task gives",
            f"mend it in {source}",
        ) from error
    return {**task.identity(), "code": {path.name: file_hash(path) for path in sorted(source.parent.glob("*.py"))}}


def method_identity(method: MethodSpec) -> dict[str, Any]:
    """Return what a method is: name, version of its loss, all hyperparameters."""
    return {"name": method.name, "version": get_method(method.name).version, "hyperparameters": dict(method.hyperparameters)}


def additions_identity(method: MethodSpec) -> dict[str, Any]:
    """Return what is added to a method: name -> version and all settings."""
    return {one.name: {"version": get_addition(one.name).version, "settings": dict(one.settings)} for one in method.plus}


def metric_label(name: str) -> str:
    """Return a metric's name for tables: a local script's is its file's."""
    kind, colon, source = name.partition(":")
    return f"{kind}:{Path(source).stem}" if colon and Path(source).exists() else name


def metric_content(name: str) -> str | None:
    """Return the hash of a metric that is a local script, None for one that has a name."""
    source = Path(name.partition(":")[2])
    if not name.startswith("evaluate:") or not source.exists():
        return None
    files = [source] if source.is_file() else sorted(source.glob("*.py"))
    return digest({path.name: file_hash(path) for path in files})


def reward_label(name: str) -> str:
    """Return a reward model's short name for tables: the last part of its path or hub id."""
    return Path(name).name


def judge_of(spec: Spec, task: Task) -> tuple[str | None, str]:
    """Return (gold, reward, local, openai or None, what it names).

    Without a judge in the spec, a controlled world is judged by its known reward and other tasks by the first reward model.

    Raises:
        InputError: a judge that cannot judge this task.
    """
    judge = spec.judge
    if judge is None:
        return ("gold", "") if task.controlled else ("reward", spec.rewards[0]) if spec.rewards else (None, "")
    if judge.backend == "gold" and not task.controlled:
        raise InputError(
            f"judge gold for task '{task.name}'",
            "only a controlled world has a known reward",
            "judge with reward:NAME or local:MODEL",
        )
    return judge.backend, judge.model or ""


def slug(names: Sequence[str]) -> str:
    """Return a directory name from labels; a short hash keeps labels apart that differ only in what is left out."""
    plain = "-".join(part for part in (re.sub(r"[^A-Za-z0-9_.=]+", "_", name).strip("_.") for name in names) if part)
    mark = hashlib.sha256("\0".join(names).encode()).hexdigest()[:6]
    return f"{plain[:100]}-{mark}"
