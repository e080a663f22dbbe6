"""What ``spo-bench doctor`` looks at. Every check says what was seen, and what to do where that will not do."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import spo_bench
from spo_bench.errors import InputError, SpoBenchError
from spo_bench.store.opening import open_store
from spo_bench.store.provenance import without_secrets

ENOUGH = 2e9  # bytes of memory and of disk that the embedded default has room in
PATIENCE = 30.0  # seconds
PROGRAMS = {
    "git": "a run's provenance names the commit",
    "pdflatex": "tables for LaTeX are compiled in tests",
    "chromium": "the report is looked at in tests",
}
TEMPLATE = "Question: {prompt}\nA: {a}\nB: {b}\nWhich answer is right? Answer at once.\n"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what.
        ok: whether it is well; what is optional and absent is well.
        seen: what was seen, and the remedy where it is not well.
    """

    name: str
    ok: bool
    seen: str


@dataclass(frozen=True)
class JudgeAsked:
    """A judge behind an endpoint that is asked once: its model, its address, and the variable that holds the key."""

    model: str
    base_url: str | None
    api_key_env: str


def examine(
    store: str | Path, results: Path, tasks: Sequence[Path] = (), online: bool = False, judge: JudgeAsked | None = None
) -> Iterator[Check]:
    """Yield every check, quick ones first; one that fails does not stop the others."""
    checks: list[tuple[str, Callable[[], Iterable[Check]]]] = [
        ("packages", _packages),
        ("memory", _memory),
        ("store", lambda: _store(store, online)),
        ("results", lambda: _place("results", results)),
        ("plugins", lambda: _plugins(tasks)),
        ("programs", _programs),
        ("engines", _engines),
        ("judge key", lambda: _key(judge.api_key_env if judge else "OPENAI_API_KEY")),
        ("hub", lambda: _hub(online)),
        ("judge", lambda: _judge(judge) if judge else ()),
        ("device", _devices),
    ]
    for name, look in checks:
        try:
            yield from look()
        except SpoBenchError as error:
            yield Check(name, False, " ".join(str(error).split()))
        except Exception as error:  # noqa: BLE001 - the doctor is for machines on which anything may be broken
            yield Check(name, False, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")


# --- what is installed --------------------------------------------------------------------------------------------------------


def _packages() -> Iterator[Check]:
    """Compare Python and the packages with what spo-bench's own metadata asks for."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    python, needed = declared()
    here = platform.python_version()
    yield Check("python", SpecifierSet(python).contains(here, prereleases=True), f"{here} (asked for: {python}) in {sys.prefix}")
    for requirement in map(Requirement, needed):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        bounds = f"asked for: {requirement.specifier}" if requirement.specifier else "any version"
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            yield Check(requirement.name, False, f"not installed; pip install '{requirement}'")
            continue
        fits = requirement.specifier.contains(found, prereleases=True)
        yield Check(requirement.name, fits, f"{found} ({bounds})" + ("" if fits else f"; pip install '{requirement}'"))


def declared() -> tuple[str, list[str]]:
    """Return the Python and the packages that spo-bench asks for, by its metadata, or in a checkout by its pyproject.toml."""
    try:
        own = distribution("spo-bench")
        return own.metadata["Requires-Python"], own.requires or []
    except PackageNotFoundError:
        import tomllib

        with (Path(spo_bench.__file__).parents[1] / "pyproject.toml").open("rb") as file:
            project = tomllib.load(file)["project"]
        return project["requires-python"], project["dependencies"]


def _plugins(tasks: Sequence[Path]) -> Iterator[Check]:
    from spo_bench.methods import discover
    from spo_bench.plugins import broken_tasks, find_tasks

    methods, found, broken = discover(), find_tasks(tasks), broken_tasks(tasks)
    yield Check("plugins", True, f"{len(methods.methods)} methods, {len(found)} tasks")
    for origin, reason in methods.broken.items():
        yield Check("method plugin", False, f"{origin} cannot be loaded: {reason.splitlines()[-1]}")
    for plugin in broken:
        yield Check(f"task plugin {plugin.name}", False, f"{plugin.origin} cannot be loaded: {plugin.reason.splitlines()[-1]}")


def _programs() -> Iterator[Check]:
    for name, purpose in PROGRAMS.items():
        yield Check(name, True, shutil.which(name) or f"not installed (optional: {purpose})")


def _engines() -> Iterator[Check]:
    """Say which engines for other machines there are; no cluster is asked."""
    for name, module in (("ray", "ray"), ("slurm", "submitit")):
        if find_spec(module) is None:
            yield Check(f"engine {name}", True, f"not installed (optional: pip install 'spo-bench[{name}]')")
        elif name == "ray":
            address = os.environ.get("RAY_ADDRESS")
            where = f"RAY_ADDRESS is {address}" if address else "RAY_ADDRESS is not set: a cluster is started here"
            yield Check(f"engine {name}", True, f"ray {version(module)}; {where}")
        else:
            missing = [program for program in ("sbatch", "srun", "scancel", "sacct") if shutil.which(program) is None]
            where = f"without {', '.join(missing)}: only --slurm cluster=local works here" if missing else "sbatch is here"
            yield Check(f"engine {name}", True, f"submitit {version(module)}; {where}")


# --- what there is room for ---------------------------------------------------------------------------------------------------


def _memory() -> Iterator[Check]:
    from spo_bench.engine.free import available, cores_here, left_in_group

    machine, group = available(), left_in_group()
    limit = f"; the container leaves {_size(group)}" if group < machine else ""
    little = "" if min(machine, group) > ENOUGH else f"; less than {_size(ENOUGH)}: end other programs"
    yield Check("memory", not little, f"{_size(machine)} free{limit}{little}")
    cores, there = cores_here(), os.cpu_count() or 1
    yield Check("cores", True, f"{cores} for this process" + (f", of {there}" if there > cores else ""))


def _store(place: str | Path, online: bool) -> Iterator[Check]:
    """Look at the directory of a store; of one behind an address at its cache, and ask it only where that is wanted."""
    store = open_store(place)
    if store.place == str(store.root):
        yield from _place("store", store.root)
        return
    yield from _place("store's cache", store.root)
    if online:
        began = time.monotonic()
        store.reach(write=True)
        yield Check("store", True, f"{store.place} was written to and read in {time.monotonic() - began:.1f} s")
    else:
        yield Check("store", True, f"{store.place} is not asked; --online asks")


def _place(name: str, place: Path) -> Iterator[Check]:
    """Look at a directory that is written to, or at the nearest one above it: nothing is made that stays."""
    from spo_bench.store.place import check_writable, free_space, nearest, tried

    try:
        check_writable(name, place)
    except InputError as error:
        yield Check(name, False, f"{error.given}; {error.remedy}")
        return
    broken, lacking = tried(nearest(place))
    said = f"; {', '.join(broken)} failed: give another place" if broken else ""
    said += f"; without {', '.join(lacking)}: processes beside each other may make the same twice" if lacking else ""
    yield Check(name, not broken, f"{place}{'' if place.exists() else ' (not there yet)'}{said}")
    free = free_space(place)[1]
    short = "" if free > ENOUGH else f"; less than {_size(ENOUGH)}: make room"
    yield Check("disk" if name == "store" else f"disk of {name}", not short, f"{_size(free)} free{short}")


# --- what is reached over a network -------------------------------------------------------------------------------------------


def _hub(online: bool) -> Iterator[Check]:
    """Ask the hub, only where that is wanted."""
    from huggingface_hub import constants

    mode = "offline mode (HF_HUB_OFFLINE): it is never asked" if constants.HF_HUB_OFFLINE else ""
    if mode or not online:
        yield Check("hub", True, mode or "not asked; --online asks")
        return
    (hub,), began = without_secrets([constants.ENDPOINT]), time.monotonic()
    try:
        with urllib.request.urlopen(f"{constants.ENDPOINT}/api/models?limit=1", timeout=PATIENCE) as answer:  # noqa: S310 - the hub's address  # nosec B310
            answer.read()
    except OSError as error:
        remedy = "check the connection and proxies, or run with --offline and local models and data"
        yield Check("hub", False, f"{hub} cannot be reached ({error}); {remedy}")
        return
    yield Check("hub", True, f"{hub} answered in {time.monotonic() - began:.1f} s")


def _key(name: str) -> Iterator[Check]:
    here = bool(os.environ.get(name, "").strip())
    yield Check("judge key", True, f"{name} is set" if here else f"{name} is not set (only a judge behind an endpoint needs it)")


def _judge(asked: JudgeAsked) -> Iterator[Check]:
    """Ask a judge once, about a pair whose better answer anybody knows."""
    from spo_bench.judging.api import ApiJudge
    from spo_bench.judging.capabilities import address
    from spo_bench.judging.verdict import Question

    began = time.monotonic()
    try:
        where = address(asked.base_url)
        judge = ApiJudge(
            model=asked.model,
            template=TEMPLATE,
            base_url=asked.base_url,
            api_key_env=asked.api_key_env,
            concurrency=1,
            retries=0,
            timeout=PATIENCE,
            max_calls=4,
            orders="one",
        )
        judged = judge.judge([Question("doctor", "What is two and two?", "It is four.", "It is a fish.", {})])
        if judged.stopped is not None:
            raise judged.stopped
    except SpoBenchError as error:
        yield Check("judge", False, f"{asked.model}: {' '.join(str(error).split())}")
        return
    verdict, seconds = judged.verdicts[0], time.monotonic() - began
    told = f"{asked.model} at {where}: {judged.calls} request{'s' if judged.calls != 1 else ''} in {seconds:.1f} s, "
    if verdict.outcome == "invalid":
        yield Check("judge", False, f"{told}no verdict: {verdict.reason}")
    else:
        right = "the right one" if verdict.outcome == "a" else "not the right one"
        yield Check("judge", True, f"{told}verdict {verdict.outcome}, {right}; asked in the form {judged.form}")


# --- what computes ------------------------------------------------------------------------------------------------------------


def _devices() -> Iterator[Check]:
    """Multiply matrices and go back through it on every device."""
    import torch

    yield _computes(torch, "cpu", f"cpu, torch {torch.__version__}, {torch.get_num_threads()} threads")
    fast = _flags() & {"amx_bf16", "avx512_bf16"}
    yield Check("bfloat16 on CPU", True, "in hardware" if fast else "emulated: float32 is faster")
    if not torch.cuda.is_available():
        driver = Path("/dev/nvidia0").exists()
        remedy = "; there is a GPU, which this build of torch cannot use: install one for its CUDA" if driver else ""
        yield Check("CUDA", not driver, f"none{remedy}")
        return
    for place in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(place)
        seen = f"{torch.cuda.get_device_name(place)}, {_size(free)} free of {_size(total)}"
        yield _computes(torch, f"cuda:{place}", seen)
        with torch.cuda.device(place):
            known = torch.cuda.is_bf16_supported(including_emulation=False)
        yield Check(f"bfloat16 on cuda:{place}", True, "in hardware" if known else "not in hardware: set dtype to float32")
    yield _flex()


def _computes(torch: Any, device: str, seen: str) -> Check:
    """Return whether the gradient of sum(A A) for a matrix A of ones is the 2 n it is."""
    name = "device" if device == "cpu" else f"device {device}"
    try:
        ones = torch.ones(64, 64, device=device, requires_grad=True)
        (ones @ ones).sum().backward()
        right = bool((ones.grad == 128).all())
    except Exception as error:  # noqa: BLE001 - of whatever library lies below
        return Check(name, False, f"{seen}; it cannot compute: {(str(error).splitlines() or [''])[0]}")
    return Check(name, right, f"{seen}; {'computes' if right else 'computes wrongly'}")


def _flex() -> Check:
    """Say whether there is what FlexAttention is compiled with; compiling it takes longer than all other checks."""
    lacking = [name for name in ("triton", "torch.nn.attention.flex_attention") if find_spec(name) is None]
    lacking += [] if any(shutil.which(name) for name in ("cc", "gcc", "clang")) else ["a C compiler"]
    remedy = "install it, or set packing: separate" if lacking else ""
    return Check(
        "FlexAttention", not lacking, f"needs {', '.join(lacking)}; {remedy}" if lacking else "can be compiled (not tried)"
    )


def _flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return set()
    found = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return set(found[1].split()) if found else set()


def _size(count: float) -> str:
    return "an unknown amount" if count == float("inf") else f"{count / 2**30:.1f} GiB"
