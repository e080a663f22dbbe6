"""Nightly regression: a run judged by a reference as worse, fine, undecided, not comparable or missing.

The names below are loaded when first used: the package itself is light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .judge import gate as gate
    from .output import junit as junit
    from .output import markdown as markdown
    from .reference import Accepted as Accepted
    from .reference import accept as accept
    from .verdict import Verdict as Verdict

_HOMES = {
    "Accepted": "reference",
    "Verdict": "verdict",
    "accept": "reference",
    "gate": "judge",
    "junit": "output",
    "markdown": "output",
}

__all__ = ["Accepted", "Verdict", "accept", "gate", "junit", "markdown"]


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
