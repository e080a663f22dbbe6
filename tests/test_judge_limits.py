"""How many requests are under way, and how long is waited: the limit that finds its own height."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from endpoint import Answer, Endpoint, fair, in_thread, refusal
from hypothesis import given
from hypothesis import strategies as st
from judge_setup import judge, question

from spo_bench.errors import StageError
from spo_bench.judging.traffic import BACK, LONGEST_WAIT, START, Traffic, asked_wait, backoff


def test_the_limit_doubles_a_round_until_the_first_refusal_then_grows_by_one():
    """Four answers make 8 of 4, eight more 16; a refusal leaves 12; then 12 answers make about one more."""
    traffic = Traffic(100)
    for expected in (2 * START, 4 * START):
        for _ in range(expected // 2):
            traffic.answered()
        assert traffic.limit == expected
    traffic.refused(time.monotonic(), None)
    assert traffic.limit == 4 * START * BACK
    for _ in range(12):
        traffic.answered()
    assert 12.9 < traffic.limit <= 13


def test_requests_under_way_together_lower_the_limit_once():
    traffic = Traffic(64)
    traffic.limit = 40.0
    began = time.monotonic()
    for _ in range(20):
        traffic.refused(began, None)
    assert traffic.limit == 40 * BACK
    traffic.refused(time.monotonic(), None)  # this one was sent at the lower limit
    assert traffic.limit == 40 * BACK * BACK


def test_the_limit_stays_between_one_and_the_ceiling():
    traffic = Traffic(6)
    for _ in range(100):
        traffic.answered()
    assert traffic.limit == 6
    for _ in range(100):
        traffic.refused(time.monotonic(), None)
    assert traffic.limit == 1


@given(st.integers(1, 9), st.integers(1, 40))
def test_never_more_than_the_limit_are_under_way(ceiling, number):
    async def work() -> tuple[int, int]:
        traffic, seen = Traffic(ceiling), []

        async def one() -> None:
            async with traffic.turn():
                seen.append(traffic.open)
                await asyncio.sleep(0)
                traffic.answered()

        await asyncio.gather(*(one() for _ in range(number)))
        return max(seen), traffic.open

    most, left = asyncio.run(work())
    assert most <= ceiling
    assert left == 0


def test_a_wait_that_is_asked_for_holds_for_all():
    async def work() -> float:
        traffic = Traffic(4)
        traffic.refused(time.monotonic(), 0.2)
        began = time.monotonic()
        async with traffic.turn():
            return time.monotonic() - began

    assert asyncio.run(work()) >= 0.2


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "3"}, 0.25),
        ({"retry-after": "soon"}, None),
        ({"retry-after-ms": "x"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
    ],
)
def test_how_long_an_endpoint_asks_to_wait(headers, seconds):
    assert asked_wait(headers) == seconds


def test_a_date_is_a_wait_too():
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 27 < asked_wait({"retry-after": later}) <= 30


@given(st.integers(1, 40))
def test_waits_grow_twofold_at_random_up_to_a_limit(tries):
    longest = min(LONGEST_WAIT, 0.5 * 2 ** (tries - 1))
    assert longest / 2 <= backoff(tries) <= longest


def test_an_endpoint_that_takes_fewer_at_once_is_asked_at_its_pace(monkeypatch):
    """Six at once are allowed, the ceiling is 32: refusals cost tries, not verdicts."""
    with in_thread(Endpoint(fair, delay=0.01, allow=6)) as endpoint:
        found = judge(endpoint, concurrency=32, retries=8).judge([question(str(number)) for number in range(60)])
    assert [verdict.outcome for verdict in found.verdicts] == ["a"] * 60
    assert 120 < found.calls < 240
    assert endpoint.most_open <= 16


def test_a_wait_longer_than_anybody_waits_ends_judging(endpoint):
    endpoint.script = lambda body, number: Answer(
        status=429, body=refusal(429, "tomorrow").body, headers={"retry-after": "86400"}
    )
    with pytest.raises(StageError, match=r"asks to wait 86400 seconds(.|\n)*Resumable"):
        judge(endpoint).compare([question()])
