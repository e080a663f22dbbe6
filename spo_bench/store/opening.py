"""Which store a name means, a directory or an address, and what is in it."""

from __future__ import annotations

from pathlib import Path

from spo_bench.store.artifacts import Store
from spo_bench.store.bucket import URL
from spo_bench.store.inventory import Inventory, look_here


def open_store(place: str | Path) -> Store:
    """Return the store at a path, or behind an fsspec URL as s3://bucket/prefix.

    Raises:
        InputError: an address with credentials, or without a bucket.
    """
    if isinstance(place, str) and URL.match(place):
        from spo_bench.store.remote import RemoteStore

        return RemoteStore(place)
    return Store(Path(place))


def look(store: Store, kind: str | None = None) -> Inventory:
    """Return what is in a store, of one kind or of all.

    Raises:
        InputError: there is no store, or nothing of that kind in it.
    """
    from spo_bench.store.remote import RemoteStore
    from spo_bench.store.remote_inventory import look_behind

    return look_behind(store, kind) if isinstance(store, RemoteStore) else look_here(store, kind)
