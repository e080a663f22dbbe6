"""Fuzzing of what reads files and texts that others wrote: specs, rows of preferences, verdicts, key content.

Usage: python benchmarks/fuzz.py --minutes 10 [--what spec,rows,verdicts,keywords] [--corpus tests/corpus] [--seed N] [--out DIR]

Every target has a process of its own, all side by side. Batches of structured cases (hypothesis) and of mutations of the corpus
take turns; a case after which something new happened is mutated too. ``fuzz_checks.py`` says what has to hold. What does not is
written to ``--out`` (default fuzz-failures), as small as was found, and the exit code is 1. A case worth keeping goes into the
corpus, which the tests replay.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

import fuzz_inputs
from fuzz_checks import CHECKS, GIB, KIB, Broken, Case
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings

from spo_bench import plugins

BATCH = 200  # cases of one kind before the other's turn
HANGS = 60  # seconds of processor time after which a case is given up
KEPT = 4 * KIB  # bytes of a case that is mutated again; larger ones take the time of many
MEMORY = 2 * GIB  # address space a case may take
PARTS = 60  # cases of the pool that a batch of structured ones is made of
SHRINKS = 400  # tries to make a mutation that fails smaller
CORPUS = Path(__file__).resolve().parents[1] / "tests" / "corpus"
QUIET = settings(
    max_examples=BATCH,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.generate, Phase.shrink),
    verbosity=Verbosity.quiet,
)


@dataclass
class Fuzzing:
    """The work on one target: what was tried, what happened, and what does not hold.

    Attributes:
        pool: the corpus, and cases after which something new happened.
        executions: cases tried, by kind.
        names: what happened, and how often.
        failures: what does not hold, by where -> (the smallest case, the traceback).
    """

    target: str
    folder: Path
    pool: list[Case]
    executions: Counter[str] = field(default_factory=Counter)
    names: Counter[str] = field(default_factory=Counter)
    failures: dict[str, tuple[Case, str]] = field(default_factory=dict)

    def attempt(self, case: Case, kind: str) -> str | None:
        """Try a case; return where it failed, None where all holds."""
        self.executions[kind] += 1
        signal.setitimer(signal.ITIMER_PROF, HANGS)
        try:
            name = CHECKS[self.target](case, self.folder)
        except Exception as error:  # noqa: BLE001 - whatever a reader raises is what is looked for
            frames = traceback.extract_tb(error.__traceback__)
            where = f"{type(error).__name__} {Path(frames[-1].filename).name}:{frames[-1].lineno}"
            where += f" {str(error)[:40]}" if isinstance(error, Broken) else ""
            known = self.failures.get(where)
            if known is None or len(case.content) < len(known[0].content):
                self.failures[where] = (case, "".join(traceback.format_exception(error)))
            return where
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        self.names[name] += 1
        if self.names[name] == 1 and len(case.content) <= KEPT:
            self.pool.append(case)
        return None

    def structured(self, draw: Random) -> None:
        """Try a batch of structured cases; hypothesis makes the first that fails anew as small as it can."""
        known = set(self.failures)

        @QUIET
        @seed(draw.getrandbits(32))
        @given(fuzz_inputs.structured(self.target, draw.sample(self.pool, min(len(self.pool), PARTS))))
        def batch(case: Case) -> None:
            where = self.attempt(case, "structured")
            if where is not None and where not in known:
                raise Broken(where)

        with suppress(Exception):  # it is noted
            batch()

    def mutations(self, draw: Random) -> None:
        """Try a batch of mutations."""
        for _ in range(BATCH):
            case = fuzz_inputs.mutated(self.target, draw.choice(self.pool), self.pool, draw)
            known = set(self.failures)
            where = self.attempt(case, "mutated")
            if where is not None and where not in known:
                self._shrink(where, draw)

    def _shrink(self, where: str, draw: Random) -> None:
        """Cut pieces out of a case as long as it fails in the same place."""
        until = time.process_time() + HANGS
        for _ in range(SHRINKS):
            if time.process_time() > until:
                return
            suffix, content = self.failures[where][0]
            start = draw.randrange(len(content) + 1)
            end = start + 1 + draw.randrange(max(1, len(content) // draw.choice((1, 2, 8, 32))))
            self.attempt(Case(suffix, content[:start] + content[end:]), "shrunk")


def _hang(number: int, frame: Any) -> None:
    raise Broken(f"a case takes more than {HANGS} s of processor time")


def work(target: str, corpus: Path, minutes: float, number: int, folder: Path, parent: Connection) -> None:
    """Fuzz one target, in a process of its own; send (executions, happenings, failures)."""
    signal.signal(signal.SIGPROF, _hang)
    vars(plugins)["entry_points"] = cache(entry_points)  # looked for with every spec, which would take most of its time
    fuzzing, draw = Fuzzing(target, folder, fuzz_inputs.load(corpus / target)), Random(f"{target} {number}")
    for case in list(fuzzing.pool):
        fuzzing.attempt(case, "corpus")
    held = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
    end = told = time.monotonic()
    end += 60 * minutes
    while time.monotonic() < end:
        fuzzing.structured(draw)
        fuzzing.mutations(draw)
        if time.monotonic() > told + 60:
            told = time.monotonic()
            print(f"{target}: {fuzzing.executions.total()} cases, {len(fuzzing.failures)} failures", flush=True)
    parent.send((fuzzing.executions, len(fuzzing.names), fuzzing.failures))


def fuzz(targets: Sequence[str], corpus: Path, minutes: float, number: int, out: Path) -> int:
    """Fuzz targets side by side, write what fails to ``out``, and return how many failures there are."""
    processes = multiprocessing.get_context("fork")  # nothing here has threads yet, and imports take seconds
    memory = Path("/dev/shm")
    total = 0
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        working = []
        for target in targets:
            (Path(folder) / target).mkdir()
            parent, child = processes.Pipe(duplex=False)
            working.append(
                (
                    target,
                    parent,
                    processes.Process(target=work, args=(target, corpus, minutes, number, Path(folder) / target, child)),
                )
            )
            working[-1][2].start()
            child.close()
        for target, parent, process in working:
            try:
                executions, happenings, failures = parent.recv()
            except EOFError:  # a library that is not written in Python may take the process with it
                process.join()
                last = max((Path(folder) / target).iterdir(), key=lambda path: path.stat().st_mtime_ns)
                case = Case(fuzz_inputs.suffix_of(last.name), last.read_bytes())
                executions, happenings, failures = Counter(), 0, {f"exit code {process.exitcode}": (case, "")}
            counts = ", ".join(f"{count} {kind}" for kind, count in executions.items())
            print(
                f"{target}: {executions.total()} cases ({counts}), {happenings} happenings, {len(failures)} failures", flush=True
            )
            for where, (case, text) in failures.items():
                out.mkdir(parents=True, exist_ok=True)
                path = out / f"{target}-{total}{case.suffix}"
                path.write_bytes(case.content)
                print(f"\n{path}: {where}\n{text}", flush=True)
                total += 1
    return total


def main() -> None:
    """Fuzz and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--what", default=",".join(CHECKS))
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("fuzz-failures"))
    wanted = parser.parse_args()
    targets = wanted.what.split(",")
    if wrong := [name for name in targets if name not in CHECKS]:
        parser.error(f"--what {wrong[0]}: choose from {', '.join(CHECKS)}")
    sys.exit(1 if fuzz(targets, wanted.corpus, wanted.minutes, wanted.seed, wanted.out) else 0)


if __name__ == "__main__":
    main()
