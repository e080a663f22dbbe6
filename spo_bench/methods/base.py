"""What a method is: a pure loss on ``(batch,)`` vectors and a declaration of what it needs.

Notation of every file here: s = summed log-probability of a completion under the policy (nats), r = the same under the frozen
reference, u = s - r, |y| = number of completion tokens; the suffixes w and l mean chosen and rejected.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """What a loss sees of a batch. Every tensor has shape (batch,), floating point.

    Attributes:
        policy_chosen, policy_rejected: s_w and s_l, summed completion log-probabilities under the policy, nats.
        reference_chosen, reference_rejected: r_w and r_l under the frozen reference; None for a reference-free use.
        chosen_length, rejected_length: completion token counts.
        kl: log-ratio u of mismatched pairs (a prompt with another prompt's completion), any length, without gradient;
            only for methods that declare ``needs_kl``.
    """

    policy_chosen: Tensor
    policy_rejected: Tensor
    reference_chosen: Tensor | None
    reference_rejected: Tensor | None
    chosen_length: Tensor
    rejected_length: Tensor
    kl: Tensor | None = None

    def log_ratios(self) -> tuple[Tensor, Tensor]:
        """Return (u_w, u_l), each of shape (batch,)."""
        if self.reference_chosen is None or self.reference_rejected is None:
            raise ValueError("this loss needs reference log-probabilities, none were given")
        return self.policy_chosen - self.reference_chosen, self.policy_rejected - self.reference_rejected

    def means(self) -> tuple[Tensor, Tensor]:
        """Return the per-token means (s_w/|y_w|, s_l/|y_l|), each of shape (batch,)."""
        return self.policy_chosen / self.chosen_length, self.policy_rejected / self.rejected_length


@dataclass(frozen=True)
class Default:
    """A hyperparameter's default value and where it comes from."""

    value: Any
    source: str


Hyperparameters = Mapping[str, Any]


@dataclass(frozen=True)
class Method:
    """The declaration of a preference loss.

    Attributes:
        name: the name used in a spec.
        loss: (pairs, hyperparameters) -> per-pair loss of shape (batch,), no reduction.
        rewards: (pairs, hyperparameters) -> the method's own implicit rewards (chosen, rejected), each (batch,).
        version: raise it whenever the loss changes: it is part of every training key.
        data: "paired" (two answers of one prompt are compared), "unpaired" (answers are labelled one by one).
        needs_reference: whether the loss reads reference log-probabilities.
        needs_kl: whether it reads ``Pairs.kl``.
        reduction: "sum" or "mean" over the tokens of a completion.
        batch_coupled: whether one pair's loss depends on the other pairs of the batch.
        defaults: hyperparameter -> default with source.
        at_start: hyperparameters -> the loss when policy and reference agree, where that is a constant; else None.
        check: raises ValueError for hyperparameter values that make no sense.
        formula, reference, traps: shown by ``spo-bench methods show``.
    """

    name: str
    loss: Callable[[Pairs, Hyperparameters], Tensor]
    rewards: Callable[[Pairs, Hyperparameters], tuple[Tensor, Tensor]]
    version: int
    data: Literal["paired", "unpaired"]
    needs_reference: bool
    reduction: Literal["sum", "mean"]
    defaults: Mapping[str, Default]
    formula: str
    reference: str
    needs_kl: bool = False
    batch_coupled: bool = False
    at_start: Callable[[Hyperparameters], float] | None = None
    check: Callable[[Hyperparameters], None] | None = None
    traps: tuple[str, ...] = field(default_factory=tuple)


def log_ratio_rewards(pairs: Pairs, hyper: Hyperparameters) -> tuple[Tensor, Tensor]:
    """Return the implicit rewards beta * u of reference-based methods."""
    chosen, rejected = pairs.log_ratios()
    return hyper["beta"] * chosen, hyper["beta"] * rejected
