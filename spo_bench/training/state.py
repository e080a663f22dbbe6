"""Everything a training needs to go on where it was stopped, to the bit. Random streams are functions of seed and step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module


def state_of(modules: Mapping[str, Module | None], optimizers: Mapping[str, torch.optim.Optimizer | None]) -> dict[str, Tensor]:
    """Return the trained weights, the buffers and the optimizers' moments by name: what to keep, and where to restore it to.

    Args:
        modules: name -> policy, head, …
        optimizers: name -> of whose moments.
    """
    found: dict[str, Tensor] = {}
    for label, module in modules.items():
        if module is None:
            continue
        found |= {f"{label}/weight/{name}": weight for name, weight in module.named_parameters() if weight.requires_grad}
        found |= {f"{label}/buffer/{name}": buffer for name, buffer in module.named_buffers()}
    for label, optimizer in optimizers.items():
        if optimizer is None:
            continue
        for place, moments in optimizer.state_dict()["state"].items():
            found |= {f"{label}/moment/{place}/{name}": value for name, value in moments.items() if isinstance(value, Tensor)}
    return found


def numbers(values: Mapping[str, Tensor] | None, label: str) -> dict[str, Tensor]:
    """Return further tensors under names of their own."""
    return {f"{label}/{name}": value for name, value in (values or {}).items()}


def restored(found: Mapping[str, Tensor], label: str, device: Any) -> dict[str, Tensor] | None:
    """Return the tensors that ``numbers`` named, on a device; None where there are none."""
    prefix = f"{label}/"
    values = {name.removeprefix(prefix): value.to(device) for name, value in found.items() if name.startswith(prefix)}
    return values or None
