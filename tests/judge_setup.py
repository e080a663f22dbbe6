"""A judge and questions for tests against the scripted endpoint."""

from __future__ import annotations

from typing import Any

from endpoint import Endpoint

from spo_bench.judging.api import ApiJudge
from spo_bench.judging.verdict import Question

TEMPLATE = "Who helps more? {braces} stay.\n{prompt}\nAnswer A:\n{a}\nAnswer B:\n{b}\n"
SECRET = "sk-test-0123456789abcdef"


def judge(endpoint: Endpoint, **changes: Any) -> ApiJudge:
    """A judge whose verdicts are marks in text, unless ``changes`` say otherwise."""
    settings = {"model": "judge", "template": TEMPLATE, "base_url": endpoint.url, "api_key_env": "JUDGE_KEY"}
    return ApiJudge(**settings | {"verdict": "text", "max_tokens": 512, "retries": 1} | changes)


def question(name: str = "q", a: str = "the good one", b: str = "the other") -> Question:
    """A question of its own for every name: equal texts are one request."""
    return Question(name, f"Say it, {name}.", a, b, {})
