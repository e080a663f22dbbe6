"""What a training holds of a model's activations for its backward pass: less than autograd would by itself.

Layers are replaced by ones that compute the same numbers and hold less. Which layers can be is tried, not told by their names.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear, Module
from torch.nn.functional import linear

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
Way = Callable[[Any, Tensor], Tensor]


def spare_activations(model: Any, checkpointing: bool) -> None:
    """Make a model that is about to be trained hold less for its backward pass; what it computes stays the same.

    Gated feed-forward layers hold two of the four wide tensors that autograd would hold, root-mean-square norms one of two;
    neither takes longer.

    Args:
        model: a Hugging Face model, or one wrapped by peft.
        checkpointing: whether to hold, besides, only every layer's input, and to compute layers a second time.
    """
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    for module in model.modules():
        for way, width in ((_gated, _gated_width(module)), (_normed, _normed_width(module))):
            if width is not None and _agree(module, way, width):
                kind: Any = type(module)
                module.__class__ = _sparing(kind, way)


def _agree(module: Module, way: Way, width: int) -> bool:
    """Return whether a module gives, to the bit, what it would give this way."""
    weight = next(module.parameters())
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        trial = torch.randn(3, width).to(weight)
        return torch.equal(module(trial), way(module, trial))


@cache
def _sparing(kind: type[Module], way: Way) -> type[Module]:
    """Return the same layer, but for what it holds in training. (A function put on a module would keep the module alive.)"""

    def forward(self: Module, hidden: Tensor) -> Tensor:
        out: Tensor = way(self, hidden) if torch.is_grad_enabled() else kind.forward(self, hidden)
        return out

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def _takes_one(module: Module) -> bool:
    """Return whether a module's forward takes one tensor and nothing else."""
    return len(inspect.signature(module.forward).parameters) == 1


def _gated_width(module: Module) -> int | None:
    """Return the width of a feed-forward layer down(act(gate(x)) * up(x)) with plain matrices; None if it is something else."""
    children = dict(module.named_children())
    if set(children) != {*PROJECTIONS, "act_fn"} or not _takes_one(module):
        return None
    matrices: list[Any] = [children[name] for name in PROJECTIONS]
    if not all(type(matrix) is Linear and matrix.bias is None for matrix in matrices):
        return None
    width: int = matrices[0].in_features
    return width


def _gated(module: Any, hidden: Tensor) -> Tensor:
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    weights = [getattr(module, name).weight.to(dtype) for name in PROJECTIONS]
    with torch.autocast(device, enabled=False):
        out: Tensor = _Gated.apply(hidden.to(dtype).flatten(0, -2), *weights, module.act_fn)
    return out.unflatten(0, hidden.shape[:-1])


class _Gated(torch.autograd.Function):
    """down(act(gate(x)) * up(x)), which holds x, gate(x) and up(x); the rest is element by element and is computed again."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, gate: Tensor, up: Tensor, down: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
        """(n, hidden) -> (n, hidden), with weights (inner, hidden), (inner, hidden) and (hidden, inner)."""
        gated, lifted = linear(rows, gate), linear(rows, up)
        ctx.save_for_backward(rows if any(ctx.needs_input_grad[1:3]) else None, gated, lifted, gate, up, down)
        ctx.act = act
        return linear(act(gated) * lifted, down)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of the input and of the weights that are trained."""
        rows, gated, lifted, gate, up, down = ctx.saved_tensors
        wants_rows, wants_gate, wants_up, wants_down, _ = ctx.needs_input_grad
        d_inner = grad @ down
        with torch.enable_grad():
            leaf = gated.detach().requires_grad_()
            level = ctx.act(leaf)
        (d_gated,) = torch.autograd.grad(level, leaf, d_inner * lifted)
        level = level.detach()
        d_down = grad.t() @ (level * lifted) if wants_down else None
        d_lifted = d_inner.mul_(level)
        d_rows = torch.addmm(d_gated @ gate, d_lifted, up) if wants_rows else None
        d_gate = d_gated.t() @ rows if wants_gate else None
        d_up = d_lifted.t() @ rows if wants_up else None
        return d_rows, d_gate, d_up, d_down, None


def _normed_width(module: Module) -> int | None:
    """Return the width of what may be a root-mean-square norm in fp32; None if it is something else."""
    weights = dict(module.named_parameters())
    if set(weights) != {"weight"} or list(module.children()) or _epsilon(module) is None or not _takes_one(module):
        return None
    weight = weights["weight"]
    return len(weight) if weight.dim() == 1 and weight.dtype == torch.float32 else None


def _epsilon(module: Any) -> float | None:
    """Return what a norm adds to the mean square."""
    value: float | None = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return value


def _normed(module: Any, hidden: Tensor) -> Tensor:
    out: Tensor = _Normed.apply(hidden.float(), module.weight, _epsilon(module))
    return out if hidden.dtype == torch.float32 else out.to(hidden.dtype)


class _Normed(torch.autograd.Function):
    """w * x / sqrt(mean(x^2) + epsilon) (Zhang and Sennrich 2019, arXiv 1910.07467), which holds x."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """(..., hidden) -> (..., hidden), fp32."""
        scale = torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(hidden, weight, scale)
        return weight * (hidden * scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """With n = x s: d_w = sum(d n), d_x = s (d w - n mean(d w n))."""
        hidden, weight, scale = ctx.saved_tensors
        normed = hidden * scale
        product = grad * normed
        d_weight = product.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        mean = torch.mv(product.flatten(0, -2), weight).div_(len(weight)).view(scale.shape)
        return (grad * weight).addcmul_(normed, mean, value=-1).mul_(scale), d_weight, None
