"""Making one artifact: whatever happens, an answer comes back that says how it ended, and what may be tried next."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from spo_bench import stopping
from spo_bench.engine.memory import PROCESS
from spo_bench.engine.shares import asks_endpoint
from spo_bench.errors import Busy, Damaged, InputError, Interrupted, SpoBenchError, Unreachable, disk_full, is_disk_full
from spo_bench.models.numerics import add_in_one_order
from spo_bench.stages.base import Stage
from spo_bench.stages.registry import How, execute
from spo_bench.store.artifacts import Store

# What libraries say where they could not have as much memory as they wanted.
NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory", "bad_alloc")


class Ended(NamedTuple):
    """How an attempt ended.

    Attributes:
        how: made; failed: with the same inputs it would again; passing: another time it may go better; memory: there was too
            little; damaged: an input is not as it was made; busy: another process makes it.
        reason: why it was not made.
        entry: kind and key of a damaged input.
        seconds: it took.
    """

    how: Literal["made", "failed", "passing", "memory", "damaged", "busy"]
    reason: str = ""
    entry: tuple[str, str] | None = None
    seconds: float = 0.0


def attempt(stage: Stage, store: Store, threads: int, how: How) -> Ended:
    """Make one artifact.

    Raises:
        InputError: what a person gave cannot be used.
        Interrupted: the run is asked to stop, or the disk is full.
    """
    started = time.perf_counter()
    ended = _attempt(stage, store, threads, how)
    return ended._replace(seconds=time.perf_counter() - started)


def _attempt(stage: Stage, store: Store, threads: int, how: How) -> Ended:
    import torch

    torch.set_num_threads(threads)
    add_in_one_order(stage.local.get("device", "cpu"))
    if how.places:
        torch.cuda.set_device(how.places[0])  # for libraries that take the current one
    keep_freed_memory()
    before = resident_memory()
    try:
        with stopping.at_once():
            execute(stage, store, how)
    except Unreachable as error:
        return Ended("passing", f"{stage.kind}: {error.given}; {error.remedy}")
    except (InputError, Interrupted):
        raise
    except Damaged as error:
        return Ended("damaged", f"{error}", (error.kind, error.key))
    except Busy as error:
        return Ended("busy", f"{error}")
    except SpoBenchError as error:
        return Ended("passing" if asks_endpoint(stage) else "failed", f"{stage.kind}: {error}")
    # A stage runs code of plugins, models and libraries: whatever it raises ends this cell, with its place, and no other.
    except Exception as error:
        if is_disk_full(error):
            raise disk_full(error) from error
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{stage.kind}: {type(error).__name__}: {error} ({os.path.basename(where.filename)}:{where.lineno})"
        return Ended("memory" if is_out_of_memory(error) else "passing", reason)
    finally:
        give_back_freed_memory(before)
    return Ended("made")


def is_out_of_memory(error: Exception) -> bool:
    """Say whether memory did not suffice, of this machine or of a device."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | OSError) and any(words in str(error).lower() for words in NO_MEMORY)
    )


def keep_freed_memory() -> None:
    """Ask the C library to keep freed memory for the next step: giving it back and touching it anew costs more than a small
    step. Does nothing where the C library is not glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    for setting, value in ((-4, 0), (-1, 2**31 - 1)):  # M_MMAP_MAX: no separate mappings; M_TRIM_THRESHOLD: never shrink
        mallopt(setting, value)


def resident_memory() -> int:
    """Return the bytes this process has in memory; 0 where that cannot be told (not Linux)."""
    with suppress(OSError, AttributeError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def give_back_freed_memory(before: int) -> None:
    """Give memory that was freed back to the system, for what runs beside this process. Of a CUDA device always; of this machine
    (Linux and glibc) where there is much more than ``before``: looking for it takes as long as a small stage.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()
    if resident_memory() > before + PROCESS:
        gc.collect()
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
