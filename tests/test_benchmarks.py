"""The benchmarks of training: arithmetic and loads by hand, taking turns for real, and every script on models of no use."""

from __future__ import annotations

import importlib
import json
import math
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import tiny_model

from spo_bench.models.numerics import Numerics
from spo_bench.models.policy import add_lora
from spo_bench.spo.settings import SpoSettings
from spo_bench.training.examples import Copy, Example

BENCHMARKS = str(Path(__file__).resolve().parents[1] / "benchmarks")
sys.path.insert(0, BENCHMARKS)
NAMES = ("measuring", "own_side", "synthetic", "vs_trl", "scaling", "gpu")
measuring, own_side, synthetic, vs_trl, scaling, gpu = (importlib.import_module(name) for name in NAMES)
sys.path.pop(0)

CPU = Numerics("cpu", "float32", "float32")


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    """Processes that a test starts find the benchmarks, as they do beside a script."""
    monkeypatch.syspath_prepend(BENCHMARKS)


# --- by hand --------------------------------------------------------------------------------------------------------------


def some_row(copies: bool = False) -> Example:
    """A prompt of two tokens; answers (5, 6, 7) and (5, 8) share their first; a copy (5, 6) is a prefix of the first."""
    prompt, chosen, rejected = np.array([1, 2]), np.array([5, 6, 7]), np.array([5, 8])
    return Example("row", prompt, chosen, rejected, (Copy(chosen[:2], 1, 0), Copy(rejected[1:], 1, 1)) if copies else ())


def test_load_by_hand():
    """A trie of 1 2 5 (6 7 | 8): 6 nodes, the 4 nodes of the answers are predicted, depths 1 to 5 and 4 make 19 attended pairs.
    Apart, 1 2 5 6 7 and 1 2 5 8: 9 tokens, 5 predictions, 15 + 10 pairs. Copies: (5, 6) is there already, (8) is a node at depth 3.
    """
    assert own_side.load_of([some_row()]) == measuring.Load(6, 4, 19)
    assert own_side.load_of([some_row()], share=False) == measuring.Load(9, 5, 25)
    assert own_side.load_of([some_row(copies=True)]) == measuring.Load(7, 4, 22)
    assert own_side.load_of([some_row(), some_row()]) == measuring.Load(6, 4, 19) + measuring.Load(6, 4, 19)


def test_arithmetic_is_what_torch_counts():
    """With every position predicted and every pair attended, as the plain model with eager attention computes it."""
    from torch.utils.flop_counter import FlopCounterMode

    length = 24
    model = tiny_model()
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counted:
        model(input_ids=torch.arange(length)[None], use_cache=False).logits.sum().backward()
    wanted = measuring.step_flops(model, measuring.Load(length, length, length**2))
    assert counted.get_total_flops() == wanted


def test_arithmetic_of_an_adapter_by_hand():
    """Width 32, four heads of 8 and two of keys, 64 inside, 2 layers: q 1024, k 512, v 512, o 1024, three of 2048 = 9216 a layer.
    Rank 2 adds 2 (in + out): 2 (64 + 48 + 48 + 64 + 3 * 96) = 1024 a layer. Frozen 4, trained 6; head 61 x 32, frozen.
    """
    model = add_lora(tiny_model().requires_grad_(False), {**own_side.LORA, "rank": 2}, 0)
    wanted = 10 * 2 * (4 * 9216 + 6 * 1024) + 3 * 4 * 61 * 32 + 55 * 2 * 6 * 2 * 32
    assert measuring.step_flops(model, measuring.Load(10, 3, 55)) == wanted


def test_products_are_those_of_the_arithmetic():
    """Each matrix three times a layer, the head three times; without attention, two operations an element make the step's."""
    model, load = tiny_model(), measuring.Load(10, 3, 0)
    products = measuring.products_of(model, load.tokens, load.positions)
    assert (products[3, 32, 61], products[3, 61, 32], products[61, 3, 32]) == (1, 1, 1)
    assert products[64, 10, 32] == 2 * 2  # gate and up, in two layers
    assert sum(2 * math.prod(shape) * count for shape, count in products.items()) == measuring.step_flops(model, load)


def test_rate_counts_two_operations_an_element(monkeypatch):
    ticks = iter(range(100))
    monkeypatch.setattr(measuring, "seconds_of", lambda action, device: (action(), 2.0 + next(ticks))[1])
    assert measuring.matmul_rate([(3, 4, 5)], "float32") == {(3, 4, 5): 2 * 3 * 4 * 5 / 2.0}


def test_alternate():
    calls: list[str] = []
    seconds = measuring.alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b") or time.sleep(0.02)}, rounds=2)
    assert calls == ["a", "b"] * 3
    assert [len(taken) for taken in seconds.values()] == [2, 2]
    assert min(seconds["b"]) >= 0.02 > max(seconds["a"])


def test_fits():
    """y = 3 x^2 has slope 2 in logs. Over x = 0, 1, 2 the line through 0, 0, 3 is 1.5 x - 0.5: residuals 0.5, -1, 0.5, r² = 3/4."""
    assert measuring.slope([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    assert measuring.r_squared([0, 1, 2], [0, 0, 3]) == pytest.approx(0.75)


def test_table():
    lines = measuring.table(("name", "value"), [["a", 1234.4], ["b", None], ["c", 0.12345], ["d", 4096]]).splitlines()
    assert lines == ["| name | value |", "| --- | ---: |", "| a | 1,234 |", "| b | – |", "| c | 0.123 |", "| d | 4,096 |"]


# --- taking turns ---------------------------------------------------------------------------------------------------------


def noted(turn, path: Path, units: int, hold: int = 0, **_told) -> None:
    """Write when each turn begins and ends; hold so many MiB from the second unit on; run out of memory after the units."""
    spike = torch.ones(256 << 18)  # 256 MiB before the first turn: no part of the peak
    del spike
    held = []
    turn.ready(ids=[], tokens=[1] * 9)
    for unit in range(units):
        begun = time.monotonic()
        time.sleep(0.02)
        held.append(torch.ones(hold << 18) if unit == 1 else None)
        with path.open("a", encoding="utf-8") as out:
            out.write(json.dumps([hold, begun, time.monotonic()]) + "\n")
        turn.done(loss=0.0)
    raise torch.OutOfMemoryError("no more\nand much more")


def test_turns(tmp_path):
    """Four turns each (three rounds and one to warm up), one at a time, memory apart. ``b`` runs out of memory in its second turn
    and is tried again as something that does not; the other one then begins anew.
    """
    path = tmp_path / "times"
    told = {"path": path, "setup": own_side.Setup(2, 4, 0.0), "records": []}
    plain, smaller = ({**told, "units": 9, "hold": hold} for hold in (0, 120))
    tries = {
        "a": [measuring.Side("a", noted, plain)],
        "b": [measuring.Side("b", noted, {**told, "units": 1, "hold": 1}), measuring.Side("b", noted, smaller)],
    }
    a, b = gpu.settle(tries, 3, "cpu", 1.0)
    times = [json.loads(line) for line in path.read_text().splitlines()]
    assert [hold for hold, _, _ in times] == [0, 1, 0] + [0, 120] * 4
    moments = [moment for _, begun, ended in times for moment in (begun, ended)]
    assert moments == sorted(moments)
    assert (a["what"], b["what"]) == ("a", "b")
    assert 100 < (b["peak_gib"] - a["peak_gib"]) * 1024 < 140
    assert 0.02 <= a["seconds_a_step"] < 1
    assert a["pairs_a_second"] == pytest.approx(2 / a["seconds_a_step"])


def test_a_side_that_fails_is_named(tmp_path):
    side = measuring.Side("a", noted, {"path": tmp_path / "missing" / "times", "units": 1})
    with pytest.raises(measuring.SideError, match=r"^a: FileNotFoundError") as error:
        measuring.take_turns([side], rounds=1)
    assert not error.value.out_of_memory


# --- synthetic rows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["hh", "tldr"])
def test_synthetic_rows_have_the_lengths_of_real_ones(kind):
    tokenizer = synthetic.word_tokenizer(512)
    rows = synthetic.make_rows(tokenizer, kind, 200)
    for name, points in synthetic.LENGTHS[kind].items():
        sizes = sorted(len(row[f"{name}_ids"]) for row in rows)
        assert np.quantile(sizes, [0.1, 0.5, 0.9]) == pytest.approx([points[2], points[4], points[6]], rel=0.05, abs=1.5)
    assert all(
        tokenizer(row["prompt_text"] + row["chosen"])["input_ids"] == row["prompt_ids"] + row["chosen_ids"][:-1] for row in rows
    )


def test_synthetic_copies_cost_what_real_ones_cost():
    """DPO with SPO has 1.57 times the tokens of DPO on tries of real HH rows."""
    tokenizer, setup = synthetic.word_tokenizer(512), own_side.Setup(4, 1, 0.0)
    rows = synthetic.make_rows(tokenizer, "hh", 100)
    plain, spo = (
        own_side.load_of(own_side.examples_of(rows, tokenizer, of, setup.loop())).tokens for of in (None, SpoSettings())
    )
    assert 1.3 < spo / plain < 1.8


# --- the scripts ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> tuple[str, str]:
    """A model directory and a file of rows."""
    directory = tmp_path_factory.mktemp("given")
    model, tokenizer = synthetic.make_model("tiny", CPU)
    model.save_pretrained(directory / "model")
    tokenizer.save_pretrained(directory / "model")
    rows = synthetic.make_rows(tokenizer, "tiny", 24)
    pairs = [{"prompt": row["prompt_text"], "chosen": row["chosen"], "rejected": row["rejected"]} for row in rows]
    (directory / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    return str(directory / "model"), str(directory / "pairs.jsonl")


@pytest.mark.skipif(find_spec("trl") is None, reason="trl, the extra `bench`, is not installed")
def test_vs_trl(given, tmp_path, capsys):
    """Three steps of each side: the same token ids, losses and gradient norms; figures for all and ratios of them."""
    wanted = vs_trl.parsed(
        [*given, "--steps", "2", "--pairs", "4", "--learning-rate", "1e-2", "--out", str(tmp_path / "out.json")]
    )
    result = vs_trl.measure(wanted)
    vs_trl.show(result, wanted, lambda: vs_trl.tables(result))
    assert result["same"]["float32"]["same"], result["same"]
    lines = {line["what"].rsplit(" ", 1)[0]: line for line in result["lines"]}
    assert list(lines) == ["trl dpo", "dpo", "dpo+SPO"]
    assert abs(lines["dpo"]["losses"][-1] - math.log(2)) > 0.01  # they have moved, so that being the same says something
    assert lines["dpo"]["tokens_a_step"] < min(lines["trl dpo"]["tokens_a_step"], lines["dpo+SPO"]["tokens_a_step"])
    assert all(len(line["each_step"]) == 2 and line["peak_gib"] > 0.1 for line in lines.values())
    of = {one["ratio"]: one["value"] for one in result["ratios"]}
    cost = sum(lines["dpo+SPO"]["each_step"]) / sum(lines["dpo"]["each_step"])
    assert of["dpo+SPO float32 / dpo float32, seconds"] == pytest.approx(cost)
    assert of["trl dpo float32 / dpo float32, seconds"] > 0
    # What was achieved is one number, whichever rate it is a share of. (On a model this small that rate itself may be disturbed,
    # so that a share says nothing by its size.)
    share, rates = of["dpo float32, of the rate of a large product"], result["matmul"]["float32"]
    assert share * rates["square"] == pytest.approx(lines["dpo"]["of_products"] * rates["products"])
    assert share > 0
    assert json.loads((tmp_path / "out.json").read_text()) == json.loads(json.dumps(result))
    assert "largest differences" in capsys.readouterr().out


def test_other_losses_or_token_ids_do_not_pass():
    def taken(loss: float, ids: list[int]) -> object:
        return SimpleNamespace(about={"ids": ids}, turns=[{"loss": loss, "grad_norm": 1.0}])

    assert vs_trl.agreement(taken(0.7, [1]), taken(0.70005, [1]), "float32")["same"]
    assert not vs_trl.agreement(taken(0.7, [1]), taken(0.7002, [1]), "float32")["same"]
    with pytest.raises(ValueError, match="token ids"):
        vs_trl.agreement(taken(0.7, [1]), taken(0.7, [2]), "float32")
    with pytest.raises(ValueError, match="no number"):
        vs_trl.agreement(taken(0.7, [1]), taken(math.nan, [1]), "float32")


def test_scaling(given):
    """Every part, on a tiny model: computed tokens are linear in rows, less than linear in degrees, and fewer on tries; the two
    layouts have the same losses.
    """
    less = ["--rows", "2", "4", "8", "--pairs", "4", "--rounds", "1", "--degrees", "2", "4", "--methods", "1", "2"]
    result = scaling.measure(scaling.parsed([*given, *less, "--cell-steps", "2"]))
    assert result["rows"]["dpo"]["r_squared"]["tokens"] > 0.97
    assert result["degrees"]["slopes"]["tokens"] < 1
    tokens = [line["tokens"] for line in result["length"]["dpo"]["lines"]]
    assert tokens == sorted(tokens)
    lines = {line["what"]: line for line in result["layout"]["lines"]}
    for name in ("dpo", "dpo+SPO"):
        trie, separate = lines[f"{name} trie"], lines[f"{name} separate"]
        assert trie["tokens_a_pair"] < separate["tokens_a_pair"]
        assert trie["loss"] == pytest.approx(separate["loss"], abs=1e-5)
    assert [line["cells"] for line in result["cells"]["lines"]] == [2, 4]
    assert all(0 < line["training"] < line["seconds"] for line in result["cells"]["lines"])
    assert "r² of tokens" in scaling.tables(result)


def test_gpu_script_on_a_cpu(tmp_path, capsys):
    """The same code as on a GPU, but for the waits, which only a GPU has."""
    wanted = gpu.parsed(["--tiny", "--no-trl", "--weights", "lora", "--out", str(tmp_path / "gpu.json")])
    result = gpu.measure(wanted)
    assert [one["same"] for one in result["exactness"]] == [True, True]
    assert result["exactness"][0]["grad_norm"][0] == pytest.approx(result["exactness"][0]["grad_norm"][1], rel=1e-4)
    assert result["kernels"]["largest_gap"] < 1e-5
    assert result["synchronisations"] is None
    (case,) = result["cases"]
    assert [line["what"] for line in case["lines"]] == ["dpo", "dpo+SPO"]
    assert list(case["ratios"]) == ["dpo+SPO / dpo"]
    assert all(0 < line["of_matmul_rate"] < 1 for line in case["lines"])
    assert json.loads((tmp_path / "gpu.json").read_text())["cases"] == json.loads(json.dumps(result["cases"]))
    gpu.show(result, wanted, lambda: gpu.tables(result))
    assert "not measured, no GPU" in capsys.readouterr().out
