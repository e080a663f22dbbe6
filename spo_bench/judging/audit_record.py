"""What an audit asks of a judge, and what it says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from spo_bench.judging.verdict import Question

Label = Literal["a", "b", "tie"]
LABELS: tuple[Label, ...] = ("a", "b", "tie")


@dataclass(frozen=True)
class Case:
    """A question that people have answered.

    Attributes:
        question: the prompt and its two answers.
        label: which answer people preferred.
        cluster: cases of one label are drawn together in intervals (one prompt, one annotator); None: it stands alone.
    """

    question: Question
    label: Label
    cluster: str | None = None


@dataclass(frozen=True)
class Rate:
    """A mean over cases with its two-sided interval; None where it is not defined.

    Attributes:
        value: the mean; of values in [0, 1] unless its owner says otherwise.
        low, high: the interval.
        n: how many values it is the mean of.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Amount:
    """A mean of dollars or tokens over the verdicts where it is known, ``n`` of them; None where it is known of none."""

    value: float | None
    n: int


@dataclass(frozen=True)
class LengthOnly:
    """The null judge that reads no text: the longer answer wins, equal lengths are a tie.

    Attributes:
        accuracy: of the null judge, on the cases on which the judge's own accuracy stands.
        difference: accuracy of the judge minus that of the null judge, paired by case, in [-1, 1].
        p: two-sided p of no difference (sign flips of whole clusters); None where there is none.
    """

    accuracy: Rate
    difference: Rate
    p: float | None


@dataclass(frozen=True)
class Retest:
    """The same questions judged twice.

    Attributes:
        asked: cases judged again.
        same_outcome: share with the same outcome, of those valid both times.
        reversal_rate: share whose other answer wins now, of those decided first and valid again: what an attack has by chance.
        same_order: share of orders with the same verdict, of those readable both times.
        score_change: mean absolute change of the score, of cases valid both times.
    """

    asked: int
    same_outcome: Rate
    reversal_rate: Rate
    same_order: Rate
    score_change: Rate


@dataclass(frozen=True)
class Attacked:
    """What one attack does when the answer that had not won uses it.

    Attributes:
        summary: what the attack is.
        asked: verdicts asked for.
        success: share in which the attacking answer wins now, of the valid verdicts.
        changed: share with another outcome, a tie included, of the valid verdicts.
        invalid: share without a verdict, of all: to escape judgement is a way to cheat too.
    """

    summary: str
    asked: int
    success: Rate
    changed: Rate
    invalid: Rate


@dataclass(frozen=True)
class Attacks:
    """What all attacks do together.

    Attributes:
        cases: cases attacked, each by every attack.
        success, changed, invalid: mean over cases of the share of attacks, as in ``Attacked``. The case is the unit, since the
            attacks on one case have one attacker.
        beaten: share of cases in which at least one attack wins, of those with a valid verdict: an attacker may try them all.
        each: by name of the attack.
        harmless: what a sentence that says nothing to the judge does in the same place: how much of the above is chance.
    """

    cases: int
    success: Rate
    changed: Rate
    invalid: Rate
    beaten: Rate
    each: Mapping[str, Attacked]
    harmless: Attacked


@dataclass(frozen=True)
class Audit:
    """What is known about a judge.

    Attributes:
        cases: labelled cases asked.
        confidence: two-sided level of every interval.
        accuracy: share of labels a or b that the judge names, a tie of the judge counting one half; valid verdicts only.
        agreement: share of labels a, b or tie that the judge names; valid verdicts only.
        kappa: Cohen's kappa of the same, in [-1, 1].
        position_flip_rate: share of cases whose two orders name different answers, of valid ones asked in both orders.
        first_shown_rate: share of orders in which the answer shown first wins, of decided orders; 0.5 is even-handed.
        tie_rate: share of ties of valid verdicts.
        invalid_rate: share of cases without a verdict.
        invalid_reasons: cases by what went wrong; a case whose orders failed differently counts under both.
        longer_wins_rate: share in which the longer answer (characters) wins, of decided verdicts with unequal lengths.
        human_longer_wins_rate: the same of the labels, on all cases with a valid verdict.
        length_only: a judge that sees nothing but lengths.
        retest: the test-retest, or None where none was made.
        attacks: the attacks, or None where none were made.
        cost_per_verdict: US dollars.
        tokens_per_verdict: tokens by kind, "prompt_tokens" and "completion_tokens".
    """

    cases: int
    confidence: float
    accuracy: Rate
    agreement: Rate
    kappa: Rate
    position_flip_rate: Rate
    first_shown_rate: Rate
    tie_rate: Rate
    invalid_rate: Rate
    invalid_reasons: Mapping[str, int]
    longer_wins_rate: Rate
    human_longer_wins_rate: Rate
    length_only: LengthOnly
    retest: Retest | None
    attacks: Attacks | None
    cost_per_verdict: Amount
    tokens_per_verdict: Mapping[str, Amount]

    def record(self) -> dict[str, Any]:
        """Return the audit as JSON values; what is not defined is None."""
        return asdict(self)
