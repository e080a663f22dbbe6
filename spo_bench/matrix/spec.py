"""The spec: what a matrix is made of, as typed sections that refuse what they do not know."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)

from spo_bench.errors import InputError
from spo_bench.matrix.axes import AXES, DataAxes
from spo_bench.matrix.faults import brief, fault, from_input_error
from spo_bench.matrix.method_spec import AdditionSpec, MethodSpec, label_methods, named
from spo_bench.matrix.sections import (
    MOST_ROWS,
    Count,
    Dtype,
    Flag,
    GenerateSpec,
    JudgeSpec,
    Label,
    Lora,
    Natural,
    RewardTraining,
    Section,
    SftSpec,
    Share,
    Text,
    TrainSpec,
    check_texts,
    once,
    repeated,
)
from spo_bench.methods import SFT
from spo_bench.models.source import EMBEDDED
from spo_bench.plugins import TaskPlugin, check_data, find_tasks, unknown_task
from spo_bench.spo.settings import SpoSettings

TRAINED = "trained"  # the reward model that is trained inside the matrix
__all__ = [
    "TRAINED",
    "AdditionSpec",
    "DataAxes",
    "GenerateSpec",
    "JudgeSpec",
    "Lora",
    "MethodSpec",
    "ModelSpec",
    "RewardTraining",
    "SftSpec",
    "Spec",
    "TaskSpec",
    "TrainSpec",
]


class ModelSpec(Section):
    """A model whose policies are trained."""

    path: Text = Field(description="hub id, local directory, or `embedded` (the built-in tiny model)")
    dtype: Dtype = Field("auto", description="compute type of this model; auto: what train.dtype says")
    adapter: Text | None = Field(None, description="directory or hub id of a peft adapter that is merged in first")
    revision: Annotated[str, Field(pattern=r"^\w[\w./+-]*$")] | None = Field(
        None, description="branch, tag or commit of a hub model"
    )
    trust_remote_code: Flag = Field(
        False, description="whether code that comes with the model may run on this machine, with all your rights"
    )
    label: Label = Field(description="name in tables and for --model; default: the hub id, or the directory's name")

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        value = named(value, "path")
        if isinstance(value, dict) and isinstance(path := value.get("path"), str):
            local = path.startswith((".", "~")) or Path(path).is_absolute()
            value.setdefault("label", Path(path).name if local else path)
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.path == EMBEDDED and (self.adapter or self.revision or self.trust_remote_code):
            raise fault(
                "adapter, revision or trust_remote_code with the embedded model",
                "it is built from the package alone",
                "leave them out",
            )
        if ".." in (self.revision or ""):
            raise fault(f"revision '{self.revision}'", "no branch, tag or commit has '..' in its name", "correct it", "revision")
        if self.revision and Path(self.path).is_absolute():
            raise fault(
                f"revision '{self.revision}' of a local directory", "only hub models have revisions", "leave it out", "revision"
            )
        return self


class Limit(Section):
    """How many rows of each split are used; null: all."""

    train: Count | None = Field(None, description="pairs that policies are trained on")
    eval: Count | None = Field(None, description="pairs whose prompts are answered and scored")
    heldout: Natural | None = Field(None, description="pairs for a `trained` reward model")
    sft: Natural | None = Field(None, description="demonstrations for supervised fine-tuning")


class TaskSpec(Section):
    """A task and its data."""

    name: Text = Field(description="name of a task (`spo-bench tasks`)")
    data: Text | None = Field(
        None, description="local .jsonl, .jsonl.gz, .json or .parquet file, or hub id ORG/NAME[:CONFIG][@REVISION]"
    )
    limit: Limit = Field(Limit(), description="rows used of each split")
    max_dropped: Share = Field(0.02, description="share of rows that may be unusable before the run is refused")
    metrics: tuple[Annotated[str, Field(pattern=r"^(rouge_l|evaluate:.+)$")], ...] = Field(
        (),
        description="metrics beside the task's own: rouge_l, or evaluate:NAME, a metric of the hub or a local script, whose code "
        "is run on this machine, with all your rights: list only what you trust",
    )
    label: Label = Field(description="name in tables and for --task, without '/'; default: the task's name")

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        value = named(value, "name")
        if isinstance(value, dict) and isinstance(value.get("name"), str):
            value.setdefault("label", value["name"])
        return value

    @field_validator("label")
    @classmethod
    def _one_part(cls, label: str) -> str:
        if "/" in label:  # audits are filed under MODEL/TASK, and a model may have one
            raise fault(f"the label '{label}'", "a task's label has no '/'", "give another `label`")
        return label

    @field_validator("metrics")
    @classmethod
    def _metrics_once(cls, metrics: tuple[str, ...]) -> tuple[str, ...]:
        once(metrics, metrics, "list each metric once")
        return metrics

    @model_validator(mode="after")
    def _exists(self, info: ValidationInfo) -> Self:
        context = info.context or {}
        tasks: Mapping[str, TaskPlugin] = context["tasks"] if "tasks" in context else find_tasks()
        if self.name not in tasks:
            raise from_input_error(unknown_task(self.name, context.get("directories", ())))
        try:
            check_data(tasks[self.name], self.data)
        except InputError as error:
            raise from_input_error(error) from error
        return self


class Spec(Section):
    """A matrix: models x tasks x methods x SPO x seeds (x data axes), and the conditions all its cells share."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] = Field(
        description="name of the matrix; letters, digits, dots, dashes, underscores; default: the file's name"
    )
    models: Annotated[tuple[ModelSpec, ...], Field(min_length=1)] = Field(description="models whose policies are trained")
    tasks: Annotated[tuple[TaskSpec, ...], Field(min_length=1)] = Field(description="tasks they are trained and evaluated on")
    methods: tuple[MethodSpec, ...] = Field(description="preference methods; none: the models are only evaluated")
    spo: Annotated[tuple[SpoSettings | None, ...], Field(min_length=1)] = Field(
        (None, SpoSettings()), description="false: the baseline; true or a mapping of settings: its SPO twin"
    )
    seeds: Annotated[tuple[Natural, ...], Field(min_length=1)] = Field((0,), description="seeds of training and sampling")
    sft: SftSpec = Field(SftSpec(), description="supervised fine-tuning")
    sft_tasks: Annotated[tuple[TaskSpec, ...], Field(min_length=1)] | None = Field(
        None, description="tasks whose demonstrations it uses; null: the matrix's (of the whole matrix, where --task narrows it)"
    )
    train: TrainSpec = Field(TrainSpec(), description="preference training")
    generate: GenerateSpec = Field(GenerateSpec(), description="how answers are sampled")
    rewards: tuple[Text, ...] = Field((), description=f"reward models that score answers: hub ids, directories, or `{TRAINED}`")
    reward_training: RewardTraining = Field(RewardTraining(), description=f"how the reward model `{TRAINED}` is fitted")
    reward_dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="type in which reward models score; bfloat16 halves their memory, and scores depend a little on what else "
        "is scored",
    )
    judge: JudgeSpec | None = Field(
        None,
        description="who compares two answers; null: the known reward of controlled tasks, else the first of rewards, if any",
    )
    data_axes: DataAxes = Field(DataAxes(), description="changes of the training data to cross the matrix with")

    @model_validator(mode="before")
    @classmethod
    def _texts(cls, value: Any) -> Any:
        check_texts(value)
        return value

    @field_validator("spo", mode="before")
    @classmethod
    def _spo_forms(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        for place, item in enumerate(value):
            if not isinstance(item, bool | Mapping | SpoSettings):
                raise fault(
                    f"item {place} is {brief(item)}",
                    "each item is false, true, or a mapping of SPO settings",
                    "for example spo: [false, true]; a setting with a list of values is one variant a value",
                )
        return [one for item in value for one in (_swept(item) if isinstance(item, Mapping) else [_spo_form(item)])]

    @field_serializer("spo")
    def _spo_as_written(self, spo: tuple[SpoSettings | None, ...]) -> list[Any]:
        return [False if item is None else item.model_dump(mode="json") for item in spo]

    @field_validator("models", "tasks", "sft_tasks", "seeds", "rewards", "spo")
    @classmethod
    def _listed_once(cls, items: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        if items is None:
            return None
        names = [
            item.label if isinstance(item, ModelSpec | TaskSpec) else _spo_name(item) if _is_spo(item) else str(item)
            for item in items
        ]
        once(items, names, "remove one, or give entries that differ a `label` each")
        return items

    @field_validator("rewards")
    @classmethod
    def _rewards_told_apart(cls, rewards: tuple[str, ...]) -> tuple[str, ...]:
        known: dict[str, str] = {}
        for name in rewards:
            if (other := known.setdefault(Path(name).name, name)) != name:
                raise fault(
                    f"'{other}' and '{name}' are both called '{Path(name).name}'",
                    "the last part of a reward model's path is its name in tables, and names one model",
                    "give one of them a directory of another name, or link to it under one",
                )
        return rewards

    @field_validator("methods")
    @classmethod
    def _methods_labelled(cls, methods: tuple[MethodSpec, ...]) -> tuple[MethodSpec, ...]:
        methods = label_methods(methods)
        once(methods, [entry.label for entry in methods], "remove one, or give entries that differ a `label` each")
        return methods

    @model_validator(mode="after")
    def _parts_fit(self, info: ValidationInfo) -> Self:
        context = info.context or {}
        tasks: Mapping[str, TaskPlugin] = context["tasks"] if "tasks" in context else find_tasks()
        classes = {entry.label: tasks[entry.name].cls for entry in self.tasks}
        if (
            self.judge is not None
            and self.judge.backend == "gold"
            and (other := [name for name, cls in classes.items() if not cls.controlled])
        ):
            raise fault(
                f"judge gold with {', '.join(other)}",
                "only controlled tasks have a known reward",
                "choose another judge, or null",
                "judge",
            )
        if not self.rewards and (needy := [name for name, cls in classes.items() if cls.needs_rewards]):
            raise fault(
                f"no reward model for {', '.join(needy)}",
                "this task is evaluated with reward models",
                f"for example rewards: [{TRAINED}]",
                "rewards",
            )
        if self.sft.steps > 0 and all(entry.limit.sft == 0 for entry in self.sft_tasks or self.tasks):
            raise fault(
                f"sft.steps {self.sft.steps} with limit.sft 0 for all tasks",
                "supervised fine-tuning needs demonstrations",
                "raise limit.sft of a task, or set sft.steps to 0",
                "sft",
            )
        points = prod(len(getattr(self.data_axes, axis)) for axis in AXES)
        if (many := len(self.methods) * points * len(self.spo)) > MOST_ROWS:
            raise fault(
                f"{len(self.methods)} methods, {points} points of data_axes and {len(self.spo)} SPO variants",
                f"they have at most {MOST_ROWS:,} combinations, not {many:,}",
                "make matrices of some of them",
                "methods",
            )
        if (devices := self.train.devices_per_cell) > 1:
            self._check_devices(devices)
        if (twice := repeated(self._row_names())) is not None:
            raise fault(
                f"two rows of the tables would be called '{twice}'",
                f"a row's name is a method's label with data axes and SPO variant; '{SFT}' is the SFT policy's",
                "give the method another `label`",
                "methods",
            )
        bare = [entry.label for entry in self.tasks if entry.limit.heldout == 0]
        if bare and self.trains_reward_model:
            raise fault(
                f"reward model '{TRAINED}' with limit.heldout 0 for {', '.join(bare)}",
                "it is trained on held-out pairs",
                "raise limit.heldout",
                "rewards",
            )
        return self

    def _check_devices(self, devices: int) -> None:
        """Refuse what several devices cannot share."""
        smallest = min([self.train.batch_size, *(one.train.get("batch_size", devices) for one in self.methods)])
        if smallest < devices:
            raise fault(
                f"devices_per_cell {devices} with batches of {smallest}",
                "each device takes rows of every batch",
                "raise batch_size, or use fewer devices",
                "train",
            )
        if any(regime.name != "offline" for regime in self.data_axes.regime):
            raise fault(
                f"devices_per_cell {devices} with data_axes.regime",
                "a policy that answers while it is trained is on one device",
                "leave devices_per_cell out, or train offline",
                "train",
            )

    def _row_names(self) -> list[str]:
        """Return the names of the rows that stand under one model in the tables."""
        shown = [", ".join(f"{key}={value}" for key, value in sorted(point.axes().items())) for point in self.data_axes.points()]
        points = [f" ({axes})" if axes else "" for axes in shown]
        variants = ["" if item is None else f" {item.label()}" for item in self.spo]
        return [SFT, *(f"{entry.label}{at}{spo}" for entry in self.methods for at in points for spo in variants)]

    @property
    def trains_reward_model(self) -> bool:
        """Whether a reward model is trained inside the matrix: for scores, as the judge, or to label training data."""
        asked = [*(one.labeller for one in self.data_axes.regime), *(one.scores for one in self.data_axes.relabel)]
        return (
            TRAINED in self.rewards
            or f"reward:{TRAINED}" in asked
            or (self.judge is not None and self.judge.backend == "reward" and self.judge.model == TRAINED)
        )


def _spo_form(item: Any) -> Any:
    return None if item is False else {} if item is True else item


def _swept(item: Mapping[Any, Any]) -> list[dict[Any, Any]]:
    """Return every combination of a variant's settings, where a setting is given as a list of values."""
    lists = [value if isinstance(value, list | tuple) and key != "fractions" else [value] for key, value in item.items()]
    if (many := prod(map(len, lists))) > MOST_ROWS:
        raise fault(f"{many:,} variants of one item", f"at most {MOST_ROWS:,}", "shorten its lists of values")
    return [dict(zip(item, values, strict=True)) for values in product(*lists)]


def _is_spo(item: Any) -> bool:
    return item is None or isinstance(item, SpoSettings)


def _spo_name(item: SpoSettings | None) -> str:
    return "false" if item is None else item.label()
