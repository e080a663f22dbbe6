"""What a gate says: a row an arm and guarded metric, what was missing, and one verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from .margins import FAMILIES, Family

Outcome = Literal["worse", "not comparable", "missing", "undecided", "fine"]
OUTCOMES: tuple[Outcome, ...] = ("worse", "not comparable", "missing", "undecided", "fine")
WORSE, CANNOT_DECIDE, FINE = 1, 3, 0
"""Exit codes."""


@dataclass(frozen=True)
class Row:
    """One judgement of a gate.

    Attributes:
        model, task, arm: what it is about; empty where it is about the whole run.
        metric: the guarded metric; empty where a whole cell is missing.
        family: "evaluation" (the policies are the same bit for bit) or "retraining".
        outcome: see ``Outcome``.
        reason: why it is not fine, a clause without a full stop.
        seed: of a missing cell.
        higher_is_better: of the metric.
        reference, run: means over what is compared, in the metric's unit.
        diff, low, high: run minus reference with its two one-sided bounds; p, p_adjusted: of no decline, one-sided.
        margin: the decline that is still fine.
        n_prompts, n_seeds, estimand: what the numbers rest on.
        invalid: values that are valid in the reference and invalid in the run; of ``valid`` in the reference.
        notes: what else a reader should know.
        identical: whether every value is the reference's, bit for bit.
        remedy: what to do about what is missing or not comparable.
    """

    model: str
    task: str
    arm: str
    metric: str
    family: Family
    outcome: Outcome
    reason: str = ""
    seed: int | None = None
    higher_is_better: bool = True
    reference: float = math.nan
    run: float = math.nan
    diff: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    p_adjusted: float = math.nan
    margin: float = math.nan
    n_prompts: int = 0
    n_seeds: int = 0
    estimand: str = ""
    invalid: int = 0
    valid: int = 0
    notes: Sequence[str] = ()
    identical: bool = False
    remedy: str = ""

    @property
    def decline(self) -> float:
        """Return by how much the run is worse, in the metric's unit; negative where it is better."""
        return -self.diff if self.higher_is_better else self.diff

    @property
    def judged(self) -> bool:
        """Return whether there were numbers to judge."""
        return self.outcome in ("worse", "fine", "undecided")

    @property
    def reach(self) -> float:
        """Return the smallest margin this row could have called fine, had nothing changed: the length of its bound."""
        return self.diff - self.low if self.higher_is_better else self.high - self.diff


@dataclass(frozen=True)
class Verdict:
    """The verdict of a gate.

    Attributes:
        rows: all judgements, also the fine ones.
        new: arms and metrics of the run that the reference does not have; they decide nothing.
        changed: settings that differ from the reference's.
        notes: about the whole comparison.
        margins: where the margins come from, in words.
        confidence: one-sided level of every decision.
        names: what was judged by what: run, reference.
        guarded, unguarded: the metrics of the reference that are judged, and those of both runs that are not.
    """

    rows: Sequence[Row]
    new: Sequence[str] = ()
    changed: Sequence[str] = ()
    notes: Sequence[str] = ()
    margins: str = ""
    confidence: float = 0.95
    names: Mapping[str, str] = field(default_factory=dict)
    guarded: Sequence[str] = ()
    unguarded: Sequence[str] = ()

    @property
    def counts(self) -> dict[Outcome, int]:
        """Return how many rows have each outcome."""
        return {outcome: sum(row.outcome == outcome for row in self.rows) for outcome in OUTCOMES}

    @property
    def exit_code(self) -> int:
        """Return 1 where anything is worse, else 3 where anything could not be decided, else 0. Nothing judged is never fine."""
        counts = self.counts
        if counts["worse"]:
            return WORSE
        return FINE if counts["fine"] == len(self.rows) > 0 else CANNOT_DECIDE

    @property
    def headline(self) -> str:
        """Return the verdict in one line."""
        word = {WORSE: "worse", CANNOT_DECIDE: "cannot decide", FINE: "fine"}[self.exit_code]
        listed = ", ".join(f"{count} {outcome}" for outcome, count in self.counts.items() if count)
        return f"{word}: {listed}"

    @property
    def not_fine(self) -> list[Row]:
        """Return the rows that are not fine, the worst kind first."""
        return sorted((row for row in self.rows if row.outcome != "fine"), key=lambda row: OUTCOMES.index(row.outcome))

    @property
    def remedies(self) -> list[str]:
        """Return what to do about what is missing or not comparable, one remedy a cause."""
        return list(dict.fromkeys(row.remedy for row in self.not_fine if row.remedy))

    @property
    def judged(self) -> dict[tuple[str, Family], list[Row]]:
        """Return the rows that have numbers, by metric and family."""
        found: dict[tuple[str, Family], list[Row]] = {}
        for row in sorted((row for row in self.rows if row.judged), key=lambda row: FAMILIES.index(row.family)):
            found.setdefault((row.metric, row.family), []).append(row)
        return found

    @property
    def largest(self) -> dict[tuple[str, Family], Row]:
        """Return the row that declined most, by metric and family; none where no difference is known."""
        known = {key: [row for row in rows if math.isfinite(row.diff)] for key, rows in self.judged.items()}
        return {key: max(rows, key=lambda row: row.decline) for key, rows in known.items() if rows}

    @property
    def smallest(self) -> dict[tuple[str, Family], float]:
        """Return the smallest decline this run could have called fine in all rows, by metric and family."""
        known = {key: [row.reach for row in rows if math.isfinite(row.reach)] for key, rows in self.judged.items()}
        return {key: max(reaches) for key, reaches in known.items() if reaches}

    @property
    def estimands(self) -> list[str]:
        """Return what the judged rows speak about, in sentences."""
        said = []
        for family in FAMILIES:
            rows = [row for row in self.rows if row.family == family and row.estimand]
            for estimand in dict.fromkeys(row.estimand for row in rows):
                some = [row for row in rows if row.estimand == estimand]
                said.append(
                    f"{family} drift: {len(some)} row{'s' * (len(some) > 1)}, estimand “{_ESTIMANDS.get(estimand, estimand)}”"
                )
        return said

    def record(self) -> dict[str, Any]:
        """Return everything as JSON values; what is not a number is null."""
        rows = [{**without_nan(asdict(row)), "notes": list(row.notes)} for row in self.rows]
        largest = [
            {"metric": metric, "family": family, "decline": row.decline, "model": row.model, "task": row.task, "arm": row.arm}
            for (metric, family), row in self.largest.items()
        ]
        smallest = [{"metric": metric, "family": family, "decline": value} for (metric, family), value in self.smallest.items()]
        return {
            "outcome": self.headline.split(":")[0],
            "exit_code": self.exit_code,
            "counts": self.counts,
            "margins": self.margins,
            "confidence": self.confidence,
            **self.names,
            "rows": rows,
            "new": list(self.new),
            "changed": list(self.changed),
            "estimands": self.estimands,
            "largest_decline": largest,
            "smallest_decline": smallest,
            "guarded": list(self.guarded),
            "unguarded": list(self.unguarded),
            "notes": list(self.notes),
            "remedies": self.remedies,
        }


_ESTIMANDS = {"method": "the method", "checkpoints": "these checkpoints"}


def without_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values for JSON: what is not a number is null."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()}
