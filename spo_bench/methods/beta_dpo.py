"""beta-DPO: DPO whose beta follows the batch's margin, on pairs whose margin is not an outlier."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from spo_bench.methods.base import Default, Hyperparameters, Method, Pairs, log_ratio_rewards, log_sigmoid
from spo_bench.methods.moments import carried, moving_moments

if TYPE_CHECKING:
    from torch import Tensor

STD_FLOOR = 1e-3  # nats of a summed log-ratio: far above rounding, far below any spread that means something
BETA_FLOOR = 1e-3  # the authors' repository


def gap(pairs: Pairs) -> Tensor:
    """Return M = u_w - u_l, shape (batch,)."""
    chosen, rejected = pairs.log_ratios()
    return chosen - rejected


def keep(gaps: Tensor, mean: Tensor, std: Tensor, dropped: float, seed: int) -> Tensor:
    """Draw which pairs of a batch to keep: floor((1 - dropped) * batch) of them, at least 1, without replacement.

    A pair's weight is exp(-((gap - mean) / std)^2 / 2), std at least ``STD_FLOOR``. The draw is made on the CPU in double
    precision, so one seed gives one draw on every device.

    Returns a mask of shape (batch,).
    """
    import torch

    # 1 - dropped is rounded: (1 - 0.8) * 10 is 1.9999999999999996, and 2 pairs are meant.
    kept = max(1, math.floor((1 - dropped) * len(gaps) + 1e-9))
    distance = (gaps.detach().to("cpu", torch.float64) - float(mean)) / max(float(std), STD_FLOOR)
    log_weights = -(distance**2) / 2
    # The largest of log weight + Gumbel noise are such a draw. Weights are relative to the largest: where all pairs are far
    # from the mean, the noise would otherwise be lost in rounding.
    generator = torch.Generator().manual_seed(seed)
    waits = torch.empty_like(distance).exponential_(generator=generator)
    chances = log_weights - log_weights.max() - waits.log()
    mask = torch.zeros_like(chances, dtype=torch.bool)
    mask[chances.topk(kept).indices] = True
    return mask.to(gaps.device)


def loss(pairs: Pairs, hyper: Hyperparameters) -> Tensor:
    """Return -log sigmoid(B * (u_w - u_l)) * batch / kept for the kept pairs and 0 for the rest, shape (batch,).

    So the batch mean is the mean over the kept pairs, drawn by ``keep`` with ``pairs.seed``. B = max(0.001, beta * (1 + alpha
    * (mean of the kept gaps - running mean))) is one number for the batch, a constant to the gradient. Raises ValueError
    without ``pairs.running``.
    """
    gaps, running = gap(pairs), carried(pairs)
    mask = keep(gaps, running["mean"], running["std"], hyper["dropped"], pairs.seed)
    drift = gaps.detach()[mask].mean() - running["mean"]
    beta = (hyper["beta"] * (1 + hyper["alpha"] * drift)).clamp(min=BETA_FLOOR)
    return -log_sigmoid(beta * gaps) * mask * (len(gaps) / int(mask.sum()))


METHOD = Method(
    name="beta_dpo",
    loss=loss,
    rewards=log_ratio_rewards,
    version=1,
    data="paired",
    needs_reference=True,
    batch_coupled=True,
    running=moving_moments(gap),
    reduction="sum",
    defaults={
        "beta": Default(0.1, "the authors' repository; below its floor of 0.001 it would be ignored", at_least=BETA_FLOOR),
        "dropped": Default(0.2, "the authors' repository", at_least=0, below=1),
        "alpha": Default(0.6, "the authors' repository", at_least=0),
        "momentum": Default(0.9, "the authors' repository", at_least=0, below=1),
    },
    at_start=lambda hyper: math.log(2),
    formula="-log sigmoid(B (u_w - u_l)) on kept pairs, 0 on the rest, times batch / kept; "
    "B = max(0.001, beta (1 + alpha (mean of kept u_w - u_l, less its running mean)))",
    reference="Wu et al. 2024, arXiv 2407.08639",
    traps=(
        "stochastic: which pairs count is drawn anew every step, from the seed",
        "changes with the batch size: B and the share of outliers are facts of a batch; a batch of 1 drops nothing",
        "the running mean and spread start at 0 without correction: in the first steps both are far too small, so the draw "
        "prefers pairs with small margins, and B is above beta where margins are positive",
        "alpha multiplies nats of a summed log-ratio, so a value tuned for short answers is strong for long ones",
        "the logged rewards use beta, not B",
    ),
)
