"""One self-contained page: verdict, tables, figures, every sample, audits, provenance."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from .figures import Drawing
from .render import FORMATS, Table, to_html
from .results import Results, short_model
from .samples import Samples, samples
from .verdict import verdict

SCRIPTS = ("tables.js", "samples_view.js", "samples.js")
_PLACED = frozenset(
    (
        "main",
        "judge",
        "ranking",
        "ablation",
        "effects",
        "axes",
        "training",
        "degree",
        "power",
        "cost",
        "data",
        "audit",
        "hyperparameters",
    )
)
"""Tables that have their place on the page; any other stands under "More tables"."""
_WIDE = 9
"""Columns above which a table is printed in smaller type."""
_PART = re.compile(r"(.+)-\d+")
"""The name of a further part of a figure."""
_VIEW = re.compile(rb'viewBox="0 0 ([\d.]+) ([\d.]+)"')


def page(
    results: Results, tables: Mapping[str, Table], drawings: Sequence[Drawing], comparisons: Sequence[Mapping[str, Any]]
) -> str:
    """Return report.html, which runs one script of its own and loads nothing, by its own content security policy.

    Everything a model, a judge or a user wrote is escaped, or packed as data that the script shows as text.
    """
    environment = Environment(
        loader=PackageLoader("spo_bench.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figures"] = _figures
    environment.filters["pretty"] = lambda value: json.dumps(value, indent=2, ensure_ascii=False, default=str)
    provenance = dict(results.run.get("provenance") or {})
    script = "\n".join(_source(environment, name) for name in SCRIPTS)
    shown = {name: _table(table) for name, table in tables.items() if table.rows}
    return environment.get_template("report.html.j2").render(
        name=results.name,
        run=results.run,
        counts=_counts(results),
        models=[short_model(model) for model in dict.fromkeys(cell.model for cell in results.cells)],
        tasks=results.tasks,
        verdict=verdict(results, comparisons),
        tables=shown,
        more=[name for name in shown if name not in _PLACED],
        drawings=_by_section(drawings),
        samples=_samples(samples(results)),
        unfinished=[cell for cell in results.cells if not cell.done],
        dropped=_dropped(results),
        command=_command(provenance),
        provenance=provenance,
        spec=yaml.safe_dump(json.loads(json.dumps(results.spec)), sort_keys=False, allow_unicode=True, width=120),
        started=str(results.run.get("started") or "")[:16].replace("T", " "),
        took=_duration(results.run.get("seconds")),
        style=Markup(_source(environment, "report.css")),  # noqa: S704 - the project's own file  # nosec B704
        script=Markup(script),  # noqa: S704 - the project's own files  # nosec B704
        script_hash=base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii"),
    )


def _source(environment: Environment, name: str) -> str:
    assert environment.loader is not None  # noqa: S101 - it was given above
    return environment.loader.get_source(environment, name)[0]


def _table(table: Table) -> Markup:
    """Return a table with links to its files."""
    links = Markup(" · ").join(Markup('<a href="tables/{0}.{1}">{1}</a>').format(table.name, ending) for ending in FORMATS)
    whole = Markup(to_html(table))  # noqa: S704 - to_html escapes  # nosec B704
    many = len(table.columns)
    size = Markup(' wide" style="--columns: {}').format(many) if many > _WIDE else ""
    return Markup('<div class="sheet{}">{}<p class="files">{}</p></div>').format(size, whole, links)


def _figures(drawings: Sequence[Drawing]) -> Markup:
    """Return the drawings, half as large again as on paper, which are small for a screen; narrow ones stand side by side.

    Further parts of a figure are folded away behind its first.
    """
    names = {drawing.name for drawing in drawings}
    parts: dict[str, list[Drawing]] = {}
    for drawing in drawings:
        found = _PART.fullmatch(drawing.name)
        parts.setdefault(found[1] if found and found[1] in names else drawing.name, []).append(drawing)
    shown = Markup("").join(_figure(first) + _folded(rest) for first, *rest in parts.values())
    return Markup('<div class="drawings">{}</div>').format(shown) if drawings else Markup("")


def _folded(parts: Sequence[Drawing]) -> Markup:
    if not parts:
        return Markup("")
    title = "The second part of this figure" if len(parts) == 1 else f"{len(parts)} further parts of this figure"
    return Markup("<details><summary>{}</summary>{}</details>").format(title, Markup("").join(map(_figure, parts)))


def _figure(drawing: Drawing) -> Markup:
    found = _VIEW.search(drawing.svg)
    size = [round(1.5 * float(points) * 96 / 72) for points in found.groups()] if found else []
    shape = Markup(' width="{}" height="{}"').format(*size) if found else Markup("")
    data = base64.b64encode(drawing.svg).decode("ascii")
    image = Markup('<img loading="lazy" alt="{}"{} src="data:image/svg+xml;base64,{}">').format(drawing.caption, shape, data)
    endings = ("pdf", "svg", "png")
    links = Markup(" · ").join(Markup('<a href="figures/{0}.{1}">{1}</a>').format(drawing.name, ending) for ending in endings)
    caption = Markup('<figcaption>{} <span class="files">{}</span></figcaption>').format(drawing.caption, links)
    return Markup('<figure class="drawing">{}{}</figure>').format(image, caption)


def _by_section(drawings: Sequence[Drawing]) -> dict[str, list[Drawing]]:
    """Return the drawings by the section that shows them; one that has no place of its own stands with the results."""
    sections: dict[str, list[Drawing]] = {"results": [], "axes": [], "training": [], "degrees": []}
    starts = {"axis-": "axes", "training": "training", "degrees": "degrees"}
    for drawing in drawings:
        place = next((section for start, section in starts.items() if drawing.name.startswith(start)), "results")
        sections[place].append(drawing)
    return sections


def _samples(found: Samples) -> dict[str, Any]:
    blocks = [(block.id, Markup(block.data)) for block in found.blocks]  # noqa: S704 - base64  # nosec B704
    return {"blocks": blocks, "shown": found.shown, "total": found.total}


def _counts(results: Results) -> dict[str, int]:
    found = Counter(str(cell.row.get("status")) for cell in results.cells)
    return {status: found[status] for status in ("done", "failed", "skipped") if found[status]}


def _dropped(results: Results) -> list[tuple[str, Mapping[str, Any]]]:
    return [("/".join(place), row) for place, audit in results.audits.items() for row in audit.get("dropped_rows") or []][:200]


def _command(provenance: Mapping[str, Any]) -> str:
    command = provenance.get("command")
    return shlex.join(map(str, command)) if isinstance(command, (list, tuple)) else str(command or "")


def _duration(seconds: Any) -> str:
    """Return how long a run took; nothing below a second, which is a run that made no stage."""
    if not isinstance(seconds, (int, float)) or seconds < 1:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
