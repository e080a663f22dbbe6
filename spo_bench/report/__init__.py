"""Tables, figures and a page from a finished run. The names below are loaded when first used: the package itself is light."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .mark import is_current as is_current
    from .render import FORMATS as FORMATS
    from .write import TABLES as TABLES
    from .write import check_table as check_table
    from .write import rebuild as rebuild
    from .write import table as table
    from .write import write_report as write_report

_HOMES = {
    "FORMATS": "render",
    "TABLES": "write",
    "check_table": "write",
    "is_current": "mark",
    "rebuild": "write",
    "table": "write",
    "write_report": "write",
}

__all__ = ["FORMATS", "TABLES", "check_table", "is_current", "rebuild", "table", "write_report"]


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
