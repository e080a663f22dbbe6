"""Who ranks a policy's own answers while it learns from them: the known reward, a reward model, or a judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

from spo_bench.judging.verdict import Judge, Question
from spo_bench.models.chat import plain_text
from spo_bench.models.reward import load_reward_model, score_answers, scoring
from spo_bench.plugins import get_task
from spo_bench.stages.base import Work
from spo_bench.stages.data import as_row
from spo_bench.stages.judge import language_judge

Values = list[float | None]
Labeller = Callable[[Sequence[Mapping[str, Any]], Sequence[Sequence[str]]], list[Values]]


def labeller(work: Work) -> Labeller:
    """Return what gives every candidate answer of every row a number, None where none could be had.

    Config: labeller {kind: gold|reward|local|openai, ...}, as the stage ``judge`` has it; for a reward model max_length, trained,
    dtype (in which it scores) and version (of the code that does).
    Inputs: reward_model or judge_model.

    A judge that reads texts raises StageError where it has to stop. Its invalid verdicts are final here, since what was trained
    on the others cannot be undone; they are counted.
    """
    kind = work.config["labeller"]["kind"]
    if kind == "gold":
        return _gold(work)
    return _reward(work) if kind == "reward" else _judged(_judge(work))


def _judge(work: Work) -> Judge:
    return language_judge(replace(work, config={**work.config, "judge": work.config["labeller"]}))


def _gold(work: Work) -> Labeller:
    task = get_task(work.local["task"], work.local["data"], [Path(d) for d in work.local["tasks_dirs"]])

    def label(rows: Sequence[Mapping[str, Any]], answers: Sequence[Sequence[str]]) -> list[Values]:
        return [[task.true_reward(as_row(row), text) for text in texts] for row, texts in zip(rows, answers, strict=True)]

    return label


def _reward(work: Work) -> Labeller:
    trust = work.local["trust_remote_code"] if work.config["labeller"]["trained"] else False
    numerics = scoring(work.numerics, work.config["labeller"]["dtype"])
    model, tokenizer = load_reward_model(work.inputs["reward_model"], numerics, trust)

    def label(rows: Sequence[Mapping[str, Any]], answers: Sequence[Sequence[str]]) -> list[Values]:
        items = [(row["prompt"], text) for row, texts in zip(rows, answers, strict=True) for text in texts]
        scores = iter(score_answers(model, tokenizer, items, numerics, work.config["labeller"]["max_length"]))
        return [[next(scores) for _ in texts] for texts in answers]

    return label


def _judged(judge: Judge) -> Labeller:
    """Let every two candidates meet; an answer's number is its mean score, none where a verdict is missing."""

    def label(rows: Sequence[Mapping[str, Any]], answers: Sequence[Sequence[str]]) -> list[Values]:
        meetings = [(place, a, b) for place, texts in enumerate(answers) for a, b in combinations(range(len(texts)), 2)]
        verdicts = judge.compare(
            [
                Question(f"{rows[i]['id']}:{a}:{b}", plain_text(rows[i]["prompt"]), answers[i][a], answers[i][b], rows[i])
                for i, a, b in meetings
            ]
        )
        sums: list[Values] = [[0.0] * len(texts) for texts in answers]
        for (place, a, b), verdict in zip(meetings, verdicts, strict=True):
            for answer, score in ((a, verdict.score), (b, None if verdict.score is None else 1 - verdict.score)):
                before = sums[place][answer]
                sums[place][answer] = None if before is None or score is None else before + score / (len(answers[place]) - 1)
        return sums

    return label
