"""Settings of SPO, the degree head and its loss."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from spo_bench.spo.head import LENGTH_BINS, DegreeHead, add_bins, bin_counts, degree_loss
from spo_bench.spo.settings import SpoSettings, gamma_at

LOSSES = ["softmax_ce", "ordinal_logit", "regression"]
N, HIDDEN = 12, 8


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return pooled (requires grad), degrees, lengths, sides of N copies."""
    random = torch.Generator().manual_seed(seed)
    pooled = torch.randn(N, HIDDEN, generator=random, requires_grad=True)
    lengths = torch.randint(5, 200, (N,), generator=random)
    return pooled, torch.arange(N) % 4, lengths, torch.arange(N) // 4 % 2


def run(settings: SpoSettings, seed: int = 0) -> tuple[DegreeHead, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return head, pooled, loss and prediction on the batch above."""
    head = DegreeHead(HIDDEN, settings, seed)
    pooled, degrees, lengths, sides = batch()
    loss, predicted = degree_loss(head, pooled, degrees, lengths, sides, settings)
    return head, pooled, loss, predicted


def test_defaults_are_those_the_docs_name():
    assert SpoSettings().model_dump() == {
        "degrees": 4,
        "order": "score_desc",
        "unit": "phrase",
        "op": "delete",
        "side": "both",
        "text": "dataset",
        "layer": -1,
        "pool": "mean_completion",
        "head": "linear",
        "head_per_side": False,
        "head_learning_rate": 1e-3,
        "loss": "softmax_ce",
        "gamma": 0.1,
        "warmup": 0,
        "fractions": None,
        "control": None,
    }
    assert all(field.description for field in SpoSettings.model_fields.values())


@pytest.mark.parametrize(
    ("settings", "label"),
    [
        ({}, "+SPO"),
        ({"gamma": 0.1, "degrees": 4}, "+SPO"),
        ({"gamma": 0.3}, "+SPO(gamma=0.3)"),
        ({"gamma": 1}, "+SPO(gamma=1)"),
        ({"control": "random_removal"}, "+SPO[random_removal]"),
        ({"control": "gamma_zero", "head": "mlp"}, "+SPO[gamma_zero](head=mlp)"),
        ({"gamma": {"chosen": 0.1, "rejected": 0.2}}, "+SPO(gamma=0.1/0.2)"),
        (
            {"degrees": 3, "fractions": [0, 0.25, 1], "head_per_side": True},
            "+SPO(degrees=3, head_per_side=true, fractions=0/0.25/1)",
        ),
    ],
)
def test_label(settings: dict, label: str):
    assert SpoSettings(**settings).label() == label


def test_identity_tells_settings_apart():
    some = [
        {},
        {"gamma": 0.2},
        {"gamma": {"chosen": 0.2, "rejected": 0.2}},
        {"control": "gamma_zero"},
        {"fractions": [0, 0.1, 0.2, 0.3]},
    ]
    identities = [SpoSettings(**settings).identity() for settings in some]
    assert all(one != other for i, one in enumerate(identities) for other in identities[:i])
    assert SpoSettings(gamma=1).identity() == SpoSettings(gamma=1.0).identity()


@pytest.mark.parametrize(
    "settings",
    [
        {"degree": 4},
        {"degrees": 1},
        {"degrees": True},
        {"degrees": 2.5},
        {"order": "best"},
        {"gamma": -0.1},
        {"gamma": True},
        {"gamma": "0.1"},
        {"gamma": math.nan},
        {"gamma": math.inf},
        {"gamma": {"chosen": 0.1}},
        {"gamma": {"chosen": 0.1, "rejected": 0.1, "other": 1}},
        {"warmup": -1},
        {"warmup": 0.5},
        {"fractions": [0, 0.5]},
        {"fractions": [0.1, 0.2, 0.3, 0.4]},
        {"fractions": [0, 0.5, 0.5, 1]},
        {"fractions": [0, 0.5, 0.9, 1.1]},
        {"fractions": [0, 0.5, math.nan, 1]},
        {"control": "magic"},
        {"head_per_side": 1},
    ],
)
def test_bad_settings(settings: dict):
    with pytest.raises(ValidationError) as caught:
        SpoSettings(**settings)
    assert len(caught.value.errors()) == 1


def test_rho():
    assert SpoSettings().rho() == pytest.approx((0, 1 / 3, 2 / 3, 1))
    assert SpoSettings(degrees=2, fractions=[0, 0.4]).rho() == (0, 0.4)


def test_gamma_warms_up():
    """warmup 4: 1/5, 2/5, 3/5, 4/5 of the weight, then all of it."""
    settings = SpoSettings(gamma={"chosen": 1.0, "rejected": 0.5}, warmup=4)
    assert [gamma_at(settings, step)[0] for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert gamma_at(settings, 1) == pytest.approx((0.4, 0.2))
    assert gamma_at(SpoSettings(), 0) == (0.1, 0.1)
    assert gamma_at(SpoSettings(control="gamma_zero"), 99) == (0.0, 0.0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("head_per_side", [False, True])
@pytest.mark.parametrize("control", [None, "detached_trunk", "length_only"])
def test_shapes_and_where_gradients_flow(loss: str, head: str, head_per_side: bool, control: str | None):
    """The trunk gets a gradient except under the two controls that cut it off; the head always learns."""
    settings = SpoSettings(loss=loss, head=head, head_per_side=head_per_side, control=control)
    module, pooled, value, predicted = run(settings)
    assert value.shape == predicted.shape == (N,)
    assert value.dtype == torch.float32
    assert predicted.dtype == torch.int64
    assert ((predicted >= 0) & (predicted < 4)).all()
    value.mean().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in module.parameters())
    if control is None:
        assert pooled.grad is not None
        assert (pooled.grad.abs().sum(dim=1) > 0).all()
    else:
        assert pooled.grad is None


def test_length_only_sees_nothing_but_lengths():
    settings = SpoSettings(control="length_only")
    head = DegreeHead(HIDDEN, settings, 0)
    pooled, _, lengths, sides = batch()
    assert torch.equal(head(pooled, lengths, sides), head(torch.randn(N, HIDDEN), lengths, sides))
    assert not torch.equal(head(pooled, lengths, sides), head(pooled, lengths + 50, sides))


def test_softmax_by_hand():
    """Weights 0 and biases log 1, log 2, log 3, log 4: P(k) = (k + 1) / 10, whatever the input; the most likely degree is 3."""
    settings = SpoSettings()
    head = DegreeHead(HIDDEN, settings, 0)
    with torch.no_grad():
        head.sides[0].body.weight.zero_()
        head.sides[0].body.bias.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]).log())
    pooled, degrees, lengths, sides = batch()
    loss, predicted = degree_loss(head, pooled, degrees, lengths, sides, settings)
    assert loss.tolist() == pytest.approx([-math.log((k + 1) / 10) for k in degrees.tolist()], rel=1e-5)
    assert predicted.tolist() == [3] * N


def test_ordinal_by_hand():
    """Three degrees, thresholds -1.5 and 1.5, score 0 (the weight is 0).

    P(0) = sigmoid(-1.5) and P(2) = 1 - sigmoid(1.5) = sigmoid(-1.5) = e; P(1) = 1 - 2 e.
    """
    settings = SpoSettings(degrees=3, loss="ordinal_logit")
    head = DegreeHead(HIDDEN, settings, 0)
    side = head.sides[0]
    with torch.no_grad():
        side.body.weight.zero_()
        side.first.fill_(-1.5)
        side.gaps.fill_(math.log(math.expm1(3.0)))
    assert side.thresholds().tolist() == pytest.approx([-1.5, 1.5], rel=1e-5)
    loss, predicted = degree_loss(head, torch.randn(3, HIDDEN), torch.arange(3), torch.ones(3), torch.zeros(3).long(), settings)
    edge = 1 / (1 + math.exp(1.5))
    assert loss.exp().reciprocal().tolist() == pytest.approx([edge, 1 - 2 * edge, edge], rel=1e-5)
    assert predicted.tolist() == [1, 1, 1]


def test_ordinal_is_a_distribution_far_out():
    settings = SpoSettings(loss="ordinal_logit")
    head = DegreeHead(HIDDEN, settings, 0)
    with torch.no_grad():
        head.sides[0].body.weight.mul_(1e4)
    pooled, degrees, lengths, sides = batch()
    out = head(pooled, lengths, sides)
    assert torch.isfinite(out).all()
    assert torch.allclose(out.exp().sum(dim=1), torch.ones(N), atol=1e-5)
    degree_loss(head, pooled, degrees, lengths, sides, settings)[0].sum().backward()
    assert torch.isfinite(pooled.grad).all()


def test_ordinal_starts_even():
    """With score 0 every degree has probability 1/4, so the loss is log 4."""
    settings = SpoSettings(loss="ordinal_logit")
    head = DegreeHead(HIDDEN, settings, 0)
    with torch.no_grad():
        head.sides[0].body.weight.zero_()
    loss, _ = degree_loss(head, torch.randn(4, HIDDEN), torch.arange(4), torch.ones(4), torch.zeros(4).long(), settings)
    assert loss.tolist() == pytest.approx([math.log(4)] * 4, rel=1e-5)


def test_regression_by_hand():
    """Estimate .4 everywhere, four degrees: targets 0, 1/3, 2/3, 1; nearest degree to .4 * 3 = 1.2 is 1."""
    settings = SpoSettings(loss="regression")
    head = DegreeHead(HIDDEN, settings, 0)
    with torch.no_grad():
        head.sides[0].body.weight.zero_()
        head.sides[0].body.bias.fill_(0.4)
    loss, predicted = degree_loss(head, torch.randn(4, HIDDEN), torch.arange(4), torch.ones(4), torch.zeros(4).long(), settings)
    assert loss.tolist() == pytest.approx([(0.4 - k / 3) ** 2 for k in range(4)], rel=1e-5)
    assert predicted.tolist() == [1] * 4


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_the_head_learns_a_degree_that_is_there(loss: str, head: str):
    """One direction of the pooled state carries the degree, and the head finds it.

    Neighbouring degrees are sqrt(32) / 2 = 2.8 standard deviations apart, so at best .92 at the ends and .84 between is right.
    """
    settings = SpoSettings(loss=loss, head=head)
    random = torch.Generator().manual_seed(0)
    degrees = torch.arange(400) % 4
    pooled = torch.randn(400, 32, generator=random)
    pooled += (degrees[:, None] - 1.5) / 2 * torch.randn(32, generator=random).sign()
    module = DegreeHead(32, settings, 0)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    lengths, sides = torch.full((400,), 20), torch.zeros(400).long()
    for _ in range(300):
        value, predicted = degree_loss(module, pooled, degrees, lengths, sides, settings)
        optimizer.zero_grad()
        value.mean().backward()
        optimizer.step()
    assert (predicted == degrees).float().mean() > 0.8


def test_one_head_a_side():
    """A copy of a chosen answer trains the first head only."""
    settings = SpoSettings(head_per_side=True)
    head = DegreeHead(HIDDEN, settings, 0)
    pooled, degrees, lengths, _ = batch()
    degree_loss(head, pooled, degrees, lengths, torch.zeros(N).long(), settings)[0].sum().backward()
    chosen, rejected = (sum(p.grad.abs().sum() for p in side.parameters()) for side in head.sides)
    assert chosen > 0
    assert rejected == 0
    assert not torch.equal(head.sides[0].body.weight, head.sides[1].body.weight)


def test_initial_weights_come_from_the_seed_alone():
    state = torch.get_rng_state()
    one = DegreeHead(HIDDEN, SpoSettings(head="mlp"), 7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    other, third = DegreeHead(HIDDEN, SpoSettings(head="mlp"), 7), DegreeHead(HIDDEN, SpoSettings(head="mlp"), 8)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), third.parameters()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_head_stays_in_fp32(dtype: torch.dtype):
    settings = SpoSettings()
    head = DegreeHead(HIDDEN, settings, 0)
    pooled, degrees, lengths, sides = batch()
    half = pooled.detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = degree_loss(head, half, degrees, lengths, sides, settings)
    exact, _ = degree_loss(head, half.detach().float(), degrees, lengths, sides, settings)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, exact)
    loss.sum().backward()
    assert half.grad is not None


def test_bins_by_hand():
    """Lengths 0, 15 | 16, 31 | 255 | 256, 10000: a lower edge is in the bin, an upper one in the next; no empty bins."""
    assert LENGTH_BINS[:-1] == (0, 16, 32, 64, 128, 256)
    counts = bin_counts([0, 15, 16, 31, 255, 256, 10_000], [True, False, True, True, False, True, True])
    assert counts == {"0-16": [1, 2], "16-32": [2, 2], "128-256": [0, 1], "256+": [2, 2]}
    assert bin_counts(torch.tensor([3]), torch.tensor([True])) == {"0-16": [1, 1]}
    total: dict[str, list[int]] = {}
    add_bins(total, counts)
    add_bins(total, {"0-16": [1, 1], "32-64": [0, 3]})
    assert total == {"0-16": [2, 3], "16-32": [2, 2], "128-256": [0, 1], "256+": [2, 2], "32-64": [0, 3]}
