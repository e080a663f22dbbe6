"""spo-bench store: what is in the store, whether it is as it was made, and what of it no run needs."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from spo_bench.cli.common import Group, Json, StoreDir, Terminal, cell, print_json, say

if TYPE_CHECKING:
    from spo_bench.store.artifacts import Store
    from spo_bench.store.clearing import Cleared
    from spo_bench.store.inventory import Entry, Inventory

MOST_LINES = 2000  # things listed one by one; of more, kinds are counted
EVERY = 10.0  # seconds between two lines of progress where stderr is no terminal

store_app = typer.Typer(
    cls=Group,
    help="The store of artifacts: what is in it, whether it is as it was made, and what of it no run needs.",
    no_args_is_help=True,
    epilog="Example: spo-bench store gc --dry-run",
)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(store_app, name="store")


def _store(place: str | None) -> Store:
    from spo_bench.api import default_store
    from spo_bench.store.opening import open_store

    store = open_store(place or default_store())
    store.reach()
    return store


@store_app.command("ls", epilog="Example: spo-bench store ls --kind train")
def ls(
    store: StoreDir = None,
    kind: Annotated[str | None, typer.Option("--kind", help="List every entry of this kind.")] = None,
    json: Json = False,
) -> None:
    """List what the store holds: entries by kind, the runs that claim them, and what is left of runs that were stopped.

    Damage is looked for at a glance, by the sizes of files; `spo-bench store verify` reads them.
    """
    from spo_bench.store.opening import look

    found = look(_store(store), kind)
    faults = {one.name: fault for one in found.entries if (fault := one.fault())}
    if json:
        print_json(_record(found, faults, every=kind is not None))
        return
    console = Terminal()
    if kind is not None:
        table = _table("key", "size", "age", "runs", "state")
        for one in found.entries:
            state = "of an older version" if one.older else f"damaged: {faults[one.name]}" if one.name in faults else ""
            _row(table, one.key, amount(one.bytes), age(one.made), len(found.claimed.get(one.name, ())), state)
        console.print(table)
        return
    table = _table("kind", "entries", "size", "age", "claimed", "runs", "damaged", "older")
    for each, entries in _by_kind(found).items():
        numbers = _numbers(entries, found, faults)
        ages = "–".join(dict.fromkeys(age(numbers[which]) for which in ("newest", "oldest")))
        counts = (numbers["claimed"], numbers["runs"], numbers["damaged"] or "", numbers["older"] or "")
        _row(table, each, numbers["entries"], amount(numbers["bytes"]), ages, *counts)
    console.print(table)
    if older := sum(one.older for one in found.entries):
        console.say(f"older: {older} entries of an older version, without checksums; no run uses them")
    for line in _beside(found):
        console.say(line)
    for name, fault in faults.items():
        console.say(f"damaged: {'/'.join(name)}: {fault}")


def _by_kind(found: Inventory) -> dict[str, list[Entry]]:
    kinds: dict[str, list[Entry]] = defaultdict(list)
    for one in found.entries:
        kinds[one.kind].append(one)
    return kinds


def _numbers(entries: list[Entry], found: Inventory, faults: dict[tuple[str, str], str]) -> dict[str, Any]:
    claims = [found.claimed.get(one.name, []) for one in entries]
    made = [one.made for one in entries]
    return {
        "entries": len(entries),
        "bytes": sum(one.bytes for one in entries),
        "newest": max(made),
        "oldest": min(made),
        "claimed": sum(map(bool, claims)),
        "runs": len({claim.path for some in claims for claim in some}),
        "damaged": sum(one.name in faults for one in entries),
        "older": sum(one.older for one in entries),
    }


def _record(found: Inventory, faults: dict[tuple[str, str], str], every: bool) -> dict[str, Any]:
    """Return what ``ls --json`` prints."""
    record: dict[str, Any] = {
        "store": found.place,
        "kinds": {name: _numbers(entries, found, faults) for name, entries in _by_kind(found).items()},
        "unfinished": [{"path": str(one.path), "bytes": one.bytes, "left": one.left} for one in found.parts],
        "checkpoints": [{"kind": one.kind, "key": one.key, "bytes": one.bytes} for one in found.checkpoints],
        "failures": [{"kind": one.kind, "key": one.key} for one in found.failures],
        "runs": [
            {"out": str(one.out), "stands": one.stands, "entries": sum(map(len, one.keys.values()))} for one in found.claims
        ],
        "unread": {str(path): why for path, why in found.unread.items()},
        "judge": {path.name: path.stat().st_size for path in found.databases},
        "damaged": {"/".join(name): fault for name, fault in faults.items()},
    }
    if every:
        record["entries"] = [
            {
                "kind": one.kind,
                "key": one.key,
                "bytes": one.bytes,
                "made": one.made,
                "runs": [str(claim.out) for claim in found.claimed.get(one.name, ())],
                "older": one.older,
                "damaged": faults.get(one.name),
            }
            for one in found.entries
        ]
    return record


def _beside(found: Inventory) -> list[str]:
    """Return what there is beside the entries, a line each."""
    from spo_bench.store.inventory import size

    lines = [f"store: {found.place}"]
    if found.parts:
        left = sum(one.left for one in found.parts)
        total = amount(sum(one.bytes for one in found.parts))
        lines.append(f"unfinished: {len(found.parts)}, {total}; of {left} the owner is dead")
    if found.checkpoints:
        lines.append(f"checkpoints: {len(found.checkpoints)}, {amount(sum(one.bytes for one in found.checkpoints))}")
    if found.failures:
        lines.append(f"remembered failures: {len(found.failures)}")
    for claim in found.claims:
        lost = "" if claim.stands else "; it is not where it was"
        lines.append(f"run: {claim.out} claims {sum(map(len, claim.keys.values()))}{lost}")
    lines += [f"damaged: {path}: {why}" for path, why in found.unread.items()]
    lines += [f"replies of judges: {path.name}, {amount(size(path))}" for path in found.databases]
    return lines


@store_app.command("verify", epilog="Example: spo-bench store verify --store /data/store")
def verify(
    store: StoreDir = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove what is damaged and can be made again.")] = False,
    json: Json = False,
) -> None:
    """Read every file of the store and hold it against its checksum; exit code 1: something is damaged.

    What is damaged is made again by the next run that needs it, whether it is removed now or not. Entries of an older version
    have no checksums: they are counted, and no run uses them.
    """
    from spo_bench.store import health
    from spo_bench.store.opening import look

    place, console = _store(store), Terminal(stderr=True)
    found = look(place)
    with _Progress(console) as progress:
        faults = health.verify(place, found, progress.tell)
    removed, busy = health.remove(place, faults) if remove else ([], [])
    older = sum(one.older for one in found.entries)
    if json:
        listed = [{**_fault(one), "removed": one in removed} for one in faults]
        print_json({"store": found.place, "entries": len(found.entries), "older": older, "damaged": listed})
    else:
        for one in faults:
            told = "; removed" if one in removed else "; another process is using it" if one in busy else ""
            used = f"; used by {', '.join(one.runs)}" if one.runs else ""
            say(f"damaged: {one.name}: {one.why}{used}{told}")
        say(f"{len(found.entries) - older} entries read, {len({one.name for one in faults})} damaged")
        if older:
            say(f"{older} entries of an older version have no checksums: no run uses them, `spo-bench store gc` removes them")
        for text in _remedies({one.what for one in faults if one not in removed}):
            say(text)
    if faults:
        raise typer.Exit(1)


def _fault(one: Any) -> dict[str, Any]:
    return {"what": one.what, "name": one.name, "why": one.why, "runs": list(one.runs)}


def _remedies(damaged: set[str]) -> list[str]:
    """Return what to do about what is damaged."""
    said = []
    if damaged - {"claim", "database"}:
        said.append("the next run that needs it makes it again; --remove removes it now")
    if "claim" in damaged:
        said.append("a claim is made again by its run: run the same command again, or delete it where the run is not needed")
    if "database" in damaged:
        said.append("replies that were paid for are never removed: copy the file, and move it away to go on without them")
    return said


@store_app.command("fetch", epilog="Example: spo-bench store fetch results/study --store s3://bucket/prefix")
def fetch(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run's directory.")],
    store: StoreDir = None,
) -> None:
    """Bring the weights of a run's policies to this machine, from a store behind an address."""
    from spo_bench.errors import InputError
    from spo_bench.store.inventory import linked

    found = sorted(set(linked(run)))
    if not found:
        raise InputError(f"'{run}' has no policies", "a run's cells link to the policies they trained", "check the path")
    place = _store(store)
    for kind, key in found:
        say(str(place.fetch(kind, key) / "policy"))


@store_app.command("gc", epilog="Example: spo-bench store gc --dry-run")
def gc(
    store: StoreDir = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be removed, with sizes.")] = False,
    forget_missing: Annotated[
        bool,
        typer.Option("--forget-missing", help="Runs that are not where they were lose their claims: see --dry-run for which."),
    ] = False,
    keep: Annotated[
        list[Path] | None,
        typer.Option("--keep", metavar="RUN", help="The directory of a run of an older version; its policies stay (repeatable)."),
    ] = None,
    json: Json = False,
) -> None:
    """Remove what no run refers to: entries, what dead processes left, checkpoints of finished stages, entries of older versions.

    A run refers to all of its stages as long as its directory is there, and is safe while it is under way. One that was moved or
    is on a disk that is not there keeps its claim. Replies of judges that were paid for always stay.
    """
    from spo_bench.errors import InputError
    from spo_bench.store.clearing import clear

    for run in keep or []:
        if not (run / "cells").is_dir():
            raise InputError(f"--keep '{run}' is no run", "a run's directory has a folder cells", "check the path")
    done = clear(_store(store), not dry_run, forget_missing, keep or [])
    if json:
        print_json(
            {
                "dry_run": dry_run,
                "bytes": done.bytes,
                "removed": [_rubbish(one) for one in done.removed],
                "busy": [_rubbish(one) for one in done.busy],
                "missing": [{"out": str(c.out), "entries": entries, "bytes": size} for c, entries, size in done.missing],
            }
        )
        return
    _show(done, dry_run)


def _rubbish(one: Any) -> dict[str, Any]:
    return {"what": one.what, "path": str(one.path), "why": one.why, "bytes": one.bytes}


def _show(done: Cleared, dry_run: bool) -> None:
    """Print what clearing came to."""
    console = Terminal()
    if dry_run and len(done.removed) <= MOST_LINES:
        for one in done.removed:
            console.say(f"{amount(one.bytes):>11}  {one.what} {'/'.join(one.path.parts[-2:])}: {one.why}")
    elif done.removed:
        groups: dict[tuple[str, str], list[int]] = defaultdict(list)
        for one in done.removed:
            groups[f"{one.what} {one.kind}".strip(), one.why].append(one.bytes)
        table = _table("what", "number", "size", "why")
        for (what, why), sizes in groups.items():
            _row(table, what, len(sizes), amount(sum(sizes)), why)
        console.print(table)
    for one in done.busy:
        console.say(f"left, another process is using it: {one.what} {one.path}")
    for claim, entries, size in done.missing:
        only = f"; {entries} entries, {amount(size)}, are needed by no other run" if entries else ""
        console.say(f"kept: the run in {claim.out} is not where it was{only}; --forget-missing removes its claim")
    said = "would be removed" if dry_run else "removed"
    console.say(f"{said}: {len(done.removed)}, {amount(done.bytes)}")


class _Progress:
    """How much has been read, on stderr: a line that is overwritten on a terminal, one every ten seconds elsewhere."""

    def __init__(self, console: Terminal) -> None:
        self.console, self.last = console, time.monotonic()

    def __enter__(self) -> _Progress:
        self.status = self.console.status("reading") if self.console.is_terminal else None
        if self.status is not None:
            self.status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.status is not None:
            self.status.stop()

    def tell(self, done: int, total: int) -> None:
        """Show that so many bytes of so many have been read."""
        text = f"read {amount(done)} of {amount(total)}"
        if self.status is not None:
            self.status.update(text)
        elif time.monotonic() - self.last > EVERY:
            self.last = time.monotonic()
            self.console.say(text)


def amount(number: float) -> str:
    """Return bytes as "912 B", "1.2 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024 or unit == "GiB":
            break
        number /= 1024
    return f"{number:,.0f} {unit}" if unit == "B" else f"{number:,.1f} {unit}"


def age(moment: float) -> str:
    """Return how long ago a moment was, as "5 min", "3 h", "2 d"."""
    seconds = max(0.0, time.time() - moment)
    for unit, long in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= long:
            return f"{seconds / long:.0f} {unit}"
    return f"{seconds:.0f} s"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        number = column in ("entries", "size", "claimed", "runs", "damaged", "older", "number")
        table.add_column(column, overflow="fold", no_wrap=column == "age", justify="right" if number else "left")
    return table


def _row(table: Table, *values: object) -> None:
    table.add_row(*map(cell, values))
