"""Judging through an endpoint that takes 50 ms and allows 32 requests at once, and judging again what is in the cache.

Usage: python benchmarks/judge.py [--pairs 2000] [--cached 100000] [--rounds 2] [--json]

The endpoint is `tests/endpoint.py`, a program of its own on this machine. The ideal time is requests x delay / allowed at once.
Beside the judge, a plain loop over the same client sends the same requests and does nothing with the replies: it shows what of
the time is the client's. Every pair is judged in both orders: two requests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import openai

from spo_bench.judging.api import ApiJudge
from spo_bench.judging.prompt import SCHEMA, prompts
from spo_bench.judging.store import ReplyStore
from spo_bench.judging.verdict import Question

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from endpoint import log_of, program  # the tests are no package

TEMPLATE = "Which answer helps the person more?\n\n{prompt}\n\nAnswer A:\n{a}\n\nAnswer B:\n{b}"
WORDS = [
    "the",
    "a",
    "of",
    "and",
    "which",
    "some",
    "water",
    "light",
    "house",
    "river",
    "walks",
    "takes",
    "finds",
    "small",
    "early",
]

ASKED: dict[str, Any] = {
    "max_tokens": 1024,
    "temperature": 0.0,
    "response_format": {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": SCHEMA}},
}


def questions(count: int, words: int) -> list[Question]:
    """Return pairs of answers of about so many words each; one of the two is the good one."""
    draw = random.Random(0)

    def text(length: int) -> str:
        return " ".join(draw.choices(WORDS, k=length)) + "."

    return [
        Question(str(n), f"{n}: {text(words // 2)}", *draw.sample(["good: " + text(words), text(words)], 2), {})
        for n in range(count)
    ]


async def loop_of_client(url: str, requests: list[dict[str, Any]], at_once: int) -> None:
    """Send requests with the plain client, so many at once."""
    gate = asyncio.Semaphore(at_once)
    async with openai.AsyncOpenAI(api_key="none", base_url=url) as client:

        async def one(request: dict[str, Any]) -> None:
            async with gate:
                await client.chat.completions.create(**request)

        await asyncio.gather(*(one(request) for request in requests))


def fresh(pairs: list[Question], delay: float, allow: int, rounds: int, directory: Path) -> dict[str, Any]:
    """Return seconds of the judge and of the plain loop, in turn, over the same requests."""
    ideal = 2 * len(pairs) * delay / allow
    seconds: dict[str, list[float]] = {"judge": [], "plain loop": []}
    busy = {"judge": 0.0, "plain loop": 0.0}
    most_open, answered = 0, 0
    for turn in range(rounds):
        log = directory / f"log-{turn}.jsonl"
        with program("--delay", str(delay), "--allow", str(allow), "--log", str(log)) as url:
            judge = ApiJudge("judge", TEMPLATE, url, verdict="json", concurrency=allow, cache=directory / f"cache-{turn}.sqlite")
            started, work = time.perf_counter(), time.process_time()
            verdicts = judge.compare(pairs)
            seconds["judge"].append(time.perf_counter() - started)
            busy["judge"] += time.process_time() - work
            wrong = [v.id for v, pair in zip(verdicts, pairs) if v.outcome != ("a" if "good" in pair.a else "b")]
            if wrong:
                raise SystemExit(f"{len(wrong)} wrong verdicts, the first on {wrong[0]}")
            lines = log_of(log)
            most_open, answered = max(most_open, *(line["open"] for line in lines)), sum(line["answered"] for line in lines)
            texts = [text for pair in pairs for text in prompts(TEMPLATE, pair, ("a", "b"), "json", 0)]
            requests = [{"model": "judge", "messages": [{"role": "user", "content": text}], **ASKED} for text in texts]
            started, work = time.perf_counter(), time.process_time()
            asyncio.run(loop_of_client(url, requests, allow))
            seconds["plain loop"].append(time.perf_counter() - started)
            busy["plain loop"] += time.process_time() - work
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    return {
        "verdicts": len(pairs),
        "requests": answered,
        "most_at_once": most_open,
        "ideal_seconds": ideal,
        "seconds": medians,
        "of_ideal": {name: found / ideal for name, found in medians.items()},
        "cpu_ms_a_request": {name: 1000 * work / (rounds * 2 * len(pairs)) for name, work in busy.items()},
    }


def cached(pairs: list[Question], directory: Path) -> dict[str, Any]:
    """Return seconds of judging pairs whose replies are all kept.

    A real answer to the first pair is kept by the judge itself; it is then put under the keys of all the others.
    """
    cache = directory / "kept.sqlite"
    with program() as url:
        judge = ApiJudge("judge", TEMPLATE, url, verdict="json", cache=cache)
        judge.compare(pairs[:1])
    with ReplyStore(cache) as store:
        planned = judge._plan(store, pairs, "json")
        key = planned.orders[0][0][1]  # of the first order of the first pair
        reply = store.replies([key])[key]
        for request in planned.missing:
            store.keep(request.key, reply)
    started = time.perf_counter()
    verdicts = judge.compare(pairs)  # the endpoint has ended: a request would fail
    seconds = time.perf_counter() - started
    if not all(order["cached"] for verdict in verdicts for order in verdict.orders):
        raise SystemExit("a reply was not from the cache")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"verdicts": len(verdicts), "seconds": seconds, "file_mb": cache.stat().st_size / 1e6, "peak_memory_gib": peak}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2000, help="judged fresh")
    parser.add_argument("--cached", type=int, default=100_000, help="judged from the cache")
    parser.add_argument("--delay", type=float, default=0.05, help="seconds an answer takes")
    parser.add_argument("--allow", type=int, default=32, help="requests at once")
    parser.add_argument("--rounds", type=int, default=2, help="of the judge and the plain loop in turn; medians are shown")
    parser.add_argument("--words", type=int, default=100, help="of an answer")
    parser.add_argument("--json", action="store_true")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        result = {
            "versions": {"python": platform.python_version(), "openai": openai.__version__},
            "cores": os.cpu_count(),
            "fresh": fresh(questions(wanted.pairs, wanted.words), wanted.delay, wanted.allow, wanted.rounds, directory),
            "cached": cached(questions(wanted.cached, wanted.words), directory),
        }
    if wanted.json:
        print(json.dumps(result, indent=1))
        return
    new, old = result["fresh"], result["cached"]
    print(f"Python {platform.python_version()}, openai {openai.__version__}, {os.cpu_count()} cores, server included")
    print(f"{new['verdicts']} verdicts, {new['requests']} requests, at most {new['most_at_once']} at once, {wanted.delay} s each")
    for what, seconds in {"ideal": new["ideal_seconds"], **new["seconds"]}.items():
        cpu = f"   {new['cpu_ms_a_request'][what]:.2f} ms of CPU a request" if what in new["cpu_ms_a_request"] else ""
        print(f"{what:12} {seconds:7.2f} s {seconds / new['ideal_seconds']:6.2f} x ideal{cpu}")
    print(f"{old['verdicts']} verdicts from a cache of {old['file_mb']:.0f} MB: {old['seconds']:.2f} s")
    print(f"peak memory of this process {old['peak_memory_gib']:.1f} GiB")


if __name__ == "__main__":
    main()
