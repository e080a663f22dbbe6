"""The table for planning the next study: which effects a design like this one finds, and what the measured ones would need."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import names
from .captions import scoring_notes
from .entries import difference_decimals, difference_entries, model_entry, text_entry
from .grid import MISSING, Column, Entry, Table, number
from .measure import CONFIDENCE, Contrast, contrasts, headlines
from .results import Results
from .tables import Numbers

if TYPE_CHECKING:
    from spo_bench.stats import Power

TARGET = 0.8
"""The power that a study is planned for."""
NEVER = "∞"
MOST = 10_000
"""Prompts or seeds that a study may have; more are shown as more than these."""


def power(numbers: Numbers) -> Table:
    """Return an SPO contrast a row, in the task's first headline metric: its effect, the smallest effect this design finds with
    ``TARGET`` power, and the prompts and the seeds that would find the measured effect.
    """
    results = numbers.results
    found = [one for metric in _metrics(results) for one in powers(results, metric) if not _is_control(one[0])]
    rows = [(metric, numbers.comparison(contrast.variant, metric, "spo")) for contrast, metric, _ in found]
    digits = {metric: difference_decimals([row for own, row in rows if own == metric], metric) for metric, _ in rows}
    texts = {"model": "Model", "task": "Task", "variant": "Policy", "baseline": "Against", "metric": "Metric"}
    columns = [Column(key, shown, numeric=False, once=key in ("model", "task")) for key, shown in texts.items()]
    columns += [Column("difference", "Difference"), Column("detectable", "Smallest found")]
    columns += [Column("n_prompts", "now", "Prompts"), Column("prompts_needed", "needed", "Prompts")]
    columns += [Column("n_seeds", "now", "Seeds"), Column("seeds_needed", "needed", "Seeds")]
    body = [_row(contrast, row, metric, one, digits[metric]) for (contrast, metric, one), (_, row) in zip(found, rows)]
    blocks = [f"{contrast.variant.model}|{contrast.variant.task}" for contrast, _, _ in found]
    nothing = any(not math.isfinite(one.detectable) for *_, one in found)
    single = any(one.n_seeds == 1 for *_, one in found)
    caption = [
        "For planning the next study.",
        *scoring_notes(results, _metrics(results)),
        "Smallest found: the smallest true effect that a contrast of this size, with this spread of prompts and seeds, would "
        f"find with {100 * TARGET:.0f} % power at p < .05 (before Holm’s correction).",
        *([f"{MISSING} there: so few prompts find nothing, however large."] if nothing else []),
        "Needed: the prompts, at these seeds, or the seeds, at these prompts, for that power if the measured difference were the "
        f"true one; {NEVER}: no number is enough, as the noise that the other adds hides it; {MISSING}: not known, with one seed "
        "or too few prompts. Controls are left out.",
        *(["With one seed, power is about these very policies: what retraining would change is not known."] if single else []),
        "The measured difference is itself uncertain, so these numbers are rough, and they say nothing about this run that its p "
        "does not.",
    ]
    return Table("power", "What the next study needs", columns, body, blocks, caption)


def _metrics(results: Results) -> list[str]:
    return list(dict.fromkeys(metric for task in results.tasks for metric in headlines(results, task)[:1]))


def powers(results: Results, metric: str) -> list[tuple[Contrast, str, Power]]:
    """Return the SPO contrasts of the tasks that this metric is the first headline of; noise is pooled over all that have it,
    as in the comparisons."""
    from spo_bench.stats import power_matrix  # loads scipy, and `table` of other names does not need it

    family = [(contrast, arrays) for contrast in contrasts(results, "spo") if (arrays := contrast.arrays(metric)) is not None]
    powers = power_matrix(
        [arrays.baseline for _, arrays in family],
        [arrays.variant for _, arrays in family],
        target=TARGET,
        confidence=CONFIDENCE,
        clusters=[arrays.metric.clusters for _, arrays in family],
    )
    tasks = [task for task in results.tasks if headlines(results, task)[:1] == [metric]]
    return [(contrast, metric, one) for (contrast, _), one in zip(family, powers) if contrast.variant.task in tasks]


def _is_control(contrast: Contrast) -> bool:
    return bool((contrast.variant.spo or {}).get("control"))


def _row(contrast: Contrast, row: Mapping[str, Any] | None, metric: str, one: Power, digits: int) -> Sequence[Entry]:
    cell = contrast.variant
    return [
        model_entry(cell.model),
        *(text_entry(text) for text in (cell.task, cell.name, contrast.baseline_name)),
        text_entry(names.title(metric), metric),
        *difference_entries([row], metric, digits),
        Entry(one.detectable, number(names.scale(metric) * one.detectable, digits)) if math.isfinite(one.detectable) else Entry(),
        Entry(one.n_prompts, f"{one.n_prompts:,}"),
        _needed(one.prompts_needed, math.isfinite(one.power)),
        Entry(one.n_seeds, f"{one.n_seeds:,}"),
        _needed(one.seeds_needed, math.isfinite(one.power) and one.n_seeds > 1),
    ]


def _needed(count: int | None, known: bool) -> Entry:
    if not known:
        return Entry()
    if count is None:
        return Entry(text=NEVER)
    return Entry(count, f"{count:,}" if count <= MOST else f">{MOST:,}")
