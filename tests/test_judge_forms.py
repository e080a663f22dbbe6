"""In which form a judge is asked, what is known or learned of its model, and how its replies are read again."""

from __future__ import annotations

from dataclasses import replace
from math import log

import pytest
from endpoint import Answer, fair, modern, plain, refusal, said
from hypothesis import given
from hypothesis import strategies as st
from judge_setup import judge, question

from spo_bench.errors import InputError, StageError
from spo_bench.judging.capabilities import Capabilities, address, known, place, room, undated
from spo_bench.judging.prompt import SCHEMA
from spo_bench.judging.records import read_again, summary
from spo_bench.judging.store import ReplyStore
from spo_bench.judging.verdict import verdict_record

QUESTIONS = [question(str(number), *(("good", "bad") if number % 2 else ("bad", "good"))) for number in range(6)]
WINNERS = ["b", "a"] * 3


def outcomes(verdicts):
    return [verdict.outcome for verdict in verdicts]


def forms(verdicts):
    return {order["form"] for verdict in verdicts for order in verdict.orders}


def test_a_schema_is_sent_where_it_is_taken(endpoint):
    endpoint.script = fair
    verdicts = judge(endpoint, verdict="auto").compare(QUESTIONS)
    assert outcomes(verdicts) == WINNERS
    assert forms(verdicts) == {"json"}
    assert endpoint.bodies[0]["response_format"]["json_schema"]["schema"] == SCHEMA
    assert len(endpoint.bodies) == 12
    assert verdicts[0].notes == ()
    assert verdicts[0].orders[0]["parameters"]["response_format"] == "verdict (json_schema)"


def test_a_refused_schema_is_learned_once_and_also_for_the_next_run(endpoint, tmp_path):
    endpoint.script = plain
    cache = tmp_path / "cache"
    verdicts = judge(endpoint, verdict="auto", cache=cache).compare(QUESTIONS)
    assert outcomes(verdicts) == WINNERS
    assert forms(verdicts) == {"text"}
    assert len(endpoint.bodies) == 1 + 12
    assert "refused response_format" in verdicts[0].notes[0]
    judge(endpoint, verdict="auto", cache=cache).compare([*QUESTIONS, question("new")])
    assert len(endpoint.bodies) == 13 + 2


def test_an_endpoint_that_ignores_the_schema_is_asked_in_text(endpoint, tmp_path):
    endpoint.script = lambda body, number: fair({**body, "response_format": {}}, number)
    verdicts = judge(endpoint, verdict="auto", cache=tmp_path / "cache").compare(QUESTIONS)
    assert outcomes(verdicts) == WINNERS
    assert forms(verdicts) == {"text"}
    assert len(endpoint.bodies) == 2 + 12
    assert "no JSON" in verdicts[0].notes[0]


def mumbling(body, number):
    """A model that cannot be brought to say its verdict, but has one."""
    return fair(body, number) if body.get("logprobs") else replace(fair(body, number), text="Both are fine.")


def test_a_model_that_never_says_its_verdict_is_read_by_its_log_probabilities(endpoint):
    """Two replies in JSON and four in text hold none; then each order is asked for its letter."""
    endpoint.script = mumbling
    verdicts = judge(endpoint, verdict="auto").compare(QUESTIONS)
    assert outcomes(verdicts) == WINNERS
    assert forms(verdicts) == {"logprobs"}
    assert len(endpoint.bodies) == 2 + 4 + 12
    last = endpoint.bodies[-1]
    assert (last["max_tokens"], last["logprobs"], last["top_logprobs"]) == (1, True, 20)
    assert len(verdicts[0].notes) == 2
    # The scripted model gives the letters .98 and .01: 0.98 / 0.99, whichever stands first.
    assert verdicts[1].score == pytest.approx(0.98 / 0.99)
    assert verdicts[0].score == pytest.approx(0.01 / 0.99)


def test_a_model_that_has_no_verdict_in_any_form_is_asked_in_text_and_invalid(endpoint):
    endpoint.script = lambda body, number: plain({**body}, number) if "logprobs" in body else Answer("Both are fine.")
    verdicts = judge(endpoint, verdict="auto").compare(QUESTIONS)
    assert set(outcomes(verdicts)) == {"invalid"}
    assert forms(verdicts) == {"text"}


def test_a_first_reply_that_fails_otherwise_says_nothing_of_the_form(endpoint, tmp_path):
    """The four probed orders are filtered, so nothing is settled and nothing is kept as learned; the rest is asked in JSON."""
    endpoint.script = lambda body, number: replace(fair(body, number), finish_reason="content_filter" if number < 8 else "stop")
    found = judge(endpoint, verdict="auto", cache=tmp_path / "cache", concurrency=1).judge(QUESTIONS)
    assert found.form == "json"
    assert "a" in outcomes(found.verdicts)


@pytest.mark.parametrize(("form", "needed"), [("json", "response_format"), ("logprobs", "logprobs")])
def test_a_form_that_was_set_is_never_changed_silently(endpoint, form, needed):
    endpoint.script = plain
    with pytest.raises(InputError, match=rf"refuses {needed}(.|\n)*leave verdict out"):
        judge(endpoint, verdict=form).compare(QUESTIONS)


@pytest.mark.parametrize("form", ["json", "text", "logprobs"])
def test_each_form_reads_the_same_verdicts(endpoint, form):
    endpoint.script = fair
    assert outcomes(judge(endpoint, verdict=form).compare(QUESTIONS)) == WINNERS
    assert len(endpoint.bodies) == 12


def test_probabilities_near_even_are_a_tie(endpoint):
    """Shown first wins with .51 / (.51 + .49) in both orders: .51 and .49, mean .5."""
    endpoint.script = lambda body, number: Answer("A", logprobs={"A": log(0.51), "B": log(0.49)})
    (verdict,) = judge(endpoint, verdict="logprobs").compare([question()])
    assert (verdict.outcome, verdict.score) == ("tie", pytest.approx(0.5))


def test_letters_with_and_without_a_space_are_one(endpoint):
    tops = {"A": log(0.3), " A": log(0.3), "B": log(0.2), "The": log(0.2)}
    endpoint.script = lambda body, number: Answer("A", finish_reason="length", logprobs=tops)
    (verdict,) = judge(endpoint, verdict="logprobs").compare([question()])
    assert verdict.orders[0]["score"] == pytest.approx(0.6 / 0.8)


def test_one_order_is_half_the_requests_and_the_prompt_decides_which(endpoint):
    endpoint.script = fair
    questions = [question(str(number)) for number in range(20)]
    verdicts = judge(endpoint, orders="one").compare(questions)
    assert len(endpoint.bodies) == 20
    assert set(outcomes(verdicts)) == {"a"}
    assert {verdict.orders[0]["first"] for verdict in verdicts} == {"a", "b"}
    again = [verdict.orders[0]["first"] for verdict in judge(endpoint, orders="one").compare(questions)]
    assert again == [verdict.orders[0]["first"] for verdict in verdicts]


def test_an_epoch_asks_afresh_and_equal_questions_are_asked_once(endpoint, tmp_path):
    endpoint.script = fair
    same = [question(), replace(question(), id="the same texts")]
    asked = judge(endpoint, cache=tmp_path / "cache")
    assert outcomes(asked.compare(same)) == ["a", "a"]
    assert len(endpoint.bodies) == 2
    replace(asked, epoch=1).compare(same)
    assert len(endpoint.bodies) == 4
    assert endpoint.bodies[2]["messages"] == endpoint.bodies[0]["messages"]
    replace(asked, epoch=1).compare(same)
    assert len(endpoint.bodies) == 4


def test_max_calls_stops_before_it_is_passed_and_the_rest_says_so(endpoint, tmp_path):
    endpoint.script = fair
    limited = judge(endpoint, cache=tmp_path / "cache", max_calls=7)
    with pytest.raises(StageError, match=r"max_calls 7(.|\n)*Resumable"):
        limited.compare(QUESTIONS)
    assert len(endpoint.bodies) == 7
    found = limited.judge(QUESTIONS)
    assert len(endpoint.bodies) == 7
    assert found.stopped is not None
    assert outcomes(found.verdicts).count("invalid") == 3
    assert "not asked: " in found.verdicts[-1].reason
    assert outcomes(replace(limited, max_calls=12).compare(QUESTIONS)) == WINNERS
    assert len(endpoint.bodies) == 12


def test_a_parameter_that_is_refused_counts_as_a_call(endpoint):
    endpoint.script = modern
    with pytest.raises(StageError, match="max_calls 3"):
        judge(endpoint, max_calls=3).compare(QUESTIONS)
    assert len(endpoint.bodies) == 3


def test_a_judge_that_was_interrupted_goes_on_in_the_form_it_had_found(endpoint, tmp_path):
    """The limit ends the first run in the middle; the second knows the form and pays only for what is missing."""
    endpoint.script = mumbling
    limited = judge(endpoint, verdict="auto", cache=tmp_path / "cache", max_calls=10)
    assert limited.judge(QUESTIONS).stopped is not None
    found = replace(limited, max_calls=None).judge(QUESTIONS)
    assert (found.form, outcomes(found.verdicts)) == ("logprobs", WINNERS)
    assert len(endpoint.bodies) == 2 + 4 + 12


def test_kept_verdicts_show_the_form_where_nothing_was_learned(endpoint, tmp_path):
    """A kill may come before what was learned is written, but not before replies are kept."""
    endpoint.script = mumbling
    asked = judge(endpoint, verdict="auto", cache=tmp_path / "cache")
    asked.compare(QUESTIONS)
    with ReplyStore(tmp_path / "cache") as store:
        assert store._db.execute("DELETE FROM learned").rowcount == 1
    assert asked.judge(QUESTIONS).form == "logprobs"
    assert outcomes(asked.compare(QUESTIONS)) == WINNERS


def test_a_form_that_is_no_longer_taken_is_sought_anew(endpoint, tmp_path):
    endpoint.script = fair
    asked = judge(endpoint, verdict="auto", cache=tmp_path / "cache")
    asked.compare(QUESTIONS[:2])
    endpoint.script = plain
    found = asked.judge(QUESTIONS)
    assert (found.form, outcomes(found.verdicts)) == ("text", WINNERS)


# -- what is known --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "form", "length", "temperature"),
    [
        ("gpt-4o-2024-08-06", "json", "max_completion_tokens", True),
        ("gpt-4.1-mini-2025-04-14", "json", "max_completion_tokens", True),
        ("gpt-4-0613", "text", "max_tokens", True),
        ("gpt-3.5-turbo-0125", "text", "max_tokens", True),
        ("o3-mini-2025-01-31", "json", "max_completion_tokens", False),
        ("gpt-5-2025-08-07", "json", "max_completion_tokens", False),
        ("gpt-5-chat-latest", "json", "max_completion_tokens", True),
    ],
)
def test_what_is_known_of_openai_models(model, form, length, temperature):
    assert known(model, None) == Capabilities(form, length, temperature)
    assert (room(model, None) > 2000) == (not temperature)
    assert known(model, "http://localhost:8000/v1") == Capabilities()  # a name says little there


def test_a_temperature_that_was_set_is_sent_to_a_model_that_may_refuse_it(endpoint, monkeypatch):
    """Capabilities only decide what is left out by default."""
    endpoint.script = modern
    with pytest.raises(InputError, match=r"refuses temperature 0"):
        judge(endpoint, temperature=0.0).compare(QUESTIONS)


@pytest.mark.parametrize(
    ("model", "url", "dated"),
    [
        ("gpt-4o-2024-08-06", None, True),
        ("gpt-4-0613", None, True),
        ("claude-3-5-sonnet-20241022", "https://api.example.org/v1", True),
        ("mistral-large-2402", "https://api.example.org/v1", True),
        ("gpt-4o", None, False),
        ("gpt-5-chat-latest", None, False),
        ("gpt-4-turbo", None, False),
        ("anything", "http://localhost:8000/v1", True),
    ],
)
def test_undated_ids_draw_a_warning(model, url, dated):
    assert (undated(model, url) is None) == dated


@given(st.sampled_from(["localhost", "127.0.0.1", "[::1]"]), st.sampled_from(["", "/"]))
def test_one_place_has_many_addresses(host, end):
    assert place(f"http://{host}:8000/v1{end}") == place("http://localhost:8000/v1") == "loopback:8000/v1"


@pytest.mark.parametrize(
    "url", ["http://user:sk-hidden@host/v1", "http://sk-hidden@host/v1", "https://host/v1?api-key=sk-hidden"]
)
def test_an_address_with_a_secret_is_refused_before_anything_writes_it(url):
    with pytest.raises(InputError, match="from the environment only") as caught:
        address(url)
    assert "sk-hidden" not in str(caught.value)


def test_other_places_are_other_places():
    urls = [None, "http://localhost:8001/v1", "http://localhost:8000/v1", "https://judge.example/v1", "https://judge.example/v2"]
    assert len({place(url) for url in urls}) == len(urls)
    assert place("https://API.openai.com:443/v1/") == place(None)


# -- reading again ------------------------------------------------------------------------------------------------------------


def test_kept_replies_are_read_again_and_nothing_else_changes(endpoint):
    """Two verdicts were read wrongly when they were kept: one as none at all, one as the other answer."""
    endpoint.script = lambda body, number: (
        said(body, "A") if "Say it, 0." not in body["messages"][0]["content"] else refusal(500, "down")
    )
    asked = [question(str(number)) for number in range(3)]
    verdicts = judge(endpoint, retries=0).compare(asked)
    records = [verdict_record(one, found) for one, found in zip(asked, verdicts, strict=True)]
    assert [read_again(record, "here") for record in records] == records
    misread = [dict(record) for record in records]
    misread[1] = {**misread[1], "outcome": "invalid", "score": None, "reason": "no verdict"}
    lost = [{**order, "verdict": None, "score": None, "error": "no_verdict"} for order in misread[1]["orders"]]
    misread[1]["orders"] = lost
    misread[2] = {**misread[2], "outcome": "b", "score": 0.0}
    assert [read_again(record, "here") for record in misread] == records
    assert records[0]["outcome"] == "invalid"
    found = summary(records)
    assert (found["n"], found["n_invalid"], found["ties"]) == (2, 1, 2)
    assert found["invalid_reasons"] == {"outage": 1}
    assert found["flip_rate"] == 100
    assert found["first_shown_rate"] == 100
    assert found["answered_by"] == [{"model": "judge-2030-01-01", "revision": None}]


def test_only_replies_of_language_models_can_be_read_again():
    with pytest.raises(InputError, match=r"row 3: no replies"):
        read_again({"id": "q", "outcome": "a", "score": 1.0, "orders": [{"a": 1.0, "b": 0.0}]}, "file, row 3")


def test_a_kept_reply_without_a_verdict_costs_nothing_once_it_can_be_read(endpoint, tmp_path, monkeypatch):
    """A better parser: here one that also takes [[D]] for a tie."""
    from spo_bench.judging import reading

    endpoint.script = lambda body, number: Answer("[[D]]")
    asked = judge(endpoint, cache=tmp_path / "cache")
    assert outcomes(asked.compare([question()])) == ["invalid"]
    assert len(endpoint.bodies) == 2
    monkeypatch.setattr(reading, "_MENU", {**reading._MENU, "D": 0.5})
    assert outcomes(asked.compare([question()])) == ["tie"]
    assert len(endpoint.bodies) == 2
