"""Log-probabilities of tokens without their logits: the head and its gradient, one chunk of tokens at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# Most numbers of a chunk of logits, and the fewest rows it has all the same. On a CPU it stays in a page-warm buffer (32 MiB in
# fp32) and is large enough for efficient products; on a GPU (1 GiB) the head's weights are read less often.
CHUNK_ELEMENTS = {"cpu": 1 << 23, "cuda": 1 << 28}
CHUNK_ROWS = 128


def chunk_rows(vocabulary: int, device: str) -> int:
    """Return how many rows a chunk of logits has on a device of this type."""
    return max(CHUNK_ROWS, CHUNK_ELEMENTS.get(device, CHUNK_ELEMENTS["cpu"]) // vocabulary)


class LogProbs(torch.autograd.Function):
    """log softmax(cap(scale * (h W^T + b))) at one token a row; each chunk of logits exists once in either pass.

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
    ) -> tuple[Tensor, Tensor]:
        """Return (log p(y), log sum_v p(v)^2), fp32, nats, (n,) each; the second without gradient, 0 unless asked for.

        Args:
            rows: hidden states, (n, hidden), in the type to compute in.
            weight, bias: of the head, (vocabulary, hidden) and (vocabulary,).
            targets: token ids, (n,).
            scale, cap: of the logits.
            collisions: whether the second is wanted.
        """
        values, totals, agree = (rows.new_zeros(len(rows), dtype=torch.float32) for _ in range(3))
        cast = weight.to(rows.dtype)
        for part, logits in _chunks(rows, cast, bias, scale, cap):
            totals[part] = logits.logsumexp(dim=1)
            values[part] = logits.gather(1, targets[part, None])[:, 0] - totals[part]
            if collisions:
                agree[part] = logits.mul_(2).logsumexp(dim=1) - 2 * totals[part]
        ctx.save_for_backward(rows, weight, bias, targets, totals)
        ctx.shape = scale, cap
        ctx.mark_non_differentiable(agree)
        return values, agree

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of rows, weight and bias, of those that are trained."""
        rows, weight, bias, targets, totals = ctx.saved_tensors
        scale, cap = ctx.shape
        wants_rows, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        cast = weight.to(rows.dtype)
        d_rows = torch.empty_like(rows) if wants_rows else None
        d_weight = torch.zeros_like(weight) if wants_weight else None
        d_bias = torch.zeros_like(bias) if wants_bias else None
        for part, logits in _chunks(rows, cast, bias, scale, cap):
            bent = None if cap is None else 1 - (logits / cap).square_()
            d_logits = logits.sub_(totals[part, None]).exp_().mul_(-grad[part, None])
            d_logits.scatter_add_(1, targets[part, None], grad[part, None])
            d_logits = (d_logits if bent is None else d_logits.mul_(bent)).mul_(scale)
            low = d_logits.to(rows.dtype)
            if d_rows is not None:
                torch.mm(low, cast, out=d_rows[part])
            if d_weight is not None:
                _add_product(d_weight, low.t(), rows[part])
            if d_bias is not None:
                d_bias += d_logits.sum(0)
        return d_rows, d_weight, d_bias, None, None, None, None


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a matrix product to a sum in place; factors of lower precision than the sum are not rounded to theirs again."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif left.is_cuda:
        total += torch.mm(left, right, out_dtype=total.dtype)
    else:  # a mixed sum costs more here than a product in fp32
        total.addmm_(left.to(total.dtype), right.to(total.dtype))


def _chunks(rows: Tensor, weight: Tensor, bias: Tensor | None, scale: float, cap: float | None) -> Iterator[tuple[slice, Tensor]]:
    """Yield (which rows, their logits in fp32), chunk by chunk."""
    size = chunk_rows(len(weight), rows.device.type)
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        logits = torch.nn.functional.linear(rows[part], weight, None if bias is None else bias.to(rows.dtype)).float()
        logits = logits if scale == 1 else logits.mul_(scale)
        yield part, logits if cap is None else logits.div_(cap).tanh_().mul_(cap)
