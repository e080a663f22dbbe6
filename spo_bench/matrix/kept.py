"""Methods that remember what they returned, so that a plan holds one object, and makes one key, for one stage."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

Given = ParamSpec("Given")
Made = TypeVar("Made")


def kept(method: Callable[Concatenate[Any, Given], Made]) -> Callable[Concatenate[Any, Given], Made]:
    """Make a method return the same object for the same arguments, as long as its own object lives.

    Arguments must be hashable, and what is returned is shared: callers do not change it.
    """
    name = f"_kept_{method.__name__}"

    @wraps(method)
    def remembering(self: Any, /, *args: Given.args, **kwargs: Given.kwargs) -> Made:
        known: dict[Any, Made] = vars(self).setdefault(name, {})
        key = (args, *sorted(kwargs.items()))
        if key not in known:
            known[key] = method(self, *args, **kwargs)
        return known[key]

    return remembering
