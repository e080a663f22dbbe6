"""A gate's verdict for people and machines: a table, Markdown for a job's summary, JUnit XML."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from xml.etree import ElementTree  # writes, reads nothing  # nosec B405

from spo_bench.report.entries import text_entry
from spo_bench.report.grid import Column, Entry, Table, number
from spo_bench.report.render import to_md

from .margins import FAMILIES, Family
from .verdict import Row, Verdict

SHOWN = 20
"""Changed settings that are listed for people; JSON holds all."""
LISTED = 30
"""Fine rows that a summary shows unfolded."""
IDENTICAL = "identical to the reference"
_NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def table(rows: Sequence[Row], confidence: float = 0.95) -> Table:
    """Return rows of a gate as a table, in the metrics' own units; columns that say nothing are left out.

    ``confidence``: one-sided level of the bounds.
    """
    columns = [
        Column("outcome", "Outcome", numeric=False),
        Column("model", "Model", numeric=False),
        Column("task", "Task", numeric=False),
        Column("arm", "Arm", numeric=False),
        Column("metric", "Metric", numeric=False),
        Column("family", "Drift", numeric=False),
        Column("reference", "Reference"),
        Column("run", "Run"),
        Column("difference", f"Run − reference [one-sided {100 * confidence:.3g} % bounds]"),
        Column("margin", "Margin"),
        Column("why", "Why", numeric=False),
    ]
    body = []
    for row in rows:
        arm = ", ".join(part for part in (row.arm or "the run", "" if row.seed is None else f"seed {row.seed}") if part)
        bounds = f"[{number(row.low, 4, sign=True)}, {number(row.high, 4, sign=True)}]" if math.isfinite(row.low) else ""
        difference = Entry(row.diff, number(row.diff, 4, sign=True), bounds, row.low, row.high)
        why = _clean("; ".join([*([row.reason] if row.reason else []), *([IDENTICAL] if row.identical else []), *row.notes]))
        body.append(
            [
                *(text_entry(text) for text in (row.outcome, row.model, row.task, arm)),
                text_entry(row.metric),
                text_entry(row.family if row.judged else ""),
                _entry(row.reference),
                _entry(row.run),
                difference if row.judged else Entry(text=""),
                _entry(row.margin),
                text_entry(why),
            ]
        )
    used = [i for i in range(len(columns)) if any(row[i].text for row in body)]
    return Table("gate", "Gate", [columns[i] for i in used], [[row[i] for i in used] for row in body])


def _entry(value: float) -> Entry:
    return Entry(value, f"{value:.4g}") if math.isfinite(value) else Entry(text="")


def sentences(verdict: Verdict) -> list[str]:
    """Return what stands beside the table: what the rows speak about, resolution, margins, notes, new arms, changed settings."""
    said = [f"{text}." for text in verdict.estimands]
    said += [f"{metric}, {family} drift: {_extremes(verdict, metric, family)}." for metric, family in verdict.judged]
    if verdict.guarded:
        rest = f"; measured, but judged by nothing: {', '.join(verdict.unguarded)}" if verdict.unguarded else ""
        said.append(f"Guarded: {', '.join(verdict.guarded)}{rest}.")
    if verdict.margins:
        said.append(f"Margins: {verdict.margins}; one-sided, {verdict.confidence:.0%}, Holm's correction over a family's rows.")
    if some := [row for row in verdict.rows if row.invalid]:
        most = max(some, key=lambda row: row.invalid / row.valid)
        rows = f"{len(some)} rows" if len(some) > 1 else "one row"
        said.append(
            f"Valid in the reference, invalid in the run and left out: {sum(row.invalid for row in some)} of "
            f"{sum(row.valid for row in some)} values of {rows}, at most {most.invalid / most.valid:.1%} "
            f"({most.task} / {most.arm} / {most.metric})."
        )
    said += verdict.notes
    if verdict.new:
        more = f" and {len(verdict.new) - SHOWN} more" if len(verdict.new) > SHOWN else ""
        said.append(f"New in the run, judged by nothing: {', '.join(verdict.new[:SHOWN])}{more}.")
    return said + [f"To do: {text}" for text in verdict.remedies]


def _extremes(verdict: Verdict, metric: str, family: Family) -> str:
    """Return the largest decline of a metric's rows, and the smallest that could have been fine."""
    rows = verdict.judged[metric, family]
    if all(row.identical for row in rows):
        return IDENTICAL + (f" in all {len(rows)} rows" if len(rows) > 1 else "")
    said = []
    if worst := verdict.largest.get((metric, family)):
        where = f"{worst.arm} on {' / '.join(part for part in (worst.model, worst.task) if part)}"
        said.append(f"largest decline {worst.decline:.3g}, {where}" if worst.decline > 0 else "no row declined")
    if same := sum(row.identical for row in rows):
        said.append(f"{same} of {len(rows)} rows {IDENTICAL}")
    if (smallest := verdict.smallest.get((metric, family))) is not None:
        said.append(f"the smallest decline this run could have called fine in every row is {smallest:.3g}")
    return "; ".join(said) or "no difference is known"


def changed(verdict: Verdict) -> list[str]:
    """Return the changed settings, the first ``SHOWN`` of them."""
    more = [f"and {len(verdict.changed) - SHOWN} more (see --json)"] if len(verdict.changed) > SHOWN else []
    return [*verdict.changed[:SHOWN], *more]


def markdown(verdict: Verdict) -> str:
    """Return the verdict for a job's summary: the verdict first, what is not fine, what it rests on, then the fine rows."""
    parts = [f"### spo-bench gate: {verdict.headline}", ""]
    if verdict.not_fine:
        parts += [_untitled(table(verdict.not_fine, verdict.confidence))]
    parts += [*(f"- {text}" for text in sentences(verdict)), ""]
    if verdict.changed:
        parts += ["Changed settings, reference -> run:", "", *(f"- `{text}`" for text in changed(verdict)), ""]
    if fine := [row for row in verdict.rows if row.outcome == "fine"]:
        listed = _untitled(table(fine, verdict.confidence))
        folded = len(fine) > LISTED
        parts += [f"<details><summary>{len(fine)} fine rows</summary>", "", listed, "</details>", ""] if folded else [listed]
    return _clean("\n".join(parts)) + "\n"


def _untitled(listed: Table) -> str:
    """Return a table in Markdown without its title, which the verdict's headline says better."""
    return to_md(listed).split("\n", 2)[2]


def junit(verdict: Verdict) -> str:
    """Return JUnit XML: a suite a family, a test a row; worse is a failure, whatever else is not fine an error."""
    root = ElementTree.Element("testsuites", name="spo-bench gate")
    totals = {"tests": 0, "failures": 0, "errors": 0}
    for family in FAMILIES:
        rows = [row for row in verdict.rows if row.family == family]
        failures = sum(row.outcome == "worse" for row in rows)
        counts = {"tests": len(rows), "failures": failures, "errors": sum(row.outcome != "fine" for row in rows) - failures}
        totals = {key: totals[key] + count for key, count in counts.items()}
        attributes = {"name": f"{family} drift", **{key: str(count) for key, count in counts.items()}, "skipped": "0"}
        suite = ElementTree.SubElement(root, "testsuite", attributes)
        for row in rows:
            place = _clean(".".join(part for part in (row.model, row.task) if part) or "run")
            test = ElementTree.SubElement(suite, "testcase", classname=place, name=_clean(_test_name(row)))
            if row.outcome != "fine":
                kind = "failure" if row.outcome == "worse" else "error"
                found = ElementTree.SubElement(test, kind, type=row.outcome, message=_clean(row.reason))
                found.text = _clean("\n".join([row.reason, *row.notes]))
            if math.isfinite(row.diff):
                ElementTree.SubElement(test, "system-out").text = _clean(_numbers(row, verdict.confidence))
    root.attrib.update({key: str(count) for key, count in totals.items()})
    ElementTree.indent(root, " ")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _numbers(row: Row, confidence: float) -> str:
    """Return a row's numbers in one line, as the table has them."""
    bounds = f"one-sided {100 * confidence:.3g} % bounds {number(row.low, 4, sign=True)}, {number(row.high, 4, sign=True)}"
    said = [f"reference {row.reference:.4g}", f"run {row.run:.4g}", f"difference {number(row.diff, 4, sign=True)}", bounds]
    return "; ".join([*said, f"margin {row.margin:g}", *([IDENTICAL] if row.identical else []), *row.notes])


def _test_name(row: Row) -> str:
    seed = "" if row.seed is None else f"seed {row.seed}"
    return " ".join(part for part in (row.arm, row.metric, seed) if part) or "reference"


def _clean(text: str) -> str:
    """Return text with what XML cannot hold, and a terminal would obey, written as escapes."""
    return _NO_XML.sub(lambda found: f"\\x{ord(found.group()):02x}", text)
