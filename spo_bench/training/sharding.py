"""One policy over several processes: every rank holds a part of each weight, its gradient and its moments (PyTorch's FSDP2)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from spo_bench.models.numerics import Numerics
from spo_bench.models.policy import causal
from spo_bench.ranks import Ranks
from spo_bench.store import shards
from spo_bench.store.checkpoints import Checkpoint, Saved
from spo_bench.training.forward import Statistics

T = TypeVar("T")


class Group(Ranks):
    """This process as one of ``torch.distributed``'s default group.

    Args:
        device: "cpu" or "cuda".
    """

    def __init__(self, device: str) -> None:
        from torch.distributed.device_mesh import init_device_mesh

        self.rank, self.count = dist.get_rank(), dist.get_world_size()
        self.mesh = init_device_mesh(device, (self.count,))

    def gather(self, value: T) -> list[T]:
        """Return every rank's value in their order, on every rank; all have to call."""
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found

    def broadcast(self, value: T) -> T:
        """Return the first rank's value on every rank; all have to call."""
        found = [value]
        dist.broadcast_object_list(found, src=0)
        return found[0]

    def joined(self, rows: Tensor) -> Tensor:
        """Return all ranks' rows, (rows, …), in the order of the ranks, on this rank's device; all have to call."""
        return torch.cat([part.to(rows.device) for part in self.gather(rows.cpu())])

    def add_gradients(self, weights: Iterable[nn.Parameter]) -> None:
        """Give weights that every rank holds whole the sum of all ranks' gradients."""
        for weight in weights:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            dist.all_reduce(weight.grad)


def shard(model: Any, numerics: Numerics, ranks: Group) -> Statistics:
    """Divide a model's weights over the ranks, in place, layer by layer; return the module to run it through.

    Each rank's gradient is added to the others', not averaged: a loss divides by the rows of the whole step. Under bfloat16 a
    weight that is held in fp32 is whole in bfloat16 only, while its layer runs; gradients are added in fp32.

    Args:
        model: whole on every rank, and the same on all.
        numerics: of the training; the device is this rank's own.
        ranks: all that call this.

    Returns:
        A module whose ``forward`` makes the weights whole that lie in no layer: embeddings, last norm, head.
    """
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    low = numerics.dtype != "float32" and numerics.held == "float32"
    precision = MixedPrecisionPolicy(
        param_dtype=getattr(torch, numerics.dtype) if low else None,
        reduce_dtype=torch.float32 if low else None,
        cast_forward_inputs=False,
    )
    statistics = Statistics(model)
    for layer in layers(model):
        fully_shard(layer, mesh=ranks.mesh, mp_policy=precision)
    # Also the outermost weights do not stay whole after a forward pass: a reference may take their place before the next.
    fully_shard(statistics, mesh=ranks.mesh, mp_policy=precision, reshard_after_forward=True)
    for module in statistics.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    # Said of every layer that ends in a view; nothing here changes a layer's output in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    return statistics


def layers(model: Any) -> list[nn.Module]:
    """Return the modules that a model's authors keep whole on one device: its decoder layers."""
    names = set(getattr(causal(model), "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def whole_state(model: Any) -> dict[str, Tensor]:
    """Return the weights that a model is saved by, whole, on the first rank's CPU; nothing on the others. All have to call."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    adapter = causal(model) is not model
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=adapter)
    found: dict[str, Any] = get_model_state_dict(model, options=options)
    return found


class SharedCheckpoint(Checkpoint):
    """A stage's checkpoints that all ranks keep together, each its part; another number of ranks can go on from them.

    Args:
        kept: those of one process.
        ranks: all that keep them.
    """

    def __init__(self, kept: Checkpoint, ranks: Ranks) -> None:
        super().__init__(kept.folder, kept.every, kept.beyond)
        self.ranks = ranks

    def load(self) -> Saved | None:
        """Return the newest checkpoint that is whole and was kept by the same code; None where there is none."""
        return self.ranks.broadcast(super().load() if self.ranks.rank == 0 else None)

    def _agreed(self, wish: bool) -> bool:
        return any(self.ranks.gather(wish))

    def _write(self, part: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        if self.ranks.rank == 0:
            self._begin(part)
        self.ranks.broadcast(None)
        shards.write(part, tensors)
        self.ranks.gather(None)
        if self.ranks.rank == 0:
            self._place(part, values)
        self.ranks.gather(None)  # whoever leaves before may end the others
