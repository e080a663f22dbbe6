"""Where a number comes from: code, packages, hardware, command."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import spo_bench

PACKAGES = ("torch", "transformers", "peft", "tokenizers", "datasets", "numpy", "scipy", "statsmodels", "evaluate", "rouge-score")

_ACCOUNT = re.compile(r"(?<=://)[^/@\s]+@")
_SET = re.compile(r"(?i)((?:key|token|password|secret)=)[^&\s]+")
_COMMAND = ("spo-bench", "main.py", "__main__.py")


def provenance() -> Mapping[str, Any]:
    """Return what was running: version, git commit and whether the tree was dirty, packages, hardware, command."""
    return {
        "spo_bench": spo_bench.__version__,
        "git": _git(Path(spo_bench.__file__).parent),
        "python": platform.python_version(),
        "packages": packages(),
        "hardware": {
            "machine": platform.machine(),
            "system": platform.platform(),
            "processor": processor(),
            "cores": os.cpu_count(),
        },
        "command": shlex.join(["spo-bench", *without_secrets(sys.argv[1:])]) if Path(sys.argv[0]).name in _COMMAND else "python",
    }


def without_secrets(words: Sequence[str]) -> list[str]:
    """Return the words of a command without what may be a key: an account in an address, and what a key, token, password or
    secret is set to.
    """
    return [_ACCOUNT.sub("[hidden]@", _SET.sub(r"\1[hidden]", word)) for word in words]


def packages() -> dict[str, str | None]:
    """Return the versions of the packages that numbers and pictures depend on; None for one that is not installed."""
    return {name: _version(name) for name in PACKAGES}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def processor() -> str:
    """Return the name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()


def _git(directory: Path) -> Mapping[str, Any] | None:
    """Return commit and dirty flag of the checkout the package lies in, None for an installed package."""
    if not (directory.parent / ".git").exists():
        return None
    try:
        commit = _run("rev-parse", "HEAD", directory=directory)
        return {"commit": commit, "dirty": bool(_run("status", "--porcelain", directory=directory))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _run(*words: str, directory: Path) -> str:
    done = subprocess.run(["git", *words], cwd=directory, capture_output=True, text=True, check=True)  # noqa: S603, S607 - fixed words  # nosec B603, B607
    return done.stdout.strip()
