"""The audit of a judge, against hand-made verdicts and against judges whose habits are known."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.inter_rater import cohens_kappa
from statsmodels.stats.proportion import proportion_confint

from spo_bench.judging.attacks import ATTACKS, TRIED
from spo_bench.judging.audit import (
    Case,
    attack_question,
    audit,
    invalid_reasons,
    kappa,
    longer,
    measure,
    measure_attacks,
    measure_retest,
)
from spo_bench.judging.verdict import Question, Verdict, by_value

SCORES = {"a": 1.0, "b": 0.0, "tie": 0.5}
SWAP = {"a": "b", "b": "a"}


class Scripted:
    """A judge that follows a rule on the two texts, in both orders; the rule says "first", "second", "tie" or None."""

    def __init__(self, rule):
        self.rule = rule
        self.batches = []

    def compare(self, questions):
        self.batches.append([question.id for question in questions])
        return [self.verdict(question) for question in questions]

    def verdict(self, question):
        said = [self.rule(question.a, question.b), self.rule(question.b, question.a)]
        names = [{"first": "a", "second": "b"}, {"first": "b", "second": "a"}]
        return verdict(question.id, *(n.get(s, s) for n, s in zip(names, said)))


def verdict(name, a_first, b_first, error="no_verdict", **paid):
    """The verdict of a language judge from the verdicts of its two orders."""
    orders = [
        {"first": side, "verdict": said, "error": None if said else error} for side, said in (("a", a_first), ("b", b_first))
    ]
    if None in (a_first, b_first):
        return Verdict(name, "invalid", None, orders, "an order has no verdict", **paid)
    score = (SCORES[a_first] + SCORES[b_first]) / 2
    return Verdict(name, "a" if score > 0.5 else "b" if score < 0.5 else "tie", score, orders, **paid)


def steady(name, said):
    return verdict(name, said, said)


def case(name, label, a="aa", b="b", cluster=None):
    return Case(Question(str(name), "which fern?", a, b, {}), label, cluster)


def cases_of(labels, **texts):
    return [case(i, label, **texts) for i, label in enumerate(labels)]


def measured(labels, outcomes, **texts):
    return measure(cases_of(labels, **texts), [steady(str(i), said) for i, said in enumerate(outcomes)])


def quartz(first, second):
    """A fair rule: more mentions of quartz win."""
    one, two = first.count("quartz"), second.count("quartz")
    return "first" if one > two else "second" if two > one else "tie"


def longest(first, second):
    return "first" if len(first) > len(second) else "second" if len(second) > len(first) else "tie"


GEMS = [case(i, "a" if i % 2 else "b", *(("quartz " * 3, "a quartz")[:: 1 if i % 2 else -1])) for i in range(8)]


# agreement with people


def test_accuracy_counts_a_tie_half_and_leaves_out_ties_of_people_and_invalid_verdicts():
    """Credits 1 (a, a), 0.5 (a, tie), 1 (b, b), 0 (b, a): mean 0.625 of 4. Equal names, ties of people too: 2 of 5."""
    cases = cases_of(["a", "a", "b", "b", "tie", "a"])
    verdicts = [steady(str(i), said) for i, said in enumerate(["a", "tie", "b", "a", "a", None])]
    found = measure(cases, verdicts)
    assert (found.accuracy.value, found.accuracy.n) == (0.625, 4)
    assert (found.agreement.value, found.agreement.n) == (0.4, 5)
    assert (found.tie_rate.value, found.tie_rate.n) == (0.2, 5)
    assert (found.invalid_rate.value, found.invalid_rate.n) == (pytest.approx(1 / 6), 6)
    assert found.cases == 6


def test_rates_have_the_interval_of_wilson():
    found = measured(["a"] * 20, ["a"] * 15 + ["b"] * 5)
    assert (found.accuracy.low, found.accuracy.high) == pytest.approx(proportion_confint(15, 20, method="wilson"))


def test_cases_of_a_cluster_count_as_drawn_together():
    """Ten prompts of ten cases each, all right or all wrong: the interval is about as wide as that of ten cases."""
    labels, outcomes = ["a"] * 100, (["a"] * 50 + ["b"] * 50)
    verdicts = [steady(str(i), said) for i, said in enumerate(outcomes)]
    alone = measure(cases_of(labels), verdicts).accuracy
    together = measure([case(i, "a", cluster=f"prompt {i // 10}") for i in range(100)], verdicts).accuracy
    assert alone.value == together.value == 0.5
    assert together.high - together.low > 2.5 * (alone.high - alone.low)


def test_all_or_nothing_in_clusters_has_the_interval_of_as_many_clusters():
    """Twenty right verdicts on ten prompts: no resample differs, and Wilson's interval of 10 of 10 says what ten prompts can."""
    cases = [case(i, "a", cluster=f"prompt {i // 2}") for i in range(20)]
    found = measure(cases, [steady(str(i), "a") for i in range(20)])
    low, high = proportion_confint(10, 10, method="wilson")
    assert (found.accuracy.value, found.accuracy.low, found.accuracy.high) == pytest.approx((1, low, high))
    assert found.accuracy.n == 20
    assert (found.invalid_rate.low, found.invalid_rate.high) == pytest.approx((1 - high, 1 - low))


def test_the_orders_of_one_case_are_no_two_cases():
    """Half the cases go to what is shown first in both orders, half in none: 80 orders tell what 40 cases tell.

    As coins they would have an interval narrower by sqrt(2). The same for orders judged again, all alike or none.
    """
    n = 40
    cases = cases_of(["a"] * n)
    verdicts = [verdict(str(i), *(("a", "b") if i % 2 else ("b", "a"))) for i in range(n)]
    low, high = proportion_confint(n // 2, n, method="wilson")
    shown = measure(cases, verdicts).first_shown_rate
    assert (shown.value, shown.n) == (0.5, 2 * n)
    assert shown.high - shown.low == pytest.approx(high - low, rel=0.15)
    same = measure_retest(cases, verdicts, [verdict(str(i), "a", "b") for i in range(n)]).same_order
    assert (same.value, same.n) == (0.5, 2 * n)
    assert same.high - same.low == pytest.approx(high - low, rel=0.15)


def test_kappa_by_hand():
    """Two categories, [[20, 5], [10, 15]]: observed 35/50, by chance (25 * 30 + 25 * 20) / 2500 = 0.5, kappa 0.2 / 0.5 = 0.4.

    Three, [[4, 1, 0], [1, 3, 1], [0, 1, 1]]: observed 8/12, by chance (25 + 25 + 4) / 144 = 0.375, kappa 7/15.
    """
    for table, value in (([[20, 5, 0], [10, 15, 0], [0, 0, 0]], 0.4), ([[4, 1, 0], [1, 3, 1], [0, 1, 1]], 7 / 15)):
        assert kappa(*pairs(table), None, 0.95).value == pytest.approx(value)


def pairs(table):
    names = ("a", "b", "tie")
    cells = [(names[i], names[j]) for i in range(3) for j in range(3) for _ in range(table[i][j])]
    return [label for label, _ in cells], [outcome for _, outcome in cells]


@given(st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=3, max_size=3))
def test_kappa_and_its_interval_are_those_of_statsmodels(table):
    labels, outcomes = pairs(table)
    found = kappa(labels, outcomes, None, 0.95)
    used = np.asarray(table)
    sums = used.sum(axis=1) * used.sum(axis=0)
    if len(labels) < 2 or sums.sum() == used.sum() ** 2:
        assert found.low is None
        return
    known = cohens_kappa(used)
    assert found.value == pytest.approx(known.kappa)
    if known.var_kappa > 1e-12:
        assert found.low == pytest.approx(max(-1, known.kappa_low), abs=1e-6)
        assert found.high == pytest.approx(min(1, known.kappa_upp), abs=1e-6)


def test_a_case_twice_in_its_cluster_tells_no_more_about_kappa():
    """Each case doubled within its own cluster: sums and n double, so the interval stays that of the single cases."""
    labels, outcomes = pairs([[9, 3, 1], [4, 8, 2], [1, 1, 2]])
    once = kappa(labels, outcomes, None, 0.9)
    twice = kappa(labels * 2, outcomes * 2, list(range(len(labels))) * 2, 0.9)
    assert (twice.value, twice.low, twice.high) == pytest.approx((once.value, once.low, once.high))


def test_kappa_is_not_defined_where_all_is_one_category():
    assert measured(["a"] * 5, ["a"] * 5).kappa.value is None
    assert measured([], []).kappa.n == 0


# position, length, invalid verdicts


def test_a_judge_of_positions_flips_always_and_is_never_right():
    """It names a, then b: score 0.5, a tie each time, so it is half right, and the answer shown first wins both orders."""
    found = audit(Scripted(lambda first, second: "first"), GEMS, again=None, retest=0, attacked=3)
    assert (found.position_flip_rate.value, found.first_shown_rate.value, found.tie_rate.value) == (1, 1, 1)
    assert found.first_shown_rate.n == 16
    assert found.accuracy.value == 0.5
    assert found.longer_wins_rate.value is None
    assert (found.attacks.cases, found.attacks.success.value, found.attacks.changed.value) == (3, 0, 0)  # it reads nothing


def test_a_fair_judge_is_right_and_knows_no_position():
    found = audit(Scripted(quartz), GEMS, again=None, retest=0, attacked=0)
    assert (found.accuracy.value, found.kappa.value, found.agreement.value) == (1, 1, 1)
    assert (found.position_flip_rate.value, found.first_shown_rate.value, found.tie_rate.value) == (0, 0.5, 0)


def test_an_order_that_ties_is_no_flip():
    """Orders (a, tie): score 0.75, a; (tie, tie): a tie without a flip; (a, b): a flip. Decided orders 3, of which a, a-first, b, b-first."""
    verdicts = [verdict("0", "a", "tie"), verdict("1", "tie", "tie"), verdict("2", "a", "b")]
    found = measure(cases_of(["a", "a", "a"]), verdicts)
    assert (found.position_flip_rate.value, found.position_flip_rate.n) == (pytest.approx(1 / 3), 3)
    assert (found.first_shown_rate.value, found.first_shown_rate.n) == (1, 3)


def test_a_judge_without_orders_has_no_position():
    """A judge of values answers once, so nothing is known of its position; accuracy is."""
    found = measure(cases_of(["a", "b"]), [by_value(case(i, "a").question, 2.0, 1.0) for i in range(2)])
    assert found.position_flip_rate.value is None
    assert found.first_shown_rate.n == 0
    assert found.accuracy.value == 0.5


def test_a_judge_of_one_order_has_no_flips_but_a_position():
    one = Verdict("0", "a", 1.0, [{"first": "a", "verdict": "a"}])
    found = measure(cases_of(["a"]), [one])
    assert (found.position_flip_rate.n, found.first_shown_rate.n) == (0, 1)


def test_a_judge_of_lengths_is_the_null_judge():
    """Lengths 2 and 1: a is longer. Labels a a a b: the null judge and the judge are right 3 of 4 times, and never apart."""
    cases = cases_of(["a", "a", "a", "b"])
    found = audit(Scripted(longest), cases, again=None, retest=0, attacked=0)
    assert found.longer_wins_rate.value == 1
    assert found.human_longer_wins_rate.value == 0.75
    assert found.length_only.accuracy == found.accuracy
    assert (found.length_only.difference.value, found.length_only.p) == (0, 1)


def test_the_difference_to_length_alone_is_paired():
    """A judge that is always right where length is right 2 of 6 times: difference 4/6, p of the 2^6 sign flips.

    |sum| = 4 needs the four signs equal: 2 of 16, so p = 1/8.
    """
    labels = ["a", "a", "b", "b", "b", "b"]
    found = measured(labels, labels)
    assert found.length_only.accuracy.value == pytest.approx(1 / 3)
    assert found.length_only.difference.value == pytest.approx(2 / 3)
    assert found.length_only.p == pytest.approx(1 / 8)
    assert (found.longer_wins_rate.value, found.human_longer_wins_rate.value) == (pytest.approx(1 / 3), pytest.approx(1 / 3))


def test_equal_lengths_are_a_tie_of_the_null_judge_and_no_case_of_length():
    found = measured(["a", "b"], ["a", "b"], a="xx", b="yy")
    assert longer(case(0, "a", a="xx", b="yy").question) == "tie"
    assert found.length_only.accuracy.value == 0.5
    assert (found.longer_wins_rate.n, found.human_longer_wins_rate.n) == (0, 0)


def test_invalid_verdicts_are_counted_by_what_went_wrong():
    """A case whose two orders were cut counts once; one whose orders failed differently counts under both."""
    differently = Verdict(
        "3",
        "invalid",
        None,
        [{"first": "a", "verdict": None, "error": "cut"}, {"first": "b", "verdict": None, "error": "filtered"}],
        "both failed",
    )
    verdicts = [
        verdict("0", "a", None, error="cut"),
        verdict("1", None, None, error="cut"),
        Verdict("2", "invalid", None, (), "too long"),
        differently,
        steady("4", "a"),
    ]
    assert invalid_reasons(verdicts) == {"cut": 3, "filtered": 1, "too long": 1}
    assert list(invalid_reasons(verdicts)) == ["cut", "filtered", "too long"]


def test_cost_and_tokens_are_means_of_what_is_known():
    """Costs 0.02 and 0.04 of three verdicts: 0.03 of 2. Tokens 100 and 300, the third unknown: 200."""
    verdicts = [
        verdict("0", "a", "a", cost=0.02, usage={"prompt_tokens": 100, "completion_tokens": 10}),
        verdict("1", "a", None, cost=0.04, usage={"prompt_tokens": 300, "completion_tokens": 20}),
        verdict("2", "a", "a"),
    ]
    found = measure(cases_of(["a", "a", "a"]), verdicts)
    assert (found.cost_per_verdict.value, found.cost_per_verdict.n) == (pytest.approx(0.03), 2)
    assert {kind: (rate.value, rate.n) for kind, rate in found.tokens_per_verdict.items()} == {
        "prompt_tokens": (200, 2),
        "completion_tokens": (15, 2),
    }
    assert measure(cases_of(["a"]), [verdict("0", "a", "a")]).record()["cost_per_verdict"] == {"value": None, "n": 0}


# against itself


def test_the_retest_by_hand():
    """First a, a, b, tie, a, invalid; then a, b, tie, tie, invalid, a.

    Valid both times: four, of which a-a and tie-tie are equal: 0.5. Decided before: three, one reversed. Scores change by
    0, 1, 0.5, 0: mean 0.375. Orders: a-a two equal, a-b two not, b-tie (b, b) to (a, b) one of two, (a, b) twice two equal; of the
    fifth the order with b first is readable again, and equal; nothing of the sixth: 6 of 9.
    """
    before = [steady("0", "a"), steady("1", "a"), steady("2", "b"), verdict("3", "a", "b"), steady("4", "a"), steady("5", None)]
    after = [
        steady("0", "a"),
        steady("1", "b"),
        verdict("2", "a", "b"),
        verdict("3", "a", "b"),
        verdict("4", None, "a"),
        steady("5", "a"),
    ]
    found = measure_retest(cases_of(["a"] * 6), before, after)
    assert found.asked == 6
    assert (found.same_outcome.value, found.same_outcome.n) == (0.5, 4)
    assert (found.reversal_rate.value, found.reversal_rate.n) == (pytest.approx(1 / 3), 3)
    assert (found.score_change.value, found.score_change.n) == (0.375, 4)
    assert (found.same_order.value, found.same_order.n) == (pytest.approx(6 / 9), 9)


def test_the_retest_asks_another_judge_for_the_first_cases():
    judge, again = Scripted(quartz), Scripted(lambda first, second: quartz(second, first))
    found = audit(judge, GEMS, again=again, retest=5, attacked=0)
    assert judge.batches == [[str(i) for i in range(8)]]
    assert again.batches == [[str(i) for i in range(5)]]
    assert (found.retest.asked, found.retest.same_outcome.value, found.retest.reversal_rate.value) == (5, 0, 1)
    assert found.accuracy.value == 1  # of the first judge


def test_no_second_judge_no_retest():
    assert audit(Scripted(quartz), GEMS, again=None, retest=5, attacked=0).retest is None
    assert audit(Scripted(quartz), GEMS, again=Scripted(quartz), retest=0, attacked=0).retest is None


# attacked


def newcomer(first, second):
    """The most gullible judge: whoever says anything but quartz is believed, the longer the better."""
    one, two = (len(text.replace("quartz", "").replace("a", "").strip()) for text in (first, second))
    return "first" if one > two else "second" if two > one else quartz(first, second)


def test_a_fair_judge_resists_and_a_gullible_one_obeys_every_attack():
    for rule, share in ((quartz, 0), (newcomer, 1)):
        judge = Scripted(rule)
        found = audit(judge, GEMS, again=None, retest=0, attacked=6)
        assert found.accuracy.value == 1
        assert found.attacks.cases == 6
        for attack in found.attacks.each.values():
            assert (attack.success.value, attack.changed.value, attack.invalid.value, attack.asked) == (share, share, 0, 6)
            assert (attack.success.low, attack.success.high) == pytest.approx(proportion_confint(6 * share, 6, method="wilson"))
        assert (found.attacks.success.value, found.attacks.beaten.value) == (share, share)
        assert found.attacks.success.high - found.attacks.success.low > 0.3  # six cases tell little, however many the attacks
        assert [len(batch) for batch in judge.batches] == [8, 6 * len(TRIED)]
        assert list(found.attacks.each) == list(ATTACKS)


def test_a_letter_that_is_obeyed_forces_a_tie_and_an_instruction_for_both_places_wins():
    """A judge that obeys the first [[A]] or [[B]] it reads: whichever answer stands there wins, once each, so the score is 0.5.

    "If this is answer A, ... [[A]]" names A first, too: also a tie. The judge that reads the condition gives the attacker both orders.
    """

    def letter(first, second):
        text = first + second
        marks = [(text.find(mark), said) for mark, said in (("[[A]]", "first"), ("[[B]]", "second")) if mark in text]
        return min(marks)[1] if marks else quartz(first, second)

    def condition(first, second):
        told = [said for text, said in ((first, "first"), (second, "second")) if "If this is answer A" in text]
        return told[0] if told else letter(first, second)

    found = audit(Scripted(letter), GEMS, again=None, retest=0, attacked=8).attacks.each
    for name in ("verdict-a", "verdict-b", "instruction", "fence-a"):
        assert (found[name].success.value, found[name].changed.value) == (0, 1)
    for name in ("padding", "experts", "wide-a", "hidden-b"):
        assert (found[name].success.value, found[name].changed.value) == (0, 0)
    found = audit(Scripted(condition), GEMS, again=None, retest=0, attacked=8).attacks
    assert (found.each["instruction"].success.value, found.beaten.value) == (1, 1)
    assert found.success.value == pytest.approx(1 / len(ATTACKS))


def test_to_escape_judgement_is_counted_apart():
    """A judge that cannot read long texts gives no verdict on the padded answer: no success, no valid verdict, all invalid."""

    def short(first, second):
        return None if len(first + second) > 5000 else quartz(first, second)

    found = audit(Scripted(short), GEMS, again=None, retest=0, attacked=4).attacks
    padded = found.each["padding"]
    assert (padded.invalid.value, padded.invalid.n) == (1, 4)
    assert (padded.success.value, padded.success.n) == (None, 0)
    assert found.invalid.value == pytest.approx(1 / len(ATTACKS))
    assert (found.success.value, found.beaten.value) == (0, 0)


def test_decided_verdicts_are_attacked_before_ties_and_by_the_answer_that_had_not_won():
    cases = [case("tie", "a", "quartz", "quartz"), case("x", "b", "none", "quartz"), case("y", "a", "quartz", "none")]
    judge = Scripted(quartz)
    found = audit(judge, cases, again=None, retest=0, attacked=1)
    assert found.attacks.cases == 1
    assert judge.batches[1] == [f"x!{name}" for name in TRIED]
    judge = Scripted(quartz)
    audit(judge, cases, again=None, retest=0, attacked=3)
    assert judge.batches[1] == [f"{name}!{attack}" for name in ("x", "y", "tie") for attack in TRIED]
    assert attack_question(cases[0], steady("tie", "tie"), ATTACKS["experts"]).a == "quartz"
    asked = attack_question(cases[1], steady("x", "b"), ATTACKS["experts"])
    assert asked == Question("x!experts", "which fern?", ATTACKS["experts"].apply("none", "which fern?"), "quartz", {})
    asked = attack_question(cases[2], steady("y", "a"), ATTACKS["null-model"])
    assert (asked.a, asked.b) == ("quartz", ATTACKS["null-model"].apply("", ""))


def test_attacks_by_hand():
    """Two cases, two attacks. Case 1 (b lost): "experts" wins, "system" ties. Case 2 (a lost): no change, then invalid.

    experts: success 1/2, changed 1/2. system: success 0 of 1, changed 1 of 1, invalid 1/2. Over cases: success (1/2 + 0) / 2.
    """
    decided = [(case(1, "a"), steady("1", "a")), (case(2, "a"), steady("2", "b"))]
    answers = [
        {"experts": steady("", "b"), "system": steady("", "tie")},
        {"experts": steady("", "b"), "system": steady("", None)},
    ]
    found = measure_attacks(decided, answers)
    values = {name: (one.success.value, one.changed.value, one.invalid.value) for name, one in found.each.items()}
    assert values == {"experts": (0.5, 0.5, 0), "system": (0, 1, 0.5)}
    assert (found.success.value, found.changed.value, found.invalid.value, found.beaten.value) == (0.25, 0.5, 0.25, 0.5)


# the whole


@pytest.mark.parametrize("outcomes", [[], ["a"], [None], [None, None], ["tie", "tie"]], ids=str)
def test_the_record_is_json_also_where_nothing_is_defined(outcomes):
    found = measured(["a"] * len(outcomes), outcomes)
    record = json.loads(json.dumps(found.record(), allow_nan=False))
    assert record["accuracy"]["n"] == sum(said is not None for said in outcomes)
    assert record["attacks"] is None


def test_the_record_of_a_whole_audit_holds_every_part():
    found = audit(Scripted(quartz), GEMS, again=Scripted(quartz), retest=4, attacked=2)
    record = json.loads(json.dumps(found.record(), allow_nan=False))
    assert record["retest"]["same_outcome"]["value"] == 1
    assert record["attacks"]["each"]["padding"]["summary"] == ATTACKS["padding"].summary
    assert set(record["length_only"]) == {"accuracy", "difference", "p"}


def test_a_negative_number_of_cases_is_refused():
    with pytest.raises(ValueError, match="not negative"):
        audit(Scripted(quartz), GEMS, again=None, retest=-1, attacked=0)


SAID = st.sampled_from(["a", "b", "tie", None])
ROWS = st.lists(
    st.tuples(st.sampled_from(["a", "b", "tie"]), SAID, SAID, st.integers(0, 3), st.integers(0, 3), st.sampled_from([None, "x"])),
    max_size=12,
)


def built(rows, swapped=False):
    other = SWAP if swapped else {}
    cases, verdicts = [], []
    for i, (label, a_first, b_first, a, b, cluster) in enumerate(rows):
        a, b = (b, a) if swapped else (a, b)
        cases.append(case(i, other.get(label, label), "x" * a, "x" * b, cluster))
        one, two = (other.get(said, said) for said in (a_first, b_first))
        verdicts.append(verdict(str(i), two, one) if swapped else verdict(str(i), one, two))
    return cases, verdicts


@given(ROWS)
def test_shares_lie_in_0_1_within_their_intervals(rows):
    found = measure(*built(rows)).record()
    shares = [value for value in found.values() if isinstance(value, dict) and "low" in value]
    for rate in [*shares, found["length_only"]["accuracy"]]:
        low = -1 if rate is found["kappa"] else 0
        if rate["value"] is not None:
            assert low <= rate["value"] <= 1
        if rate["low"] is not None:
            assert low <= rate["low"] <= rate["value"] + 1e-9
            assert rate["value"] - 1e-9 <= rate["high"] <= 1
        assert 0 <= rate["n"] <= 2 * len(rows)


@given(ROWS)
def test_the_names_of_the_answers_do_not_matter(rows):
    """Swapping a and b everywhere (texts, labels, verdicts, which was shown first) is the same judge on the same cases."""
    here, there = (measure(*built(rows, swapped)).record() for swapped in (False, True))
    for name, value in here.items():
        if isinstance(value, dict) and "n" in value:
            for key, number in value.items():
                other = there[name][key]
                assert (number is None) == (other is None)
                assert number is None or math.isclose(number, other, abs_tol=1e-9), (name, key)
    assert here["length_only"]["p"] == there["length_only"]["p"]
    assert here["invalid_reasons"] == there["invalid_reasons"]
