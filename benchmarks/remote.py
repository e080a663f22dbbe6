"""Machines that share nothing but a bucket: do their runs end with the numbers of a local one, and is everything made once?

    python benchmarks/remote.py                                  # `quick` on two machines, one of which is killed three times
    python benchmarks/remote.py --small                          # the same on a matrix of five cells
    python benchmarks/remote.py --machines 3 --times 10 --spec small

A machine is a process with a cache and a run directory of its own; the bucket is that of a real S3 server (moto) on loopback, in
a process of its own. At the end a machine with an empty cache has to find everything made, and every object is read and checked.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chaos import COMMAND, Place, differences, numbers, written

BUCKET = "artifacts"
CACHE = "SPO_BENCH_CACHE"
URL = f"s3://{BUCKET}/chaos"
SMALL = {
    "tasks": [{"name": "controlled_dialogue", "limit": {"train": 32, "eval": 8, "heldout": 8, "sft": 64}}],
    "methods": ["dpo", "ipo"],
    "seeds": [0],
    "sft": {"steps": 40, "batch_size": 8},
    "train": {"batch_size": 8, "max_steps": 8, "max_length": 128},
    "generate": {"max_new_tokens": 8},
}
PROGRAM = (
    "import logging, sys, time\n"
    "from moto.server import ThreadedMotoServer\n"
    "logging.getLogger('werkzeug').setLevel(logging.ERROR)\n"
    "server = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)\n"
    "server.start()\n"
    "print(*server.get_host_and_port(), flush=True)\n"
    "time.sleep(1e9)\n"
)


class Machine(Place):
    """A place whose store is the bucket, or another address in it, with a cache of its own."""

    def __init__(self, folder: Path, spec: str, words: Sequence[str] = (), url: str = URL) -> None:
        super().__init__(folder, spec, words)
        self.url, self.store = url, folder / "cache"
        self.environment = {**os.environ, CACHE: str(folder / "cache")}

    def start(self, name: str = "run", *words: str) -> subprocess.Popen[bytes]:
        """Start the command; what it says goes to a file."""
        given = [*COMMAND, "--matrix", self.spec, "--out", str(self.out(name)), "--store", self.url, *self.words, *words]
        with self.log(name).open("ab") as log:
            return subprocess.Popen(given, stdout=log, stderr=log, env=self.environment)


@contextmanager
def bucket() -> Iterator[None]:
    """Serve an empty bucket, and put into the environment where it is."""
    server = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        host, port = server.stdout.readline().split()
        os.environ |= {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
        os.environ |= {"AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": "benchmark"}
        import s3fs

        s3fs.S3FileSystem().mkdir(BUCKET)
        yield
    finally:
        server.kill()
        server.wait()


def verify(url: str) -> int:
    """Read and check everything behind an address; return the command's exit code."""
    return subprocess.run([*COMMAND[:-1], "store", "verify", "--store", url], capture_output=True).returncode


def at_once(machines: Sequence[Machine], times: int, draw: random.Random, longest: float) -> dict[str, Any]:
    """Run all machines at once, the first of them killed and started again so many times; return how they ended."""
    running = [machine.start() for machine in machines]
    kills = 0
    for _ in range(times):
        time.sleep(draw.uniform(0.2, longest))
        if running[0].poll() is None:
            running[0].send_signal(signal.SIGKILL)
            running[0].wait()
            kills += 1
            running[0] = machines[0].start()
    return {"kills": kills, "codes": [process.wait() for process in running]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Do it; print a JSON line; return 1 if a number differs, something is damaged, or was made that was there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--spec", default="quick", help="preset or file")
    parser.add_argument("--machines", type=int, default=2)
    parser.add_argument("--times", type=int, default=3, help="kills of the first machine")
    parser.add_argument("--longest", type=float, default=40.0, help="seconds between two kills, at most")
    parser.add_argument("--jobs", default="1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", action="store_true", help="a matrix of five small cells, instead of the spec")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary, bucket():
        folder, words = Path(temporary), ["--jobs", given.jobs, "--checkpoint", "0.02"]
        spec = str(written(folder, SMALL)) if given.small else given.spec
        reference = Place(folder / "local", spec, ["--jobs", given.jobs])
        started = time.perf_counter()
        if reference.finish():
            raise SystemExit(reference.said())
        local, started = time.perf_counter() - started, time.perf_counter()
        machines = [Machine(folder / f"machine{number}", spec, words) for number in range(given.machines)]
        ended = at_once(machines, given.times, random.Random(given.seed), given.longest)
        shared, started = time.perf_counter() - started, time.perf_counter()
        last = Machine(folder / "last", spec, words)
        code = last.finish()
        nothing = " 0 stages to make" in last.said()
        found = {
            "machines": given.machines,
            **ended,
            "last": code,
            "nothing_left_for_the_last": nothing,
            "numbers": len(numbers(reference.out())),
            "different_numbers": sum(differences(one.out(), reference.out()) for one in (*machines, last)),
            "verify": verify(URL),
            "seconds": {"local": round(local, 1), "machines": round(shared, 1), "last": round(time.perf_counter() - started, 1)},
            "cache_of_the_last_mebibytes": round(
                sum(p.stat().st_size for p in (folder / "last" / "cache").rglob("*") if p.is_file()) / 2**20, 1
            ),
        }
    print(json.dumps(found))
    return int(bool(found["different_numbers"] or found["verify"] or not nothing or any(ended["codes"]) or code))


if __name__ == "__main__":
    sys.exit(main())
