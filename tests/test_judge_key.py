"""The key of an endpoint is read from the environment and written nowhere."""

from __future__ import annotations

import json

import pytest
from endpoint import Answer, Script, refusal
from judge_setup import SECRET, judge, question

from spo_bench.errors import InputError


def test_the_key_comes_from_the_named_variable_only(endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-another-key")
    judge(endpoint).compare([question()])
    assert set(endpoint.keys) == {f"Bearer {SECRET}"}
    monkeypatch.delenv("JUDGE_KEY")
    judge(endpoint).compare([question()])  # an endpoint on this machine needs none
    assert endpoint.keys[-1] == "Bearer none"
    with pytest.raises(InputError, match="export JUDGE_KEY"):
        judge(endpoint, base_url=None).compare([question()])
    with pytest.raises(InputError, match="export JUDGE_KEY"):
        judge(endpoint, base_url="https://judge.invalid/v1").compare([question()])


def test_a_key_that_no_header_can_carry(endpoint, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "schlüssel-geheim")
    with pytest.raises(InputError, match="plain ASCII") as caught:
        judge(endpoint).compare([question()])
    assert "geheim" not in str(caught.value)


def test_a_repeated_key_is_nowhere_to_be_found(endpoint, tmp_path, caplog):
    caplog.set_level("DEBUG")
    script: list[Script] = [
        lambda body, number: Answer(f"Your key is {SECRET}. [[A]]"),
        lambda body, number: Answer(f"Your key is {SECRET}."),
        lambda body, number: refusal(500, f"key {SECRET} met a fault"),
        lambda body, number: Answer(body=json.dumps({"error": {"message": SECRET}}).encode()),
    ]
    records = []
    for number, step in enumerate(script):
        endpoint.script = step
        records.append(judge(endpoint, cache=tmp_path / "cache").compare([question(str(number))])[0].record())
    endpoint.script = lambda body, number: refusal(404, f"{SECRET} unknown")
    with pytest.raises(InputError) as caught:
        judge(endpoint).compare([question()])
    assert "[key]" in str(caught.value)
    assert "[key]" in json.dumps(records[0])
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    for place in (json.dumps(records), str(caught.value), kept.decode("utf-8", "replace"), caplog.text):
        assert SECRET not in place
