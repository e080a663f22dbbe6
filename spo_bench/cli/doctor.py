"""spo-bench doctor: is this machine ready."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import typer

from spo_bench.cli.common import Json, StoreDir, print_json

Check = tuple[str, bool, str]  # what, whether it is well, what was seen
PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "datasets",
    "evaluate",
    "openai",
    "scipy",
    "statsmodels",
    "matplotlib",
    "rouge-score",
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog="Example: spo-bench doctor --json")(doctor)


def doctor(store: StoreDir = None, json: Json = False) -> None:
    """Say whether this machine is ready: versions, device, memory, disk, store, judge key, optional programs."""
    from spo_bench.api import default_store

    checks = list(examine(store or default_store()))
    if json:
        print_json([{"check": name, "ok": ok, "seen": seen} for name, ok, seen in checks])
    else:
        for name, ok, seen in checks:
            typer.echo(f"{'ok  ' if ok else 'FAIL'} {name}: {seen}")
    if not all(ok for _, ok, _ in checks):
        raise typer.Exit(1)


def examine(store: Path) -> Iterator[Check]:
    """Yield every check; optional things that are absent are well, and said."""
    for package in PACKAGES:
        try:
            yield package, True, version(package)
        except PackageNotFoundError:
            yield package, False, "not installed: pip install spo-bench"
    import torch

    yield "device", True, f"cuda: {torch.cuda.get_device_name()}" if torch.cuda.is_available() else f"cpu, {os.cpu_count()} cores"
    yield "bfloat16 on CPU", True, "in hardware" if _flags() & {"amx_bf16", "avx512_bf16"} else "emulated: float32 is faster"
    memory = _memory()
    yield "memory", memory > 2e9, f"{memory / 1e9:.1f} GB available"
    yield from _store_checks(store)
    yield (
        "judge key",
        True,
        "OPENAI_API_KEY is set" if os.environ.get("OPENAI_API_KEY") else "OPENAI_API_KEY is not set (only an API judge needs it)",
    )
    for program, purpose in (
        ("pdflatex", "LaTeX tables are compiled in tests"),
        ("chromium", "the report is looked at in tests"),
    ):
        yield program, True, shutil.which(program) or f"not installed (optional: {purpose})"


def _store_checks(store: Path) -> Iterator[Check]:
    existing = next(folder for folder in (store.absolute(), *store.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    yield "store", os.access(existing, os.W_OK), f"{store} ({'writable' if os.access(existing, os.W_OK) else 'not writable'})"
    yield "disk", free > 2e9, f"{free / 1e9:.0f} GB free for the store"


def _flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")), set())


def _memory() -> float:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return float("inf")
