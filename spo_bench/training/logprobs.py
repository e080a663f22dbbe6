"""Log-probabilities of tokens without their logits: the head and its gradient, one chunk of tokens at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Most numbers of a chunk of logits, and the fewest rows it has all the same: large enough for efficient products (64 MiB in fp32
# on a CPU); on a GPU (512 MiB) the head's weights are read less often.
CHUNK_ELEMENTS = {"cpu": 1 << 24, "cuda": 1 << 27}
CHUNK_ROWS = 128
MULTIPLE = 64  # of a chunk's rows: products of other sizes are slower
# Most log-probabilities that are kept from the forward to the backward pass, where the head's first product is a quarter of its
# arithmetic if computed twice. However many tokens there are, no more is held; those of further chunks are computed again.
KEPT_ELEMENTS = {"cpu": 1 << 25, "cuda": 1 << 27}


def chunk_rows(vocabulary: int, device: str) -> int:
    """Return how many rows a chunk of logits has on a device of this type."""
    return max(CHUNK_ROWS, CHUNK_ELEMENTS.get(device, CHUNK_ELEMENTS["cpu"]) // vocabulary // MULTIPLE * MULTIPLE)


class LogProbs(torch.autograd.Function):
    """log softmax(cap(scale * (h W^T + b))) at one token a row, chunk by chunk; ``KEPT_ELEMENTS`` of them are held at most.

    With z the logits, p = softmax(z) and g the gradient of log p(y): dz = g (onehot(y) - p), from which the gradients of h, W and
    b follow by the products of a linear layer. They are formed chunk by chunk, as in fused linear losses (Hsu et al. 2024,
    arXiv 2410.10989), but over tokens.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scale: float,
        cap: float | None,
        collisions: bool,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return (log p(y), log sum_v p(v)^2), fp32, nats, (n,) each; the second without gradient, 0 unless asked for.

        Args:
            rows: hidden states, (n, hidden), in the type to compute in.
            weight, bias: of the head, (vocabulary, hidden) and (vocabulary,).
            targets: token ids, (n,).
            scale, cap: of the logits.
            collisions: whether the second is wanted.
            keep: whether there will be a backward pass.
        """
        values, agree = (rows.new_zeros(len(rows), dtype=torch.float32) for _ in range(2))
        cast, kept, device = weight.to(rows.dtype), list[Tensor](), rows.device.type
        room = KEPT_ELEMENTS.get(device, KEPT_ELEMENTS["cpu"]) if keep else 0
        for part in _chunks(rows, len(weight)):
            logs, _ = _log_softmax(rows[part], cast, bias, scale, cap)
            values[part] = logs.gather(1, targets[part, None])[:, 0]
            if collisions:
                agree[part] = (2 * logs).logsumexp(dim=1)
            room -= logs.numel()
            if room >= 0 and cap is None:  # the slope of a cap needs the logits
                kept.append(logs)
        ctx.save_for_backward(rows, weight, bias, targets, *kept)
        ctx.shape = scale, cap
        ctx.mark_non_differentiable(agree)
        return values, agree

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of rows, weight and bias, of those that are trained."""
        rows, weight, bias, targets, *kept = ctx.saved_tensors
        scale, cap = ctx.shape
        wants_rows, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        cast = weight.to(rows.dtype)
        d_rows = torch.empty_like(rows) if wants_rows else None
        d_weight: Tensor | None = None
        d_bias = torch.zeros_like(bias) if wants_bias else None
        for place, part in enumerate(_chunks(rows, len(weight))):
            logs, bent = (kept[place], None) if place < len(kept) else _log_softmax(rows[part], cast, bias, scale, cap)
            d_logits = logs.exp_().mul_(-grad[part, None] * scale)
            d_logits.scatter_add_(1, targets[part, None], grad[part, None] * scale)
            low = (d_logits if bent is None else d_logits.mul_(bent)).to(rows.dtype)
            if d_rows is not None:
                torch.mm(low, cast, out=d_rows[part])
            if wants_weight:
                d_weight = _add_product(d_weight, low.t(), rows[part], weight.dtype)
            if d_bias is not None:
                d_bias += d_logits.sum(0)
        return d_rows, d_weight, d_bias, *[None] * 5


def _add_product(total: Tensor | None, left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Add a matrix product to a sum of a type (None: it is the first); factors of lower precision are not rounded to theirs."""
    if left.dtype != dtype and left.is_cuda:
        product = torch.mm(left, right, out_dtype=dtype)
        return product if total is None else total.add_(product)
    left, right = left.to(dtype), right.to(dtype)  # on a CPU a mixed sum costs more than a product in fp32
    return torch.mm(left, right) if total is None else total.addmm_(left, right)


def _chunks(rows: Tensor, vocabulary: int) -> list[slice]:
    """Return which rows go through the head together."""
    size = chunk_rows(vocabulary, rows.device.type)
    return [slice(start, start + size) for start in range(0, len(rows), size)]


def _log_softmax(
    rows: Tensor, weight: Tensor, bias: Tensor | None, scale: float, cap: float | None
) -> tuple[Tensor, Tensor | None]:
    """Return (log-probabilities, slope of the cap at the logits), fp32, (rows, vocabulary); None where there is no cap."""
    logits = torch.nn.functional.linear(rows, weight, None if bias is None else bias.to(rows.dtype)).float()
    logits = logits if scale == 1 else logits.mul_(scale)
    if cap is None:
        return logits.log_softmax(dim=1), None
    level = logits.div_(cap).tanh_()
    return (level * cap).log_softmax(dim=1), 1 - level.square_()
