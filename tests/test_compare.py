"""Two runs side by side: how arms are matched, what is paired, and what is said where nothing can be."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gate_run import night, write_run

from spo_bench.files import read_json, read_jsonl, write_json, write_jsonl
from spo_bench.report.compare import compare
from spo_bench.report.grid import MISSING
from spo_bench.report.pairing import changed_settings, match
from spo_bench.report.render import FORMATS
from spo_bench.report.results import read_results
from spo_bench.stats import compare_matrix, interval


def both(folder: Path, ours, theirs, first=None, second=None):
    """Return two read runs of these values, with options of each."""
    written = (write_run(folder / "a", ours, **(first or {})), write_run(folder / "b", theirs, **(second or {})))
    return tuple(read_results(path) for path in written)


def rows(table) -> dict[str, dict]:
    """Return a table's entries by arm and column."""
    return {row[2].text: dict(zip([column.key for column in table.columns], row)) for row in table.rows}


def test_a_row_is_what_compare_matrix_says(tmp_path):
    """Levels are those of what is compared, so B − A is their difference; Holm over the two arms."""
    ours, theirs = night(0, arms=2, seeds=3), night(1, arms=2, seeds=3)
    ours["m0"][0, :3] = math.nan
    found = rows(compare(*both(tmp_path, ours, theirs)))
    expected = compare_matrix(list(ours.values()), list(theirs.values()))
    for arm, one in zip(ours, expected):
        row = found[arm]
        assert (row["difference"].value, row["difference"].low, row["difference"].high) == (one.diff, one.low, one.high)
        assert (row["p"].value, row["prompts"].value, row["seeds"].value) == (one.p_adjusted, 200, 3)
        assert row["b"].value - row["a"].value == pytest.approx(one.diff)
        invalid = "; 3 of 600 values are invalid in A and left out" if arm == "m0" else ""
        assert row["note"].text == f"paired on 200 prompts{invalid}"


def test_partly_shared_prompts(tmp_path):
    """32 of 128 and of 200 prompts are common: the first run's are p000 to p127, the second's p096 to p295."""
    ours, theirs = night(0, arms=1, prompts=296), night(1, arms=1, prompts=296)
    first, second = both(tmp_path, {"m0": ours["m0"][:, :128]}, {"m0": theirs["m0"]})
    for folder in (tmp_path / "b" / "cells").iterdir():
        scores = read_json(folder / "scores.json")
        metric = scores["metrics"]["true_reward"]
        for key in ("ids", "values", "clusters"):
            metric[key] = metric[key][96:]
        write_json(folder / "scores.json", scores)
    (row,) = rows(compare(first, second)).values()
    (expected,) = compare_matrix([ours["m0"][:, 96:128]], [theirs["m0"][:, 96:128]])
    assert row["note"].text == "paired on 32 shared of 128 and 200"
    assert row["difference"].value == pytest.approx(expected.diff)
    assert row["prompts"].value == 32


def test_no_shared_prompt(tmp_path):
    """Both levels stay; each end of the difference adds the distances it is about in squares; there is no test."""
    ours, theirs = night(0, arms=1, seeds=1)["m0"], night(1, arms=1, seeds=1)["m0"]
    (row,) = rows(compare(*both(tmp_path, {"m0": ours}, {"m0": theirs}, second={"ids": "q{:03d}"}))).values()
    a, b = interval(ours), interval(theirs)
    assert (row["a"].value, row["b"].value) == (a[0], b[0])
    assert row["difference"].value == pytest.approx(b[0] - a[0])
    assert row["difference"].low == pytest.approx(b[0] - a[0] - math.hypot(b[0] - b[1], a[2] - a[0]))
    assert row["difference"].high == pytest.approx(b[0] - a[0] + math.hypot(b[2] - b[0], a[0] - a[1]))
    assert (row["p"].text, row["note"].text) == (MISSING, "unpaired: no shared prompt")


def test_unpaired_intervals_cover(tmp_path):
    """95 % intervals of the difference of two independent levels, 60 prompts against 120 of another spread, no true difference."""
    from spo_bench.report.compare import _difference
    from spo_bench.report.measure import Level

    rng, covered = np.random.default_rng(3), []
    for _ in range(400):
        sides = [interval(rng.normal(0, sd, n)) for sd, n in ((1.0, 60), (3.0, 120))]
        found = _difference(*(Level(mean, low, high, n, 1, True) for mean, low, high, n in sides))
        covered.append(found.low <= 0 <= found.high)
    assert 0.93 <= np.mean(covered) <= 0.975


def test_what_cannot_be_compared_is_said(tmp_path):
    values = night(0, arms=2, seeds=1)
    judges = [{"judge": {"kind": "openai", "settings": {"model": name}}} for name in ("old", "new")]
    options = [{"metric": "win_rate_sft", **judge} for judge in judges]
    found = rows(compare(*both(tmp_path / "judge", values, values, *options)))
    assert found["m0"]["note"].text == "not comparable: another judge: openai old → openai new"
    assert found["m0"]["difference"].text == MISSING
    assert found["m0"]["a"].value == pytest.approx(values["m0"].mean())
    extra = {"m1": values["m1"], "m2": values["m0"]}
    found = rows(compare(*both(tmp_path / "only", values, extra)))
    assert {arm: row["note"].text for arm, row in found.items()} == {
        "m0": "only in A", "m1": "paired on 200 prompts", "m2": "only in B",
    }  # fmt: skip
    assert found["m0"]["b"].text == MISSING


def test_ids_with_another_text_are_left_out(tmp_path):
    values = night(0, arms=1, seeds=1)
    first, second = both(tmp_path, values, values)
    path = tmp_path / "b" / "cells" / "m0-s0" / "scores.json"
    scores = read_json(path)
    scores["prompts"]["prompt"] |= {f"p{i:03d}": "other" for i in range(20)}
    write_json(path, scores)
    (row,) = rows(compare(first, second)).values()
    assert row["note"].text == "paired on 180 shared of 200 and 200, 20 with another text left out"
    assert row["prompts"].value == 180


def test_seeds_are_paired_by_number_else_in_order(tmp_path):
    ours, theirs = night(0, arms=1, seeds=3)["m0"], night(1, arms=1, seeds=3)["m0"]
    two = both(tmp_path / "some", {"m0": ours}, {"m0": theirs}, {"seeds": (0, 1, 2)}, {"seeds": (1, 2, 3)})
    (row,) = rows(compare(*two)).values()
    assert row["difference"].value == pytest.approx((theirs[:2] - ours[1:]).mean())
    assert "2 seeds on one side only or not finished" in row["note"].text
    none = both(tmp_path / "none", {"m0": ours}, {"m0": theirs}, {"seeds": (0, 1, 2)}, {"seeds": (5, 6, 7)})
    (row,) = rows(compare(*none)).values()
    assert row["difference"].value == pytest.approx((theirs - ours).mean())
    assert row["note"].text.endswith("no common seed: paired in order")
    assert not changed_settings(match(*none))


def test_the_same_policies_are_compared_as_they_are(tmp_path):
    values = night(0, arms=2)
    (first, second) = both(tmp_path, values, values, {"policies": "x"}, {"policies": "x"})
    found = compare(first, second)
    for row in rows(found).values():
        assert row["note"].text == "paired on 200 prompts; the same policies bit for bit"
        assert (row["difference"].value, row["difference"].low, row["difference"].high) == (0, 0, 0)
    assert any("these checkpoints" in note for note in found.caption)


def test_one_policy_for_all_seeds_says_nothing_of_training(tmp_path):
    """Such as that of SFT, trained anew once: its answers differ by seed, its weights do not."""
    first, second = both(tmp_path, night(0, arms=1), night(1, arms=1))
    for run in ("a", "b"):
        for path in (tmp_path / run).glob("cells/*/provenance.json"):
            write_json(path, {**read_json(path), "policy": run})
    found = compare(first, second)
    assert "one policy on each side for all seeds" in next(iter(rows(found).values()))["note"].text
    assert any("these checkpoints" in note for note in found.caption)


def edit(run: Path, name: str, change, cells: str = "*") -> None:
    for path in run.glob(f"cells/{cells}/{name}.json"):
        content = read_json(path)
        change(content)
        write_json(path, content)


@pytest.mark.parametrize(
    ("metric", "ours", "theirs", "same"),
    [
        ("head_to_head", "old", "old", True),
        ("head_to_head", "old", "new", False),
        ("head_to_head", "old", None, False),
        ("head_to_head", None, None, False),
        ("win_rate_chosen", "old", "new", True),  # held against the data's answers
    ],
)
def test_a_win_rate_has_the_policies_of_both_sides(tmp_path, metric, ours, theirs, same):
    """The same policy against another baseline, or one that is not known, is no fixed checkpoint."""
    options = [{"metric": metric, "policies": "saved"}] * 2
    found = both(tmp_path, *[night(0, arms=1)] * 2, *options)
    for run, baseline in zip(found, (ours, theirs)):
        if baseline:
            edit(run.directory, "provenance", lambda known, baseline=baseline: known.update(opponents={"baseline": baseline}))
    (one,) = match(*(read_results(run.directory) for run in found))
    assert one.policies.same
    assert one.values(metric).policies.same is same


def scored(run: Path, metrics) -> None:
    """Give every cell a score stage whose metrics are recorded so."""
    stage = {"kind": "score", "version": 1, "config": {"metrics": metrics}, "inputs": {}}
    edit(run, "spec", lambda spec: spec["stages"].update(score=stage))


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        (["evaluate:x"], ["evaluate:x"], ""),  # as runs recorded them once
        (["evaluate:x"], {"evaluate:x": None}, ""),
        (["evaluate:x"], {"evaluate:x": "aa"}, "script: its content is recorded on one side only"),
        ({"evaluate:x": "aa"}, {"evaluate:x": "bb"}, "another script (other content)"),
    ],
)
def test_scripts_are_known_by_content(tmp_path, ours, theirs, said):
    first, second = both(tmp_path, *[night(0, arms=1)] * 2, *[{"metric": "evaluate:x"}] * 2)
    for run, metrics in ((first, ours), (second, theirs)):
        scored(run.directory, metrics)
    (one,) = match(read_results(first.directory), read_results(second.directory))
    assert one.values("evaluate:x").reason == said


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ({"hash": "aa", "key": "k"}, {"hash": "aa", "key": "l"}, ""),
        ({"hash": "aa", "key": "k"}, {"hash": "bb", "key": "k"}, "another reward model (other content)"),
        ({"hash": "aa", "key": "k"}, {"key": "k"}, ""),
        ({"key": "k"}, {"key": "l"}, "another reward model (other content)"),
        ({"hash": "aa"}, {"key": "k"}, "reward model: its content is recorded on one side only"),
    ],
)
def test_a_hash_is_never_held_against_a_key(tmp_path, ours, theirs, said):
    first, second = both(tmp_path, *[night(0, arms=1)] * 2, *[{"metric": "reward/rm"}] * 2)
    for run, known in ((first, ours), (second, theirs)):
        stage = {"kind": "reward", "version": 1, "config": {}, "inputs": {"reward_model": known["key"]} if "key" in known else {}}
        edit(run.directory, "spec", lambda spec, stage=stage: spec["stages"].update({"reward/rm": stage}))
        hashes = {"reward/rm": known["hash"]} if "hash" in known else {}
        edit(run.directory, "provenance", lambda record, hashes=hashes: record.update(reward_models=hashes))
    (one,) = match(read_results(first.directory), read_results(second.directory))
    # Either side may be the older one.
    (other,) = match(read_results(second.directory), read_results(first.directory))
    found = {one.values("reward/rm").reason, other.values("reward/rm").reason}
    assert found == ({"reward model: its content is recorded on one side only"} if "one side" in said else {said})


def test_changed_sources_are_shown(tmp_path):
    """Weights that SFT starts from, judges and reward models are no stages of a cell, so that no setting tells of them."""
    first, second = both(tmp_path, *[night(0, arms=2)] * 2)
    for run, key in ((first, "k"), (second, "l")):
        sft = {"kind": "sft", "version": 1, "config": {}, "inputs": {"model": key, "data:0": f"data {key}", "policy": key}}
        reward = {"kind": "reward", "version": 1, "config": {}, "inputs": {"reward_model": key, "samples": key}}
        judge = {"kind": "judge", "version": 1, "config": {}, "inputs": {"judge_model": key, "data": f"data {key}"}}
        stages = {"sft": sft, "reward/rm": reward, "judge/sft": judge}
        edit(run.directory, "spec", lambda spec, stages=stages: spec["stages"].update(stages))
        lines = [{**row, "keys": {"data": f"data {key}"}} for row in read_jsonl(run.directory / "cells.jsonl")]
        write_jsonl(run.directory / "cells.jsonl", lines)
    found = changed_settings(match(read_results(first.directory), read_results(second.directory)))
    assert [line for line in found if " changed" in line] == [
        "sft.model changed (all arms)",
        "judge/sft.judge_model changed (all arms)",
        "reward/rm.reward_model changed (all arms)",
    ]


# --- which arms belong together -----------------------------------------------------------------------------------------


def pairs(first, second) -> list[tuple[str | None, str | None]]:
    return [(one.ours and one.ours.first.method, one.theirs and one.theirs.first.method) for one in match(first, second)]


def test_a_changed_hyperparameter_is_no_hindrance(tmp_path):
    """One DPO is left on each side, whatever it is called; the IPO with an addition is another method than without."""
    values = night(0, arms=4, seeds=1)
    ours = dict(zip(("dpo", "kto", "ipo", "cdpo"), values.values()))
    theirs = dict(zip(("dpo(beta=0.3)", "kto", "ipo+sft", "cdpo(a)", "cdpo(b)"), [*values.values(), values["m0"]]))
    methods = {"dpo(beta=0.3)": {"name": "dpo"}, "ipo+sft": {"name": "ipo", "plus": [{"name": "sft"}]}}
    methods |= {f"cdpo({x})": {"name": "cdpo"} for x in "ab"}
    first, second = both(tmp_path, ours, theirs, {"train": {"beta": 0.1}}, {"train": {"beta": 0.3}, "methods": methods})
    assert pairs(first, second) == [
        ("dpo", "dpo(beta=0.3)"), ("kto", "kto"), ("ipo", None), ("cdpo", None),
        (None, "ipo+sft"), (None, "cdpo(a)"), (None, "cdpo(b)"),
    ]  # fmt: skip
    assert changed_settings(match(first, second)) == ["train.settings.beta 0.1 -> 0.3 (all arms)"]


def test_spo_settings_tell_arms_apart_and_controls_stay_controls(tmp_path):
    """Equal settings come first, whatever a run calls them: gamma .3 finds gamma .3. Then the one that is left, control with control."""
    values = night(0, arms=4, seeds=1)
    first, second = both(tmp_path, values, values)
    variants = [
        ({"label": "+SPO", "gamma": 0.1}, {"label": "+SPO", "gamma": 0.3}),
        ({"label": "+SPO(gamma=0.3)", "gamma": 0.3}, {"label": "+SPO(gamma=0.5)", "gamma": 0.5}),
        ({"label": "+SPO[gamma_zero]", "control": "gamma_zero"}, {"label": "+SPO[gamma_zero](layer=0)", "control": "gamma_zero"}),
        (False, False),
    ]
    for side, run in enumerate(("a", "b")):
        lines = list(read_jsonl(tmp_path / run / "cells.jsonl"))
        write_jsonl(tmp_path / run / "cells.jsonl", [{**c, "method": "dpo", "spo": v[side]} for c, v in zip(lines, variants)])
    first, second = read_results(first.directory), read_results(second.directory)
    found = {one.arm.first.id: one.theirs and one.theirs.first.id for one in match(first, second)}
    assert found == {"m0-s0": "m1-s0", "m1-s0": "m0-s0", "m2-s0": "m2-s0", "m3-s0": "m3-s0"}


@pytest.mark.parametrize(
    ("ours", "theirs", "matched"),
    [
        ("/old/place/model", "/new/place/model", True),  # the last part of the path
        ("/old/place/one", "/new/place/two", True),  # the content: both start from the weights with the key "base"
        ("org/model", "org/model", True),
    ],
)
def test_a_model_may_have_moved(tmp_path, ours, theirs, matched):
    values = night(0, arms=1, seeds=1)
    first, second = both(tmp_path, values, values, {"model": ours}, {"model": theirs})
    assert [(one.ours is not None and one.theirs is not None) for one in match(first, second)] == [matched]


def test_another_model_is_another_arm(tmp_path):
    values = night(0, arms=1, seeds=1)
    first, second = both(tmp_path, values, values, {"model": "one"}, {"model": "two"})
    lines = [{**row, "keys": {**row["keys"], "sft": "other"}} for row in read_jsonl(tmp_path / "b" / "cells.jsonl")]
    write_jsonl(tmp_path / "b" / "cells.jsonl", lines)
    table = compare(first, read_results(second.directory))
    assert [row[-1].text for row in table.rows] == ["only in A", "only in B"]


# --- the command ----------------------------------------------------------------------------------------------------------


def test_every_format(tmp_path):
    table = compare(*both(tmp_path, night(0, arms=2), night(1, arms=2)))
    for form, render in FORMATS.items():
        assert "m1" in render(table), form
        assert "np." not in render(table), form
    assert json.loads(FORMATS["json"](table))["rows"][0]["entries"]["p"]["value"] <= 1


def test_the_command(tmp_path):
    write_run(tmp_path / "a", night(0, arms=2))
    write_run(tmp_path / "b", night(1, arms=2))

    def run(*words):
        command = [sys.executable, "-c", "from spo_bench.cli.main import main; main()", "compare", *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    plain = run("a", "b")
    assert plain.returncode == 0, plain.stderr
    assert "B − A" in plain.stdout
    assert "paired on 200 prompts" in plain.stdout
    found = json.loads(run("a", "b", "--json", "--metric", "all").stdout)
    assert found["name"] == "compare"
    for words, said in (
        (("a", "nothing"), "has no run.json"),
        (("a", "b", "--metric", "true_rewrd"), "did you mean 'true_reward'"),
        (("a", "b", "--format", "mdd"), "did you mean 'md'"),
    ):
        wrong = run(*words)
        assert wrong.returncode == 2
        assert said in " ".join(wrong.stderr.split())
        assert "Traceback" not in wrong.stderr
