"""What a table is: entries, columns, rows in blocks, and a caption. How it looks in a format is not known here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Literal

Mark = Literal["", "best", "second"]
Bold = Literal["best", "undominated"]
MISSING = "--"
DETAILS = ("low", "high", "p", "p_adjusted", "n", "source")
"""What csv and json hold beside a value."""


@dataclass(frozen=True)
class Entry:
    """One place of a table.

    Attributes:
        value: the number or text itself; None = missing.
        text: how it is shown, rounded; empty = nothing to say here (unlike a missing value).
        small: what follows in small type: ±, intervals, where a setting comes from.
        low, high, p, p_adjusted, n: what is known about the value, at full precision.
        source: where the value comes from, in words.
        mark: "best" or "second" of its block.
        significant: whether the adjusted p is below the level; shown as a dagger.
    """

    value: float | str | None = None
    text: str = MISSING
    small: str = ""
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_adjusted: float | None = None
    n: int | None = None
    source: str | None = None
    mark: Mark = ""
    significant: bool = False


@dataclass(frozen=True)
class Column:
    """A column: its key in csv and json, its title, its group (a header above several), and its good direction.

    Attributes:
        fold: where all entries that are not empty say the same, the column moves into the caption. A text column does so
            where really all of its entries say the same.
        said: what a folded column is called in the caption; its title where this is empty.
        whose: which rows a folded column speaks of, where these are not all.
        once: a name that repeats from row to row of a block is shown at the first of them only, as far as the columns
            before it that are shown once repeat too. csv and json keep every name.
    """

    key: str
    title: str
    group: str = ""
    direction: Literal["", "up", "down"] = ""
    numeric: bool = True
    fold: bool = False
    said: str = ""
    whose: str = ""
    once: bool = False

    @property
    def path(self) -> str:
        """Return the key with its group: unique in a table."""
        return f"{self.group}:{self.key}" if self.group else self.key

    @property
    def arrow(self) -> str:
        """Return the arrow of the good direction."""
        return {"": "", "up": " ↑", "down": " ↓"}[self.direction]


@dataclass(frozen=True)
class Table:
    """A table: every row has one entry a column; rows of one block stand together between rules.

    Columns fold into the caption where there are at least ``fold_from`` rows. ``bold`` says what a bold entry means. ``short``
    are the sentences of the caption that a paper's caption needs; there the others stand below the table.
    """

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Entry]]
    blocks: Sequence[str] = field(default_factory=tuple)
    caption: Sequence[str] = field(default_factory=tuple)
    fold_from: int = 2
    bold: Bold = "best"
    short: Sequence[str] = field(default_factory=tuple)

    def visible(self) -> list[int]:
        """Return the columns worth showing: those that do not fold into the caption."""
        return [i for i in range(len(self.columns)) if self.folded(i) is None]

    def folded(self, i: int) -> Entry | None:
        """Return what a column that folds says, an empty entry where that is nothing; None for a column to show."""
        column = self.columns[i]
        if (column.numeric and not column.fold) or len(self.rows) < self.fold_from:
            return None
        said = {(row[i].text, row[i].source): row[i] for row in self.rows if row[i].text or not column.fold}
        return None if len(said) > 1 else next(iter(said.values()), Entry(text=""))

    def notes(self) -> list[str]:
        """Return the caption's sentences, with what the folded columns say first: texts one by one, settings by group."""
        texts: list[str] = []
        settings: dict[str, list[str]] = {}
        for i, column in enumerate(self.columns):
            entry = self.folded(i)
            if entry is None or not entry.text:
                continue
            name = column.said or column.title
            if column.fold:
                source = f" ({entry.source})" if entry.source else ""
                group = column.group or "In all rows"
                whose = f"{group} ({column.whose})" if column.whose else group
                settings.setdefault(whose, []).append(f"{name} {entry.text}{source}")
            else:
                texts.append(f"{name}: {entry.text}.")
        return [*texts, *(f"{group}: {', '.join(some)}." for group, some in settings.items()), *self.caption]

    def legend(self, second: str) -> list[str]:
        """Return the sentence on what is marked; ``second`` says how the second best is. None where nothing is marked."""
        if not any(entry.mark for row in self.rows for entry in row):
            return []
        if self.bold == "undominated":
            return [
                "Bold: not significantly worse than the best of its block (paired on the same prompts and seeds, Holm’s "
                "correction within block and metric); what could not be tested was not shown to be worse."
            ]
        return [f"Best in bold, second {second}, in each block, before rounding: an order, not a test."]

    def groups(self, columns: Sequence[int]) -> list[tuple[str, int]]:
        """Return the header above the header: (group, number of columns)."""
        return [(name, len(list(some))) for name, some in groupby(self.columns[i].group for i in columns)]

    def block(self, i: int) -> str:
        """Return the block of a row."""
        return self.blocks[i] if self.blocks else ""

    def opens(self, i: int) -> bool:
        """Return whether a rule stands above a row: it is the first of its block, and not of the table."""
        return i > 0 and self.block(i) != self.block(i - 1)

    def repeats(self, i: int, j: int) -> bool:
        """Return whether an entry only says again what stands above it (``Column.once``)."""
        if not self.columns[j].once or i == 0 or self.opens(i):
            return False
        named = [k for k in range(j + 1) if self.columns[k].once]
        return all(self.rows[i][k].text == self.rows[i - 1][k].text for k in named)

    def shown(self, i: int, j: int) -> Entry:
        """Return an entry as a reader of the whole table needs it: nothing where it repeats what stands above."""
        return replace(self.rows[i][j], text="", small="") if self.repeats(i, j) else self.rows[i][j]


def number(value: float | None, decimals: int, sign: bool = False) -> str:
    """Return a number with fixed decimals, never a negative zero; ``--`` where there is none."""
    if value is None or not math.isfinite(value):
        return MISSING
    rounded = round(value, decimals) + 0.0
    return f"{rounded:+,.{decimals}f}" if sign and rounded else f"{rounded:,.{decimals}f}"
