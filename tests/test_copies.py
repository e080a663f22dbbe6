"""Degraded copies as a stage: the same as made on the spot, whoever makes them; one for all that see the same ones."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from spo_bench.api import cells_of
from spo_bench.files import write_json
from spo_bench.matrix.load import load_spec
from spo_bench.models.embedded import build_embedded
from spo_bench.models.policy import load_tokenizer
from spo_bench.plugins import get_task
from spo_bench.spo.settings import SpoSettings
from spo_bench.stages.copies import Maker, copies_of, load, save
from spo_bench.stages.data import prepare

LENGTH = 64


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    build_embedded(folder, 0)
    return folder


@pytest.fixture(scope="module")
def rows(model):
    """Tokenised rows; the last one's chosen answer was cut."""
    task = get_task("controlled_dialogue")
    found, _, _ = prepare(task, task.load("train", 12, 0), "train", load_tokenizer(model), LENGTH)
    return [*found[:-1], {**found[-1], "chosen_ids": found[-1]["chosen_ids"][:-2]}]


def same(ours, theirs) -> bool:
    return [[(c.tokens.tolist(), c.degree, c.side) for c in row] for row in ours] == [
        [(c.tokens.tolist(), c.degree, c.side) for c in row] for row in theirs
    ]


@pytest.mark.parametrize("settings", [{}, {"control": "shuffled_degrees"}, {"order": "random", "side": "rejected"}])
def test_what_is_stored_is_what_was_made(rows, model, tmp_path, settings):
    made = copies_of(rows, Maker(SpoSettings(**settings), 3, LENGTH), model)
    assert sum(map(len, made)) > 2 * len(rows)
    save(tmp_path / "train.safetensors", made)
    assert same(load(tmp_path, "train"), made)


def test_nothing_is_stored_and_read_as_nothing(tmp_path):
    save(tmp_path / "eval.safetensors", [[], []])
    assert load(tmp_path, "eval") == [[], []]


def test_processes_make_the_same_copies_in_the_same_order(rows, model):
    maker = Maker(SpoSettings(control="random_removal"), 1, LENGTH)
    assert same(copies_of(rows, maker, model, processes=2), copies_of(rows, maker, model))


UNGUARDED = """
import os, sys, torch
from pathlib import Path
from spo_bench.files import read_json
from spo_bench.spo.settings import SpoSettings
from spo_bench.stages import copies
from spo_bench.stages.copies import Maker, copies_of, save

copies.LARGE = 1
torch.set_num_threads(2)
folder, model = Path(sys.argv[1]), Path(sys.argv[2])
with (folder / "imported").open("a") as handle:
    handle.write(f"{os.getpid()} ")
for name, processes in (("asked", None), ("failed", 2)):
    made = copies_of(read_json(folder / "rows.json"), Maker(SpoSettings(), 0, 64), model, processes=processes)
    save(folder / f"{name}.safetensors", made)
    if processes is None:
        assert len((folder / "imported").read_text().split()) == 1, "no process was started"
"""


def test_a_script_that_cannot_be_imported_twice_makes_its_copies_itself(rows, model, tmp_path):
    """Unasked it starts no process; where processes cannot start, the copies are made all the same."""
    (tmp_path / "script.py").write_text(UNGUARDED)
    write_json(tmp_path / "rows.json", rows)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path), str(model)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = copies_of(rows, Maker(SpoSettings(), 0, LENGTH), model)
    assert same(load(tmp_path, "asked"), made)
    assert same(load(tmp_path, "failed"), made)


def test_the_intact_copy_is_the_answer_and_a_cut_answer_s_copies_have_no_end(rows, model):
    tokenizer = load_tokenizer(model)
    maker = Maker(SpoSettings(side="chosen"), 0, LENGTH)
    whole, cut = maker.copies(rows[0], tokenizer), maker.copies(rows[-1], tokenizer)
    assert np.array_equal(whole[0].tokens, rows[0]["chosen_ids"])
    assert {int(copy.tokens[-1]) for copy in whole} == {tokenizer.eos_token_id}
    assert tokenizer.eos_token_id not in {int(copy.tokens[-1]) for copy in cut}


def stages(tmp_path, **changes) -> dict[tuple[str, str, int], str]:
    """Return the key of the copies each training reads, by method, SPO label and seed."""
    spec = {
        "name": "tiny",
        "models": ["embedded"],
        "tasks": [{"name": "controlled_dialogue", "limit": {"train": 8, "eval": 4, "heldout": 4, "sft": 4}}],
        "methods": ["dpo", "ipo"],
        "seeds": [0, 1],
        "train": {"max_length": 128},
        "generate": {"max_new_tokens": 8},
        **changes,
    }
    cells = cells_of(load_spec(spec), tmp_path, "cpu")
    return {(c.method, c.spo.label(), c.seed): c.stages["train"].inputs["copies"].key for c in cells if c.spo}


def test_methods_seeds_weights_and_heads_share_their_copies(tmp_path):
    """Weight, head and layer decide nothing about the copies; degrees do."""
    keys = stages(
        tmp_path, spo=[False, True, {"gamma": 0.3, "head": "mlp", "layer": 1}, {"control": "gamma_zero"}, {"degrees": 3}]
    )
    assert len(keys) == 2 * 4 * 2
    assert len(set(keys.values())) == 2


def test_what_is_drawn_is_drawn_for_every_seed(tmp_path):
    for settings in ({"order": "random"}, {"control": "random_removal"}, {"control": "shuffled_degrees"}):
        keys = stages(tmp_path, spo=[False, settings])
        assert len(set(keys.values())) == 2, settings
        assert len({key for (_, _, seed), key in keys.items() if seed == 0}) == 1, "methods share a seed's"


def test_own_answers_are_degraded_once_for_training_and_never_in_a_regime(tmp_path):
    keys = stages(tmp_path, spo=[False, {"text": "on_policy"}])
    assert len(set(keys.values())) == 1
    regime = stages(tmp_path, data_axes={"regime": ["offline", "online"]})
    assert len(set(regime.values())) == 1, "the last cell of each name is online: it reads the held-out copies alone"
    assert set(regime.values()).isdisjoint(stages(tmp_path).values())
