"""How far to trust a judge: held against human labels, against itself, against length alone, and attacked.

Every measure is a pure function of cases and verdicts, so that it can be had for verdicts from anywhere; ``audit`` asks the judge
and puts them together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import norm
from statsmodels.stats.proportion import proportion_confint

from spo_bench.judging.attacks import ATTACKS, HARMLESS, TRIED, Attack
from spo_bench.judging.audit_record import LABELS, Amount, Attacked, Attacks, Audit, Case, Label, LengthOnly, Rate, Retest
from spo_bench.judging.verdict import Judge, Outcome, Question, Verdict, invalid_reasons, named
from spo_bench.stats import compare_matrix, interval
from spo_bench.stats.resample import Floats, by_cluster, cluster_numbers

_OTHER: Mapping[str, Label] = {"a": "b", "b": "a"}
_ATTACKER: Mapping[str, Label] = {**_OTHER, "tie": "b"}
"""Outcome -> the answer that attacks: the one that lost; of a tie either would do."""


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
        attacked: on how many cases, the first that the judge decides (then ties), every attack is tried for the answer that had
            not won; 0: none, as for a judge that reads no texts.
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
    judged = [(case, verdict) for case, verdict in zip(cases, verdicts, strict=True) if verdict.outcome in _ATTACKER]
    # Ties only where too few are decided: what a judge without opinions can be talked into matters too.
    judged = sorted(judged, key=lambda one: one[1].outcome == "tie")[:attacked]
    if judged:
        answers = judge.compare([attack_question(*one, attack) for one in judged for attack in TRIED.values()])
        size = len(TRIED)
        by_case = [dict(zip(TRIED, answers[size * i : size * i + size], strict=True)) for i in range(len(judged))]
        found = replace(found, attacks=measure_attacks(judged, by_case, confidence))
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
        cost_per_verdict=_amount([verdict.cost for verdict in verdicts]),
        tokens_per_verdict={
            kind: _amount([(verdict.usage or {}).get(kind) for verdict in verdicts])
            for kind in ("prompt_tokens", "completion_tokens")
        },
    )


def rate(values: ArrayLike, clusters: Sequence[Any], confidence: float) -> Rate:
    """Return mean and interval (``spo_bench.stats.interval``) of one value a case; NaN = not defined there, and left out.

    Where all clusters have one mean in [0, 1], no resample shows any spread: then Wilson's interval of as many values as there
    are clusters stands, since "no attack succeeded" on few prompts does not mean that none ever will.
    """
    mean, low, high, n = interval(values, confidence, clusters)
    if low == high and 0 <= mean <= 1:
        numbers = cluster_numbers(clusters, np.size(values))[np.isfinite(np.asarray(values, dtype=np.float64))]
        units = np.unique(numbers).size
        low, high = proportion_confint(mean * units, units, alpha=1 - confidence, method="wilson")
        low, high = min(float(low), mean), max(float(high), mean)
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
        first, second = named(one), named(two)
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
    """Return the question in which the answer that had not won attacks; its id is ``ID!attack-name``."""
    asked, side = case.question, _ATTACKER[verdict.outcome]
    attacking = attack.apply(asked.a if side == "a" else asked.b, asked.prompt)
    return Question(
        f"{asked.id}!{attack.name}",
        asked.prompt,
        attacking if side == "a" else asked.a,
        attacking if side == "b" else asked.b,
        asked.row,
    )


def measure_attacks(
    judged: Sequence[tuple[Case, Verdict]], answers: Sequence[Mapping[str, Verdict]], confidence: float = 0.95
) -> Attacks:
    """Return what attacks achieve.

    Args:
        judged: cases with the judge's valid verdict before the attack.
        answers: a case: name in ``TRIED`` -> verdict on the changed question; the same names for every case.
        confidence: two-sided level in (0, 1).
    """
    names = [name for name in TRIED if answers and name in answers[0]]
    success, changed, invalid = (np.full((len(judged), len(names)), math.nan) for _ in range(3))
    for i, ((_, before), after) in enumerate(zip(judged, answers, strict=True)):
        for j, name in enumerate(names):
            outcome = after[name].outcome
            invalid[i, j] = outcome == "invalid"
            if outcome != "invalid":
                success[i, j] = outcome == _ATTACKER[before.outcome]
                changed[i, j] = outcome != before.outcome
    clusters = _clusters([case for case, _ in judged])

    def mean(values: Floats) -> Rate:
        return rate(values, clusters, confidence)

    def one(name: str) -> Attacked:
        columns = [values[:, names.index(name)] if name in names else np.empty(0) for values in (success, changed, invalid)]
        return Attacked(TRIED[name].summary, len(columns[2]), *(mean(column) for column in columns))

    attacking = [j for j, name in enumerate(names) if name in ATTACKS]
    won = success[:, attacking]
    return Attacks(
        cases=len(judged),
        success=mean(_row_means(won)),
        changed=mean(_row_means(changed[:, attacking])),
        invalid=mean(_row_means(invalid[:, attacking])),
        beaten=mean(np.where(np.isfinite(won).any(axis=1), (won == 1).any(axis=1), math.nan)),
        each={names[j]: one(names[j]) for j in attacking},
        harmless=one(HARMLESS.name),
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
        for first, winner in named(verdict).items():
            if winner in _OTHER:
                orders.append(float(winner == first))
                units.append(_unit(case, number))
    return rate(orders, units, confidence)


def _flipped(verdict: Verdict) -> float:
    said = named(verdict)
    return float(set(said.values()) == {"a", "b"}) if len(said) == 2 else math.nan


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


def _amount(values: Sequence[float | None]) -> Amount:
    known = [value for value in values if value is not None]
    return Amount(sum(known) / len(known) if known else None, len(known))
