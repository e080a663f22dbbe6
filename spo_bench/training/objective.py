"""What a training step minimises: L = L_method + L_additions + gamma * L_degree, as one term a micro-batch.

L_method is a mean over the step's rows, L_degree a mean over its copies. Each micro-batch contributes its sum over the whole
step's count, so how a step is cut into micro-batches changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spo_bench.errors import StageError
from spo_bench.methods import get_addition
from spo_bench.methods.base import Lists, Method
from spo_bench.methods.lists import pair_of, row_losses
from spo_bench.models.numerics import Numerics
from spo_bench.ranks import ALONE, Ranks
from spo_bench.spo.head import DegreeHead, degree_loss
from spo_bench.spo.settings import SpoSettings, gamma_at
from spo_bench.training.blocks import moved
from spo_bench.training.examples import MicroBatch, stream_seed
from spo_bench.training.forward import Statistics, pool, response_sums
from spo_bench.training.trie import Ints

Running = Mapping[str, Tensor] | None


@dataclass(frozen=True)
class Reference:
    """Frozen log-probabilities of the training completions, fp32, nats.

    Attributes:
        tokens: per row the per-token values of its scored responses (``Example.scored``), each of shape (length,).
        sums: their sums, shape (rows, scored).
        lengths: their token counts, shape (rows, scored).
        scores: the data's quality of the answers, shape (rows, answers); None where only their order is known.
        mismatched: sums for every step's prompts with the next row's chosen and rejected, shape (steps, batch, 2); only for
            methods that need a KL.
    """

    tokens: Sequence[Sequence[np.ndarray[Any, Any]]]
    sums: Tensor
    lengths: Tensor
    scores: Tensor | None = None
    mismatched: Tensor | None = None


@dataclass(frozen=True)
class Objective:
    """The loss of a method with its additions, with or without SPO, over one model.

    Attributes:
        model, head: the policy, and SPO's head.
        method, hyper: the method and its hyperparameters.
        spo: SPO's settings, None without it.
        reference: of the rows.
        numerics: device and type.
        additions: name -> settings.
        seed: of the draws a loss makes.
        ranks: the processes that share every step.
        sharded: ``model`` in the module that makes its weights whole, where ranks hold parts of them.
    """

    model: Any
    head: DegreeHead | None
    method: Method
    hyper: Mapping[str, Any]
    spo: SpoSettings | None
    reference: Reference
    numerics: Numerics
    additions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seed: int = 0
    ranks: Ranks = ALONE
    sharded: Statistics | None = None

    def forward(self, batch: MicroBatch) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return (sums (rows, scored a row), per-token log-probabilities (tokens,), hidden states SPO reads (nodes, hidden),
        sums of the collisions (rows, scored a row) where the method reads them).
        """
        with self.numerics.autocast():
            statistics = self.sharded or Statistics(self.model)
            values, collisions, layer = statistics(batch.pack, self.spo.layer if self.spo else -1, self.method.needs_collision)
        sums, *more = (
            response_sums(each, batch.pack).view(-1, batch.scored_per_row) for each in (values, collisions) if each is not None
        )
        return sums, values, layer, more[0] if more else None

    def stored(self, rows: Ints, step: int, places: Ints) -> Tensor:
        """Return the reference's sums of those rows at those places of the step, in the columns of ``forward``'s."""
        frozen = self.reference.sums[torch.from_numpy(rows)]
        if self.method.needs_kl:
            if self.reference.mismatched is None:
                raise StageError(f"method {self.method.name} needs the reference of mismatched pairs")
            frozen = torch.cat([frozen, self.reference.mismatched[step][torch.from_numpy(places)]], 1)
        return moved(frozen, torch.device(self.numerics.device))

    def lists(self, batch: MicroBatch, sums: Tensor, frozen: Tensor, collisions: Tensor | None, rows: Ints, step: int) -> Lists:
        """Put what the policy says of rows (n,) beside what the reference says; all but ``rows`` have ``sums``' columns."""
        n, index = batch.answers, torch.from_numpy(rows)
        scored = self.reference.sums.shape[1]
        ratios = sums - frozen.to(sums)
        return Lists(
            policy=sums[:, :n],
            reference=frozen[:, :n].to(sums),
            lengths=moved(self.reference.lengths[index, :n], sums.device).to(sums),
            scores=None if self.reference.scores is None else moved(self.reference.scores[index], sums.device).to(sums),
            collisions=None if collisions is None else collisions[:, :n],
            explored=ratios[:, n] if scored > n else None,
            kl=ratios[:, scored:].detach().flatten() if self.method.needs_kl else None,
            seed=stream_seed(self.seed, "loss", step),
        )

    def losses(self, lists: Lists, running: Running) -> tuple[Tensor, Running]:
        """Return every row's loss, (rows,), and the method's running statistics with these rows counted."""
        losses, running = row_losses(self.method, lists, self.hyper, running)
        for name, settings in self.additions.items():
            term = get_addition(name).term
            losses = losses if term is None else losses + term(lists, settings, self.hyper)
        return losses, running

    def whole_step_gradient(
        self, batches: Sequence[MicroBatch], frozen: Sequence[Tensor], rows: Ints, step: int, seed: int, running: Running
    ) -> tuple[Tensor, Tensor, Running]:
        """Return the gradient of a batch-coupled loss at each row's sums, (rows, scored a row), the loss, and the statistics.

        The step runs once without gradient to get all sums, where the loss is differentiated; the second run carries that
        gradient on into the weights. Same result as one large batch, in the memory of a small one. Both runs begin with the
        same ``seed``, so they drop the same activations.
        """
        torch.manual_seed(seed)
        with torch.no_grad():
            outputs = [self.forward(batch)[::3] for batch in batches]  # without what is of the size of the hidden states
        sums, old, collisions = self.whole_step(batches, outputs, frozen)
        leaf = sums.requires_grad_()
        losses, running = self.losses(self.lists(batches[0], leaf, old, collisions, rows, step), running)
        loss = losses.mean()
        (gradient,) = torch.autograd.grad(loss, leaf)
        return gradient, loss.detach(), running

    def whole_step(
        self, batches: Sequence[MicroBatch], outputs: Sequence[tuple[Tensor, Tensor | None]], frozen: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the policy's sums, the reference's, and the collisions of all rows of a step in their order, of all ranks."""
        busy = [place for place, batch in enumerate(batches) if not batch.idle]
        places = np.concatenate([batches[i].places for i in busy])
        order = torch.from_numpy(np.argsort(np.concatenate(self.ranks.gather(places))))

        def joined(parts: Sequence[Tensor]) -> Tensor:
            return self.ranks.joined(torch.cat([parts[i].detach() for i in busy]))[order]

        collided = [each for _, each in outputs if each is not None]
        return joined([sums for sums, _ in outputs]), joined(frozen), joined(collided) if collided else None

    def logged(self, lists: Lists, value: Tensor, share: float) -> dict[str, Tensor]:
        """Return what to log of a micro-batch holding ``share`` of the step's rows: of the best and the worst answer."""
        with torch.no_grad():
            pairs = pair_of(lists)
            chosen, rejected = self.method.rewards(pairs, self.hyper)
            ratio_chosen, ratio_rejected = pairs.log_ratios()
            return {
                "alignment_loss": value.detach(),
                "reward_accuracy": (chosen > rejected).float().mean() * share,
                "margin": (chosen - rejected).mean() * share,
                "chosen_logratio": ratio_chosen.mean() * share,
                "rejected_logratio": ratio_rejected.mean() * share,
            }

    def degree(
        self, layer: Tensor, batch: MicroBatch, step: int, copies: int
    ) -> tuple[Tensor, dict[str, Tensor], tuple[Tensor, Tensor]]:
        """Return gamma * L_degree's term of a micro-batch, what to log of it, and the copies' lengths and whether each was told.

        Args:
            layer: hidden states the head reads, (nodes, hidden).
            batch: the micro-batch.
            step: for gamma's warm-up.
            copies: number of copies in the whole step.
        """
        if self.head is None or self.spo is None:
            raise StageError("the degree loss was asked for without SPO")
        pooled, lengths = pool(layer, batch.pack, self.spo.pool)
        degrees, sides = (moved(torch.from_numpy(each), pooled.device) for each in (batch.degrees, batch.sides))
        each, predicted = degree_loss(self.head, pooled, degrees, lengths, sides, self.spo)
        gamma = moved(torch.tensor(gamma_at(self.spo, step))[torch.from_numpy(batch.sides)], pooled.device)
        correct = predicted == degrees
        parts = {"degree_loss": each.detach().sum() / copies, "degree_accuracy": correct.float().sum() / copies}
        return (gamma * each).sum() / copies, parts, (lengths, correct)
