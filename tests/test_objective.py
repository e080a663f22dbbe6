"""What the loop does for methods that want more than a pair: lists, running statistics, collisions, additions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import tiny_model

from spo_bench.errors import StageError
from spo_bench.methods import get_method, method_names, resolve, resolve_addition
from spo_bench.models.numerics import Numerics
from spo_bench.spo.head import DegreeHead
from spo_bench.spo.settings import SpoSettings
from spo_bench.stages.examples import reference_of, sums_of
from spo_bench.training.examples import Copy, Example, micro_batches, mismatched, step_rows, stream_seed
from spo_bench.training.forward import hidden_states, token_statistics
from spo_bench.training.loop import TrainSettings, begin, fit
from spo_bench.training.moving import MovingReference
from spo_bench.training.objective import Objective
from spo_bench.training.scoring import log_probs
from spo_bench.training.trie import Response, build_row, pack

CPU = Numerics("cpu", "float32", "float32")
SETTINGS = TrainSettings(6, 3, 1e-3, "constant", 0.0, 0.0, 1.0, 10_000, "trie", 64, 5)
SPO = SpoSettings(degrees=2)


def some_examples(answers=2, explored=False, copies=False, count=12):
    draw = np.random.default_rng(0)
    examples = []
    for number in range(count):
        prompt = draw.integers(0, 61, draw.integers(3, 6))
        chosen, *between, rejected = (draw.integers(0, 61, draw.integers(4, 9)) for _ in range(answers))
        degraded = tuple(
            Copy(side[: len(side) // (degree + 1)], degree, i) for i, side in enumerate((chosen, rejected)) for degree in range(2)
        )
        scores = tuple(np.linspace(1, 0, answers) + 0.3 * draw.random())
        greedy = np.concatenate([chosen[:2], draw.integers(0, 61, 3)]) if explored else None
        examples.append(
            Example(f"row{number}", prompt, chosen, rejected, degraded if copies else (), tuple(between), scores, greedy)
        )
    return examples


def objective_for(model, method, examples, settings=SETTINGS, spo=None, additions=(), **hyper):
    tokens = log_probs(model, [(e.prompt, e.scored) for e in examples], CPU, 1000)
    pairs = None
    if get_method(method).needs_kl:
        met = [
            (examples[a].prompt, [examples[b].chosen, examples[b].rejected])
            for rows in step_rows(len(examples), settings.batch_size, settings.steps, settings.seed)
            for a, b in mismatched(rows)
        ]
        pairs = sums_of(log_probs(model, met, CPU, 1000)).view(settings.steps, -1, 2)
    head = DegreeHead(32, spo, seed=stream_seed(settings.seed, "head")) if spo else None
    named = {name: resolve_addition(name, own) for name, own in dict(additions).items()}
    frozen = reference_of(examples, tokens, pairs)
    return Objective(model, head, get_method(method), resolve(method, hyper), spo, frozen, CPU, named, settings.seed)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def train(method, settings=SETTINGS, answers=2, spo=None, additions=(), **hyper):
    """Train a fresh tiny model; return (weights as one vector, log rows)."""
    explored = "exploration" in dict(additions)
    model, examples = tiny_model(), some_examples(answers, explored, spo is not None)
    rows = []
    fit(objective_for(model, method, examples, settings, spo, additions, **hyper), examples, settings, rows.append)
    return weights(model), rows


# Losses whose second derivative is large enough that rounding shows up in the third step.
STEEP = {"sppo_hard": {"beta": 0.1}, "ipo": {"beta": 0.5}, "dpop": {"beta": 0.1, "lam": 1.0}}
# Losses with a kink where training starts: rounded off over 0.001 nats, which rounding errors of 1e-5 still see.
KINKED = ("dpop", "neural_ndcg")
MANY = [
    *((name, {}) for name in method_names()),
    ("dpo", {"answers": 4}),
    ("kto", {"answers": 3}),
    ("bco", {"answers": 3}),
    ("neural_ndcg", {"answers": 4}),
    ("wpo", {"answers": 3, "spo": SPO}),
    ("aot", {"spo": SPO}),
    ("kto", {"additions": {"sft": {}, "exploration": {"alpha": 0.5}}}),
    ("bco", {"additions": {"exploration": {"alpha": 0.5}}, "spo": SPO}),
    ("kto", {"additions": {"ref_sync": {"mixup": 0.5, "every": 1}}}),
    ("ipo", {"additions": {"ref_sync": {"mixup": 1.0, "every": 2}}, "spo": SPO}),
]


@pytest.mark.parametrize(("method", "more"), MANY, ids=[f"{name}-{'-'.join(map(str, more))}" for name, more in MANY])
def test_neither_accumulation_nor_packing_changes_anything(method, more):
    """All rows at once, one row a forward pass, and separate sequences: the same losses and the same policy."""
    more, near = {**STEEP.get(method, {}), **more}, 2e-3 if method in KINKED else 5e-5
    steps = replace(SETTINGS, steps=1 if method in KINKED else 3)
    whole, rows = train(method, steps, **more)
    for settings in (replace(steps, micro_tokens=1), replace(steps, packing="separate")):
        other, other_rows = train(method, settings, **more)
        for a, b in zip(rows, other_rows, strict=True):
            for key in ("loss", "margin", "chosen_logratio", "grad_norm"):
                assert a[key] == pytest.approx(b[key], rel=10 * near, abs=near), key
        # AdamW's first steps have the size of the rate however small a gradient is, so weights whose gradient is rounding differ.
        assert (whole - other).norm() < 200 * near * (whole - weights(tiny_model())).norm()


@pytest.mark.parametrize("method", method_names())
def test_every_method_starts_and_moves(method):
    """The step-0 check passes, and three steps move the policy."""
    after, rows = train(method)
    assert len(rows) == 3
    assert not torch.equal(weights(tiny_model()), after)


def test_running_statistics_are_carried_from_step_to_step():
    """bco's delta before its first step is 0; after two steps it is the mean of beta * u over both steps' answers."""
    model, examples = tiny_model(), some_examples()
    objective, seen = objective_for(model, "bco", examples, beta=1.0), []

    def recording(pairs, hyper):
        seen.append((torch.stack(pairs.log_ratios()).detach(), {k: v.clone() for k, v in pairs.running.items()}))
        return get_method("bco").loss(pairs, hyper)

    objective = replace(objective, method=replace(objective.method, loss=recording))
    progress = fit(objective, examples, replace(SETTINGS, steps=2), lambda row: None)
    first, second = seen[-2], seen[-1]  # before them the check at step 0
    both = torch.cat([first[0].flatten(), second[0].flatten()]).mean()
    assert sum(float(v) for k, v in progress.running.items() if k == "count") == 24
    assert float(progress.running["sum"] / progress.running["count"]) == pytest.approx(float(both), abs=1e-6)
    assert float(first[1]["count"]) == 12


def test_a_training_in_two_parts_is_the_training_in_one():
    """The progress that is handed on holds optimizer, running statistics and the moved reference: bit for bit the same end."""
    for additions in ((), {"ref_sync": {"mixup": 0.5, "every": 1}}):
        whole, rows = train("bco", additions=additions)
        model, examples, parts = tiny_model(), some_examples(), []
        objective = objective_for(model, "bco", examples, additions=additions)
        plan = step_rows(len(examples), SETTINGS.batch_size, SETTINGS.steps, SETTINGS.seed)
        progress = fit(objective, examples, SETTINGS, parts.append, plan[:1])
        fit(objective, examples, SETTINGS, parts.append, plan[1:], progress)
        assert torch.equal(whole, weights(model))
        assert [r["loss"] for r in rows] == [r["loss"] for r in parts]


def test_a_list_is_the_mean_over_its_pairs():
    """dpo on lists of three at step 0 is log 2; of the later steps the loss is the mean over the three pairs of each list."""
    model, examples = tiny_model(), some_examples(3)
    objective = objective_for(model, "dpo", examples, beta=1.0)
    (batch,) = micro_batches(examples, np.arange(4), 10_000, True)
    with torch.no_grad():
        sums = objective.forward(batch)[0] + torch.tensor([[0.5, 0.1, -0.4]])
        lists = objective.lists(batch, sums, objective.stored(np.arange(4), 0, batch.places), None, np.arange(4), 0)
        losses, _ = objective.losses(lists, None)
    # log-ratios .5, .1, -.4: differences .4, .9, .5
    expected = sum(np.log1p(np.exp(-d)) for d in (0.4, 0.9, 0.5)) / 3
    assert torch.allclose(losses, torch.full((4,), float(expected)), atol=1e-5)


def test_collisions_are_the_log_probability_that_two_draws_agree():
    model = tiny_model()
    prompt, answer = np.array([3, 4, 5]), np.array([7, 8, 9])
    batch = pack([build_row(prompt, [Response(answer)])])
    values, collisions = token_statistics(model, hidden_states(model, batch)[0], batch, collisions=True)
    ids = torch.from_numpy(np.concatenate([prompt, answer]))[None]
    probabilities = model(input_ids=ids).logits[0, 2:-1].softmax(-1)
    assert torch.allclose(collisions, probabilities.square().sum(-1).log(), atol=1e-5)
    assert values.requires_grad
    assert not collisions.requires_grad


def test_sft_adds_the_mean_token_loss_of_the_chosen_answer():
    plain, added = train("dpo")[1][0], train("dpo", additions={"sft": {"eta": 0.5}})[1][0]
    examples = some_examples()
    rows = step_rows(len(examples), SETTINGS.batch_size, 1, SETTINGS.seed)[0]
    tokens = log_probs(tiny_model(), [(examples[i].prompt, [examples[i].chosen]) for i in rows], CPU, 1000)
    nll = -np.mean([float(row[0].mean()) for row in tokens])
    assert added["loss"] - plain["loss"] == pytest.approx(0.5 * nll, rel=1e-4)


def test_exploration_pushes_the_greedy_answer_down():
    """At step 0 the log-ratio is 0, so nothing is added to the loss; its gradient lowers the greedy answer's probability."""
    settings = replace(SETTINGS, steps=3, learning_rate=3e-3)
    explored = [(e.prompt, [e.explored]) for e in some_examples(explored=True)]

    def greedy_after(additions):
        model, examples = tiny_model(), some_examples(explored=True)
        examples = examples if additions else [replace(e, explored=None) for e in examples]
        rows = []
        fit(objective_for(model, "dpo", examples, settings, additions=additions), examples, settings, rows.append)
        return sum(float(row[0].sum()) for row in log_probs(model, explored, CPU, 1000)), rows

    plain, with_term = greedy_after({}), greedy_after({"exploration": {"alpha": 50.0}})
    assert with_term[1][0]["loss"] == pytest.approx(plain[1][0]["loss"], abs=1e-4)
    assert with_term[0] < plain[0] - 1


def test_the_moving_reference_by_hand():
    """Weights 1 -> 3 with mixup .25 every 2 steps: after step 1 nothing, after step 2 the reference is 1 + .25 * 2 = 1.5."""
    weight = torch.nn.Parameter(torch.ones(2))
    moving = MovingReference([weight], mixup=0.25, every=2)
    weight.data.fill_(3.0)
    moving.follow(1)
    assert not moving.moved
    moving.follow(2)
    assert moving.values[0].tolist() == [1.5, 1.5]
    module = torch.nn.Module()
    with moving.in_place(module):
        assert weight.tolist() == [1.5, 1.5]
    assert weight.tolist() == [3.0, 3.0]
    assert moving.values[0].tolist() == [1.5, 1.5]


def test_a_reference_renewed_after_every_step_is_the_policy():
    """mixup 1, every 1: at each step the policy is the reference, so dpo's loss is log 2 again and again."""
    rows = train("dpo", additions={"ref_sync": {"mixup": 1.0, "every": 1}})[1]
    assert [row["loss"] for row in rows] == pytest.approx([np.log(2)] * 3, abs=1e-5)
    assert train("dpo")[1][2]["loss"] < np.log(2) - 1e-3


def test_a_training_that_goes_on_needs_no_second_check():
    """The check at step 0 is for a policy that is its reference; a later part of a training is not refused."""
    model, examples = tiny_model(), some_examples()
    objective = objective_for(model, "dpo", examples)
    progress = begin(objective, SETTINGS)
    wrong = replace(
        objective, reference=replace(objective.reference, tokens=[[a + 1 for a in row] for row in objective.reference.tokens])
    )
    with pytest.raises(StageError, match="disagree at step 0"):
        fit(wrong, examples, SETTINGS, lambda row: None)
    progress.step = 1
    fit(wrong, examples, SETTINGS, lambda row: None, [np.arange(6)], progress)
