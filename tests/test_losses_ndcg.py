"""NeuralNDCG: the smooth sort, the gains, and the loss of pairs and lists, by hand and at the extremes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from spo_bench.methods import pair_loss, resolve
from spo_bench.methods.base import Lists
from spo_bench.methods.neural_ndcg import list_loss, relative_gains, soft_sort


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# s_w = -10, s_l = -14, r_w = -11, r_l = -12, |y_w| = 5, |y_l| = 8: u_w = 1, u_l = -2, u_w - u_l = 3.
PAIR = (tensor(-10.0), tensor(-14.0), tensor(-11.0), tensor(-12.0), tensor(5.0), tensor(8.0))


def ndcg_of_two(p: float, gains: tuple[float, float]) -> float:
    """NDCG of two answers of which the first is first with probability p; discounts 1 and 1 / log2 3."""
    high, low = gains
    second = 1 / math.log2(3)
    return (p * high + (1 - p) * low + ((1 - p) * high + p * low) * second) / (high + low * second)


@pytest.mark.parametrize(("scores", "gains"), [(None, (1.0, 0.0)), ((2.0, 1.0), (3.0, 1.0)), ((1.0, 0.0), (1.0, 0.0))])
def test_neural_ndcg_of_two_by_hand(scores: tuple[float, float] | None, gains: tuple[float, float]):
    """n = 2, a = |s_1 - s_2|: row 1 is softmax((s - a) / tau) = (p, 1 - p), p = sigmoid((s_1 - s_2) / tau); row 2 is
    softmax((-s - a) / tau) = (1 - p, p). Columns sum to 1 as rows do: Sinkhorn has nothing to do. beta = .5, tau = 2:
    s_1 - s_2 = 1.5, p = sigmoid(.75). Gains of scores 2 and 1: 3 and 1.
    """
    given = {} if scores is None else {"chosen_score": tensor(scores[0]), "rejected_score": tensor(scores[1])}
    loss = pair_loss("neural_ndcg", *PAIR, beta=0.5, tau=2.0, **given)
    assert loss.item() == pytest.approx(-ndcg_of_two(1 / (1 + math.exp(-0.75)), gains), rel=1e-12)


def list_of(ratios: list[list[float]], scores: list[list[float]], dtype: torch.dtype = torch.float64) -> Lists:
    policy = torch.tensor(ratios, dtype=dtype)
    return Lists(policy, torch.zeros_like(policy), torch.ones_like(policy), torch.tensor(scores, dtype=dtype))


def test_neural_ndcg_of_a_hard_sort():
    """tau -> 0: -NDCG of the answers in falling order of u. Scores 3, 2, 1, 0 with u = 0, 5, -1, 2: order 2, 4, 1, 3, gains
    3, 0, 7, 1 at discounts log2 2, 3, 4, 5 over gains 7, 3, 1, 0.
    """
    discounts = [math.log2(i) for i in (2, 3, 4, 5)]
    found, ideal = (sum(g / d for g, d in zip(gains, discounts)) for gains in ((3, 0, 7, 1), (7, 3, 1, 0)))
    lists = list_of([[0.0, 5.0, -1.0, 2.0], [3.0, 2.0, 1.0, 0.0]], [[3.0, 2.0, 1.0, 0.0]] * 2)
    loss = list_loss(lists, resolve("neural_ndcg", {"tau": 1e-3}))
    assert loss.tolist() == pytest.approx([-found / ideal, -1.0], rel=1e-9)


def test_neural_sort_of_three_by_hand():
    """s = (1, 0, -1), tau = 1: sums of distances 3, 2, 3. Rows before Sinkhorn: softmax of 2s - A = (-1, -2, -5), of -A
    = (-3, -2, -3), of -2s - A = (-5, -2, -1). One Sinkhorn step on that in plain numbers, 50 of them, is the result.
    """
    rows = torch.tensor([[-1.0, -2.0, -5.0], [-3.0, -2.0, -3.0], [-5.0, -2.0, -1.0]], dtype=torch.float64).softmax(1)
    for _ in range(50):
        rows = rows / rows.sum(0, keepdim=True)
        rows = rows / rows.sum(1, keepdim=True)
    assert torch.allclose(soft_sort(tensor(1.0, 0.0, -1.0)[None], 1.0)[0].exp(), rows, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_neural_sort_is_doubly_stochastic_and_blind_to_the_batch(tau: float, dtype: torch.dtype):
    values = torch.randn(6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    permutations = soft_sort(values, tau).exp()
    assert torch.allclose(permutations.sum(2), torch.ones(6, 8, dtype=dtype), rtol=0, atol=1e-5)
    assert (permutations.sum(1) - 1).abs().max() < 6e-3  # columns converge slowly at small tau
    alone = torch.cat([soft_sort(row[None], tau).exp() for row in values])
    assert torch.allclose(permutations, alone, rtol=1e-6, atol=1e-7)


def test_neural_ndcg_does_not_depend_on_the_order_of_answers():
    lists = list_of([[0.3, 1.0, -0.4, 0.1]], [[3.0, 2.0, 1.5, 0.0]])
    turned = replace(lists, policy=lists.policy[:, [2, 0, 3, 1]], scores=lists.scores[:, [2, 0, 3, 1]])
    hyper = resolve("neural_ndcg")
    assert torch.allclose(list_loss(lists, hyper), list_loss(turned, hyper), rtol=1e-5)


def test_gains_keep_their_ratios_at_any_score():
    """2^psi - 1 over 2^max; 2^1000 - 1 is infinite in fp32, its ratio to 2^999 - 1 is 2."""
    scores = torch.tensor([[5.0, 3.0, 0.5, 0.0], [1000.0, 999.0, 1.0, 0.0], [1e-3, 5e-4, 0.0, 0.0]])
    exact = [[(2**psi - 1) / 2 ** max(row) for psi in row] for row in scores.double().tolist()]
    assert torch.allclose(relative_gains(scores).double(), torch.tensor(exact, dtype=torch.float64), rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("scores", [[0.0, 0.0, 0.0], [2.0, 1.0, -1.0], [-1.0, -2.0, -3.0], [float("nan"), 1.0, 0.0]])
def test_neural_ndcg_refuses_scores_without_an_ideal_order(scores: list[float]):
    with pytest.raises(ValueError, match="scores of at least 0, and one above 0"):
        list_loss(list_of([[1.0, 2.0, 3.0]] * 2, [[3.0, 2.0, 1.0], scores]), resolve("neural_ndcg"))


def test_neural_ndcg_needs_scores_of_more_than_two():
    with pytest.raises(ValueError, match="scores of a list of 3"):
        list_loss(Lists(torch.zeros(1, 3), torch.zeros(1, 3), torch.ones(1, 3)), resolve("neural_ndcg"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lists_of_large_ratios_are_finite(dtype: torch.dtype):
    lists = list_of([[1e5, -1e5, 0.0, 1e5], [0.0, 0.0, 0.0, 0.0], [-1e5, 1.0, 1.0, 2.0]], [[900.0, 3.0, 1.0, 0.0]] * 3, dtype)
    policy = lists.policy.requires_grad_()
    for tau in (0.01, 1.0):
        policy.grad = None
        loss = list_loss(lists, resolve("neural_ndcg", {"tau": tau, "beta": 1}))
        loss.sum().backward()
        assert torch.isfinite(loss).all()
        assert torch.isfinite(policy.grad).all()
        assert (loss < 0).all()
        assert (loss > -1.001).all()


def test_list_gradients_match_finite_differences():
    """Where a list stops its Sinkhorn steps moves with its values, by steps below the tolerance 1e-6: hence the wide step."""
    policy = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    lists = list_of([[0.0] * 4] * 3, [[3.0, 2.0, 1.0, 0.0]] * 3)

    def loss(values: torch.Tensor) -> torch.Tensor:
        return list_loss(replace(lists, policy=values), resolve("neural_ndcg", {"beta": 0.5}))

    assert torch.autograd.gradcheck(loss, policy, eps=1e-3, atol=1e-4)
