"""One table model, five formats. Numbers keep full precision in csv and json; md, tex and html are views."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal

Mark = Literal["", "best", "second"]
MISSING = "--"
DETAILS = ("low", "high", "p", "p_adjusted", "n")


@dataclass(frozen=True)
class Entry:
    """One place of a table.

    Attributes:
        value: the number or text itself; None = missing.
        text: how it is shown, rounded; empty = nothing to say here (unlike a missing value).
        small: what follows in small type: ± and intervals.
        low, high, p, p_adjusted, n: what is known about the value, at full precision.
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
    mark: Mark = ""
    significant: bool = False


@dataclass(frozen=True)
class Column:
    """A column: its key in csv and json, its title, its group (a header above several), and its good direction."""

    key: str
    title: str
    group: str = ""
    direction: Literal["", "up", "down"] = ""
    numeric: bool = True

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

    A text column that says one thing in all rows goes into the caption where there are at least ``fold_from`` rows.
    """

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Entry]]
    blocks: Sequence[str] = field(default_factory=tuple)
    caption: Sequence[str] = field(default_factory=tuple)
    fold_from: int = 2

    def visible(self) -> list[int]:
        """Return the columns worth showing: a text column that says one thing in all rows goes into the caption."""
        return [i for i in range(len(self.columns)) if self.constant(i) is None]

    def constant(self, i: int) -> str | None:
        """Return what a text column says in every one of enough rows, else None."""
        said = {row[i].text for row in self.rows}
        return next(iter(said)) if not self.columns[i].numeric and len(said) == 1 and len(self.rows) >= self.fold_from else None

    def notes(self) -> list[str]:
        """Return the caption's sentences, with the constant columns first."""
        said = [(column.title, self.constant(i)) for i, column in enumerate(self.columns)]
        return [f"{title}: {text}." for title, text in said if text] + list(self.caption)

    def groups(self, columns: Sequence[int]) -> list[tuple[str, int]]:
        """Return the header above the header: (group, number of columns)."""
        return [(name, len(list(some))) for name, some in groupby(self.columns[i].group for i in columns)]

    def block(self, i: int) -> str:
        """Return the block of a row."""
        return self.blocks[i] if self.blocks else ""


def number(value: float | None, decimals: int, sign: bool = False) -> str:
    """Return a number with fixed decimals, never a negative zero; ``--`` where there is none."""
    if value is None or not math.isfinite(value):
        return MISSING
    rounded = round(value, decimals) + 0.0
    return f"{rounded:+,.{decimals}f}" if sign and rounded else f"{rounded:,.{decimals}f}"


# --- markdown -----------------------------------------------------------------------------------------------------------


_MD = re.compile(r"([\\|*`]|<(?=[A-Za-z/!?])|\[(?=[^\]]*\][(\[])|(?<!\w)_|_(?!\w))")
"""What GitHub would take for markup: no bracket of an interval, no underscore within a name."""


def to_md(table: Table) -> str:
    """Return a GitHub table with the caption below it."""
    columns = table.visible()
    heads = [_md(" ".join(x for x in (c.group, c.title + c.arrow) if x)) for c in (table.columns[i] for i in columns)]
    rules = ["---:" if table.columns[i].numeric else ":---" for i in columns]
    lines = [f"**{_md(table.title)}**", "", _row(heads), _row(rules)]
    lines += [_row([_md_entry(row[i]) for i in columns]) for row in table.rows]
    lines += ["", *(_md(note) for note in table.notes())]
    if _marked(table):
        lines.append("Best in **bold**, second in _italics_, in each block.")
    return "\n".join(lines) + "\n"


def _md_entry(entry: Entry) -> str:
    shown = _md(entry.text) + ("†" if entry.significant else "")
    shown = {"": shown, "best": f"**{shown}**", "second": f"_{shown}_"}[entry.mark]
    return " ".join(part for part in (shown, _md(entry.small)) if part)


def _md(text: str) -> str:
    return _MD.sub(r"\\\1", " ".join(text.split()))


def _row(parts: Sequence[str]) -> str:
    return "| " + " | ".join(parts) + " |"


# --- LaTeX --------------------------------------------------------------------------------------------------------------

_TEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "±": r"$\pm$",
    "[": "{[}",  # a row that starts with [ would be an option of the \\ before it
    "]": "{]}",
    "−": "$-$",
    "×": r"$\times$",
    "†": r"$^{\dagger}$",
    "Δ": r"$\Delta$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "·": r"$\cdot$",
    "–": "--",
    "…": r"\ldots{}",
    "’": "'",
}


def tex_escape(text: str) -> str:
    """Return text safe for LaTeX; line breaks become spaces. Scripts beyond Latin and Greek need XeLaTeX or LuaLaTeX."""
    return "".join(_TEX.get(letter) or _greek(letter) for letter in " ".join(text.split()))


def _greek(letter: str) -> str:
    name = unicodedata.name(letter, "").removeprefix("GREEK SMALL LETTER ").lower()
    return rf"$\{name}$" if "α" <= letter <= "ω" and name.isalpha() and name != "omicron" else letter


def to_tex(table: Table) -> str:
    """Return a booktabs table environment; needs ``booktabs`` (and ``inputenc`` utf8 on old engines), no other package."""
    columns = table.visible()
    letters = "".join("r" if table.columns[i].numeric else "l" for i in columns)
    notes = list(table.notes()) + (["Best in bold, second underlined, in each block."] if _marked(table) else [])
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}[t]",
        r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
        rf"\caption{{\textbf{{{tex_escape(table.title)}.}} {tex_escape(' '.join(notes))}}}",
        rf"\label{{tab:{re.sub(r'[^A-Za-z0-9]+', '-', table.name)}}}",
        rf"\begin{{tabular}}{{@{{}}{letters}@{{}}}}",
        r"\toprule",
    ]
    groups = table.groups(columns)
    if any(name for name, _ in groups):
        heads, rules, at = [], [], 1
        for name, width in groups:
            heads.append(rf"\multicolumn{{{width}}}{{c}}{{{tex_escape(name)}}}" if name else " & ".join([""] * width))
            rules.append(rf"\cmidrule(lr){{{at}-{at + width - 1}}}" if name else "")
            at += width
        lines += [" & ".join(heads) + r" \\", "".join(rules)]
    titles = [(table.columns[i].title + table.columns[i].arrow, table.columns[i].numeric) for i in columns]
    lines += [
        " & ".join(rf"\multicolumn{{1}}{{c}}{{{tex_escape(title)}}}" if right else tex_escape(title) for title, right in titles)
        + r" \\",
        r"\midrule",
    ]
    for i, row in enumerate(table.rows):
        if i and table.block(i) != table.block(i - 1):
            lines.append(r"\midrule")
        lines.append(" & ".join(_tex_entry(row[j]) for j in columns) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def _tex_entry(entry: Entry) -> str:
    shown = _tex_number(entry.text) if isinstance(entry.value, float) else tex_escape(entry.text)
    shown = {"": shown, "best": rf"\textbf{{{shown}}}", "second": rf"\underline{{{shown}}}"}[entry.mark]
    shown += r"$^{\dagger}$" if entry.significant else ""
    return shown + (rf" {{\scriptsize {_tex_number(entry.small)}}}" if entry.small else "")


def _tex_number(text: str) -> str:
    return re.sub(r"(?<![-\w])-(?=\d)", "$-$", tex_escape(text).replace("+", "$+$"))


# --- csv and json -------------------------------------------------------------------------------------------------------


def to_csv(table: Table) -> str:
    """Return comma-separated values at full precision; details of a value stand in columns beside it.

    Text that a spreadsheet would take for a formula gets an apostrophe in front. Missing is an empty field.
    """
    used = [
        [key for key in DETAILS if any(getattr(row[i], key) is not None for row in table.rows)] for i in range(len(table.columns))
    ]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    heads = [(column.path, *(f"{column.path}:{key}" for key in keys)) for column, keys in zip(table.columns, used)]
    writer.writerow(_plain(name) for some in heads for name in some)
    for row in table.rows:
        values = [value for entry, keys in zip(row, used) for value in (entry.value, *(getattr(entry, key) for key in keys))]
        writer.writerow(_plain(value) if isinstance(value, str) else "" if value is None else repr(value) for value in values)
    return out.getvalue()


def _plain(text: str) -> str:
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else text


def to_json(table: Table) -> str:
    """Return the table as JSON: columns with their directions, rows with values at full precision and everything known."""
    rows: list[dict[str, Any]] = []
    for i, row in enumerate(table.rows):
        entries = {}
        for column, entry in zip(table.columns, row):
            known = {key: getattr(entry, key) for key in DETAILS if getattr(entry, key) is not None}
            if entry.significant:
                known["significant"] = True
            if entry.mark:
                known["mark"] = entry.mark
            entries[column.path] = {"value": entry.value, "text": f"{entry.text} {entry.small}".strip(), **known}
        rows.append({"block": table.block(i), "entries": entries})
    columns = [
        {"key": column.path, "title": column.title, "group": column.group, "better": column.direction, "numeric": column.numeric}
        for column in table.columns
    ]
    whole = {"name": table.name, "title": table.title, "caption": " ".join(table.notes()), "columns": columns, "rows": rows}
    return json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


# --- html ---------------------------------------------------------------------------------------------------------------


def to_html(table: Table) -> str:
    """Return a table element with its caption; all text is escaped, numbers carry ``data-v`` for sorting."""
    columns = table.visible()
    groups = table.groups(columns)
    heads = ""
    if any(name for name, _ in groups):
        cells = "".join(f'<th class="group" colspan="{width}">{html.escape(name)}</th>' for name, width in groups)
        heads = f'<tr class="groups">{cells}</tr>'
    titles = "".join(
        f'<th scope="col" class="{"num" if column.numeric else "txt"}">{html.escape(column.title + column.arrow)}</th>'
        for column in (table.columns[i] for i in columns)
    )
    body = []
    for i, row in enumerate(table.rows):
        first = ' class="first"' if i and table.block(i) != table.block(i - 1) else ""
        body.append(f"<tr{first}>" + "".join(_html_entry(row[j], table.columns[j]) for j in columns) + "</tr>")
    notes = list(table.notes()) + (["Best in bold, second underlined, in each block."] if _marked(table) else [])
    return (
        f'<figure class="table" id="table-{html.escape(table.name)}"><div class="scroll"><table>\n<thead>{heads}<tr>{titles}</tr>'
        f"</thead>\n<tbody>\n" + "\n".join(body) + "\n</tbody></table></div>\n"
        f"<figcaption><b>{html.escape(table.title)}.</b> {html.escape(' '.join(notes))}</figcaption></figure>\n"
    )


def _html_entry(entry: Entry, column: Column) -> str:
    shown = html.escape(_minus(entry.text)) if column.numeric else html.escape(entry.text)
    shown = {"": shown, "best": f"<b>{shown}</b>", "second": f"<u>{shown}</u>"}[entry.mark]
    shown += '<sup title="significant after correction">†</sup>' if entry.significant else ""
    shown += f" <small>{html.escape(_minus(entry.small))}</small>" if entry.small else ""
    sort = f' data-v="{entry.value!r}"' if isinstance(entry.value, (int, float)) else ""
    better = " sig" if entry.significant else ""
    return f'<td class="{"num" if column.numeric else "txt"}{better}"{sort}>{shown}</td>'


def _minus(text: str) -> str:
    return re.sub(r"(?<![-\w])-(?=\d)", "−", text)


def _marked(table: Table) -> bool:
    return any(entry.mark for row in table.rows for entry in row)


FORMATS: dict[str, Callable[[Table], str]] = {"md": to_md, "tex": to_tex, "csv": to_csv, "html": to_html, "json": to_json}
