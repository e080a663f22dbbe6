"""What a user may ask of Slurm: ``--slurm KEY=VALUE``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from spo_bench.errors import InputError, unknown

CLUSTERS = ("slurm", "local")
TIME = "4:00:00"
PARALLEL = 256
# Words of sbatch that go into the scripts as they are; what decides how many processes a job has is ours.
WORDS = (
    "account", "comment", "constraint", "exclude", "gres", "mail_type", "mail_user", "mem_per_cpu", "mem_per_gpu", "nodelist",
    "partition", "qos", "wckey",
)  # fmt: skip
NUMBERS = ("cpus_per_task", "gpus_per_node", "signal_delay_s")
OWN = ("cluster", "cores", "exclusive", "mem_gb", "parallel", "setup", "srun", "time")
FURTHER = "sbatch."  # before any other option of sbatch
KNOWN = (*OWN, *WORDS, *NUMBERS)


@dataclass(frozen=True)
class Options:
    """What a user asks of Slurm.

    Attributes:
        cluster: "slurm", or "local": the same path on this machine.
        minutes: a job may take; one that takes longer is submitted again, and goes on.
        parallel: jobs at a time.
        cores: a stage may have at most; None: as many as this machine has, with a GPU eight.
        given: parameters of submitit's executor for Slurm, which win over ours.
    """

    cluster: str = "slurm"
    minutes: int = 240
    parallel: int = PARALLEL
    cores: int | None = None
    given: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_local(self) -> bool:
        """Whether jobs run on this machine."""
        return self.cluster == "local"


def read_options(words: Sequence[str] | Mapping[str, Any]) -> Options:
    """Return what "KEY=VALUE" words, or a mapping, ask for.

    Raises:
        InputError: a word without "=", a key that is not known, a value that cannot be.
    """
    found: dict[str, Any] = {"cluster": "slurm", "minutes": _minutes(TIME), "parallel": PARALLEL, "cores": None}
    given: dict[str, Any] = {}
    for key, value in _pairs(words):
        if key == "cluster":
            if value not in CLUSTERS:
                raise unknown("cluster", value, CLUSTERS, where="--slurm")
            found["cluster"] = value
        elif key == "time":
            found["minutes"] = _minutes(value)
        elif key in ("parallel", "cores"):
            found[key] = _number(key, value)
        elif key == "mem_gb":
            given["mem"] = f"{_number(key, value)}GB"
        elif key == "exclusive":
            given[key] = True if value.lower() in ("true", "yes", "1") else value
        elif key in ("setup", "srun"):
            given.setdefault("setup" if key == "setup" else "srun_args", []).append(value)
        elif key in NUMBERS:
            given[key] = _number(key, value)
        elif key in WORDS:
            given[key] = value
        elif key.startswith(FURTHER) and len(key) > len(FURTHER):
            given.setdefault("additional_parameters", {})[key.removeprefix(FURTHER)] = value
        else:
            raise unknown("option", key, KNOWN, where=f"--slurm (any other of sbatch as {FURTHER}{key}=VALUE)")
    return Options(**found, given=given)


def _pairs(words: Sequence[str] | Mapping[str, Any]) -> list[tuple[str, str]]:
    if isinstance(words, Mapping):
        lists = [(key, value if isinstance(value, list | tuple) else [value]) for key, value in words.items()]
        return [(str(key).replace("-", "_"), str(one)) for key, values in lists for one in values]
    found = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key.strip() or not value.strip():
            raise InputError(
                f"--slurm {word}", "an option of Slurm is KEY=VALUE", "such as --slurm partition=gpu --slurm time=8:00:00"
            )
        key = key.strip()
        found.append((key if key.startswith(FURTHER) else key.replace("-", "_"), value.strip()))
    return found


def _number(key: str, value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise InputError(f"--slurm {key}={value}", f"{key} is a whole number above 0", f"such as --slurm {key}=8")
    return int(value)


def _minutes(value: str) -> int:
    """Return the minutes of a time as sbatch reads it: MM, MM:SS, HH:MM:SS, D-HH, D-HH:MM, D-HH:MM:SS."""
    days, dash, clock = value.rpartition("-")
    parts = [int(part) for part in clock.split(":")] if re.fullmatch(r"\d+(:\d+){0,2}", clock) else []
    if not parts or (dash and not days.isdecimal()) or value.startswith("-"):
        raise InputError(f"--slurm time={value}", "a time is MM, HH:MM:SS or D-HH:MM:SS", "such as --slurm time=8:00:00")
    if dash:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    else:
        hours, minutes, seconds = ((0, *parts, 0) if len(parts) == 1 else (0, *parts) if len(parts) == 2 else tuple(parts))[:3]
    total = int(days or 0) * 1440 + hours * 60 + minutes + (seconds > 0)
    if total < 1:
        raise InputError(f"--slurm time={value}", "a job has at least a minute", "such as --slurm time=8:00:00")
    return total
