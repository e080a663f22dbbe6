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
from spo_bench.engine.crew import Crew
from spo_bench.engine.engine import Engine, Watcher, unique_in_order
from spo_bench.engine.hire import check_memory, choose_device, hire, planned_device
from spo_bench.engine.preflight import Ahead, check
from spo_bench.engine.timings import note_report
from spo_bench.errors import InputError, Interrupted, Unreachable, disk_full, is_disk_full
from spo_bench.files import read_json, read_jsonl, write_jsonl
from spo_bench.garbage import few_collections
from spo_bench.judging.store import FILE, spent_from
from spo_bench.matrix.cells import Cell, expand
from spo_bench.matrix.evaluation import Place
from spo_bench.matrix.load import load_spec
from spo_bench.matrix.spec import Spec
from spo_bench.problems import Problems
from spo_bench.stages.audit import check_dropped
from spo_bench.stages.base import Stage
from spo_bench.store.artifacts import Store
from spo_bench.store.checkpoints import EVERY
from spo_bench.store.claims import claim, finishing, release
from spo_bench.store.claims import purse_of as purse_of
from spo_bench.store.hashes import HashCache
from spo_bench.store.opening import open_store
from spo_bench.store.provenance import provenance
from spo_bench.store.sealed import entry, read_signed
from spo_bench.tracking import choose as choose_trackers

STORE_VARIABLE = "SPO_BENCH_STORE"


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


def default_store() -> str:
    """Return the store's directory or address: $SPO_BENCH_STORE, else ~/.cache/spo-bench."""
    return os.environ.get(STORE_VARIABLE) or str(Path.home() / ".cache" / "spo-bench")


def cells_of(
    spec: Spec,
    store: Path,
    device: str,
    offline: bool = False,
    tasks_dirs: Sequence[str] = (),
    purse: str = "",
    here: bool = True,
    assume: bool = False,
) -> list[Cell]:
    """Return the cells of a spec as they would run, here or on other machines; what a judge costs counts together under the name
    ``purse``. With ``assume``, hub models and data that are not here stand by their names, and nothing is fetched.

    Raises:
        InputError: a device, models or data that are not there, or settings that cannot go together; all of them.
    """
    if offline or assume:  # before anything imports a hub client, which reads these once
        os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    problems, cells = Problems(), list[Cell]()
    with problems.noted():
        if here:
            choose_device(device)
    with problems.noted():
        cells = expand(spec, Place(planned_device(device), HashCache(store), offline or assume, tuple(tasks_dirs), purse, assume))
    problems.raise_any()
    return cells


def run(
    spec: str | Path | Mapping[str, Any] | Spec | None = None,
    out: str | Path | None = None,
    *,
    store: str | Path | None = None,
    device: str = "auto",
    engine: str | Crew = "local",
    ray_address: str | None = None,
    slurm: Sequence[str] | Mapping[str, Any] = (),
    jobs: int | str | None = None,
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
        store: where artifacts are kept, a directory or an address as s3://bucket/prefix; default $SPO_BENCH_STORE or
            ~/.cache/spo-bench.
        device: "auto", "cpu" or "cuda[:i]".
        engine: "local": this machine; "ray": a Ray cluster (extra ``ray``); "slurm": jobs of Slurm (extra ``slurm``); or who was
            hired before (``engine.hire``), which decides about device and jobs. See docs/scaling.md.
        ray_address: "HOST:PORT" of a Ray cluster; None: $RAY_ADDRESS, else one is started on this machine.
        slurm: what is asked of Slurm: {"partition": "gpu", "time": "8:00:00"}.
        jobs: how many stages run side by side on a machine, where memory allows; or "auto", the command's default. More than one
            run in processes of their own, which import the main module anew: a script that asks for them, or for other machines,
            calls this under ``if __name__ == "__main__":``. None: one, which runs in this process; on other machines "auto".
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
    target = Path(out or Path("results") / loaded.name)
    if isinstance(engine, str):
        side_by_side = jobs if jobs is not None else 1 if engine == "local" else "auto"
        engine = hire(engine, loaded, target, device, side_by_side, ray_address, slurm)
    with engine as crew:
        return _run(
            loaded, target, store, crew, memory, offline, tasks_dirs, checkpoint, retry_failed, track, watch, warn, started
        )


def _run(
    loaded: Spec,
    target: Path,
    store: str | Path | None,
    crew: Crew,
    memory: float | None,
    offline: bool,
    tasks_dirs: Sequence[str],
    checkpoint: float,
    retry_failed: bool,
    track: Sequence[str],
    watch: Callable[[Sequence[Cell], Sequence[Stage]], AbstractContextManager[Watcher]],
    warn: Callable[[str], object],
    started: float,
) -> Finished:
    check_memory(memory, crew)
    artifacts = open_store(store or default_store())
    purse = purse_of(target) or uuid.uuid4().hex
    problems, cells = Problems(), list[Cell]()
    with problems.noted():
        track = choose_trackers(track)
    with problems.noted(), few_collections():
        cells = cells_of(loaded, artifacts.root, crew.device, offline, tasks_dirs, purse, crew.here)
    try:
        artifacts.reach()
    except InputError as error:
        problems.add(error)
        problems.raise_any()
    every, there = unique_in_order([stage for cell in cells for stage in cell.stages.values()]), artifacts.listing()
    again = {stage.key for stage in every if there.to_retry(stage.kind, stage.key)}
    missing = [stage for stage in every if stage.key in again or not stage.done(there)]
    finished = not problems.found and bool(cells) and not missing and _is_finished(loaded, target, cells, artifacts)
    if not finished:
        check(Ahead(loaded, cells, missing, there, target, crew.room(), crew.together, purse, tasks_dirs), problems, warn)
    with suppress(OSError, Unreachable) if finished else nullcontext():  # nothing else is written for one that is finished
        claim(artifacts, target, purse, ((stage.kind, stage.key) for stage in every if not stage.on_disk))
    for stage in missing:
        if stage.key in again:  # its valid verdicts are kept as replies, so only the others are asked for
            artifacts.remove(stage.kind, stage.key)
    with (
        stopping.orderly(),
        _tracked(track, loaded, target, offline, purse, cells, artifacts, warn),
        watch(cells, missing) as watcher,
        Engine(artifacts, crew, watcher, memory, every, checkpoint, retry_failed, live=bool(track)) as engine,
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
    same = record["status"] == "done" and record["spec"] == spec.model_dump(mode="json") and record["store"] == store.place
    same = same and lines == [cell_record(cell, {}) for cell in cells] and all(is_written(target, cell) for cell in cells)
    return same and is_current(target)


def _data(cells: Sequence[Cell], store: Store, engine: Engine) -> dict[str, str]:
    """Make every task's data, and refuse the run where it may not be used; return key -> reason of what failed."""
    data = list({cell.stages["data"].key: cell.stages["data"] for cell in cells}.values())
    failures = engine.run_and_check(data)
    for stage in data:
        if stage.done(store):
            check_dropped(stage.fetch(store, weights=False), stage.local["max_dropped"])
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
    record |= {"started": _clock(started), "finished": None, "seconds": None, "store": store.place, "audits": {}}
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
    begun = time.perf_counter()
    write_report(target)
    note_report(store, len(cells), time.perf_counter() - begun)
    return Finished(target, len(cells), len(cells) - len(failed), failed_all, made, finished - started)


def _clock(moment: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))
