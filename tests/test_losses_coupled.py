"""Losses that look at more than one pair, or weigh it: values by hand, limits, coupling, draws, extremes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from spo_bench.errors import InputError
from spo_bench.methods import Pairs, get_method, pair_loss, resolve
from spo_bench.methods.alpha_dpo import STD_FLOOR
from spo_bench.methods.beta_dpo import keep
from spo_bench.methods.lists import started

NAMES = ["bco", "aot", "beta_dpo", "alpha_dpo", "wpo", "neural_ndcg"]
COUPLED = ["bco", "aot", "beta_dpo", "alpha_dpo"]


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def softplus(x: float) -> float:
    """-log sigmoid(-x)."""
    return math.log1p(math.exp(x))


# One pair used throughout: s_w = -10, s_l = -14, r_w = -11, r_l = -12, |y_w| = 5, |y_l| = 8.
# So u_w = 1, u_l = -2, u_w - u_l = 3; per token s_w/|y_w| = -2, s_l/|y_l| = -1.75, u_w/|y_w| = .2, u_l/|y_l| = -.25.
PAIR = (tensor(-10.0), tensor(-14.0), tensor(-11.0), tensor(-12.0), tensor(5.0), tensor(8.0))


def of_ratios(chosen: list[float], rejected: list[float], length: float = 1.0) -> tuple[torch.Tensor, ...]:
    """The six tensors of pairs with these log-ratios u_w and u_l, and lengths that are all the same."""
    reference, lengths = torch.full((len(chosen),), -50.0, dtype=torch.float64), torch.full((len(chosen),), length)
    return tensor(*chosen) - 50, tensor(*rejected) - 50, reference, reference, lengths, lengths


def more(name: str, size: int = 1) -> dict[str, torch.Tensor]:
    """What a method reads of a pair beyond the six tensors: for wpo, collisions of -2 nats."""
    sums = torch.full((size,), -2.0, dtype=torch.float64)
    return {"chosen_collision": sums, "rejected_collision": sums} if name == "wpo" else {}


def losses(name: str, pairs: Pairs, running: dict[str, torch.Tensor] | None = None, **hyper) -> torch.Tensor:
    """A method's loss of a batch, with the statistics given instead of those of a first step."""
    return get_method(name).loss(replace(pairs, running=running), resolve(name, hyper))


def test_bco_by_hand():
    """beta = .5: rewards .5 and -1, their mean d = -.25; -log sigmoid(.75) - log sigmoid(-(-1 + .25)) = 2 softplus(-.75)."""
    assert pair_loss("bco", *PAIR, beta=0.5).item() == pytest.approx(2 * softplus(-0.75), rel=1e-12)


def test_bco_counts_all_answers_of_all_steps():
    """beta = 1. Step 1: rewards 1, -2: count 2, sum -1. Step 2: rewards 3, 2: count 4, sum 4, so d = 1 and the loss is
    -log sigmoid(3 - 1) - log sigmoid(1 - 2). Both pairs in one step: d = 1 too, and the first pair is 0 and 3 away from it.
    """
    method, hyper = get_method("bco"), resolve("bco", {"beta": 1.0})
    first, second = Pairs(*of_ratios([1.0], [-2.0])), Pairs(*of_ratios([3.0], [2.0]))
    running = method.running.update(first, hyper, started(method, first.policy_chosen))
    assert {name: value.item() for name, value in running.items()} == {"count": 2, "sum": -1}
    running = method.running.update(second, hyper, running)
    assert {name: value.item() for name, value in running.items()} == {"count": 4, "sum": 4}
    expected = softplus(-2) + softplus(1)
    assert method.loss(replace(second, running=running), hyper).item() == pytest.approx(expected, rel=1e-12)
    together = pair_loss("bco", *of_ratios([1.0, 3.0], [-2.0, 2.0]), beta=1.0)
    assert together.tolist() == pytest.approx([softplus(0) + softplus(-3), expected], rel=1e-12)


def test_aot_paired_by_hand():
    """Policy margins 5 and 1, reference margins 2 and 4: sorted (1, 5) - (2, 4) = (-1, 1), where dpo has 3 and -3."""
    six = (tensor(-5.0, -9.0), tensor(-10.0, -10.0), tensor(-8.0, -6.0), tensor(-10.0, -10.0), tensor(2.0, 2.0), tensor(2.0, 2.0))
    assert pair_loss("aot", *six, beta=1.0).tolist() == pytest.approx([softplus(1), softplus(-1)], rel=1e-12)
    assert pair_loss("dpo", *six, beta=1.0).tolist() == pytest.approx([softplus(-3), softplus(3)], rel=1e-12)


def test_aot_unpaired_by_hand():
    """u_w = (2, 0), u_l = (-3, 1): sorted (0, 2) - (-3, 1) = (3, 1). With e = .1, .9 softplus(-z) + .1 softplus(z)."""
    six = of_ratios([2.0, 0.0], [-3.0, 1.0])
    plain = pair_loss("aot", *six, beta=1.0, kind="unpaired")
    assert plain.tolist() == pytest.approx([softplus(-3), softplus(-1)], rel=1e-12)
    smooth = pair_loss("aot", *six, beta=1.0, kind="unpaired", label_smoothing=0.1)
    assert smooth.tolist() == pytest.approx([0.9 * softplus(-z) + 0.1 * softplus(z) for z in (3, 1)], rel=1e-12)


@pytest.mark.parametrize("kind", ["paired", "unpaired"])
def test_aot_of_one_pair_is_dpo(kind: str):
    assert pair_loss("aot", *PAIR, kind=kind, beta=0.3).item() == pytest.approx(
        pair_loss("dpo", *PAIR, beta=0.3).item(), rel=1e-12
    )


def test_aot_does_not_depend_on_the_order_of_pairs():
    six = of_ratios([2.0, 0.0, 5.0], [-3.0, 1.0, 0.5])
    turned = tuple(value[[2, 0, 1]] for value in six)
    for kind in ("paired", "unpaired"):
        assert torch.equal(pair_loss("aot", *six, kind=kind), pair_loss("aot", *turned, kind=kind))


def test_beta_dpo_by_hand():
    """Gaps 3 and 1, mean 2, running mean .1 * 2 = .2; all kept: B = .1 * (1 + .6 * (2 - .2)) = .208."""
    loss = pair_loss("beta_dpo", *of_ratios([3.0, 1.0], [0.0, 0.0]), dropped=0.0)
    assert loss.tolist() == pytest.approx([softplus(-0.208 * 3), softplus(-0.208)], rel=1e-12)


def test_beta_dpo_keeps_beta_positive():
    """Gaps -30 and -10, mean -20, running mean -2: .1 * (1 + .6 * -18) = -.98, so B is its floor .001."""
    loss = pair_loss("beta_dpo", *of_ratios([-30.0, -10.0], [0.0, 0.0]), dropped=0.0)
    assert loss.tolist() == pytest.approx([softplus(0.03), softplus(0.01)], rel=1e-12)


@pytest.mark.parametrize("name", ["beta_dpo", "alpha_dpo"])
def test_running_moments_by_hand(name: str):
    """Gaps 3, 1: mean 2, sample spread sqrt 2; from 0 with momentum .9: .2 and .1 sqrt 2. Gaps 5, -1: mean 2, spread 3 sqrt 2:
    .9 * .2 + .1 * 2 = .38 and (.9 * .1 + .1 * 3) sqrt 2 = .39 sqrt 2. Lengths are 1, so a gap a token is a gap. One pair: spread 0.
    """
    method, hyper = get_method(name), resolve(name)
    running = started(method, tensor(0.0))
    for chosen, mean, std in (([3.0, 1.0], 0.2, 0.1 * 2**0.5), ([5.0, -1.0], 0.38, 0.39 * 2**0.5)):
        pairs = Pairs(*of_ratios(chosen, [0.0, 0.0]))
        running = method.running.update(pairs, hyper, running)
        assert (running["mean"].item(), running["std"].item()) == pytest.approx((mean, std), rel=1e-12)
    alone = method.running.update(Pairs(*of_ratios([3.0], [0.0])), hyper, started(method, tensor(0.0)))
    assert (alone["mean"].item(), alone["std"].item()) == pytest.approx((0.3, 0.0))


def test_beta_dpo_without_its_two_parts_is_dpo():
    six = of_ratios([3.0, 1.0, -2.0], [0.0, 0.5, 4.0])
    assert torch.equal(pair_loss("beta_dpo", *six, alpha=0.0, dropped=0.0), pair_loss("dpo", *six))


def test_beta_dpo_batch_mean_is_the_mean_of_the_kept():
    """10 gaps of 0 to .9, a fifth dropped: 8 kept, each times 10 / 8, the others 0. Running mean .1 * .45 = .045, so B is
    .1 * (1 + .6 * (mean of the kept - .045)): that of the 8, not of the 10.
    """
    gaps = tensor(*[0.1 * i for i in range(10)])
    loss = pair_loss("beta_dpo", *of_ratios(gaps.tolist(), [0.0] * 10))
    kept = loss > 0
    assert kept.sum() == 8
    plain = [softplus(-0.1 * (1 + 0.6 * (gaps[kept].mean().item() - 0.045)) * gap) for gap in gaps[kept].tolist()]
    assert loss[kept].tolist() == pytest.approx([value * 10 / 8 for value in plain], rel=1e-12)
    assert loss.mean().item() == pytest.approx(sum(plain) / 8, rel=1e-12)


@pytest.mark.parametrize(
    ("size", "dropped", "kept"), [(10, 0.2, 8), (10, 0.8, 2), (10, 0.9, 1), (3, 0.5, 1), (1, 0.9, 1), (7, 0.0, 7)]
)
def test_beta_dpo_keeps_as_many_as_it_says(size: int, dropped: float, kept: int):
    """floor((1 - dropped) * size), and at least one; (1 - .8) * 10 is 1.9999999999999996 in floating point and means 2."""
    mask = keep(torch.randn(size), tensor(0.0), tensor(1.0), dropped, 0)
    assert mask.shape == (size,)
    assert mask.sum() == kept


def test_beta_dpo_draws_by_its_seed():
    pairs = Pairs(*of_ratios([0.01 * i for i in range(20)], [0.0] * 20))
    running = {"mean": tensor(0.1)[0], "std": tensor(1.0)[0]}
    one, again, other = (losses("beta_dpo", replace(pairs, seed=seed), running, dropped=0.5) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_beta_dpo_drops_outliers_as_often_as_their_weight_says():
    """Gaps 0, 1, 2 at mean 0 and spread 1: weights 1, e^-.5, e^-2. One kept: in proportion to the weights. Two kept: pair i
    is left out with probability sum over the two orders of the others of (w_a / W) * (w_b / (W - w_a)). 4000 draws, so the
    standard error is below .008.
    """
    gaps, weight = tensor(0.0, 1.0, 2.0), [1.0, math.exp(-0.5), math.exp(-2)]
    total, seeds = sum(weight), 4000
    one = torch.stack([keep(gaps, tensor(0.0), tensor(1.0), 0.6, seed) for seed in range(seeds)]).double().mean(0)
    assert one.tolist() == pytest.approx([w / total for w in weight], abs=0.03)
    two = torch.stack([keep(gaps, tensor(0.0), tensor(1.0), 0.3, seed) for seed in range(seeds)]).double().mean(0)
    left_out = [
        sum(weight[a] / total * weight[b] / (total - weight[a]) for a, b in ((j, k), (k, j))) for j, k in ((1, 2), (0, 2), (0, 1))
    ]
    assert (1 - two).tolist() == pytest.approx(left_out, abs=0.03)


def test_beta_dpo_draws_evenly_where_nothing_sets_pairs_apart():
    """Equal gaps, whether the spread is 0 or they are 1e11 floors of it from the mean: each of 4 pairs is kept half the time."""
    for mean, std in ((0.3, 0.0), (1e8, 0.0)):
        kept = [keep(torch.full((4,), 0.3), tensor(mean), tensor(std), 0.5, seed) for seed in range(2000)]
        assert torch.stack(kept).double().mean(0).tolist() == pytest.approx([0.5] * 4, abs=0.05)


def test_beta_dpo_draws_among_far_outliers():
    """All weights underflow to 0 in any floating type; relative to the nearest pair they do not: it is always kept."""
    gaps = tensor(1e5, 2e5, -3e5)
    assert all(keep(gaps, tensor(0.0), tensor(1.0), 0.5, seed).tolist() == [True, False, False] for seed in range(20))


# Per token (lengths 2): s_w - s_l = 1 and .5, r_w - r_l = .6 and .3, so M = .4 and .2, mean .3, sample spread .1 sqrt 2.
TOKENS = (tensor(-2.0, -4.0), tensor(-4.0, -5.0), tensor(-2.8, -4.4), tensor(-4.0, -5.0), tensor(2.0, 2.0), tensor(2.0, 2.0))


def test_alpha_dpo_by_hand():
    """With r = sqrt 2. Momentum 0: z-scores 1/r and -1/r; beta = 2, gamma = .5, alpha = .1: 2 - .5 - .2/r and 1 - .5 + .2/r.
    Momentum .9: mean .03 and spread .01 r, z-scores 37/r and 17/r; alpha = .01: 2 - .5 - .74/r and 1 - .5 - .34/r.
    """
    r = math.sqrt(2)
    standard = pair_loss("alpha_dpo", *TOKENS, beta=2.0, gamma=0.5, alpha=0.1, momentum=0.0)
    assert standard.tolist() == pytest.approx([softplus(-1.5 + 0.2 / r), softplus(-0.5 - 0.2 / r)], rel=1e-9)
    moving = pair_loss("alpha_dpo", *TOKENS, beta=2.0, gamma=0.5, alpha=0.01)
    assert moving.tolist() == pytest.approx([softplus(-1.5 + 0.74 / r), softplus(-0.5 + 0.34 / r)], rel=1e-9)


def test_alpha_dpo_without_alpha_is_simpo():
    assert torch.equal(pair_loss("alpha_dpo", *TOKENS, beta=2.0, gamma=0.5, alpha=0.0), pair_loss("simpo", *TOKENS, gamma=0.5))


def test_alpha_dpo_where_the_gap_has_no_spread_is_simpo():
    """One pair has no spread; and rounding noise where policy and reference agree is not made into a margin."""
    assert torch.equal(pair_loss("alpha_dpo", *PAIR, beta=2.0, gamma=0.5), pair_loss("simpo", *PAIR))
    noise = tensor(3e-5, -2e-5)
    start = (TOKENS[0], TOKENS[1], TOKENS[0] + noise, TOKENS[1] - noise, *TOKENS[4:])
    assert noise.std() < STD_FLOOR
    assert torch.equal(pair_loss("alpha_dpo", *start, beta=2.0, gamma=0.5), pair_loss("simpo", *TOKENS))


def test_wpo_by_hand():
    """Collisions -8 and -12.4: log w_w = (-10 + 8) / 5 = -.4, log w_l = (-14 + 12.4) / 8 = -.2; e^-.6 softplus(-.5 * 3)."""
    loss = pair_loss("wpo", *PAIR, beta=0.5, chosen_collision=tensor(-8.0), rejected_collision=tensor(-12.4))
    assert loss.item() == pytest.approx(math.exp(-0.6) * softplus(-1.5), rel=1e-12)


@pytest.mark.parametrize(("chosen", "rejected"), [(-10.0, -14.0), (-20.0, -14.0), (-20.0, -6.0)])
def test_wpo_weight_of_one_is_dpo(chosen: float, rejected: float):
    """Collisions equal to s: both weights 1. log w_w = (-10 + 20) / 5 = 2 beside log w_l = 0 or (-14 + 6) / 8 = -1: the product
    is above 1 and clipped, though one of them may be below 1.
    """
    loss = pair_loss("wpo", *PAIR, beta=0.5, chosen_collision=tensor(chosen), rejected_collision=tensor(rejected))
    assert loss.item() == pytest.approx(softplus(-1.5), rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_only_coupled_losses_see_the_other_pairs(name: str):
    """The first pair stays as it is (u_w = 1, u_l = 0, its margin 1 the smallest) while the second one's u_l goes from .5 to -3.
    aot, unpaired: the first then meets the lowest u_l of the batch, -3 in place of 0.
    """
    hyper = {"beta_dpo": {"dropped": 0.0}, "aot": {"kind": "unpaired"}}.get(name, {})
    before, after = (
        pair_loss(name, *of_ratios([1.0, 4.0], [0.0, other]), **hyper, **more(name, 2))[0].item() for other in (0.5, -3.0)
    )
    assert (before != after) == (name in COUPLED)
    assert get_method(name).batch_coupled == (name in COUPLED)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_for_large_ratios(name: str, dtype: torch.dtype):
    """Sums of -1e5 nats against -1, both ways: no overflow in the value or in its gradient, first step and later."""
    reference, lengths = torch.full((3,), -300.0, dtype=dtype), (torch.tensor([40, 2, 40]), torch.tensor([2, 40, 40]))
    for extra in ({"beta": 1.0}, {"kind": "unpaired"} if name == "aot" else {}):
        chosen = torch.tensor([-1e5, -1.0, -300.0], dtype=dtype, requires_grad=True)
        rejected = torch.tensor([-1.0, -1e5, -300.0], dtype=dtype, requires_grad=True)
        collisions = {key: value.to(dtype) for key, value in more(name, 3).items()}
        loss = pair_loss(name, chosen, rejected, reference, reference, *lengths, **extra, **collisions)
        assert loss.shape == (3,)
        assert loss.dtype == dtype
        loss.sum().backward()
        for value in (loss, chosen.grad, rejected.grad):
            assert torch.isfinite(value).all()


def random_pairs() -> Pairs:
    random = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 30, (2, 6), generator=random).double()
    logps = -lengths * (0.1 + 2 * torch.rand(2, 6, generator=random, dtype=torch.float64))
    reference = logps + torch.randn(2, 6, generator=random, dtype=torch.float64)
    return Pairs(logps[0], logps[1], reference[0], reference[1], lengths[0], lengths[1])


RUNNING = {name: torch.tensor(value, dtype=torch.float64) for name, value in dict(mean=0.1, std=0.7, count=20.0, sum=3.0).items()}


@pytest.mark.parametrize(
    ("name", "hyper"),
    [
        ("bco", {"beta": 0.4}),
        ("aot", {"beta": 0.4, "label_smoothing": 0.2}),
        ("aot", {"kind": "unpaired", "beta": 0.4}),
        ("beta_dpo", {"alpha": 0.0, "dropped": 0.5}),
        ("alpha_dpo", {"alpha": 0.0}),
        ("neural_ndcg", {"beta": 0.3, "tau": 0.5}),
    ],
)
def test_gradients_match_finite_differences(name: str, hyper: dict):
    """With the statistics held fixed; where a factor is a constant to the gradient but not to a difference, see below."""
    pairs = random_pairs()

    def loss(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
        return losses(name, replace(pairs, policy_chosen=chosen, policy_rejected=rejected), RUNNING, **hyper)

    assert torch.autograd.gradcheck(loss, (pairs.policy_chosen.requires_grad_(), pairs.policy_rejected.requires_grad_()))


def test_constants_get_no_gradient():
    """The gradient at s_w is that of the logistic loss at fixed weight, margin and B: -slope * sigmoid(-z)."""
    pairs = random_pairs()
    chosen = pairs.policy_chosen.requires_grad_()
    u = (chosen - pairs.reference_chosen - pairs.policy_rejected + pairs.reference_rejected).detach()

    def gradient(name: str, of: Pairs, **hyper) -> torch.Tensor:
        return torch.autograd.grad(losses(name, of, RUNNING, **hyper).sum(), chosen)[0]

    slope = 0.1 * (1 + 0.6 * (u.mean() - 0.1))
    assert slope > 1e-3
    assert torch.allclose(gradient("beta_dpo", pairs, dropped=0.0), -slope * torch.sigmoid(-slope * u))

    with_collisions = replace(pairs, chosen_collision=0.9 * chosen.detach(), rejected_collision=0.8 * pairs.policy_rejected)
    weight = (0.1 * chosen.detach() / pairs.chosen_length + 0.2 * pairs.policy_rejected / pairs.rejected_length).exp()
    assert torch.allclose(gradient("wpo", with_collisions, beta=0.3), -weight * 0.3 * torch.sigmoid(-0.3 * u))

    gap = (chosen.detach() - pairs.reference_chosen) / pairs.chosen_length
    gap = gap - (pairs.policy_rejected - pairs.reference_rejected) / pairs.rejected_length
    margin = 2 * (chosen.detach() / pairs.chosen_length - pairs.policy_rejected / pairs.rejected_length)
    z = margin - 0.5 - 2 * 0.2 * (gap - 0.1) / 0.7
    expected = -2 / pairs.chosen_length * torch.sigmoid(-z)
    assert torch.allclose(gradient("alpha_dpo", pairs, beta=2.0, gamma=0.5, alpha=0.2), expected)


def test_statistics_carry_no_gradient():
    for name in ("bco", "beta_dpo", "alpha_dpo"):
        method, pairs = get_method(name), random_pairs()
        pairs.policy_chosen.requires_grad_()
        running = method.running.update(pairs, resolve(name), started(method, pairs.policy_rejected))
        assert set(running) == set(method.running.start)
        assert all(value.shape == () and not value.requires_grad for value in running.values())


@pytest.mark.parametrize("name", NAMES)
def test_direction(name: str):
    """Descent raises the chosen answer's log-probability and lowers the rejected one's."""
    chosen, rejected = PAIR[0].clone().requires_grad_(), PAIR[1].clone().requires_grad_()
    pair_loss(name, chosen, rejected, *PAIR[2:], **more(name)).backward()
    assert chosen.grad.item() < 0 < rejected.grad.item()


@pytest.mark.parametrize("name", NAMES)
def test_at_start_is_the_mean_loss_where_policy_and_reference_agree(name: str):
    """bco 2 log 2; aot and beta_dpo log 2, the latter as a mean over 10 rows of which 2 are dropped; the rest depend on more."""
    constant = {"bco": 2 * math.log(2), "aot": math.log(2), "beta_dpo": math.log(2)}.get(name)
    at_start = get_method(name).at_start
    if constant is None:
        assert at_start is None
        return
    policy = -torch.arange(1.0, 11.0, dtype=torch.float64)
    loss = pair_loss(name, policy, 2 * policy, policy, 2 * policy, torch.ones(10), torch.ones(10))
    assert at_start(resolve(name)) == pytest.approx(constant)
    assert loss.mean().item() == pytest.approx(constant)


def test_declarations_are_complete():
    for name in NAMES:
        method = get_method(name)
        assert method.name == name
        assert method.formula
        assert method.reference
        assert method.traps
        assert method.needs_reference
        assert all(default.source for default in method.defaults.values())
        assert resolve(name) == {key: default.value for key, default in method.defaults.items()}
        assert method.batch_coupled or method.running is None
    assert get_method("wpo").needs_collision
    assert get_method("neural_ndcg").data == "listwise"


def test_rewards():
    """beta u_w = .1 * 1 and beta u_l = .1 * -2; alpha_dpo has no reference in its rewards: .1 * -2 and .1 * -1.75."""
    for name in NAMES:
        chosen, rejected = get_method(name).rewards(Pairs(*PAIR), resolve(name, {"beta": 0.1}))
        expected = (-0.2, -0.175) if name == "alpha_dpo" else (0.1, -0.2)
        assert (chosen.item(), rejected.item()) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("wpo", {}, "chosen_collision and rejected_collision"),
        ("wpo", {"chosen_collision": tensor(-1.0)}, "wpo without rejected_collision"),
        ("neural_ndcg", {"chosen_score": tensor(1.0)}, "neural_ndcg without rejected_score"),
        ("aot", {"kind": "pair"}, "one of paired, unpaired"),
        ("aot", {"label_smoothing": 0.5}, "below 0.5"),
        ("beta_dpo", {"dropped": 1.0}, "below 1"),
        ("beta_dpo", {"beta": 1e-4}, "at least 0.001"),
        ("beta_dpo", {"momentum": 1.0}, "below 1"),
        ("neural_ndcg", {"tau": 0.0}, "above 0"),
    ],
)
def test_what_a_person_may_get_wrong(name: str, given: dict, said: str):
    with pytest.raises(InputError, match=said):
        pair_loss(name, *PAIR, **given)


def test_what_a_caller_may_forget():
    pairs = Pairs(*PAIR)
    for name in ("bco", "beta_dpo", "alpha_dpo"):
        with pytest.raises(ValueError, match="running statistics"):
            losses(name, pairs)
    with pytest.raises(ValueError, match="collisions"):
        losses("wpo", pairs)
    without = replace(pairs, reference_chosen=None, reference_rejected=None)
    for name in NAMES:
        with pytest.raises(ValueError, match="reference"):
            losses(name, without, RUNNING)
