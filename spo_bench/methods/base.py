"""What a method is: a pure loss on ``(batch,)`` vectors and a declaration of what it needs.

Notation of every file here: s = summed log-probability of a completion under the policy (nats), r = the same under the frozen
reference, u = s - r, |y| = number of completion tokens; the suffixes w and l mean chosen and rejected.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # declarations are read by commands that never compute a loss, and torch takes seconds to import
    from torch import Tensor


Hyperparameters = Mapping[str, Any]


@dataclass(frozen=True)
class Pairs:
    """What a loss sees of a batch. Every tensor has shape (batch,), floating point.

    Attributes:
        policy_chosen, policy_rejected: s_w and s_l, summed completion log-probabilities under the policy, nats.
        reference_chosen, reference_rejected: r_w and r_l under the frozen reference; None for a reference-free use.
        chosen_length, rejected_length: completion token counts.
        kl: log-ratio u of mismatched pairs (a prompt with another prompt's completion), any length, without gradient;
            only for methods that declare ``needs_kl``.
        chosen_score, rejected_score: the data's quality of the answers; only for methods that declare ``needs_scores``.
        chosen_collision, rejected_collision: sum over a completion's tokens of log sum_v p(v)^2 under the policy, nats,
            without gradient; only for methods that declare ``needs_collision``.
        running: the method's running statistics, this batch included; only for methods that declare ``running``.
        seed: of the draws a loss makes.
    """

    policy_chosen: Tensor
    policy_rejected: Tensor
    reference_chosen: Tensor | None
    reference_rejected: Tensor | None
    chosen_length: Tensor
    rejected_length: Tensor
    kl: Tensor | None = None
    chosen_score: Tensor | None = None
    rejected_score: Tensor | None = None
    chosen_collision: Tensor | None = None
    rejected_collision: Tensor | None = None
    running: Mapping[str, Tensor] | None = None
    seed: int = 0

    def log_ratios(self) -> tuple[Tensor, Tensor]:
        """Return (u_w, u_l), each of shape (batch,)."""
        if self.reference_chosen is None or self.reference_rejected is None:
            raise ValueError("this loss needs reference log-probabilities, none were given")
        return self.policy_chosen - self.reference_chosen, self.policy_rejected - self.reference_rejected

    def means(self) -> tuple[Tensor, Tensor]:
        """Return the per-token means (s_w/|y_w|, s_l/|y_l|), each of shape (batch,)."""
        return self.policy_chosen / self.chosen_length, self.policy_rejected / self.rejected_length

    def scores(self) -> tuple[Tensor, Tensor]:
        """Return the data's quality of (chosen, rejected), each of shape (batch,)."""
        if self.chosen_score is None or self.rejected_score is None:
            raise ValueError("this loss needs the data's scores of both answers, none were given")
        return self.chosen_score, self.rejected_score


@dataclass(frozen=True)
class Lists:
    """What a listwise loss sees: n answers a prompt, best first. Every tensor has shape (batch, n), floating point.

    Attributes:
        policy: summed completion log-probabilities under the policy, nats.
        reference: the same under the frozen reference; None for a reference-free use.
        lengths: completion token counts.
        scores: the data's quality of every answer, falling along a row; None where only an order is known (n = 2).
        collisions: as in ``Pairs``.
        explored: log-ratio s - r of the reference's own greedy answer, (batch,); only where an addition needs it.
        kl, seed: as in ``Pairs``.
    """

    policy: Tensor
    reference: Tensor | None
    lengths: Tensor
    scores: Tensor | None = None
    collisions: Tensor | None = None
    explored: Tensor | None = None
    kl: Tensor | None = None
    seed: int = 0


@dataclass(frozen=True)
class Running:
    """Statistics a loss carries from step to step.

    Attributes:
        start: name -> value before the first step.
        update: (pairs of a whole step, hyperparameters, statistics before) -> statistics with this step counted, scalar tensors
            without gradient. Called once an optimizer step, before the loss.
    """

    start: Mapping[str, float]
    update: Callable[[Pairs, Hyperparameters, Mapping[str, Tensor]], dict[str, Tensor]]


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


@dataclass(frozen=True)
class Method:
    """The declaration of a preference loss.

    Attributes:
        name: the name used in a spec.
        loss: (pairs, hyperparameters) -> per-pair loss of shape (batch,), no reduction.
        rewards: (pairs, hyperparameters) -> the method's own implicit rewards (chosen, rejected), each (batch,).
        version: raise it whenever the loss changes: it is part of every training key.
        data: "paired" (two answers of one prompt are compared), "unpaired" (answers are labelled one by one), "listwise" (the
            answers of a prompt are ranked together).
        needs_reference: whether the loss reads reference log-probabilities.
        needs_kl: whether it reads ``Pairs.kl``.
        needs_scores: whether it reads the data's scores.
        needs_collision: whether it reads ``Pairs.chosen_collision`` and ``rejected_collision``.
        reduction: "sum" or "mean" over the tokens of a completion.
        batch_coupled: whether one pair's loss depends on the other pairs of the batch.
        running: statistics it carries from step to step; such a method is batch-coupled.
        by_rank: whether the losses come in the order of a sorted batch, so that none belongs to a pair.
        list_loss: the loss of lists of any length, (batch,); None: a longer list is all its pairs, each list counting once (with
            ``by_rank`` each pair).
        likelihood: whether the loss holds a likelihood term of the chosen answer already.
        defaults: hyperparameter -> default with source.
        at_start: hyperparameters -> the loss when policy and reference agree, where that is a constant; else None.
        check: raises ValueError for hyperparameter values that make no sense together (``Default`` bounds each alone).
        formula, reference, traps: shown by ``spo-bench methods show``.
    """

    name: str
    loss: Callable[[Pairs, Hyperparameters], Tensor]
    rewards: Callable[[Pairs, Hyperparameters], tuple[Tensor, Tensor]]
    version: int
    data: Literal["paired", "unpaired", "listwise"]
    needs_reference: bool
    reduction: Literal["sum", "mean"]
    defaults: Mapping[str, Default]
    formula: str
    reference: str
    needs_kl: bool = False
    needs_scores: bool = False
    needs_collision: bool = False
    batch_coupled: bool = False
    running: Running | None = None
    by_rank: bool = False
    list_loss: Callable[[Lists, Hyperparameters], Tensor] | None = None
    likelihood: bool = False
    at_start: Callable[[Hyperparameters], float] | None = None
    check: Callable[[Hyperparameters], None] | None = None
    traps: tuple[str, ...] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        if (self.running is not None or self.by_rank) and not self.batch_coupled:
            raise ValueError(f"method {self.name} reads a whole batch (running, by_rank) but is not declared batch_coupled")


@dataclass(frozen=True)
class Addition:
    """Something that is added to a method's training: a term of the loss, or what happens to the reference.

    Attributes:
        name: as written in a spec, without the plus sign.
        version: raise it whenever what it does changes: it is part of every training key.
        defaults: setting -> default with source.
        term: (lists, own settings, method's hyperparameters) -> what is added to every row's loss, (batch,); None: it adds none.
        refuses: (method, names of the other additions) -> why the combination makes no sense, None where it does.
        needs_explored: whether the term reads ``Lists.explored``.
        formula, reference, traps: shown by ``spo-bench methods show``.
    """

    name: str
    version: int
    defaults: Mapping[str, Default]
    formula: str
    reference: str
    term: Callable[[Lists, Hyperparameters, Hyperparameters], Tensor] | None = None
    refuses: Callable[[Method, Collection[str]], str | None] = lambda method, others: None
    needs_explored: bool = False
    traps: tuple[str, ...] = ()


def log_sigmoid(z: Tensor) -> Tensor:
    """Return log(1 / (1 + exp(-z))) without overflow, any shape."""
    from torch.nn import functional

    return functional.logsigmoid(z)


def mean_rewards(pairs: Pairs, hyper: Hyperparameters) -> tuple[Tensor, Tensor]:
    """Return beta times the per-token means, the implicit rewards of length-normalised reference-free methods."""
    chosen, rejected = pairs.means()
    return hyper["beta"] * chosen, hyper["beta"] * rejected


def log_ratio_rewards(pairs: Pairs, hyper: Hyperparameters) -> tuple[Tensor, Tensor]:
    """Return the implicit rewards beta * u of reference-based methods."""
    chosen, rejected = pairs.log_ratios()
    return hyper["beta"] * chosen, hyper["beta"] * rejected
