"""Tables as LaTeX: booktabs, scaled down a little where wider than the line, cut into panels where more would be needed."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from itertools import groupby, pairwise, takewhile

from .grid import MISSING, Entry, Table

PACKAGES = ("booktabs", "graphicx")
PART = 36
"""Rows of one panel that go on one page, beside the caption."""
PAGE = 46
"""Lines of tables and notes that go on one page: rows, and ``_HEAD`` for the head of every panel."""
_HEAD = 5
LONG = 100
"""Rows that a paper may print; a longer table says so."""
WIDE = 415.0
"""Points: a wider table is cut into panels under each other, so that an article’s line (345) takes it at 80 % or more, by rough
widths. A table whose names alone are wider goes below that."""
_LINE = 90
"""Letters of \\footnotesize in a line."""
_LETTER, _SMALL, _GAP = 4.3, 3.6, 6.0
"""Rough widths of a letter at \\footnotesize and \\scriptsize, and of the space between columns, in points."""

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
    "`": r"\textasciigrave{}",
    "±": r"$\pm$",
    "[": "{[}",  # a row that starts with [ would be an option of the \\ before it
    "]": "{]}",
    "−": "$-$",
    "×": r"$\times$",
    "≥": r"$\geq$",
    "∞": r"$\infty$",
    "†": r"$^{\dagger}$",
    "Δ": r"$\Delta$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "·": r"$\cdot$",
    "–": "--",
    "…": r"\ldots{}",
    "’": "'",
    "“": "``",
    "”": "''",
}


_TEX |= {
    letter: rf"$\{name}$"
    for letter in map(chr, range(ord("α"), ord("ω") + 1))
    if (name := unicodedata.name(letter).removeprefix("GREEK SMALL LETTER ").lower()).isalpha() and name != "omicron"
}
_TEX |= {"ο": "o", "\0": "{}"}  # a mark of our own: two hyphens in a row would become a dash
_LETTERS = str.maketrans(_TEX)


def tex_escape(text: str) -> str:
    """Return text safe for LaTeX; line breaks become spaces. Scripts beyond Latin and Greek need XeLaTeX or LuaLaTeX."""
    plain = " ".join(text.split())
    if not plain.isprintable():
        plain = "".join(letter for letter in plain if unicodedata.category(letter)[0] != "C")
    return re.sub("-(?=-)", "-\0", plain).translate(_LETTERS)


def to_tex(table: Table) -> str:
    """Return booktabs table environments: one, or one a page for a large table; needs ``PACKAGES`` (and utf8 input)."""
    title = tex_escape(table.title)
    below = [note for note in [*table.notes(), *table.legend("underlined")] if note not in table.short]
    head = rf"\textbf{{{title}.}} {_prose(table.short)}".rstrip()
    caption = rf"\caption[{{{title}}}]{{{head}}}"
    label = rf"\label{{tab:{re.sub(r'[^A-Za-z0-9]+', '-', table.name)}}}"
    floats = _floats(table)
    lines_below = 1 + len(" ".join(below)) // _LINE
    if below and sum(end - start + _HEAD for _, start, end in floats[-1]) + lines_below > PAGE + _HEAD:
        floats.append([])  # the notes go on a page of their own
    place = "p" if len(floats) > 1 else "t"
    lines = [rf"% needs \usepackage{{{','.join(PACKAGES)}}}"]
    if len(table.rows) > LONG:
        lines.append(f"% {len(table.rows)} rows on {len(floats)} pages: long for a paper; the csv beside it has the same rows")
    for i, panels in enumerate(floats):
        lines += [r"\clearpage"] if i else []  # so many parts would be more floats than LaTeX can hold back
        above = [r"\textbf{Table~\thetable{} (continued).}\par\smallskip"] if i else [caption, label]
        lines += [rf"\begin{{table}}[{place}]", _SETTINGS, *above]
        for k, (columns, start, end) in enumerate(panels):
            lines += [r"\par\medskip"] if k else []
            lines += [r"\sbox0{%", *_tabular(table, columns, start, end), "}%"]
            lines.append(r"\ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\usebox0}\else\usebox0\fi")
        if below and i == len(floats) - 1:
            lines.append(rf"\par\smallskip\parbox{{\linewidth}}{{\footnotesize {_prose(below)}}}")
        lines.append(r"\end{table}")
    return "\n".join(lines) + "\n"


def _prose(notes: Sequence[str]) -> str:
    """Return sentences; long names in them may break."""
    return re.sub(r"(\\_|/)", r"\1\\allowbreak{}", tex_escape(" ".join(notes)))


_SETTINGS = r"\centering\footnotesize\setlength{\tabcolsep}{3pt}\setlength{\belowcaptionskip}{4pt}"


def _floats(table: Table) -> list[list[tuple[Sequence[int], int, int]]]:
    """Return what goes on each page: panels as (columns, first row, row after the last)."""
    floats: list[list[tuple[Sequence[int], int, int]]] = [[]]
    panels = _panels(table)
    for start, end in pairwise(_cuts(table)):
        for columns in panels:
            if floats[-1] and sum(last - first + _HEAD for _, first, last in floats[-1]) + end - start + _HEAD > PAGE:
                floats.append([])
            floats[-1].append((columns, start, end))
    return floats


def _panels(table: Table) -> list[list[int]]:
    """Return the columns of each panel: all in one where these are not too wide, else the first texts with some others.

    Columns of one group stay together as far as a panel can hold them.
    """
    columns = table.visible()
    width = {i: _width(table, i) for i in columns}
    names = list(takewhile(lambda i: not table.columns[i].numeric and not table.columns[i].group, columns))
    room = WIDE - sum(width[i] for i in names)
    units: list[list[int]] = []
    for group, some in groupby(columns[len(names) :], key=lambda i: table.columns[i].group):
        together = list(some)
        whole = bool(group) and sum(width[i] for i in together) <= room
        units += [together] if whole else [[i] for i in together]
    panels: list[list[int]] = [[]]
    for unit in units:
        if panels[-1] and sum(width[i] for i in [*panels[-1], *unit]) > room:
            panels.append([])
        panels[-1] += unit
    return [[*names, *panel] for panel in panels]


def _width(table: Table, i: int) -> float:
    """Return about how wide a column is, in points."""
    column = table.columns[i]
    entries = [_LETTER * len(row[i].text) + (_SMALL * (1 + len(row[i].small)) if row[i].small else 0.0) for row in table.rows]
    return _GAP + max([_LETTER * len(column.title + column.arrow), *entries])


def _cuts(table: Table) -> list[int]:
    """Return the rows where parts begin, and the end: parts of at most ``PART`` rows, whole blocks where these fit."""
    cuts, size = [0], len(table.rows)
    while size - cuts[-1] > PART:
        last = cuts[-1]
        cuts.append(next((i for i in range(last + PART, last + PART // 2, -1) if table.opens(i)), last + PART))
    return [*cuts, size]


def _tabular(table: Table, columns: Sequence[int], start: int, end: int) -> list[str]:
    letters = "".join("r" if table.columns[i].numeric else "l" for i in columns)
    lines = [rf"\begin{{tabular}}{{@{{}}{letters}@{{}}}}", r"\toprule", *_heads(table, columns), r"\midrule"]
    for i in range(start, end):
        if i > start and table.opens(i):
            lines.append(r"\midrule")
        row = table.rows[i] if i == start else [table.shown(i, j) for j in range(len(table.columns))]
        lines.append(" & ".join(_entry(row[j]) for j in columns) + r" \\")
    return [*lines, r"\bottomrule", r"\end{tabular}"]


def _heads(table: Table, columns: Sequence[int]) -> list[str]:
    lines = []
    groups = table.groups(columns)
    if any(name for name, _ in groups):
        heads, rules, at = [], [], 1
        for name, width in groups:
            heads.append(rf"\multicolumn{{{width}}}{{c}}{{{tex_escape(name)}}}" if name else " & ".join([""] * width))
            rules.append(rf"\cmidrule(lr){{{at}-{at + width - 1}}}" if name else "")
            at += width
        lines += [" & ".join(heads) + r" \\", "".join(rules)]
    titles = [(tex_escape(table.columns[i].title + table.columns[i].arrow), table.columns[i].numeric) for i in columns]
    lines.append(" & ".join(rf"\multicolumn{{1}}{{c}}{{{title}}}" if right else title for title, right in titles) + r" \\")
    return lines


def _entry(entry: Entry) -> str:
    shown = MISSING if entry.value is None and entry.text == MISSING else _text(entry)
    shown = {"": shown, "best": rf"\textbf{{{shown}}}", "second": rf"\underline{{{shown}}}"}[entry.mark]
    shown += r"$^{\dagger}$" if entry.significant else ""
    return shown + (rf" {{\scriptsize {_number(entry.small)}}}" if entry.small else "")


def _text(entry: Entry) -> str:
    return tex_escape(entry.text) if isinstance(entry.value, str) else _number(entry.text)


def _number(text: str) -> str:
    return re.sub(r"(?<![-\w])-(?=\d)", "$-$", tex_escape(text).replace("+", "$+$"))
