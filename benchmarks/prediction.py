"""Whether a plan's times are right: a matrix is planned, run, and planned and run again.

Usage: python benchmarks/prediction.py SPEC [--jobs auto] [--rounds 1] [--device cpu] [--json]
       taskset -c 0 python benchmarks/prediction.py SPEC --alone

Each round begins with an empty store: ``plan --measure`` says how long the run would take (calibrated), the run is made, and its
wall-clock time taken, of the whole command, from the start of Python to the report. Then the store is emptied but for its
timings: ``plan`` says how long it would take (measured), and the run is made once more. A machine that others use too changes
between a plan and its run. So Linux is asked how long the threads of each command waited for a core beside the time they had one:
what a plan says, times how much longer the run waited, over what the run took, is the ratio at equal shares of the cores. Caches
and memory that others use are not in it.

``--alone`` is for a machine that others keep busy: plan and run are made in this process, one stage at a time on one core, and
all clocks show the processor time of this process, so that waiting for a core counts nowhere.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from measuring import add_output, describe, show, table

from spo_bench import api
from spo_bench.engine import attempt, calibrate
from spo_bench.engine.engine import unique_in_order
from spo_bench.engine.estimate import forecast
from spo_bench.engine.local import local
from spo_bench.engine.timings import FILE, Timing, kept
from spo_bench.matrix.load import load_spec
from spo_bench.matrix.spec import Spec
from spo_bench.store.artifacts import Store


class Waits(threading.Thread):
    """Sums, until stopped, for how long the threads of a session had a core, and waited for one."""

    def __init__(self, session: int) -> None:
        super().__init__(daemon=True)
        self.session, self.ended, self.seen = session, threading.Event(), dict[str, tuple[int, int]]()

    def run(self) -> None:
        """Look every half a second; what a thread has done is counted until it was last seen."""
        while not self.ended.wait(0.5):
            for stat in Path("/proc").glob("[0-9]*/stat"):
                with suppress(OSError, ValueError, IndexError):
                    if int(stat.read_text().rpartition(")")[2].split()[3]) != self.session:
                        continue
                    for file in stat.parent.glob("task/*/schedstat"):
                        ran, waited, _ = map(int, file.read_text().split())
                        self.seen[file.parent.name] = (ran, waited)

    def slowdown(self) -> float:
        """Return how much longer everything took than on cores of one's own; 1 where nobody says."""
        self.ended.set()
        self.join()
        ran, waited = (sum(column) for column in zip(*self.seen.values(), strict=True)) if self.seen else (0, 0)
        return (ran + waited) / ran if ran else 1.0


def command(words: Sequence[str]) -> tuple[str, float, float]:
    """Return what a command of this package prints, its seconds, and how much it was slowed by others and itself.

    Raises:
        SystemExit: it failed; what it said is shown.
    """
    started = time.perf_counter()
    line = [sys.executable, "-m", "spo_bench", *words]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        waits = Waits(process.pid)
        waits.start()
        told, errors = process.communicate()
    if process.returncode:
        raise SystemExit(errors)
    return told, time.perf_counter() - started, waits.slowdown()


def trial(spec: str, place: Path, how: Sequence[str], before_it: float | None) -> tuple[dict[str, Any], float]:
    """Plan and run a matrix once.

    Args:
        spec: the matrix.
        place: of store and run.
        how: further options of both commands.
        before_it: how much the run was slowed whose times the plan rests on; None: the plan measures for itself.

    Returns:
        The seconds by the plan, and those it took, of the command and of its stages by kind; how much the run was slowed.
    """
    measure = before_it is None
    store = ["--store", str(place / "store"), "--out", str(place / "run")]
    before = len(kept(place / "store"))
    told, planning, slowed = command(["plan", "--matrix", spec, *store, *how, "--json", *(["--measure"] if measure else [])])
    cost = json.loads(told)["cost"]
    _, seconds, slower = command(["run", "--matrix", spec, *store, *how])
    kinds = took_by_kind(kept(place / "store")[before:])
    predicted = cost["runs"][0]["seconds"]
    by_kind = {row["kind"]: row["seconds"] * row["stages"] for row in cost["kinds"]}
    known = slowed if before_it is None else before_it
    found = {
        "basis": cost["basis"],
        "planning": planning,
        "predicted": predicted,
        "took": seconds,
        "ratio": predicted / seconds,
        "slowed": {"planned": known, "run": slower},
        "ratio_at_equal_shares": predicted / seconds * slower / known,
        "stages": {kind: {"predicted": by_kind.get(kind), "took": taken} for kind, taken in kinds.items()},
    }
    return found, slower


class Alone:
    """Stands for the module ``time`` where stages are timed, with this process's own time on the processor for a clock."""

    def __getattr__(self, name: str) -> Any:
        return time.process_time if name == "perf_counter" else getattr(time, name)


def alone(spec: Spec, place: Path, measure: bool) -> dict[str, Any]:
    """Plan and run a matrix once in this process; return what ``trial`` does, in processor seconds."""
    for module in (attempt, calibrate, api):
        module.time = Alone()  # type: ignore[attr-defined]
    store, begun = place / "store", time.process_time()
    if measure:
        calibrate.calibrate(spec, Store(store), "cpu", 1, offline=True)
    cells = api.cells_of(spec, store, "cpu", offline=True)
    every = unique_in_order([stage for cell in cells for stage in cell.stages.values()])
    cost = forecast(spec, cells, every, every, Store(store), local(1))
    before, planning = len(kept(store)), time.process_time() - begun
    api.run(spec, place / "run", store=store, device="cpu", jobs=1, offline=True)
    took = kept(store)[before:]
    kinds = took_by_kind(took)
    predicted = sum(one.seconds for one in cost.stages)
    return {
        "basis": cost.basis,
        "planning": planning,
        "predicted": predicted,
        "took": sum(kinds.values()),
        "ratio": predicted / sum(kinds.values()),
        "ratio_at_equal_shares": predicted / sum(kinds.values()),
        "stages": {
            kind: {"predicted": sum(one.seconds for one in cost.stages if one.stage.kind == kind), "took": taken}
            for kind, taken in kinds.items()
        },
    }


def took_by_kind(timings: Sequence[Timing]) -> dict[str, float]:
    """Return the seconds of stages by kind, without the report."""
    kinds: dict[str, float] = {}
    for one in timings:
        if one.basis == "measured" and one.kind != "report":
            kind = one.kind.removesuffix("+spo")
            kinds[kind] = kinds.get(kind, 0.0) + one.seconds
    return kinds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--jobs", default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--alone", action="store_true", help="in this process, by its own time on the processor")
    add_output(parser)
    wanted = parser.parse_args()
    how = ["--jobs", wanted.jobs, "--device", wanted.device, "--offline"]
    trials = []

    def tell(found: dict[str, Any]) -> None:
        trials.append(found)
        said = f"{found['basis']}: predicted {found['predicted']:.0f} s, took {found['took']:.0f} s"
        print(f"{said}, at equal shares {found['ratio_at_equal_shares']:.2f}", file=sys.stderr, flush=True)

    for _ in range(wanted.rounds):
        with tempfile.TemporaryDirectory() as name:
            place = Path(name).resolve()
            slowed = 1.0
            if wanted.alone:
                found = alone(load_spec(wanted.spec), place, measure=True)
            else:
                found, slowed = trial(wanted.spec, place, how, None)
            tell(found)
            timings = (place / "store" / FILE).read_bytes()
            shutil.rmtree(place / "store")
            shutil.rmtree(place / "run")
            (place / "store").mkdir()
            (place / "store" / FILE).write_bytes(timings)
            again = alone(load_spec(wanted.spec), place, False) if wanted.alone else trial(wanted.spec, place, how, slowed)[0]
            tell(again)

    def text() -> str:
        names = ("basis", "predicted", "took", "ratio", "ratio_at_equal_shares", "planning")
        head = ["times rest on", "predicted, s", "took, s", "predicted / took", "at equal shares", "planning, s"]
        told = table(head, [[one[name] for name in names] for one in trials])
        kinds = [
            [number, kind, one["predicted"], one["took"]]
            for number, each in enumerate(trials, 1)
            for kind, one in each["stages"].items()
        ]
        return f"{told}\n\n{table(['run', 'stages', 'predicted, s', 'took, s'], kinds)}"

    show({"about": describe(), "spec": wanted.spec, "trials": trials}, wanted, text)


if __name__ == "__main__":
    main()
