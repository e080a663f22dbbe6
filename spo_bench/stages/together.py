"""A stage's function in several processes of this machine at once, each with a device of its own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from spo_bench import stopping
from spo_bench.models.numerics import add_in_one_order
from spo_bench.processes import Pool
from spo_bench.stages.base import Work
from spo_bench.store.live import Live

PATIENCE = 0.5  # seconds until it is looked again whether the run is asked to stop


def together(function: Callable[[Work], None], work: Work, count: int) -> None:
    """Let ``count`` processes do a stage's work together. A signal that this process got is passed on; they end when it does.

    Args:
        function: of the stage; called in each with the work, of which device, checkpoint and rank are that process's.
        work: of the stage.
        count: number of processes, and of devices on a machine with GPUs.

    Raises:
        RuntimeError: one of them was killed.
        Exception: whatever the function raised in one of them.
    """
    import torch

    with TemporaryDirectory(prefix="spo-bench-") as folder:
        pool = Pool(count)
        rank = partial(_rank, function, work, count, Path(folder) / "meeting", max(1, torch.get_num_threads() // count))
        try:
            left, told = {pool.submit(rank, number) for number in range(count)}, False
            while left:
                done, left = wait(left, PATIENCE, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                if stopping.wanted() and not told:
                    told = True
                    for process in pool.started:
                        process.terminate()
        except BrokenProcessPool as error:
            raise RuntimeError(f"one of {count} processes that work together was killed (out of memory?)") from error
        finally:
            for process in pool.started:  # those that wait for one that failed would wait for ever
                process.kill()
            pool.shutdown()


def device_of(work: Work, rank: int) -> str:
    """Return the device of a rank: of those that the stage was given, else the GPU of the rank's number."""
    if places := work.local.get("places"):
        return str(places[rank])
    kind = work.numerics.device.split(":")[0]
    return f"{kind}:{rank}" if kind == "cuda" else kind


def _rank(function: Callable[[Work], None], work: Work, count: int, meeting: Path, threads: int, rank: int) -> None:
    import torch
    import torch.distributed as dist

    from spo_bench.training.sharding import Group, SharedCheckpoint

    stopping.as_worker()
    torch.set_num_threads(threads)
    device = device_of(work, rank)
    kind = device.split(":")[0]
    add_in_one_order(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=meeting.as_uri(), rank=rank, world_size=count)
    ranks = Group(kind)
    checkpoint = SharedCheckpoint(work.checkpoint, ranks)
    own = replace(work, local={**work.local, "device": device}, checkpoint=checkpoint, ranks=ranks)
    if rank > 0:
        own = replace(own, out=meeting.with_name(f"rank-{rank}"), live=Live())
        own.out.mkdir()
    function(own)
    dist.destroy_process_group()
