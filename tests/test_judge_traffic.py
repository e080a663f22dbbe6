"""What a judge behind an API spends, keeps, and has under way at once."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest
from endpoint import Answer, fair, refusal, shown
from judge_setup import TEMPLATE, judge, question

from spo_bench.errors import InputError, StageError
from spo_bench.files import canonical_json
from spo_bench.judging.store import ReplyStore

# -- money --------------------------------------------------------------------------------------------------------------------


def test_a_limit_without_prices_is_refused_at_once(endpoint):
    with pytest.raises(InputError, match="set price_input and price_output"):
        judge(endpoint, max_cost=1.0, price_input=1.0)


def test_cost_is_tokens_times_prices(endpoint):
    """100 prompt tokens at $2 and 10 completion tokens at $30 a million: $0.0002 + $0.0003 an order, $0.001 a verdict."""
    endpoint.script = fair
    priced = judge(endpoint, price_input=2.0, price_output=30.0).compare([question()])[0]
    assert priced.record()["cost"] == pytest.approx(0.001)
    assert priced.record()["usage"] == {"prompt_tokens": 200, "completion_tokens": 20}
    assert judge(endpoint).compare([question()])[0].record()["cost"] is None


def test_a_reply_without_usage_is_charged_with_its_upper_estimate(endpoint):
    """512 completion tokens at $1 a million are $0.000512 an order; prompt tokens cost nothing here."""
    endpoint.script = lambda body, number: Answer(usage=None)
    verdict = judge(endpoint, price_input=0.0, price_output=1.0).compare([question()])[0]
    assert verdict.record()["cost"] == pytest.approx(2 * 0.000512)
    assert verdict.record()["usage"] is None


@pytest.mark.parametrize("concurrency", [1, 8])
def test_judging_stops_before_max_cost_and_goes_on_where_it_stopped(endpoint, tmp_path, concurrency):
    """A request is reserved at 100 completion tokens ($0.1) and costs 10 ($0.01). With $1.005 the k-th request fits while
    0.01 (k - 1) + 0.1 <= 1.005, that is up to k = 91; spent is then $0.91 and the next one could pass the limit.
    """
    endpoint.script = lambda body, number: Answer(fair(body, number).text, delay=0.002)
    limits = {
        "max_tokens": 100,
        "price_input": 0.0,
        "price_output": 1000.0,
        "cache": tmp_path / "cache",
        "concurrency": concurrency,
    }
    questions = [question(str(number)) for number in range(60)]
    with pytest.raises(StageError, match=r"\$0\.9100 of max_cost \$1\.005 is spent(.|\n)*raise max_cost"):
        judge(endpoint, max_cost=1.005, **limits).compare(questions)
    assert len(endpoint.bodies) == 91
    with pytest.raises(StageError, match="max_cost"):  # what was spent stays spent
        judge(endpoint, max_cost=1.005, **limits).compare(questions)
    assert len(endpoint.bodies) == 91
    verdicts = judge(endpoint, max_cost=2.0, **limits).compare(questions)
    assert len(endpoint.bodies) == 120
    assert sum(verdict.record()["cost"] for verdict in verdicts) == pytest.approx(1.2)
    judge(endpoint, max_cost=1.0, budget="another", **limits).compare([question("new")])
    assert len(endpoint.bodies) == 122


def test_refused_requests_cost_nothing(endpoint, tmp_path):
    """Each try reserves $0.512 of $0.6: a second run could not begin if a refusal had been charged."""
    limits = {"price_input": 0.0, "price_output": 1000.0, "max_cost": 0.6, "cache": tmp_path / "cache"}
    endpoint.script = lambda body, number: refusal(401, "no")
    for _ in range(2):
        with pytest.raises(InputError, match="JUDGE_KEY"):
            judge(endpoint, **limits).compare([question()])


# -- replies that are kept ----------------------------------------------------------------------------------------------------


def test_kept_replies_are_used_again_for_the_same_question_to_the_same_judge_only(endpoint, tmp_path):
    endpoint.script = fair
    cache = tmp_path / "deep" / "replies.sqlite"
    first = judge(endpoint, cache=cache, price_input=1.0, price_output=1.0).compare([question()])[0].record()
    again = judge(endpoint, cache=cache, price_input=1.0, price_output=1.0).compare([question()])[0].record()
    assert len(endpoint.bodies) == 2
    for record, cached in ((first, False), (again, True)):
        assert [order.pop("cached") for order in record["orders"]] == [cached, cached]
    assert canonical_json(again) == canonical_json(first)
    changes: list[dict[str, Any]] = [
        {"model": "other"},
        {"template": TEMPLATE + "!"},
        {"temperature": 0.5},
        {"max_tokens": 9},
        {"seed": 1},
    ]
    for number, change in enumerate(changes):
        judge(endpoint, cache=cache, **change).compare([question()])
        assert len(endpoint.bodies) == 4 + 2 * number
    judge(endpoint, cache=cache).compare([question(b="changed")])
    assert len(endpoint.bodies) == 14
    endpoint.script = lambda body, number: refusal(500, "must not be asked")
    assert judge(endpoint, cache=cache).compare([question()])[0].outcome == "a"


def test_invalid_replies_are_asked_for_again(endpoint, tmp_path):
    endpoint.script = lambda body, number: Answer("no idea") if shown(body)[0] == "the other" else fair(body, number)
    assert judge(endpoint, cache=tmp_path / "cache").compare([question()])[0].outcome == "invalid"
    endpoint.script = fair
    assert judge(endpoint, cache=tmp_path / "cache").compare([question()])[0].score == 1.0
    assert len(endpoint.bodies) == 3


def test_processes_share_one_file_and_one_budget(tmp_path):
    """Six processes open a new file at once; each would reserve 50 times $0.1, the limit lets 100 of all through."""
    work = """
import sys
from pathlib import Path
from spo_bench.judging.store import ReplyStore
sys.stdin.readline()
with ReplyStore(Path(sys.argv[1])) as store:
    for place in range(50):
        store.keep(f"{sys.argv[2]} {place}", {"place": place})
        store.reserve("run", 0.1, 10.05, None)
"""
    path = tmp_path / "cache"
    command = [sys.executable, "-c", work, str(path)]
    workers = [subprocess.Popen([*command, str(number)], stdin=subprocess.PIPE) for number in range(6)]
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write(b"go\n")
        worker.stdin.close()
    assert [worker.wait() for worker in workers] == [0] * 6
    with ReplyStore(path) as store:
        assert store.spent("run").dollars == pytest.approx(10.0)
        names = {f"{number} {place}": {"place": place} for number in range(6) for place in range(50)}
        assert store.replies([*names, "unknown"]) == names


def test_a_cache_that_is_something_else(endpoint, tmp_path):
    (tmp_path / "notes.txt").write_text("not a database, " * 100)
    with pytest.raises(InputError, match=r"judge cache .*notes.txt"):
        judge(endpoint, cache=tmp_path / "notes.txt").compare([question()])


# -- outages ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer", [refusal(429, "You exceeded your quota", code="insufficient_quota"), refusal(402, "Insufficient Balance")]
)
def test_a_used_up_quota_stops_and_says_that_it_can_go_on(endpoint, tmp_path, answer):
    endpoint.script = lambda body, number: fair(body, number) if number < 3 else answer
    with pytest.raises(StageError, match=r"quota(.|\n)*Resumable(.|\n)*kept"):
        judge(endpoint, cache=tmp_path / "cache", concurrency=1, retries=0).compare([question(str(n)) for n in range(20)])
    assert len(endpoint.bodies) == 4
    endpoint.script = fair
    verdicts = judge(endpoint, cache=tmp_path / "cache").compare([question(str(n)) for n in range(20)])
    assert len(endpoint.bodies) == 4 + 37
    assert all(verdict.outcome == "a" for verdict in verdicts)


@pytest.mark.parametrize("answer", [refusal(500, "down"), Answer(reset=True), Answer(body=b"<html>"), refusal(400, "odd")])
def test_an_outage_stops_judging_instead_of_making_all_the_rest_invalid(endpoint, answer):
    endpoint.script = lambda body, number: fair(body, number) if number < 4 else answer
    with pytest.raises(StageError, match=r"20 requests in a row(.|\n)*Resumable"):
        judge(endpoint, concurrency=1, retries=0).compare([question(str(n)) for n in range(50)])
    assert len(endpoint.bodies) <= 4 + 2 * 20


# -- how it runs --------------------------------------------------------------------------------------------------------------


def test_requests_run_at_once_up_to_the_limit_and_verdicts_keep_their_order(endpoint):
    endpoint.script = lambda body, number: Answer(fair(body, number).text, delay=0.05 - 0.002 * number)
    verdicts = judge(endpoint, concurrency=3).compare([question(str(number)) for number in range(10)])
    assert [verdict.id for verdict in verdicts] == [str(number) for number in range(10)]
    assert all(verdict.outcome == "a" for verdict in verdicts)
    assert endpoint.most_open == 3


def test_it_runs_where_a_loop_is_running_already(endpoint):
    endpoint.script = fair

    async def notebook() -> str:
        return judge(endpoint).compare([question()])[0].outcome

    assert asyncio.run(notebook()) == "a"
    assert judge(endpoint).compare([]) == []


def test_importing_and_building_a_judge_does_not_import_openai():
    build = "from spo_bench.judging.api import ApiJudge; ApiJudge('m', '{prompt}{a}{b}')"
    code = f"import sys; {build}; sys.exit('openai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
