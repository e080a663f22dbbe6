"""The degree head: what tells from a pooled hidden state how far a copy is degraded, and its loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from spo_bench.spo.settings import SpoSettings

LENGTH_BINS: tuple[float, ...] = (0, 16, 32, 64, 128, 256, math.inf)


class DegreeHead(nn.Module):
    """Tell the degree of a copy from its pooled hidden states. Always in fp32, whatever the policy's dtype.

    The pooled state is normalised to mean 0 and variance 1 without parameters, so that one initialisation suits every layer of
    every model. Controls: ``detached_trunk`` reads the state without passing a gradient back; ``length_only`` reads nothing
    but the copy's token length.

    Args:
        hidden_size: width of the hidden states.
        settings: kind of head and loss, number of degrees, control.
        seed: of the initial weights; the global random state is neither read nor moved.
    """

    def __init__(self, hidden_size: int, settings: SpoSettings, seed: int) -> None:
        super().__init__()
        self.settings = settings
        width = 2 if settings.control == "length_only" else hidden_size
        generator = torch.Generator().manual_seed(seed)
        sides = 2 if settings.head_per_side else 1
        self.sides = nn.ModuleList(_SideHead(width, settings, generator) for _ in range(sides))

    def forward(self, pooled: Tensor, lengths: Tensor, sides: Tensor) -> Tensor:
        """Return what the head says of n copies.

        Args:
            pooled: pooled hidden states, (n, hidden), any floating dtype.
            lengths: completion token counts of the copies, (n,).
            sides: 0 for a chosen answer, 1 for a rejected one, (n,), int64.

        Returns:
            Log-probabilities of the degrees, (n, degrees); with the loss ``regression`` the estimated k / (degrees - 1), (n, 1).
        """
        with torch.autocast(pooled.device.type, enabled=False):
            if self.settings.control == "length_only":
                # Rough centring and scaling; for lengths of 4 to 400 tokens both features stay within a few units.
                count = lengths.to(device=pooled.device, dtype=torch.float32).clamp(min=1)
                features = torch.stack([count.log() - 4, count / 64 - 1], dim=1)
            else:
                state = pooled.detach() if self.settings.control == "detached_trunk" else pooled
                features = functional.layer_norm(state.float(), state.shape[-1:])
            outputs = [side(features) for side in self.sides]
            if len(outputs) == 1:
                return outputs[0]
            return torch.where((sides == 0)[:, None], outputs[0], outputs[1])


class _SideHead(nn.Module):
    """Features (n, width) -> log-probabilities (n, degrees), or (n, 1) for regression."""

    def __init__(self, width: int, settings: SpoSettings, generator: torch.Generator) -> None:
        super().__init__()
        degrees = settings.degrees
        self.loss = settings.loss
        # A linear score has no bias under the ordinal loss: its thresholds are the bias.
        outputs, bias = (degrees, True) if settings.loss == "softmax_ce" else (1, settings.loss == "regression")
        output = _linear(width, outputs, bias, 0.25, generator)
        if settings.head == "mlp":
            self.body: nn.Module = nn.Sequential(_linear(width, width, True, 1.0, generator), nn.GELU(), output)
        else:
            self.body = output
        if settings.loss == "ordinal_logit":
            # Thresholds that give every degree the same probability at score 0; gaps are kept positive by softplus.
            start = torch.tensor([math.log(k / (degrees - k)) for k in range(1, degrees)])
            self.first = nn.Parameter(start[:1].clone())
            self.gaps = nn.Parameter(start.diff().expm1().log())

    def thresholds(self) -> Tensor:
        """Return the strictly rising thresholds of the cumulative logits, (degrees - 1,)."""
        return torch.cat([self.first, functional.softplus(self.gaps)]).cumsum(0)

    def forward(self, features: Tensor) -> Tensor:
        """Return log-probabilities of the degrees, or the regression's estimate."""
        out: Tensor = self.body(features)
        if self.loss == "softmax_ce":
            return functional.log_softmax(out, dim=1)
        if self.loss == "regression":
            return out
        return _ordinal_log_probs(out, self.thresholds())


def _linear(width: int, outputs: int, bias: bool, gain: float, generator: torch.Generator) -> nn.Linear:
    """Return an fp32 linear layer drawn from the generator only, with outputs of standard deviation ``gain`` on unit inputs."""
    layer = nn.utils.skip_init(nn.Linear, width, outputs, bias=bias, dtype=torch.float32)
    with torch.no_grad():
        layer.weight.normal_(0, gain / math.sqrt(width), generator=generator)
        if bias:
            layer.bias.zero_()
    return layer


def _ordinal_log_probs(score: Tensor, thresholds: Tensor) -> Tensor:
    """Return log P(degree = k) of the proportional-odds model P(degree <= k) = sigmoid(t_k - score).

    With a < b two neighbouring cumulative logits, sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)), whose
    logarithm needs no difference of near numbers (McCullagh 1980 for the model; the identity is elementary).

    Args:
        score: (n, 1).
        thresholds: t_0 < t_1 < ..., (degrees - 1,).

    Returns:
        (n, degrees).
    """
    cumulative = thresholds - score
    below, above = functional.logsigmoid(cumulative), functional.logsigmoid(-cumulative)
    between = below[:, 1:] + above[:, :-1] + (-(-thresholds.diff()).expm1()).log()
    return torch.cat([below[:, :1], between, above[:, -1:]], dim=1)


def degree_loss(
    head: DegreeHead, pooled: Tensor, degrees: Tensor, lengths: Tensor, sides: Tensor, settings: SpoSettings
) -> tuple[Tensor, Tensor]:
    """Return the loss of each copy, in fp32 and without gamma, and the degree the head takes it for.

    Args:
        head: made with the same settings.
        pooled: pooled hidden states, (n, hidden).
        degrees: the degree each copy is labelled with, (n,), int64.
        lengths: completion token counts, (n,).
        sides: 0 chosen, 1 rejected, (n,), int64.
        settings: decide the loss.

    Returns:
        (loss, predicted degree), each (n,): nats for a classification, squared error of k / (degrees - 1) for a regression.
    """
    out = head(pooled, lengths, sides)
    if settings.loss == "regression":
        last = settings.degrees - 1
        estimate = out[:, 0]
        predicted = (estimate.detach() * last).round().clamp(0, last).long()
        return (estimate - degrees / last) ** 2, predicted
    return functional.nll_loss(out, degrees, reduction="none"), out.detach().argmax(dim=1)


def bin_counts(lengths: Tensor | Sequence[int], correct: Tensor | Sequence[bool]) -> dict[str, list[int]]:
    """Return {"0-16": [correct, count], ...} over the copies' token lengths; a bin's lower edge is in, its upper is not.

    Removal shortens a text, so a head can look good by length alone: accuracy within bins shows what is left beside that.
    Empty bins are left out. The last bin is "256+".
    """
    size = torch.as_tensor(lengths).cpu()
    hit = torch.as_tensor(correct).cpu()
    counts: dict[str, list[int]] = {}
    for low, high in pairwise(LENGTH_BINS):
        inside = (size >= low) & (size < high)
        if n := int(inside.sum()):
            counts[f"{low:g}+" if math.isinf(high) else f"{low:g}-{high:g}"] = [int(hit[inside].sum()), n]
    return counts


def add_bins(total: dict[str, list[int]], more: Mapping[str, Sequence[int]]) -> None:
    """Add counts of ``bin_counts`` to a running total, in place."""
    for name, (correct, count) in more.items():
        before = total.get(name, [0, 0])
        total[name] = [before[0] + correct, before[1] + count]
