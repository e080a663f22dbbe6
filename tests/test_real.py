"""Real model, real preferences: the same relations as on tiny models. Skipped where ../shared is absent."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import spo_bench
from spo_bench.files import read_json, read_jsonl
from spo_bench.methods import get_method, resolve
from spo_bench.models.chat import completion_ids, render
from spo_bench.models.numerics import Numerics
from spo_bench.models.policy import load_policy, load_tokenizer
from spo_bench.plugins import get_task
from spo_bench.spo.head import DegreeHead
from spo_bench.spo.settings import SpoSettings
from spo_bench.stages.examples import example
from spo_bench.training.examples import micro_batches
from spo_bench.training.loop import TrainSettings
from spo_bench.training.objective import Objective, Reference
from spo_bench.training.scoring import log_probs

pytestmark = pytest.mark.real
CPU = Numerics("cpu", "float32", "float32")


@pytest.fixture(scope="module")
def real(smollm2: Path, shared: Path):
    """SmolLM2 and three short HH rows."""
    tokenizer = load_tokenizer(smollm2)
    rows = [
        r for r in get_task("dialogue", str(shared / "data" / "hh_harmless.jsonl.gz")).load("train", 60, 0) if r.unusable is None
    ]
    records = []
    for row in rows:
        ids = {
            "prompt_ids": render(tokenizer, row.prompt).ids,
            "chosen_ids": completion_ids(tokenizer, row.chosen),
            "rejected_ids": completion_ids(tokenizer, row.rejected),
        }
        if sum(map(len, ids.values())) < 150:
            records.append({"id": row.id, "chosen": row.chosen, "rejected": row.rejected, **ids})
    return load_policy(smollm2, CPU), tokenizer, records[:3]


@pytest.mark.parametrize("spo", [None, SpoSettings()], ids=["dpo", "dpo+SPO"])
def test_trie_equals_separate_sequences(real, spo, record_property):
    """Per-token log-probabilities and gradients, fp32, SmolLM2-135M on HH rows.

    Log-probabilities reach -21 nats here, where two ways of padding separate sequences already differ by 1.3e-5: the bound is
    3e-5 nats, and 1e-5 on average. Gradients: 1e-4 of the largest.
    """
    model, tokenizer, records = real
    model.requires_grad_(True)
    settings = TrainSettings(2, 1, 1e-6, "constant", 0.0, 0.0, 1.0, 4096, "trie", 1024, 0)
    examples = [example(record, tokenizer, spo, settings) for record in records]
    with torch.no_grad():
        tokens = [(a, b) for a, b in log_probs(model, [(e.prompt, [e.chosen, e.rejected]) for e in examples], CPU, 2048)]
    # A reference that is off, so that the loss has a gradient that differs from row to row.
    sums = torch.tensor([[float(a.sum()) - 2, float(b.sum()) + 1] for a, b in tokens])
    reference = Reference(tokens, sums, torch.tensor([[len(a), len(b)] for a, b in tokens]))
    head = DegreeHead(model.config.hidden_size, spo, seed=0) if spo else None
    objective = Objective(model, head, get_method("dpo"), resolve("dpo", {}), spo, reference, CPU)
    seen = []
    for share in (True, False):
        rows = np.arange(len(examples))
        (batch,) = micro_batches(examples, rows, 10**6, share)
        model.zero_grad()
        sums, values, layer, _ = objective.forward(batch)
        lists = objective.lists(batch, sums, objective.stored(rows, 0, rows), None, rows, 0)
        loss = objective.losses(lists, None)[0].mean()
        if head is not None:
            loss = loss + objective.degree(layer, batch, 0, len(batch.degrees))[0]
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        seen.append((values.detach(), gradient, len(batch.pack.tokens)))
    (trie, trie_gradient, trie_tokens), (alone, alone_gradient, alone_tokens) = seen
    model.zero_grad()
    record_property("tokens a pair, trie and separate", (trie_tokens / len(examples), alone_tokens / len(examples)))
    assert (trie - alone).abs().max() <= 3e-5
    assert (trie - alone).abs().mean() <= 1e-5
    assert (trie_gradient - alone_gradient).abs().max() <= 1e-4 * float(alone_gradient.abs().max())
    assert trie_tokens < alone_tokens


def test_real_run_from_end_to_end(smollm2, shared, tmp_path):
    """dpo with and without SPO on HH rows: two steps, answers, a trained reward model, tables."""
    spec = {
        "name": "real",
        "models": [{"path": str(smollm2), "label": "SmolLM2"}],
        "tasks": [
            {
                "name": "dialogue",
                "data": str(shared / "data" / "hh_harmless.jsonl.gz"),
                "limit": {"train": 8, "eval": 3, "heldout": 4},
                "max_dropped": 0.7,
            }
        ],
        "methods": ["dpo"],
        "train": {"batch_size": 2, "max_steps": 2, "max_length": 192, "learning_rate": 1e-5},
        "generate": {"max_new_tokens": 8, "batch_size": 4},
        "rewards": ["trained"],
        "reward_training": {"batch_size": 2, "max_steps": 1},
    }
    done = spo_bench.run(spec, tmp_path / "run", store=tmp_path / "store")
    assert not done.failed
    listed = list(read_jsonl(done.out / "cells.jsonl"))
    assert [cell["status"] for cell in listed] == ["done"] * 3
    for cell in listed[1:]:
        first = next(iter(read_jsonl(done.out / "cells" / cell["id"] / "train.jsonl")))
        assert first["alignment_loss"] == pytest.approx(np.log(2), abs=1e-3)
        scores = read_json(done.out / "cells" / cell["id"] / "scores.json")
        assert scores["scalars"]["tokens_per_pair"]["value"] < scores["scalars"]["tokens_per_pair_separate"]["value"]


AXES = {
    "fraction": [0.5],
    "label_flip": [0.5],
    "holdout": ["short"],
    "relabel": [{"name": "reward_augmented", "scores": "implicit"}],
    "list_size": [{"size": 3, "source": "degraded"}],
    "regime": [{"name": "semi_online", "every": 1, "samples": 1, "human": True, "labeller": "reward:trained"}],
}


@pytest.fixture(scope="module")
def tagged(shared, tmp_path_factory) -> Path:
    """HH rows as prompt, chosen, rejected with a domain: dialogues of one turn are short, others long."""
    task = get_task("dialogue", str(shared / "data" / "hh_harmless.jsonl.gz"))
    rows = [row for split in ("train", "eval", "heldout") for row in task.load(split, 200, 0)]
    kept = [r for r in rows if r.unusable is None and len(r.chosen + r.rejected + str(r.prompt)) < 600]
    path = tmp_path_factory.mktemp("tagged") / "hh.jsonl"
    lines = [
        {
            "prompt": [dict(m) for m in r.prompt],
            "chosen": r.chosen,
            "rejected": r.rejected,
            "domain": "short" if len(r.prompt) == 1 else "long",
        }
        for r in kept
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("axis", AXES)
def test_every_data_axis_on_a_real_model(axis, smollm2, tagged, tmp_path_factory):
    """dpo on HH rows changed along one axis: every cell is done, and the run says what was changed."""
    base = tmp_path_factory.getbasetemp()
    spec = {
        "name": axis,
        "models": [{"path": str(smollm2), "label": "SmolLM2"}],
        "tasks": [
            {
                "name": "dialogue",
                "data": str(tagged),
                "limit": {"train": 8, "eval": 6, "heldout": 4, "sft": 0},
                "max_dropped": 0.5,
            }
        ],
        "methods": ["dpo"],
        "spo": [False],
        "data_axes": {axis: AXES[axis]},
        "train": {"batch_size": 2, "max_steps": 1, "max_length": 192, "learning_rate": 1e-5, "lora": {"rank": 4}},
        "generate": {"max_new_tokens": 8, "batch_size": 8},
        "reward_training": {"batch_size": 2, "max_steps": 1},
    }
    done = spo_bench.run(spec, base / f"axis-{axis}", store=base / "axes-store")
    assert not done.failed
    (cell,) = [cell for cell in read_jsonl(done.out / "cells.jsonl") if cell["method"] == "dpo"]
    assert list(cell["axes"]) == [axis]
    steps = list(read_jsonl(done.out / "cells" / cell["id"] / "train.jsonl"))
    assert steps[0]["alignment_loss"] == pytest.approx(np.log(2), abs=1e-3)
    assert (done.out / "tables" / "axes.csv").is_file()
