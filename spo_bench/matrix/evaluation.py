"""The stages that evaluate a policy: scores, reward models, judges. Nothing runs here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spo_bench.errors import InputError
from spo_bench.judging.api import ApiJudge
from spo_bench.judging.capabilities import place as place_of
from spo_bench.judging.prompt import check_template
from spo_bench.judging.reading import PARSER
from spo_bench.judging.settings import LONGEST, longest
from spo_bench.matrix import sources
from spo_bench.matrix.identity import judge_of, method_identity, metric_content, metric_label, reward_label
from spo_bench.matrix.kept import kept
from spo_bench.matrix.sections import JudgeSpec
from spo_bench.matrix.sources import Source
from spo_bench.matrix.spec import MethodSpec, Spec, TaskSpec
from spo_bench.models.source import model_identity
from spo_bench.stages.base import Stage
from spo_bench.stages.registry import version
from spo_bench.store.hashes import HashCache
from spo_bench.task import Task

RETESTED = 0.2  # share of the audited pairs that are judged twice
ATTACKED = 2  # audited pairs on which every attack is tried


@dataclass(frozen=True)
class Place:
    """Where a plan will run: what keys must not depend on, besides the device's type.

    Attributes:
        device: "cpu" or "cuda[:i]".
        hashes: of files; its root is the store's.
        offline: never ask a hub.
        tasks_dirs: further folders of task plugins.
        purse: the name under which this run's spending on a judge counts together.
        assume: whether hub models and data that are not here stand in a plan by their names; keys made of such stages are those
            of no run.
    """

    device: str
    hashes: HashCache
    offline: bool = False
    tasks_dirs: tuple[str, ...] = ()
    purse: str = ""
    assume: bool = False


def read_only(source: Source, place: Place) -> Stage:
    """Return the stage of a model that is only read: weights and tokenizer are both what it is."""
    if (stage := stand_in(source, place)) is not None:
        return stage
    directory = source.fetch(place.offline)
    return Stage("model", version("model"), model_identity(directory, place.hashes), local={"directory": str(directory)})


def stand_in(source: Source, place: Place, kind: str = "model") -> Stage | None:
    """Return the stage by which a plan knows a hub model that is not here; None where it is, or nothing may be assumed.

    Raises:
        InputError: nothing is known of it.
    """
    config = source.assumed() if place.assume else None
    if config is None:
        return None
    named = {"assumed": source.name, "revision": source.revision}
    return Stage(kind, version(kind), named, local={"assumed": source.name, "config": config})


def task_local(task: TaskSpec, place: Place) -> dict[str, Any]:
    """Return what a stage needs to load a task here."""
    return {"task": task.name, "data": task.data, "tasks_dirs": list(place.tasks_dirs), "max_dropped": task.max_dropped}


def endpoint_settings(judge: JudgeSpec, template: str, purse: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what of a judge behind an endpoint can change a verdict, and what cannot: its traffic and what it may cost."""
    wanted = judge.model_dump(mode="json")
    verdicts = ("orders", "model", "verdict", "max_tokens", "temperature")
    traffic = ("base_url", "api_key_env", "concurrency", "timeout", "max_calls", "max_cost", "price_input", "price_output")
    return (
        {"template": template, **{key: wanted[key] for key in verdicts}},
        {**{key: wanted[key] for key in traffic}, "budget": purse},
    )


@dataclass(frozen=True)
class Evaluation:
    """How one model's policies are evaluated.

    Attributes:
        spec, place, tasks: the matrix, where it runs, its tasks by label.
        identities: what each task is, by label.
        data: the plain data of every task by label; a cell's own data may be a view of it, with the same prompts.
        policy: the SFT policy, which adapters sit on and reward models start from.
        local, numerics, full: of every stage of this model; ``full`` where all weights are trained.
        forward: config of stages that only read log-probabilities.
        settings: of a training loop that all seeds share.
    """

    spec: Spec
    place: Place
    tasks: Mapping[str, Task]
    identities: Mapping[str, Mapping[str, Any]]
    data: Mapping[str, Stage]
    policy: Stage
    local: Mapping[str, Any]
    numerics: Mapping[str, Any]
    full: Mapping[str, Any]
    forward: Mapping[str, Any]
    settings: Mapping[str, Any]

    def score(
        self,
        task: TaskSpec,
        data: Stage,
        samples: Stage,
        train: Stage | None,
        method: MethodSpec | None,
        reference: Stage | None,
    ) -> Stage:
        """Return what needs no opponent; ``train``, ``method`` and ``reference`` are None for the SFT policy itself."""
        metrics, contents = self._metrics(task)
        config = {
            "metrics": contents,
            "method": method_identity(method) if method else None,
            "task": self.identities[task.label],
            **self.forward,
        }
        inputs = {"samples": samples, "data": data, "base": self.policy}
        if train is not None and reference is not None:
            inputs |= {"policy": train, "reference": reference}
        return Stage(
            "score", version("score"), config, inputs, {**self.local, **task_local(task, self.place), "metrics": metrics}
        )

    @kept
    def _metrics(self, task: TaskSpec) -> tuple[dict[str, str], dict[str, str | None]]:
        """Return a task's metrics, label -> name and label -> hash of the local script that is one."""
        metrics = {metric_label(name): name for name in (*self.tasks[task.label].metrics, *task.metrics)}
        return metrics, {label: metric_content(name) for label, name in metrics.items()}

    @kept
    def reward_model(self, task: TaskSpec, name: str) -> Stage:
        """Return a reward model: on disk, or trained on the task's held-out pairs."""
        if name != "trained":
            return read_only(sources.reward_model(name), self.place)
        wanted = self.spec.reward_training
        settings = {**self.settings, **wanted.model_dump(mode="json")}
        config = {
            "settings": settings,
            "gradient_checkpointing": self.spec.train.gradient_checkpointing,
            "max_length": self.judged_length,
            "numerics": self.full,
            "scores": self.spec.reward_dtype,
        }
        inputs = {"policy": self.policy, "data": self.data[task.label]}
        return Stage("reward_model", version("reward_model"), config, inputs, self.local)

    @property
    def judged_length(self) -> int:
        """Return the most tokens a prompt with an answer has: the data's limit and a generated answer."""
        return self.spec.train.max_length + self.spec.generate.max_new_tokens

    def scores(self) -> dict[str, Any]:
        """Return what decides a reward model's numbers inside a stage that does more: the code that scores, and the type."""
        return {"version": version("reward"), "dtype": self.spec.reward_dtype}

    @property
    def scoring(self) -> dict[str, Any]:
        """Return the numerics of stages that only run a reward model."""
        return {**self.numerics, "dtype": self.spec.reward_dtype, "held": self.spec.reward_dtype}

    @kept
    def _reward(self, task: TaskSpec, name: str, samples: Stage | None) -> Stage:
        """Return a reward model's scores of a policy's answers, or of the data's chosen ones, to the task's plain prompts."""
        config = {"max_length": self.judged_length, "numerics": self.scoring, "of": "samples" if samples else "chosen"}
        inputs = {"reward_model": self.reward_model(task, name), "data": self.data[task.label]}
        # Trust in the policy's own code is no trust in a reward model's.
        local = self.local if name == "trained" else {**self.local, "trust_remote_code": False}
        return Stage("reward", version("reward"), config, inputs | ({"samples": samples} if samples else {}), local)

    def rewards(self, task: TaskSpec, samples: Stage) -> dict[str, Stage]:
        """Return the stages that score a policy's answers, one a reward model."""
        return {f"reward/{reward_label(name)}": self._reward(task, name, samples) for name in self.spec.rewards}

    def judgments(self, task: TaskSpec, data: Stage, samples: Stage, opponents: Mapping[str, Stage | None]) -> dict[str, Stage]:
        """Return a judge stage an opponent (None: the data's chosen answers), none where the spec has no judge."""
        kind, target = judge_of(self.spec, self.tasks[task.label])
        if kind is None:
            return {}
        judge, judging, local = self._judge(task, kind, target)
        shared: dict[str, Stage] = {"data": data, "samples": samples, **judging}
        if kind == "reward":
            shared["own_rewards"] = self._reward(task, target, samples)
        stages = {}
        for name, opponent in opponents.items():
            inputs = shared | ({"opponent": opponent} if opponent else {})
            if kind == "reward":
                inputs["opponent_rewards"] = self._reward(task, target, opponent)
            config = {"judge": judge, "opponent": name, "numerics": self.numerics}
            stages[f"judge/{name}"] = Stage("judge", version("judge"), config, inputs, local)
        return stages

    @kept
    def judge_audit(self, task: TaskSpec) -> dict[str, Stage]:
        """Return the stage that holds the judge against the task's own human preferences; none where nothing can be held."""
        kind, target = judge_of(self.spec, self.tasks[task.label])
        rows = JudgeSpec.model_fields["audit"].default if self.spec.judge is None else self.spec.judge.audit
        if kind in (None, "gold") or self.tasks[task.label].controlled or not rows:
            return {}
        judge, judging, local = self._judge(task, str(kind), target)
        local = dict(local)
        config: dict[str, Any] = {"judge": judge, "rows": rows}
        inputs = {"data": self.data[task.label], **judging}
        if kind != "openai":
            config["numerics"] = self.numerics
        if kind != "reward":
            config |= {"retest": RETESTED, "attacked": ATTACKED}
        else:
            config |= {"max_length": self.judged_length, "numerics": self.scoring}
            inputs["reward_model"] = self.reward_model(task, target)
            # Trust in the policy's own code is no trust in a reward model's.
            local["trust_reward_code"] = target == "trained" and self.local["trust_remote_code"]
        local["judge_name"] = f"{kind}:{target if kind == 'openai' else reward_label(target)}"
        return {"judge_audit": Stage("judge_audit", version("judge_audit"), config, inputs, local)}

    @kept
    def _judge(self, task: TaskSpec, kind: str, target: str) -> tuple[dict[str, Any], dict[str, Stage], dict[str, Any]]:
        """Return a judge as (config, input stages, local settings).

        What can change a verdict is config; traffic and money are local. Replies outlive a stage that fails.
        """
        judge: dict[str, Any] = {"kind": kind}
        inputs: dict[str, Stage] = {}
        local = {**self.local, **task_local(task, self.place)}
        if kind == "gold":
            judge["task"] = self.identities[task.label]
        if self.spec.judge is None or kind not in ("local", "openai"):
            return judge, inputs, local
        judge["parser"] = PARSER  # a better one makes the stage again, from the replies that are kept
        wanted, template = self.spec.judge, self.tasks[task.label].judge_prompt
        local |= {"max_invalid": wanted.max_invalid}
        if kind == "openai":
            settings, local["judge"] = endpoint_settings(wanted, template, self.place.purse)
            ApiJudge(**settings, **local["judge"])  # refuses what cannot work
            return judge | {"settings": settings, "place": place_of(wanted.base_url)}, inputs, local
        check_template(template)
        inputs["judge_model"] = read_only(sources.language_model(target), self.place)
        directory = inputs["judge_model"].local.get("directory")
        settings = {
            "template": template,
            "orders": wanted.orders,
            "max_length": longest(Path(directory)) if directory else LONGEST,
        }
        # Its invalid verdicts are final, so another ceiling is asked of kept replies again.
        judge |= {"settings": settings, "max_invalid": wanted.max_invalid}
        identity = {"model": inputs["judge_model"].key, "version": version("judge")}
        # Trust in the policy's code is no trust in a judge's.
        local |= {"judge_trust": False, "judge_name": target, "judge_identity": identity}
        return judge, inputs, local

    def labeller(self, task: TaskSpec, wanted: str | None) -> tuple[dict[str, Any], dict[str, Stage], dict[str, Any]]:
        """Return who ranks a policy's own answers during training, as (config, input stages, local settings).

        Raises:
            InputError: nobody can rank the answers of this task.
        """
        kind, target = judge_of(self.spec, self.tasks[task.label])
        if wanted == "gold" and not self.tasks[task.label].controlled:
            raise InputError(
                f"labeller gold for task '{task.label}'", "only a controlled world has a known reward", "label with reward:MODEL"
            )
        if wanted == "gold" or (wanted is None and self.tasks[task.label].controlled):
            kind, target = "gold", ""
        elif wanted is not None and wanted.startswith("reward:"):
            kind, target = "reward", wanted.removeprefix("reward:")
        if kind is None:
            raise InputError(
                f"regime on task '{task.label}' without a labeller",
                "the policy's own answers are ranked by a reward model or a judge",
                "set labeller: reward:MODEL, or the spec's judge",
            )
        config, inputs, local = self._judge(task, kind, target)
        if kind == "reward":
            config = {**config, "max_length": self.judged_length, "trained": target == "trained", **self.scores()}
            inputs = {**inputs, "reward_model": self.reward_model(task, target)}
        return config, inputs, local

    def goals(self, task: TaskSpec, data: Stage, samples: Mapping[int, Stage]) -> dict[str, Stage]:
        """Return the stage that holds what was asked for against what came, where something can score the answers."""
        inputs, trust = {"data": data, **{f"samples:{goal}": stage for goal, stage in samples.items()}}, False
        if not self.tasks[task.label].controlled:
            kind, target = judge_of(self.spec, self.tasks[task.label])
            name = self.spec.rewards[0] if self.spec.rewards else target if kind == "reward" else None
            if name is None:
                return {}
            inputs["reward_model"] = self.reward_model(task, name)
            trust = name == "trained" and self.local["trust_remote_code"]
        config = {
            "goals": sorted(samples),
            "max_length": self.judged_length,
            "numerics": self.scoring,
            "task": self.identities[task.label],
        }
        local = {**self.local, **task_local(task, self.place), "trust_reward_code": trust}
        return {"goals": Stage("goals", version("goals"), config, inputs, local)}
