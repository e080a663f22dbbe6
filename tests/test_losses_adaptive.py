"""Losses that are not monotone or adapt to the pair: lrml and ada_dpo against what is known of their shape."""

from __future__ import annotations

import math

import pytest
import torch

from spo_bench.methods import pair_loss, resolve
from spo_bench.methods.ada_dpo import knee, temperature


def logistic(z: float) -> float:
    """-log sigmoid(z)."""
    return math.log1p(math.exp(-z))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def at(name: str, gaps: torch.Tensor | list[float], **hyper: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of pairs with these u_w - u_l, and its slope in u_w - u_l."""
    gap = torch.as_tensor(gaps, dtype=torch.float64).clone().requires_grad_()
    zero, one = torch.zeros(len(gap), dtype=torch.float64), torch.ones(len(gap))
    loss = pair_loss(name, gap, zero, zero, zero, one, one, **hyper)
    (slope,) = torch.autograd.grad(loss.sum(), gap)
    return loss.detach(), slope


def lrml(z: torch.Tensor | list[float], tau: float = 0.05) -> tuple[torch.Tensor, torch.Tensor]:
    return at("lrml", z, beta=1.0, tau=tau)


def root(low: float, high: float) -> float:
    """Where the slope of lrml changes sign between two points."""
    rising = lrml([low])[1].item() > 0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if (lrml([middle])[1].item() > 0) == rising else (low, middle)
    return low


def test_lrml_by_hand():
    """beta .05, u_w - u_l = 3: z = .15, z / tau = 3, m = sigmoid(3); (1 - m) log(1 + e^-.15) + m e^-.15."""
    m = sigmoid(3.0)
    loss, _ = at("lrml", [3.0], beta=0.05, tau=0.05)
    assert loss.item() == pytest.approx((1 - m) * logistic(0.15) + m * math.exp(-0.15), rel=1e-12)


def test_lrml_is_not_monotone():
    """Sign changes of the slope on a grid: down to the minimum at -.11857, up to the maximum at .07201, down for good."""
    grid = torch.linspace(-5, 5, 10001, dtype=torch.float64)
    _, slope = lrml(grid)
    changes = grid[:-1][slope[:-1].sign() != slope[1:].sign()].tolist()
    assert changes == pytest.approx([-0.11857, 0.07201], abs=1e-3)
    lowest, highest = root(-0.2, 0.0), root(0.0, 0.2)
    assert [lowest, highest] == pytest.approx([-0.11857, 0.07201], abs=5e-6)
    assert lrml([lowest, highest, 0.0])[0].tolist() == pytest.approx([0.785924, 0.87829, 0.84657], abs=5e-6)


def test_lrml_must_pass_a_hill_to_be_better_than_its_local_minimum():
    """The value at the local minimum, .785924, is met again at z = .23869.

    With m = 1 the loss would be exp(-z), which meets it at -log .785924 = .24090; what is left of the logistic part, m = .9916
    there, lowers the loss a little further.
    """
    bottom = lrml([root(-0.2, 0.0)])[0].item()
    before, after, approximate = lrml([0.23868, 0.23870, 0.24090])[0].tolist()
    assert before > bottom > after > approximate
    assert -math.log(bottom) == pytest.approx(0.24090, abs=5e-6)


@pytest.mark.parametrize("tau", [0.05, 0.1, 0.2, 1.0])
def test_lrml_slope_where_policy_and_reference_agree(tau: float):
    """m = 1/2, m' = 1/(4 tau): (1 - log 2)/(4 tau) from the blend, -1/4 from the logistic half, -1/2 from the exponential."""
    assert lrml([0.0], tau)[1].item() == pytest.approx((1 - math.log(2)) / (4 * tau) - 0.75, rel=1e-12)


def test_lrml_first_step_raises_the_margin_only_above_a_tau():
    """(1 - log 2)/(4 tau) = 3/4 at tau = (1 - log 2)/3 = .10228."""
    assert lrml([0.0], 0.1022)[1].item() > 0 > lrml([0.0], 0.1024)[1].item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tau", [0.01, 0.05, 0.5, 1.0])
def test_lrml_far_from_zero(tau: float, dtype: torch.dtype):
    """z = -1e3 to -1e5: m vanishes faster than exp(-z) grows (tau < 1) or just as fast (tau = 1), so |z| (+ 1). z > 0: 0."""
    z = torch.tensor([-1e5, -1e3, 1e3, 1e5], dtype=dtype, requires_grad=True)
    zero, one = torch.zeros(4, dtype=dtype), torch.ones(4)
    loss = pair_loss("lrml", z, zero, zero, zero, one, one, beta=1.0, tau=tau)
    loss.sum().backward()
    extra = 1.0 if tau == 1 else 0.0
    assert loss.tolist() == pytest.approx([1e5 + extra, 1e3 + extra, 0, 0], rel=1e-6)
    assert z.grad.tolist() == pytest.approx([-1, -1, 0, 0], abs=1e-6)


@pytest.mark.parametrize(("rho0", "expected"), [(0.05, 0.6490), (0.1, 0.9434), (0.3, 1.8696), (0.5, 2.9832)])
def test_ada_dpo_knee(rho0: float, expected: float):
    """The published values of u*, and the equation they solve: H(p) = log 2 - rho0 with p = sigmoid(u*)."""
    u = knee(rho0)
    p = sigmoid(u)
    assert u == pytest.approx(expected, abs=5e-5)
    assert -p * math.log(p) - (1 - p) * math.log(1 - p) == pytest.approx(math.log(2) - rho0, abs=1e-12)


def test_ada_dpo_three_regimes_by_hand():
    """d = .3 and -.3, rho0 = .1, u* = .9434, |d| / u* = .318.

    Inside [.1, 4]: with H(sigmoid(u)) = log(1 + e^-u) + u sigmoid(-u) = log 2 - rho0 the value is -|d| sigmoid(-u*) for d > 0,
    and |d| sigmoid(u*) for d < 0. Below tau_min = 1: tau = 1, log(1 + e^-.3) + (.1 - log 2). Above tau_max = .2:
    .2 log(1 + e^-1.5) + .2 (.1 - log 2).
    """
    constant, u = 0.1 - math.log(2), 0.9434
    loss, _ = at("ada_dpo", [3.0, -3.0], beta=0.1, rho0=0.1, tau_min=0.1, tau_max=4.0)
    assert loss.tolist() == pytest.approx([-0.3 * sigmoid(-u), 0.3 * sigmoid(u)], abs=1e-5)
    loss, _ = at("ada_dpo", [3.0], beta=0.1, rho0=0.1, tau_min=1.0, tau_max=4.0)
    assert loss.item() == pytest.approx(logistic(0.3) + constant, rel=1e-12)
    loss, _ = at("ada_dpo", [3.0], beta=0.1, rho0=0.1, tau_min=0.1, tau_max=0.2)
    assert loss.item() == pytest.approx(0.2 * logistic(1.5) + 0.2 * constant, rel=1e-12)


def test_ada_dpo_is_linear_between_its_limits():
    """rho0 = .1: slope -sigmoid(-u*) = -.280 for right pairs and -sigmoid(u*) = -.720 for wrong ones, whatever d."""
    _, slope = at("ada_dpo", [0.5, 1.0, 3.0, -0.5, -1.0, -3.0], beta=1.0, rho0=0.1, tau_min=0.1, tau_max=4.0)
    assert slope.tolist() == pytest.approx([-0.280] * 3 + [-0.720] * 3, abs=5e-4)


def test_ada_dpo_is_never_worse_than_a_search_over_tau():
    """300 random (d, rho0), each against 4000 values of tau between the limits."""
    random = torch.Generator().manual_seed(0)
    tau = torch.logspace(math.log10(0.1), math.log10(5), 4000, dtype=torch.float64)
    for rho0 in (0.01, 0.05, 0.1, 0.3, 0.5, 0.69):
        gaps = 6 * torch.randn(50, generator=random, dtype=torch.float64)
        found, _ = at("ada_dpo", gaps, beta=1.0, rho0=rho0, tau_min=0.1, tau_max=5.0)
        searched = tau * torch.nn.functional.softplus(-gaps[:, None] / tau) + (rho0 - math.log(2)) * tau
        best = searched.min(dim=1).values
        assert (found <= best + 1e-9).all()
        assert torch.allclose(found, best, atol=1e-4)


@pytest.mark.parametrize(("rho0", "tau"), [(0.0, 4.0), (math.log(2), 0.1), (5.0, 0.1)])
def test_ada_dpo_radius_beyond_which_tau_is_at_a_limit(rho0: float, tau: float):
    """rho0 = 0: the value falls with tau, so tau_max; rho0 >= log 2: it rises with tau, so tau_min. Also at d = 0."""
    gaps = torch.tensor([-50.0, -0.5, 0.0, 0.5, 50.0], dtype=torch.float64)
    assert temperature(gaps, resolve("ada_dpo", {"rho0": rho0})).tolist() == [tau] * 5


@pytest.mark.parametrize("rho0", [1e-18, 1e-9, math.log(2) - 1e-12])
def test_ada_dpo_with_a_radius_next_to_its_limits_is_finite(rho0: float):
    loss, slope = at("ada_dpo", [-1e5, -1.0, 0.0, 1.0, 1e5], rho0=rho0)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(slope).all()


def test_ada_dpo_with_one_temperature_is_dpo_and_a_constant():
    """tau = 1 for every pair: -log sigmoid(d) + rho0 - log 2, with the same slope."""
    gaps = [-30.0, -1.0, 0.0, 2.0, 30.0]
    loss, slope = at("ada_dpo", gaps, beta=0.3, rho0=0.2, tau_min=1.0, tau_max=1.0)
    plain, plain_slope = at("dpo", gaps, beta=0.3)
    assert torch.allclose(loss, plain + 0.2 - math.log(2))
    assert torch.allclose(slope, plain_slope)


def test_ada_dpo_gives_no_gradient_through_tau():
    gaps = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    assert not temperature(gaps, resolve("ada_dpo")).requires_grad
