"""From a spec to cells: every cell with the stages that make it, and their keys. Nothing runs here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spo_bench.errors import InputError
from spo_bench.judging.api import ApiJudge
from spo_bench.judging.api_text import check_template
from spo_bench.matrix.identity import judge_of, method_identity, metric_content, metric_label, reward_label, slug, task_identity
from spo_bench.matrix.spec import MethodSpec, ModelSpec, Spec, TaskSpec, TrainSpec
from spo_bench.methods import get_method
from spo_bench.models.embedded import embedded_identity
from spo_bench.models.numerics import Numerics
from spo_bench.models.source import (
    EMBEDDED,
    check_reward_model,
    layers_and_positions,
    model_identity,
    resolve,
    tokenizer_identity,
    weights_identity,
)
from spo_bench.plugins import get_task
from spo_bench.spo.settings import SpoSettings
from spo_bench.stages.base import Stage
from spo_bench.stages.registry import version
from spo_bench.store.artifacts import HashCache, digest

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
        self.full = {**self.numerics, "held": "float32"}  # where all weights are trained, whatever the methods train
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
            size = identity["architecture"]
            self._check_size(EMBEDDED, size["num_hidden_layers"], size["max_position_embeddings"])
            read = {key: identity[key] for key in ("chat_template", "vocabulary")}
            return (
                Stage("tokenizer", version("tokenizer"), {"embedded": digest(read), "seed": SHARED_SEED}),
                Stage("model", version("model"), {"embedded": digest(identity), "seed": SHARED_SEED}),
            )
        directory = resolve(self.model.path, self.model.revision, self.place.offline, self.model.trust_remote_code)
        self._check_size(str(directory), *layers_and_positions(directory))
        words = tokenizer_identity(directory, self.place.hashes)
        tokenizer = Stage("tokenizer", version("tokenizer"), words, local={"directory": str(directory)})
        weights = weights_identity(directory, self.place.hashes)
        if self.model.adapter is None:
            return tokenizer, Stage("model", version("model"), {"weights": weights}, local={"directory": str(directory)})
        adapter = resolve(self.model.adapter, None, self.place.offline)
        parts = {"weights": weights, "tokenizer": words, "adapter": weights_identity(adapter, self.place.hashes)}
        local = {**self.local, "base": str(directory), "adapter": str(adapter)}
        return tokenizer, Stage("model", version("model"), {**parts, "numerics": self.full}, local=local)

    def _check_size(self, name: str, layers: int | None, positions: int | None) -> None:
        """Refuse lengths and layers a model does not have, before anything is made."""
        wanted = self.spec.train.max_length + self.spec.generate.max_new_tokens
        if positions is not None and wanted > positions:
            raise InputError(
                f"max_length {self.spec.train.max_length} plus max_new_tokens {self.spec.generate.max_new_tokens} for '{name}'",
                f"prompt and answer must fit into the model's {positions} positions",
                "lower train.max_length or generate.max_new_tokens",
            )
        for spo in self.spec.spo:
            if spo is not None and layers is not None and not -layers - 1 <= spo.layer <= layers:
                rule = f"the model has hidden states 0 (the embeddings) to {layers}, or -1 to {-layers - 1} from the end"
                raise InputError(f"spo layer {spo.layer} for '{name}'", rule, "choose one of these")

    def _on_disk(self, directory: Path) -> Stage:
        """Return the stage of a model that is only read: weights and tokenizer are both what it is."""
        return Stage("model", version("model"), model_identity(directory, self.place.hashes), local={"directory": str(directory)})

    def _data(self, task: TaskSpec) -> Stage:
        config = {
            "task": task_identity(self.tasks[task.label]),
            "limit": task.limit.model_dump(),
            "seed": DATA_SEED,
            "max_length": self.spec.train.max_length,
        }
        return Stage("data", version("data"), config, {"model": self.tokenizer}, {**self.local, **self._task_local(task)})

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
        config = {
            "settings": settings,
            "gradient_checkpointing": self.spec.train.gradient_checkpointing,
            "numerics": self.full,
        }
        return Stage("sft", version("sft"), config, inputs, self.local)

    def _settings(self, train: TrainSpec, seed: int) -> dict[str, Any]:
        """Return the loop's settings of a spec, as every training stage's config holds them."""
        same = ("batch_size", "learning_rate", "epochs", "max_steps", "schedule", "warmup", "weight_decay", "clip")
        shared = {"micro_tokens": self.micro_tokens, "packing": train.packing, "max_length": train.max_length}
        return {**{name: getattr(train, name) for name in same}, **shared, "seed": seed}

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
            "numerics": self.numerics,
        }
        data = self.data[task.label]
        inputs = {"policy": self.policy, "data": data, "reference": self._reference(task)}
        if declaration.needs_kl:
            matched = {"settings": settings, "fraction": fraction, "numerics": self.numerics}
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
        metrics = {metric_label(name): name for name in (*self.tasks[task.label].metrics, *task.metrics)}
        config = {
            "metrics": {label: metric_content(name) for label, name in metrics.items()},
            "method": method_identity(method) if method else None,
            "task": task_identity(self.tasks[task.label]),
            **self._forward_config(),
        }
        inputs = {"samples": samples, "data": self.data[task.label], "base": self.policy}
        if train is not None:
            inputs |= {"policy": train, "reference": self._reference(task)}
        return Stage("score", version("score"), config, inputs, {**self.local, **self._task_local(task), "metrics": metrics})

    def _reward_model(self, task: TaskSpec, name: str) -> Stage:
        if name != "trained":
            directory = resolve(name, None, self.place.offline)
            check_reward_model(directory)
            return self._on_disk(directory)
        wanted = self.spec.reward_training
        settings = self._settings(self.spec.train, SHARED_SEED) | wanted.model_dump(mode="json")
        config = {
            "settings": settings,
            "gradient_checkpointing": self.spec.train.gradient_checkpointing,
            "max_length": self._judged_length(),
            "numerics": self.full,
        }
        inputs = {"policy": self.policy, "data": self.data[task.label]}
        return Stage("reward_model", version("reward_model"), config, inputs, self.local)

    def _judged_length(self) -> int:
        """Return the most tokens a prompt with an answer has: the data's limit and a generated answer."""
        return self.spec.train.max_length + self.spec.generate.max_new_tokens

    def _reward(self, task: TaskSpec, name: str, samples: Stage | None) -> Stage:
        config = {"max_length": self._judged_length(), "numerics": self.numerics, "of": "samples" if samples else "chosen"}
        inputs = {"reward_model": self._reward_model(task, name), "data": self.data[task.label]}
        # Trust in the policy's own code is no trust in a reward model's.
        local = self.local if name == "trained" else {**self.local, "trust_remote_code": False}
        return Stage("reward", version("reward"), config, inputs | ({"samples": samples} if samples else {}), local)

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
            judge["task"] = task_identity(self.tasks[task.label])
        elif kind == "openai" and self.spec.judge is not None:
            wanted = self.spec.judge.model_dump(mode="json", exclude={"backend"})
            numbers = ("model", "base_url", "max_tokens", "temperature")
            judge |= {"template": self.tasks[task.label].judge_prompt, **{key: wanted[key] for key in numbers}}
            # One purse for the whole run, and replies that outlive a stage that fails.
            traffic = {key: value for key, value in wanted.items() if key not in numbers}
            local["judge"] = {**traffic, "cache": str(self.place.hashes.root / "judge.sqlite"), "budget": self.spec.name}
            ApiJudge(**{key: value for key, value in judge.items() if key != "kind"}, **traffic)  # refuses what cannot work
        elif kind == "reward":
            shared["own_rewards"] = self._reward(task, target, samples)
        else:
            directory = resolve(target, None, self.place.offline)
            template = self.tasks[task.label].judge_prompt
            check_template(template)
            judge |= {"template": template, "max_length": min(4096, layers_and_positions(directory)[1] or 4096)}
            shared["judge_model"] = self._on_disk(directory)
            local |= {"trust_remote_code": False, "judge_name": target}
        stages = {}
        for name, opponent in opponents.items():
            inputs = shared | ({"opponent": opponent} if opponent else {})
            if kind == "reward":
                inputs["opponent_rewards"] = self._reward(task, target, opponent)
            config = {"judge": judge, "opponent": name, "numerics": self.numerics}
            stages[f"judge/{name}"] = Stage("judge", version("judge"), config, inputs, local)
        return stages
