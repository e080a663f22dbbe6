"""What a method is: a pure loss on ``(batch,)`` vectors and a declaration of what it needs.

Notation of every file here: s = summed log-probability of a completion under the policy (nats), r = the same under the frozen
reference, u = s - r, |y| = number of completion tokens; the suffixes w and l mean chosen and rejected.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # declarations are read by commands that never compute a loss, and torch takes seconds to import
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
    """A hyperparameter's default, where it comes from, and the values it may have.

    Attributes:
        value: the default; its type (float, int, bool or str) is the type of the hyperparameter.
        source: who uses this default.
        above, below: exclusive bounds of a number; None: no bound.
        at_least, at_most: inclusive bounds of a number; None: no bound.
        choices: the allowed words of a str.
    """

    value: Any
    source: str
    above: float | None = None
    below: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    choices: tuple[str, ...] = ()

    def rule(self) -> str:
        """Say in words which values are allowed."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if isinstance(self.value, bool):
            return "true or false"
        bounds = [("above", self.above), ("at least", self.at_least), ("below", self.below), ("at most", self.at_most)]
        kind = {int: "a whole number", float: "a finite number", str: "a text"}[type(self.value)]
        limits = " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)
        return f"{kind} {limits}".rstrip()


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
        check: raises ValueError for hyperparameter values that make no sense together (``Default`` bounds each alone).
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


def log_sigmoid(z: Tensor) -> Tensor:
    """Return log(1 / (1 + exp(-z))) without overflow, any shape."""
    from torch.nn import functional

    return functional.logsigmoid(z)


def log_ratio_rewards(pairs: Pairs, hyper: Hyperparameters) -> tuple[Tensor, Tensor]:
    """Return the implicit rewards beta * u of reference-based methods."""
    chosen, rejected = pairs.log_ratios()
    return hyper["beta"] * chosen, hyper["beta"] * rejected
