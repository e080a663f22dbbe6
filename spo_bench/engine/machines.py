"""How fast a machine is: GPUs by their makers' data sheets, this machine's cores, and what of it a stage gets by experience.

``seconds`` turns what a stage has to do into time. Where nothing was measured that is an estimate from the table and the shares
below; where something was, only its proportions matter (``engine.timings``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from spo_bench.engine.free import cores_here, gpu_name
from spo_bench.engine.memory import GIB
from spo_bench.engine.work import Load
from spo_bench.errors import unknown
from spo_bench.store.provenance import processor

TERA, GIGA = 1e12, 1e9


@dataclass(frozen=True)
class Gpu:
    """A GPU of the table.

    Attributes:
        reported: how the name ends that its driver gives it.
        bfloat16, float32, tf32: dense operations a second: bfloat16 with sums in fp32, fp32 without tensor cores, and TF32, which
            this program does not use.
        memory: bytes that the driver gives out.
        bandwidth: bytes a second of its memory.
        source: where the numbers stand.
    """

    reported: str
    bfloat16: float
    float32: float
    tf32: float
    memory: float
    bandwidth: float
    source: str


def _gpu(reported: str, bf16: float, fp32: float, tf32: float, gib: float, gb: float, source: str) -> Gpu:
    return Gpu(reported, bf16 * TERA, fp32 * TERA, tf32 * TERA, gib * GIB, gb * GIGA, source)


# Dense figures: where a sheet shows only those "with sparsity", half of them.
GPUS: Mapping[str, Gpu] = {
    "A100-40GB": _gpu("A100-SXM4-40GB", 312, 19.5, 156, 40, 1555, "NVIDIA A100 Tensor Core GPU data sheet"),
    "A100-80GB": _gpu("A100-SXM4-80GB", 312, 19.5, 156, 80, 2039, "NVIDIA A100 Tensor Core GPU data sheet, SXM"),
    "H100": _gpu("H100 80GB HBM3", 989, 67, 494, 79.6, 3350, "NVIDIA H100 Tensor Core GPU data sheet, SXM"),
    "H100-PCIe": _gpu("H100 PCIe", 756, 51, 378, 79.6, 2000, "NVIDIA H100 Tensor Core GPU data sheet, PCIe"),
    "H200": _gpu("H200", 989, 67, 494, 140.4, 4800, "NVIDIA H200 Tensor Core GPU data sheet, SXM"),
    "L4": _gpu("NVIDIA L4", 121, 30.3, 60, 22.5, 300, "NVIDIA L4 Tensor Core GPU data sheet"),
    "L40S": _gpu("L40S", 362, 91.6, 183, 45, 864, "NVIDIA L40S GPU data sheet"),
    "RTX-A6000": _gpu("RTX A6000", 155, 38.7, 77.4, 48, 768, "NVIDIA RTX A6000 data sheet"),
    "RTX-3090": _gpu("RTX 3090", 71, 35.6, 35.6, 24, 936, "NVIDIA Ampere GA102 GPU architecture white paper"),
    "RTX-4090": _gpu("RTX 4090", 165, 82.6, 82.6, 24, 1008, "NVIDIA Ada GPU architecture white paper"),
}
UNNAMED = "H100"  # what is planned for where no GPU is named and none is here

# Shares of the data sheet that programs like this one reach: assumptions, until something is measured.
OPERATIONS = 0.40  # of dense matrix products
BANDWIDTH = 0.70
PRODUCTS = 0.60  # of the rate of one large product of matrices, where that was measured
SCALING = 0.90  # of the speed of each device where several share a stage
CPU_OPERATIONS = 50e9  # a second and core, in fp32
FIXED_GPU, FIXED_CPU = 40.0, 0.5  # seconds: a process, its libraries, a CUDA context, the compilation of FlexAttention
LAYER_GPU, LAYER_CPU = 5e-4, 2e-4  # seconds until a layer is called from Python
REQUEST = 3.0  # seconds a judge behind an endpoint takes to answer
ROW = 1e-3  # seconds a text: tokenising, counting, writing


@dataclass(frozen=True)
class Machine:
    """What a stage gets of a machine.

    Attributes:
        name: as timings know it.
        operations: a second, by type.
        bandwidth: bytes a second of the memory where it computes.
        disk: bytes a second.
        layer, fixed, row, request: seconds a call of a layer, a stage, a text, a request.
        overlaps: whether the device computes while Python calls the next layers.
        memory: bytes of a device; None: the machine's own, which ``engine.free`` knows.
    """

    name: str
    operations: Mapping[str, float]
    bandwidth: float
    disk: float
    layer: float
    fixed: float
    overlaps: bool
    memory: float | None = None
    row: float = ROW
    request: float = REQUEST

    def seconds(self, load: Load, dtype: str, parts: float = 1.0) -> float:
        """Return how long a stage takes.

        Args:
            load: what it has to do.
            dtype: in which it computes.
            parts: threads, or devices that share it; on a CPU a core's speed is meant by ``operations``.
        """
        many = parts if not self.overlaps else 1 + (parts - 1) * SCALING
        operations = (load.learned + load.read + load.drawn) / (self.operations[dtype] * many)
        moved, called = load.moved / (self.bandwidth * (many if self.overlaps else 1)), load.layers * self.layer
        # Answers wait for memory or for products, whichever takes longer.
        drawn = load.drawn / (self.operations[dtype] * many)
        device = operations - drawn + max(drawn, moved)
        computing = max(device, called) if self.overlaps else device + called
        runs = load.learned + load.read + load.drawn > 0
        fixed = self.fixed if runs or not self.overlaps else 0.0
        return fixed + computing + load.disk / self.disk + load.rows * self.row + load.calls * self.request


def choose_gpu(name: str | None, device: str) -> tuple[str, bool]:
    """Return the name of the GPU that is planned for, and whether it was named or is here.

    Raises:
        InputError: a name that is not in the table, with the nearest.
    """
    if name is not None:
        found = next((one for one in GPUS if one.lower() == name.lower().replace(" ", "-")), None)
        if found is None:
            raise unknown("GPU", name, GPUS)
        return found, True
    here = gpu_name(device) if device.startswith("cuda") else ""
    found = next((one for one, gpu in GPUS.items() if here.endswith(gpu.reported)), None)
    return (found, True) if found is not None else (UNNAMED, False)


def gpu_machine(name: str) -> Machine:
    """Return what a stage gets of a GPU of the table."""
    gpu = GPUS[name]
    rates = {"bfloat16": gpu.bfloat16 * OPERATIONS, "float32": gpu.float32 * OPERATIONS}
    return Machine(name, rates, gpu.bandwidth * BANDWIDTH, 1e9, LAYER_GPU, FIXED_GPU, True, gpu.memory)


@lru_cache(maxsize=16)
def this_machine(device: str) -> Machine:
    """Return what a stage gets of the machine this is, as timings know it."""
    if device.startswith("cuda"):
        name, known = choose_gpu(None, device)
        return replace(gpu_machine(name), name=name if known else gpu_name(device) or "GPU")
    rates = dict.fromkeys(("float32", "bfloat16"), CPU_OPERATIONS)
    return Machine(f"{cores_here()} cores of {processor()}", rates, 10e9, 5e8, LAYER_CPU, FIXED_CPU, False)


def dtype_of(config: Mapping[str, Any]) -> str:
    """Return the type in which a stage computes."""
    return str(config["numerics"]["dtype"]) if "numerics" in config else "float32"
