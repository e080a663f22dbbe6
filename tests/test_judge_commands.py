"""`spo-bench judge audit`, `stats` and `reparse` as a person runs them."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from endpoint import Answer, Endpoint, fair, said, shown
from judge_command import (
    judge,
    verdicts,
    written,
)

from spo_bench.files import read_json, read_jsonl
from spo_bench.judging.attacks import TRIED

# -- audits -------------------------------------------------------------------------------------------------------------------


def test_the_audit_of_a_fair_judge(serve, tmp_path):
    url, _ = serve("fair")
    words = ["audit", written(tmp_path, 12), "--judge", "judge", "--base-url", url, "--attacked", 2]
    done = judge(*words, "--json", "--out", tmp_path / "audit.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == read_json(tmp_path / "audit.json")
    assert (found["cases"], found["accuracy"]["value"], found["position_flip_rate"]["value"]) == (12, 1.0, 0.0)
    assert (found["retest"]["asked"], found["retest"]["same_outcome"]["value"]) == (2, 1.0)
    lines = list(read_jsonl(tmp_path / "audit.verdicts.jsonl"))
    assert Counter(("!" in line["id"], line["epoch"]) for line in lines) == {
        (False, 0): 12,
        (True, 0): 2 * len(TRIED),
        (False, 1): 2,
    }
    attacks = found["attacks"]
    assert attacks["cases"] == 2
    assert {one["asked"] for one in attacks["each"].values()} == {2}
    for one in (attacks, attacks["harmless"], *attacks["each"].values()):
        assert [one[key]["value"] for key in ("success", "changed", "invalid")] == [0.0, 0.0, 0.0]


def test_the_audit_of_judges_that_look_at_the_wrong_thing(endpoint: Endpoint, here, tmp_path):
    """One names what it sees first, so that its orders always disagree; for the other the longer answer wins, as padding does."""
    words = ["audit", written(tmp_path, 12), "--judge", "judge", "--base-url", endpoint.url, "--json"]
    endpoint.script = lambda body, number: said(body, "A")
    code, output, errors = here(*words)
    assert code == 0, errors
    found = json.loads(output)
    values = [found[key]["value"] for key in ("position_flip_rate", "first_shown_rate", "tie_rate", "accuracy")]
    assert values == [1.0, 1.0, 1.0, 0.5]
    assert [found["attacks"][key]["value"] for key in ("success", "changed")] == [0.0, 0.0]  # it reads no attack either

    def longer(body: dict[str, Any], number: int) -> Answer:
        one, other = map(len, shown(body))
        return said(body, "A" if one > other else "B")

    endpoint.script = longer
    code, output, errors = here(*words, "--attacked", 1, "--cache", tmp_path / "another.sqlite")
    assert code == 0, errors
    attacks = json.loads(output)["attacks"]
    assert attacks["each"]["padding"]["success"]["value"] == 1.0
    assert attacks["beaten"]["value"] == 1.0


def test_the_audit_on_preference_data(endpoint: Endpoint, here, tmp_path):
    rows = [{"prompt": f"Say it, {n}.", "chosen": f"the good answer {n}", "rejected": f"the other one {n}"} for n in range(40)]
    endpoint.script = fair
    pairs = written(tmp_path, rows, "preferences.jsonl")
    words = ["audit", pairs, "--judge", "judge", "--base-url", endpoint.url, "--task", "dialogue", "--attacked", 0]
    code, output, errors = here(*words)
    assert code == 0, errors
    flat = " ".join(output.split())
    assert "judge with the prompt dialogue/" in flat
    assert "on 40 labelled pairs" in flat
    assert "names the label people gave 100.0 %" in flat


# -- what is done with verdicts -----------------------------------------------------------------------------------------------


def test_stats_and_reparse_of_what_was_judged(endpoint: Endpoint, here, tmp_path):
    """A judge that errs on every fifth pair, has ties and an invalid verdict: no rate is trivial."""

    def erring(body: dict[str, Any], number: int) -> Answer:
        first, second = shown(body)
        place = int(second.split()[3].strip(","))
        if place == 7:
            return Answer("I cannot say.")
        letter = "A" if ("good" in first) != (place % 5 == 0) else "B"
        return said(body, "C" if place % 11 == 3 else letter)

    endpoint.script = erring
    out = tmp_path / "out"
    file = out / "verdicts.jsonl"
    done = judge("run", written(tmp_path, 40), "--judge", "judge", "--base-url", endpoint.url, "--out", out, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    asked, summary, whole = endpoint.number, read_json(out / "summary.json"), verdicts(out)

    code, shows, _ = here("stats", file, "--json")
    assert code == 0
    rates = {name: value for name, value in json.loads(shows).items() if name not in ("file", "subject", "opponent")}
    assert rates == {name: summary[name] for name in rates}
    assert None not in [rates[name] for name in ("win_rate", "standard_error", "low", "length_controlled_win_rate")]
    assert (rates["n"], rates["n_invalid"]) == (39, 1)

    before = [(path, path.read_bytes()) for path in out.iterdir()]
    assert here("reparse", out)[:2] == (0, "40 verdicts read again: 0 changed, 1 invalid\n")
    assert [(path, path.read_bytes()) for path in out.iterdir()] == before

    rows = verdicts(out)
    place = next(i for i, one in enumerate(rows) if one["outcome"] == "a")
    rows[place] |= {"outcome": "b", "score": 0.0}
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    code, shows, _ = here("reparse", file, "--dry-run", "--json")
    counts = {"verdicts": 40, "changed": 1, "invalid": 1}
    assert (code, json.loads(shows)) == (0, {**counts, "changed_ids": [rows[place]["id"]], "written": False})
    assert verdicts(out) == rows
    mended = judge("reparse", out, cwd=tmp_path)
    assert (mended.returncode, mended.stdout) == (0, "40 verdicts read again: 1 changed, 1 invalid\n")
    assert verdicts(out) == whole
    assert read_json(out / "summary.json") == summary
    assert endpoint.number == asked
