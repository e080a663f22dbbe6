"""Small stages of a spec's own models, run to know how long its stages take here: what ``plan --measure`` does."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from math import ceil
from pathlib import Path
from typing import Any

from spo_bench.engine.engine import Engine, Watcher
from spo_bench.engine.free import cores_here
from spo_bench.engine.hire import hire
from spo_bench.engine.machines import this_machine
from spo_bench.engine.timings import START, Timing, keep, kept
from spo_bench.engine.work import Load
from spo_bench.errors import StageError
from spo_bench.matrix.axes import DataAxes
from spo_bench.matrix.cells import expand
from spo_bench.matrix.evaluation import Place
from spo_bench.matrix.spec import Limit, Spec, TaskSpec
from spo_bench.stages.base import Stage
from spo_bench.store.artifacts import Store
from spo_bench.store.hashes import HashCache

SECONDS = 15.0  # that the third round may take, by what the second took
FEW, MOST_STEPS = 2, 16  # steps of the trainings in the second and at most in the third round
SQUARE, GPU_SQUARE, REPEATS = 2048, 8192, 5  # of the product that gives the machine's rate


def calibrate(
    spec: Spec, store: Store, device: str, jobs: int, offline: bool = False, tasks_dirs: Sequence[str] = ()
) -> list[Timing]:
    """Run small stages of a spec in a store of their own, and keep what they took in the run's store.

    Of each model the first method is run, as baseline and with SPO, on as many tasks as jobs, in three rounds: of one step, to
    load the libraries, which is not counted; of two; and of as many as fit into some seconds. So what a stage takes at least is
    told from what its rows take. Judges behind an endpoint are not asked.

    Args:
        spec: the matrix.
        store: where timings are kept; made if it is not there.
        device: "cpu" or "cuda[:i]".
        jobs: as many stages at a time as the run will have: they slow each other.
        offline: never ask a hub.
        tasks_dirs: further folders of task plugins.

    Raises:
        InputError: models or data are not there.
    """
    found, starts = list[Timing](), list[float]()
    with tempfile.TemporaryDirectory(prefix="spo-bench-") as folder:
        trial = Store(Path(folder))
        place = Place(device, HashCache(store.root), offline, tuple(tasks_dirs))
        for one in each_model(spec):
            first = _First()
            with Engine(trial, hire("local", one, trial.root, device, jobs), first) as engine:
                _round(engine, one, 1, place)
                starts.append(first.seconds)
                warm = len(kept(trial.root))
                taken = _round(engine, one, FEW, place)
                _round(engine, one, max(2 * FEW, min(MOST_STEPS, int(FEW * SECONDS / taken))), place)
            found += [one._replace(basis="calibrated") for one in kept(trial.root)[warm:]]
    machine = this_machine(device).name
    found += [Timing(START, "", "float32", machine, 1, jobs, Load(), seconds, "calibrated") for seconds in starts]
    found += [matmul(device, dtype) for dtype in sorted({one.dtype for one in found})]
    store.root.mkdir(parents=True, exist_ok=True)
    keep(store, found)
    return found


class _First(Watcher):
    """Notes how long it takes until a first stage is made: worker processes start, and load what all stages need."""

    def __init__(self) -> None:
        self.begun, self.seconds = time.perf_counter(), 0.0

    def finished(self, stage: Stage, seconds: float) -> None:
        """A stage has left its artifact."""
        self.seconds = self.seconds or time.perf_counter() - self.begun


def _round(engine: Engine, spec: Spec, steps: int, place: Place) -> float:
    """Run a small matrix; return its seconds.

    Raises:
        StageError: a stage could not be made, so the run would fail too.
    """
    begun = time.perf_counter()
    if failures := engine.run(stages_of(spec, steps, place, engine.crew.jobs)):
        raise StageError(f"what --measure tried could not be made: {next(iter(failures.values()))}")
    return time.perf_counter() - begun


def each_model(spec: Spec) -> Iterator[Spec]:
    """Yield a spec a model."""
    for model in spec.models:
        yield spec.model_copy(update={"models": (model,)})


def stages_of(spec: Spec, steps: int, place: Place, jobs: int) -> list[Stage]:
    """Return the stages of a matrix that is like another but small: every training has so many steps."""
    small = miniature(spec, steps, jobs)
    return [stage for cell in expand(small, place) for stage in cell.stages.values()]


def miniature(spec: Spec, steps: int, jobs: int) -> Spec:
    """Return a spec of one method, as baseline and with SPO, whose trainings have so many steps; of one task and seed, or of as
    many as keep all jobs busy, where the whole spec does: side by side, stages are slower.
    """
    tasks = spec.tasks[:jobs]
    asks = spec.judge is not None and spec.judge.backend == "openai"
    answers = max(4, spec.generate.max_new_tokens * min(steps, 4) // 8)
    spo = [None] * (None in spec.spo) + [one for one in spec.spo if one is not None][:1]
    changed: dict[str, Any] = {
        "tasks": tuple(task.model_copy(update={"limit": _limit(spec, task, steps)}) for task in tasks),
        "sft_tasks": None,
        "methods": spec.methods[:1],
        "spo": tuple(spo),
        "seeds": spec.seeds[: ceil(jobs / (len(tasks) * len(spo)))],
        "sft": spec.sft.model_copy(update={"steps": min(spec.sft.steps, 4 * steps)}),
        "train": spec.train.model_copy(update={"max_steps": steps}),
        "reward_training": spec.reward_training.model_copy(update={"max_steps": steps}),
        "generate": spec.generate.model_copy(update={"max_new_tokens": min(spec.generate.max_new_tokens, answers)}),
        "data_axes": DataAxes(),
        "judge": None if asks else spec.judge,
    }
    return spec.model_copy(update=changed)


def _limit(spec: Spec, task: TaskSpec, steps: int) -> Limit:
    """Return as few rows as so many steps need, and prompts for one batch of answers."""

    def most(wanted: int, given: int | None) -> int:
        return min(wanted, given) if given is not None else wanted

    limit = task.limit
    return limit.model_copy(
        update={
            "train": most(max(8, steps * spec.train.batch_size), limit.train),
            "eval": most(min(spec.generate.batch_size, 8 * steps), limit.eval),
            "heldout": most(steps * spec.reward_training.batch_size, limit.heldout),
            "sft": most(max(8, steps * spec.sft.batch_size), limit.sft),
        }
    )


def matmul(device: str, dtype: str) -> Timing:
    """Return what a large product of matrices takes on all threads: the rate for stages of which nothing else is known."""
    import torch

    torch.set_num_threads(cores_here())
    on_cpu = device == "cpu"
    side, parts = SQUARE if on_cpu else GPU_SQUARE, cores_here() if on_cpu else 1
    a, b = (torch.randn(side, side, dtype=getattr(torch, dtype), device=device) for _ in range(2))
    best = float("inf")
    for _ in range(REPEATS):
        started = time.perf_counter()
        float((a @ b)[0, 0])  # waits for a GPU
        best = min(best, time.perf_counter() - started)
    machine = this_machine(device).name
    return Timing("matmul", "", dtype, machine, parts, 1, Load(read=2.0 * side**3), best, "calibrated")
