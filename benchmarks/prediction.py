"""Whether a plan's times are right: a matrix is planned, run, and planned and run again.

Usage: python benchmarks/prediction.py SPEC [--jobs auto] [--rounds 1] [--device cpu] [--json]

Each round begins with an empty store: ``plan --measure`` says how long the run would take (calibrated), the run is made, and its
wall-clock time taken, of the whole command, from the start of Python to the report. Then the store is emptied but for its
timings: ``plan`` says how long it would take (measured), and the run is made once more. A machine that others use too changes
between a plan and its run; more rounds show by how much.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measuring import add_output, describe, show, table

from spo_bench.engine.timings import FILE, kept


def command(words: Sequence[str]) -> tuple[str, float]:
    """Return what a command of this package prints, and its seconds.

    Raises:
        SystemExit: it failed; what it said is shown.
    """
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "spo_bench", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout, time.perf_counter() - started


def trial(spec: str, place: Path, how: Sequence[str], measure: bool) -> dict[str, Any]:
    """Plan and run a matrix once; return the seconds by the plan, and those it took, of the command and of its stages by kind."""
    store = ["--store", str(place / "store"), "--out", str(place / "run")]
    before = len(kept(place / "store"))
    told, planning = command(["plan", "--matrix", spec, *store, *how, "--json", *(["--measure"] if measure else [])])
    cost = json.loads(told)["cost"]
    _, seconds = command(["run", "--matrix", spec, *store, *how])
    kinds: dict[str, float] = {}
    for one in [one for one in kept(place / "store")[before:] if one.basis == "measured"]:
        kind = one.kind.removesuffix("+spo")
        kinds[kind] = kinds.get(kind, 0.0) + one.seconds
    predicted = cost["runs"][0]["seconds"]
    by_kind = {row["kind"]: row["seconds"] * row["stages"] for row in cost["kinds"]}
    return {
        "basis": cost["basis"],
        "planning": planning,
        "predicted": predicted,
        "took": seconds,
        "ratio": predicted / seconds,
        "stages": {kind: {"predicted": by_kind.get(kind), "took": taken} for kind, taken in kinds.items()},
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--jobs", default="auto")
    parser.add_argument("--device", default="cpu")
    add_output(parser)
    wanted = parser.parse_args()
    how = ["--jobs", wanted.jobs, "--device", wanted.device, "--offline"]
    trials = []
    for _ in range(wanted.rounds):
        with tempfile.TemporaryDirectory() as name:
            place = Path(name).resolve()
            trials.append(trial(wanted.spec, place, how, measure=True))
            timings = (place / "store" / FILE).read_bytes()
            shutil.rmtree(place / "store")
            shutil.rmtree(place / "run")
            (place / "store").mkdir()
            (place / "store" / FILE).write_bytes(timings)
            trials.append(trial(wanted.spec, place, how, measure=False))

    def text() -> str:
        rows = [[one["basis"], one["predicted"], one["took"], one["ratio"], one["planning"]] for one in trials]
        told = table(["times rest on", "predicted, s", "took, s", "predicted / took", "planning, s"], rows)
        kinds = [
            [number, kind, one["predicted"], one["took"]]
            for number, each in enumerate(trials, 1)
            for kind, one in each["stages"].items()
        ]
        return f"{told}\n\n{table(['run', 'stages', 'predicted, s', 'took, s'], kinds)}"

    show({"about": describe(), "spec": wanted.spec, "trials": trials}, wanted, text)


if __name__ == "__main__":
    main()
