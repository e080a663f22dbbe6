"""What outlives one run of a judge: replies that were paid for, how much was spent, and what was learned about an endpoint."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from spo_bench.errors import InputError
from spo_bench.files import canonical_json

_TABLES = """
CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS purses (name TEXT PRIMARY KEY, dollars REAL NOT NULL, calls INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS learned (judge TEXT PRIMARY KEY, facts TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS sent (key TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS got (name TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS elsewhere
    (name TEXT, machine TEXT, dollars REAL NOT NULL, calls INTEGER NOT NULL, PRIMARY KEY (name, machine));
"""
FILE = "judge.sqlite"
"""Its name in an artifact store."""

_AT_ONCE = 500  # keys in one query; SQLite takes some thousands


@dataclass(frozen=True)
class Spent:
    """What was taken out of a purse: US dollars and requests, those under way included."""

    dollars: float = 0.0
    calls: int = 0


class ReplyStore:
    """Replies by key, spending by purse and facts by judge in one SQLite file, which several processes may use at once.

    Args:
        path: the file; made where it is absent. None: kept in memory only.

    Raises:
        InputError: the file cannot be opened, or is something else.
    """

    def __init__(self, path: Path | None) -> None:
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path or ":memory:", timeout=60, isolation_level=None)  # every statement commits
            self._write_ahead()
            self._db.executescript(_TABLES)
            self._opened: set[str] = set()  # purses that are there
        except (OSError, sqlite3.Error) as error:
            raise InputError(
                f"judge cache {path}: {error}",
                "the judge cache is an SQLite file in a directory that can be written to",
                "move what is there away, or name another place",
            ) from error

    def _write_ahead(self) -> None:
        """Switch the file to a write-ahead log, where a commit need not wait for the disk (else some 20 ms each)."""
        for patience in range(200, -1, -1):
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                break
            except sqlite3.OperationalError as error:
                # The switch does not wait, as other statements do, for a process that is opening the file too.
                if "locked" not in str(error) or not patience:
                    raise
                time.sleep(0.05)
        self._db.execute("PRAGMA synchronous=NORMAL")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._db.close()

    def replies(self, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return the kept replies among some keys."""
        found: dict[str, dict[str, Any]] = {}
        for start in range(0, len(keys), _AT_ONCE):
            part = keys[start : start + _AT_ONCE]
            marks = ",".join("?" * len(part))
            rows = self._db.execute(f"SELECT key, reply FROM replies WHERE key IN ({marks})", part)  # noqa: S608 - question marks  # nosec B608
            found.update((key, json.loads(reply)) for key, reply in rows)
        return found

    def keep(self, key: str, reply: Mapping[str, Any], replace: bool = True) -> None:
        """Keep a reply; one that is there under the same key is replaced, or stays."""
        words = "INSERT OR REPLACE INTO replies VALUES (?, ?)" if replace else "INSERT OR IGNORE INTO replies VALUES (?, ?)"
        self._db.execute(words, (key, canonical_json(reply)))
        self._db.execute("DELETE FROM sent WHERE key = ?", (key,))

    def keep_all(self, replies: Mapping[str, Mapping[str, Any]]) -> None:
        """Keep some replies together: all of them or none."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for key, reply in replies.items():
                self.keep(key, reply)
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def reserve(self, purse: str, dollars: float, max_dollars: float | None, max_calls: int | None) -> bool:
        """Take an amount and one call out of a purse unless that would pass a limit; say whether it was taken.

        What is reserved and never settled stays spent: a request that was cut off may have been billed.
        """
        if purse not in self._opened:
            self._db.execute("INSERT OR IGNORE INTO purses VALUES (?, 0, 0)", (purse,))
            self._opened.add(purse)
        there = self._elsewhere(purse)
        taken = self._db.execute(
            "UPDATE purses SET dollars = dollars + ?, calls = calls + 1 WHERE name = ? AND dollars + ? <= ? AND calls < ?",
            (
                dollars,
                purse,
                dollars + there.dollars,
                inf if max_dollars is None else max_dollars,
                inf if max_calls is None else max_calls - there.calls,
            ),
        )
        return taken.rowcount == 1

    def settle(self, purse: str, reserved: float, dollars: float) -> None:
        """Replace a reserved amount by what was paid."""
        if reserved != dollars:
            self._db.execute("UPDATE purses SET dollars = dollars + ? WHERE name = ?", (dollars - reserved, purse))

    def spent(self, purse: str) -> Spent:
        """Return what was taken out of a purse, reservations included; on other machines too, as far as is known here."""
        row = self._db.execute("SELECT dollars, calls FROM purses WHERE name = ?", (purse,)).fetchone()
        there = self._elsewhere(purse)
        return Spent(float(row[0]) + there.dollars, int(row[1]) + there.calls) if row else there

    def _elsewhere(self, purse: str) -> Spent:
        words = "SELECT COALESCE(SUM(dollars), 0.0), COALESCE(SUM(calls), 0) FROM elsewhere WHERE name = ?"
        row = self._db.execute(words, (purse,)).fetchone()
        return Spent(float(row[0]), int(row[1]))

    # What machines that share a store behind an address tell each other (``sharing``).

    def unsent(self, most: int) -> dict[str, dict[str, Any]]:
        """Return replies that were kept here and not sent yet."""
        words = "SELECT key, reply FROM replies WHERE key NOT IN (SELECT key FROM sent) LIMIT ?"
        return {key: json.loads(reply) for key, reply in self._db.execute(words, (most,))}

    def sent(self, keys: Iterable[str], name: str) -> None:
        """Note that replies were sent under a name."""
        self._together([("INSERT OR IGNORE INTO sent VALUES (?)", (key,)) for key in keys], name)

    def get(self, replies: Mapping[str, Mapping[str, Any]], name: str) -> None:
        """Keep replies that were sent under a name; those that are there stay."""
        kept = [("INSERT OR IGNORE INTO replies VALUES (?, ?)", (key, canonical_json(reply))) for key, reply in replies.items()]
        self._together([*kept, *(("INSERT OR IGNORE INTO sent VALUES (?)", (key,)) for key in replies)], name)

    def has_got(self, name: str) -> bool:
        """Say whether what was sent under a name is here."""
        return self._db.execute("SELECT 1 FROM got WHERE name = ?", (name,)).fetchone() is not None

    def _together(self, statements: Sequence[tuple[str, tuple[str, ...]]], name: str) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for words, values in statements:
                self._db.execute(words, values)
            self._db.execute("INSERT OR IGNORE INTO got VALUES (?)", (name,))
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def own_purses(self) -> dict[str, Spent]:
        """Return what was taken out of every purse on this machine."""
        rows = self._db.execute("SELECT name, dollars, calls FROM purses")
        return {name: Spent(float(dollars), int(calls)) for name, dollars, calls in rows}

    def told(self, purse: str, machine: str, spent: Spent) -> None:
        """Note what another machine has taken out of a purse."""
        self._db.execute("INSERT OR REPLACE INTO elsewhere VALUES (?, ?, ?, ?)", (purse, machine, spent.dollars, spent.calls))

    def learned(self, judge: str) -> dict[str, Any]:
        """Return what is known of an endpoint's model from earlier requests; empty where there were none."""
        row = self._db.execute("SELECT facts FROM learned WHERE judge = ?", (judge,)).fetchone()
        facts: dict[str, Any] = json.loads(row[0]) if row else {}
        return facts

    def learn(self, judge: str, facts: Mapping[str, Any]) -> None:
        """Keep what is known of an endpoint's model, in place of what was known before."""
        self._db.execute("INSERT OR REPLACE INTO learned VALUES (?, ?)", (judge, canonical_json(facts)))


def spent_from(path: Path, purse: str) -> Spent:
    """Return what was taken out of a purse of a file that may not be there."""
    if not path.is_file():
        return Spent()
    with ReplyStore(path) as store:
        return store.spent(purse)
