"""A judge inside a matrix: its audit, verdicts that are asked for again, limits, and what a plan says before anything is asked."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import tiny_model
from endpoint import Answer, Endpoint, in_thread, said, shown
from typer.testing import CliRunner

import spo_bench
from spo_bench.api import cells_of, purse_of
from spo_bench.cli.app import app
from spo_bench.engine.collect import length_controlled_rate
from spo_bench.files import read_json, read_jsonl, write_json
from spo_bench.judging.api import HELLO
from spo_bench.judging.attacks import TRIED
from spo_bench.judging.store import ReplyStore
from spo_bench.matrix.judge_cost import JudgePlan, judge_plan
from spo_bench.matrix.load import load_spec
from spo_bench.matrix.plan import earlier_keys, stage_states
from spo_bench.stages.judge_audit import as_case
from spo_bench.store.artifacts import Store
from spo_bench.store.sealed import signed

THINGS = ["owl", "otter", "heron", "hare", "toad", "badger", "primrose", "heather", "clover", "violet", "lavender", "saffron"]
PLACES = ["woods", "rivers", "ponds", "pastures", "moors", "hills", "ravines", "harbour", "fields", "farm"]
AUDITED = 8


def pairs(folder: Path) -> Path:
    """Write preferences in words that the embedded policy knows; the rejected answer is the longer one in most."""
    path = folder / "pairs.jsonl"
    rows = [
        {
            "prompt": f"Tell me about the {thing} in the {place}",
            "chosen": f"The {thing} lives in the {place}" + " and eats" * (number % 3),
            "rejected": f"The {thing} comes from the school" + " and the bank" * (number % 4),
        }
        for number, (place, thing) in enumerate((place, thing) for place in PLACES for thing in THINGS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def knowing(body: dict[str, Any], number: int) -> Answer:
    """A judge that knows who lives where: it names the answer with more of "lives in"."""
    first, second = (sum(word in text.split() for word in ("lives", "in")) for text in shown(body))
    return said(body, "A" if first > second else "B" if second > first else "C")


def content(body: dict[str, Any]) -> str:
    return str(body["messages"][0]["content"])


def apart(bodies: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the first questions, asked before anything is run, and all others."""
    first = [body for body in bodies if HELLO.prompt in content(body)]
    return first, [body for body in bodies if body not in first]


class World:
    """An endpoint, data and a store that all tests here share, so that the policies are made once."""

    def __init__(self, folder: Path, endpoint: Endpoint) -> None:
        self.folder, self.endpoint, self.store = folder, endpoint, folder / "store"
        self.data = pairs(folder)

    def spec(self, model: str = "judge-2030-01-01", **judge: Any) -> dict[str, Any]:
        priced = {"price_input": 1.0, "price_output": 4.0, "audit": AUDITED, "verdict": "json"}
        asked = {"backend": "openai", "model": model, "base_url": self.endpoint.url, "api_key_env": "JUDGE_KEY"}
        return {
            "name": "judged",
            "models": ["embedded"],
            "tasks": [{"name": "dialogue", "data": str(self.data), "limit": {"train": 16, "eval": 24, "heldout": 8, "sft": 16}}],
            "methods": ["dpo"],
            "sft": {"steps": 2, "batch_size": 8},
            "train": {"batch_size": 8, "max_steps": 1, "max_length": 128, "learning_rate": 0.01},
            "generate": {"max_new_tokens": 8, "batch_size": 32},
            "judge": {**asked, **priced, **judge},
        }

    def run(self, name: str, spec: dict[str, Any]) -> tuple[spo_bench.api.Finished, list[dict[str, Any]]]:
        """Run a spec in a directory; return what came of it, and the bodies of the requests that were sent."""
        before = len(self.endpoint.bodies)
        done = spo_bench.run(spec, self.folder / name, store=self.store)
        return done, self.endpoint.bodies[before:]

    def plan(self, name: str, spec: dict[str, Any]) -> dict[str, Any]:
        """Return what ``spo-bench plan --json`` prints."""
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps(spec))
        options = ["--out", str(self.folder / name), "--store", str(self.store), "--json"]
        result = CliRunner().invoke(app, ["plan", "--matrix", str(path), *options])
        assert result.exit_code == 0, result.output
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    def eval_rows(self) -> list[dict[str, Any]]:
        (artifact,) = (self.store / "data").glob("*/eval.jsonl")
        return list(read_jsonl(artifact))

    def audit_record(self, run: Path) -> dict[str, Any]:
        record: dict[str, Any] = read_json(run / "run.json")["judge_audits"]["embedded/dialogue"]
        return record


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch, in_thread(Endpoint(knowing)) as endpoint:
        patch.setenv("JUDGE_KEY", "sk-test-0123456789abcdef")
        yield World(tmp_path_factory.mktemp("judged"), endpoint)


@pytest.fixture(scope="module")
def judged(world):
    """A finished run with a judge behind an endpoint: (directory, its plan before, requests sent)."""
    world.endpoint.script = knowing
    before = world.plan("run", world.spec())
    done, bodies = world.run("run", world.spec())
    assert not done.failed
    return done.out, before, bodies


def test_every_cell_is_judged_and_the_judge_is_audited(world, judged):
    run = judged[0]
    assert read_json(run / "run.json")["status"] == "done"
    cells = list(read_jsonl(run / "cells.jsonl"))
    assert len({cell["keys"]["judge_audit"] for cell in cells}) == 1
    for cell in cells:
        rows = list(read_jsonl(run / "cells" / cell["id"] / "judgments.jsonl"))
        samples = {row["id"]: row["answer"] for row in read_jsonl(run / "cells" / cell["id"] / "samples.jsonl")}
        assert Counter(row["opponent"] for row in rows) == {
            name.removeprefix("judge/"): len(samples) for name in cell["keys"] if name.startswith("judge/")
        }
        assert all(row["length_a"] == len(samples[row["id"]]) and row["cluster"] is None for row in rows)
    record = world.audit_record(run)
    # The judge knows what the people preferred; the longer answer is the preferred one only where this data says so.
    rows = world.eval_rows()[:AUDITED]
    longer = [len(row["chosen"]) > len(row["rejected"]) for row in rows]
    same = [len(row["chosen"]) == len(row["rejected"]) for row in rows]
    assert (record["judge"], record["cases"], record["accuracy"]["value"]) == ("openai:judge-2030-01-01", AUDITED, 1.0)
    assert record["length_only"]["accuracy"]["value"] == pytest.approx((sum(longer) + sum(same) / 2) / AUDITED)
    assert (record["retest"]["asked"], record["attacks"]["cases"]) == (AUDITED // 5, 2)
    assert record["cost_per_verdict"]["value"] == pytest.approx(2 * (100 * 1.0 + 10 * 4.0) / 1e6)


def test_a_case_s_sides_are_drawn_by_its_id(world, judged):
    cases = [as_case({**row, "id": f"row-{number}"}) for number, row in enumerate(world.eval_rows() * 20)]
    assert 0.35 < np.mean([case.label == "a" for case in cases]) < 0.65
    for case, row in zip(cases, world.eval_rows() * 20, strict=True):
        assert getattr(case.question, case.label) == row["chosen"]


def test_a_second_run_makes_nothing_and_asks_nothing(world, judged):
    done, bodies = world.run("run", world.spec())
    assert (done.made, bodies, done.failed) == (0, [], {})


def test_replies_that_are_kept_are_read_anew_without_asking(world, judged):
    """Verdicts and audit are made again from what the judge said, though nobody answers any more."""
    (cell, *_) = read_jsonl(judged[0] / "cells.jsonl")
    store = Store(world.store)
    for name in ("judge/chosen", "judge_audit"):
        store.remove(name.split("/")[0], cell["keys"][name])
    world.endpoint.script = lambda body, number: Answer(status=500)
    done, bodies = world.run("run", world.spec())
    world.endpoint.script = knowing
    assert (done.made, bodies, done.failed) == (2, [], {})


def test_the_plan_bounds_what_was_asked_and_paid(world, judged):
    run, before, bodies = judged
    plan = before["judge"]
    with ReplyStore(world.store / "judge.sqlite") as store:
        spent = store.spent(purse_of(run))
    assert len(bodies) == spent.calls <= plan["calls"]
    assert spent.dollars <= plan["cost"]
    stages = {stage["key"]: stage["judge"]["calls"] for stage in before["stages"] if "judge" in stage}
    assert plan["calls"] == 1 + sum(stages.values())
    (first,), _ = apart(bodies)
    assert (bodies.index(first), first["max_tokens"]) == (0, 1)
    assert max(len(content(body)) for body in bodies) > 20000, "the audit's longest attack is in the plan too"
    assert plan["prompt_tokens"] > sum(len(content(body)) for body in bodies) / 4
    assert plan["warnings"] == []
    assert world.plan("run", world.spec())["judge"] == {**dict.fromkeys(plan, 0), "warnings": [], "cost": 0}


def test_the_tables_say_how_far_to_trust_the_judge(world, judged):
    run = judged[0]
    assert "judge-2030-01-01" in (run / "tables" / "judge.csv").read_text()
    sentence = f"Judge judge-2030-01-01 agrees with {AUDITED} human preferences in 100 % ["
    assert sentence in (run / "tables" / "main.md").read_text()
    page = (run / "report.html").read_text()
    assert page.index("How far to trust the judge") < page.index('id="answers"')
    audit = (run / "tables" / "audit.md").read_text()
    for column in ("Against", "Flips", "First shown", "Ties", "Opponent characters"):
        assert column in audit


def test_a_length_controlled_win_rate_is_in_the_metrics_or_the_reason_why_not(judged):
    run = judged[0]
    rows = [row for row in read_jsonl(run / "metrics.jsonl") if row["metric"].startswith("length_controlled")]
    names = {"length_controlled_win_rate_sft", "length_controlled_win_rate_chosen", "length_controlled_head_to_head"}
    assert {row["metric"] for row in rows} == names
    for row in rows:
        record = read_json(run / "cells" / row["cell"] / "scores.json")["length_controlled"][row["metric"]]
        assert (row["value"], row["low"], row["n"]) == (record["value"], record["low"], record["n"])
        assert record["reason"], "a dozen prompts are too few"
    rng = np.random.default_rng(0)
    lengths = rng.integers(-40, 80, 200)
    verdicts = (rng.random(200) < 1 / (1 + np.exp(-lengths / 40))).astype(float)
    rows = [
        {"score": None if i == 7 else score, "length_a": 100 + int(more), "length_b": 100, "cluster": None}
        for i, (score, more) in enumerate(zip(verdicts, lengths))
    ]
    found = length_controlled_rate(rows)
    raw = np.mean([row["score"] for row in rows if row["score"] is not None])
    assert found["low"] < 0.5 < found["high"], "verdicts were drawn by length alone, evenly at equal length"
    assert found["value"] < raw - 0.05
    assert (found["n"], found["n_invalid"], found["reason"]) == (199, 1, None)


def test_only_invalid_verdicts_are_asked_for_again(world, judged):
    mute = world.eval_rows()[0]["prompt"][0]["content"]

    def sometimes_mute(body: dict[str, Any], number: int) -> Answer:
        return Answer("I cannot say.") if mute in content(body) else knowing(body, number)

    spec = world.spec("forgetful-2030-01-01", max_invalid=0.2)
    world.endpoint.script = sometimes_mute
    done, _ = world.run("again", spec)
    assert not done.failed
    assert world.audit_record(done.out)["invalid_rate"]["value"] == pytest.approx(1 / AUDITED)
    invalid = [row for row in read_jsonl(done.out / "metrics.jsonl") if row["metric"] == "win_rate_chosen"]
    assert {row["n_invalid"] for row in invalid} == {1}
    plan = world.plan("again", spec)
    judging = [stage for stage in plan["stages"] if stage["kind"] in ("judge", "judge_audit")]
    assert {stage["state"] for stage in judging} == {"stale"}
    assert {stage["why"] for stage in judging} == {
        "1 invalid verdict is asked for again",
        "2 invalid verdicts are asked for again",
    }
    assert plan["judge"]["calls"] == 1 + sum({stage["key"]: stage["judge"]["calls"] for stage in judging}.values())

    # As long as the judge stays mute, each run asks for these few again, and for nothing else.
    done, bodies = world.run("again", spec)
    assert not done.failed
    first, asked = apart(bodies)
    assert len(first) == 1
    assert asked
    assert all(mute in content(body) for body in asked)

    world.endpoint.script = knowing
    done, bodies = world.run("again", spec)
    first, asked = apart(bodies)
    assert len(first) == 1
    assert 0 < len(asked) < len(bodies) <= plan["judge"]["calls"]
    assert all(mute in content(body) for body in asked)
    assert world.audit_record(done.out)["invalid_rate"]["value"] == 0
    valid = [row for row in read_jsonl(done.out / "metrics.jsonl") if row["metric"] == "win_rate_chosen"]
    assert {row["n_invalid"] for row in valid} == {0}
    done, bodies = world.run("again", spec)
    assert (done.made, bodies) == (0, [])


def test_a_cell_with_too_many_invalid_verdicts_fails_with_the_reason(world, judged):
    world.endpoint.script = lambda body, number: Answer("I cannot say.")
    done, _ = world.run("mute", world.spec("mute-2030-01-01", audit=0))
    assert len(done.failed) == 3
    prompts = len(world.eval_rows())
    for reason in done.failed.values():
        assert reason.startswith(f"judge: {prompts} of {prompts} verdicts are invalid, more than max_invalid = 0.05 allows")
    done, _ = world.run("mute", world.spec("mute-2030-01-01"))
    audits = [reason for name, reason in done.failed.items() if name.startswith("audit of the judge on ")]
    assert [reason.startswith(f"judge_audit: {AUDITED} of {AUDITED} verdicts") for reason in audits] == [True]
    assert (done.done, len(done.failed)) == (0, 3 + 1)
    world.endpoint.script = knowing


def test_an_audit_that_fails_is_told_and_takes_no_cell_with_it(world, judged):
    """The win rates are there; the page says that nobody knows what they are worth."""
    world.endpoint.script = knowing
    done, _ = world.run("unaudited", world.spec("unaudited-2030-01-01", audit=0))
    assert (done.done, len(done.failed)) == (3, 0)
    world.endpoint.script = lambda body, number: Answer("I cannot say.")
    done, _ = world.run("unaudited", world.spec("unaudited-2030-01-01"))
    world.endpoint.script = knowing
    assert (done.done, len(done.failed)) == (3, 1)
    assert "The judge was not audited on dialogue" in (world.folder / "unaudited" / "report.html").read_text()


def test_max_calls_stops_a_run_that_a_higher_one_finishes_without_asking_twice(world, judged):
    world.endpoint.script = knowing
    before = len(world.endpoint.bodies)
    options = ["--out", str(world.folder / "limited"), "--store", str(world.store), "--jobs", "1"]

    def command(max_calls: int) -> Any:
        path = world.folder / "limits.yaml"
        path.write_text(json.dumps(world.spec("limited-2030-01-01", max_calls=max_calls, concurrency=4)))
        return CliRunner().invoke(app, ["run", "--matrix", str(path), *options])

    assert "up to" in world.plan("limited", world.spec("limited-2030-01-01", max_calls=30))["judge"]["warnings"][0]
    stopped = command(30)
    assert stopped.exit_code == 1
    assert len(world.endpoint.bodies) - before == 30
    reasons = {row["reason"] for row in read_jsonl(world.folder / "limited" / "cells.jsonl")}
    assert all("max_calls 30" in reason and "Resumable" in reason for reason in reasons)
    purse = purse_of(world.folder / "limited")
    (warning,) = world.plan("limited", world.spec("limited-2030-01-01", max_calls=40))["judge"]["warnings"]
    assert "after the 30 sent so far" in warning
    finished = command(1000)
    assert finished.exit_code == 0, finished.output
    first, asked = apart(world.endpoint.bodies[before:])
    assert len(first) == 2, "each of the two runs looked first whether the judge answers, within its max_calls"
    retested = Counter(content(body) for body in asked)
    assert sum(count - 1 for count in retested.values()) == 2 * (AUDITED // 5), "only the retest asks again"
    assert purse_of(world.folder / "limited") == purse, "a run that goes on pays from the same purse"
    assert purse != purse_of(judged[0])


def test_a_judge_without_a_date_draws_a_warning_before_during_and_after(world, judged, monkeypatch):
    spec = world.spec("gpt-4o-mini")
    spec["judge"]["base_url"] = "https://judge.invalid/v1"
    warning = "the judge id 'gpt-4o-mini' has no date"
    assert warning in world.plan("undated", spec)["judge"]["warnings"][0]
    path = world.folder / "undated.yaml"
    shown_plan = CliRunner().invoke(app, ["run", "--dry-run", "--matrix", str(path), "--store", str(world.store)])
    assert warning in shown_plan.stdout.replace("\n", "")
    assert "at most" in shown_plan.stdout
    monkeypatch.delenv("JUDGE_KEY")
    result = CliRunner().invoke(app, ["run", "--matrix", str(path), "--store", str(world.store), "--out", "nowhere"])
    assert warning in result.stderr.replace("\n", "")
    run = world.folder / "undated-report"
    run.mkdir()
    for name in ("cells.jsonl", "cells"):
        (run / name).symlink_to(judged[0] / name)
    record = read_json(judged[0] / "run.json")
    record.pop("checksum")
    write_json(run / "run.json", signed({**record, "spec": {**record["spec"], "judge": spec["judge"]}}))
    assert warning in spo_bench.report.table(run, "main")
    assert warning in spo_bench.report.table(run, "judge")


def test_a_plan_says_what_it_does_not_know(world, tmp_path):
    """A first question; six judge stages (one of the SFT policy, two of the baseline, three of its twin) on 50 prompts in both
    orders."""
    spec = load_spec(world.spec("limited-2030-01-01"))

    def planned(limit: int | None) -> JudgePlan:
        stages = [stage for cell in cells_of(spec, tmp_path / "store", "cpu") for stage in cell.stages.values()]
        for stage in stages:
            if stage.kind in ("judge", "judge_audit"):
                data = stage.inputs["data"]
                config = {**data.config, "limit": {**data.config["limit"], "eval": limit}}
                stage.inputs["data"] = replace(data, config=config)
                stage.local["data"] = "org/unreachable"
        plan = judge_plan(spec.judge, stages, Store(tmp_path / "store"), None)
        assert plan is not None
        return plan

    plan = planned(50)
    assert plan.total.calls == 1 + 2 * (6 * 50 + AUDITED + AUDITED // 5 + 2 * len(TRIED))
    assert any("counted with its answer as max_length tokens" in warning for warning in plan.warnings)
    plan = planned(None)
    assert (plan.total.calls, plan.total.cost) == (None, None)
    assert any("set limit.eval" in warning for warning in plan.warnings)


def test_a_reward_model_is_audited_by_its_scores(world, judged):
    settings = {"reward_training": {"batch_size": 8, "max_steps": 1}, "judge": {"backend": "reward", "model": "trained"}}
    done, bodies = world.run("reward", world.spec() | settings)
    assert (bodies, done.failed) == ([], {})
    record = world.audit_record(done.out)
    assert (record["judge"], record["retest"], record["attacks"]) == ("reward:trained", None, None)
    assert record["accuracy"]["n"] == len(world.eval_rows())
    assert 0 <= record["accuracy"]["value"] <= 1
    assert "Judge reward model trained agrees with" in (done.out / "tables" / "main.md").read_text()
    assert judge_plan(load_spec(world.spec() | settings).judge, [], Store(world.store), None) is None


def test_a_local_judge_is_audited_and_its_verdicts_are_kept(world, judged, tmp_path):
    directory = word_model(tmp_path / "small-judge")
    spec = world.spec() | {"judge": {"backend": "local", "model": str(directory), "audit": 5, "orders": "one"}}
    done, bodies = world.run("local", spec)
    assert (bodies, done.failed) == ([], {})
    record = world.audit_record(done.out)
    assert (record["judge"], record["cases"], record["retest"]["same_outcome"]["value"]) == ("local:small-judge", 5, 1.0)
    cell = next(iter(read_jsonl(done.out / "cells.jsonl")))
    (row, *_) = read_jsonl(done.out / "cells" / cell["id"] / "judgments.jsonl")
    assert len(row["orders"]) == 1
    store = Store(world.store)
    store.remove("judge", cell["keys"]["judge/chosen"])
    cells = cells_of(load_spec(spec), world.store, "cpu")
    states = stage_states(cells, store, earlier_keys(done.out))
    assert {state.name: state.state for state in states if state.cell == cell["id"]}["judge/chosen"] == "missing"
    done, _ = world.run("local", spec)
    assert done.made == 1
    (again, *_) = read_jsonl(store.path("judge", cell["keys"]["judge/chosen"]) / "judgments.jsonl")
    assert again["orders"][0]["cached"], "what was judged is not judged again"
    assert again["score"] == row["score"]


def word_model(directory: Path) -> Path:
    """Write a small model whose tokens are words, the verdict's letters among them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<eos>", "A", "B", *THINGS, *PLACES, "lives", "school", "bank", "eats", "the", "The", "in"]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", eos_token="<eos>", pad_token="<eos>")
    tokenizer.save_pretrained(str(directory))
    tiny_model().save_pretrained(str(directory))
    return directory
