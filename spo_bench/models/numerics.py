"""How numbers are computed. No heavy import: planning uses this."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

# Most tokens of all answers under way, with their prompts, whose keys and values are held: 3 GiB for SmolLM2-135M in fp32.
CACHE_TOKENS = 1 << 16


@dataclass(frozen=True)
class Numerics:
    """How numbers are computed: part of every key.

    Attributes:
        device: "cpu" or "cuda" (with an index where asked for; the index is not part of a key).
        dtype: compute type, "float32" or "bfloat16".
        held: type the weights are held in; "float32" where all of them are trained (and for their reference, so that the two
            agree), the compute type under an adapter.
    """

    device: str
    dtype: str
    held: str

    def identity(self) -> dict[str, str]:
        """Return what of it can change numbers."""
        return {"device": self.device.split(":")[0], "dtype": self.dtype, "held": self.held, "torch": torch_version()}

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which a model is run."""
        if self.dtype == "float32":
            return nullcontext()
        import torch

        return torch.autocast(self.device.split(":")[0], dtype=getattr(torch, self.dtype))


def torch_version() -> str:
    """Return torch's major.minor, without importing torch."""
    return ".".join(version("torch").split(".")[:2])
