"""NeuralNDCG (OPO): the ranking quality of a whole list, with a sort smooth enough to differentiate."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from spo_bench.methods.base import Default, Hyperparameters, Lists, Method, Pairs, log_ratio_rewards

if TYPE_CHECKING:
    from torch import Tensor

SINKHORN_STEPS = 50  # the authors' repository, as the tolerance
SINKHORN_TOLERANCE = 1e-6


TIE = 1e-3  # differences of s below this are rounding noise, or as good as a tie


def distance(difference: Tensor) -> Tensor:
    """Return |d|, rounded off to d^2 / (2 h) + h / 2 where |d| < h = ``TIE``; any shape.

    Policy and reference agree at the start, so all s are equal but for rounding, and the sign of a rounding error must not
    decide a gradient of full size. At a tie the gradient of |d| is 0, the middle of what it allows there. The h / 2 added where
    d = 0 is the same for every answer, so the sort does not see it.
    """
    import torch

    size = difference.abs()
    return torch.where(size < TIE, difference.square() / (2 * TIE) + TIE / 2, size)


def soft_sort(values: Tensor, tau: float) -> Tensor:
    """Return log P, (batch, n, n), of the smooth permutation that sorts (batch, n) values in falling order.

    NeuralSort: row i of P is softmax_j(((n + 1 - 2i) s_j - sum_k |s_j - s_k|) / tau), i from 1. Its rows sum to 1; Sinkhorn
    steps, in log space so that nothing underflows, bring its columns there, or near: on normal values with tau 0.01 to 3, 50
    steps left every column sum within 0.006 of 1. A list stops when its own columns are there: it does not matter what else is
    in the batch.
    """
    import torch

    size = values.shape[1]
    spread = distance(values[:, :, None] - values[:, None, :]).sum(2)
    ranks = size + 1 - 2 * torch.arange(1, size + 1, device=values.device, dtype=values.dtype)
    log_p = ((ranks[None, :, None] * values[:, None, :] - spread[:, None, :]) / tau).log_softmax(2)
    for _ in range(SINKHORN_STEPS):
        open_lists = (log_p.detach().exp().sum(1) - 1).abs().amax(1) > SINKHORN_TOLERANCE
        if not bool(open_lists.any()):
            break
        stepped = (log_p - log_p.logsumexp(1, keepdim=True)).log_softmax(2)
        log_p = torch.where(open_lists[:, None, None], stepped, log_p)
    return log_p


def relative_gains(scores: Tensor) -> Tensor:
    """Return (2^psi - 1) / 2^max, (batch, n): gains up to a factor of the list, which NDCG does not see, and finite for any psi.

    Raises ValueError for a score below 0, and for a list in which all are 0: its NDCG is 0 / 0.
    """
    import torch

    best = scores.amax(1, keepdim=True)
    if not bool((scores >= 0).all() & (best > 0).all()):
        raise ValueError("neural_ndcg needs scores of at least 0, and one above 0 in every list")
    return torch.exp2(scores - best) * -torch.expm1(-scores * math.log(2))


def list_loss(lists: Lists, hyper: Hyperparameters) -> Tensor:
    """Return -NDCG of the answers smoothly sorted by s = beta * u, shape (batch,), from -1 (best order) to below 0.

    NDCG = sum_i (P G)_i / log2(i + 1) / IDCG, P by ``soft_sort``, G = 2^psi - 1, IDCG the sum in the best order. Without scores
    (two answers) psi = (1, 0). Raises ValueError for a longer list without scores, without a reference, and for unfit scores.
    """
    import torch

    size = lists.policy.shape[1]
    if lists.reference is None:
        raise ValueError("neural_ndcg needs reference log-probabilities, none were given")
    if lists.scores is None and size != 2:
        raise ValueError(f"neural_ndcg needs the data's scores of a list of {size} answers, none were given")
    scores = lists.scores if lists.scores is not None else lists.policy.new_tensor([[1.0, 0.0]]).expand_as(lists.policy)
    gains = relative_gains(scores)
    discounts = torch.arange(2, size + 2, device=gains.device, dtype=gains.dtype).log2().reciprocal()
    ideal = (gains.sort(1, descending=True).values * discounts).sum(1)
    log_p = soft_sort(hyper["beta"] * (lists.policy - lists.reference), hyper["tau"])
    # log_p is (batch, rank, answer): what each answer's place earns it, summed over the places it may take.
    earned = (log_p.exp() * discounts[None, :, None]).sum(1)
    return -(earned * gains).sum(1) / ideal


def loss(pairs: Pairs, hyper: Hyperparameters) -> Tensor:
    """Return the loss of the pairs as lists of two, shape (batch,): the chosen answer first."""
    import torch

    if pairs.reference_chosen is None or pairs.reference_rejected is None:
        raise ValueError("neural_ndcg needs reference log-probabilities, none were given")
    scored = pairs.chosen_score is not None or pairs.rejected_score is not None
    lists = Lists(
        policy=torch.stack([pairs.policy_chosen, pairs.policy_rejected], 1),
        reference=torch.stack([pairs.reference_chosen, pairs.reference_rejected], 1),
        lengths=torch.stack([pairs.chosen_length, pairs.rejected_length], 1),
        scores=torch.stack(pairs.scores(), 1) if scored else None,
    )
    return list_loss(lists, hyper)


METHOD = Method(
    name="neural_ndcg",
    loss=loss,
    list_loss=list_loss,
    rewards=log_ratio_rewards,
    version=1,
    data="listwise",
    needs_reference=True,
    reduction="sum",
    defaults={
        "beta": Default(0.1, "the authors' repository", above=0),
        "tau": Default(1.0, "the authors' repository for Mistral-7B; 0.1 for Qwen2-0.5B", above=0),
    },
    formula="-NDCG, NDCG = sum_i (P G)_i / log2(i + 1) / IDCG, G = 2^psi - 1, P = Sinkhorn(NeuralSort(beta u; tau)); "
    "psi = the data's scores, (1, 0) for a pair without scores",
    reference="Zhao et al. 2024, arXiv 2410.04346 (OPO, later named PPA)",
    traps=(
        "the scale of the scores is a hyperparameter: gains grow as 2^psi, so on a scale of 1 to 10 the best answers "
        "are nearly all that counts, and on 0 to 1 gains are nearly linear in the score",
        "scores below 0 have no gain and are refused, as is a list of zeros: shift them",
        "a pair's loss depends on its score gap, so with scores it is aware of degree even at two answers",
        "the loss lies between -1 and 0, and its gradient vanishes for a pair ordered very wrongly as for one ordered well",
        "but for that, only beta / tau matters to the loss: both are kept because the paper names both",
        f"|s_j - s_k| is rounded off below {TIE:g} in s = beta * u, else rounding would decide part of a list's first gradient",
        "libraries sort in fp16; here the sort has the precision of the log-probabilities",
    ),
)
