"""AOT: logistic loss on sorted margins, so that the policy's distribution dominates, not each single pair."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from spo_bench.methods.base import Default, Hyperparameters, Method, Pairs, log_ratio_rewards, log_sigmoid

if TYPE_CHECKING:
    from torch import Tensor


def loss(pairs: Pairs, hyper: Hyperparameters) -> Tensor:
    """Return -(1 - e) log sigmoid(z) - e log sigmoid(-z), shape (batch,), in rising rank: row i is the i-th smallest, not pair i.

    ``paired``: z = beta * (sort(s_w - s_l) - sort(r_w - r_l)); ``unpaired``: z = beta * (sort(u_w) - sort(u_l)); each sorted
    over the batch; e = label_smoothing. Raises ValueError without a reference.
    """
    if pairs.reference_chosen is None or pairs.reference_rejected is None:
        raise ValueError("aot needs reference log-probabilities, none were given")
    if hyper["kind"] == "paired":
        above = pairs.policy_chosen - pairs.policy_rejected
        below = pairs.reference_chosen - pairs.reference_rejected
    else:
        above, below = pairs.log_ratios()
    z = hyper["beta"] * (above.sort().values - below.sort().values)
    smoothing = hyper["label_smoothing"]
    return -(1 - smoothing) * log_sigmoid(z) - smoothing * log_sigmoid(-z)


METHOD = Method(
    name="aot",
    loss=loss,
    rewards=log_ratio_rewards,
    version=1,
    data="paired",
    needs_reference=True,
    batch_coupled=True,
    by_rank=True,
    reduction="sum",
    defaults={
        "beta": Default(0.01, "TRL's paper index", above=0),
        "label_smoothing": Default(0.0, "TRL's DPOConfig", at_least=0, below=0.5),
        "kind": Default("paired", "ours: it keeps a prompt's two answers together", choices=("paired", "unpaired")),
    },
    at_start=lambda hyper: math.log(2),
    formula="-(1 - e) log sigmoid(z) - e log sigmoid(-z), e = label_smoothing, "
    "z = beta * (sort(s_w - s_l) - sort(r_w - r_l)) (paired) or beta * (sort(u_w) - sort(u_l)) (unpaired), sorted over the batch",
    reference="Melnyk et al. 2024, arXiv 2406.05882",
    traps=(
        "changes with the batch size: a batch of 1 is dpo, and the sort needs a large batch to say anything of a distribution",
        "rows of the loss are ranks of the batch, not its pairs: of longer lists every pair counts once, not every list",
        "unpaired, an answer is compared with one of another prompt, so the prompts' own level of u is in the loss",
    ),
)
