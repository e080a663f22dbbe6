"""How numbers are computed. No heavy import: planning uses this."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

CACHE_BYTES = 8 << 30  # most that keys and values of answers under way take; not what is free: who is run together must not vary
SPARE = (
    4  # a quarter more columns than an answer with its prompt has are held; when they are used up, the cache moves to the left
)

MICRO_TOKENS = {"cpu": 1024, "cuda": 16384}  # of one forward pass, where the spec does not say


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


def cache_shape(wanted: int, longest: int, token_bytes: float) -> tuple[int, int]:
    """Return the rows and columns in which keys and values of answers under way are held, within ``CACHE_BYTES``.

    Args:
        wanted: most answers at once.
        longest: most tokens of a prompt with its answer.
        token_bytes: of one token's keys and values in all layers.
    """
    columns = longest + longest // SPARE + 1
    return max(1, min(wanted, int(CACHE_BYTES // max(1, columns * token_bytes)))), columns


def torch_version() -> str:
    """Return torch's major.minor, without importing torch."""
    return ".".join(version("torch").split(".")[:2])


def add_in_one_order(device: str) -> None:
    """Let no operation on a CPU add numbers in an order that depends on which thread is first: the same training then has the
    same bits. On a GPU torch would refuse operations that have no such form.
    """
    import torch

    torch.use_deterministic_algorithms(device == "cpu", warn_only=True)
    # Filling what nobody has written yet costs time, and nothing here reads it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
