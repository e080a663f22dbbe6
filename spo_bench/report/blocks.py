"""Data inside a page: compressed, and unpacked by the browser only when it is asked for."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

LONGEST = 4000
"""Characters of a text that a page holds; what is beyond stays in the run's files."""


@dataclass(frozen=True)
class Block:
    """One packed value: the id of its element, and base64 of gzip of JSON, which no text within can break out of."""

    id: str
    data: str


def pack(name: str, value: Any) -> Block:
    """Pack a JSON value; the same value gives the same bytes. Raises ValueError for NaN."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)  # ASCII only, so half a surrogate pair is no fault
    return Block(name, base64.b64encode(gzip.compress(text.encode("ascii"), 6, mtime=0)).decode("ascii"))


def texts(column: Sequence[str], longest: int = LONGEST) -> dict[str, Any]:
    """Return a column of texts as the page keeps it: the texts, and how many characters of which were cut off."""
    more = {str(i): len(text) - longest for i, text in enumerate(column) if len(text) > longest}
    return {"text": [text[:longest] for text in column], **({"more": more} if more else {})}
