"""What a training step minimises: L = L_method + gamma * L_degree, as one term a micro-batch.

L_method is a mean over the step's pairs, L_degree a mean over its copies. Each micro-batch contributes its sum over the whole
step's count, so how a step is cut into micro-batches changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spo_bench.errors import StageError
from spo_bench.methods.base import Method, Pairs
from spo_bench.models.numerics import Numerics
from spo_bench.spo.head import DegreeHead, bin_counts, degree_loss
from spo_bench.spo.settings import SpoSettings, gamma_at
from spo_bench.training.examples import MicroBatch
from spo_bench.training.forward import hidden_states, pool, response_sums, token_log_probs
from spo_bench.training.trie import Ints


@dataclass(frozen=True)
class Reference:
    """Frozen log-probabilities of the training completions, fp32, nats.

    Attributes:
        tokens: per row the per-token values of chosen and rejected, each of shape (length,).
        sums: their sums, shape (rows, 2).
        lengths: their token counts, shape (rows, 2).
        mismatched: sums for every step's prompts with the next row's chosen and rejected, shape (steps, batch, 2); only for
            methods that need a KL.
    """

    tokens: Sequence[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]
    sums: Tensor
    lengths: Tensor
    mismatched: Tensor | None = None


@dataclass(frozen=True)
class Objective:
    """The loss of a method, with or without SPO, over one model."""

    model: Any
    head: DegreeHead | None
    method: Method
    hyper: Mapping[str, Any]
    spo: SpoSettings | None
    reference: Reference
    numerics: Numerics

    def forward(self, batch: MicroBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Return (sums (rows, scored a row), per-token log-probabilities (tokens,), hidden states SPO reads (nodes, hidden))."""
        with self.numerics.autocast():
            last, layer = hidden_states(self.model, batch.pack, self.spo.layer if self.spo else -1)
            values = token_log_probs(self.model, last, batch.pack)
        return response_sums(values, batch.pack)[0].view(-1, batch.scored_per_row), values, layer

    def pairs(self, sums: Tensor, rows: Ints, step: int, places: Ints) -> Pairs:
        """Put sums (n, scored a row) beside the reference of those rows (n,), at those places of the step."""
        index = torch.from_numpy(rows)
        frozen, lengths = self.reference.sums[index].to(sums.device), self.reference.lengths[index].to(sums)
        kl = None
        if self.method.needs_kl:
            if self.reference.mismatched is None:
                raise StageError(f"method {self.method.name} needs the reference of mismatched pairs")
            kl = (sums[:, 2:] - self.reference.mismatched[step][torch.from_numpy(places)].to(sums)).detach().flatten()
        return Pairs(
            policy_chosen=sums[:, 0],
            policy_rejected=sums[:, 1],
            reference_chosen=frozen[:, 0],
            reference_rejected=frozen[:, 1],
            chosen_length=lengths[:, 0],
            rejected_length=lengths[:, 1],
            kl=kl,
        )

    def whole_step_gradient(self, batches: Sequence[MicroBatch], rows: Ints, step: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return the gradient of a batch-coupled loss at each pair's sums, (rows, 2), and the loss, over the whole step.

        The step runs once without gradient to get all sums, where the loss is differentiated; the second run carries that
        gradient on into the weights. Same result as one large batch, in the memory of a small one. Both runs begin with the
        same ``seed``, so they drop the same activations.
        """
        torch.manual_seed(seed)
        with torch.no_grad():
            sums = torch.cat([self.forward(batch)[0] for batch in batches])
        leaf = sums[:, :2].detach().requires_grad_()
        loss = self.method.loss(
            self.pairs(torch.cat([leaf, sums[:, 2:].detach()], 1), rows, step, np.arange(len(rows))), self.hyper
        ).mean()
        (gradient,) = torch.autograd.grad(loss, leaf)
        return gradient, loss.detach()

    def alignment(self, pairs: Pairs, share: float, upstream: tuple[Tensor, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return L_method's term of a micro-batch holding ``share`` of the step's pairs, and what to log of it."""
        if upstream is None:
            term = self.method.loss(pairs, self.hyper).mean() * share
            value = term.detach()
        else:
            term = (torch.stack([pairs.policy_chosen, pairs.policy_rejected], 1) * upstream[0]).sum()
            value = upstream[1] * share
        with torch.no_grad():
            chosen, rejected = self.method.rewards(pairs, self.hyper)
            ratio_chosen, ratio_rejected = pairs.log_ratios()
            parts = {
                "alignment_loss": value,
                "reward_accuracy": (chosen > rejected).float().mean() * share,
                "margin": (chosen - rejected).mean() * share,
                "chosen_logratio": ratio_chosen.mean() * share,
                "rejected_logratio": ratio_rejected.mean() * share,
            }
        return term, parts

    def degree(
        self, layer: Tensor, batch: MicroBatch, step: int, copies: int
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, list[int]]]:
        """Return gamma * L_degree's term of a micro-batch, what to log of it, and [correct, count] by length bin.

        Args:
            layer: hidden states the head reads, (nodes, hidden).
            batch: the micro-batch.
            step: for gamma's warm-up.
            copies: number of copies in the whole step.
        """
        if self.head is None or self.spo is None:
            raise StageError("the degree loss was asked for without SPO")
        pooled, lengths = pool(layer, batch.pack, self.spo.pool)
        degrees = torch.from_numpy(batch.degrees).to(pooled.device)
        sides = torch.from_numpy(batch.sides).to(pooled.device)
        each, predicted = degree_loss(self.head, pooled, degrees, lengths, sides, self.spo)
        gamma = torch.tensor(gamma_at(self.spo, step), device=pooled.device)[sides]
        correct = predicted == degrees
        parts = {"degree_loss": each.detach().sum() / copies, "degree_accuracy": correct.float().sum() / copies}
        return (gamma * each).sum() / copies, parts, bin_counts(lengths, correct)
