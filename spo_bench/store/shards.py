"""A checkpoint that several ranks write, each its part, and any number of them read: torch's own, as safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

PATTERN = "shard-*.safetensors"


def write(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write this rank's part of tensors, and one copy of those that every rank has; all have to call."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    state = {name: tensor.detach() for name, tensor in tensors.items()}
    save(state, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))


def read(folder: Path, into: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors, or this rank's part of them, into those of the same names; return the others whole. All have to call.

    Raises:
        ValueError: one to copy into was not kept.
    """
    import torch
    import torch.distributed as dist
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(folder))
    known: Mapping[str, Any] = reader.read_metadata().state_dict_metadata
    if missing := sorted(into.keys() - known.keys()):
        raise ValueError(f"the checkpoint has no {missing[0]}")
    rest = {name: torch.empty(one.size, dtype=one.properties.dtype) for name, one in known.items() if name not in into}
    state: dict[str, Any] = {**{name: tensor.detach() for name, tensor in into.items()}, **rest}
    load(state, storage_reader=reader, no_dist=not dist.is_initialized())
    return rest
