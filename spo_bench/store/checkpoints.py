"""What a stage keeps while it runs, so that it goes on where it was stopped, with the same numbers."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from spo_bench import stopping
from spo_bench.errors import Interrupted, Unreachable
from spo_bench.store import sealed, shards
from spo_bench.store.provenance import packages

if TYPE_CHECKING:
    from torch import Tensor

EVERY = 600.0  # seconds between two checkpoints, unless keeping one takes more than a twentieth of that
SHARE = 20.0
FILE_BYTES = 1 << 28  # tensors of one file: so much is copied at a time when it is written
State = tuple[Mapping[str, "Tensor"], Mapping[str, Any]]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was found.

    Attributes:
        folder: where it is.
        values: its JSON values.
    """

    folder: Path
    values: Mapping[str, Any]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor by name, one at a time."""
        from safetensors import safe_open

        for path in sorted(self.folder.glob("*.safetensors")):
            with safe_open(str(path), framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a mapping
                    yield name, file.get_tensor(name)

    def restore(self, into: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copy tensors into those of the same names; return the others. Where ranks hold parts of them, all have to call.

        Raises:
            ValueError: one to copy into was not kept.
        """
        if any(self.folder.glob(shards.PATTERN)) or any(hasattr(tensor, "full_tensor") for tensor in into.values()):
            return shards.read(self.folder, into)
        left, rest = set(into), dict[str, Any]()
        for name, tensor in self.tensors():
            if name in into:
                into[name].detach().copy_(tensor)
                left.discard(name)
            else:
                rest[name] = tensor
        if left:
            raise ValueError(f"the checkpoint has no {sorted(left)[0]}")
        return rest


class Beyond(Protocol):
    """A second place for the newest checkpoint of a stage, from which another machine can go on."""

    def fetch(self, folder: Path, newest: int) -> None:
        """Bring the newest into a folder, if its number is above ``newest``."""

    def keep(self, folder: Path) -> None:
        """Keep a checkpoint, in place of those before it."""

    def clear(self) -> None:
        """Remove all of them."""


class Checkpoint:
    """One stage's checkpoints, of which only the newest stays. Numbers are kept as they are; none is written as a pickle.

    Args:
        folder: where they are; None: nothing is kept, and a signal ends the stage at once.
        every: seconds between two; 0: after every step.
        beyond: where they are kept besides.
    """

    def __init__(self, folder: Path | None = None, every: float = EVERY, beyond: Beyond | None = None) -> None:
        self.folder, self.every, self.beyond = folder, every, beyond
        self._begun, self._cost, self._number = time.monotonic(), 0.0, 0

    def load(self) -> Saved | None:
        """Return the newest checkpoint that is whole and was kept by the same code; None where there is none."""
        if self.folder is None:
            return None
        if self.beyond is not None:
            self.beyond.fetch(self.folder, max((int(path.name) for path in self._numbered()), default=0))
        there = sorted(self._numbered(), key=lambda path: -int(path.name))
        self._number = int(there[0].name) if there else 0
        for folder in there:
            if why := sealed.fault(folder):
                log.warning("checkpoint %s is not used: %s", folder, why)
                continue
            record = sealed.record(folder)
            if record["made_by"] != made_by():
                log.warning("checkpoint %s is not used: it was kept by other versions (%s)", folder, record["made_by"])
                continue
            return Saved(folder, record["values"])
        return None

    def _numbered(self) -> list[Path]:
        there = self.folder is not None and self.folder.is_dir()
        return [path for path in self.folder.iterdir() if path.name.isdigit()] if self.folder is not None and there else []

    def keeping(self) -> AbstractContextManager[None]:
        """Let a signal wait for the next ``step`` while the context lasts."""
        return nullcontext() if self.folder is None else stopping.held()

    @contextmanager
    def at_any_time(self, state: Callable[[], State]) -> Iterator[None]:
        """Keep the state when the context is stopped, wherever that is: for a state that always is one to go on from."""
        try:
            yield
        except Interrupted:
            if self.folder is not None:
                with stopping.held():
                    self._keep(*state())
            raise

    def step(self, state: Callable[[], State]) -> None:
        """Keep the state between two steps, where that is due or the run is asked to stop.

        Raises:
            Interrupted: the run is asked to stop, and the state is kept.
        """
        if self.folder is None:
            return
        due = time.monotonic() - self._begun >= (max(self.every, SHARE * self._cost) if self.every else 0)
        stop = self._agreed(stopping.wanted())
        if stop or self._agreed(due):
            self._keep(*state())
            stop = stop or self._agreed(stopping.wanted())
        if stop:
            raise Interrupted(stopping.STOPPED)

    def _agreed(self, wish: bool) -> bool:
        """Say whether what this process wishes is done: the same for all that keep a checkpoint together."""
        return wish

    def _keep(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        assert self.folder is not None  # noqa: S101 - for the type checker; ``step`` asked
        started = time.monotonic()
        part = self.folder / "part"
        try:
            self._write(part, tensors, values)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        self._begun = time.monotonic()
        self._cost = self._begun - started

    def _write(self, part: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Write everything into a folder that is not there yet, and give it its place."""
        from safetensors.torch import save_file

        self._begin(part)
        for number, some in enumerate(_files(tensors)):
            save_file({name: tensor.detach().contiguous() for name, tensor in some.items()}, part / f"{number:05}.safetensors")
        self._place(part, values)

    def _begin(self, part: Path) -> None:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)

    def _place(self, part: Path, values: Mapping[str, Any]) -> None:
        """Make a folder with all tensors the newest checkpoint, and the only one."""
        self._number += 1
        final = part.with_name(str(self._number))
        sealed.seal(part, {"made_by": made_by(), "values": dict(values)})
        os.rename(part, final)
        for folder in part.parent.iterdir():
            if folder != final and folder.is_dir():  # the rows for who follows the training are a file
                shutil.rmtree(folder, ignore_errors=True)
        if self.beyond is not None:
            try:
                self.beyond.keep(final)
            except Unreachable as error:  # nothing is lost here, and the next one may get through
                log.warning("checkpoint %s is on this machine alone: %s", final, error.given)

    def clear(self) -> None:
        """Remove what is kept: the stage has left its artifact."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
        if self.beyond is not None:
            self.beyond.clear()


def made_by() -> dict[str, str | None]:
    """Return the versions that a checkpoint is bound to: a number has one origin."""
    import spo_bench

    return {"spo_bench": spo_bench.__version__, **{name: packages()[name] for name in ("torch", "transformers", "peft")}}


def _files(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield the tensors in parts of about ``FILE_BYTES``."""
    part, size = dict[str, Any](), 0
    for name, tensor in tensors.items():
        if part and size + tensor.nbytes > FILE_BYTES:
            yield part
            part, size = {}, 0
        part[name] = tensor
        size += tensor.nbytes
    if part:
        yield part
