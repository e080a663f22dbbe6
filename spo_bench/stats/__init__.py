"""Intervals and paired tests: the unit is the prompt, prompts are crossed with seeds, and a family is corrected together.

The names below are loaded when first used, so that importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .ids import align as align
    from .length_control import LengthControlled as LengthControlled
    from .length_control import length_controlled as length_controlled
    from .paired import Comparison as Comparison
    from .paired import compare_matrix as compare_matrix
    from .paired import seed_spread as seed_spread
    from .resample import interval as interval
    from .resample import intervals as intervals

_HOMES = {
    "Comparison": "paired",
    "LengthControlled": "length_control",
    "align": "ids",
    "compare_matrix": "paired",
    "interval": "resample",
    "intervals": "resample",
    "length_controlled": "length_control",
    "seed_spread": "paired",
}

__all__ = ["Comparison", "LengthControlled", "align", "compare_matrix", "interval", "intervals", "length_controlled", "seed_spread"]


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
