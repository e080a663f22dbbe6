"""The training loop: one for every method, with or without SPO."""

from __future__ import annotations

import ctypes
import gc
import math
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spo_bench.errors import StageError
from spo_bench.methods import get_addition
from spo_bench.ranks import Ranks, whole
from spo_bench.spo.head import add_bins, bin_counts
from spo_bench.store.checkpoints import Saved
from spo_bench.training.examples import Example, MicroBatch, micro_batches, step_rows, stream_seed
from spo_bench.training.moving import MovingReference
from spo_bench.training.objective import Objective, Running
from spo_bench.training.state import numbers, restored, state_of
from spo_bench.training.trie import Ints

# What policy and reference may differ by at step 0, in nats per token: (mean, largest). Different packs of the same tokens
# round differently (SmolLM2-135M in bfloat16: .027 and .18 measured); a wrong reference, template, adapter or dropout is off
# by far more.
START_TOLERANCE = {"float32": (2e-4, 5e-3), "bfloat16": (6e-2, 1.0)}
MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW


@dataclass(frozen=True)
class TrainSettings:
    """What the loop needs to know; names and meanings are those of the spec's ``train``."""

    batch_size: int
    steps: int
    learning_rate: float
    schedule: str
    warmup: float
    weight_decay: float
    clip: float
    micro_tokens: int
    packing: str
    max_length: int
    seed: int

    @classmethod
    def for_rows(cls, config: Mapping[str, Any], rows: int) -> TrainSettings:
        """Return the settings of a spec (with ``epochs`` and ``max_steps``) for a number of rows.

        ``max_steps`` overrides ``epochs``; it is at least one step either way.
        """
        rest = {key: value for key, value in config.items() if key not in ("epochs", "max_steps")}
        per_epoch = max(1, rows // config["batch_size"])
        return cls(**rest, steps=config["max_steps"] or max(1, round(config["epochs"] * per_epoch)))


def learning_rate_at(settings: TrainSettings, step: int) -> float:
    """Return the learning rate of a step: linear warm-up over the first share of steps, then cosine, linear or constant."""
    warm = round(settings.warmup * settings.steps)
    if step < warm:
        return settings.learning_rate * (step + 1) / (warm + 1)
    done = (step - warm) / max(1, settings.steps - warm)
    factor = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[settings.schedule]
    return settings.learning_rate * factor


def descend(optimizer: torch.optim.Optimizer, weights: Sequence[torch.nn.Parameter], rate: float, clip: float) -> Tensor:
    """Take one step at a learning rate with the gradient clipped to a norm; return the norm before clipping."""
    norm = whole(torch.nn.utils.clip_grad_norm_(weights, clip))
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def adamw(weights: Sequence[torch.nn.Parameter], weight_decay: float = 0.0) -> torch.optim.Optimizer:
    """Return AdamW with its moments made, so that they never lie between activations: memory in pieces is memory lost."""
    optimizer = torch.optim.AdamW(weights, weight_decay=weight_decay, fused=True)
    moments = [{"step": torch.zeros(()), **{name: torch.zeros_like(weight) for name in MOMENTS}} for weight in weights]
    optimizer.load_state_dict({**optimizer.state_dict(), "state": dict(enumerate(moments))})
    return optimizer


@dataclass
class Progress:
    """What a training carries from step to step, besides the weights.

    Attributes:
        policy, head: the optimizers; ``head`` is None without SPO.
        moving: the reference that follows the policy, where there is one.
        step: number of steps taken.
        running: the method's running statistics.
    """

    policy: torch.optim.Optimizer
    head: torch.optim.Optimizer | None
    moving: MovingReference | None
    step: int = 0
    running: Running = None

    def state(self, objective: Objective, reference: MovingReference | None = None) -> dict[str, Tensor]:
        """Return everything a training changes, by name: what to keep, and where to restore it to.

        Args:
            objective: what is minimised.
            reference: a further set of weights, of whoever trains in rounds.
        """
        found = state_of({"policy": objective.model, "head": objective.head}, {"policy": self.policy, "head": self.head})
        for label, one in (("moving", self.moving), ("reference", reference)):
            found |= {f"{label}/{place}": value for place, value in enumerate(one.values)} if one is not None else {}
        return found | numbers(self.running, "running")

    def values(self) -> dict[str, Any]:
        """Return the part of that which is no tensor."""
        return {"step": self.step, "moved": self.moving is not None and self.moving.moved}

    def restore(self, objective: Objective, saved: Saved, reference: MovingReference | None = None) -> None:
        """Go on where a checkpoint was kept; this progress has not taken a step."""
        rest = saved.restore(self.state(objective, reference))
        self.step = saved.values["step"]
        self.running = restored(rest, "running", objective.numerics.device)
        if self.moving is not None:
            self.moving.moved = saved.values["moved"]


def begin(objective: Objective, settings: TrainSettings) -> Progress:
    """Return the progress of a training that has not taken a step."""
    weights = trained(objective.model)
    # The head starts from random weights, so it has a rate of its own; and it is clipped apart, so that its gradient never
    # scales the policy's step: with the trunk detached, the policy is the baseline's to the bit.
    head = list(objective.head.parameters()) if objective.head else []
    return Progress(
        policy=adamw(weights, settings.weight_decay),
        head=adamw(head) if head else None,
        moving=MovingReference(weights, **objective.additions["ref_sync"]) if "ref_sync" in objective.additions else None,
    )


def trained(model: Any) -> list[torch.nn.Parameter]:
    """Return the weights that are trained."""
    return [weight for weight in model.parameters() if weight.requires_grad]


def fit(
    objective: Objective,
    examples: Sequence[Example],
    settings: TrainSettings,
    log: Callable[[dict[str, Any]], None],
    plan: Sequence[Ints] | None = None,
    progress: Progress | None = None,
    between: Callable[[int], None] = lambda place: None,
    begin_at: int = 0,
) -> Progress:
    """Train a policy (and the degree head, if there is one) in place; ``log`` gets one row a step.

    Rows, their order, and every random stream depend on the data and the seed alone, so a baseline and its SPO twin see the
    same.

    Args:
        objective: what is minimised, over which model.
        examples: the rows.
        settings: of the loop.
        log: takes the row of ``train.jsonl``.
        plan: the rows of every step; None: as the settings say.
        progress: of a training that goes on with these rows; None: it begins.
        between: called after every step with the number of steps of the plan that are done.
        begin_at: how many steps of the plan were done before.

    Raises:
        StageError: policy and reference disagree at step 0, the first loss is not what it must be, or a number is not finite.
    """
    model, head, method, ranks = objective.model, objective.head, objective.method, objective.ranks
    device, weights = torch.device(objective.numerics.device), trained(model)
    progress = begin(objective, settings) if progress is None else progress
    share, partner = settings.packing == "trie", settings.max_length if method.needs_kl else None

    plan = plan or step_rows(len(examples), settings.batch_size, settings.steps, settings.seed)
    for place, rows in enumerate(plan[begin_at:], begin_at):
        started, step = time.perf_counter(), progress.step
        batches = [batch.to(device) for batch in micro_batches(examples, rows, settings.micro_tokens, share, partner, ranks)]
        frozen = [_reference(objective, progress.moving, batch, rows, place) for batch in batches]
        if step == 0:
            check_start(objective, batches, frozen, rows)
        model.train()
        copies = sum(len(examples[i].copies) for i in rows)
        dropout = stream_seed(settings.seed, "dropout", step)
        upstream = None
        if method.batch_coupled and (len(batches) > 1 or ranks.count > 1):
            gradient, whole, progress.running = objective.whole_step_gradient(
                batches, frozen, rows, step, dropout, progress.running
            )
            upstream = gradient, whole
        torch.manual_seed(dropout)
        logged, told = Sums(), list[tuple[Tensor, Tensor]]()
        for batch, old in zip(batches, frozen, strict=True):
            sums, _, layer, collisions = objective.forward(batch)
            if batch.idle:
                (0 * sums.sum()).backward()
                continue
            lists, part = objective.lists(batch, sums, old, collisions, rows[batch.places], step), len(batch.places) / len(rows)
            if upstream is not None:
                loss, value = (sums * upstream[0][batch.places]).sum(), upstream[1] * part
            else:
                losses, progress.running = objective.losses(lists, progress.running)
                loss = value = losses.mean() * part
            logged.add(objective.logged(lists, value, part))
            if head is not None and copies:
                degree, degree_parts, copies_told = objective.degree(layer, batch, step, copies)
                loss = loss + degree
                logged.add({**degree_parts, "weighted_degree_loss": degree.detach()})
                told.append(copies_told)
            loss.backward()
        grad_norm = descend(progress.policy, weights, learning_rate_at(settings, step), settings.clip)
        if progress.head is not None and head is not None and objective.spo is not None:
            ranks.add_gradients(head.parameters())
            head_rate = learning_rate_at(replace(settings, learning_rate=objective.spo.head_learning_rate), step)
            descend(progress.head, list(head.parameters()), head_rate, settings.clip)
        progress.step += 1
        if progress.moving is not None:
            progress.moving.follow(progress.step)

        row: dict[str, Any] = {"step": step, "loss": 0.0, **_summed(ranks, logged.values(grad_norm=grad_norm))}
        row["loss"] = row["alignment_loss"] + row.pop("weighted_degree_loss", 0.0)
        if not all(math.isfinite(value) for value in row.values()):
            ids = ", ".join(examples[i].id for i in rows[:8])
            wrong = ", ".join(f"{key} {value}" for key, value in row.items() if not math.isfinite(value))
            raise StageError(f"{wrong} at step {step}; rows {ids}{', …' if len(rows) > 8 else ''}")
        row |= {
            "learning_rate": learning_rate_at(settings, step),
            "tokens": sum(ranks.gather(sum(len(batch.pack.tokens) for batch in batches if not batch.idle))),
            "pairs": len(rows),
        }
        if head is not None:
            row["degree_accuracy_bins"] = _told(ranks, told)
        row["seconds"], row["peak_memory"] = time.perf_counter() - started, max(ranks.gather(peak_memory(device)))
        log(row)
        between(place + 1)
    model.eval()
    return progress


def _summed(ranks: Ranks, logged: Mapping[str, float]) -> dict[str, float]:
    """Return the numbers of a step from every rank's part of them; the norm of the gradient is that of all ranks already.

    Raises:
        StageError: ranks that found another gradient.
    """
    norms = ranks.gather(logged["grad_norm"])
    if len(set(map(str, norms))) > 1:
        raise StageError(f"the ranks disagree about the gradient: its norm is {', '.join(map(str, norms))}")
    return {**ranks.total(logged), "grad_norm": norms[0]}


def _told(ranks: Ranks, told: Sequence[tuple[Tensor, Tensor]]) -> dict[str, list[int]]:
    """Return how many copies of each length were told right, and how many there were, of all ranks."""
    found: dict[str, list[int]] = {}
    for one in ranks.gather(bin_counts(*map(torch.cat, zip(*told, strict=True))) if told else {}):
        add_bins(found, one)
    return found


def _reference(objective: Objective, moving: MovingReference | None, batch: MicroBatch, rows: Ints, place: int) -> Tensor:
    """Return the reference's sums of a micro-batch, (rows, scored a row): stored, or run anew where the reference moved."""
    if moving is None or not moving.moved:
        return objective.stored(rows[batch.places], place, batch.places)
    with torch.no_grad(), moving.in_place(objective.model):
        return objective.forward(batch)[0]


def check_start(objective: Objective, batches: Sequence[MicroBatch], stored: Sequence[Tensor], rows: Ints) -> None:
    """Assert, before the first step, that the policy is the reference and the loss has its analytic value.

    Raises:
        StageError: with the largest difference, or both losses.
    """
    objective.model.eval()
    gaps = []
    with torch.no_grad():
        outputs = []
        for batch in batches:
            of_batch, values, _, collided = objective.forward(batch)
            outputs.append((of_batch, collided))
            if batch.idle:
                continue
            frozen = [objective.reference.tokens[row] for row in rows[batch.places]]
            own = torch.split(values, batch.pack.scored_lengths.tolist())
            for place, sequences in enumerate(frozen):
                for side, sequence in enumerate(sequences):
                    gaps.append(np.abs(own[place * batch.scored_per_row + side].cpu().numpy() - sequence))
        sums, kept, collisions = objective.whole_step(batches, outputs, stored)
        kept = kept.to(sums)

    def value(of: Tensor) -> Tensor:
        lists = objective.lists(batches[0], of, kept, collisions, rows, 0)
        return objective.losses(lists, None)[0].mean()

    gap = np.concatenate(objective.ranks.gather(np.concatenate(gaps)))
    mean, largest = START_TOLERANCE[objective.numerics.dtype]
    if not (gap.mean() <= mean and gap.max() <= largest):
        raise StageError(
            f"policy and reference disagree at step 0: per-token log-probabilities differ by {gap.mean():.3g} on average and "
            f"{gap.max():.3g} at most (allowed {mean:g} and {largest:g} nats)"
        )
    method, leaf = objective.method, sums.detach().requires_grad_()
    first, expected = value(leaf), float(value(kept))
    (slope,) = torch.autograd.grad(first, leaf)
    # What the rounding errors of the sums, just measured, can do to the loss, and a little more for what is no longer linear.
    rounding = 2 * float((slope * (leaf.detach() - kept)).abs().sum()) + (1e-3 if objective.numerics.dtype == "float32" else 2e-1)
    checks = []
    if method.at_start is not None and batches[0].answers == 2 and not any(get_addition(n).term for n in objective.additions):
        checks.append((expected, method.at_start(objective.hyper), 1e-4))
    if method.running is None or objective.numerics.dtype == "float32":  # z-scores of bf16's rounding errors are no slope
        checks.append((float(first.detach()), expected, rounding))
    for found, wanted, tolerance in checks:
        if not abs(found - wanted) <= tolerance * max(1.0, abs(wanted)):
            raise StageError(
                f"the loss of {method.name} at step 0 is {found:.6g}; where policy and reference agree it is {wanted:.6g}"
            )


class Sums:
    """Named sums that stay on the device until they are read once a step."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, parts: Mapping[str, Tensor]) -> None:
        """Add each part to the sum of its name."""
        for name, value in parts.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def values(self, **more: Tensor) -> dict[str, float]:
        """Return the sums, and more numbers, read from the device at once."""
        every = self._sums | more
        return dict(zip(every, torch.stack([value.detach().double() for value in every.values()]).tolist(), strict=True))


def reset_peak_memory(device: torch.device) -> None:
    """Forget the peak so far, so that the next one is this training's own and not that of a larger stage before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except (OSError, AttributeError):  # not Linux: the peak stays that of the process
        return


def peak_memory(device: torch.device) -> int:
    """Return the most memory held since the last reset, bytes: by tensors on a GPU, by this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
