"""What a stage is: a node of the plan whose key is made of everything that can change its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from spo_bench.models.numerics import Numerics
from spo_bench.ranks import ALONE, Ranks
from spo_bench.store.artifacts import Store, digest
from spo_bench.store.checkpoints import Checkpoint
from spo_bench.store.live import Live


@dataclass(frozen=True, eq=False)
class Stage:
    """One step in making a cell.

    Attributes:
        kind: data, model, sft, reference, train, generate, score, reward_model, reward, judge.
        version: of the code that makes it; raised whenever that code changes what it returns.
        config: everything besides the inputs that can change its numbers; JSON values.
        inputs: the stages whose artifacts it reads.
        local: what it needs to run here and must not change its numbers (paths, devices); never part of the key.
    """

    kind: str
    version: int
    config: Mapping[str, Any]
    inputs: Mapping[str, Stage] = field(default_factory=dict)
    local: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the key is made of."""
        return {
            "kind": self.kind,
            "version": self.version,
            "config": dict(self.config),
            "inputs": {name: stage.key for name, stage in self.inputs.items()},
        }

    @cached_property
    def key(self) -> str:
        """The artifact's name in the store."""
        return digest(self.identity)

    @property
    def on_disk(self) -> bool:
        """Whether it is a model that already lies on disk and is its own artifact."""
        return "directory" in self.local

    def path(self, store: Store) -> Path:
        """Return the artifact's directory."""
        if self.on_disk:
            return Path(self.local["directory"])
        return store.path(self.kind, self.key)

    def fetch(self, store: Store, weights: bool = True) -> Path:
        """Return the artifact's directory, brought to this machine where it is not; without ``weights`` these may stay away."""
        return self.path(store) if self.on_disk else store.fetch(self.kind, self.key, weights)

    def here(self, store: Store) -> bool:
        """Say whether the artifact is on this machine."""
        return self.on_disk or store.here(self.kind, self.key)

    def done(self, store: Store) -> bool:
        """Say whether the artifact is there."""
        return self.on_disk or store.has(self.kind, self.key)


@dataclass(frozen=True)
class Work:
    """What a stage's function gets.

    Attributes:
        out: an empty directory to write the artifact into.
        config: the stage's config.
        inputs: directories of the input artifacts.
        local: the stage's local settings.
        checkpoint: what it keeps to go on where it was stopped.
        ranks: the processes that do it together; what those after the first write into their ``out`` is thrown away.
        live: who follows the rows of a training.
    """

    out: Path
    config: Mapping[str, Any]
    inputs: Mapping[str, Path]
    local: Mapping[str, Any]
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    ranks: Ranks = ALONE
    live: Live = field(default_factory=Live)

    @property
    def numerics(self) -> Numerics:
        """Device and compute type of this stage."""
        numerics = self.config["numerics"]
        return Numerics(self.local.get("device", numerics["device"]), numerics["dtype"], numerics["held"])


def policy_at(directory: Path) -> Path:
    """Return where a policy's files are: a trained one lies in ``policy/`` of its artifact, others are the artifact."""
    return directory / "policy" if (directory / "policy").is_dir() else directory


def plain_data(stage: Stage) -> Stage | None:
    """Return the data that a stage reads, or is, before any data axis changed it; None where it reads none."""
    while stage.kind != "data":
        if "data" not in stage.inputs:
            return None
        stage = stage.inputs["data"]
    return stage


def smaller(config: Mapping[str, Any], halvings: int) -> dict[str, Any]:
    """Return a stage's config with what goes through the model at once halved so many times: tokens of a forward pass, and
    answers under way. What is computed stays the same but for rounding.
    """
    found: dict[str, Any] = {}
    for name, value in config.items():
        # Training settings have a batch size too, but that is what a step means; answers have a length beside it.
        at_once = name == "micro_tokens" or (name == "batch_size" and "max_new_tokens" in config)
        if isinstance(value, Mapping):
            found[name] = smaller(value, halvings)
        else:
            found[name] = max(1, value >> halvings) if at_once else value
    return found
