"""What a loss of pairs makes of longer lists: which pairs, whose mean, and what a listwise loss sees instead."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from spo_bench.methods import get_method, pair_loss, resolve
from spo_bench.methods.base import Lists
from spo_bench.methods.lists import all_pairs, pair_of, row_losses, started

PAIRWISE = ["dpo", "ipo", "simpo", "orpo", "kto", "bco", "aot", "beta_dpo", "alpha_dpo", "wpo", "neural_ndcg"]


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def softplus(x: float) -> float:
    """-log sigmoid(-x)."""
    return math.log1p(math.exp(x))


def list_of(ratios: list[list[float]], scores: list[list[float]] | None) -> Lists:
    """Lists with these log-ratios u over a reference of -50 nats, and lengths 1, 2, ... along a row."""
    u = torch.tensor(ratios, dtype=torch.float64)
    lengths = torch.arange(1.0, u.shape[1] + 1, dtype=torch.float64).expand_as(u)
    given = None if scores is None else torch.tensor(scores, dtype=torch.float64)
    return Lists(u - 50, torch.full_like(u, -50.0), lengths, given)


# u = 1, 0, -1 under scores 2, 1, 1: the pairs are (1st, 2nd) and (1st, 3rd), whose log-ratios differ by 1 and 2; the 2nd and
# the 3rd are tied, so neither is better.
TIED = list_of([[1.0, 0.0, -1.0]], [[2.0, 1.0, 1.0]])


def row(name: str, lists: Lists, **hyper) -> list[float]:
    return row_losses(get_method(name), lists, resolve(name, hyper))[0].tolist()


def test_dpo_of_three_answers_is_the_mean_over_the_pairs_that_differ():
    """(softplus(-1) + softplus(-2)) / 2."""
    assert row("dpo", TIED, beta=1.0) == pytest.approx([(softplus(-1) + softplus(-2)) / 2], rel=1e-12)


def test_a_tie_at_the_top_makes_no_pair():
    """Scores 2, 2, 1: the pairs are (1st, 3rd) and (2nd, 3rd), differing by 2 and 1."""
    lists = replace(TIED, scores=tensor(2.0, 2.0, 1.0)[None])
    assert row("dpo", lists, beta=1.0) == pytest.approx([(softplus(-2) + softplus(-1)) / 2], rel=1e-12)


def test_every_list_counts_once_however_many_pairs_it_has():
    """Without ties u = 1, 0, -1 differ by 1, 2 and 1: the mean of three; beside it the tied list keeps its mean of two."""
    lists = list_of([[1.0, 0.0, -1.0]] * 2, [[3.0, 2.0, 1.0], [2.0, 1.0, 1.0]])
    three, two = (2 * softplus(-1) + softplus(-2)) / 3, (softplus(-1) + softplus(-2)) / 2
    assert row("dpo", lists, beta=1.0) == pytest.approx([three, two], rel=1e-12)


def test_pairs_hold_what_the_list_holds_of_their_two_answers():
    lists = replace(TIED, collisions=tensor(-7.0, -8.0, -9.0)[None], kl=tensor(0.5), seed=3)
    pairs, owner = all_pairs(lists)
    assert owner.tolist() == [0, 0]
    assert pairs.policy_chosen.tolist() == [-49, -49]
    assert pairs.policy_rejected.tolist() == [-50, -51]
    assert pairs.reference_chosen.tolist() == pairs.reference_rejected.tolist() == [-50, -50]
    assert (pairs.chosen_length.tolist(), pairs.rejected_length.tolist()) == ([1, 1], [2, 3])
    assert (pairs.chosen_score.tolist(), pairs.rejected_score.tolist()) == ([2, 2], [1, 1])
    assert (pairs.chosen_collision.tolist(), pairs.rejected_collision.tolist()) == ([-7, -7], [-8, -9])
    assert pairs.kl.tolist() == [0.5]
    assert pairs.seed == 3


def test_pairs_come_in_the_order_of_their_lists():
    lists = list_of([[1.0, 0.0, -1.0], [4.0, 3.0, 2.0]], [[2.0, 1.0, 1.0], [3.0, 2.0, 1.0]])
    pairs, owner = all_pairs(lists)
    assert owner.tolist() == [0, 0, 1, 1, 1]
    assert (pairs.policy_chosen + 50).tolist() == [1, 1, 4, 4, 3]
    assert (pairs.policy_rejected + 50).tolist() == [0, -1, 3, 2, 2]


def test_one_pair_of_a_list_is_its_best_and_worst_unless_asked():
    lists = list_of([[1.0, 0.0, -1.0], [4.0, 3.0, 2.0]], None)
    ends, last = pair_of(lists), pair_of(lists, 1, 2)
    assert ((ends.policy_chosen + 50).tolist(), (ends.policy_rejected + 50).tolist()) == ([1, 4], [-1, 2])
    assert ((last.policy_chosen + 50).tolist(), (last.policy_rejected + 50).tolist()) == ([0, 3], [-1, 2])
    assert last.chosen_score is last.rejected_score is last.chosen_collision is last.kl is None


@pytest.mark.parametrize("scored", [False, True])
@pytest.mark.parametrize("name", PAIRWISE)
def test_two_answers_are_a_pair(name: str, scored: bool):
    """Lists of two give what ``pair_loss`` gives of the same tensors, row by row; the scores matter to neural_ndcg alone."""
    lists = list_of([[1.0, -2.0], [0.3, 0.1], [-1.0, 2.0], [0.0, 1.0]], [[2.0, 1.0], [5.0, 1.0], [1.0, 0.0], [3.0, 2.0]])
    lists = replace(lists, scores=lists.scores if scored else None, collisions=lists.policy - 0.1, kl=torch.zeros(4).double())
    more = {}
    if name == "wpo":
        more = {"chosen_collision": lists.collisions[:, 0], "rejected_collision": lists.collisions[:, 1]}
    if name == "neural_ndcg" and scored:
        more = {"chosen_score": lists.scores[:, 0], "rejected_score": lists.scores[:, 1]}
    columns = [values[:, place] for values in (lists.policy, lists.reference, lists.lengths) for place in (0, 1)]
    assert torch.equal(row_losses(get_method(name), lists, resolve(name))[0], pair_loss(name, *columns, **more))


def test_kto_of_a_list_by_hand():
    """beta = 1, z0 = .5: each pair is the mean of sigmoid(z0 - u_w) and sigmoid(u_l - z0), with u_w = 1 and u_l = 0, then -1."""

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    each = [(sigmoid(-0.5) + sigmoid(u - 0.5)) / 2 for u in (0, -1)]
    assert row("kto", replace(TIED, kl=tensor(0.5)), beta=1.0) == pytest.approx([sum(each) / 2], rel=1e-12)


def test_bco_of_a_list_counts_an_answer_once_a_pair():
    """beta = 1: the pairs' rewards are 1, 0 and 1, -1: count 4, sum 1, d = 1/4."""
    method, hyper = get_method("bco"), resolve("bco", {"beta": 1.0})
    losses, running = row_losses(method, TIED, hyper)
    assert {name: value.item() for name, value in running.items()} == {"count": 4, "sum": 1}
    expected = softplus(-0.75) + (softplus(-0.25) + softplus(-1.25)) / 2
    assert losses.tolist() == pytest.approx([expected], rel=1e-12)


def test_statistics_go_on_from_where_they_were():
    """A second batch, u = 3, 2 of one list of two: count 6, sum 1 + 5 = 6, d = 1; -log sigmoid(2) - log sigmoid(-1)."""
    method, hyper = get_method("bco"), resolve("bco", {"beta": 1.0})
    _, running = row_losses(method, TIED, hyper)
    losses, running = row_losses(method, list_of([[3.0, 2.0]], None), hyper, running)
    assert {name: value.item() for name, value in running.items()} == {"count": 6, "sum": 6}
    assert losses.tolist() == pytest.approx([softplus(-2) + softplus(1)], rel=1e-12)


def test_a_method_without_statistics_passes_them_on():
    assert row_losses(get_method("dpo"), TIED, resolve("dpo"))[1] is None
    assert started(get_method("dpo"), TIED.policy) == {}


def test_statistics_start_in_the_type_of_the_policy():
    for dtype in (torch.float32, torch.float64):
        values = started(get_method("beta_dpo"), torch.zeros(3, dtype=dtype))
        assert {name: (value.item(), value.dtype, value.shape) for name, value in values.items()} == dict.fromkeys(
            ("mean", "std"), (0.0, dtype, ())
        )


def test_a_listwise_loss_sees_the_whole_list():
    """Two of three answers in order, u = 0, 2, 1 under scores 3, 2, 1: as tau -> 0 the places are 2nd, 3rd, 1st, so DCG is
    3 / log2 2 + 1 / log2 3 + 7 / log2 4 over 7 + 3 / log2 3 + 1 / 2: not the mean of three NDCGs of two.
    """
    lists = list_of([[0.0, 2.0, 1.0]], [[3.0, 2.0, 1.0]])
    found = 3 + 1 / math.log2(3) + 7 / 2
    ideal = 7 + 3 / math.log2(3) + 1 / 2
    assert row("neural_ndcg", lists, tau=1e-3) == pytest.approx([-found / ideal], rel=1e-9)
    pairs, _ = all_pairs(lists)
    method, hyper = get_method("neural_ndcg"), resolve("neural_ndcg", {"tau": 1e-3})
    assert abs(method.loss(pairs, hyper).mean().item() + found / ideal) > 0.01


def test_a_middle_answer_moves_a_listwise_loss():
    """The gains of the ends and their ratios stay; the middle answer goes from between them to above both."""
    between, above = (row("neural_ndcg", list_of([[1.0, u, -1.0]], [[3.0, 2.0, 1.0]])) for u in (0.0, 3.0))
    assert between[0] < above[0]


@pytest.mark.parametrize("name", ["dpo", "ipo", "simpo", "orpo", "wpo", "neural_ndcg"])
def test_lists_of_an_uncoupled_loss_are_independent_and_keep_their_order(name: str):
    lists = list_of([[1.0, 0.0, -1.0], [4.0, 3.0, 5.0], [0.0, 2.0, 1.0]], [[2.0, 1.0, 1.0], [3.0, 2.0, 1.0], [2.0, 2.0, 1.0]])
    lists = replace(lists, collisions=lists.policy - 0.1)
    together = row(name, lists)
    alone = [
        row(
            name,
            Lists(
                *(values[i : i + 1] for values in (lists.policy, lists.reference, lists.lengths, lists.scores, lists.collisions))
            ),
        )[0]
        for i in range(3)
    ]
    assert together == pytest.approx(alone, rel=1e-12)
    turn = [2, 0, 1]
    turned = Lists(*(values[turn] for values in (lists.policy, lists.reference, lists.lengths, lists.scores, lists.collisions)))
    assert row(name, turned) == pytest.approx([together[i] for i in turn], rel=1e-12)


@pytest.mark.parametrize("name", ["bco", "aot", "beta_dpo", "alpha_dpo"])
def test_lists_of_a_coupled_loss_are_one_batch_of_pairs(name: str):
    """Without ties every list has three pairs, so the mean over lists is the mean over the six pairs."""
    lists = list_of([[1.0, 0.0, -1.0], [4.0, 3.0, 5.0]], [[3.0, 2.0, 1.0]] * 2)
    pairs, _ = all_pairs(lists)
    six = (getattr(pairs, f"{who}_{side}") for who in ("policy", "reference") for side in ("chosen", "rejected"))
    flat = pair_loss(name, *six, pairs.chosen_length, pairs.rejected_length)
    losses = row_losses(get_method(name), lists, resolve(name))[0]
    assert losses.shape == (2,)
    assert losses.mean().item() == pytest.approx(flat.mean().item(), rel=1e-12)


def test_gradients_reach_every_answer_that_is_in_a_pair():
    """dpo of the tied list, beta = 1: at u_1 -(sigmoid(-1) + sigmoid(-2)) / 2, and the two halves at u_2 and u_3."""
    policy = TIED.policy.clone().requires_grad_()
    row_losses(get_method("dpo"), replace(TIED, policy=policy), resolve("dpo", {"beta": 1.0}))[0].sum().backward()
    near, far = 0.5 / (1 + math.e), 0.5 / (1 + math.exp(2))
    assert policy.grad[0].tolist() == pytest.approx([-near - far, near, far], rel=1e-12)


def test_longer_lists_need_scores():
    with pytest.raises(ValueError, match="a list of 3 answers needs scores"):
        row("dpo", replace(TIED, scores=None))


def test_a_list_of_ties_has_no_pair():
    with pytest.raises(ValueError, match="two answers whose scores differ"):
        row("dpo", list_of([[1.0, 0.0, -1.0]] * 2, [[2.0, 1.0, 1.0], [2.0, 2.0, 2.0]]))


def test_no_loss_depends_on_the_order_of_lists_with_ties():
    """Lists of six and of three pairs: each list counts once, or under aot, whose losses are ranks of the batch, each pair."""
    policy = torch.tensor([[-4.0, -9.0, -7.0, -6.0], [-8.0, -3.0, -5.0, -9.5]], dtype=torch.float64)
    reference = torch.tensor([[-5.0, -8.0, -7.5, -4.0], [-6.0, -4.0, -5.5, -9.0]], dtype=torch.float64)
    scores = torch.tensor([[4.0, 3.0, 2.0, 1.0], [2.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    lengths = torch.full((2, 4), 3.0, dtype=torch.float64)
    for name in ("dpo", "aot", "bco", "alpha_dpo"):
        lists = Lists(policy, reference, lengths, scores)
        turned = Lists(*(value.flip(0) for value in (policy, reference, lengths, scores)))
        found = [row_losses(get_method(name), one, resolve(name, {"beta": 1.0}))[0].mean() for one in (lists, turned)]
        assert found[0].item() == pytest.approx(found[1].item(), rel=1e-12), name
