"""On-policy data and negative gradients on a bandit: the findings of Tajwar et al. (2024) without a GPU, in a minute.

Usage: python benchmarks/bandit.py [--out results/bandit] [--methods dpo ipo simpo orpo] [--seeds 5] [--quick] [--json]

An answer is one of 100 actions, a prompt is 100 numbers, and the true reward is a function of the action that we know. Every
method of one pair at a time can be an arm; `pref_ft` (likelihood of the winner) and `best_of_n` (likelihood of the best sample)
have no negative gradient. Writes bandit.json (every curve), bandit.md, bandit.png and bandit.svg.

After arXiv 2404.14367 and its released scripts. Ours: one hidden layer of 64; the policy starts exactly at the data policy, which
is the reference; one learning rate for all arms; Pref-FT, on the pairs the losses see; and the regime `matched`, which differs
from `on_policy` in who draws the actions and in nothing else.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spo_bench.errors import InputError
from spo_bench.files import write_text
from spo_bench.methods import Method, Pairs, get_method, resolve
from spo_bench.stats.resample import bootstrap

DIMENSIONS, ACTIONS, HIDDEN, SAMPLES, HELD_OUT = 100, 100, 64, 10, 50
PREF_FT, BEST_OF_N = "pref_ft", "best_of_n"
CENTRES = {"misaligned": 70, "aligned": 20}  # the data policy has its mode at action 19
HYPERPARAMETERS = {"ipo": {"beta": 0.05, "reduction": "sum"}}  # a target margin 1 / (2 beta) of 10; the others: their defaults
REACHED = 0.8
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
    "rate_0.003": replace(ON_POLICY, rate=3e-3),
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

    def average(self) -> Floats:
        """Return the reward averaged over the training steps, (rewards, seeds): high for an arm that gets there early."""
        return np.trapezoid(self.curve("reward"), self.steps, axis=0) / self.steps[-1]

    def reached(self) -> Floats:
        """Return the first recorded step with a reward of ``REACHED``, infinity for never, (rewards, seeds)."""
        there = self.curve("reward") >= REACHED
        return np.where(there.any(0), np.array(self.steps, dtype=float)[there.argmax(0)], math.inf)


def data_policy() -> Tensor:
    """Return the data policy's log-probabilities, (actions,): tanh of a Cauchy(-0.7, 0.4), in equal bins of [-1, 1], exactly."""
    edges = torch.atanh(torch.linspace(-1, 1, ACTIONS + 1, dtype=torch.float64))
    return (torch.atan((edges + 0.7) / 0.4) / math.pi).diff().log().float()


class Policies:
    """One small network a run, all runs in one stack; no run sees another.

    The last layer starts with weights 0 and the reference's log-probabilities as its bias: the policy is the reference exactly.
    """

    def __init__(self, generators: Sequence[torch.Generator], rewards: int, reference: Tensor) -> None:
        drawn = torch.stack([torch.rand(DIMENSIONS, HIDDEN, generator=generator) for generator in generators])
        runs = rewards * len(generators)
        self.weights = [
            ((2 * drawn - 1) * DIMENSIONS**-0.5).repeat(rewards, 1, 1),
            torch.zeros(runs, 1, HIDDEN),
            torch.zeros(runs, HIDDEN, ACTIONS),
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
    kept = ((better - worse > 1e-6) & (better - worse >= gap)).float()
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
    return (method.loss(pairs, resolve(arm, HYPERPARAMETERS.get(arm))) * batch.weight.flatten()).sum()


def train(arm: str, regime: Regime, rewards: Sequence[Reward], seeds: Sequence[int]) -> History:
    """Train an arm on every reward and seed; a seed has the same contexts and random numbers in every arm and regime of its shape."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    reference = data_policy()
    policies = Policies(generators, len(rewards), reference)

    def uniform(*shape: int) -> Tensor:
        return torch.stack([torch.rand(*shape, generator=generator) for generator in generators]).repeat(len(rewards), 1, 1)

    values = torch.stack([reward.values() for reward in rewards]).repeat_interleave(len(seeds), 0)
    held_out = torch.rand(HELD_OUT, DIMENSIONS, generator=torch.Generator().manual_seed(20240422)).expand(len(values), -1, -1)
    contexts = uniform(regime.contexts, DIMENSIONS)
    given = reference.expand(len(values), regime.contexts, ACTIONS)
    optimizer = torch.optim.Adam(policies.weights, lr=regime.rate, fused=True)
    wanted = {0, *np.geomspace(1, regime.rounds * regime.steps, 80).round().astype(int).tolist()}
    history = History()
    for step in range(regime.rounds * regime.steps + 1):
        if step % regime.steps == 0 and step < regime.rounds * regime.steps:
            with torch.no_grad():
                drawing = policies.log_probs(contexts) if regime.on_policy else given
            batch = draw(drawing, uniform(regime.contexts, SAMPLES), values, reference, regime.gap)
        if step in wanted:
            history.steps.append(step)
            for name, found in measure(policies, contexts, held_out, batch, values, reference).items():
                history.points.setdefault(name, []).append(found.reshape(len(rewards), len(seeds)).double().numpy())
        if step < regime.rounds * regime.steps:
            optimizer.zero_grad()
            torch.autograd.backward(loss_of(arm, batch, policies.log_probs(contexts), step))
            optimizer.step()
    return history


@torch.no_grad()
def measure(
    policies: Policies, contexts: Tensor, held_out: Tensor, batch: Batch, rewards: Tensor, reference: Tensor
) -> dict[str, Tensor]:
    """Return every metric, (runs,): expectations over actions are exact, on held-out contexts.

    ``chosen_logratio`` and ``rejected_logratio`` are means over the batch's pairs, NaN for a run that keeps none;
    ``data_chosen_logratio`` and ``data_rejected_logratio`` are exact, over all pairs the data policy can draw.
    """
    log_probs = policies.log_probs(held_out)
    probs = log_probs.exp()
    ratio = log_probs.mean(1) - reference  # (runs, actions)
    data = reference.exp()
    wins = data * ((rewards[:, :, None] > rewards[:, None, :] + 1e-6) * data).sum(-1)  # drawn, and better than a second draw
    losses = data * ((rewards[:, :, None] + 1e-6 < rewards[:, None, :]) * data).sum(-1)
    sampled = policies.log_probs(contexts).gather(-1, batch.actions)
    empty = batch.weight.sum((1, 2)) == 0
    entropy = -(probs * log_probs).sum(-1).mean(-1)
    return {
        "reward": (probs.mean(1) * rewards).sum(-1),
        "kl_policy_ref": -entropy - probs.mean(1) @ reference,
        "kl_ref_policy": -ratio @ data,
        "entropy": entropy,
        "chosen_logratio": ((sampled @ WINNER - batch.frozen[0]) * batch.weight).sum((1, 2)).masked_fill(empty, math.nan),
        "rejected_logratio": ((sampled @ LOSER - batch.frozen[1]) * batch.weight).sum((1, 2)).masked_fill(empty, math.nan),
        "data_chosen_logratio": (ratio * wins).sum(-1) / wins.sum(-1),
        "data_rejected_logratio": (ratio * losses).sum(-1) / losses.sum(-1),
    }


# --- what came out ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """Every arm's history in every regime, and which rewards a regime was run on."""

    arms: Sequence[str]
    seeds: Sequence[int]
    histories: Mapping[tuple[str, str], History]
    rewards: Mapping[str, Sequence[Reward]]
    regimes: Mapping[str, Regime]

    def at(self, arm: str, regime: str, alignment: str = "misaligned", width: float = 10) -> tuple[History, int]:
        """Return the history and the place of that reward in it."""
        return self.histories[arm, regime], list(self.rewards[regime]).index(Reward(alignment, width))

    def final(self, arm: str, regime: str, alignment: str, metric: str = "reward", width: float = 10) -> Floats:
        """Return a metric at the end, (seeds,)."""
        history, place = self.at(arm, regime, alignment, width)
        return history.final(metric)[place]

    def average(self, arm: str, regime: str, alignment: str) -> Floats:
        """Return the reward averaged over training, (seeds,)."""
        history, place = self.at(arm, regime, alignment)
        return history.average()[place]

    def reached(self, arm: str, regime: str, alignment: str = "misaligned") -> float:
        """Return the median over seeds of the steps to a reward of ``REACHED``; infinity where half of the seeds never get there."""
        history, place = self.at(arm, regime, alignment)
        return float(np.quantile(history.reached()[place], 0.5, method="higher"))

    def gap(self, arm: str, alignment: str) -> Floats:
        """Return what drawing on-policy adds to the reward averaged over training, all else the same, (seeds,)."""
        return self.average(arm, "on_policy", alignment) - self.average(arm, "matched", alignment)


def level(values: Floats) -> tuple[float, float, float] | None:
    """Return (mean, low, high), 95 % over seeds; None where a seed has no value."""
    if not np.isfinite(values).all():
        return None
    mean, low, high = bootstrap(np.asarray(values, dtype=np.float64), np.ones(len(values)), 0.95)
    return mean, low, high


def findings(out: Outcome) -> list[dict[str, Any]]:
    """Return the published findings with what was measured: a measurement agrees if its interval lies on the claimed side of 0."""
    methods = [arm for arm in out.arms if arm not in (PREF_FT, BEST_OF_N)]
    both = [(arm, alignment) for arm in methods for alignment in CENTRES]

    def end(arm: str, alignment: str, side: str) -> Floats:
        return out.final(arm, "offline", alignment, f"{side}_logratio")

    claims: list[tuple[str, str, int, dict[str, Floats]]] = [
        (
            "misaligned: on-policy data beat offline data (final reward, on_policy - offline)",
            "all",
            1,
            {arm: out.final(arm, "on_policy", "misaligned") - out.final(arm, "offline", "misaligned") for arm in out.arms},
        ),
        (
            "misaligned: so they do with as many samples and steps (reward averaged over training, on_policy - matched)",
            "all",
            1,
            {arm: out.gap(arm, "misaligned") for arm in out.arms},
        ),
        *(
            (
                f"misaligned, {regime}: a negative gradient beats {rival} (reward averaged over training)",
                "all",
                1,
                {arm: out.average(arm, regime, "misaligned") - out.average(rival, regime, "misaligned") for arm in methods},
            )
            for regime in ("on_policy", "matched")
            for rival in (PREF_FT, BEST_OF_N)
        ),
        (
            "aligned: on-policy data matter less (what they add, misaligned - aligned)",
            "all",
            1,
            {arm: out.gap(arm, "misaligned") - out.gap(arm, "aligned") for arm in out.arms},
        ),
        (
            "offline: a negative gradient lowers the losers (u_l, training pairs)",
            "all",
            -1,
            {f"{arm} {alignment}": end(arm, alignment, "rejected") for arm, alignment in both},
        ),
        (
            "offline: it may lower the winners too (u_w, training pairs)",
            "any",
            -1,
            {f"{arm} {alignment}": end(arm, alignment, "chosen") for arm, alignment in both},
        ),
        *(
            (
                f"offline: Pref-FT raises the {who} ({symbol}, training pairs)",
                "all",
                1,
                {f"{PREF_FT} {alignment}": end(PREF_FT, alignment, side) for alignment in CENTRES},
            )
            for who, symbol, side in (("winners", "u_w", "chosen"), ("losers", "u_l", "rejected"))
        ),
    ]
    found = []
    for claim, rule, sign, measured in claims:
        levels = {name: level(values) for name, values in measured.items()}
        agree = [name for name, one in levels.items() if one and (one[1] > 0 if sign > 0 else one[2] < 0)]
        complete = len(agree) == len(levels) or (rule == "any" and agree)
        verdict = "reproduced" if complete else "partly" if agree else "not reproduced"
        found.append({"claim": claim, "verdict": verdict, "agree": len(agree), "of": len(levels), "measured": levels})
    return found


def run(
    arms: Sequence[str], seeds: Sequence[int], widths: Sequence[float], regimes: Mapping[str, Regime], also: Mapping[str, Regime]
) -> Outcome:
    """Train every arm in every regime; those of ``also`` on the narrowest reward only."""
    wide = [Reward(alignment, width) for alignment in CENTRES for width in widths]
    narrow = [Reward(alignment, min(widths)) for alignment in CENTRES]
    rewards = {**dict.fromkeys(regimes, wide), **dict.fromkeys(also, narrow)}
    every = {**regimes, **also}
    histories = {(arm, name): train(arm, regime, rewards[name], seeds) for arm in arms for name, regime in every.items()}
    return Outcome(arms, seeds, histories, rewards, every)


def as_json(out: Outcome) -> dict[str, Any]:
    """Return everything measured: per arm, regime and reward the curves of each seed (null where there is no value)."""

    def plain(values: Floats) -> list[Any]:
        return [[float(f"{v:.5g}") if math.isfinite(v) else None for v in point] for point in values]

    lines = []
    for (arm, name), history in out.histories.items():
        for place, reward in enumerate(out.rewards[name]):
            curves = {metric: plain(history.curve(metric)[:, place]) for metric in history.points}
            ends = {metric: level(history.final(metric)[place]) for metric in history.points}
            steps = [float(step) if math.isfinite(step) else None for step in history.reached()[place]]
            lines.append(
                {"arm": arm, "regime": name, **asdict(reward), "final": ends, "average_reward": level(history.average()[place])}
                | {f"steps_to_{REACHED}": steps, "steps": history.steps, "curves": curves}
            )
    return {
        "seeds": list(out.seeds),
        "hyperparameters": {arm: resolve(arm, HYPERPARAMETERS.get(arm)) for arm in out.arms if arm not in (PREF_FT, BEST_OF_N)},
        "regimes": {name: asdict(regime) for name, regime in out.regimes.items()},
        "findings": findings(out),
        "lines": lines,
    }


def _cell(one: tuple[float, float, float] | None) -> str:
    return "–" if one is None else "{:.2f} [{:.2f}, {:.2f}]".format(*one).replace("-", "−")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows]) + "\n"


def as_markdown(out: Outcome, heading: str) -> str:
    """Return the tables: reward, speed, where the mass went, reuse and learning rate, widths, findings."""
    main = [name for name in MAIN if name in out.regimes]
    pairs = [(alignment, name) for alignment in CENTRES for name in main]

    def steps(arm: str, name: str, alignment: str = "misaligned") -> str:
        value = out.reached(arm, name, alignment)
        return f"{value:.0f}" if math.isfinite(value) else "–"

    def mean(arm: str, name: str, metric: str) -> str:
        value = float(out.final(arm, name, "misaligned", metric).mean())
        return f"{value:.1f}".replace("-", "−") if math.isfinite(value) else "–"

    parts = [heading, "Reward at the end, mean over seeds and 95 % interval (width 10):\n"]
    rows = [[arm, *(_cell(level(out.final(arm, name, alignment))) for alignment, name in pairs)] for arm in out.arms]
    parts.append(_table(["arm", *(f"{alignment}, {name}" for alignment, name in pairs)], rows))
    parts.append(f"Steps to a reward of {REACHED} (median over seeds, – if half never reach it), width 10:\n")
    rows = [[arm, *(steps(arm, name, alignment) for alignment, name in pairs)] for arm in out.arms]
    parts.append(_table(["arm", *(f"{alignment}, {name}" for alignment, name in pairs)], rows))
    parts.append(
        "Where the probability went at the end, misaligned, width 10, nats (– : no pair is left, all samples are one action):\n"
    )
    metrics = {
        "kl_policy_ref": "KL(π‖ref)",
        "kl_ref_policy": "KL(ref‖π)",
        "entropy": "entropy",
        "chosen_logratio": "u_w",
        "rejected_logratio": "u_l",
        "data_chosen_logratio": "u_w, data",
        "data_rejected_logratio": "u_l, data",
    }
    rows = [[f"{arm}, {name}", *(mean(arm, name, metric) for metric in metrics)] for name in main for arm in out.arms]
    parts.append(_table(["arm, regime", *metrics.values()], rows))
    also = ["on_policy", *(name for name in out.regimes if name not in MAIN)]
    if len(also) > 1:
        parts.append("On-policy with other reuse or learning rate, misaligned, width 10: reward at the end (rounds to 0.8):\n")
        rows = []
        for arm in out.arms:
            cells = []
            for name in also:
                rounds = math.ceil(value / out.regimes[name].steps) if math.isfinite(value := out.reached(arm, name)) else "–"
                cells.append(f"{_cell(level(out.final(arm, name, 'misaligned')))} ({rounds})")
            rows.append([arm, *cells])
        shown = [f"reuse {out.regimes[name].steps}, rate {out.regimes[name].rate:g}" for name in also]
        parts.append(_table(["arm", *shown], rows))
    widths = sorted({reward.width for reward in out.rewards["on_policy"]})
    if len(widths) > 1:
        parts.append("Reward at the end by width, misaligned:\n")
        rows = [
            [arm, *(f"{out.final(arm, name, 'misaligned', width=width).mean():.2f}" for name in main for width in widths)]
            for arm in out.arms
        ]
        parts.append(_table(["arm", *(f"{name}, {width:g}" for name in main for width in widths)], rows))
    parts.append(
        "Published findings (agree: the 95 % interval over seeds lies on the claimed side of 0; not corrected for their number):\n"
    )
    rows = [
        [one["claim"], one["verdict"], f"{one['agree']} of {one['of']}"]
        + ["; ".join(f"{name} {_cell(value)}" for name, value in one["measured"].items())]
        for one in findings(out)
    ]
    parts.append(_table(["finding", "verdict", "agree", "measured"], rows))
    return "\n".join(parts)


def figure(out: Outcome) -> tuple[bytes, bytes]:
    """Draw the outcome, 2 x 2, and return it as (png, svg)."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from spo_bench.report.figures import COLOURS, LINES, MARKERS, STYLE

    looks = {arm: (COLOURS[i % 6], LINES[(i + 1) % 6], MARKERS[i % 6]) for i, arm in enumerate(out.arms)}
    with mpl.rc_context(STYLE):
        drawing = Figure(figsize=(7.4, 5.9), layout="constrained")
        (first, second), (third, fourth) = drawing.subplots(2, 2)
        for panel, name, title in ((first, "matched", "Data policy draws"), (second, "on_policy", "Policy draws")):
            ends = []
            for arm, (colour, line, _) in looks.items():
                history, place = out.at(arm, name)
                points = np.array(
                    [bootstrap(values, np.ones(len(values)), 0.95) for values in history.curve("reward")[1:, place]]
                )
                panel.plot(history.steps[1:], points[:, 0], color=colour, linestyle=line, linewidth=1.6, label=arm)
                panel.fill_between(history.steps[1:], points[:, 1], points[:, 2], color=colour, alpha=0.1, linewidth=0)
                ends.append((points[-1, 0], arm, colour))
            panel.set(
                xscale="log", ylim=(0, 1.03), xlim=(1, history.steps[-1]), xlabel="Step", title=f"{title}, misaligned reward"
            )
            panel.grid(axis="y")
            if name == "matched":
                for height, (_, arm, colour) in zip(_spread([end[0] for end in sorted(ends)], 0.085), sorted(ends)):
                    panel.text(1.02, height, arm, color=colour, transform=panel.get_yaxis_transform(), va="center", fontsize=8.5)
        first.set_ylabel("True reward")
        second.legend(loc="lower right", fontsize=8, handlelength=2.6)
        rows = np.arange(len(out.arms))
        for alignment, mark, shift, fill in (("misaligned", "s", -0.13, True), ("aligned", "o", 0.13, False)):
            points = np.array([level(out.gap(arm, alignment)) for arm in out.arms])
            colour = COLOURS[1] if fill else COLOURS[0]
            third.errorbar(
                points[:, 0],
                rows + shift,
                xerr=np.stack([points[:, 0] - points[:, 1], points[:, 2] - points[:, 0]]),
                linestyle="none",
                marker=mark,
                color=colour,
                markerfacecolor=colour if fill else "white",
                markersize=5.5,
                capsize=2.5,
                elinewidth=1.3,
                label=alignment,
            )
        third.axvline(0, color="#20242a", linewidth=0.9)
        third.set(xlabel="Δ reward averaged over training", title="What on-policy data add")
        third.legend(loc="lower right", fontsize=8)
        fourth.axvline(0, color="#20242a", linewidth=0.9)
        for place, arm in enumerate(out.arms):
            chosen, rejected = (
                float(out.final(arm, "offline", "misaligned", f"{side}_logratio").mean()) for side in ("chosen", "rejected")
            )
            fourth.plot([chosen, rejected], [place, place], color=COLOURS[0], linewidth=1.2, zorder=1)
            fourth.plot(chosen, place, "^", color=COLOURS[2], markersize=6.5, label="winners" if not place else None)
            fourth.plot(
                rejected,
                place,
                "v",
                color=COLOURS[2],
                markerfacecolor="white",
                markersize=6.5,
                label="losers" if not place else None,
            )
        fourth.set_xscale("symlog", linthresh=10)
        fourth.set(xlabel="Log-ratio to the reference, nats", title="Offline: training pairs")
        fourth.legend(loc="lower left", fontsize=8)
        for panel in (third, fourth):
            panel.set_yticks(rows, list(out.arms))
            panel.set_ylim(len(out.arms) - 0.4, -0.6)
            panel.tick_params(axis="y", length=0)
            panel.grid(axis="x")
        png, svg = io.BytesIO(), io.BytesIO()
        drawing.savefig(png, format="png", dpi=150, metadata={"Software": None})
        drawing.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return png.getvalue(), svg.getvalue()


def _spread(heights: Sequence[float], least: float) -> list[float]:
    """Return rising heights moved apart to at least that distance, each near its own place."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + least) if placed else max(height, 0.02))
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], 1.0 if i == len(placed) - 1 else placed[i + 1] - least)
    return placed


def main() -> None:
    """Run, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/bandit"), help="directory of the four files")
    parser.add_argument("--methods", nargs="+", help="methods besides pref_ft and best_of_n (default: dpo ipo simpo orpo)")
    parser.add_argument("--seeds", type=int, help="seeds 0, 1, ... (default: 5)")
    parser.add_argument("--quick", action="store_true", help="dpo and ipo, 3 seeds, one width, 30 rounds instead of 100")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON instead of tables")
    wanted = parser.parse_args()
    methods = list(dict.fromkeys(wanted.methods or (["dpo", "ipo"] if wanted.quick else ["dpo", "ipo", "simpo", "orpo"])))
    seeds = range(wanted.seeds if wanted.seeds is not None else 3 if wanted.quick else 5)
    try:
        if len(seeds) < 2:
            raise InputError(f"--seeds {wanted.seeds}", "an interval over seeds needs at least 2", "give 2 or more")
        for name in methods:
            usable(name)
    except InputError as error:
        parser.error(str(error))
    torch.set_num_threads(1)
    started = time.perf_counter()
    if wanted.quick:
        regimes = {name: replace(regime, rounds=min(regime.rounds, 30)) for name, regime in MAIN.items()}
        out = run([*methods, PREF_FT, BEST_OF_N], seeds, [10], regimes, {})
    else:
        out = run([*methods, PREF_FT, BEST_OF_N], seeds, [10, 20, 30], MAIN, ALSO)
    seconds = time.perf_counter() - started
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    heading = (
        f"# Bandit\n\n{len(seeds)} seeds, Python {versions['python']}, torch {versions['torch']}, {seconds:.0f} s on one core.\n"
    )
    result = {"versions": versions, "seconds": seconds, **as_json(out)}
    text = as_markdown(out, heading)
    wanted.out.mkdir(parents=True, exist_ok=True)
    write_text(wanted.out / "bandit.json", json.dumps(result, allow_nan=False) + "\n")
    write_text(wanted.out / "bandit.md", text)
    png, svg = figure(out)
    (wanted.out / "bandit.png").write_bytes(png)
    (wanted.out / "bandit.svg").write_bytes(svg)
    if wanted.json:
        print(json.dumps({key: value for key, value in result.items() if key != "lines"}, indent=1))
    else:
        print(text)


if __name__ == "__main__":
    main()
