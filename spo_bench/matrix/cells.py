"""From a spec to cells: every cell with the stages that make it, and their keys. Nothing runs here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from spo_bench.errors import InputError
from spo_bench.matrix import sources
from spo_bench.matrix.axes import NONE, Point
from spo_bench.matrix.checks import check_size, check_together
from spo_bench.matrix.evaluation import Evaluation, Place, read_only, stand_in, task_local
from spo_bench.matrix.identity import additions_identity, method_identity, slug, task_identity
from spo_bench.matrix.kept import kept
from spo_bench.matrix.spec import MethodSpec, ModelSpec, Spec, TaskSpec, TrainSpec
from spo_bench.methods import get_addition, get_method
from spo_bench.models import vllm
from spo_bench.models.embedded import embedded_identity
from spo_bench.models.numerics import MICRO_TOKENS, Numerics
from spo_bench.models.source import EMBEDDED, tokenizer_identity, weights_identity
from spo_bench.plugins import get_task
from spo_bench.problems import Problems
from spo_bench.spo import settings as spo_settings
from spo_bench.spo.settings import SpoSettings
from spo_bench.stages.base import Stage
from spo_bench.stages.registry import version
from spo_bench.store.artifacts import digest
from spo_bench.task import Task

DATA_SEED = 0  # which rows a limit takes; never the cell's seed, so that every seed sees the same prompts
GOALS = (1, 4, 7, 10)  # what a goal-conditioned policy is asked for, to see whether it follows
# Settings of the loop that do not decide who meets whom: with the same values in its key, a pass serves every learning rate.
DESCENT: Mapping[str, Any] = {"learning_rate": 0.0, "schedule": "constant", "warmup": 0.0, "weight_decay": 0.0, "clip": 1.0}
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


def expand(spec: Spec, place: Place) -> list[Cell]:
    """Return every cell of a spec with its stages. All models and data are looked for before any model is fetched.

    Raises:
        InputError: models, reward models or data sets that are not there, or settings that cannot go together; all of them.
    """
    problems = Problems()
    listed = {task.label: task for task in (*(spec.sft_tasks or ()), *spec.tasks)}
    tasks: dict[str, Task] = {}
    identities: dict[str, Mapping[str, Any]] = {}
    for label, task in listed.items():
        with problems.noted():
            tasks[label] = get_task(task.name, task.data, place.tasks_dirs)
            identities[label] = task_identity(tasks[label], place.assume)
    for source in sources.named_in(spec):
        with problems.noted():
            if not place.assume or source.assumed() is None:
                source.look(place.offline)
    for method, point in product(spec.methods, spec.data_axes.points()):
        with problems.noted():
            check_together(spec, method, point)
    if spec.generate.backend == "vllm":
        with problems.noted():
            vllm.check(place.device, spec.train.lora.rank if spec.train.lora else 0)
    problems.raise_any()
    cells: list[Cell] = []
    for model in spec.models:
        with problems.noted():
            cells += ModelPlan(spec, model, place, tasks, identities).cells()
    problems.raise_any()
    if len({cell.id for cell in cells}) != len(cells):
        raise InputError(
            "two cells of this matrix have one id",
            "models, tasks and methods need different labels",
            "give a `label` to one of them",
        )
    return cells


class ModelPlan:
    """The stages of one model's cells; shared ones are made once."""

    def __init__(
        self, spec: Spec, model: ModelSpec, place: Place, tasks: Mapping[str, Task], identities: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self.spec, self.model, self.place, self.tasks, self.identities = spec, model, place, tasks, identities
        lora = spec.train.lora is not None
        dtype = model.dtype if model.dtype != "auto" else spec.train.dtype
        dtype = dtype if dtype != "auto" else ("bfloat16" if place.device.startswith("cuda") else "float32")
        self.numerics = Numerics(place.device, dtype, dtype if lora else "float32").identity()
        self.full = {**self.numerics, "held": "float32"}  # where all weights are trained, whatever the methods train
        self.micro_tokens = spec.train.micro_tokens or MICRO_TOKENS.get(place.device.split(":")[0], MICRO_TOKENS["cpu"])
        self.local: dict[str, Any] = {"device": place.device, "trust_remote_code": model.trust_remote_code}
        if spec.train.devices_per_cell > 1:
            self.local["devices"] = spec.train.devices_per_cell
        if model.path == EMBEDDED:
            # Its products are too small for cores to share; and so its numbers do not depend on how many there are.
            self.local["threads"] = 1
        self.tokenizer, self.start = self._start()
        self.demonstrations = [self._data(task) for task in spec.sft_tasks or spec.tasks]
        self.data = {task.label: self._data(task) for task in spec.tasks}
        self.policy = self._sft() if spec.sft.steps > 0 else self.start
        self.evaluation = Evaluation(
            spec,
            place,
            self.tasks,
            self.identities,
            self.data,
            self.policy,
            self.local,
            self.numerics,
            self.full,
            self._forward_config(),
            self._settings(spec.train, SHARED_SEED),
        )

    def cells(self) -> Iterator[Cell]:
        """Yield the model's cells: per task and seed the SFT policy, then methods × {baseline, +SPO} × axes."""
        for task in self.spec.tasks:
            for seed in self.spec.seeds:
                yield self._cell(task, "sft", None, seed, {}, self._sft_stages(task, seed))
            for point in self.spec.data_axes.points():
                axes = point.axes()
                for method in self.spec.methods:
                    for seed in self.spec.seeds:
                        baseline = None
                        for spo in sorted(self.spec.spo, key=lambda variant: variant is not None):
                            stages = self._trained_stages(task, method, spo, seed, point, baseline)
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
            *(f"{key}={value}" for key, value in axes.items()),
            f"s{seed}",
        ]
        return Cell(slug(names), self.model.label, task.label, method, spo, seed, axes, stages)

    # What all tasks and methods share.

    def _start(self) -> tuple[Stage, Stage]:
        """Return (tokenizer, weights) the model starts from."""
        if self.model.path == EMBEDDED:
            identity = embedded_identity()
            size = identity["architecture"]
            check_size(self.spec, EMBEDDED, size["num_hidden_layers"], size["max_position_embeddings"])
            read = {key: identity[key] for key in ("chat_template", "vocabulary")}
            return (
                Stage("tokenizer", version("tokenizer"), {"embedded": digest(read), "seed": SHARED_SEED}),
                Stage("model", version("model"), {"embedded": digest(identity), "seed": SHARED_SEED}),
            )
        source = sources.start(self.spec, self.model)
        if (model := stand_in(source, self.place)) is not None:
            return Stage("tokenizer", version("tokenizer"), model.config, local=model.local), model
        directory = source.fetch(self.place.offline)
        words = tokenizer_identity(directory, self.place.hashes)
        tokenizer = Stage("tokenizer", version("tokenizer"), words, local={"directory": str(directory)})
        weights = weights_identity(directory, self.place.hashes)
        if self.model.adapter is None:
            return tokenizer, Stage("model", version("model"), {"weights": weights}, local={"directory": str(directory)})
        added = sources.adapter(self.model.adapter).fetch(self.place.offline)
        parts = {"weights": weights, "tokenizer": words, "adapter": weights_identity(added, self.place.hashes)}
        local = {**self.local, "base": str(directory), "adapter": str(added)}
        return tokenizer, Stage("model", version("model"), {**parts, "numerics": self.full}, local=local)

    def _data(self, task: TaskSpec) -> Stage:
        config = {
            "task": self.identities[task.label],
            "limit": task.limit.model_dump(),
            "seed": DATA_SEED,
            "max_length": self.spec.train.max_length,
        }
        return Stage("data", version("data"), config, {"model": self.tokenizer}, {**self.local, **task_local(task, self.place)})

    @kept
    def _view(self, task: TaskSpec, point: Point) -> Stage:
        """Return the data a cell is trained and evaluated on: the task's own, or what the data axes make of it."""
        plain, changed = self.data[task.label], point.axes().keys() - {"fraction", "regime"}
        if not changed:
            return plain
        inputs, relabel, answers = {"data": plain, "model": self.tokenizer}, None, None
        if "relabel" in changed:
            kind, _, name = point.relabel.scores.partition(":")
            relabel = {"name": point.relabel.name, "scores": kind, "goal": point.relabel.goal}
            if kind == "reward":
                inputs["reward_model"] = self.evaluation.reward_model(task, name)
                relabel |= self.evaluation.scores()
            elif kind == "implicit":
                # It sees the pairs this cell may see, or what is held out would reach the training through the goals.
                seen = Point(fraction=point.fraction, holdout=point.holdout)
                own = self._view(task, Point(holdout=point.holdout))
                labeller = self._train(task, MethodSpec.model_validate("dpo"), None, SHARED_SEED, seen, own)
                inputs |= {"labeller": labeller, "base": self.policy, "reference": self._reference(plain)}
        if "list_size" in changed:
            answers = {"size": point.list_size.size, "source": point.list_size.source, "version": spo_settings.VERSION}
        config = {
            "label_flip": point.label_flip,
            "holdout": list(point.holdout),
            "relabel": relabel,
            "list": answers,
            "goals": list(GOALS) if relabel else [],
            "seed": DATA_SEED,
            **self._forward_config(),
        }
        config |= {"goal_prompt": self.tasks[task.label].goal_prompt} if relabel else {}
        trust = relabel is not None and point.relabel.scores == "reward:trained" and self.model.trust_remote_code
        local = {**self.local, **task_local(task, self.place), "trust_reward_code": trust}
        return Stage("rows", version("rows"), config, inputs, local)

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

    @kept
    def _reference(self, data: Stage) -> Stage:
        inputs = {"policy": self.policy, "data": data}
        return Stage("reference", version("reference"), self._forward_config(), inputs, self.local)

    # A cell's own.

    def _sft_stages(self, task: TaskSpec, seed: int) -> dict[str, Stage]:
        data, evaluation = self.data[task.label], self.evaluation
        generate = self._generate(data, self.policy, seed)
        stages = {"data": data, "sft": self.policy, "generate": generate}
        stages["score"] = evaluation.score(task, data, generate, None, None, None)
        stages |= evaluation.rewards(task, generate) | evaluation.judge_audit(task)
        return stages | evaluation.judgments(task, data, generate, {"chosen": None})

    def _trained_stages(
        self, task: TaskSpec, method: MethodSpec, spo: SpoSettings | None, seed: int, point: Point, baseline: Stage | None
    ) -> dict[str, Stage]:
        data, evaluation = self._view(task, point), self.evaluation
        reference, train = self._reference(data), self._train(task, method, spo, seed, point, data)
        generate = self._generate(data, train, seed)
        opponents: dict[str, Stage | None] = {"sft": self._generate(self.data[task.label], self.policy, seed), "chosen": None}
        if spo is not None and baseline is not None:
            opponents["baseline"] = baseline
        stages = {"data": self.data[task.label], "sft": self.policy, "reference": reference, "train": train, "generate": generate}
        stages |= {"rows": data} if data is not self.data[task.label] else {}
        stages["score"] = evaluation.score(task, data, generate, train, method, reference)
        if point.relabel.name != NONE:
            asked = {goal: self._generate(data, train, seed, f"eval@{goal}") for goal in GOALS if goal != point.relabel.goal}
            stages |= evaluation.goals(task, data, {**asked, point.relabel.goal: generate})
        stages |= evaluation.rewards(task, generate) | evaluation.judge_audit(task)
        return stages | evaluation.judgments(task, data, generate, opponents)

    def _train(self, task: TaskSpec, method: MethodSpec, spo: SpoSettings | None, seed: int, point: Point, data: Stage) -> Stage:
        declaration, train = get_method(method.name), self.spec.train.model_copy(update=method.train)
        settings = self._settings(train, seed)
        rows: dict[str, Any] = {"settings": settings, "fraction": point.fraction}
        rows |= {"equal_steps": True} if point.fraction < 1 and self.spec.data_axes.equal == "steps" else {}
        config = {
            **rows,
            "method": method_identity(method),
            "spo": {"settings": spo.model_dump(mode="json"), "version": spo.identity()["version"]} if spo else None,
            "lora": train.lora.model_dump(mode="json") if train.lora else None,
            "gradient_checkpointing": train.gradient_checkpointing,
            "numerics": self.numerics,
        }
        config |= {"additions": additions_identity(method)} if method.plus else {}
        inputs, local = {"policy": self.policy, "data": data}, self.local
        if point.regime.name != "offline":
            label, needed, local = self.evaluation.labeller(task, point.regime.labeller)
            regime = {key: value for key, value in dict(point.regime).items() if key not in ("labeller", "models")}
            config |= {"regime": regime, "labeller": label, "generate": self.spec.generate.model_dump(mode="json")}
            config |= {"generate_version": version("generate")}
            others = {f"model:{place}": self._others(task, name) for place, name in enumerate(point.regime.models)}
            held_out = {"copies": self._copies(data, spo, seed, ("eval",))} if spo is not None else {}
            return Stage("train", version("train"), config, inputs | needed | others | held_out, local)
        inputs["reference"] = self._reference(data)
        if declaration.needs_kl:
            matched = {**rows, "settings": {**settings, **DESCENT}, "numerics": self.numerics}
            inputs["mismatched"] = Stage(
                "mismatched", version("mismatched"), matched, {"policy": self.policy, "data": data}, self.local
            )
        if any(get_addition(one.name).needs_explored for one in method.plus):
            inputs["greedy"] = self._generate(data, self.policy, SHARED_SEED, "train", greedy=True)
            seen = {"policy": self.policy, "data": data, "samples": inputs["greedy"]}
            inputs["explored"] = Stage("explored", version("explored"), self._forward_config(), seen, self.local)
        if spo is not None:
            inputs["copies"] = self._copies(data, spo, seed, ("train", "eval"))
        return Stage("train", version("train"), config, inputs, local)

    @kept
    def _copies(self, data: Stage, spo: SpoSettings, seed: int, splits: tuple[str, ...]) -> Stage:
        """Return the degraded copies of the data's answers: one stage for all methods, and all seeds where nothing is drawn."""
        inputs = {"data": data, "model": self.tokenizer}
        if spo.text == "on_policy" and "train" in splits:
            inputs["samples"] = self._generate(data, self.policy, SHARED_SEED, "train")
        config = {
            "spo": {"settings": spo.copies(), "version": spo_settings.VERSION},
            "seed": seed if spo.draws() else SHARED_SEED,
            "max_length": self.spec.train.max_length,
            "splits": list(splits),
        }
        return Stage("copies", version("copies"), config, inputs, self.local)

    @kept
    def _generate(self, data: Stage, policy: Stage, seed: int, split: str = "eval", greedy: bool = False) -> Stage:
        # Token by token, weights are read once a token: they are held in the type they are computed in.
        numerics = {**self.numerics, "held": self.numerics["dtype"]}
        settings = self.spec.generate.model_dump(mode="json") | ({"temperature": 0.0} if greedy else {})
        config = {"settings": settings, "seed": seed, "split": split, "numerics": numerics}
        if self.spec.generate.backend == "vllm":
            lora = self.spec.train.lora
            config |= {"vllm": vllm.check(self.place.device, lora.rank if lora else 0)}
        return Stage("generate", version("generate"), config, {"policy": policy, "base": self.policy, "data": data}, self.local)

    @kept
    def _others(self, task: TaskSpec, name: str) -> Stage:
        """Return another model's answers to the training prompts, in its own tokens and by its own template."""
        model = read_only(sources.language_model(name), self.place)
        own = self.data[task.label]
        data = Stage("data", own.version, own.config, {"model": model}, {**own.local, "trust_remote_code": False})
        stage = self._generate(data, model, SHARED_SEED, "train")
        return replace(stage, inputs={**stage.inputs, "base": model}, local={**stage.local, "trust_remote_code": False})
