"""Runs that are killed, stopped, starved of disk and started several times at once: do they end with the same numbers?

    python benchmarks/chaos.py --what kill --times 50            # SIGKILL at random moments of `quick`
    python benchmarks/chaos.py --what term --times 10            # SIGTERM: kept to the step, exit code 130
    python benchmarks/chaos.py --what together --times 4         # so many processes at once on one store
    python benchmarks/chaos.py --what disk                       # a disk that is full, made larger bit by bit (needs root: tmpfs)
    python benchmarks/chaos.py --what soak --times 500           # so many cells, a tenth of which fail
    python benchmarks/chaos.py --what kill --times 5 --model DIR # on a model from disk

Every one but the soak compares with an undisturbed run of the same spec, number by number; only what was measured of time and
memory may differ.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from spo_bench.engine.collect import COSTS
from spo_bench.files import read_jsonl

COMMAND = [sys.executable, "-m", "spo_bench", "run"]
MEASURED = COSTS.keys() - {"tokens_per_pair", "tokens_per_pair_separate"}
INTERRUPTED = 130


class Place:
    """A spec with a run directory and a store of its own.

    Args:
        folder: for the run, the store and what the commands say.
        spec: its name or file.
        words: further words of the command.
    """

    def __init__(self, folder: Path, spec: str, words: Sequence[str] = ()) -> None:
        self.folder, self.spec = folder, spec
        folder.mkdir(parents=True, exist_ok=True)
        self.store, self.words = folder / "store", [*words]

    def out(self, name: str = "run") -> Path:
        """Return a run's directory."""
        return self.folder / name

    def log(self, name: str = "run") -> Path:
        """Return the file of what the commands said, which is on no small disk."""
        return self.folder.with_name(f"{self.folder.name}-{name}.log")

    def start(self, name: str = "run", *words: str) -> subprocess.Popen[bytes]:
        """Start the command; what it says goes to a file."""
        where = ["--out", str(self.out(name)), "--store", str(self.store)]
        with self.log(name).open("ab") as log:
            return subprocess.Popen([*COMMAND, "--matrix", self.spec, *where, *self.words, *words], stdout=log, stderr=log)

    def finish(self, name: str = "run", *words: str) -> int:
        """Run the command to its end; return its exit code."""
        return self.start(name, *words).wait()

    def said(self, name: str = "run") -> str:
        """Return what the commands said."""
        return self.log(name).read_text(encoding="utf-8", errors="replace")


def numbers(run: Path) -> list[dict[str, Any]]:
    """Return a run's metrics and comparisons, but for what was measured of time and memory."""
    lines = [row for name in ("metrics.jsonl", "comparisons.jsonl") for row in read_jsonl(run / name)]
    return [row for row in lines if row["metric"] not in MEASURED]


def differences(run: Path, reference: Path) -> int:
    """Return how many numbers of a run are not those of the undisturbed one, to the last digit."""
    ours, theirs = ([json.dumps(row, sort_keys=True) for row in numbers(path)] for path in (run, reference))
    return len(set(ours) ^ set(theirs)) + abs(len(ours) - len(theirs))


def leftovers(store: Path) -> list[str]:
    """Return what is in a store and belongs to nothing: parts, checkpoints, locks."""
    left = [*store.glob("*/*.part"), *store.glob("*/*.gone"), *store.glob("checkpoints/*"), *store.glob("locks/*")]
    return [str(path.relative_to(store)) for path in left]


def disturbed(place: Place, times: int, draw: random.Random, number: int, longest: float) -> dict[str, Any]:
    """Send a signal at random moments, and give the same command again, until it was sent so often; then let it end.

    A run that ends before is begun anew, in an empty store.
    """
    sent, early, codes = 0, 0, list[int]()
    while sent < times:
        process = place.start()
        try:
            codes.append(process.wait(draw.uniform(0.2, longest)))
            early += 1
            if codes[-1] != 0:
                break
            shutil.rmtree(place.store)
            shutil.rmtree(place.out())
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            codes.append(process.wait())
            sent += 1
    last = place.finish()
    return {"signals": sent, "ended_before": early, "codes": sorted(set(codes)), "last": last}


def together(place: Place, count: int, same_run: bool) -> dict[str, Any]:
    """Run several processes at once, on one store, all of the same run or each of its own."""
    names = ["run"] * count if same_run else [f"run{number}" for number in range(count)]
    processes = [place.start(name) for name in names]
    codes = [process.wait() for process in processes]
    return {"codes": codes, "runs": sorted(set(names))}


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[None]:
    """Mount a file system in memory of so many MiB.

    Raises:
        OSError: this process may not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise OSError(done.stderr.strip())
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def full_disk(place: Place, mebibytes: int, step: int) -> dict[str, Any]:
    """Run on a small disk that something else fills once the run has begun, leaving more each time, until the run ends."""
    codes, left = list[int](), 0
    ballast = place.folder / "ballast"
    with small_disk(place.folder, mebibytes):
        while not codes or codes[-1] == INTERRUPTED:
            process, begun, left = place.start(), len(place.said()), left + step
            while "stages to make" not in place.said()[begun:] and process.poll() is None:
                time.sleep(0.05)
            with suppress(OSError), ballast.open("wb") as file:
                file.truncate(0)
                os.posix_fallocate(file.fileno(), 0, max(0, shutil.disk_usage(place.folder).free - left * 2**20))
            codes.append(process.wait())
            ballast.unlink()
        said = place.said().count("the disk is full")
        for name in ("run", "store"):
            shutil.copytree(place.folder / name, place.folder.with_name("kept") / name, symlinks=True)
    return {"codes": codes, "said_so": said, "mebibytes_left": left}


def soak(place: Place, cells: int) -> dict[str, Any]:
    """Run very many cells of which a tenth diverge; follow the memory of the process that was started."""
    process, resident = place.start(), list[tuple[int, float]]()
    while process.poll() is None:
        resident.append((place.said().count(" left "), resident_mebibytes(process.pid)))
        time.sleep(0.5)
    lines = list(read_jsonl(place.out() / "cells.jsonl"))
    states = [line["status"] for line in lines]
    # Until the last stage has ended: the report that comes then is another matter.
    making = [bytes_ for stages, bytes_ in resident if resident[-1][0] // 10 <= stages < resident[-1][0]]
    return {
        "code": process.returncode,
        "cells": len(lines),
        "done": states.count("done"),
        "failed": states.count("failed"),
        "with_reason": sum(bool(line["reason"]) for line in lines),
        "asked": cells,
        "resident_mebibytes": {"after_a_tenth": round(making[0], 1), "most_later": round(max(making), 1)},
    }


def resident_mebibytes(process: int) -> float:
    """Return what a process has in memory; 0 where it has ended."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except (OSError, IndexError):
        return 0.0


def soak_spec(folder: Path, cells: int) -> Path:
    """Write a spec of so many cells (ten a seed: the SFT policy, eight trainings, one that diverges); return its path."""
    rates = [{"name": "dpo", "label": f"rate{n}", "train": {"learning_rate": 1e-5 * n}} for n in range(1, 9)]
    return written(
        folder,
        {
            "tasks": [{"name": "controlled_dialogue", "limit": {"train": 8, "eval": 2, "heldout": 2, "sft": 16}}],
            "methods": [*rates, {"name": "dpo", "label": "diverges", "beta": 1e38}],
            "spo": [False],
            "seeds": list(range(cells // 10)),
            "sft": {"steps": 2, "batch_size": 4},
            "train": {"batch_size": 4, "max_steps": 2},
            "generate": {"max_new_tokens": 4},
        },
    )


def small_spec(folder: Path, model: str) -> Path:
    """Write a matrix of three small cells on a model from disk."""
    return written(
        folder,
        {
            "models": [model],
            "tasks": [{"name": "controlled_dialogue", "limit": {"train": 8, "eval": 4, "heldout": 2, "sft": 0}}],
            "methods": ["dpo"],
            "seeds": [0],
            "sft": {"steps": 0},
            "train": {"batch_size": 4, "max_steps": 3, "learning_rate": 1.0e-5},
            "generate": {"max_new_tokens": 8, "batch_size": 1},
        },
    )


def written(folder: Path, keys: dict[str, Any]) -> Path:
    """Write a spec with some keys of its own; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "chaos.yaml"
    path.write_text(yaml.safe_dump({"extends": "quick", "name": "chaos", **keys}), encoding="utf-8")
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is asked; print a JSON line each; return 1 if a number differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--what", choices=("kill", "term", "together", "disk", "soak"), default="kill")
    parser.add_argument("--times", type=int, default=10, help="signals, processes, or cells")
    parser.add_argument("--spec", default="quick", help="preset or file")
    parser.add_argument("--model", help="directory of a model: then a small matrix on it, instead of the spec")
    parser.add_argument("--longest", type=float, default=10.0, help="seconds before a signal, at most")
    parser.add_argument("--checkpoint", default="0.02", help="minutes between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="kept; else a temporary one")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        spec = str(small_spec(folder, given.model)) if given.model else given.spec
        found = run(given, folder, spec)
    print(json.dumps(found))
    return int(bool(found["different_numbers"]) or bool(found["left_over"]))


def run(given: argparse.Namespace, folder: Path, spec: str) -> dict[str, Any]:
    """Do one of the things there are to do; return what was found."""
    words = ["--checkpoint", given.checkpoint]
    if given.what == "soak":
        place = Place(folder / "soak", str(soak_spec(folder, given.times)))
        return {"what": "soak", **soak(place, given.times), "different_numbers": 0, "left_over": leftovers(place.store)}
    started = time.perf_counter()
    reference = Place(folder / "undisturbed", spec)
    if reference.finish():
        raise SystemExit(reference.said())
    undisturbed = time.perf_counter() - started
    place, compared = Place(folder / "disturbed", spec, words), list[Path]()
    if given.what in ("kill", "term"):
        number = signal.SIGKILL if given.what == "kill" else signal.SIGTERM
        found = disturbed(place, given.times, random.Random(given.seed), number, given.longest)
        compared = [place.out()]
    elif given.what == "together":
        found = {"own": together(place, given.times, False)}
        compared = [place.out(name) for name in found["own"]["runs"]]
        place = Place(folder / "same", spec, words)
        found["same"] = together(place, given.times, True)
        compared.append(place.out())
    else:
        found = full_disk(place, 400, 6)
        place = Place(folder / "kept", spec)
        compared = [place.out()]
    differ = sum(differences(path, reference.out()) for path in compared)
    return {
        "what": given.what,
        **found,
        "numbers": len(numbers(reference.out())),
        "different_numbers": differ,
        "left_over": leftovers(place.store),
        "seconds_undisturbed": round(undisturbed, 1),
        "seconds": round(time.perf_counter() - started, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
