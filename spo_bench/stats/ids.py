"""Put two sets of prompts into one order, and say loudly when they are not the same prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from spo_bench.errors import InputError


def align(ids_a: Sequence[str], ids_b: Sequence[str]) -> list[int]:
    """Return, for each id of a, its place in b: ``[b[i] for i in align(a, b)]`` is in the order of a.

    Raises InputError naming ids when an id occurs twice on one side, or on one side only: a comparison over silently
    dropped prompts is a comparison of something else.
    """
    for side, ids in (("first", ids_a), ("second", ids_b)):
        twice = [name for name, times in Counter(ids).items() if times > 1]
        if twice:
            raise InputError(
                f"{_some(twice)} more than once in the {side} set of prompts",
                "an id stands for one prompt",
                "give every prompt its own id",
            )
    place = {name: i for i, name in enumerate(ids_b)}
    missing = [name for name in ids_a if name not in place]
    known = set(ids_a)
    extra = [name for name in ids_b if name not in known]
    if missing or extra:
        parts = [f"{_some(missing)} only in the first set"] if missing else []
        parts += [f"{_some(extra)} only in the second set"] if extra else []
        raise InputError(
            " and ".join(parts),
            "paired comparisons need the same prompts on both sides",
            "evaluate both cells on the same split, limit and seed of the data",
        )
    return [place[name] for name in ids_a]


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{'id' if len(names) == 1 else 'ids'} {shown}{more}"
