"""What outlives one run of a judge behind an API: replies that were paid for, and how much was spent."""

from __future__ import annotations

import json
import sqlite3
import time
from math import inf
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from spo_bench.errors import InputError
from spo_bench.files import canonical_json

_TABLES = """
CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS budgets (name TEXT PRIMARY KEY, dollars REAL NOT NULL);
"""


class ReplyStore:
    """Replies by key and spending by budget in one SQLite file, which several processes may use at once.

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

    def reply(self, key: str) -> dict[str, Any] | None:
        """Return the reply kept under a key, if any."""
        row = self._db.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        return json.loads(row[0]) if row else None

    def keep(self, key: str, reply: dict[str, Any]) -> None:
        """Keep a reply; a second one under the same key replaces the first."""
        self._db.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (key, canonical_json(reply)))

    def reserve(self, budget: str, dollars: float, limit: float | None) -> bool:
        """Add an amount to a budget unless that would pass its limit; say whether it was added.

        What is reserved and never settled stays spent: a request that was cut off may have been billed.
        """
        self._db.execute("INSERT OR IGNORE INTO budgets VALUES (?, 0)", (budget,))
        added = self._db.execute(
            "UPDATE budgets SET dollars = dollars + ? WHERE name = ? AND dollars + ? <= ?",
            (dollars, budget, dollars, inf if limit is None else limit),
        )
        return added.rowcount == 1

    def settle(self, budget: str, reserved: float, dollars: float) -> None:
        """Replace a reserved amount by what was paid."""
        self._db.execute("UPDATE budgets SET dollars = dollars + ? WHERE name = ?", (dollars - reserved, budget))

    def spent(self, budget: str) -> float:
        """Return what a budget was charged with, in dollars, reservations included."""
        row = self._db.execute("SELECT dollars FROM budgets WHERE name = ?", (budget,)).fetchone()
        return float(row[0]) if row else 0.0
