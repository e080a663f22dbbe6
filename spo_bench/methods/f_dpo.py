"""f-DPO: DPO under another divergence from the reference than the reverse KL."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from spo_bench.methods.base import Default, Hyperparameters, Method, Pairs, log_sigmoid

if TYPE_CHECKING:
    from torch import Tensor

EXPONENT_LIMIT = 30.0  # exp(30) = 1e13: with it not only the gradient is finite in float32, but also its squared norm
ALPHA = 0.5


def score(log_ratio: Tensor, hyper: Hyperparameters) -> Tensor:
    """Return f'(exp(u)) up to a constant, which a difference cancels, shape of ``log_ratio``.

    Exponents are held at ``EXPONENT_LIMIT``; an answer beyond it gets no gradient.
    """
    kind = hyper["kind"]
    if kind == "reverse_kl":
        return log_ratio
    if kind == "js":
        return log_sigmoid(log_ratio)
    power = 1.0 if kind == "forward_kl" else hyper["alpha"]
    return -(-power * log_ratio).clamp(max=EXPONENT_LIMIT).exp() / power


def rewards(pairs: Pairs, hyper: Hyperparameters) -> tuple[Tensor, Tensor]:
    """Return beta times the scores that stand in for the log-ratios, each of shape (batch,)."""
    chosen, rejected = pairs.log_ratios()
    return hyper["beta"] * score(chosen, hyper), hyper["beta"] * score(rejected, hyper)


def loss(pairs: Pairs, hyper: Hyperparameters) -> Tensor:
    """Return -log sigmoid(beta * (f'(exp u_w) - f'(exp u_l))), shape (batch,)."""
    chosen, rejected = rewards(pairs, hyper)
    return -log_sigmoid(chosen - rejected)


def check(hyper: Hyperparameters) -> None:
    """Raise ValueError for an alpha that no other kind would read."""
    if hyper["kind"] != "alpha" and hyper["alpha"] != ALPHA:
        raise ValueError(f"alpha is read only where kind is alpha, not {hyper['kind']}: leave alpha out, or set kind to alpha")


METHOD = Method(
    name="f_dpo",
    loss=loss,
    rewards=rewards,
    version=1,
    data="paired",
    needs_reference=True,
    reduction="sum",
    defaults={
        "beta": Default(0.1, "TRL's DPOConfig", above=0),
        "kind": Default("reverse_kl", "TRL's DPOConfig", choices=("reverse_kl", "forward_kl", "js", "alpha")),
        "alpha": Default(ALPHA, "TRL's DPOConfig, where it is 1 - alpha: the same only at 0.5", above=0, below=1),
    },
    at_start=lambda hyper: math.log(2),
    check=check,
    formula="-log sigmoid(beta * (f(u_w) - f(u_l))), f(u) = u (reverse_kl), -exp(-u) (forward_kl), log sigmoid(u) (js), "
    "-exp(-alpha u) / alpha (alpha)",
    reference="Wang et al. 2023, arXiv 2309.16240",
    traps=(
        "the default kind is dpo: name the kind",
        "forward_kl and alpha explode where the policy has left an answer: exponents are held at 30, beyond which an answer "
        "gets no gradient; TRL holds only alpha's, at 80 (11 in fp16), so numbers differ below u = -30",
        "with js the score of an answer far above the reference is flat: the chosen answer stops rising",
        "alpha is that of the authors' repository; TRL's coefficient is 1 - alpha",
    ),
)
