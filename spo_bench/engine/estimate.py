"""What a matrix would cost before it runs: device hours, memory, wall-clock time on this machine or a number of GPUs, disk."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from spo_bench.engine import simulate
from spo_bench.engine.crew import Crew
from spo_bench.engine.free import Need, cores_here, free_here
from spo_bench.engine.lengths import lengths_of
from spo_bench.engine.machines import BANDWIDTH, OPERATIONS, REQUEST, choose_gpu, gpu_machine, this_machine
from spo_bench.engine.memory import GIB, estimate, idle_worker
from spo_bench.engine.schedule import Schedule
from spo_bench.engine.shares import asks_endpoint, gpus, shares
from spo_bench.engine.simulate import Played
from spo_bench.engine.space import Space, space
from spo_bench.engine.timings import START, Basis, Pace, kept, merged, report_of, with_rates
from spo_bench.engine.work import Load
from spo_bench.matrix.cells import Cell
from spo_bench.matrix.spec import Spec
from spo_bench.stages.base import Stage, plain_data
from spo_bench.stages.registry import SHARDED
from spo_bench.store.artifacts import Store

GPU_COUNTS = (8, 64, 512)
MOST = 5000  # stages whose run is played through; of more, a bound is given
COMMAND = 2.0  # seconds of Python's start and the matrix's expansion
BEGIN = 6.0  # seconds until workers have loaded torch and what all stages need


@dataclass(frozen=True)
class StageCost:
    """What one stage takes.

    Attributes:
        stage: it.
        seconds: on its devices.
        devices: GPUs, or threads of this machine; 0: it waits or counts, and takes none.
        memory: bytes at the peak, of each device.
        basis: what the seconds rest on.
    """

    stage: Stage
    seconds: float
    devices: int
    memory: float
    basis: Basis


@dataclass(frozen=True)
class Forecast:
    """What is left to make of a matrix, and what it takes.

    Attributes:
        machine: a GPU of the table, or this machine.
        gpus: whether devices are GPUs; else threads of this machine.
        stages: costs, inputs before what reads them.
        runs: the run played through, by number of devices (this machine: of stages at a time).
        around: seconds of a run's start and report.
        space: bytes of disk.
        notes: what was assumed, and what to know besides.
    """

    machine: str
    gpus: bool
    stages: Sequence[StageCost]
    runs: Sequence[Played]
    around: float
    space: Space
    notes: Sequence[str]

    @property
    def hours(self) -> float:
        """Device hours of everything: GPU hours, or core hours."""
        return sum(one.seconds * one.devices for one in self.stages) / 3600

    @property
    def basis(self) -> str:
        """What all times rest on."""
        return merged(one.basis for one in self.stages)

    def kinds(self) -> list[dict[str, Any]]:
        """Return a row a kind of stage, the most expensive first: its number, hours, longest seconds, memory and basis."""
        found: dict[str, list[StageCost]] = defaultdict(list)
        for one in self.stages:
            found[one.stage.kind].append(one)
        rows = [
            {
                "kind": kind,
                "stages": len(costs),
                "seconds": sum(one.seconds for one in costs) / len(costs),
                "longest": max(one.seconds for one in costs),
                "hours": sum(one.seconds * one.devices for one in costs) / 3600,
                "memory": max(one.memory for one in costs),
                "basis": merged(one.basis for one in costs),
            }
            for kind, costs in found.items()
        ]
        return sorted(rows, key=lambda row: -float(str(row["hours"])))

    def record(self) -> dict[str, Any]:
        """Return everything as JSON values; what each stage takes stands with the stages of the plan."""
        return {
            "machine": self.machine,
            "device_hours": self.hours,
            "devices": "GPUs" if self.gpus else "cores",
            "basis": self.basis,
            "kinds": self.kinds(),
            "runs": [
                {
                    "devices": run.devices,
                    "seconds": run.seconds + self.around,
                    "critical_path_seconds": run.path_seconds,
                    "critical_path": [{"kind": stage.kind, "key": stage.key} for stage in run.path],
                    "utilisation": run.utilisation,
                }
                for run in self.runs
            ],
            "storage": {**self.space._asdict(), "store": self.space.store},
            "notes": list(self.notes),
        }


def forecast(
    spec: Spec,
    cells: Sequence[Cell],
    missing: Sequence[Stage],
    every: Sequence[Stage],
    store: Store,
    crew: Crew,
    gpu: str | None = None,
    counts: Sequence[int] = (),
) -> Forecast:
    """Return what a run would take.

    Args:
        spec, cells: the matrix.
        missing: stages that are left to make; all of them in ``every``.
        store: where data and timings are looked at.
        crew: who would make it on this machine.
        gpu: the name of a GPU in the table; None: this machine, or with ``counts`` and no GPU here ``machines.UNNAMED``.
        counts: numbers of GPUs the run is played through on; none: this machine.

    Raises:
        InputError: an unknown GPU.
    """
    elsewhere = gpu is not None or bool(counts)
    device, jobs = "cuda" if elsewhere else crew.device, crew.jobs
    cores = cores_here()
    if elsewhere:
        name, given = choose_gpu(gpu, device)
        machine = gpu_machine(name)
    else:
        machine, given = this_machine(device), True
    known = kept(store.root)
    pace = Pace(with_rates(machine, known), known, 1 if elsewhere else jobs)
    on_gpu = device.startswith("cuda")
    parts = shares(every, jobs, cores)

    costs: dict[str, StageCost] = {}
    crowded: dict[str, StageCost] = {}
    for stage in missing:
        count = gpus(stage) if on_gpu else parts[stage.key].cores
        need = estimate(stage, store)
        if elsewhere and count and machine.memory is not None and need.device > machine.memory:
            crowded.setdefault(stage.kind, StageCost(stage, 0.0, count, need.device, "assumed"))
            count, need = _spread(stage, store, count, machine.memory)
        seconds, basis = pace.seconds(stage, store, max(1, count))
        costs[stage.key] = StageCost(stage, seconds, count, need.device if on_gpu and count else need.host, basis)

    def seconds_of(stage: Stage) -> float:
        return costs[stage.key].seconds

    runs: list[Played] = []
    most = max((one.devices for one in costs.values()), default=0)
    if elsewhere:
        enough = [count for count in counts or GPU_COUNTS if count >= most]
        how = simulate.bound if len(missing) > MOST else simulate.on_devices
        runs = [how(missing, count, lambda one: costs[one.key].devices, seconds_of) for count in enough]
    elif len(missing) > MOST:
        runs = [simulate.bound(missing, jobs, lambda _: 1, seconds_of)]
    else:
        free, each = free_here(crew.gpus)

        def schedule() -> Schedule:
            need = partial(estimate, store=store)
            return Schedule(missing, jobs, cores, free, need, lambda one: parts[one.key], idle_worker(crew.gpus), gpus=each)

        runs = [simulate.local(missing, schedule, jobs, seconds_of)]
    report, _ = pace.of_load(("report", "", "float32"), report_of(len(cells)), 1)
    started, seen = pace.of_load((START, "", "float32"), Load(), 1)
    around = COMMAND + (BEGIN if seen == "assumed" else started) + report
    notes = [f"{name} is not here: a run fetches it" for name in absent(missing)] + _assumed_lengths(missing, store)
    for kind, one in crowded.items():
        held = f"{one.memory / GIB:.1f} GiB of a GPU, and {machine.name} has {(machine.memory or 0) / GIB:.1f}"
        counted = costs[one.stage.key]
        if counted.devices > one.devices:
            notes.append(f"{kind} takes {held}: counted on {counted.devices} GPUs each (train.devices_per_cell)")
        else:
            notes.append(f"{kind} takes {held}: it does not fit (see gradient_checkpointing, micro_tokens)")
    if (asking := sum(one.seconds for one in costs.values() if asks_endpoint(one.stage))) > 60:
        shown = f"{asking / 3600:.1f} h" if asking >= 3600 else f"{asking / 60:.0f} min"
        notes.append(
            f"the judge's endpoint is asked for {shown} in all, {REQUEST:g} s a request: GPUs do not shorten that, "
            "judge.concurrency does as far as the endpoint goes along"
        )
    if short := [count for count in counts if count < most]:
        notes.append(f"{', '.join(map(str, short))} GPUs are too few: a stage takes {most}")
    if len(missing) > MOST:
        notes.append(f"more than {MOST:,} stages are not played through: wall times are the most they would take")
    if "assumed" in {one.basis for one in costs.values()}:
        notes.append(_assumed_speed(machine.name, elsewhere or on_gpu, given))
    return Forecast(
        machine.name, on_gpu, list(costs.values()), runs, around if missing else 0.0, space(cells, missing, store, jobs), notes
    )


def _spread(stage: Stage, store: Store, count: int, memory: float) -> tuple[int, Need]:
    """Return on how many GPUs a stage fits that does not fit on ``count``, and what it takes of each; as many as were given where
    further ones do not help.
    """
    for more in (count * 2**power for power in range(1, 7)) if stage.kind in SHARDED else ():
        if (less := estimate(stage, store, count=more)).device <= memory:
            return more, less
    return count, estimate(stage, store)


def absent(stages: Sequence[Stage]) -> list[str]:
    """Return which models and data of a plan are not here, so that they stand in it by their names."""
    models = [f"model '{one.local['assumed']}'" for one in stages if one.kind == "model" and "assumed" in one.local]
    data = [f"data '{one.local['data']}'" for one in stages if one.kind == "data" and "assumed" in one.config["task"]]
    return list(dict.fromkeys([*models, *data]))


def _assumed_lengths(stages: Sequence[Stage], store: Store) -> list[str]:
    """Return how long rows are counted whose data is not made yet."""
    found: Mapping[str, Stage] = {data.key: data for stage in stages if (data := plain_data(stage)) is not None}
    notes = []
    for data in found.values():
        one = lengths_of(data, store)
        rows = [split for split in ("train", "eval") if not data.done(store) and data.config["limit"][split] is None]
        if not data.done(store):
            shown = f"{one.prompt:.0f} tokens of a prompt, {one.chosen:.0f} and {one.rejected:.0f} of its answers"
            notes.append(f"{data.local['task']}: {shown} ({one.basis})")
        if rows:
            notes.append(f"{data.local['task']}: how many rows {' and '.join(rows)} have is not known: set limit")
    return notes


def _assumed_speed(name: str, on_gpu: bool, given: bool) -> str:
    """Return what a speed rests on that nobody has measured."""
    if not on_gpu:
        return "this machine's speed is a guess: --measure runs small stages to find out"
    reached = f"{OPERATIONS:.0%} of the operations in its data sheet, {BANDWIDTH:.0%} of its memory's bandwidth"
    return f"a stage reaches on {name} {reached}" + ("" if given else f" ({name}: no --gpu is given)")
