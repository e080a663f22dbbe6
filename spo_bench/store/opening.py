"""Which store a name means: a directory, or an address."""

from __future__ import annotations

from pathlib import Path

from spo_bench.store.artifacts import Store
from spo_bench.store.bucket import URL


def open_store(place: str | Path) -> Store:
    """Return the store at a path, or behind an fsspec URL as s3://bucket/prefix.

    Raises:
        InputError: an address with credentials, or without a bucket.
    """
    if isinstance(place, str) and URL.match(place):
        from spo_bench.store.remote import RemoteStore

        return RemoteStore(place)
    return Store(Path(place))
