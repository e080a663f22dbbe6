"""One self-contained page: verdict, tables, figures, answers side by side, audits, provenance."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from .figures import Drawing
from .render import Table, to_html
from .results import Results, short_model
from .samples import galleries
from .verdict import verdict


def page(
    results: Results, tables: Mapping[str, Table], drawings: Sequence[Drawing], comparisons: Sequence[Mapping[str, Any]]
) -> str:
    """Return report.html. Everything a model, a judge or a user wrote is escaped; nothing is loaded from elsewhere."""
    environment = Environment(
        loader=PackageLoader("spo_bench.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = _figure
    environment.filters["pretty"] = lambda value: json.dumps(value, indent=2, ensure_ascii=False, default=str)
    provenance = dict(results.run.get("provenance") or {})
    return environment.get_template(
        "report.html.j2"
    ).render(
        name=results.name,
        run=results.run,
        counts=_counts(results),
        models=[short_model(model) for model in dict.fromkeys(cell.model for cell in results.cells)],
        tasks=results.tasks,
        verdict=verdict(results, comparisons),
        tables={name: Markup(to_html(table)) for name, table in tables.items() if table.rows},  # noqa: S704 - to_html escapes
        drawings={drawing.name: drawing for drawing in drawings},
        galleries=galleries(results),
        unfinished=[cell for cell in results.cells if not cell.done],
        dropped=_dropped(results),
        command=_command(provenance),
        provenance=provenance,
        spec=dict(results.spec),
        started=str(results.run.get("started") or "")[:16].replace("T", " "),
        took=_duration(results.run.get("seconds")),
    )


def _figure(drawing: Drawing) -> Markup:
    data = base64.b64encode(drawing.svg).decode("ascii")
    image = Markup('<img loading="lazy" alt="{}" src="data:image/svg+xml;base64,{}">').format(drawing.caption, data)
    return Markup("<figure>{}<figcaption>{}</figcaption></figure>").format(image, drawing.caption)


def _counts(results: Results) -> dict[str, int]:
    found = Counter(str(cell.row.get("status")) for cell in results.cells)
    return {status: found[status] for status in ("done", "failed", "skipped") if found[status]}


def _dropped(results: Results) -> list[tuple[str, Mapping[str, Any]]]:
    return [("/".join(place), row) for place, audit in results.audits.items() for row in audit.get("dropped_rows") or []][:200]


def _command(provenance: Mapping[str, Any]) -> str:
    command = provenance.get("command")
    return " ".join(map(str, command)) if isinstance(command, (list, tuple)) else str(command or "")


def _duration(seconds: Any) -> str:
    if not isinstance(seconds, (int, float)):
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
