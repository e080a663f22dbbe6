"""From a spec to cells: every cell with the stages that make it, and their keys. Nothing runs here."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spo_bench.errors import InputError
from spo_bench.matrix.spec import MethodSpec, ModelSpec, Spec, TaskSpec, TrainSpec
from spo_bench.methods import get_method
from spo_bench.models.embedded import embedded_identity
from spo_bench.models.numerics import Numerics
from spo_bench.models.source import EMBEDDED, resolve, tokenizer_identity, weights_identity
from spo_bench.plugins import get_task
from spo_bench.spo.settings import SpoSettings
from spo_bench.stages.base import Stage
from spo_bench.stages.registry import version
from spo_bench.store.artifacts import HashCache, digest
from spo_bench.task import Task

DATA_SEED = 0  # which rows a limit takes; never the cell's seed, so that every seed sees the same prompts
SHARED_SEED = 0  # of what all seeds share: the embedded weights, sft, the reward model


@dataclass(frozen=True)
class Cell:
    """One point of the matrix.

    Attributes:
        id: readable and unique; also a directory name.
        model, task, method: display labels; method "sft" is the policy before any preference training.
        spo: the SPO settings, None for a baseline.
        seed: of order, initialisations, dropout and sampling.
        axes: further axes, as {"fraction": 0.5}.
        stages: name -> stage; "train" is missing for the method "sft".
    """

    id: str
    model: str
    task: str
    method: str
    spo: SpoSettings | None
    seed: int
    axes: Mapping[str, Any] = field(default_factory=dict)
    stages: Mapping[str, Stage] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """Where a plan will run: what keys must not depend on, besides the device's type."""

    device: str
    hashes: HashCache
    offline: bool = False
    tasks_dirs: tuple[str, ...] = ()


def expand(spec: Spec, place: Place) -> list[Cell]:
    """Return every cell of a spec with its stages.

    Raises:
        InputError: a model, reward model or data set that is not there, or settings that cannot go together.
    """
    cells = [cell for model in spec.models for cell in ModelPlan(spec, model, place).cells()]
    if len({cell.id for cell in cells}) != len(cells):
        raise InputError(
            "two cells of this matrix have one id",
            "models, tasks and methods need different labels",
            "give a `label` to one of them",
        )
    return cells


class ModelPlan:
    """The stages of one model's cells; shared ones are made once."""

    def __init__(self, spec: Spec, model: ModelSpec, place: Place) -> None:
        self.spec, self.model, self.place = spec, model, place
        lora = spec.train.lora is not None
        dtype = model.dtype if model.dtype != "auto" else spec.train.dtype
        dtype = dtype if dtype != "auto" else ("bfloat16" if place.device.startswith("cuda") else "float32")
        self.numerics = Numerics(place.device, dtype, dtype if lora else "float32").identity()
        self.micro_tokens = spec.train.micro_tokens or (16384 if place.device.startswith("cuda") else 2048)
        self.local: dict[str, Any] = {"device": place.device, "trust_remote_code": model.trust_remote_code}
        if model.path == EMBEDDED:
            # Its products are too small for cores to share; and so its numbers do not depend on how many there are.
            self.local["threads"] = 1
        demonstrating = spec.sft_tasks or spec.tasks
        self.tasks = {t.label: get_task(t.name, t.data, place.tasks_dirs) for t in (*demonstrating, *spec.tasks)}
        self.tokenizer, self.start = self._start()
        self.demonstrations = [self._data(task) for task in demonstrating]
        self.data = {task.label: self._data(task) for task in spec.tasks}
        self.policy = self._sft() if spec.sft.steps > 0 else self.start

    def cells(self) -> Iterator[Cell]:
        """Yield the model's cells: per task and seed the SFT policy, then methods × {baseline, +SPO} × axes."""
        for task in self.spec.tasks:
            for seed in self.spec.seeds:
                yield self._cell(task, "sft", None, seed, {}, self._sft_stages(task, seed))
            for fraction in self.spec.data_axes.fraction:
                axes = {} if fraction == 1 else {"fraction": fraction}
                for method in self.spec.methods:
                    for seed in self.spec.seeds:
                        baseline = None
                        for spo in sorted(self.spec.spo, key=lambda variant: variant is not None):
                            stages = self._trained_stages(task, method, spo, seed, fraction, baseline)
                            baseline = stages["generate"] if spo is None else baseline
                            yield self._cell(task, method.label, spo, seed, axes, stages)

    def _cell(
        self,
        task: TaskSpec,
        method: str,
        spo: SpoSettings | None,
        seed: int,
        axes: Mapping[str, Any],
        stages: Mapping[str, Stage],
    ) -> Cell:
        names = [
            self.model.label,
            task.label,
            method,
            spo.label() if spo else "",
            *(f"{k}={v:g}" for k, v in axes.items()),
            f"s{seed}",
        ]
        return Cell(slug(names), self.model.label, task.label, method, spo, seed, axes, stages)

    # What all tasks and methods share.

    def _start(self) -> tuple[Stage, Stage]:
        """Return (tokenizer, weights) the model starts from."""
        if self.model.path == EMBEDDED:
            identity = embedded_identity()
            words = {key: identity[key] for key in ("chat_template", "vocabulary")}
            return (
                Stage("tokenizer", version("tokenizer"), {"embedded": digest(words), "seed": SHARED_SEED}),
                Stage("model", version("model"), {"embedded": digest(identity), "seed": SHARED_SEED}),
            )
        directory = resolve(self.model.path, self.model.revision, self.place.offline)
        tokenizer = Stage(
            "tokenizer",
            version("tokenizer"),
            dict(tokenizer_identity(directory, self.place.hashes)),
            local={"directory": str(directory)},
        )
        weights = dict(weights_identity(directory, self.place.hashes))
        if self.model.adapter is None:
            return tokenizer, Stage("model", version("model"), {"weights": weights}, local={"directory": str(directory)})
        adapter = resolve(self.model.adapter, None, self.place.offline)
        config = {"weights": weights, "adapter": dict(weights_identity(adapter, self.place.hashes)), "numerics": self.numerics}
        return tokenizer, Stage(
            "model", version("model"), config, local={**self.local, "base": str(directory), "adapter": str(adapter)}
        )

    def _data(self, task: TaskSpec) -> Stage:
        plugin = self.tasks[task.label]
        config = {
            "task": plugin.identity(),
            "limit": task.limit.model_dump(),
            "seed": DATA_SEED,
            "max_length": self.spec.train.max_length,
        }
        return Stage("data", version("data"), config, {"model": self.tokenizer}, self._task_local(task))

    def _task_local(self, task: TaskSpec) -> dict[str, Any]:
        return {"task": task.name, "data": task.data, "tasks_dirs": list(self.place.tasks_dirs), "max_dropped": task.max_dropped}

    def _sft(self) -> Stage:
        sft = self.spec.sft
        settings = self._settings(self.spec.train, SHARED_SEED) | {
            "batch_size": sft.batch_size,
            "learning_rate": sft.learning_rate,
            "warmup": sft.warmup,
            "max_steps": sft.steps,
        }
        inputs = {"model": self.start, **{f"data:{place}": stage for place, stage in enumerate(self.demonstrations)}}
        return Stage("sft", version("sft"), {"settings": settings, "numerics": self.numerics}, inputs, self.local)

    def _settings(self, train: TrainSpec, seed: int) -> dict[str, Any]:
        """Return the loop's settings of a spec, as every training stage's config holds them."""
        same = ("batch_size", "learning_rate", "epochs", "max_steps", "schedule", "warmup", "weight_decay", "clip", "packing")
        return {**{name: getattr(train, name) for name in same}, "micro_tokens": self.micro_tokens, "seed": seed}

    def _forward_config(self) -> dict[str, Any]:
        return {
            "packing": self.spec.train.packing,
            "micro_tokens": self.micro_tokens,
            "max_length": self.spec.train.max_length,
            "numerics": self.numerics,
        }

    def _reference(self, task: TaskSpec) -> Stage:
        inputs = {"policy": self.policy, "data": self.data[task.label]}
        return Stage("reference", version("reference"), self._forward_config(), inputs, self.local)

    # A cell's own.

    def _sft_stages(self, task: TaskSpec, seed: int) -> dict[str, Stage]:
        generate = self._generate(task, self.policy, seed)
        stages = {"data": self.data[task.label], "sft": self.policy, "generate": generate}
        stages["score"] = self._score(task, generate, None, None)
        return stages | self._rewards(task, generate) | self._judgments(task, generate, {"chosen": None})

    def _trained_stages(
        self, task: TaskSpec, method: MethodSpec, spo: SpoSettings | None, seed: int, fraction: float, baseline: Stage | None
    ) -> dict[str, Stage]:
        train = self._train(task, method, spo, seed, fraction)
        generate = self._generate(task, train, seed)
        opponents: dict[str, Stage | None] = {"sft": self._generate(task, self.policy, seed), "chosen": None}
        if spo is not None and baseline is not None:
            opponents["baseline"] = baseline
        stages = {
            "data": self.data[task.label],
            "sft": self.policy,
            "reference": self._reference(task),
            "train": train,
            "generate": generate,
        }
        stages["score"] = self._score(task, generate, train, method)
        return stages | self._rewards(task, generate) | self._judgments(task, generate, opponents)

    def _train(self, task: TaskSpec, method: MethodSpec, spo: SpoSettings | None, seed: int, fraction: float) -> Stage:
        declaration = get_method(method.name)
        train = self.spec.train.model_copy(update=method.train)
        settings = self._settings(train, seed)
        if declaration.needs_kl and train.batch_size < 2:
            raise InputError(
                f"method '{method.name}' with batch_size {train.batch_size}",
                "it pairs each prompt with another one's answer",
                "set batch_size to at least 2",
            )
        config = {
            "method": method_identity(method),
            "spo": {"settings": spo.model_dump(mode="json"), "version": spo.identity()["version"]} if spo else None,
            "settings": settings,
            "fraction": fraction,
            "lora": train.lora.model_dump(mode="json") if train.lora else None,
            "gradient_checkpointing": train.gradient_checkpointing,
            "max_length": train.max_length,
            "numerics": self.numerics,
        }
        data = self.data[task.label]
        inputs = {"policy": self.policy, "data": data, "reference": self._reference(task)}
        if declaration.needs_kl:
            matched = {"settings": settings, "fraction": fraction, "max_length": train.max_length, "numerics": self.numerics}
            inputs["mismatched"] = Stage(
                "mismatched", version("mismatched"), matched, {"policy": self.policy, "data": data}, self.local
            )
        if spo is not None and spo.text == "on_policy":
            inputs["samples"] = self._generate(task, self.policy, SHARED_SEED, split="train")
        return Stage("train", version("train"), config, inputs, self.local)

    def _generate(self, task: TaskSpec, policy: Stage, seed: int, split: str = "eval") -> Stage:
        # Token by token, weights are read once a token: they are held in the type they are computed in.
        numerics = {**self.numerics, "held": self.numerics["dtype"]}
        config = {"settings": self.spec.generate.model_dump(mode="json"), "seed": seed, "split": split, "numerics": numerics}
        inputs = {"policy": policy, "base": self.policy, "data": self.data[task.label]}
        return Stage("generate", version("generate"), config, inputs, self.local)

    def _score(self, task: TaskSpec, samples: Stage, train: Stage | None, method: MethodSpec | None) -> Stage:
        plugin: Task = self.tasks[task.label]
        config = {
            "metrics": list(dict.fromkeys([*plugin.metrics, *task.metrics])),
            "method": method_identity(method) if method else None,
            "task": plugin.identity(),
            **self._forward_config(),
        }
        inputs = {"samples": samples, "data": self.data[task.label], "base": self.policy}
        if train is not None:
            inputs |= {"policy": train, "reference": self._reference(task)}
        return Stage("score", version("score"), config, inputs, {**self.local, **self._task_local(task)})

    def _reward_model(self, task: TaskSpec, name: str) -> Stage:
        if name != "trained":
            directory = resolve(name, None, self.place.offline)
            return Stage(
                "model",
                version("model"),
                {"weights": dict(weights_identity(directory, self.place.hashes))},
                local={"directory": str(directory)},
            )
        wanted = self.spec.reward_training
        settings = self._settings(self.spec.train, SHARED_SEED) | wanted.model_dump(mode="json")
        config = {"settings": settings, "max_length": self.spec.train.max_length, "numerics": self.numerics}
        return Stage(
            "reward_model", version("reward_model"), config, {"policy": self.policy, "data": self.data[task.label]}, self.local
        )

    def _reward(self, task: TaskSpec, name: str, samples: Stage | None) -> Stage:
        limit = self.spec.train.max_length + self.spec.generate.max_new_tokens
        config = {"max_length": limit, "numerics": self.numerics, "of": "samples" if samples else "chosen"}
        inputs = {"reward_model": self._reward_model(task, name), "data": self.data[task.label]}
        return Stage("reward", version("reward"), config, inputs | ({"samples": samples} if samples else {}), self.local)

    def _rewards(self, task: TaskSpec, samples: Stage) -> dict[str, Stage]:
        return {f"reward/{reward_label(name)}": self._reward(task, name, samples) for name in self.spec.rewards}

    def _judgments(self, task: TaskSpec, samples: Stage, opponents: Mapping[str, Stage | None]) -> dict[str, Stage]:
        """Return a judge stage an opponent (None: the data's chosen answers), none where the spec has no judge."""
        kind, target = judge_of(self.spec, self.tasks[task.label])
        if kind is None:
            return {}
        judge: dict[str, Any] = {"kind": kind}
        shared: dict[str, Stage] = {"data": self.data[task.label], "samples": samples}
        local = {**self.local, **self._task_local(task)}
        if kind == "gold":
            judge["task"] = self.tasks[task.label].identity()
        elif kind == "openai" and self.spec.judge is not None:
            wanted = self.spec.judge.model_dump(mode="json", exclude={"backend"})
            numbers = ("model", "base_url", "max_tokens", "temperature")
            judge |= {"template": self.tasks[task.label].judge_prompt, **{key: wanted[key] for key in numbers}}
            # One purse for the whole run, and replies that outlive a stage that fails.
            traffic = {key: value for key, value in wanted.items() if key not in numbers}
            local["judge"] = {**traffic, "cache": str(self.place.hashes.root / "judge.sqlite"), "budget": self.spec.name}
        elif kind == "reward":
            shared["own_rewards"] = self._reward(task, target, samples)
        else:
            directory = resolve(target, None, self.place.offline)
            judge |= {"template": self.tasks[task.label].judge_prompt, "max_length": 4096}
            shared["judge_model"] = Stage(
                "model",
                version("model"),
                {"weights": dict(weights_identity(directory, self.place.hashes))},
                local={"directory": str(directory)},
            )
        stages = {}
        for name, opponent in opponents.items():
            inputs = shared | ({"opponent": opponent} if opponent else {})
            if kind == "reward":
                inputs["opponent_rewards"] = self._reward(task, target, opponent)
            config = {"judge": judge, "opponent": name, "numerics": self.numerics}
            stages[f"judge/{name}"] = Stage("judge", version("judge"), config, inputs, local)
        return stages


def method_identity(method: MethodSpec) -> dict[str, Any]:
    """Return what a method is: name, version of its loss, all hyperparameters."""
    return {"name": method.name, "version": get_method(method.name).version, "hyperparameters": dict(method.hyperparameters)}


def reward_label(name: str) -> str:
    """Return a reward model's short name for tables: the last part of its path or hub id."""
    return Path(name).name


def judge_of(spec: Spec, task: Task) -> tuple[str | None, str]:
    """Return (gold, reward, local, openai or None, what it names).

    Without a judge in the spec, a controlled world is judged by its known reward and other tasks by the first reward model.

    Raises:
        InputError: a judge that cannot judge this task.
    """
    judge = spec.judge
    if judge is None:
        return ("gold", "") if task.controlled else ("reward", spec.rewards[0]) if spec.rewards else (None, "")
    if judge.backend == "gold" and not task.controlled:
        raise InputError(
            f"judge gold for task '{task.name}'",
            "only a controlled world has a known reward",
            "judge with reward:NAME or local:MODEL",
        )
    return judge.backend, judge.model or ""


def slug(names: Sequence[str]) -> str:
    """Return a directory name from labels; a short hash keeps labels apart that differ only in what is left out."""
    plain = "-".join(part for part in (re.sub(r"[^A-Za-z0-9_.=]+", "_", name).strip("_.") for name in names) if part)
    mark = hashlib.sha256("\0".join(names).encode()).hexdigest()[:6]
    return f"{plain[:100]}-{mark}"
