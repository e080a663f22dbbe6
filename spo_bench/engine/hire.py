"""Where a run is made: on which device, how many stages at a time, and by whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spo_bench.engine.crew import Crew
from spo_bench.engine.free import cores_here
from spo_bench.engine.local import local
from spo_bench.engine.remote import needs_extra
from spo_bench.errors import InputError, suggestion, unknown
from spo_bench.matrix.spec import Spec
from spo_bench.models.source import EMBEDDED

ENGINES = ("local", "ray", "slurm")
DEVICES = ("auto", "cpu", "cuda", "cuda:0")
CORES_A_JOB = 4  # what a stage of a real model has good use for; beyond that its small products share cores badly
CORES_A_GPU = 8  # what a job of Slurm asks for beside a GPU, unless it is told


def hire(
    engine: str,
    spec: Spec,
    out: Path,
    device: str = "auto",
    jobs: int | str = "auto",
    ray_address: str | None = None,
    slurm: Sequence[str] | Mapping[str, Any] = (),
) -> Crew:
    """Return who makes the stages of a run. A Ray cluster is joined, or started on this machine; of Slurm nothing is asked yet.

    Args:
        engine: "local", "ray" or "slurm".
        spec: of the run.
        out: its directory, in which jobs of Slurm leave what they say.
        device: "auto", "cpu" or "cuda[:i]".
        jobs: stages side by side on one machine, or "auto".
        ray_address: "HOST:PORT" of a Ray cluster; None: $RAY_ADDRESS, else one is started here.
        slurm: what is asked of Slurm, as "KEY=VALUE" or a mapping.

    Raises:
        InputError: something of this is not known, not installed, not there, or meant for another engine.
    """
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    for name, given, its in (("--ray-address", ray_address, "ray"), ("--slurm", slurm, "slurm")):
        if given and engine != its:
            raise InputError(
                f"{name} with --engine {engine}", f"{name} is for --engine {its}", f"leave {name} out, or give --engine {its}"
            )
    if engine == "ray":
        return _of_ray(spec, device, jobs, ray_address)
    if engine == "slurm":
        return _of_slurm(spec, out, device, jobs, slurm)
    where = planned_device(device)
    gpus = _gpus_used(spec, where)
    return local(choose_jobs(jobs, spec, where, gpus=gpus), where, gpus)


def _gpus_used(spec: Spec, device: str) -> int:
    """Return how many GPUs of this machine stages are spread over; 1 also where there is none.

    Raises:
        InputError: a cell wants more of them.
    """
    if device == "cpu":
        return 1
    import torch

    there, wanted = max(1, torch.cuda.device_count()), spec.train.devices_per_cell
    if device != "cuda" or spec.generate.backend == "vllm":  # which answers on the first in sight
        there = 1
    if wanted > there and torch.cuda.is_available():
        raise InputError(
            f"train.devices_per_cell {wanted} with {there} GPU{'s' if there > 1 else ''} (--device {device})",
            "a cell has so many GPUs of one machine, and vLLM answers on the first alone",
            "lower devices_per_cell, use a larger machine or --device cuda, or generate with backend: transformers",
        )
    return there


def _of_ray(spec: Spec, device: str, jobs: int | str, address: str | None) -> Crew:
    """Join a cluster. The smallest of its machines decides how many threads a stage has, so that it fits on each; with GPUs, each
    GPU brings its part of the cores.
    """
    from spo_bench.engine.ray import RayCrew, connect

    _check_assigned(device, "ray")
    choose_jobs(jobs, spec, "cpu")
    nodes, ours = connect(address)
    wanted = spec.train.devices_per_cell
    with_gpus = [node for node in nodes if node.get("GPU", 0) >= wanted]
    if device == "auto":
        device = "cuda" if with_gpus else "cpu"
    fitting = nodes if device == "cpu" else with_gpus
    if not fitting:
        what = "cores" if device == "cpu" else "GPUs" if wanted == 1 else f"{wanted} GPUs"
        raise InputError(
            f"a Ray cluster of {len(nodes)} nodes without {what}",
            f"with --device {device}, a node that is there has {what}",
            f"add a node with {what}" + (", or give --device cpu" if device == "cuda" else ""),
        )
    if device == "cuda":
        return RayCrew(nodes, min(max(1, int(node["CPU"] // node["GPU"])) for node in fitting), 1, device, ours)
    cores = min(max(1, int(node["CPU"])) for node in fitting)
    return RayCrew(nodes, cores, choose_jobs(jobs, spec, device, cores), device, ours)


def _of_slurm(spec: Spec, out: Path, device: str, jobs: int | str, words: Sequence[str] | Mapping[str, Any]) -> Crew:
    from spo_bench.engine.slurm import SlurmCrew
    from spo_bench.engine.slurm_options import read_options

    options = read_options(words)
    needs_extra("submitit", "slurm")
    _check_assigned(device, "slurm")
    if device == "auto" and not options.is_local:
        raise InputError(
            "--engine slurm without --device",
            "a job asks for a GPU or for none, whatever this machine has",
            "give --device cuda, or --device cpu",
        )
    device = choose_device(device) if options.is_local else device
    cores = options.cores or (CORES_A_GPU if device == "cuda" and not options.is_local else cores_here())
    return SlurmCrew(out / "slurm", options, cores, choose_jobs(jobs, spec, device, cores), device)


def _check_assigned(device: str, engine: str) -> None:
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(
            f"--device {device} with --engine {engine}",
            "which GPU of which machine a stage has is the engine's to say: --device is auto, cpu or cuda",
            suggestion(device, ("auto", "cpu", "cuda")) if not device.startswith("cuda") else "give --device cuda",
        )


def choose_device(wanted: str) -> str:
    """Return the device for "auto", "cpu" or "cuda[:i]".

    Raises:
        InputError: an unknown device, or cuda where there is none.
    """
    if wanted == "cpu":
        return wanted
    if wanted != "auto" and not _is_gpu(wanted):
        raise InputError(f"device '{wanted}'", "a device is auto, cpu, cuda or cuda:0, cuda:1, …", suggestion(wanted, DEVICES))
    if wanted == "auto" and not Path("/dev/nvidia0").exists():
        return "cpu"  # without importing torch: planning and a finished run need no tensors
    import torch

    if torch.cuda.is_available() and (":" not in wanted or int(wanted[5:]) < torch.cuda.device_count()):
        return "cuda" if wanted == "auto" else wanted
    if wanted == "auto":
        return "cpu"
    raise InputError(
        f"device '{wanted}'",
        f"this machine has {torch.cuda.device_count()} CUDA devices that torch can use",
        "use --device cpu, or install a CUDA build of torch",
    )


def planned_device(wanted: str) -> str:
    """Return the device for which stages are planned: a GPU that was asked for, also where it is not there."""
    return wanted if _is_gpu(wanted) else choose_device(wanted)


def _is_gpu(name: str) -> bool:
    return name == "cuda" or (name.startswith("cuda:") and name[5:].isdigit())


def choose_jobs(wanted: int | str, spec: Spec, device: str, cores: int | None = None, gpus: int = 1) -> int:
    """Return how many stages run at a time on a machine with so many cores (None: this one), for a number or "auto".

    Auto is one a core where only the embedded model is run, whose products are too small for cores to share; one a few cores for
    other models; and one on a GPU, or on as many as a cell has. Memory may allow fewer at a time (``engine.memory``).

    Raises:
        InputError: neither a number above 0 nor "auto".
    """
    if str(wanted).isdecimal() and int(wanted) > 0:
        return int(wanted)
    if wanted != "auto":
        raise InputError(f"--jobs {wanted}", "at least one stage runs at a time", "give --jobs 1 or more, or --jobs auto")
    if planned_device(device) != "cpu":
        return max(1, gpus // spec.train.devices_per_cell)
    there = cores_here() if cores is None else cores
    return there if all(model.path == EMBEDDED for model in spec.models) else max(1, there // CORES_A_JOB)


def check_memory(memory: float | None, crew: Crew) -> None:
    """Check that a limit on what stages side by side may take has any side by side to limit, on this machine.

    Raises:
        InputError: one stage at a time, which always may run; or stages on other machines.
    """
    if memory is not None and not crew.here:
        raise InputError(
            f"--memory {memory / 2**30:g} with stages on other machines",
            "it limits what stages side by side may take of this one",
            "leave --memory out: there, each asks for what it needs by estimate",
        )
    if memory is not None and crew.jobs == 1:
        raise InputError(
            f"--memory {memory / 2**30:g} with one stage at a time",
            "it limits what stages side by side may take, and one alone always may run",
            "leave --memory out, or give --jobs 2 or more",
        )
