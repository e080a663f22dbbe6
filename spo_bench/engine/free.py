"""How much memory is free: of this machine, of the container it may be, of a GPU."""

from __future__ import annotations

import os
import subprocess
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

INFINITE = float("inf")
# version -> (where its files lie, limit, use, and what of the use is files that can be dropped)
GROUPS = {
    2: ("", "memory.max", "memory.current", "inactive_file"),
    1: ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


class Need(NamedTuple):
    """Bytes of this machine's memory, and of a CUDA device's."""

    host: float
    device: float = 0.0

    def __add__(self, other: tuple[float, ...]) -> Need:  # type: ignore[override]
        return Need(self.host + other[0], self.device + other[1])

    def __mul__(self, count: int) -> Need:  # type: ignore[override]
        return Need(self.host * count, self.device * count)

    def within(self, room: Need) -> bool:
        """Say whether this much fits."""
        return self.host <= room.host and self.device <= room.device

    @property
    def most(self) -> float:
        """The larger of the two: what is worth showing."""
        return max(self)


NOTHING = Need(0.0)


def free_memory(device: str) -> Need:
    """Return the free bytes of this machine and, for "cuda[:i]", of that device; infinite where nobody says."""
    host = min(available(), left_in_group())
    return Need(host, on_gpu(device, "memory.free") if device.startswith("cuda") else INFINITE)


def available() -> float:
    """Return what Linux could give to new processes."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return INFINITE
    return next((int(line.split()[1]) * 1024.0 for line in lines if line.startswith("MemAvailable")), INFINITE)


def left_in_group(root: Path = Path("/")) -> float:
    """Return what the limits on this process leave: the least of its control group and all above it.

    Pages of files that were not used lately count as free, since the system drops them before it refuses memory.

    Args:
        root: where ``proc`` and ``sys`` are.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return INFINITE
    left = INFINITE
    for line in lines:  # "0::/a/b" in version 2, "4:memory:/a/b" in version 1
        _, controllers, own = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        folder, *names = GROUPS[1 if controllers else 2]
        top = root / "sys/fs/cgroup" / folder
        # In a container the named group may lie outside of what is seen here; then the top one is its own.
        path = PurePosixPath(own.lstrip("/"))
        for group in {top / path, *(top / above for above in path.parents), top}:
            left = min(left, _left_in(group, *names))
    return left


def _left_in(group: Path, limit: str, used: str, droppable: str) -> float:
    """Return what the limit of one control group leaves; infinite where it has none."""
    try:
        most, taken = float((group / limit).read_text()), float((group / used).read_text())
    except (OSError, ValueError):  # no such group here, or "max": no limit
        return INFINITE
    try:
        stat = dict(line.split(maxsplit=1) for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        stat = {}
    return most - max(0.0, taken - float(stat.get(droppable, 0)))


def on_gpu(device: str, what: str) -> float:
    """Return a number of bytes of "cuda[:i]" ("memory.free", "memory.total"), as the driver's own tool says; infinite where it
    cannot say.

    The tool counts all GPUs, torch only those that ``CUDA_VISIBLE_DEVICES`` names, by number or UUID.
    """
    command = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits", "-i", driver_name(device)]
    try:
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]) * 2**20  # noqa: S603
    except (OSError, subprocess.CalledProcessError, ValueError, IndexError):
        return INFINITE


@lru_cache(maxsize=16)
def gpu_size(device: str) -> float:
    """Return all bytes of "cuda[:i]"."""
    return on_gpu(device, "memory.total")


def driver_name(device: str) -> str:
    """Return the number or UUID by which the driver knows "cuda[:i]"."""
    place = int(device.partition(":")[2] or 0)
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return visible[place] if place < len(visible) else str(place)
