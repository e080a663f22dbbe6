"""What a stage is: a node of the plan whose key is made of everything that can change its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from spo_bench.models.numerics import Numerics
from spo_bench.store.artifacts import Store, digest


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

    def path(self, store: Store) -> Path:
        """Return the artifact's directory; a model that already lies on disk is its own artifact."""
        if "directory" in self.local:
            return Path(self.local["directory"])
        return store.path(self.kind, self.key)

    def done(self, store: Store) -> bool:
        """Say whether the artifact is there."""
        return "directory" in self.local or store.has(self.kind, self.key)


@dataclass(frozen=True)
class Work:
    """What a stage's function gets.

    Attributes:
        out: an empty directory to write the artifact into.
        config: the stage's config.
        inputs: directories of the input artifacts.
        local: the stage's local settings.
    """

    out: Path
    config: Mapping[str, Any]
    inputs: Mapping[str, Path]
    local: Mapping[str, Any]

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
