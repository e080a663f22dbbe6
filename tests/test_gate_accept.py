"""Accepting a reference, and what a gate writes: record, margins, JUnit, summary, exit codes of the real command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from gate_run import contents, night, write_run

from spo_bench.errors import InputError
from spo_bench.files import read_json, read_jsonl, write_json
from spo_bench.gate import accept, gate, junit, markdown
from spo_bench.gate.margins import rounded_up

EVIL = "loss is NaN \x00\x1b[31m <script>alert('x')</script> & ]]> \ud800 \ufffe | `x`"


def spo_bench(*words, cwd: Path, **env):
    own = {key: value for key, value in os.environ.items() if key != "COLUMNS"}  # pytest's workers say 80
    return subprocess.run(
        [sys.executable, "-c", "from spo_bench.cli.main import main; main()", *map(str, words)],
        cwd=cwd, capture_output=True, text=True, env={**own, "PYTHONPATH": str(Path(__file__).parents[1]), **env},
    )  # fmt: skip


def test_a_reference_holds_what_a_gate_needs_and_nothing_local(tmp_path):
    run = write_run(tmp_path / "run", night(0, arms=2), git={"commit": "abc", "dirty": True})
    found = accept(run, tmp_path / "reference", " the first ", "me")
    assert sorted(path.name for path in found.directory.iterdir()) == [
        "accepted.jsonl", "cells", "cells.jsonl", "gate.yaml", "run.json",
    ]  # fmt: skip
    text = "".join(path.read_text() for path in found.directory.rglob("*") if path.is_file())
    assert "/home/me" not in text
    assert str(tmp_path) not in text.replace(f"{run}-", "")  # the synthetic run names its weights so
    assert "spo-bench run" not in text
    assert read_json(found.directory / "run.json")["spec"]["tasks"][0]["data"] == "pairs.jsonl"
    assert any("dirty" in warning for warning in found.warnings)
    (line,) = read_jsonl(found.directory / "accepted.jsonl")
    assert (line["who"], line["why"], line["git"]["commit"], line["against_previous"]) == ("me", "the first", "abc", None)
    assert line["when"].endswith("Z")
    assert gate(run, found.directory).exit_code == 0


def test_accepting_again_replaces_the_run_and_keeps_the_rest(tmp_path):
    reference = tmp_path / "reference"
    accept(write_run(tmp_path / "one", night(0, arms=2)), reference, "one", "me")
    (reference / "gate.yaml").write_text((reference / "gate.yaml").read_text() + "# by hand\n")
    (reference / "README.md").write_text("mine")
    lower = {arm: values - 1 for arm, values in night(0, arms=2).items() if arm == "m0"}
    accept(write_run(tmp_path / "two", lower), reference, "two", "you")
    one, two = read_jsonl(reference / "accepted.jsonl")
    assert (one["why"], two["why"]) == ("one", "two")
    assert two["against_previous"] == {"worse": 1, "not comparable": 0, "missing": 3, "undecided": 0, "fine": 0}
    assert "# by hand" in (reference / "gate.yaml").read_text()
    assert (reference / "README.md").read_text() == "mine"
    assert sorted(path.name for path in (reference / "cells").iterdir()) == ["m0-s0", "m0-s1", "m0-s2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "reference", "two"]
    assert gate(tmp_path / "two", reference).exit_code == 0


def test_recommended_margins_are_written_and_smaller_ones_warned_of(tmp_path):
    run, reference = write_run(tmp_path / "run", night(0, arms=4)), tmp_path / "reference"
    found = accept(run, reference, "x", "me")
    written = yaml.safe_load((reference / "gate.yaml").read_text())["metrics"]["true_reward"]
    by_family = {one.family: one for one in found.resolutions}
    assert found.wrote_margins
    assert (written["retraining"], written["evaluation"]) == (rounded_up(by_family["retraining"].recommended), 0.02)
    assert all(one.smallest < one.recommended for one in found.resolutions)
    assert not found.warnings
    margin = {"better": "higher", "retraining": by_family["retraining"].smallest * 0.9, "evaluation": 0.001}
    (reference / "gate.yaml").write_text(yaml.safe_dump({"schema_version": 1, "metrics": {"true_*": margin}}))
    again = accept(run, reference, "y", "me")
    assert not again.wrote_margins
    assert [warning.split(":")[0] for warning in again.warnings] == ["true_reward, retraining"]


def test_one_seed_leaves_the_noise_of_retraining_unknown(tmp_path):
    found = accept(write_run(tmp_path / "run", night(0, arms=2, seeds=1)), tmp_path / "reference", "x", "me")
    smallest = {one.family: one.smallest for one in found.resolutions}
    assert np.isnan(smallest["retraining"])
    assert smallest["evaluation"] > 0
    assert yaml.safe_load((tmp_path / "reference" / "gate.yaml").read_text())["metrics"]["true_reward"]["retraining"] == 0.1


@pytest.mark.parametrize("value", [0.0123, 0.1, 0.099, 1.0, 12.3, 0.0999001])
def test_rounded_up(value):
    """Never below the value, two digits, and at most a tenth above."""
    up = rounded_up(value)
    assert value <= up + 1e-12 <= value * 1.1 + 1e-9
    assert float(f"{up:.1e}") == up


def test_what_is_refused_leaves_everything_as_it_was(tmp_path):
    run, reference = write_run(tmp_path / "run", night(0, arms=1)), tmp_path / "reference"
    accept(run, reference, "x", "me")
    before = contents(tmp_path)
    failed = write_run(tmp_path / "failed", night(0, arms=1), failed={("m0", 1): "killed"})
    unfinished = write_run(tmp_path / "unfinished", night(0, arms=1))
    write_json(unfinished / "run.json", {**read_json(unfinished / "run.json"), "finished": None})
    for run_, place, why, said in (
        (failed, reference, "x", "cells failed"),
        (unfinished, reference, "x", "not finished"),
        (run, reference, "  ", "--why is empty"),
        (run, run, "x", "a run's own directory"),
        (run, unfinished, "x", "a run's own directory"),
        (run, tmp_path, "x", "a run's own directory"),
        (run, run / "cells", "x", "a run's own directory"),
        (tmp_path / "nothing", reference, "x", "run.json"),
    ):
        with pytest.raises(InputError, match=said):
            accept(run_, place, why, "me")
    assert {name: content for name, content in contents(tmp_path).items() if name in before} == before
    assert not list(tmp_path.rglob("*.part"))


# --- what a gate writes ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A verdict with every outcome, in both families."""
    folder = tmp_path_factory.mktemp("mixed")
    values = night(0, arms=5)
    reference = folder / "reference"
    reference.mkdir()
    text = "schema_version: 1\nmetrics:\n  true_reward: {better: higher, retraining: 0.2, evaluation: 0.2}\n"
    (reference / "gate.yaml").write_text(text)
    accept(write_run(folder / "first", values, policies="saved"), reference, "x", "me")
    other = night(1, arms=5)
    new = {**values, "m0": other["m0"] - 0.7, "m1": other["m1"] - 0.17}
    run = write_run(folder / "run", new, policies="saved", failed={("m4", 0): EVIL.replace("\ud800", "")})
    for arm in ("m0", "m1"):
        for seed in range(3):
            path = run / "cells" / f"{arm}-s{seed}" / "provenance.json"
            write_json(path, {**read_json(path), "policy": f"{arm} {seed} anew"})
    path = run / "cells" / "m3-s0" / "scores.json"
    scores = read_json(path)
    write_json(path, {**scores, "prompts": {"prompt": dict.fromkeys(scores["prompts"]["prompt"], "changed")}})
    return run, reference


def test_junit_parses_and_counts(mixed):
    verdict = gate(*mixed)
    assert verdict.counts == {"worse": 1, "not comparable": 1, "missing": 1, "undecided": 1, "fine": 2}
    root = ElementTree.fromstring(junit(verdict))
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("6", "1", "3")
    suites = {suite.get("name"): suite for suite in root}
    assert list(suites) == ["evaluation drift", "retraining drift"]
    kinds = {
        case.get("name"): [child.get("type") for child in case if child.tag != "system-out"] for case in root.iter("testcase")
    }
    assert kinds == {
        "m0 true_reward": ["worse"], "m1 true_reward": ["undecided"], "m2 true_reward": [],
        "m3 true_reward": ["not comparable"], "m4 true_reward": [], "m4 seed 0": ["missing"],
    }  # fmt: skip
    (failure,) = root.iter("failure")
    assert "declined by" in failure.get("message")
    text = "".join(error.text for error in root.iter("error"))
    assert "<script>alert('x')</script> & ]]>" in text
    assert r"\x00\x1b[31m" in text
    for name, suite in suites.items():
        assert len(suite) == int(suite.get("tests")), name


def test_junit_holds_any_text(mixed):
    from dataclasses import replace

    verdict = gate(*mixed)
    rows = [replace(row, arm=EVIL, reason=EVIL) for row in verdict.rows]
    root = ElementTree.fromstring(junit(replace(verdict, rows=rows)).encode())
    assert all(r"\xd800" in case.get("name") for case in root.iter("testcase"))


def test_the_summary_begins_with_the_verdict(mixed):
    text = markdown(gate(*mixed))
    assert text.startswith("### spo-bench gate: worse: 1 worse, 1 not comparable, 1 missing, 1 undecided, 2 fine\n")
    lines = text.splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == (2 + 4) + (2 + 2)
    assert len({line.replace("\\|", "").count("|") for line in table[:6]}) == 1
    assert "the smallest decline this run could have called fine in every row is" in text
    assert "\x00" not in text


def test_the_command(mixed, tmp_path):
    """Real exit codes and files, the reference untouched; what is not a terminal gets whole lines."""
    run, reference = mixed
    before = contents(reference)
    summary = tmp_path / "summary.md"
    summary.write_text("# before\n")
    done = spo_bench(
        "gate", run, "--reference", reference, "--junit", tmp_path / "out" / "gate.xml", "--summary", summary, cwd=tmp_path
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("worse: 1 worse")
    assert "declined by" in done.stdout
    assert ElementTree.parse(tmp_path / "out" / "gate.xml").getroot().get("tests") == "6"
    assert summary.read_text().startswith("# before\n### spo-bench gate: worse")
    assert contents(reference) == before

    same = spo_bench("gate", run.parent / "first", "--reference", reference, "--json", cwd=tmp_path)
    assert (same.returncode, json.loads(same.stdout)["outcome"]) == (0, "fine")
    missing = spo_bench("gate", run, "--reference", tmp_path / "none", cwd=tmp_path)
    assert missing.returncode == 3
    assert "--accept" in missing.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nothing",), "holds no run"),
        (("RUN", "--accept"), "--why"),
        (("RUN", "--why", "x"), "--accept"),
        (("RUN", "--junit", "REF/gate.xml"), "lies in the reference"),
        (("RUN", "--summary", "REF/gate.yaml"), "lies in the reference"),
        (("RUN", "--accept", "--why", "x", "--junit", "a.xml"), "judges nothing"),
    ],
)
def test_bad_input_exits_2(mixed, tmp_path, monkeypatch, capsys, words, said):
    from spo_bench.cli.main import main

    run, reference = mixed
    before = contents(reference)
    named = [word.replace("RUN", str(run)).replace("REF", str(reference)) for word in words]
    monkeypatch.setattr(sys, "argv", ["spo-bench", "gate", *named, "--reference", str(reference)])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "500")
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    errors = capsys.readouterr().err
    assert said in errors
    assert "Traceback" not in errors
    assert contents(reference) == before


def test_accepting_by_the_command(tmp_path):
    run = write_run(tmp_path / "run", night(0, arms=2))
    done = spo_bench("gate", run, "--reference", "reference", "--accept", "--why", "first", "--who", "Ada", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "by Ada: first" in done.stdout
    assert "Resolution" in done.stdout
    again = spo_bench(
        "gate", run, "--reference", "reference", "--accept", "--why", "again", "--json", cwd=tmp_path, GIT_CONFIG_GLOBAL="/dev/null",
        GIT_CONFIG_COUNT="1", GIT_CONFIG_KEY_0="user.name", GIT_CONFIG_VALUE_0="Grace",
    )  # fmt: skip
    record = json.loads(again.stdout)
    assert (record["who"], record["why"], record["against_previous"]["fine"]) == ("Grace", "again", 2)
    assert {one["family"] for one in record["resolution"]} == {"evaluation", "retraining"}


def test_the_committed_reference_is_whole():
    """It gates itself, is small, and says nothing of the machine that made it."""
    reference = Path(__file__).parents[1] / "results" / "reference"
    if not reference.is_dir():
        pytest.skip("results/reference comes with a checkout only")
    verdict = gate(reference, reference)
    assert (verdict.exit_code, verdict.changed) == (0, [])
    assert {row.family for row in verdict.rows} == {"evaluation"}
    files = contents(reference)
    assert sum(map(len, files.values())) < 1_000_000
    for name, content in files.items():
        assert b'"command"' not in content, name
        assert b'"store"' not in content, name
