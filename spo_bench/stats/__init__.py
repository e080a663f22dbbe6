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
    from .margin import Drift as Drift
    from .margin import as_family as as_family
    from .margin import non_inferiority as non_inferiority
    from .paired import Comparison as Comparison
    from .paired import compare_matrix as compare_matrix
    from .paired import holm as holm
    from .paired import seed_spread as seed_spread
    from .power import Power as Power
    from .power import power_matrix as power_matrix
    from .ranking import Games as Games
    from .ranking import Strength as Strength
    from .ranking import bradley_terry as bradley_terry
    from .resample import interval as interval
    from .resample import intervals as intervals

_HOMES = {
    "Comparison": "paired",
    "Drift": "margin",
    "Games": "ranking",
    "LengthControlled": "length_control",
    "Power": "power",
    "Strength": "ranking",
    "align": "ids",
    "as_family": "margin",
    "bradley_terry": "ranking",
    "compare_matrix": "paired",
    "holm": "paired",
    "interval": "resample",
    "intervals": "resample",
    "length_controlled": "length_control",
    "non_inferiority": "margin",
    "power_matrix": "power",
    "seed_spread": "paired",
}

__all__ = [
    "Comparison",
    "Drift",
    "Games",
    "LengthControlled",
    "Power",
    "Strength",
    "align",
    "as_family",
    "bradley_terry",
    "compare_matrix",
    "holm",
    "interval",
    "intervals",
    "length_controlled",
    "non_inferiority",
    "power_matrix",
    "seed_spread",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
