"""Win rates from files: hand values, AlpacaEval's conventions, every fault of a file, and the command."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest
import typer
from scipy.special import expit
from typer.testing import CliRunner

from spo_bench.cli.judge_stats import stats
from spo_bench.errors import InputError
from spo_bench.judging.annotations import read_judged
from spo_bench.judging.rates import Pairing, rates
from spo_bench.stats import interval

app = typer.Typer()
app.command()(stats)


def verdict(number, score, length_a=10, length_b=20, **more):
    outcome = {1.0: "a", 0.0: "b", 0.5: "tie", None: "invalid"}.get(score, "a")
    return {"id": f"q{number}", "outcome": outcome, "score": score, "length_a": length_a, "length_b": length_b, **more}


def annotation(preference, output_1="four", output_2="seven!!", **more):
    return {"instruction": "Say it.", "output_1": output_1, "output_2": output_2, "preference": preference, **more}


def lines(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def listed(path: Path, rows) -> Path:
    path.write_text(json.dumps(rows))
    return path


def judged(n=200, seed=0):
    """Verdicts of a judge that likes length; answer a is longer more often than not."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(50, 400, (n, 2)) + np.array([60, 0])
    won = rng.random(n) < expit(0.4 + 1.2 * np.tanh((lengths[:, 0] - lengths[:, 1]) / 140))
    return [verdict(i, float(w), int(a), int(b)) for i, (w, (a, b)) in enumerate(zip(won, lengths))]


def test_rates_by_hand():
    """Scores 1, 1, .5, 0 and one invalid: mean 5/8; deviations 3/8, 3/8, -1/8, -5/8, squares 44/64, over 3 is 11/48, over 4 11/192.

    Lengths are those of all five pairs.
    """
    found = rates([Pairing(s, 10 + i, 20 + i) for i, s in enumerate([1.0, 1.0, 0.5, None, 0.0])])
    assert found.win_rate == pytest.approx(62.5)
    assert found.standard_error == pytest.approx(100 * math.sqrt(11 / 192))
    assert (found.n, found.n_invalid, found.wins, found.ties, found.losses) == (4, 1, 2, 1, 1)
    assert (found.mean_length_a, found.mean_length_b) == (12, 22)
    assert found.length_controlled_win_rate is None
    assert "20 are needed" in found.length_controlled_reason
    mean, low, high, _ = interval([1, 1, 0.5, math.nan, 0])
    assert (found.win_rate, found.low, found.high) == (100 * mean, 100 * low, 100 * high)


def test_clusters_make_the_standard_error_robust():
    """Every verdict twice: as independent ones the error is too small; by cluster it is that of the pairs once, exactly."""
    scores = [1.0, 0.0, 0.5, 1.0, 1.0, 0.0]
    once = rates([Pairing(s, 1, 2) for s in scores])
    alone = rates([Pairing(s, 1, 2) for s in scores * 2])
    together = rates([Pairing(s, 1, 2, str(i % 6)) for i, s in enumerate(scores * 2)])
    assert together.standard_error == pytest.approx(once.standard_error)
    assert alone.standard_error < 0.75 * once.standard_error
    assert together.high - together.low > alone.high - alone.low
    assert rates([Pairing(s, 1, 2, "one") for s in scores]).standard_error is None


def test_the_subject_decides_which_way_length_counts():
    rows = [Pairing(row["score"], row["length_a"], row["length_b"]) for row in judged()]
    turned = [Pairing(1 - p.score, p.length_a, p.length_b) for p in rows]
    of_a, of_b = rates(rows, "a"), rates(turned, "b")
    assert of_a.length_controlled_win_rate < of_a.win_rate  # a is longer, and length wins
    assert of_b.length_controlled_win_rate == pytest.approx(100 - of_a.length_controlled_win_rate)
    assert of_a.length_controlled_low < of_a.length_controlled_win_rate < of_a.length_controlled_high


def test_nothing_valid_is_none_not_nan():
    found = rates([Pairing(None, None, None)] * 3)
    assert (found.n, found.n_invalid) == (0, 3)
    assert found.win_rate is found.standard_error is found.low is found.mean_length_a is None
    json.dumps(found.record(), allow_nan=False)


def test_alpaca_preferences(tmp_path):
    """2 = output_2; 1.5 and 0 tie; null, NaN, -1, 2.1, .5 are invalid; scores 1, 0, .5, .5, .25, mean .45.

    Deviations .55, -.45, .05, .05, -.2; squares .55, over 4, over 5: .0275.
    """
    path = listed(tmp_path / "a.json", [annotation(p) for p in (2, 1.0, 1.5, 0, None, math.nan, -1, 2.1, 0.5, 1.25)])
    (one,) = read_judged(path)
    assert (one.subject, one.opponent, one.side) == ("output_2", "output_1", "b")
    found = rates(one.pairings, one.side)
    assert found.win_rate == pytest.approx(45)
    assert found.standard_error == pytest.approx(100 * math.sqrt(0.0275))
    assert (found.n, found.n_invalid, found.wins, found.losses, found.ties) == (5, 5, 1, 2, 2)
    assert (found.mean_length_a, found.mean_length_b) == (4, 7)


def test_alpaca_numbers_are_those_of_a_data_frame(tmp_path):
    """The public numbers are pandas' mean and sem (ddof 1) of preference - 1, 0 read as 1.5, all outside [1, 2] dropped."""
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(4)
    preferences = [rng.choice([1 + rng.beta(0.3, 0.4), 1.5, 0, 0.0, -1, None, 1, 2]) for _ in range(805)]
    path = listed(tmp_path / "a.json", [annotation(p, "x" * int(rng.integers(1, 900)), "é" * 500) for p in preferences])
    kept = pandas.Series(preferences).astype(float).replace({0.0: 1.5})
    kept = kept[kept.between(1, 2)] - 1
    (one,) = read_judged(path)
    found = rates(one.pairings, one.side)
    assert found.n == len(kept)
    assert found.win_rate == pytest.approx(kept.mean() * 100, rel=1e-14)
    assert found.standard_error == pytest.approx(kept.sem() * 100, rel=1e-14)


def test_a_file_of_several_generators(tmp_path):
    rows = [annotation(2, generator_1="base", generator_2=name) for name in ("x", "y", "x")]
    found = read_judged(listed(tmp_path / "a.json", rows))
    assert [(one.subject, one.opponent, len(one.pairings)) for one in found] == [("x", "base", 2), ("y", "base", 1)]


def test_our_files(tmp_path):
    rows = [verdict(0, 1.0, cluster="c"), verdict(1, None, None, None), verdict(2, 0.75)]
    (plain,) = read_judged(lines(tmp_path / "verdicts.jsonl", rows))
    assert (plain.subject, plain.opponent, plain.side) == ("a", "b", "a")
    expected = [Pairing(1.0, 10, 20, "c", "a"), Pairing(None, None, None, None, "invalid"), Pairing(0.75, 10, 20, None, "a")]
    assert list(plain.pairings) == expected
    packed = tmp_path / "verdicts.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "verdicts.jsonl").read_bytes()))
    assert read_judged(packed)[0].pairings == plain.pairings
    against = [verdict(0, 1.0, opponent="sft"), verdict(0, 0.0, opponent="baseline")]
    run = read_judged(lines(tmp_path / "judgments.jsonl", against))
    assert [one.opponent for one in run] == ["sft", "baseline"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["is empty"]),
        ("[]", ["is empty"]),
        ("[1, 2", ["not JSON"]),
        ("[" * 100_000, ["not JSON"]),
        (json.dumps(verdict(1, 1.0)) + '\n{"id', ["line 2", "not JSON"]),
        ("3\n", ["row 1: 3"]),
        ('{"x": 1}\n', ["row 1 has fields x", "output_1", "outcome"]),
        ('{"id": "1", "prompt": "p", "a": "x", "b": "y"}', ["pairs without verdicts", "spo-bench judge run"]),
        (json.dumps([annotation(1), {"output_1": "x", "preference": 1}]), ["row 2", "no field 'output_2'"]),
        (json.dumps([annotation(1), {"output_1": "x", "output_2": "y"}]), ["row 2", "no field 'preference'"]),
        (json.dumps([annotation(1, output_2=None)]), ["row 1", "output_2 is null"]),
        (json.dumps([annotation("2")]), ["row 1", 'preference is "2"', "a number from 1 to 2"]),
        (json.dumps([annotation(True)]), ["preference is true"]),
        (json.dumps([annotation(2, generator_2=7)]), ["generator_2 is 7"]),
        (json.dumps([annotation(1), "x"]), ["row 2", '"x"']),
        (json.dumps(verdict(1, 1.0) | {"outcome": "A"}), ["row 1", 'outcome is "A"']),
        (json.dumps(verdict(1, 1.0) | {"score": 1.5}), ["row 1", "score is 1.5"]),
        (json.dumps(verdict(1, 1.0) | {"score": math.nan}), ["score is NaN"]),
        (json.dumps(verdict(1, 1.0) | {"score": None}), ["outcome is 'a' and score is null"]),
        (json.dumps(verdict(1, 1.0) | {"length_a": "9"}), ['length_a is "9"']),
        (json.dumps(verdict(1, 1.0) | {"length_a": -1}), ["length_a is -1"]),
        (json.dumps({"id": "q", "outcome": "a", "score": 1}), ["no field 'length_a'"]),
        (json.dumps({"outcome": "a", "score": 1, "length_a": 1, "length_b": 1}), ["no field 'id'"]),
        (json.dumps(verdict(1, 1.0)) + "\n" + json.dumps(verdict(1, 0.0)), ["row 2", "id 'q1' again"]),
    ],
)
def test_faults_name_file_row_and_field(tmp_path, text, parts):
    path = tmp_path / "given.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_judged(path)
    for part in ["given.json", "remedy: ", *parts]:
        assert part in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "latin").write_bytes("[é]".encode("latin-1"))
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"[1]" * 1000)[:-12])
    for name, part in {"absent": "No such file", "latin": "not UTF-8", "cut.gz": "broken gzip", ".": "is a directory"}.items():
        with pytest.raises(InputError, match=part):
            read_judged(tmp_path / name)


def test_command(tmp_path):
    ours = lines(tmp_path / "verdicts.jsonl", judged())
    theirs = listed(tmp_path / "a.json", [annotation(2, generator_2="model"), annotation(1, generator_2="model")])
    run = CliRunner()
    one = json.loads(run.invoke(app, [str(ours), "--json"]).stdout)
    assert (one["subject"], one["n"], one["n_invalid"], one["file"]) == ("a", 200, 0, str(ours))
    assert one["low"] < one["win_rate"] < one["high"]
    assert one["length_controlled_low"] < one["length_controlled_win_rate"] < one["length_controlled_high"]
    both = json.loads(run.invoke(app, [str(ours), str(theirs), "--json"]).stdout)
    assert [found["subject"] for found in both] == ["a", "model"]
    assert both[0] == one
    assert both[1]["length_controlled_win_rate"] is None
    table = run.invoke(app, [str(ours), str(theirs)], env={"COLUMNS": "200"}).stdout
    assert f"{one['win_rate']:.2f} ± {one['standard_error']:.2f}" in table
    assert "50.00 ± 50.00" in table
    assert "model against output_1: no rate at equal length: 2 independent pairs" in table
