"""goals: controllability, that is, whether a policy's answers get as good as they are asked to be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spo_bench.errors import InputError
from spo_bench.files import read_jsonl, write_json
from spo_bench.models.reward import load_reward_model, score_answers
from spo_bench.plugins import get_task
from spo_bench.stages.base import Work
from spo_bench.stages.data import as_row, eval_prompts
from spo_bench.stages.score import per_prompt

HALFWAY = 5.5  # of the goals 1 to 10: above it an answer ought to score high


def run(work: Work) -> None:
    """Write ``scores.json`` as the stage ``score`` does: ``controllability`` and ``score_at_goal_GOAL``, a value a prompt.

    Controllability is the Pearson correlation, over the goals, of the goal with the score of the answer given under it; none
    where all answers of a prompt have one score. Scores are the known reward's, or a reward model's.

    Config: goals, max_length (of what a reward model reads), numerics. Inputs: data, samples:GOAL for every goal, reward_model
    where the task has no known reward. Local: task, data, tasks_dirs, trust_reward_code (false where it is not given).
    """
    goals = list(work.config["goals"])
    samples = {goal: list(read_jsonl(work.inputs[f"samples:{goal}"] / "samples.jsonl")) for goal in goals}
    prompts = {row["id"]: row for row in eval_prompts(work.inputs["data"])}
    by_goal = {goal: dict(zip((s["id"] for s in samples[goal]), judged(work, samples[goal], prompts))) for goal in goals}
    asked = [sample for sample in samples[goals[0]] if all(sample["id"] in scores for scores in by_goal.values())]
    table = [[by_goal[goal][sample["id"]] for goal in goals] for sample in asked]
    metrics = {"controllability": per_prompt(asked, prompts, [correlation(goals, scores) for scores in table], True)}
    for column, goal in enumerate(goals):
        name = f"score_at_goal_{goal}"
        metrics[name] = per_prompt(asked, prompts, [scores[column] for scores in table], goal > HALFWAY)
    write_json(work.out / "scores.json", {"metrics": metrics})


def judged(work: Work, samples: Sequence[Mapping[str, Any]], prompts: Mapping[str, Mapping[str, Any]]) -> list[float]:
    """Return the score of every answer.

    Raises:
        InputError: the task has no known reward, and there is no reward model.
    """
    task = get_task(work.local["task"], work.local["data"], [Path(d) for d in work.local["tasks_dirs"]])
    if task.controlled:
        return [float(task.true_reward(as_row(prompts[s["id"]]), s["answer"])) for s in samples]
    if "reward_model" not in work.inputs:
        raise InputError(
            f"controllability in task '{task.name}' without a reward model",
            "answers under a goal are scored by a known reward or by a reward model",
            "list one under `rewards`",
        )
    model, tokenizer = load_reward_model(work.inputs["reward_model"], work.numerics, work.local.get("trust_reward_code", False))
    items = [(prompts[s["id"]]["prompt"], s["answer"]) for s in samples]
    return score_answers(model, tokenizer, items, work.numerics, work.config["max_length"])


def correlation(goals: Sequence[int], scores: Sequence[float]) -> float | None:
    """Return Pearson's correlation; 0 where all scores are the same, since such an answer did not follow the goal at all.

    None where a score is not finite, or there are not two goals.
    """
    if not np.isfinite(scores).all() or len(set(goals)) < 2:
        return None
    if len(set(scores)) < 2:
        return 0.0
    return float(np.corrcoef(goals, scores)[0, 1])
