"""What a judge behind an API makes of replies, refusals and faults; the endpoint is on this machine and speaks real HTTP."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
from endpoint import Answer, fair, modern, refusal, shown
from judge_setup import SECRET, judge, question

from spo_bench.errors import InputError
from spo_bench.judging.completion import refused_parameter

# -- verdicts -----------------------------------------------------------------------------------------------------------------


def test_a_fair_judge_finds_the_better_answer_wherever_it_stands(endpoint):
    endpoint.script = fair
    questions = [question("1"), question("2", "bad", "good"), question("3", "good", "good!")]
    verdicts = judge(endpoint, concurrency=1).compare(questions)
    assert [(v.id, v.outcome, v.score) for v in verdicts] == [("1", "a", 1.0), ("2", "b", 0.0), ("3", "tie", 0.5)]
    assert [shown(body) for body in endpoint.bodies[:2]] == [("the good one", "the other"), ("the other", "the good one")]
    first, second = verdicts[0].orders
    assert (first["first"], first["verdict"], second["first"], second["verdict"]) == ("a", "a", "b", "a")
    assert first["text"] == "So: [[A]]"
    assert second["text"] == "So: [[B]]"
    assert first["finish_reason"] == "stop"
    assert first["model"] == "judge-2030-01-01"
    assert first["usage"] == {"prompt_tokens": 100, "completion_tokens": 10}
    json.dumps([v.record() for v in verdicts], allow_nan=False)


def test_a_judge_that_always_says_a_is_no_evidence(endpoint):
    verdict = judge(endpoint).compare([question()])[0]
    assert (verdict.outcome, verdict.score) == ("tie", 0.5)
    assert [order["verdict"] for order in verdict.orders] == ["a", "b"]


def test_one_decided_order_and_one_tie_is_a_score_between(endpoint):
    """Order (a, b) says the first wins: 1; order (b, a) says tie: 1/2; the mean is 3/4."""
    endpoint.script = lambda body, number: Answer("[[A]]" if shown(body)[0] == "the good one" else "[[C]]")
    verdict = judge(endpoint).compare([question()])[0]
    assert (verdict.outcome, verdict.score) == ("a", 0.75)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer("I cannot say."), "holds no verdict"),
        (Answer(""), "empty"),
        (Answer(None), "empty"),
        (Answer("[[A]] or rather [[E]]"), "not one of"),
        (Answer("[[A]]", finish_reason="content_filter"), "content filter"),
        (Answer("[[A]]", finish_reason="tool_calls"), "tool call"),
        (Answer("[[A]]", refusal="I will not judge this."), "I will not judge this."),
        (
            refusal(400, "This model's maximum context length is 10; max_tokens is 5", code="context_length_exceeded"),
            "longer than",
        ),
        (refusal(400, "flagged", code="content_filter"), "content filter"),
        (refusal(500, "oops"), "HTTP 500: oops"),
        (refusal(400, "something odd"), "HTTP 400: something odd"),
        (Answer(body=b'{"choices": ['), "not a chat completion"),
        (Answer(body=b"<html>hello</html>", headers={"content-type": "text/html"}), "not a chat completion"),
        (Answer(body=b'{"error": {"message": "no such provider"}}'), "no such provider"),
        (Answer(body=b'{"choices": [{"message": "text"}]}'), "empty"),
        (Answer(body=b"42"), "not a chat completion"),
    ],
)
def test_an_order_without_a_verdict_makes_the_question_invalid_and_no_other(endpoint, answer, reason):
    def script(body: dict[str, Any], number: int) -> Answer:
        return answer if shown(body)[0] == "the other" else fair(body, number)

    endpoint.script = script
    bad, fine = judge(endpoint, concurrency=1).compare([question("bad"), question("fine", "good", "poor")])
    assert (bad.outcome, bad.score) == ("invalid", None)
    assert bad.reason is not None
    assert bad.reason.startswith("b shown first: ")
    assert reason in bad.reason
    assert [order["verdict"] for order in bad.orders] == ["a", None]
    assert (fine.outcome, fine.score, fine.reason) == ("a", 1.0, None)


# -- faults that pass ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        refusal(500, "oops"),
        refusal(503, "busy"),
        refusal(429, "slow down"),
        Answer(reset=True),
        Answer(body=b'{"choices": ['),
    ],
)
def test_a_fault_that_passes_costs_no_verdict(endpoint, fault):
    fault.headers["retry-after-ms"] = "20"
    endpoint.script = lambda body, number: fault if number == 1 else fair(body, number)
    verdict = judge(endpoint, concurrency=1).compare([question()])[0]
    assert (verdict.outcome, verdict.score) == ("a", 1.0)
    assert len(endpoint.bodies) == 3


def test_retry_after_is_honoured(endpoint):
    """Without the header the client would wait at most half a second before the first repetition."""
    endpoint.script = lambda body, number: (
        Answer(status=429, body=b'{"error": {"message": "slow"}}', headers={"retry-after": "1"})
        if number == 0
        else fair(body, number)
    )
    assert judge(endpoint).compare([question()])[0].outcome == "a"
    assert endpoint.times[1] - endpoint.times[0] >= 1.0


def test_a_silent_endpoint_times_out_and_is_asked_again(endpoint):
    endpoint.script = lambda body, number: Answer(delay=2.5) if number == 1 else fair(body, number)
    assert judge(endpoint, timeout=1.0).compare([question()])[0].score == 1.0


def test_a_cut_reply_is_asked_for_once_more_with_twice_the_tokens(endpoint):
    def script(body: dict[str, Any], number: int) -> Answer:
        return fair(body, number) if body["max_tokens"] == 200 else Answer("[[A]] is what I", finish_reason="length")

    endpoint.script = script
    verdict = judge(endpoint, max_tokens=100, concurrency=1).compare([question()])[0]
    assert verdict.outcome == "a"
    assert [body["max_tokens"] for body in endpoint.bodies] == [100, 200, 100, 200]
    assert verdict.orders[0]["parameters"]["max_tokens"] == 200
    assert verdict.usage == {"prompt_tokens": 400, "completion_tokens": 40}  # both tries of both orders


@pytest.mark.parametrize(
    "second", [Answer("[[A]]", finish_reason="length"), refusal(400, "max_tokens is too large", param="max_tokens")]
)
def test_a_reply_cut_twice_is_invalid_although_it_holds_a_mark(endpoint, second):
    endpoint.script = lambda body, number: second if body["max_tokens"] == 200 else Answer("[[A]]", finish_reason="length")
    verdict = judge(endpoint, max_tokens=100).compare([question()])[0]
    assert verdict.outcome == "invalid"
    assert verdict.reason is not None
    assert "was cut" in verdict.reason
    assert verdict.notes == ()


# -- parameters a model refuses -----------------------------------------------------------------------------------------------


def test_refused_parameters_are_learned_once_and_recorded(endpoint):
    endpoint.script = modern
    verdicts = judge(endpoint).compare([question(str(number)) for number in range(4)])
    assert all(verdict.outcome == "a" for verdict in verdicts)
    assert len(endpoint.bodies) == 8 + 2
    assert verdicts[3].orders[0]["parameters"] == {"max_completion_tokens": 512}
    assert [("max_tokens" in note, "temperature" in note) for note in verdicts[3].notes] == [(True, False), (False, True)]


def test_a_temperature_that_was_set_is_never_dropped(endpoint):
    endpoint.script = modern
    with pytest.raises(InputError, match=r"refuses temperature 0\.7"):
        judge(endpoint, temperature=0.7).compare([question()])


def test_a_limit_refused_in_both_forms_is_the_users_to_change(endpoint):
    def script(body: dict[str, Any], number: int) -> Answer:
        return refusal(400, f"{'max_tokens' if 'max_tokens' in body else 'max_completion_tokens'} is too large: 512")

    endpoint.script = script
    with pytest.raises(InputError, match="lower max_tokens"):
        judge(endpoint).compare([question()])
    assert len(endpoint.bodies) == 2


@pytest.mark.parametrize(
    ("param", "words", "found"),
    [
        ("temperature", "no", "temperature"),
        ("messages", "max_tokens", None),
        (None, "unknown field max_completion_tokens", None),
        (None, "extra inputs: max_tokens", "max_tokens"),
        (None, "max_tokens is too large: the context length is 2048", None),
    ],
)
def test_which_parameter_a_refusal_is_about(param, words, found):
    assert refused_parameter(param, words, {"max_tokens": 1, "temperature": 0.0}) == found


# -- faults that do not pass --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_one_request_and_a_remedy(endpoint, status):
    endpoint.script = lambda body, number: refusal(status, f"Incorrect API key provided: {SECRET}")
    with pytest.raises(InputError, match="JUDGE_KEY") as caught:
        judge(endpoint).compare([question(str(number)) for number in range(10)])
    assert endpoint.url in str(caught.value)
    assert SECRET not in str(caught.value)
    assert len(endpoint.bodies) == 1


@pytest.mark.parametrize("answer", [refusal(404, "no such model"), refusal(400, "no such model", code="model_not_found")])
def test_an_unknown_model_names_model_and_address(endpoint, answer):
    endpoint.script = lambda body, number: answer
    with pytest.raises(InputError, match=r"does not serve 'judge'(.|\n)*base_url"):
        judge(endpoint).compare([question()])


def test_an_endpoint_that_is_not_there(endpoint):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(InputError, match=rf"no answer from the judge endpoint http://127.0.0.1:{port}/v1(.|\n)*base_url"):
        judge(endpoint, base_url=f"http://127.0.0.1:{port}/v1", retries=0).compare([question()])


@pytest.mark.parametrize("url", ["localhost:8000/v1", "ftp://example.org", "http://", "http://[::1", "http://h:port"])
def test_what_is_no_address(endpoint, url):
    with pytest.raises(InputError, match=r"base_url is no address"):
        judge(endpoint, base_url=url).compare([question()])
