"""Tables in five formats. Numbers keep full precision in csv and json; md, tex and html are views."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from .grid import DETAILS, MISSING, Column, Entry, Table, number
from .latex import tex_escape, to_tex

__all__ = [
    "FORMATS",
    "MISSING",
    "Column",
    "Entry",
    "Table",
    "number",
    "tex_escape",
    "to_csv",
    "to_html",
    "to_json",
    "to_md",
    "to_tex",
]

# --- markdown -----------------------------------------------------------------------------------------------------------


_MD = re.compile(r"([\\|*`~$]|&(?=#?\w+;)|<(?=[A-Za-z/!?])|\](?=[(\[:])|(?<!\w)_|_(?!\w))")
"""What GitHub would take for markup: no bracket of an interval, no underscore within a name, no bare ampersand."""


def to_md(table: Table) -> str:
    """Return a GitHub table with the caption below it."""
    columns = table.visible()
    heads = [_md(" ".join(x for x in (c.group, c.title + c.arrow) if x)) for c in (table.columns[i] for i in columns)]
    rules = ["---:" if table.columns[i].numeric else ":---" for i in columns]
    lines = [f"**{_md(table.title)}**", "", _row(heads), _row(rules)]
    lines += [_row([_md_entry(table.shown(i, j)) for j in columns]) for i in range(len(table.rows))]
    lines += ["", *(_md_line(note) for note in [*table.notes(), *table.legend("in italics")])]
    return "\n".join(lines) + "\n"


def _md_entry(entry: Entry) -> str:
    shown = _md(entry.text) + ("†" if entry.significant else "")
    shown = {"": shown, "best": f"**{shown}**", "second": f"_{shown}_"}[entry.mark]
    return " ".join(part for part in (shown, _md(entry.small)) if part)


def _md(text: str) -> str:
    return _MD.sub(r"\\\1", " ".join(text.split()))


def _md_line(text: str) -> str:
    """Return a line that is no heading, quotation or list, whatever it begins with."""
    return re.sub(r"^(?:(?=[#>+=-])|(\d+)(?=[.)](?:\s|$)))", r"\1\\", _md(text))


def _row(parts: Sequence[str]) -> str:
    return "| " + " | ".join(parts) + " |"


# --- csv and json -------------------------------------------------------------------------------------------------------


def to_csv(table: Table) -> str:
    """Return comma-separated values at full precision; details of a value stand in columns beside it.

    Text that a spreadsheet would take for a formula gets an apostrophe in front, also where it would be one to a reader who
    parts fields at semicolons or tabs. Missing is an empty field.
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


_FORMULA = re.compile(r"(^|[;\t\r\n])(?=[=+\-@＝＋－＠\t\r\n])")
"""Where text would be a formula: the signs that begin one, in either width, at the start of a field."""


def _plain(text: str) -> str:
    return _FORMULA.sub(r"\1'", text)


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
    whole = {
        "name": table.name,
        "title": table.title,
        "caption": " ".join([*table.notes(), *table.legend("underlined")]),
        "columns": columns,
        "rows": rows,
    }
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
        first = ' class="first"' if table.opens(i) else ""
        entries = (_html_entry(row[j], table.columns[j], table.repeats(i, j)) for j in columns)
        body.append(f"<tr{first}>" + "".join(entries) + "</tr>")
    notes = [*table.notes(), *table.legend("underlined")]
    return (
        f'<figure class="table" id="table-{html.escape(table.name)}"><div class="scroll"><table>\n<thead>{heads}<tr>{titles}</tr>'
        f"</thead>\n<tbody>\n" + "\n".join(body) + "\n</tbody></table></div>\n"
        f"<figcaption><b>{html.escape(table.title)}.</b> {html.escape(' '.join(notes))}</figcaption></figure>\n"
    )


def _html_entry(entry: Entry, column: Column, repeats: bool) -> str:
    if repeats:  # hidden, not left out: rows that are sorted or searched keep their names
        return f'<td class="txt again"><span hidden>{html.escape(entry.text)}</span></td>'
    shown = html.escape(_minus(entry.text)) if column.numeric else html.escape(entry.text)
    shown = {"": shown, "best": f"<b>{shown}</b>", "second": f"<u>{shown}</u>"}[entry.mark]
    shown += '<sup title="significant after correction">†</sup>' if entry.significant else ""
    shown += f" <small>{html.escape(_minus(entry.small))}</small>" if entry.small else ""
    sort = f' data-v="{entry.value!r}"' if isinstance(entry.value, (int, float)) else ""
    better = " sig" if entry.significant else ""
    return f'<td class="{"num" if column.numeric else "txt"}{better}"{sort}>{shown}</td>'


def _minus(text: str) -> str:
    return re.sub(r"(?<![-\w])-(?=\d)", "−", text)


FORMATS: dict[str, Callable[[Table], str]] = {"md": to_md, "tex": to_tex, "csv": to_csv, "html": to_html, "json": to_json}
