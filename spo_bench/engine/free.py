"""What this machine has: cores, and memory that is free, of the container it may be and of a GPU too."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
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

    @property
    def most(self) -> float:
        """The larger of the two: what is worth showing."""
        return max(self)


NOTHING = Need(0.0)


def free_memory(device: str) -> Need:
    """Return the free bytes of this machine and, for "cuda[:i]", of that device; infinite where nobody says."""
    host = min(available(), left_in_group())
    return Need(host, on_gpu(device, "memory.free") if device.startswith("cuda") else INFINITE)


def free_here(gpus: Sequence[str]) -> tuple[float, dict[str, float]]:
    """Return the free bytes of this machine, and of each of some GPUs."""
    return free_memory("cpu").host, {name: on_gpu(name, "memory.free") for name in gpus}


def all_memory(device: str) -> Need:
    """Return all bytes that this machine (swap included), or the container it is, and for "cuda[:i]" that device could ever give;
    infinite where nobody says.
    """
    there = _meminfo()
    host = there["MemTotal"] + there.get("SwapTotal", 0.0) if "MemTotal" in there else INFINITE
    return Need(min(host, limit_of_group()), gpu_size(device) if device.startswith("cuda") else INFINITE)


def available() -> float:
    """Return what Linux could give to new processes."""
    return _meminfo().get("MemAvailable", INFINITE)


def _meminfo() -> dict[str, float]:
    """Return the numbers of /proc/meminfo, bytes; none where this is not Linux."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    return {line.split(":")[0]: int(line.split()[1]) * 1024.0 for line in lines}


def left_in_group(root: Path = Path("/")) -> float:
    """Return what the limits on this process leave: the least of its control group and all above it.

    Pages of files that were not used lately count as free, since the system drops them before it refuses memory.

    Args:
        root: where ``proc`` and ``sys`` are.
    """
    return min((_left_in(group, *names) for group, names in _groups(root)), default=INFINITE)


def limit_of_group(root: Path = Path("/")) -> float:
    """Return the least limit of this process's control group and all above it; infinite where there is none."""
    return min((_number(group / names[0]) for group, names in _groups(root)), default=INFINITE)


def _groups(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield the control groups of this process that may limit its memory, each with the names of its files."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:  # "0::/a/b" in version 2, "4:memory:/a/b" in version 1
        _, controllers, own = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        folder, *names = GROUPS[1 if controllers else 2]
        top = root / "sys/fs/cgroup" / folder
        # In a container the named group may lie outside of what is seen here; then the top one is its own.
        path = PurePosixPath(own.lstrip("/"))
        for group in {top / path, *(top / above for above in path.parents), top}:
            yield group, names


def _left_in(group: Path, limit: str, used: str, droppable: str) -> float:
    """Return what the limit of one control group leaves; infinite where it has none."""
    most, taken = _number(group / limit), _number(group / used)
    if INFINITE in (most, taken):
        return INFINITE
    try:
        stat = dict(line.split(maxsplit=1) for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        stat = {}
    return most - max(0.0, taken - float(stat.get(droppable, 0)))


def _number(path: Path) -> float:
    """Return the number in a file; infinite where there is no such file, or it says "max"."""
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return INFINITE


def on_gpu(device: str, what: str) -> float:
    """Return a number of bytes of "cuda[:i]" ("memory.free", "memory.total"), as the driver's own tool says; infinite where it
    cannot say.

    The tool counts all GPUs, torch only those that ``CUDA_VISIBLE_DEVICES`` names, by number or UUID.
    """
    try:
        return float((_asked(device, what) or "").split()[0]) * 2**20
    except (ValueError, IndexError):
        return INFINITE


def _asked(device: str, what: str) -> str | None:
    """Return what the driver's own tool says of "cuda[:i]"; None where it says nothing."""
    command = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits", "-i", driver_name(device)]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603 - words of ours  # nosec B603
    except (OSError, subprocess.CalledProcessError):
        return None


def gpu_names(device: str, count: int) -> tuple[str, ...]:
    """Return the GPUs that a device stands for, by number, which torch asks for where one is made the current one: "cuda" for as
    many as are in sight, others for themselves; of a CPU none.
    """
    if device == "cuda":
        return tuple(f"cuda:{place}" for place in range(count))
    return (device,) if device.startswith("cuda:") else ()


@lru_cache(maxsize=16)
def gpu_name(device: str) -> str:
    """Return the name that the driver gives "cuda[:i]"; empty where it cannot say."""
    return _asked(device, "name") or ""


@lru_cache(maxsize=16)
def gpu_size(device: str) -> float:
    """Return all bytes of "cuda[:i]"."""
    return on_gpu(device, "memory.total")


def driver_name(device: str) -> str:
    """Return the number or UUID by which the driver knows "cuda[:i]"."""
    place = int(device.partition(":")[2] or 0)
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return visible[place] if place < len(visible) else str(place)


def cores_here() -> int:
    """Return how many cores this process may use: less than the machine has in a container or under taskset."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def oom_kills() -> int:
    """Return how many processes the system has killed for want of memory: of this machine, or where only that is seen, of this
    control group. It tells a worker that was killed for memory from one that was killed for another reason.
    """
    found = 0
    for path in ("/proc/vmstat", "/sys/fs/cgroup/memory.events"):
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except OSError:
            continue
        found += next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
    return found
