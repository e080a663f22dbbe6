"""The bandit of ``bandit.py``: rewards, policies, arms, and one run of an arm. No output.

A prompt is 100 numbers, an answer is one of 100 actions, and the true reward is a function of the action that we know.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spo_bench.errors import InputError
from spo_bench.methods import Method, Pairs, get_method, resolve

DIMENSIONS, ACTIONS, HIDDEN, SAMPLES, HELD_OUT = 100, 100, 32, 10, 20
PREF_FT, BEST_OF_N = "pref_ft", "best_of_n"
CENTRES = {"misaligned": 70, "aligned": 20}  # the data policy gives actions 60 to 80 together 0.046, 10 to 30 0.46
HYPERPARAMETERS = {"ipo": {"beta": 0.05, "reduction": "sum"}}  # a target margin 1 / (2 beta) of 10; the others: their defaults
REACHED, TIE = 0.8, 1e-6
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Regime:
    """Where the actions come from, and how often a batch is used.

    Attributes:
        contexts: contexts a run, the same in every round.
        rounds: batches of ``SAMPLES`` actions a context.
        steps: optimizer steps on a batch (sample reuse).
        rate: learning rate of Adam.
        gap: pairs whose rewards differ by less are dropped; equal rewards never make a pair.
        on_policy: whether the policy draws the actions of a round, or the data policy.
    """

    contexts: int
    rounds: int
    steps: int
    rate: float
    gap: float
    on_policy: bool


OFFLINE = Regime(100, 1, 200, 3e-3, 0.2, on_policy=False)
ON_POLICY = Regime(10, 100, 15, 1e-2, 0.0, on_policy=True)
MAIN = {"offline": OFFLINE, "matched": replace(ON_POLICY, on_policy=False), "on_policy": ON_POLICY}
ALSO = {
    "reuse_1": replace(ON_POLICY, steps=1),
    "reuse_5": replace(ON_POLICY, steps=5),
    "rate_0.001": replace(ON_POLICY, rate=1e-3),
}


@dataclass(frozen=True)
class Reward:
    """A true reward exp(-((action - centre) / width)^2), in (0, 1]; the centre is the alignment's."""

    alignment: str
    width: float

    def values(self) -> Tensor:
        """Return the reward of every action, (actions,)."""
        return torch.exp(-(((torch.arange(ACTIONS) - CENTRES[self.alignment]) / self.width) ** 2))


@dataclass
class History:
    """What one arm did in one regime.

    Attributes:
        steps: optimizer steps at every point.
        points: metric -> one (rewards, seeds) array a point; log-ratios, KL and entropy in nats.
    """

    steps: list[int] = field(default_factory=list)
    points: dict[str, list[Floats]] = field(default_factory=dict)

    def curve(self, metric: str) -> Floats:
        """Return a metric's values, (points, rewards, seeds)."""
        return np.stack(self.points[metric])

    def final(self, metric: str = "reward") -> Floats:
        """Return the last point, (rewards, seeds)."""
        return self.points[metric][-1]

    def average(self, share: float = 1.0) -> Floats:
        """Return the reward averaged over the first ``share`` of the training steps, (rewards, seeds): high for an early rise."""
        kept = [i for i, step in enumerate(self.steps) if step <= share * self.steps[-1]]
        steps, rewards = np.array(self.steps, dtype=float)[kept], self.curve("reward")[kept]
        areas = (rewards[1:] + rewards[:-1]) / 2 * np.diff(steps)[:, None, None]
        return np.asarray(areas.sum(0) / steps[-1], dtype=np.float64)

    def reached(self) -> Floats:
        """Return the first recorded step with a reward of ``REACHED``, infinity for never, (rewards, seeds)."""
        there = self.curve("reward") >= REACHED
        return np.where(there.any(0), np.array(self.steps, dtype=float)[there.argmax(0)], math.inf)


def data_policy() -> Tensor:
    """Return the data policy's log-probabilities, (actions,): tanh of a Cauchy(-0.7, 0.4), in equal bins of [-1, 1], exactly."""
    edges = torch.atanh(torch.linspace(-1, 1, ACTIONS + 1, dtype=torch.float64))
    return (torch.atan((edges + 0.7) / 0.4) / math.pi).diff().log().float()


def data_pairs(rewards: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Return how often each action is the winner and the loser of a pair the data policy draws, each (runs, actions), sums 1."""
    chance = reference.exp()
    wins = chance * ((rewards[:, :, None] > rewards[:, None, :] + TIE) * chance).sum(-1)
    losses = chance * ((rewards[:, :, None] + TIE < rewards[:, None, :]) * chance).sum(-1)
    return wins / wins.sum(-1, keepdim=True), losses / losses.sum(-1, keepdim=True)


class Policies:
    """One small network a run, all runs in one stack; no run sees another.

    The last layer starts with weights 0 and the reference's log-probabilities as its bias: the policy is the reference exactly.
    """

    def __init__(self, generators: Sequence[torch.Generator], rewards: int, reference: Tensor, hidden: int) -> None:
        drawn = torch.stack([torch.rand(DIMENSIONS, hidden, generator=generator) for generator in generators])
        runs = rewards * len(generators)
        self.weights = [
            ((2 * drawn - 1) * DIMENSIONS**-0.5).repeat(rewards, 1, 1),
            torch.zeros(runs, 1, hidden),
            torch.zeros(runs, hidden, ACTIONS),
            reference.expand(runs, 1, ACTIONS).clone(),
        ]
        for weight in self.weights:
            weight.requires_grad_(True)

    def log_probs(self, contexts: Tensor) -> Tensor:
        """Return log-probabilities (runs, contexts, actions) for contexts (runs, contexts, dimensions)."""
        first, first_bias, last, last_bias = self.weights
        return torch.baddbmm(last_bias, torch.baddbmm(first_bias, contexts, first).relu(), last).log_softmax(-1)


@dataclass(frozen=True)
class Batch:
    """A round's samples, best first.

    Attributes:
        actions: (runs, contexts, samples).
        weight: (runs, contexts, pairs): 1 / (number of pairs the run keeps), 0 for a dropped pair. Pairs: all i < j.
        scores: rewards of winners and of losers, each (runs, contexts, pairs).
        frozen: reference log-probabilities of winners and of losers, likewise.
    """

    actions: Tensor
    weight: Tensor
    scores: tuple[Tensor, Tensor]
    frozen: tuple[Tensor, Tensor]


_FIRST, _SECOND = torch.triu_indices(SAMPLES, SAMPLES, 1)
WINNER = torch.eye(SAMPLES)[:, _FIRST]  # (samples, pairs): a product picks, and its gradient needs no scatter
LOSER = torch.eye(SAMPLES)[:, _SECOND]


def draw(log_probs: Tensor, uniform: Tensor, rewards: Tensor, reference: Tensor, gap: float) -> Batch:
    """Draw actions by inversion and make the pairs.

    Args:
        log_probs: of who draws, (runs, contexts, actions).
        uniform: random numbers in [0, 1), (runs, contexts, samples).
        rewards: (runs, actions).
        reference: log-probabilities, (actions,).
        gap: see ``Regime``.
    """
    actions = torch.searchsorted(log_probs.exp().cumsum(-1), uniform).clamp(max=ACTIONS - 1)
    values, order = rewards[:, None, :].expand_as(log_probs).gather(-1, actions).sort(dim=-1, descending=True, stable=True)
    actions = actions.gather(-1, order)
    better, worse = values @ WINNER, values @ LOSER
    kept = ((better - worse > TIE) & (better - worse >= gap)).float()
    weight = kept / kept.sum((1, 2), keepdim=True).clamp(min=1)
    frozen = reference[actions]
    return Batch(actions, weight, (better, worse), (frozen @ WINNER, frozen @ LOSER))


def usable(name: str) -> Method:
    """Return the method; raises InputError for one whose loss is not a function of one pair alone."""
    method = get_method(name)
    if method.batch_coupled or method.needs_kl or method.data == "listwise":
        raise InputError(
            f"method {name} reads more of a batch than one pair",
            "the bandit compares losses of single pairs",
            f"leave {name} out",
        )
    return method


def loss_of(arm: str, batch: Batch, log_probs: Tensor, step: int) -> Tensor:
    """Return the loss summed over runs, a scalar; a run's is the mean over its kept pairs (over contexts for best-of-N)."""
    sampled = log_probs.gather(-1, batch.actions)
    if arm == BEST_OF_N:
        return -sampled[..., 0].mean(-1).sum()
    winner = sampled @ WINNER
    if arm == PREF_FT:
        return -(winner * batch.weight).sum()
    method = usable(arm)
    collision = None
    if method.needs_collision:
        collision = (2 * log_probs.detach()).logsumexp(-1, keepdim=True).expand_as(winner).flatten()
    pairs = Pairs(
        winner.flatten(),
        (sampled @ LOSER).flatten(),
        batch.frozen[0].flatten() if method.needs_reference else None,
        batch.frozen[1].flatten() if method.needs_reference else None,
        torch.ones(winner.numel()),
        torch.ones(winner.numel()),
        chosen_score=batch.scores[0].flatten(),
        rejected_score=batch.scores[1].flatten(),
        chosen_collision=collision,
        rejected_collision=collision,
        seed=step,
    )
    losses: Tensor = method.loss(pairs, resolve(arm, HYPERPARAMETERS.get(arm)))
    return (losses * batch.weight.flatten()).sum()


def train(arm: str, regime: Regime, rewards: Sequence[Reward], seeds: Sequence[int], hidden: int = HIDDEN) -> History:
    """Train an arm on every reward and seed; a seed has the same contexts and random numbers in all arms."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    reference = data_policy()
    policies = Policies(generators, len(rewards), reference, hidden)

    def uniform(*shape: int) -> Tensor:
        return torch.stack([torch.rand(*shape, generator=generator) for generator in generators]).repeat(len(rewards), 1, 1)

    values = torch.stack([reward.values() for reward in rewards]).repeat_interleave(len(seeds), 0)
    held_out = torch.rand(HELD_OUT, DIMENSIONS, generator=torch.Generator().manual_seed(20240422)).expand(len(values), -1, -1)
    contexts = uniform(regime.contexts, DIMENSIONS)
    shares = data_pairs(values, reference)
    given = reference.expand(len(values), regime.contexts, ACTIONS)
    optimizer = torch.optim.Adam(policies.weights, lr=regime.rate, fused=True)
    total = regime.rounds * regime.steps
    wanted = {0, *np.geomspace(1, total, 60).round().astype(int).tolist()}
    history = History()
    for step in range(total + 1):
        if step % regime.steps == 0 and step < total:
            with torch.no_grad():
                drawing = policies.log_probs(contexts) if regime.on_policy else given
            batch = draw(drawing, uniform(regime.contexts, SAMPLES), values, reference, regime.gap)
        if step in wanted:
            history.steps.append(step)
            for name, found in measure(policies, contexts, held_out, batch, values, shares, reference).items():
                history.points.setdefault(name, []).append(found.reshape(len(rewards), len(seeds)).double().numpy())
        if step < total:
            optimizer.zero_grad()
            torch.autograd.backward(loss_of(arm, batch, policies.log_probs(contexts), step))
            optimizer.step()
    return history


@torch.no_grad()
def measure(
    policies: Policies,
    contexts: Tensor,
    held_out: Tensor,
    batch: Batch,
    rewards: Tensor,
    shares: tuple[Tensor, Tensor],
    reference: Tensor,
) -> dict[str, Tensor]:
    """Return every metric, (runs,): expectations over actions are exact, on held-out contexts.

    ``chosen_logratio`` and ``rejected_logratio`` are means over the batch's pairs, NaN for a run that keeps none;
    ``data_chosen_logratio`` and ``data_rejected_logratio`` are exact, over all pairs the data policy can draw.
    """
    log_probs = policies.log_probs(held_out)
    probs = log_probs.exp()
    ratio = log_probs.mean(1) - reference  # (runs, actions)
    sampled = policies.log_probs(contexts).gather(-1, batch.actions)
    empty = batch.weight.sum((1, 2)) == 0
    entropy = -(probs * log_probs).sum(-1).mean(-1)
    return {
        "reward": (probs.mean(1) * rewards).sum(-1),
        "kl_policy_ref": -entropy - probs.mean(1) @ reference,
        "kl_ref_policy": -ratio @ reference.exp(),
        "entropy": entropy,
        "chosen_logratio": ((sampled @ WINNER - batch.frozen[0]) * batch.weight).sum((1, 2)).masked_fill(empty, math.nan),
        "rejected_logratio": ((sampled @ LOSER - batch.frozen[1]) * batch.weight).sum((1, 2)).masked_fill(empty, math.nan),
        "data_chosen_logratio": (ratio * shares[0]).sum(-1),
        "data_rejected_logratio": (ratio * shares[1]).sum(-1),
    }
