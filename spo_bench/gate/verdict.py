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
        notes: what else a reader should know.
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
    notes: Sequence[str] = ()

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
        remedy: what to do where nothing could be judged; empty where something was.
        margins: where the margins come from, in words.
        confidence: one-sided level of every decision.
        names: what was judged by what: run, reference.
    """

    rows: Sequence[Row]
    new: Sequence[str] = ()
    changed: Sequence[str] = ()
    notes: Sequence[str] = ()
    remedy: str = ""
    margins: str = ""
    confidence: float = 0.95
    names: Mapping[str, str] = field(default_factory=dict)

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
    def smallest(self) -> dict[tuple[str, Family], float]:
        """Return the smallest decline this run could have called fine in all rows, by metric and family."""
        found: dict[tuple[str, Family], float] = {}
        for family in FAMILIES:
            for row in self.rows:
                if row.family == family and row.judged and math.isfinite(row.reach):
                    found[row.metric, family] = max(found.get((row.metric, family), 0.0), row.reach)
        return found

    @property
    def estimands(self) -> list[str]:
        """Return what the judged rows speak about, in sentences."""
        said = []
        for family in FAMILIES:
            rows = [row for row in self.rows if row.family == family and row.judged]
            for estimand in dict.fromkeys(row.estimand for row in rows):
                some = [row for row in rows if row.estimand == estimand]
                said.append(f"{family} drift: {len(some)} rows, estimand “{_ESTIMANDS.get(estimand, estimand)}”")
        return said

    def record(self) -> dict[str, Any]:
        """Return everything as JSON values; what is not a number is null."""
        rows = [{**without_nan(asdict(row)), "notes": list(row.notes)} for row in self.rows]
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
            "smallest_decline": smallest,
            "notes": list(self.notes),
            "remedy": self.remedy,
        }


_ESTIMANDS = {"method": "the method", "checkpoints": "these checkpoints"}


def without_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values for JSON: what is not a number is null."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()}
