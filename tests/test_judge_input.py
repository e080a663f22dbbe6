"""What `spo-bench judge` refuses, with the remedy and nothing lost; and replies that are odd."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from endpoint import Answer, fair, refusal, shown
from judge_command import (
    row,
    verdicts,
    written,
)

# -- what cannot be used ------------------------------------------------------------------------------------------------------

GOOD = {"id": "one", "prompt": "Say it.", "a": "this", "b": "that"}
NOWHERE = "http://127.0.0.1:9/v1"
KEPT = {"verdicts.jsonl": "kept\n", "summary.json": "{}\n"}


@pytest.fixture
def refused(here, tmp_path) -> Callable[..., str]:
    """Run a command that cannot be carried out: it exits with 2, says rule and remedy, and leaves alone what lies in `out`."""

    def run(*words: Any) -> str:
        out = tmp_path / "out"
        out.mkdir()
        for name, text in KEPT.items():
            (out / name).write_text(text)
        code, output, errors = here(*words)
        assert {path.name: path.read_text() for path in out.iterdir()} == KEPT
        assert (code, output) == (2, ""), errors
        assert errors.startswith("error: ")
        assert "\n  rule: " in errors
        assert "\n  remedy: " in errors
        return errors

    return run


BAD_PAIRS: dict[str, tuple[str | None, list[str]]] = {
    "row without b": (json.dumps(GOOD) + '\n{"id": "two", "prompt": "p", "a": "x"}\n', ["pairs.jsonl, row 2", "no field 'b'"]),
    "not JSON": (json.dumps(GOOD) + "\n{oops\n", ["pairs.jsonl, line 2", "not JSON"]),
    "wrong type": (json.dumps({**GOOD, "a": 3}), ["pairs.jsonl, row 1", "a is 3, not a text"]),
    "wrong prompt": (json.dumps({**GOOD, "prompt": [{"role": "user"}]}), ["pairs.jsonl, row 1", "prompt is"]),
    "no object": ('"text"\n', ["pairs.jsonl, row 1", "each row is a JSON object"]),
    "id that no file can hold": (json.dumps({**GOOD, "id": "\ud800"}), ["pairs.jsonl, row 1", "id"]),
    "double id": (json.dumps(GOOD) + "\n" + json.dumps(GOOD), ["pairs.jsonl, row 2", "id 'one' again"]),
    "empty file": ("", ["pairs.jsonl is empty"]),
    "missing file": (None, ["pairs.jsonl", "No such file"]),
}


@pytest.mark.parametrize("name", BAD_PAIRS)
def test_pairs_that_cannot_be_used(name, refused, tmp_path):
    content, words = BAD_PAIRS[name]
    if content is not None:
        (tmp_path / "pairs.jsonl").write_text(content)
    told = refused("run", "pairs.jsonl", "--judge", "judge", "--base-url", NOWHERE, "--out", "out")
    for word in words:
        assert word in told


BAD_OPTIONS: dict[str, tuple[list[str], list[str]]] = {
    "nobody listens": ([], ["no answer from the judge endpoint http://127.0.0.1:9/v1", "start it"]),
    "no scheme": (["--base-url", "127.0.0.1:9/v1"], ["base_url is no address", "http://"]),
    "key in the address": (["--base-url", "http://me:sk-secret@127.0.0.1:9/v1"], ["comes from the environment only"]),
    "no key": (["--base-url", "https://judge.invalid/v1"], ["OPENAI_API_KEY is not set", "export OPENAI_API_KEY"]),
    "form": (["--verdict", "jsn"], ["unknown verdict 'jsn'", "did you mean 'json'"]),
    "orders": (["--orders", "bth"], ["unknown choice of orders 'bth'", "did you mean 'both'"]),
    "task": (["--task", "dialog"], ["dialog", "did you mean 'dialogue'"]),
    "template without a slot": (["--template", "bad.txt"], ["judge prompt without {b}", "put the slots in"]),
    "template missing": (["--template", "nowhere.txt"], ["nowhere.txt", "check the path"]),
    "a limit without prices": (["--max-cost", "1"], ["max_cost 1", "set price_input and price_output"]),
    "cache is a directory": (["--cache", "out"], ["judge cache out", "another place"]),
    "out is a file": (["--out", "pairs.jsonl"], ["--out 'pairs.jsonl'", "is a file"]),
    "options of an endpoint": (["--judge", "local:nowhere", "--max-tokens", "9"], ["--max-tokens", "leave them out"]),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_options_that_cannot_be_used(name, refused, tmp_path):
    options, words = BAD_OPTIONS[name]
    written(tmp_path, 2)
    (tmp_path / "bad.txt").write_text("Compare {prompt} and {a}.")
    whole = ["--judge", "judge", "--base-url", NOWHERE, "--out", "out", "--retries", 0, *options]
    told = refused("run", "pairs.jsonl", *whole)
    assert "sk-secret" not in told
    for word in words:
        assert word in told


REFUSALS = {
    "key": (
        refusal(401, "Incorrect API key provided"),
        ["refused the key in OPENAI_API_KEY (HTTP 401)", "put a key of this endpoint"],
    ),
    "model": (
        refusal(404, "The model does not exist", code="model_not_found"),
        ["does not serve 'judge'", "check the judge's name"],
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_an_endpoint_that_refuses_key_or_model(name, endpoint, refused, tmp_path):
    answer, words = REFUSALS[name]
    endpoint.script = lambda body, number: answer
    told = refused("run", written(tmp_path, 20), "--judge", "judge", "--base-url", endpoint.url, "--out", "out")
    assert endpoint.number == 1
    for word in words:
        assert word in told


BAD_FILES: dict[str, tuple[list[str], Any, list[str]]] = {
    "audit without labels": (["audit", "--judge", "judge"], [GOOD], ["id 'one'", "no label", "a, b or tie"]),
    "audit with a wrong label": (["audit", "--judge", "judge"], [{**GOOD, "label": "A"}], ['label "A"', "a, b or tie"]),
    "audit into a directory": (["audit", "--judge", "judge", "--out", "out"], [{**GOOD, "label": "a"}], ["--out", "out"]),
    "stats of pairs": (["stats"], [GOOD], ["pairs.jsonl", "verdicts"]),
    "reparse of pairs": (["reparse"], [GOOD], ["pairs.jsonl, row 1", "no replies"]),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_files_of_other_commands_that_cannot_be_used(name, refused, tmp_path):
    """It is said before anything is asked: nobody listens where the audit would ask."""
    (command, *options), rows, words = BAD_FILES[name]
    told = refused(command, written(tmp_path, rows).name, *options, *(["--base-url", NOWHERE] if command == "audit" else []))
    for word in words:
        assert word in told


# -- replies that are odd -----------------------------------------------------------------------------------------------------

ODD: dict[str, tuple[Answer, str, str | None]] = {
    "half of a surrogate pair": (Answer("An odd \ud800 sign. [[A]]"), "text", None),
    "half of a surrogate pair in an error": (refusal(400, "an odd \ud800 sign"), "text", "an odd"),
    "a count of tokens that is none": (Answer("[[A]]", usage={"prompt_tokens": 1.5, "completion_tokens": 5}), "text", None),
    "letters as improbable as can be": (Answer("A", logprobs={"A": -0.1, "B": -9999.0, " B": -9999.0}), "logprobs", None),
    "a probability that is none": (Answer("A", logprobs={"A": float("nan"), "B": -1.0}), "logprobs", "a shown first"),
    "a letter that cannot be": (Answer("A", logprobs={"A": -0.1, "B": float("-inf")}), "logprobs", None),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_reply_is_a_verdict_or_an_invalid_one(name, endpoint, here, tmp_path):
    """The first order of the second pair is odd; that neither ends the command nor costs the other pairs anything."""
    odd, form, reason = ODD[name]
    endpoint.script = lambda body, number: odd if shown(body)[0] == row(1)["a"] else fair(body, number)
    words = ["run", written(tmp_path, 3), "--judge", "judge", "--base-url", endpoint.url, "--out", "out", "--verdict", form]
    code, _, errors = here(*words, "--retries", 0, "--price-input", 1, "--price-output", 1, "--max-invalid", 1)
    assert code == 0, errors
    found = verdicts(tmp_path / "out")
    assert [one["outcome"] for one in found] == ["b", "a" if reason is None else "invalid", "a"]
    assert (reason or "") in (found[1]["reason"] or "")
