"""A whole run, from a spec to a report: what the command does, for a notebook."""

from __future__ import annotations

import os
import time
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from sqlite3 import Error as SQLiteError
from typing import Any

from spo_bench import stopping
from spo_bench.engine.collect import (
    SCHEMA_VERSION,
    cell_record,
    failed_audits,
    is_written,
    judge_audits,
    write_cell,
    write_record,
)
from spo_bench.engine.local import Engine, Watcher, cores_here, unique_in_order
from spo_bench.engine.preflight import Ahead, check
from spo_bench.errors import InputError, Interrupted, disk_full, is_disk_full, suggestion
from spo_bench.files import read_json, read_jsonl, write_jsonl
from spo_bench.garbage import few_collections
from spo_bench.judging.store import FILE, spent_from
from spo_bench.matrix.cells import Cell, expand
from spo_bench.matrix.evaluation import Place
from spo_bench.matrix.load import load_spec
from spo_bench.matrix.spec import Spec
from spo_bench.models.source import EMBEDDED
from spo_bench.problems import Problems
from spo_bench.stages.audit import check_dropped
from spo_bench.stages.base import Stage
from spo_bench.store.artifacts import HashCache, Listing, Store
from spo_bench.store.checkpoints import EVERY
from spo_bench.store.claims import claim, finishing, release
from spo_bench.store.claims import purse_of as purse_of
from spo_bench.store.provenance import provenance
from spo_bench.store.sealed import entry, read_signed
from spo_bench.tracking import choose as choose_trackers

STORE_VARIABLE = "SPO_BENCH_STORE"
DEVICES = ("auto", "cpu", "cuda", "cuda:0")
CORES_A_JOB = 4  # what a stage of a real model has good use for; beyond that its small products share cores badly


def unwatched(cells: Sequence[Cell], missing: Sequence[Stage]) -> AbstractContextManager[Watcher]:
    """Watch a run without saying anything."""
    return nullcontext(Watcher())


@dataclass(frozen=True)
class Finished:
    """A finished run.

    Attributes:
        out: its directory.
        cells, done: how many there are, and how many are done.
        failed: reasons by cell, and of audits of the judge that could not be finished.
        made: stages made now.
        seconds: how long it took.
    """

    out: Path
    cells: int
    done: int
    failed: Mapping[str, str]
    made: int
    seconds: float


def default_store() -> Path:
    """Return the store's directory: $SPO_BENCH_STORE, else ~/.cache/spo-bench."""
    return Path(os.environ.get(STORE_VARIABLE) or Path.home() / ".cache" / "spo-bench")


def choose_device(wanted: str) -> str:
    """Return the device for "auto", "cpu" or "cuda[:i]".

    Raises:
        InputError: an unknown device, or cuda where there is none.
    """
    if wanted == "cpu":
        return wanted
    if wanted != "auto" and not _is_gpu(wanted):
        raise InputError(f"device '{wanted}'", "a device is auto, cpu, cuda or cuda:0, cuda:1, …", suggestion(wanted, DEVICES))
    if wanted == "auto" and not Path("/dev/nvidia0").exists():
        return "cpu"  # without importing torch: planning and a finished run need no tensors
    import torch

    if torch.cuda.is_available() and (":" not in wanted or int(wanted[5:]) < torch.cuda.device_count()):
        return "cuda" if wanted == "auto" else wanted
    if wanted == "auto":
        return "cpu"
    raise InputError(
        f"device '{wanted}'",
        f"this machine has {torch.cuda.device_count()} CUDA devices that torch can use",
        "use --device cpu, or install a CUDA build of torch",
    )


def planned_device(wanted: str) -> str:
    """Return the device for which stages are planned: a GPU that was asked for, also where it is not there."""
    return wanted if _is_gpu(wanted) else choose_device(wanted if wanted in DEVICES else "auto")


def _is_gpu(name: str) -> bool:
    return name == "cuda" or (name.startswith("cuda:") and name[5:].isdigit())


def choose_jobs(wanted: int | str, spec: Spec, device: str) -> int:
    """Return how many stages run at a time, for a number or "auto".

    Auto is one a core where only the embedded model is run, whose products are too small for cores to share; one a few cores for
    other models; and one on a GPU. Memory may allow fewer at a time (``engine.memory``).

    Raises:
        InputError: neither a number above 0 nor "auto".
    """
    if str(wanted).isdecimal() and int(wanted) > 0:
        return int(wanted)
    if wanted != "auto":
        raise InputError(f"--jobs {wanted}", "at least one stage runs at a time", "give --jobs 1 or more, or --jobs auto")
    if planned_device(device) != "cpu":
        return 1
    small = all(model.path == EMBEDDED for model in spec.models)
    return cores_here() if small else max(1, cores_here() // CORES_A_JOB)


def check_memory(memory: float | None, jobs: int) -> None:
    """Check that a limit on what stages side by side may take has any side by side to limit.

    Raises:
        InputError: one stage at a time, which always may run.
    """
    if memory is not None and jobs == 1:
        raise InputError(
            f"--memory {memory / 2**30:g} with one stage at a time",
            "it limits what stages side by side may take, and one alone always may run",
            "leave --memory out, or give --jobs 2 or more",
        )


def cells_of(
    spec: Spec, store: Path, device: str, offline: bool = False, tasks_dirs: Sequence[str] = (), purse: str = ""
) -> list[Cell]:
    """Return the cells of a spec as they would run here; what a judge costs counts together under the name ``purse``.

    Raises:
        InputError: a device, models or data that are not there, or settings that cannot go together; all of them.
    """
    if offline:  # before anything imports a hub client, which reads these once
        os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    problems, cells = Problems(), list[Cell]()
    with problems.noted():
        choose_device(device)
    with problems.noted():
        cells = expand(spec, Place(planned_device(device), HashCache(store), offline, tuple(tasks_dirs), purse))
    problems.raise_any()
    return cells


def run(
    spec: str | Path | Mapping[str, Any] | Spec | None = None,
    out: str | Path | None = None,
    *,
    store: str | Path | None = None,
    device: str = "auto",
    jobs: int | str = 1,
    memory: float | None = None,
    offline: bool = False,
    tasks_dirs: Sequence[str] = (),
    checkpoint: float = EVERY,
    retry_failed: bool = False,
    track: str | Sequence[str] = (),
    watch: Callable[[Sequence[Cell], Sequence[Stage]], AbstractContextManager[Watcher]] = unwatched,
    warn: Callable[[str], object] = warnings.warn,
) -> Finished:
    """Run a matrix and write its report. A run that is finished already, of the same spec and by the same code, stays as it is.

    Args:
        spec: a preset's name, a YAML file, a mapping, or a loaded spec; None is the embedded default.
        out: the run's directory; default ``results/NAME``. A run in the same directory is continued.
        store: where artifacts are kept; default $SPO_BENCH_STORE or ~/.cache/spo-bench.
        device: "auto", "cpu" or "cuda[:i]".
        jobs: how many stages run side by side, where memory allows; or "auto", the command's default. More than one run in
            processes of their own, which import the main module anew: a script that asks for them calls this under
            ``if __name__ == "__main__":``. Here the default is one, which runs in this process.
        memory: bytes that stages side by side may take by estimate, where they compute; None: what is free. One stage always
            may run.
        offline: never ask a hub.
        tasks_dirs: further folders of task plugins.
        checkpoint: seconds between two checkpoints of what is under way.
        retry_failed: whether stages that failed before, for a reason that lies in their inputs, are tried again.
        track: trackers that are told how it goes and what came out: wandb, trackio, mlflow, tensorboard.
        watch: (cells, stages to make) -> context of the watcher that is told of every stage.
        warn: is told what may go wrong with a run that begins.

    Raises:
        InputError: what was given cannot be used, or could not be finished here (``engine.preflight``): all of it at once, before
            anything is written.
        Interrupted: stopped by the user; the same call goes on where it stopped.
    """
    started = time.time()
    loaded = load_spec(spec, tasks_dirs=tasks_dirs)
    together = choose_jobs(jobs, loaded, device)
    check_memory(memory, together)
    target = Path(out or Path("results") / loaded.name)
    artifacts = Store(Path(store) if store else default_store())
    purse = purse_of(target) or uuid.uuid4().hex
    problems, cells = Problems(), list[Cell]()
    with problems.noted():
        track = choose_trackers(track)
    with problems.noted(), few_collections():
        cells = cells_of(loaded, artifacts.root, device, offline, tasks_dirs, purse)
    every, there = unique_in_order([stage for cell in cells for stage in cell.stages.values()]), Listing(artifacts.root)
    again = {stage.key for stage in every if there.to_retry(stage.kind, stage.key)}
    missing = [stage for stage in every if stage.key in again or not stage.done(there)]
    finished = not problems.found and bool(cells) and not missing and _is_finished(loaded, target, cells, artifacts)
    if not finished:
        check(Ahead(loaded, cells, missing, there, target, planned_device(device), together, purse, tasks_dirs), problems, warn)
    with suppress(OSError) if finished else nullcontext():  # nothing else is written for one that is finished
        claim(artifacts, target, purse, ((stage.kind, stage.key) for stage in every if not stage.on_disk))
    for stage in missing:
        if stage.key in again:  # its valid verdicts are kept as replies, so only the others are asked for
            artifacts.remove(stage.kind, stage.key)
    with (
        stopping.orderly(),
        _tracked(track, loaded, target, offline, purse, cells, artifacts, warn),
        watch(cells, missing) as watcher,
        Engine(artifacts, together, watcher, memory, every, checkpoint, retry_failed, live=bool(track)) as engine,
    ):
        if finished:
            return Finished(target, len(cells), len(cells), {}, 0, time.time() - started)
        try:
            failures = _data(cells, artifacts, engine)
            return _rest(loaded, target, cells, artifacts, failures, engine, every, len(missing), started, purse)
        except InputError:
            if purse_of(target) is None:
                release(artifacts, target, purse)
            raise
        except (OSError, SQLiteError) as error:
            if is_disk_full(error):
                raise disk_full(error) from error
            raise


def _tracked(
    names: Sequence[str],
    spec: Spec,
    target: Path,
    offline: bool,
    purse: str,
    cells: Sequence[Cell],
    store: Store,
    warn: Callable[[str], object],
) -> AbstractContextManager[None]:
    """Feed trackers as long as the context lasts."""
    if not names:
        return nullcontext()
    from spo_bench.tracking.base import Place
    from spo_bench.tracking.beside import tracked

    return tracked(names, Place(spec.name, target, offline), purse, cells, store, warn)


def _is_finished(spec: Spec, target: Path, cells: Sequence[Cell], store: Store) -> bool:
    """Say whether a run's directory holds all this run would write: then nothing in it is touched, least of all when and by
    what its numbers were made.
    """
    from spo_bench.report import is_current

    try:
        record, lines = read_signed(target / "run.json"), list(read_jsonl(target / "cells.jsonl"))
    except (OSError, ValueError):
        return False
    same = record["status"] == "done" and record["spec"] == spec.model_dump(mode="json") and record["store"] == str(store.root)
    same = same and lines == [cell_record(cell, {}) for cell in cells] and all(is_written(target, cell) for cell in cells)
    return same and is_current(target)


def _data(cells: Sequence[Cell], store: Store, engine: Engine) -> dict[str, str]:
    """Make every task's data, and refuse the run where it may not be used; return key -> reason of what failed."""
    data = list({cell.stages["data"].key: cell.stages["data"] for cell in cells}.values())
    failures = engine.run_and_check(data)
    for stage in data:
        if stage.done(store):
            check_dropped(stage.path(store), stage.local["max_dropped"])
    # What the data axes make of it, where no model has to be asked: a domain that is not there is found before any training.
    views = [cell.stages["rows"] for cell in cells if "rows" in cell.stages]
    ready = [view for view in views if view.inputs.keys() <= {"data", "model"} and view.inputs["data"].done(store)]
    return {**failures, **engine.run(ready)}


def _rest(
    spec: Spec,
    target: Path,
    cells: Sequence[Cell],
    store: Store,
    failures: Mapping[str, str],
    engine: Engine,
    every: Sequence[Stage],
    made: int,
    started: float,
    purse: str,
) -> Finished:
    """Make everything else and the report; the run's directory says how it stands."""
    record = {
        "schema_version": SCHEMA_VERSION,
        "spec": spec.model_dump(mode="json"),
        "status": "running",
        "provenance": provenance(),
        "purse": purse,
    }
    record |= {"started": _clock(started), "finished": None, "seconds": None, "store": str(store.root), "audits": {}}
    target.mkdir(parents=True, exist_ok=True)
    write_record(target, record)
    try:
        failures = {**failures, **engine.run(every)}
        whole = [cell for cell in cells if not failures.keys() & {stage.key for stage in cell.stages.values()}]
        read = {one.key: one for cell in whole if not is_written(target, cell) for one in cell.stages.values()}
        failures |= engine.run_and_check(list(read.values()))
        with finishing(store, target):
            return _finish(target, cells, store, failures, record, made, started)
    except BaseException as error:
        stopped = isinstance(error, Interrupted) or is_disk_full(error)
        with suppress(OSError):  # the disk may be full
            write_record(target, {**record, "status": "interrupted" if stopped else "failed"})
        raise


def _finish(
    target: Path,
    cells: Sequence[Cell],
    store: Store,
    failures: Mapping[str, str],
    record: Mapping[str, Any],
    made: int,
    started: float,
) -> Finished:
    """Write the cells, the listing, the report and, last, the run's status."""
    from spo_bench.report import write_report

    lines = [cell_record(cell, failures) for cell in cells]
    for cell, line in zip(cells, lines, strict=True):
        if line["status"] == "done":
            write_cell(target, cell, store, record["provenance"])
    write_jsonl(target / "cells.jsonl", lines)
    audits = {f"{c.model}/{c.task}": c.stages["data"].path(store) / "audit.json" for c in cells}
    failed = {line["id"]: line["reason"] for line in lines if line["status"] != "done"}
    unaudited = failed_audits(cells, failures)
    failed_all = failed | {f"audit of the judge on {place}": reason for place, reason in unaudited.items()}
    finished = time.time()
    status = "failed" if failed_all else "done"
    record = {**record, "status": status, "finished": _clock(finished), "seconds": finished - started}
    found = {name: read_json(path) for name, path in audits.items() if path.is_file()}
    spent = asdict(spent_from(store.root / FILE, record["purse"]))
    judging = {"judge_audits": judge_audits(cells, store), "judge_unaudited": unaudited, "judge_spent": spent}
    write_record(target, {**record, "audits": found, **judging, "files": {"cells.jsonl": entry(target / "cells.jsonl")}})
    write_report(target)
    return Finished(target, len(cells), len(cells) - len(failed), failed_all, made, finished - started)


def _clock(moment: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))
