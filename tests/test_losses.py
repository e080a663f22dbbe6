"""Losses of one file each: values derived by hand, and the limits in which one loss is another."""

from __future__ import annotations

import math

import pytest
import torch

from spo_bench.errors import InputError
from spo_bench.methods import get_method, pair_loss, resolve


def tensor(*values: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def logistic(z: float) -> float:
    """-log sigmoid(z)."""
    return math.log1p(math.exp(-z))


# One pair used throughout: s_w = -10, s_l = -14, r_w = -11, r_l = -12, |y_w| = 5, |y_l| = 8.
# So u_w = 1, u_l = -2, u_w - u_l = 3; per token s_w/|y_w| = -2, s_l/|y_l| = -1.75, u_w/|y_w| = .2, u_l/|y_l| = -.25.
PAIR = (tensor(-10.0), tensor(-14.0), tensor(-11.0), tensor(-12.0), tensor(5.0), tensor(8.0))
FALLEN = (tensor(-13.0), *PAIR[1:])  # the same with s_w = -13: u_w = -2, u_w - u_l = 0
SCORES = {"chosen_score": tensor(3.0), "rejected_score": tensor(1.0)}


def value(name: str, pair: tuple[torch.Tensor, ...] = PAIR, **hyper: object) -> float:
    return pair_loss(name, *pair, **hyper).item()


def ratios(chosen: list[float], rejected: list[float], dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    """Pairs with these u_w and u_l: s = u - 20 under the policy, -20 under the reference, 10 tokens each."""
    u_w, u_l = tensor(*chosen, dtype=dtype), tensor(*rejected, dtype=dtype)
    frozen, lengths = torch.full_like(u_w, -20.0), torch.full_like(u_w, 10.0)
    return u_w - 20, u_l - 20, frozen, frozen, lengths, lengths


def test_cdpo_by_hand():
    """z = .5 * 3 = 1.5, e = .2: .8 * log(1 + e^-1.5) + .2 * log(1 + e^1.5)."""
    expected = 0.8 * logistic(1.5) + 0.2 * logistic(-1.5)
    assert value("cdpo", beta=0.5, label_smoothing=0.2) == pytest.approx(expected, rel=1e-12)


def test_cdpo_has_its_minimum_at_the_log_odds_of_a_true_label():
    """The slope (1 - e)(-sigmoid(-z)) + e sigmoid(z) = sigmoid(z) - (1 - e) is 0 at z = log(.8 / .2) = log 4; beta is 1."""
    chosen = tensor(math.log(4) - 0.1, math.log(4), math.log(4) + 0.1).requires_grad_()
    zero, one = torch.zeros(3, dtype=torch.float64), torch.ones(3)
    pair_loss("cdpo", chosen, zero, zero, zero, one, one, beta=1.0).sum().backward()
    assert chosen.grad[0] < -0.01
    assert abs(chosen.grad[1]) < 1e-12
    assert chosen.grad[2] > 0.01


def test_robust_by_hand():
    """z = 1.5, e = .1: (.9 * log(1 + e^-1.5) - .1 * log(1 + e^1.5)) / .8."""
    expected = (0.9 * logistic(1.5) - 0.1 * logistic(-1.5)) / 0.8
    assert value("robust", beta=0.5, label_smoothing=0.1) == pytest.approx(expected, rel=1e-12)


def test_robust_is_unbounded_below():
    """For large z the first term vanishes and the second is -e z / (1 - 2e): at e = .1, z = 1e3 that is -125."""
    loss = pair_loss("robust", *ratios([1e3, 1e5], [0.0, 0.0]), beta=1.0, label_smoothing=0.1)
    assert loss.tolist() == pytest.approx([-125.0, -12500.0], rel=1e-12)


def test_robust_is_the_dpo_loss_on_average():
    """With a share e of labels flipped, (1 - e) * loss(pair) + e * loss(flipped pair) is the loss of the true label."""
    flipped = (PAIR[1], PAIR[0], PAIR[3], PAIR[2], PAIR[5], PAIR[4])
    noisy = 0.7 * value("robust", label_smoothing=0.3) + 0.3 * value("robust", flipped, label_smoothing=0.3)
    assert noisy == pytest.approx(value("dpo"), rel=1e-12)


def test_hinge_by_hand():
    """beta .2: 1 - .6 = .4; beta .5: 1 - 1.5 < 0, so 0."""
    assert value("hinge", beta=0.2) == pytest.approx(0.4, rel=1e-12)
    assert value("hinge", beta=0.5) == 0.0


def test_slic_by_hand():
    """s_w - s_l = 4: delta 5 gives 1, plus .1 * 2; delta 1 gives 0, plus .3 * 2."""
    assert value("slic", delta=5.0, lam=0.1) == pytest.approx(1.2, rel=1e-12)
    assert value("slic", delta=1.0, lam=0.3) == pytest.approx(0.6, rel=1e-12)


def test_cpo_by_hand():
    """z = .5 * (-10 + 14) = 2; log(1 + e^-2) + 1.5 * 2."""
    assert value("cpo", beta=0.5, alpha=1.5) == pytest.approx(logistic(2.0) + 3.0, rel=1e-12)


def test_exo_by_hand():
    """z = 1.5, q = sigmoid(1.5), e = .1: q log(q / .9) + (1 - q) log((1 - q) / .1)."""
    q = sigmoid(1.5)
    expected = q * math.log(q / 0.9) + (1 - q) * math.log((1 - q) / 0.1)
    assert value("exo", beta=0.5, label_smoothing=0.1) == pytest.approx(expected, rel=1e-12)


def test_exo_has_its_minimum_where_the_policy_agrees_with_the_smoothed_label():
    """sigmoid(z) = 1 - e = .999 at z = log(999) = 6.9068: there the divergence and its slope are 0, and it rises both ways."""
    best = math.log(999)
    pair = ratios([best, best - 0.1, best + 0.1], [0.0, 0.0, 0.0])
    chosen = pair[0].requires_grad_()
    loss = pair_loss("exo", chosen, *pair[1:], beta=1.0, label_smoothing=1e-3)
    loss.sum().backward()
    assert loss[0].item() == pytest.approx(0.0, abs=1e-12)
    assert loss[1:].min() > 1e-6
    assert abs(chosen.grad[0]) < 1e-12
    assert chosen.grad[1] < 0 < chosen.grad[2]


def test_nca_by_hand():
    """beta = 1: log(1 + e^-1) + log(1 + e^1) / 2 + log(1 + e^-2) / 2."""
    assert value("nca", beta=1.0) == pytest.approx(logistic(1.0) + logistic(-1.0) / 2 + logistic(2.0) / 2, rel=1e-12)


def test_apo_zero_by_hand():
    """beta = 1: 1 - sigmoid(1) + sigmoid(-2)."""
    assert value("apo_zero", beta=1.0) == pytest.approx(1 - sigmoid(1.0) + sigmoid(-2.0), rel=1e-12)


def test_apo_down_by_hand():
    """beta = 1: sigmoid(1) + 1 - sigmoid(3)."""
    assert value("apo_down", beta=1.0) == pytest.approx(sigmoid(1.0) + 1 - sigmoid(3.0), rel=1e-12)


def test_sppo_hard_by_hand():
    """beta = .1: targets +-5; (1 - 5)^2 + (-2 + 5)^2 = 25, the sum and not the mean of the squares."""
    assert value("sppo_hard", beta=0.1) == pytest.approx(25.0, rel=1e-12)


def test_dpop_by_hand():
    """u_w = -2, u_w - u_l = 0, beta .5, lam 3: z = .5 * (0 - 3 * 2) = -3. With u_w = 1 there is no penalty: z = 1.5."""
    assert value("dpop", FALLEN, beta=0.5, lam=3.0) == pytest.approx(logistic(-3.0), rel=1e-12)
    assert value("dpop", beta=0.5, lam=3.0) == pytest.approx(logistic(1.5), rel=1e-12)


def test_dpop_starts_with_the_gradient_of_dpo():
    """At u_w = 0 the penalty's slope is taken as 0: beta * sigmoid(0) = .15, not .15 * 51."""
    chosen = PAIR[0].clone().requires_grad_()
    pair_loss("dpop", chosen, PAIR[1], PAIR[0], PAIR[1], *PAIR[4:]).backward()
    assert chosen.grad.item() == pytest.approx(-0.15, rel=1e-12)


def test_rpo_by_hand():
    """z = 1.5, eta .2: sum_beta adds .2 * .5 * 10 = 1, token_mean adds .2 * 2 = .4."""
    assert value("rpo", beta=0.5, eta=0.2) == pytest.approx(logistic(1.5) + 1.0, rel=1e-12)
    assert value("rpo", beta=0.5, eta=0.2, reduction="token_mean") == pytest.approx(logistic(1.5) + 0.4, rel=1e-12)


def test_f_dpo_forward_kl_by_hand():
    """-e^-1 + e^2, beta .1."""
    expected = logistic(0.1 * (math.exp(2) - math.exp(-1)))
    assert value("f_dpo", beta=0.1, kind="forward_kl") == pytest.approx(expected, rel=1e-12)


def test_f_dpo_js_by_hand():
    """log sigmoid(1) - log sigmoid(-2) = log(1 + e^2) - log(1 + e^-1), beta .5."""
    expected = logistic(0.5 * (logistic(-2.0) - logistic(1.0)))
    assert value("f_dpo", beta=0.5, kind="js") == pytest.approx(expected, rel=1e-12)


def test_f_dpo_alpha_by_hand():
    """a = .25: -e^-.25 / .25 + e^.5 / .25 = 4 (e^.5 - e^-.25), beta .1."""
    expected = logistic(0.1 * 4 * (math.exp(0.5) - math.exp(-0.25)))
    assert value("f_dpo", beta=0.1, kind="alpha", alpha=0.25) == pytest.approx(expected, rel=1e-12)


def test_f_dpo_alpha_comes_near_the_reverse_kl():
    """-e^{-a u} / a = -1/a + u - a u^2 / 2 + ...: with the constant cancelled, u_w - u_l to first order in a."""
    assert value("f_dpo", kind="alpha", alpha=1e-6) == pytest.approx(value("dpo"), rel=1e-6)


def test_dpo_norm_by_hand():
    """z = 2 * (.2 + .25) = .9."""
    assert value("dpo_norm", beta=2.0) == pytest.approx(logistic(0.9), rel=1e-12)


def test_margin_dpo_by_hand():
    """m = .25 * (3 - 1) = .5, z - m = 1.5 - .5 = 1."""
    assert value("margin_dpo", beta=0.5, gamma=0.25, **SCORES) == pytest.approx(logistic(1.0), rel=1e-12)


def test_margin_dpo_asks_more_of_a_pair_of_which_the_data_is_surer():
    pair = [torch.cat([part, part]) for part in PAIR]
    near, far = pair_loss("margin_dpo", *pair, chosen_score=tensor(1.0, 4.0), rejected_score=tensor(0.0, 0.0))
    assert far > near


LIMITS = [
    ("cdpo", {"label_smoothing": 0.0}, PAIR),
    ("robust", {"label_smoothing": 0.0}, PAIR),
    ("dpop", {"lam": 0.0}, FALLEN),
    ("rpo", {"eta": 0.0}, PAIR),
    ("rpo", {"eta": 0.0, "reduction": "token_mean"}, PAIR),
    ("f_dpo", {"kind": "reverse_kl"}, PAIR),
    ("dpo_norm", {}, (*PAIR[:4], tensor(1.0), tensor(1.0))),
    ("margin_dpo", {"gamma": 0.0, **SCORES}, PAIR),
]


@pytest.mark.parametrize(("name", "hyper", "pair"), LIMITS)
def test_the_limit_in_which_it_is_dpo(name: str, hyper: dict, pair: tuple):
    assert value(name, pair, beta=0.3, **hyper) == pytest.approx(value("dpo", pair, beta=0.3), rel=1e-12)


def test_the_limit_in_which_cpo_is_dpo():
    """alpha 0: the logistic term alone, which is dpo under a reference that gives both answers the same probability."""
    flat = (PAIR[0], PAIR[1], tensor(-7.0), tensor(-7.0), *PAIR[4:])
    assert value("cpo", beta=0.3, alpha=0.0) == pytest.approx(value("dpo", flat, beta=0.3), rel=1e-12)


@pytest.mark.parametrize(("name", "weight"), [("cpo", "alpha"), ("slic", "lam")])
def test_a_likelihood_term_lowers_the_loss_of_a_likelier_chosen_answer_only(name: str, weight: str):
    """weight * 2 more than without, 2 being -s_w/|y_w|; nothing for the rejected answer."""
    assert value(name, **{weight: 0.4}) - value(name, **{weight: 0.0}) == pytest.approx(0.8, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "hyper", "said"),
    [
        ("cdpo", {"label_smoothing": 0.5}, ["label_smoothing", "below 0.5"]),
        ("robust", {"label_smoothing": 0.5}, ["label_smoothing", "below 0.5"]),
        ("exo", {"label_smoothing": 0}, ["label_smoothing", "above 0"]),
        ("exo", {"label_smoothing": 0.5}, ["label_smoothing", "below 0.5"]),
        ("f_dpo", {"kind": "kl"}, ["kind", "one of reverse_kl, forward_kl, js, alpha"]),
        ("f_dpo", {"kind": "alpha", "alpha": 1}, ["alpha", "below 1"]),
        ("f_dpo", {"alpha": 0.3}, ["only where kind is alpha", "reverse_kl"]),
        ("f_dpo", {"kind": "js", "alpha": 0.3}, ["only where kind is alpha", "js"]),
        ("lrml", {"tau": 1.5}, ["tau", "at most 1"]),
        ("lrml", {"tau": 0}, ["tau", "above 0"]),
        ("ada_dpo", {"tau_min": 2.0, "tau_max": 1.0}, ["tau_min is at most tau_max"]),
        ("ada_dpo", {"tau_min": 0.0}, ["tau_min", "above 0"]),
        ("ada_dpo", {"rho0": -0.1}, ["rho0", "at least 0"]),
        ("rpo", {"reduction": "mean"}, ["one of sum_beta, token_mean"]),
        ("slic", {"beta": 0.1}, ["beta", "method slic"]),
    ],
)
def test_values_refused(name: str, hyper: dict, said: list[str]):
    with pytest.raises(InputError) as caught:
        resolve(name, hyper)
    for words in said:
        assert words in str(caught.value)


def test_alpha_of_f_dpo_may_be_written_out_at_its_default():
    assert resolve("f_dpo", {"kind": "js", "alpha": 0.5}) == resolve("f_dpo", {"kind": "js"})


def test_margin_dpo_without_scores_is_refused():
    with pytest.raises(InputError, match="chosen_score and rejected_score"):
        pair_loss("margin_dpo", *PAIR)
    assert get_method("margin_dpo").needs_scores
