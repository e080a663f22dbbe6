"""What judging through an endpoint would ask and cost, before anything is asked. Nothing runs here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import comb
from pathlib import Path
from typing import Any

from spo_bench.errors import InputError
from spo_bench.files import canonical_json, read_jsonl
from spo_bench.judging.attacks import TRIED
from spo_bench.judging.capabilities import room, undated
from spo_bench.judging.prompt import CLOSINGS, SCHEMA, Form
from spo_bench.judging.store import FILE, Spent, spent_from
from spo_bench.matrix.sections import JudgeSpec
from spo_bench.models.chat import plain_text
from spo_bench.plugins import get_task
from spo_bench.stages.base import Stage
from spo_bench.store.artifacts import Store

BYTES_A_TOKEN = 4  # of ordinary text, in the tokenizers of today's large models


@dataclass(frozen=True)
class JudgeCost:
    """Requests, their tokens, and US dollars; None where the data is not known yet, or the prices are not.

    Calls and completion tokens are the most there can be where no request fails; prompt tokens are an estimate.
    """

    calls: int | None = 0
    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0
    cost: float | None = None

    def __str__(self) -> str:
        if self.calls is None:
            return "an unknown number of calls"
        if self.calls == 0:
            return "nothing to ask"
        known = f"at most {self.calls:,} calls (kept replies are not counted off)"
        if self.prompt_tokens is not None:
            known += f", about {self.prompt_tokens:,} prompt tokens"
        if self.completion_tokens is not None:
            known += f", at most {self.completion_tokens:,} completion tokens"
        return known + (f", at most about ${self.cost:,.2f}" if self.cost is not None else "")


@dataclass(frozen=True)
class JudgePlan:
    """What all judging of a run would cost.

    Attributes:
        stages: by the key of a stage that is not final.
        total: of all of them, each once.
        warnings: where judging would stop, and what the numbers leave out.
    """

    stages: Mapping[str, JudgeCost]
    total: JudgeCost
    warnings: Sequence[str]

    def record(self) -> dict[str, Any]:
        """Return the total and the warnings as JSON values."""
        return {**asdict(self.total), "warnings": list(self.warnings)}


@dataclass(frozen=True)
class _Data:
    """Evaluation data of a task: how many pairs and distinct prompts, and mean tokens; None = not known yet."""

    pairs: int | None
    prompts: int | None
    prompt: float = 0.0
    chosen: float = 0.0
    rejected: float = 0.0
    guessed: bool = False


def judge_warnings(judge: JudgeSpec | None) -> list[str]:
    """Return what a user should know of a judge before using it."""
    warning = undated(judge.model or "", judge.base_url) if judge is not None and judge.backend == "openai" else None
    return [warning] if warning else []


def judge_plan(judge: JudgeSpec | None, stages: Iterable[Stage], store: Store, purse: str | None) -> JudgePlan | None:
    """Return what judging would cost; None for a judge that is not behind an endpoint.

    Args:
        judge: the spec's.
        stages: of all cells.
        store: where artifacts are.
        purse: of the run; None: it has not begun.
    """
    if judge is None or judge.backend != "openai":
        return None
    counter = _Counter(judge, store)
    distinct = {stage.key: stage for stage in stages}
    asking = {one: who for one in distinct.values() if (who := asked(one)) is not None and not final(one, store)}
    found = {stage.key: counter.cost(stage) for stage in asking if stage.kind != "train"}
    total = _sum([*found.values(), *map(counter.first, list(asking.values())[:1])], judge)
    warnings = judge_warnings(judge) + list(counter.notes)
    warnings += _limits(judge, total, spent_from(store.root / FILE, purse) if purse else Spent())
    labelled = [stage for stage in asking if stage.kind == "train"]
    if labelled:
        each = max(_meetings(stage) for stage in labelled) * _orders(judge)
        warnings.append(
            f"{len(labelled)} trainings also ask the judge about the policy's own answers, up to {each} calls a prompt of every "
            "round; these numbers leave that out"
        )
    return JudgePlan(found, total, warnings)


def final(stage: Stage, store: Store) -> bool:
    """Say whether a stage is done, and no verdict of it is to be asked for again."""
    return stage.done(store) and not store.to_retry(stage.kind, stage.key)


def asked(stage: Stage) -> Mapping[str, Any] | None:
    """Return the judge behind an endpoint that a stage asks, for verdicts or to label own answers; None where it asks none."""
    judge: Mapping[str, Any] = stage.config.get("labeller" if stage.kind == "train" else "judge", {})
    return judge if judge.get("kind") == "openai" else None


def _meetings(stage: Stage) -> int:
    """Return how many pairs of candidates a prompt has in a training on own answers."""
    regime = stage.config["regime"]
    others = sum(name.startswith("model:") for name in stage.inputs)
    return comb(regime["samples"] + 2 * regime["human"] + regime["greedy"] + others, 2)


def _orders(judge: JudgeSpec) -> int:
    return 2 if judge.orders == "both" else 1


@dataclass
class _Counter:
    """Counts what stages ask; ``notes`` says what had to be guessed."""

    judge: JudgeSpec
    store: Store
    notes: dict[str, None] = field(default_factory=dict)
    known: dict[str, _Data] = field(default_factory=dict)

    def cost(self, stage: Stage) -> JudgeCost:
        """Return what a stage would ask."""
        data = self._data(stage)
        if data.pairs is None or data.prompts is None:
            self.notes[
                f"the data of {stage.local['task']} cannot be read yet, so the number of its prompts is not known; set limit.eval"
            ] = None
            return JudgeCost(None, None, None, None)
        if data.guessed:
            name = stage.local["task"]
            self.notes[f"the data of {name} cannot be read yet: each prompt is counted with its answer as max_length tokens"] = (
                None
            )
        around = self._around(stage.config["judge"]["settings"]["template"])
        again = self.store.to_retry(stage.kind, stage.key)
        if stage.kind == "judge":
            questions = data.prompts
            answers = self._longest(stage, "samples") + (
                self._longest(stage, "opponent") if "opponent" in stage.inputs else data.chosen
            )
            each = around + data.prompt + answers
            return self._of(min(again, questions) if again else questions, each)
        plain = around + data.prompt + data.chosen + data.rejected
        cases = min(stage.config["rows"], data.pairs)
        attacked = min(stage.config["attacked"], cases)
        padding = attacked * sum(_tokens(attack.apply("", "")) for attack in TRIED.values()) * _orders(self.judge)
        # A case that has a verdict now may be among the first that have one, which are those attacked.
        questions = (again or cases + int(stage.config["retest"] * cases)) + attacked * len(TRIED)
        return self._of(questions, plain, padding)

    def first(self, judge: Mapping[str, Any]) -> JudgeCost:
        """Return what one short question costs that is asked before anything is run."""
        prompt_tokens = round(self._around(judge["settings"]["template"]))
        return JudgeCost(1, prompt_tokens, 1, self._price(prompt_tokens, 1))

    def _of(self, questions: int, tokens: float, more: float = 0.0) -> JudgeCost:
        """Return the cost of questions of so many tokens each, and ``more`` tokens in all."""
        calls = questions * _orders(self.judge)
        letter = self.judge.verdict == "logprobs"
        longest = self.judge.max_tokens or room(self.judge.model or "", self.judge.base_url)
        prompt_tokens, completion_tokens = round(calls * tokens + more), calls * (1 if letter else longest)
        return JudgeCost(calls, prompt_tokens, completion_tokens, self._price(prompt_tokens, completion_tokens))

    def _price(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        if self.judge.price_input is None or self.judge.price_output is None:
            return None
        return (prompt_tokens * self.judge.price_input + completion_tokens * self.judge.price_output) / 1e6

    def _around(self, template: str) -> float:
        """Return the tokens of a prompt without question and answers, in the longest of the forms that may be used."""
        forms: Sequence[Form] = ("json", "text", "logprobs") if self.judge.verdict == "auto" else (self.judge.verdict,)
        longest = max(_tokens(CLOSINGS[form] + (canonical_json(SCHEMA) if form == "json" else "")) for form in forms)
        marks = 4 * len("</answer_a_0123456789abcdef>\n") / BYTES_A_TOKEN
        return _tokens(template) + longest + 2 * marks  # marks are hexadecimal digits, of which tokens hold few

    def _longest(self, stage: Stage, name: str) -> int:
        return int(stage.inputs[name].config["settings"]["max_new_tokens"])

    def _data(self, stage: Stage) -> _Data:
        """Return what is known of the data a stage judges: a view's own once it is made, else that of the plain data."""
        data = stage.inputs["data"]
        if data.kind == "rows" and not data.here(self.store):
            data = data.inputs["data"]
        if data.key not in self.known:
            self.known[data.key] = self._read(data, stage.local)
        return self.known[data.key]

    def _read(self, data: Stage, local: Mapping[str, Any]) -> _Data:
        if data.here(self.store):
            rows = list(read_jsonl(data.path(self.store) / "eval.jsonl"))
            return _measured([(plain_text(row["prompt"]), row["chosen"], row["rejected"]) for row in rows])
        limit = data.config["limit"]["eval"]
        try:
            task = get_task(local["task"], local["data"], [Path(folder) for folder in local["tasks_dirs"]])
            found = [row for row in task.load("eval", limit, data.config["seed"]) if row.unusable is None]
        except InputError:  # told by the run itself
            length = float(data.config["max_length"])
            return _Data(limit, limit, length, 0.0, length, guessed=True)
        return _measured([(plain_text(row.prompt), row.chosen, row.rejected) for row in found])


def _measured(rows: Sequence[tuple[str, str, str]]) -> _Data:
    """Return the data of (prompt, chosen, rejected)."""
    if not rows:
        return _Data(0, 0)
    prompt, chosen, rejected = (sum(map(_tokens, column)) / len(rows) for column in zip(*rows, strict=True))
    return _Data(len(rows), len({row[0] for row in rows}), prompt, chosen, rejected)


def _tokens(text: str) -> float:
    return len(text.encode("utf-8", "replace")) / BYTES_A_TOKEN


def _sum(costs: Iterable[JudgeCost], judge: JudgeSpec) -> JudgeCost:
    """Return the sum; what one stage does not know, nobody knows."""
    every = list(costs)

    def total(name: str) -> Any:
        values = [getattr(one, name) for one in every]
        return None if None in values else sum(values)

    unpriced = judge.price_input is None or judge.price_output is None
    return JudgeCost(total("calls"), total("prompt_tokens"), total("completion_tokens"), None if unpriced else total("cost"))


def _limits(judge: JudgeSpec, total: JudgeCost, spent: Spent) -> list[str]:
    """Return which limit judging would run into."""
    warnings = []
    if judge.max_calls is not None and total.calls and spent.calls + total.calls > judge.max_calls:
        before = f" after the {spent.calls:,} sent so far" if spent.calls else ""
        warnings.append(
            f"up to {total.calls:,} calls{before} are more than max_calls {judge.max_calls:,}: judging would stop there, to "
            "go on under a higher one"
        )
    if judge.max_cost is not None and total.calls and total.cost is not None and spent.dollars + total.cost > judge.max_cost:
        before = f" after the ${spent.dollars:,.2f} spent so far" if spent.dollars else ""
        warnings.append(
            f"up to ${total.cost:,.2f}{before} are more than max_cost ${judge.max_cost:,.2f}: judging would stop there, to "
            "go on under a higher one"
        )
    return warnings
