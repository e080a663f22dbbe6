"""The loop: what may not change a trained policy, and what must stop it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import tiny_model

from spo_bench.errors import StageError
from spo_bench.methods import get_method, resolve
from spo_bench.models.numerics import Numerics
from spo_bench.spo.head import DegreeHead
from spo_bench.spo.settings import SpoSettings
from spo_bench.training.examples import Copy, Example, mismatched, step_rows, stream_seed
from spo_bench.training.loop import TrainSettings, fit, learning_rate_at
from spo_bench.training.objective import Objective, Reference
from spo_bench.training.scoring import log_probs

CPU = Numerics("cpu", "float32", "float32")
SETTINGS = TrainSettings(
    batch_size=8,
    steps=4,
    learning_rate=1e-3,
    schedule="cosine",
    warmup=0.1,
    weight_decay=0.0,
    clip=1.0,
    micro_tokens=10_000,
    packing="trie",
    max_length=64,
    seed=5,
)


def some_examples(count=20, copies=True):
    draw = np.random.default_rng(0)
    examples = []
    for number in range(count):
        prompt = draw.integers(0, 61, draw.integers(3, 7))
        chosen, rejected = draw.integers(0, 61, draw.integers(5, 9)), draw.integers(0, 61, draw.integers(4, 8))
        degraded = [
            Copy(side[: max(1, len(side) - 2 * degree)], degree, i)
            for i, side in enumerate((chosen, rejected))
            for degree in range(3)
        ]
        examples.append(Example(f"row{number}", prompt, chosen, rejected, tuple(degraded) if copies else ()))
    return examples


def reference_of(model, examples, settings, method):
    items = [(e.prompt, [e.chosen, e.rejected]) for e in examples]
    tokens = [(a, b) for a, b in log_probs(model, items, CPU, 1000)]
    pairs = None
    if get_method(method).needs_kl:
        met = [
            (examples[a].prompt, [examples[b].chosen, examples[b].rejected])
            for rows in step_rows(len(examples), settings.batch_size, settings.steps, settings.seed)
            for a, b in mismatched(rows)
        ]
        pairs = torch.tensor([[float(x.sum()), float(y.sum())] for x, y in log_probs(model, met, CPU, 1000)]).view(
            settings.steps, -1, 2
        )
    return Reference(
        tokens=tokens,
        sums=torch.tensor([[float(a.sum()), float(b.sum())] for a, b in tokens]),
        lengths=torch.tensor([[len(a), len(b)] for a, b in tokens]),
        mismatched=pairs,
    )


def train(method="dpo", spo=None, settings=SETTINGS, examples=None, break_reference=0.0, **hyper):
    """Train a fresh tiny model; return (weights as one vector, log rows)."""
    model = tiny_model()
    examples = some_examples(copies=spo is not None) if examples is None else examples
    reference = reference_of(model, examples, settings, method)
    if break_reference:
        reference = replace(
            reference, sums=reference.sums + break_reference, tokens=[(a + break_reference, b) for a, b in reference.tokens]
        )
    head = DegreeHead(32, spo, seed=stream_seed(settings.seed, "head")) if spo else None
    rows = []
    fit(Objective(model, head, get_method(method), resolve(method, hyper), spo, reference, CPU), examples, settings, rows.append)
    return torch.cat([p.detach().flatten() for p in model.parameters()]), rows


SPO = SpoSettings(degrees=3)


@pytest.mark.parametrize("method", ["dpo", "kto"])
@pytest.mark.parametrize("spo", [None, SPO], ids=["baseline", "spo"])
def test_accumulation_changes_nothing(method, spo):
    """Batch 8 at once == 4 x 2 == 8 x 1: same losses and same policy. KTO couples the pairs of a step through its KL."""
    whole, rows = train(method, spo)
    sizes = [e.row(share=True)[0].size for e in some_examples(copies=spo is not None)]
    for budget in (2 * max(sizes), 1):
        cut, cut_rows = train(method, spo, replace(SETTINGS, micro_tokens=budget))
        assert torch.allclose(whole, cut, atol=2e-6)
        for a, b in zip(rows, cut_rows, strict=True):
            # At step 0 every margin is a rounding error, and its sign no accuracy.
            keys = (
                "loss",
                "alignment_loss",
                "margin",
                "chosen_logratio",
                "grad_norm",
                *(("reward_accuracy",) if a["step"] else ()),
            )
            for key in keys:
                assert a[key] == pytest.approx(b[key], abs=2e-5), key


@pytest.mark.parametrize("spo", [None, SPO], ids=["baseline", "spo"])
def test_packing_changes_nothing(spo):
    together, rows = train("dpo", spo)
    alone, other = train("dpo", spo, replace(SETTINGS, packing="separate"))
    assert torch.allclose(together, alone, atol=2e-6)
    assert rows[0]["loss"] == pytest.approx(other[0]["loss"], abs=1e-5)
    assert rows[0]["tokens"] < other[0]["tokens"]


def test_same_seed_same_bits_other_seed_other_order():
    first, again = train("dpo", SPO), train("dpo", SPO)
    assert torch.equal(first[0], again[0])
    assert [r["loss"] for r in first[1]] == [r["loss"] for r in again[1]]
    assert not torch.equal(first[0], train("dpo", SPO, replace(SETTINGS, seed=6))[0])


def test_detached_trunk_and_gamma_zero_leave_the_policy_alone():
    """The head learns, the policy is the baseline's: with the trunk detached to rounding, whatever the head's gradient is."""
    baseline = train("dpo")[0]
    for control in ("detached_trunk", "length_only", "gamma_zero"):
        policy, rows = train("dpo", SpoSettings(degrees=3, control=control))
        assert torch.allclose(policy, baseline, atol=2e-6), control
        assert rows[0]["degree_loss"] > 0
    assert not torch.allclose(train("dpo", SPO)[0], baseline, atol=1e-5)


def test_step_0_values():
    """Policy = reference: dpo starts at ln 2, ipo at (1 / (2 * 0.1))^2 = 25, kto at 1/2; no margin, no log-ratio."""
    for method, value in (("dpo", np.log(2)), ("ipo", 25.0), ("kto", 0.5)):
        first = train(method)[1][0]
        assert first["alignment_loss"] == pytest.approx(value, rel=1e-5)
        assert first["chosen_logratio"] == pytest.approx(0, abs=1e-4)


def test_a_wrong_reference_stops_at_step_0():
    with pytest.raises(StageError, match=r"disagree at step 0.*0\.1"):
        train("dpo", break_reference=0.1)


def test_a_number_that_is_not_finite_names_step_and_rows(monkeypatch):
    method = get_method("dpo")
    calls = []

    def poisoned(pairs, hyper):
        calls.append(1)
        return method.loss(pairs, hyper) * (float("nan") if len(calls) > 4 else 1.0)

    model, examples = tiny_model(), some_examples(copies=False)
    reference = reference_of(model, examples, SETTINGS, "dpo")
    objective = Objective(model, None, replace(method, loss=poisoned), resolve("dpo", {}), None, reference, CPU)
    with pytest.raises(StageError, match=r"loss nan.* at step 2; rows row"):
        fit(objective, examples, SETTINGS, lambda row: None)


def test_every_epoch_is_a_permutation_and_seeds_differ():
    plan = step_rows(10, 5, 6, seed=1)
    for epoch in range(3):
        assert sorted(np.concatenate(plan[2 * epoch : 2 * epoch + 2]).tolist()) == list(range(10))
    assert not all((a == b).all() for a, b in zip(plan, step_rows(10, 5, 6, seed=2), strict=True))
    assert all((a == b).all() for a, b in zip(plan, step_rows(10, 5, 6, seed=1), strict=True))


def test_mismatched_pairs_never_meet_their_own():
    assert mismatched(np.array([4, 7, 9])) == [(4, 7), (7, 9), (9, 4)]


def test_learning_rate_by_hand():
    """10 steps, 20 % warm-up: 1/3, 2/3 of the peak, then half a cosine from the peak: step 6 is half way, so half the peak."""
    settings = replace(SETTINGS, steps=10, warmup=0.2, learning_rate=1.0)
    assert learning_rate_at(settings, 0) == pytest.approx(1 / 3)
    assert learning_rate_at(settings, 2) == pytest.approx(1.0)
    assert learning_rate_at(settings, 6) == pytest.approx(0.5)
    assert learning_rate_at(replace(settings, schedule="linear"), 6) == pytest.approx(0.5)
    assert learning_rate_at(replace(settings, schedule="constant"), 9) == 1.0


def test_intact_copies_cost_nothing():
    """Degree 0 is the answer itself: it adds no sequence, even where nothing is shared."""
    plain, with_intact = some_examples(1, copies=False)[0], some_examples(1)[0]
    only_intact = replace(with_intact, copies=tuple(c for c in with_intact.copies if c.degree == 0))
    assert only_intact.row(share=False)[0].size == plain.row(share=False)[0].size
    assert [(c.degree, c.side) for c in only_intact.row()[1]] == [(0, 0), (0, 1)]
