"""Stages on other machines: do a Ray cluster and jobs of Slurm give the numbers of this machine, also where nodes are lost?

    python benchmarks/clusters.py --what ray               # `quick` on a Ray cluster of three nodes, started here
    python benchmarks/clusters.py --what node              # and one of them gets SIGKILL in the middle, with its workers
    python benchmarks/clusters.py --what driver            # and the command is killed in the middle, and given again
    python benchmarks/clusters.py --what stop              # and it gets SIGTERM: exit code 130, and given again
    python benchmarks/clusters.py --what slurm             # through submitit, whose jobs are processes of this machine
    python benchmarks/clusters.py --what slurm-driver      # and the command is killed in the middle, and given again
    python benchmarks/clusters.py --what slurm-stop        # and a job is asked to stop, as one that is preempted or out of time

    python benchmarks/clusters.py --what node --bucket     # the store in a bucket: nodes and command have caches of their own

Each compares with an undisturbed run of the local engine, number by number; only what was measured of time and memory may differ.
The nodes of the Ray cluster are raylets of their own on this machine, each with as many cores as the machine has.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from chaos import Place, differences, leftovers, numbers
from remote import CACHE, URL, Machine, bucket, verify

from spo_bench.engine.free import cores_here

NODES = 3
WHAT = ("ray", "node", "driver", "stop", "slurm", "slurm-driver", "slurm-stop")


@contextmanager
def ray_cluster(nodes: int, cores: int) -> Iterator[Any]:
    """Start a Ray cluster on this machine: a head that runs nothing, and so many nodes; yield it."""
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_BACKEND_LOG_LEVEL="fatal")
    from ray.cluster_utils import Cluster

    common = {"object_store_memory": 100 * 2**20, "include_dashboard": False}
    cluster = Cluster()
    try:
        _patient(cluster, num_cpus=0, **common)
        for _ in range(nodes):
            _patient(cluster, num_cpus=cores, object_store_memory=common["object_store_memory"])
        yield cluster
    finally:
        cluster.shutdown()


def _patient(cluster: Any, **options: Any) -> None:
    """Add a node; on a busy machine the half minute that Ray gives it may be too little."""
    for last in (False, False, True):
        try:
            cluster.add_node(**options)
        except Exception:  # Ray raises no other
            if last:
                raise
        else:
            return


def kill_node(cluster: Any) -> int:
    """Kill the node with the most workers, which it started itself, and all of these; return how many processes that were."""
    raylets = {node: node.all_processes["raylet"][0].process.pid for node in cluster.worker_nodes}
    node = max(raylets, key=lambda one: len(children(raylets[one])))
    processes = [raylets[node], *children(raylets[node])]
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    cluster.remove_node(node, allow_graceful=False)
    return len(processes)


def children(process: int) -> list[int]:
    """Return the processes that a process started."""
    found = list[int]()
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):  # a thread that ended meanwhile
            found += [int(word) for word in path.read_text().split()]
    return found


def stop_jobs(command: int) -> int:
    """Send SIGTERM to every job under way, as Slurm does before it takes a machine away; return how many there were."""
    jobs = [one for one in children(command) if b"submitit" in Path(f"/proc/{one}/cmdline").read_bytes()]
    for job in jobs:
        os.kill(job, signal.SIGTERM)
    return len(jobs)


def stages_done(place: Place) -> int:
    """Return how many stages the commands said were made, at least."""
    found = re.findall(r"^\[(\d+)/\d+\]", place.said(), re.MULTILINE)
    return int(found[-1]) if found else 0


def wait_for(process: subprocess.Popen[bytes], place: Place, stages: int) -> None:
    """Wait until so many stages are made, or the process has ended."""
    while process.poll() is None and stages_done(place) < stages:
        time.sleep(0.1)


def disturbed(place: Place, what: str, cluster: Any, stages: int) -> dict[str, Any]:
    """Run the command; when so many stages are made, do what is to be done to it; return what came of it."""
    process, codes, found = place.start(), list[int](), dict[str, Any]()
    if what not in ("ray", "slurm"):
        wait_for(process, place, stages)
        found["stages_done_before"] = stages_done(place)
    if what == "node":
        found["processes_killed"] = kill_node(cluster)
    elif what == "slurm-stop":
        found["jobs_stopped"] = stop_jobs(process.pid)
    elif what in ("driver", "slurm-driver", "stop"):
        process.send_signal(signal.SIGTERM if what == "stop" else signal.SIGKILL)
        codes.append(process.wait())
        process = place.start()
    codes.append(process.wait())
    said = place.said()
    return {**found, "codes": codes, "tried_again": said.count("tried again"), "lines_of_ray": said.count("raylet")}


def run(
    what: str, spec: str, folder: Path, stages: int, reference: Path | None, words: Sequence[str] = (), behind: bool = False
) -> dict[str, Any]:
    """Do one of the things there are to do; return what was found.

    Args:
        what: of ``WHAT``.
        spec: preset or file.
        folder: for runs and stores.
        stages: after which something happens.
        reference: an undisturbed run of the local engine; None: it is made first.
        words: further words of the commands.
        behind: whether the store is in a bucket.
    """
    found: dict[str, Any] = {"what": what}
    if reference is None:
        undisturbed, started = Place(folder / "local", spec), time.perf_counter()
        if undisturbed.finish():
            raise SystemExit(undisturbed.said())
        reference, found["seconds_local"] = undisturbed.out(), round(time.perf_counter() - started, 1)

    def placed(*engine: str) -> Place:
        given = ["--engine", *engine, *words]
        return Machine(folder / what, spec, given, f"{URL}/{what}") if behind else Place(folder / what, spec, given)

    if what.startswith("slurm"):
        place = placed("slurm", "--slurm", "cluster=local")
        started = time.perf_counter()
        found |= disturbed(place, what, None, stages)
    else:
        with ray_cluster(NODES, cores_here()) as cluster:
            place = placed("ray", "--ray-address", cluster.address)
            started = time.perf_counter()
            found |= disturbed(place, what, cluster, stages)
    found |= {"seconds": round(time.perf_counter() - started, 1), "numbers": len(numbers(reference))}
    if found["codes"][-1]:
        raise SystemExit(place.said())
    if isinstance(place, Machine):
        found["verify"] = verify(place.url)
    return {**found, "different_numbers": differences(place.out(), reference), "left_over": leftovers(place.store)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is asked; print a JSON line each; return 1 if a number differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--what", choices=WHAT, action="append", help="repeatable; default: all")
    parser.add_argument("--spec", default="quick", help="preset or file")
    parser.add_argument("--after", type=int, default=60, help="stages made before something happens")
    parser.add_argument("--reference", type=Path, help="a run of the same spec by the local engine")
    parser.add_argument("--folder", type=Path, help="kept; else a temporary one")
    parser.add_argument("--bucket", action="store_true", help="a store behind s3://, on a server of this machine")
    given = parser.parse_args(arguments)
    bad = False
    with tempfile.TemporaryDirectory() as temporary, bucket() if given.bucket else nullcontext():
        folder, reference = given.folder or Path(temporary), given.reference
        os.environ[CACHE] = str(folder / "nodes")
        for what in given.what or WHAT:
            found = run(what, given.spec, folder, given.after, reference, behind=given.bucket)
            print(json.dumps(found), flush=True)
            bad |= bool(found["different_numbers"] or found["left_over"] or found.get("verify"))
            reference = reference or folder / "local" / "run"
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
