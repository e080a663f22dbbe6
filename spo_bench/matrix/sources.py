"""The models that a matrix takes from outside, each with what has to be true of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spo_bench.errors import InputError
from spo_bench.matrix.checks import check_size
from spo_bench.matrix.spec import TRAINED, ModelSpec, Spec
from spo_bench.models.source import (
    EMBEDDED,
    assumed_config,
    check_policy,
    check_reward_model,
    check_weights,
    find,
    is_adapter,
    layers_and_positions,
    resolve,
    tokenizer_files,
)


@dataclass(frozen=True)
class Source:
    """A model on disk or on a hub.

    Attributes:
        name: directory or hub id.
        check: raises InputError where the directory does not hold what is asked of it.
        revision: of a hub model.
        with_code: whether code that comes with it may run, and is fetched too.
    """

    name: str
    check: Callable[[Path], object]
    revision: str | None = None
    with_code: bool = False

    def look(self, offline: bool) -> None:
        """Check as much as can be known without fetching anything.

        Raises:
            InputError: it is not there and could not be fetched, or it is not what is asked for.
        """
        if (directory := find(self.name, self.revision, offline, self.with_code)) is not None:
            self._check(directory)

    def fetch(self, offline: bool) -> Path:
        """Return its directory; raises InputError as ``look``."""
        directory = resolve(self.name, self.revision, offline, self.with_code)
        self._check(directory)
        return directory

    def assumed(self) -> dict[str, Any] | None:
        """Return the config by which a model is planned that is not here, None for one that is.

        Raises:
            InputError: a path where nothing is, or a hub id of which nothing is known.
        """
        return assumed_config(self.name, self.revision)

    def _check(self, directory: Path) -> None:
        check_weights(directory)
        self.check(directory)


def start(spec: Spec, model: ModelSpec) -> Source:
    """Return the model that policies start from; it has the layers and positions that the spec asks for."""

    def check(directory: Path) -> None:
        _reads_and_writes(directory)
        check_size(spec, str(directory), *layers_and_positions(directory))

    return Source(model.path, check, model.revision, model.trust_remote_code)


def adapter(name: str) -> Source:
    """Return an adapter, which sits on a model's weights and has its tokenizer."""

    def check(directory: Path) -> None:
        if not is_adapter(directory):
            raise InputError(
                f"adapter '{directory}' holds no adapter_config.json",
                "an adapter is what peft saved of it, not full weights",
                "give full weights as the model's path",
            )

    return Source(name, check)


def language_model(name: str) -> Source:
    """Return a model that only answers: a judge, or one whose answers compete."""
    return Source(name, _reads_and_writes)


def reward_model(name: str) -> Source:
    """Return a reward model."""

    def check(directory: Path) -> None:
        check_reward_model(directory)
        tokenizer_files(directory)

    return Source(name, check)


def _reads_and_writes(directory: Path) -> None:
    check_policy(directory)
    tokenizer_files(directory)


def named_in(spec: Spec) -> Iterator[Source]:
    """Yield every model that a spec names, each once."""
    for model in spec.models:
        if model.path != EMBEDDED:
            yield start(spec, model)
        if model.adapter is not None:
            yield adapter(model.adapter)
    if spec.judge is not None and spec.judge.backend == "local":
        yield language_model(str(spec.judge.model))
    for name in dict.fromkeys(name for regime in spec.data_axes.regime for name in regime.models):
        yield language_model(name)
    asked = [*(one.labeller for one in spec.data_axes.regime), *(one.scores for one in spec.data_axes.relabel)]
    scorers = [*spec.rewards, *(name.removeprefix("reward:") for name in asked if name and name.startswith("reward:"))]
    if spec.judge is not None and spec.judge.backend == "reward":
        scorers.append(str(spec.judge.model))
    for name in dict.fromkeys(scorers):
        if name != TRAINED:
            yield reward_model(name)
