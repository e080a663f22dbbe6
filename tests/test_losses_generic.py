"""What must hold for every one of these losses: finite, differentiable, in the right direction, declared in full."""

from __future__ import annotations

import math

import pytest
import torch

from spo_bench.methods import Pairs, get_method, pair_loss, resolve


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# s_w = -10, s_l = -14, r_w = -11, r_l = -12, |y_w| = 5, |y_l| = 8: u_w = 1, u_l = -2.
PAIR = (tensor(-10.0), tensor(-14.0), tensor(-11.0), tensor(-12.0), tensor(5.0), tensor(8.0))

# Every loss with settings away from its defaults, by name.
VARIANTS: dict[str, list[dict]] = {
    "ada_dpo": [{"beta": 0.7, "rho0": 0.3, "tau_min": 0.2, "tau_max": 1.5}, {"rho0": 0.0}, {"rho0": 0.69}],
    "apo_down": [{"beta": 0.7}],
    "apo_zero": [{"beta": 0.7}],
    "cdpo": [{"beta": 0.7, "label_smoothing": 0.35}],
    "cpo": [{"beta": 0.7, "alpha": 0.3}],
    "dpo_norm": [{"beta": 0.7}],
    "dpop": [{"beta": 0.7, "lam": 0.1}],
    "exo": [{"beta": 0.7, "label_smoothing": 0.2}],
    "f_dpo": [{"kind": "forward_kl"}, {"kind": "js", "beta": 0.7}, {"kind": "alpha"}, {"kind": "alpha", "alpha": 0.1}],
    "hinge": [{"beta": 0.7}],
    "lrml": [{"beta": 0.7, "tau": 0.3}],
    "margin_dpo": [{"beta": 0.7, "gamma": 0.2}],
    "nca": [{"beta": 0.7}],
    "robust": [{"beta": 0.7, "label_smoothing": 0.4}],
    "rpo": [{"beta": 0.7, "eta": 0.3}, {"eta": 0.3, "reduction": "token_mean"}],
    "slic": [{"delta": 7.0, "lam": 0.6}],
    "sppo_hard": [{"beta": 0.7}],
}
NAMES = list(VARIANTS)
SETTINGS = [(name, hyper) for name, variants in VARIANTS.items() for hyper in ({}, *variants)]
REFERENCE_FREE = {"cpo", "slic"}


def loss_of(name: str, *pair: torch.Tensor | None, **hyper: object) -> torch.Tensor:
    """pair_loss, with scores falling from 0.5 to 0.25 where the loss reads them."""
    if get_method(name).needs_scores:
        hyper |= {"chosen_score": torch.full_like(pair[0], 0.5), "rejected_score": torch.full_like(pair[0], 0.25)}
    return pair_loss(name, *pair, **hyper)


@pytest.mark.parametrize(("name", "hyper"), SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_for_large_ratios(name: str, hyper: dict, dtype: torch.dtype):
    """Log-ratios of 0, +-1e3 and +-1e5 nats in every combination: no overflow in the value, its gradient or its squared norm."""
    ratios = torch.tensor([-1e5, -1e3, -300.0, 0.0, 300.0, 1e3, 1e5], dtype=dtype)
    u_w, u_l = torch.cartesian_prod(ratios, ratios).unbind(1)
    chosen, rejected = (u_w - 2e5).requires_grad_(), (u_l - 2e5).requires_grad_()
    reference = torch.full_like(u_w, -2e5)
    loss = loss_of(name, chosen, rejected, reference, reference, torch.full_like(u_w, 40), torch.full_like(u_w, 2), **hyper)
    assert loss.shape == u_w.shape
    assert loss.dtype == dtype
    loss.sum().backward()
    for part in (loss, chosen.grad, rejected.grad, chosen.grad.square().sum() + rejected.grad.square().sum()):
        assert torch.isfinite(part).all()


@pytest.mark.parametrize("kind", ["forward_kl", "alpha"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_f_dpo_near_the_limit_of_its_exponent(kind: str, dtype: torch.dtype):
    """The steepest pairs lie just inside the limit: u_w = -29.9 (-59.9 with alpha = 1/2), slope e^29.9 * beta on a wrong pair."""
    steepest = -29.9 if kind == "forward_kl" else -59.8
    chosen = torch.tensor([steepest, steepest - 1], dtype=dtype, requires_grad=True)
    zero, one = torch.zeros(2, dtype=dtype), torch.ones(2)
    loss = pair_loss("f_dpo", chosen, zero, zero, zero, one, one, kind=kind)
    loss.sum().backward()
    assert chosen.grad[0].item() == pytest.approx(-0.1 * math.exp(29.9), rel=1e-4)
    assert chosen.grad[1].item() == 0.0
    assert torch.isfinite(loss).all()
    assert torch.isfinite(chosen.grad.square().sum())


@pytest.mark.parametrize(("name", "hyper"), SETTINGS)
def test_gradients_match_finite_differences(name: str, hyper: dict):
    random = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 30, (2, 6), generator=random)
    logps = -lengths * (0.1 + 2 * torch.rand(2, 6, generator=random, dtype=torch.float64))
    reference = logps + torch.randn(2, 6, generator=random, dtype=torch.float64)

    def loss(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
        return loss_of(name, chosen, rejected, reference[0], reference[1], lengths[0], lengths[1], **hyper)

    assert torch.autograd.gradcheck(loss, (logps[0].requires_grad_(), logps[1].requires_grad_()))


def step(name: str, u_w: float, u_l: float, **hyper: object) -> tuple[float, float]:
    """How a small gradient step moves u_w and u_l: the negative gradient."""
    chosen, rejected = tensor(u_w).requires_grad_(), tensor(u_l).requires_grad_()
    zero, one = tensor(0.0), tensor(1.0)
    loss_of(name, chosen, rejected, zero, zero, one, one, **hyper).backward()
    return -chosen.grad.item(), -rejected.grad.item()


@pytest.mark.parametrize(("name", "hyper"), SETTINGS)
def test_direction(name: str, hyper: dict):
    """A small step raises the method's own reward of the chosen answer over that of the rejected one, unless a margin is met.

    apo_down also lowers the chosen answer, with beta .7 faster than the rejected one (see below); slic and hinge past their margin
    leave the rejected one (hinge: both) alone; sppo_hard with beta .7 has targets +-.71, and exo, cdpo with smoothing .2 and .35
    their minimum at z = 1.39 and .62, all passed by u_w = 1, u_l = -2; nca with beta .7 has its target for u_w at .99.
    """
    chosen, rejected = PAIR[0].clone().requires_grad_(), PAIR[1].clone().requires_grad_()
    loss_of(name, chosen, rejected, *PAIR[2:], **hyper).backward()
    method, resolved = get_method(name), resolve(name, hyper)
    size = 1e-6
    before = method.rewards(Pairs(*PAIR), resolved)
    after = method.rewards(Pairs(PAIR[0] - size * chosen.grad, PAIR[1] - size * rejected.grad, *PAIR[2:]), resolved)
    change = ((after[0] - after[1]) - (before[0] - before[1])).item()
    if hyper and name == "hinge":  # .7 * 3 > 1
        assert change == 0
    elif hyper and name in ("sppo_hard", "exo", "cdpo", "apo_down"):
        assert change < 0
    else:
        assert change > 0
        assert rejected.grad.item() > 0 or name == "slic"
        assert chosen.grad.item() > 0 if name == "apo_down" or (hyper and name == "nca") else chosen.grad.item() < 0


def test_lrml_first_lowers_the_margin():
    """Its slope where policy and reference agree is positive at tau = .05."""
    up, down = step("lrml", 0.0, 0.0)
    assert up < 0 < down


def test_nca_lowers_a_chosen_answer_that_is_likely_enough():
    """beta = 1: u_w is pulled to log 2. Above it both fall, and with u_l far down, where its slope is gone, the margin shrinks."""
    up, down = step("nca", 2.0, -10.0, beta=1.0)
    assert up < 0
    assert down < 0
    assert up < down
    up, _ = step("nca", math.log(2), -1.0, beta=1.0)
    assert up == pytest.approx(0.0, abs=1e-12)


def test_apo_down_shrinks_the_margin_of_a_pair_that_is_well_apart():
    """beta = 1: u_w falls by s'(u_w) - s'(z), u_l by s'(z), s' = sigmoid's slope; so the margin shrinks where s'(u_w) > 2 s'(z).

    u_w = 0, u_l = -3: s'(0) = .25 > 2 * s'(3) = .0903. u_l = -1: .25 < 2 * s'(1) = .3932.
    """
    up, down = step("apo_down", 0.0, -3.0, beta=1.0)
    assert up < down < 0
    up, down = step("apo_down", 0.0, -1.0, beta=1.0)
    assert down < up < 0


def test_apo_down_first_moves_the_rejected_answer_alone():
    """At u = 0 the two slopes on u_w cancel: beta/4 - beta/4."""
    up, down = step("apo_down", 0.0, 0.0)
    assert up == 0.0
    assert down == pytest.approx(-0.1 / 4, rel=1e-12)


AT_START = {
    "ada_dpo": 0.01,  # rho0 * tau_min
    "apo_down": 1.0,  # 1/2 + 1/2
    "apo_zero": 1.0,
    "cdpo": math.log(2),
    "dpo_norm": math.log(2),
    "dpop": math.log(2),
    "exo": math.log(0.5) - (math.log(0.001) + math.log(0.999)) / 2,
    "f_dpo": math.log(2),
    "hinge": 1.0,
    "lrml": (math.log(2) + 1) / 2,
    "nca": 2 * math.log(2),
    "robust": math.log(2),
    "sppo_hard": 500000.0,  # twice 500^2
}


@pytest.mark.parametrize("name", NAMES)
def test_at_start_by_hand(name: str):
    """cpo, slic, rpo and margin_dpo depend on the pair there."""
    at_start = get_method(name).at_start
    if name not in AT_START:
        assert at_start is None
    else:
        assert at_start(resolve(name)) == pytest.approx(AT_START[name], rel=1e-12)


@pytest.mark.parametrize(("name", "hyper"), [(name, hyper) for name, hyper in SETTINGS if name in AT_START])
def test_at_start_is_the_loss_where_policy_and_reference_agree(name: str, hyper: dict):
    loss = loss_of(name, PAIR[0], PAIR[1], PAIR[0], PAIR[1], *PAIR[4:], **hyper)
    assert get_method(name).at_start(resolve(name, hyper)) == pytest.approx(loss.item(), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(("name", "hyper"), SETTINGS)
def test_batch_rows_are_independent(name: str, hyper: dict):
    other = tuple(part * 1.5 for part in PAIR)
    together = loss_of(name, *(torch.cat([a, b]) for a, b in zip(PAIR, other)), **hyper)
    assert torch.allclose(together, torch.cat([loss_of(name, *PAIR, **hyper), loss_of(name, *other, **hyper)]))
    assert not get_method(name).batch_coupled


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_is_read_or_not(name: str):
    """Reference-free losses do not change with it and do without; the others change."""
    moved = (*PAIR[:2], PAIR[2] + 5, PAIR[3] - 5, *PAIR[4:])
    assert get_method(name).needs_reference == (name not in REFERENCE_FREE)
    if name in REFERENCE_FREE:
        assert torch.equal(loss_of(name, *moved), loss_of(name, *PAIR[:2], None, None, *PAIR[4:]))
    else:
        assert not torch.equal(loss_of(name, *moved), loss_of(name, *PAIR))


@pytest.mark.parametrize("name", NAMES)
def test_lengths_are_read_or_not(name: str):
    """By the per-token losses and the likelihood terms over a mean, and by no other (rpo: only with token_mean)."""
    reads = {"dpo_norm", "cpo", "slic"}
    longer = (*PAIR[:4], PAIR[4] * 3, PAIR[5] * 2)
    assert torch.equal(loss_of(name, *longer), loss_of(name, *PAIR)) == (name not in reads)


@pytest.mark.parametrize("name", NAMES)
def test_every_hyperparameter_is_read(name: str):
    """A change of each, one at a time, changes the loss of some pair (alpha of f_dpo where kind is alpha)."""
    pairs = [torch.cat([part] * 4) for part in PAIR]
    pairs[0] = pairs[0] + tensor(0.0, -3.0, -6.0, 60.0)  # u_w - u_l = 3, 0, -3 and 63
    for key, default in get_method(name).defaults.items():
        base = {"kind": "alpha"} if (name, key) == ("f_dpo", "alpha") else {}
        other = default.choices[-1] if default.choices else default.value * 0.7
        assert not torch.equal(loss_of(name, *pairs, **base), loss_of(name, *pairs, **base, **{key: other})), key


def test_declarations_are_complete():
    for name in NAMES:
        method = get_method(name)
        assert method.name == name
        assert method.version == 1
        assert method.formula
        assert method.reference
        assert method.traps
        assert all(default.source for default in method.defaults.values())
        for default in method.defaults.values():
            bounds = (default.above, default.below, default.at_least, default.at_most)
            assert default.choices or any(bound is not None for bound in bounds)
        assert resolve(name, {key: default.value for key, default in method.defaults.items()}) == resolve(name)
        assert method.likelihood == (name in {"cpo", "rpo", "slic"})
        assert method.needs_scores == (name == "margin_dpo")
