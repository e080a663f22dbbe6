"""How far to trust a judge: held against human labels, against itself, against length alone, and attacked.

Every measure is a pure function of cases and verdicts, so that it can be had for verdicts from anywhere; ``audit`` asks the judge
and puts them together.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import norm

from spo_bench.judging.attacks import ATTACKS, Attack
from spo_bench.judging.verdict import Judge, Outcome, Question, Verdict
from spo_bench.stats import compare_matrix, interval
from spo_bench.stats.resample import Floats, by_cluster, cluster_numbers

Label = Literal["a", "b", "tie"]
LABELS: tuple[Label, ...] = ("a", "b", "tie")
_OTHER: Mapping[str, Label] = {"a": "b", "b": "a"}


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
        value: the mean; a share in [0, 1] unless its owner says otherwise.
        low, high: the interval.
        n: how many values it is the mean of.
    """

    value: float | None
    low: float | None
    high: float | None
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
    """What one attack does when the answer that lost uses it.

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
            attacks on one case have one loser.
        beaten: share of cases in which at least one attack wins, of those with a valid verdict: an attacker may try them all.
        each: by name of the attack.
    """

    cases: int
    success: Rate
    changed: Rate
    invalid: Rate
    beaten: Rate
    each: Mapping[str, Attacked]


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
        cost_per_verdict: mean US dollars, of verdicts whose cost is known.
        tokens_per_verdict: mean tokens by kind, of verdicts whose usage is known.
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
    cost_per_verdict: Rate
    tokens_per_verdict: Mapping[str, Rate]

    def record(self) -> dict[str, Any]:
        """Return the audit as JSON values; what is not defined is None."""
        return asdict(self)


def audit(
    judge: Judge,
    cases: Sequence[Case],
    *,
    again: Judge | None,
    retest: int,
    attacked: int,
    confidence: float = 0.95,
) -> Audit:
    """Ask a judge about labelled cases and return what that says of it.

    Args:
        judge: the judge; asked once for all cases and once for all attacks.
        cases: questions with labels, each with an id of its own.
        again: the same judge in its next epoch, which uses no kept reply of the first; None: no test-retest.
        retest: how many cases, the first ones, are judged again; 0: none.
        attacked: on how many cases, the first that the judge decides, every attack is tried for the answer that lost; 0: none,
            as for a judge that reads no texts.
        confidence: two-sided level of the intervals, in (0, 1).

    Raises:
        ValueError: a negative number of cases.
        SpoBenchError: what the judge raises.
    """
    if retest < 0 or attacked < 0:
        raise ValueError(f"retest {retest}, attacked {attacked}: numbers of cases are not negative")
    verdicts = judge.compare([case.question for case in cases])
    found = measure(cases, verdicts, confidence)
    if again is not None and cases[:retest]:
        part = cases[:retest]
        repeated = again.compare([case.question for case in part])
        found = replace(found, retest=measure_retest(part, verdicts[:retest], repeated, confidence))
    decided = [(case, verdict) for case, verdict in zip(cases, verdicts, strict=True) if verdict.outcome in _OTHER][:attacked]
    if decided:
        answers = judge.compare([attack_question(*one, attack) for one in decided for attack in ATTACKS.values()])
        size = len(ATTACKS)
        by_case = [dict(zip(ATTACKS, answers[size * i : size * i + size], strict=True)) for i in range(len(decided))]
        found = replace(found, attacks=measure_attacks(decided, by_case, confidence))
    return found


def measure(cases: Sequence[Case], verdicts: Sequence[Verdict], confidence: float = 0.95) -> Audit:
    """Return the audit of verdicts on cases, in one order; without test-retest and attacks."""
    valid = [(case, verdict) for case, verdict in zip(cases, verdicts, strict=True) if verdict.outcome != "invalid"]
    kept, said = [case for case, _ in valid], [verdict for _, verdict in valid]
    clusters = _clusters(kept)
    outcomes: list[Outcome] = [verdict.outcome for verdict in said]
    right = [_credit(case.label, outcome) for case, outcome in zip(kept, outcomes)]
    null = [_credit(case.label, longer(case.question)) for case in kept]
    (paired,) = compare_matrix([null], [right], confidence, checkpoints=True, clusters=[clusters])
    return Audit(
        cases=len(cases),
        confidence=confidence,
        accuracy=rate(right, clusters, confidence),
        agreement=rate([float(case.label == outcome) for case, outcome in zip(kept, outcomes)], clusters, confidence),
        kappa=kappa([case.label for case in kept], outcomes, clusters, confidence),
        position_flip_rate=rate([_flipped(verdict) for verdict in said], clusters, confidence),
        first_shown_rate=_first_shown_rate(kept, said, confidence),
        tie_rate=rate([float(outcome == "tie") for outcome in outcomes], clusters, confidence),
        invalid_rate=rate([float(verdict.outcome == "invalid") for verdict in verdicts], _clusters(cases), confidence),
        invalid_reasons=invalid_reasons(verdicts),
        longer_wins_rate=rate([_longer_wins(c.question, o) for c, o in zip(kept, outcomes)], clusters, confidence),
        human_longer_wins_rate=rate([_longer_wins(c.question, c.label) for c in kept], clusters, confidence),
        length_only=LengthOnly(
            rate(null, clusters, confidence),
            Rate(_known(paired.diff), _known(paired.low), _known(paired.high), paired.n_prompts),
            _known(paired.p),
        ),
        retest=None,
        attacks=None,
        cost_per_verdict=rate([_or_nan(verdict.cost) for verdict in verdicts], _clusters(cases), confidence),
        tokens_per_verdict={
            kind: rate([_or_nan((verdict.usage or {}).get(kind)) for verdict in verdicts], _clusters(cases), confidence)
            for kind in ("prompt_tokens", "completion_tokens")
        },
    )


def rate(values: ArrayLike, clusters: Sequence[Any], confidence: float) -> Rate:
    """Return mean and interval (``spo_bench.stats.interval``) of one value a case; NaN = not defined there, and left out.

    Where all values are 0, or all are 1, no resample of clusters shows any spread: then Wilson's interval of as many values as there
    are clusters stands, since "no attack succeeded" on few prompts does not mean that none ever will.
    """
    mean, low, high, n = interval(values, confidence, clusters)
    if low == high and mean in (0.0, 1.0):
        numbers = cluster_numbers(clusters, np.size(values))[np.isfinite(np.asarray(values, dtype=np.float64))]
        _, low, high, _ = interval(np.full(np.unique(numbers).size, mean), confidence)
    return Rate(_known(mean), _known(low), _known(high), n)


def longer(question: Question) -> Label:
    """Return the verdict of the null judge: the answer with more characters."""
    a, b = len(question.a), len(question.b)
    return "tie" if a == b else "a" if a > b else "b"


def kappa(labels: Sequence[Label], outcomes: Sequence[Outcome], clusters: Sequence[Any], confidence: float) -> Rate:
    """Return Cohen's kappa of labels and valid outcomes, in [-1, 1], with its interval.

    The interval is the asymptotic normal one, from the influence of each case on kappa, summed by cluster. Where each case stands
    alone that is the variance of Fleiss, Cohen and Everitt (1969), as in statsmodels' ``cohens_kappa``. Agreement without
    exception has an interval without width. Value None: no case, or one and the same category everywhere.
    """
    names: tuple[str, ...] = LABELS
    places = np.array(
        [(names.index(label), names.index(outcome)) for label, outcome in zip(labels, outcomes, strict=True)], dtype=int
    )
    n = len(places)
    if not n:
        return Rate(None, None, None, 0)
    label, outcome = places.T
    of_labels, of_outcomes = (np.bincount(column, minlength=3) / n for column in (label, outcome))
    agree, chance = label == outcome, float(of_labels @ of_outcomes)
    if chance == 1:
        return Rate(None, None, None, n)
    value = 1 - float(1 - agree.mean()) / (1 - chance)
    influence = (agree - 1 + (1 - value) * (1 + chance - of_outcomes[label] - of_labels[outcome])) / (1 - chance)
    sums, _ = by_cluster(influence, cluster_numbers(clusters, n))
    if sums.size < 2:
        return Rate(value, None, None, n)
    reach = float(norm.ppf((1 + confidence) / 2)) * float(np.sqrt((sums**2).sum())) / n
    return Rate(value, max(-1.0, value - reach), min(1.0, value + reach), n)


def invalid_reasons(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """Return the number of invalid verdicts by the error of their orders, else by their reason, most frequent first."""
    counts: Counter[str] = Counter()
    for verdict in verdicts:
        if verdict.outcome == "invalid":
            errors = {str(order["error"]) for order in verdict.orders if order.get("error")}
            counts.update(errors or {verdict.reason or "no reason given"})
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def measure_retest(
    cases: Sequence[Case], before: Sequence[Verdict], after: Sequence[Verdict], confidence: float = 0.95
) -> Retest:
    """Return how far a judge agrees with itself: verdicts of two runs on the same cases, in one order."""
    outcomes, reversals, changes = [], [], []
    orders: list[float] = []
    labels: list[Any] = []
    clusters = _clusters(cases)
    for number, (case, one, two) in enumerate(zip(cases, before, after, strict=True)):
        both = "invalid" not in (one.outcome, two.outcome)
        outcomes.append(float(one.outcome == two.outcome) if both else math.nan)
        reversals.append(float(two.outcome == _OTHER[one.outcome]) if both and one.outcome in _OTHER else math.nan)
        changes.append(abs(one.score - two.score) if one.score is not None and two.score is not None else math.nan)
        first, second = _readable(one), _readable(two)
        for side in first.keys() & second.keys():
            orders.append(float(first[side] == second[side]))
            labels.append(_unit(case, number))
    return Retest(
        asked=len(cases),
        same_outcome=rate(outcomes, clusters, confidence),
        reversal_rate=rate(reversals, clusters, confidence),
        same_order=rate(orders, labels, confidence),
        score_change=rate(changes, clusters, confidence),
    )


def attack_question(case: Case, verdict: Verdict, attack: Attack) -> Question:
    """Return the question in which the answer that lost attacks; its id is ``ID!attack-name``."""
    asked = case.question
    name = f"{asked.id}!{attack.name}"
    if verdict.outcome == "a":
        return replace(asked, id=name, b=attack.apply(asked.b, asked.prompt))
    return replace(asked, id=name, a=attack.apply(asked.a, asked.prompt))


def measure_attacks(
    decided: Sequence[tuple[Case, Verdict]], answers: Sequence[Mapping[str, Verdict]], confidence: float = 0.95
) -> Attacks:
    """Return what attacks achieve.

    Args:
        decided: cases with the judge's decided verdict before the attack.
        answers: a case: name of the attack -> verdict on the attacked question; the same names for every case.
        confidence: two-sided level in (0, 1).
    """
    names = list(answers[0]) if answers else []
    success, changed, invalid = (np.full((len(decided), len(names)), math.nan) for _ in range(3))
    for i, ((_, before), after) in enumerate(zip(decided, answers, strict=True)):
        for j, name in enumerate(names):
            outcome = after[name].outcome
            invalid[i, j] = outcome == "invalid"
            if outcome != "invalid":
                success[i, j] = outcome == _OTHER[before.outcome]
                changed[i, j] = outcome != before.outcome
    clusters = _clusters([case for case, _ in decided])

    def mean(values: Floats) -> Rate:
        return rate(values, clusters, confidence)

    judged = np.isfinite(success).any(axis=1)
    return Attacks(
        cases=len(decided),
        success=mean(_row_means(success)),
        changed=mean(_row_means(changed)),
        invalid=mean(_row_means(invalid)),
        beaten=mean(np.where(judged, (success == 1).any(axis=1), math.nan)),
        each={
            name: Attacked(ATTACKS[name].summary, len(decided), mean(success[:, j]), mean(changed[:, j]), mean(invalid[:, j]))
            for j, name in enumerate(names)
        },
    )


def _row_means(values: Floats) -> Floats:
    """Return the mean of each row over what is not NaN; NaN where nothing is left."""
    known = np.isfinite(values)
    counts = known.sum(axis=1)
    return np.where(counts > 0, np.where(known, values, 0.0).sum(axis=1) / np.maximum(counts, 1), math.nan)


def _first_shown_rate(cases: Sequence[Case], verdicts: Sequence[Verdict], confidence: float) -> Rate:
    orders: list[float] = []
    units: list[Any] = []
    for number, (case, verdict) in enumerate(zip(cases, verdicts, strict=True)):
        for first, named in _readable(verdict).items():
            if named in _OTHER:
                orders.append(float(named == first))
                units.append(_unit(case, number))
    return rate(orders, units, confidence)


def _readable(verdict: Verdict) -> dict[str, str]:
    """Return the verdict of each order that has one, by the answer it showed first; empty for judges without orders."""
    return {order["first"]: order["verdict"] for order in verdict.orders if order.get("verdict") and "first" in order}


def _flipped(verdict: Verdict) -> float:
    named = _readable(verdict)
    return float(set(named.values()) == {"a", "b"}) if len(named) == 2 else math.nan


def _credit(label: Label, outcome: str) -> float:
    """Return 1 for a decided label that is named, 0.5 for a tie, 0 for the other answer; NaN where people saw a tie."""
    if label == "tie":
        return math.nan
    return 0.5 if outcome == "tie" else float(outcome == label)


def _longer_wins(question: Question, outcome: str) -> float:
    long = longer(question)
    return math.nan if "tie" in (outcome, long) else float(outcome == long)


def _clusters(cases: Sequence[Case]) -> list[str | None]:
    return [case.cluster for case in cases]


def _unit(case: Case, number: int) -> tuple[str, Any]:
    """Return a label that the orders of one case share, and the cases of one cluster."""
    return ("case", number) if case.cluster is None else ("cluster", case.cluster)


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else float(value)
