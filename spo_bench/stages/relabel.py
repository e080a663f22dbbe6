"""Reward-augmented relabelling: every pair becomes two, each under a stated goal, of which the second prefers the lower quality.

Zhang et al. 2024 (arXiv 2410.08067): with the reward R(x, y, g) = -(g - quality of y)^2, the goal of the better answer keeps the
pair and the goal of the worse one turns it round. What is turned round are the answers, never a turn of the prompt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import floor
from typing import Any

import numpy as np
from jinja2 import TemplateError

from spo_bench.errors import InputError, StageError
from spo_bench.models.chat import Rendered, render
from spo_bench.models.policy import load_policy
from spo_bench.models.reward import load_reward_model, score_answers, scoring
from spo_bench.stages.base import Work, policy_at
from spo_bench.stages.data import load_split
from spo_bench.stages.reference import load as load_reference
from spo_bench.training.probe import shares_prefixes
from spo_bench.training.scoring import log_probs

Record = Mapping[str, Any]
Messages = Sequence[Mapping[str, str]]
LOWEST, HIGHEST = 1, 10  # goals
RANGE = (1.0, 99.0)  # percentiles of all qualities that become the lowest and the highest goal


def qualities(work: Work, rows: Sequence[Record]) -> list[tuple[float, float]]:
    """Return the quality of chosen and rejected of every row: the data's, a reward model's, or a policy's implicit rewards.

    Raises:
        InputError: a row of the data has no scores.
    """
    source = work.config["relabel"]["scores"]
    if source == "implicit":
        return _implicit(work, rows)
    if source == "reward":
        return _rewards(work, rows)
    for row in rows:
        if row["scores"] is None:
            raise InputError(
                f"relabel reward_augmented: training row {row['number']} has no scores",
                "goals are made of the quality of both answers",
                "give the data scores, or set `scores: implicit` or `scores: reward:MODEL`",
            )
    return [(float(row["scores"][0]), float(row["scores"][1])) for row in rows]


def _rewards(work: Work, rows: Sequence[Record]) -> list[tuple[float, float]]:
    trust = work.local.get("trust_reward_code", False)  # trust in the policy's own code is no trust in a reward model's
    numerics = scoring(work.numerics, work.config["relabel"]["dtype"])
    model, tokenizer = load_reward_model(work.inputs["reward_model"], numerics, trust)
    items = [(row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")]
    scores = score_answers(model, tokenizer, items, numerics, work.config["max_length"])
    return list(zip(scores[::2], scores[1::2], strict=True))


def _implicit(work: Work, rows: Sequence[Record]) -> list[tuple[float, float]]:
    """Return the labeller's log-ratios to its reference, in nats; without a factor, as goals do not depend on the scale."""
    stored = load_reference(work.inputs["reference"] / "train.safetensors")
    frozen = dict(zip((row["id"] for row in load_split(work.inputs["data"], "train")), stored, strict=True))
    policy = load_policy(
        policy_at(work.inputs["labeller"]),
        work.numerics,
        base=work.inputs["base"],
        trust_remote_code=work.local["trust_remote_code"],
    )
    share = shares_prefixes(policy, work.config["packing"], work.config["max_length"], work.numerics)
    items = [(np.asarray(r["prompt_ids"]), [np.asarray(r["chosen_ids"]), np.asarray(r["rejected_ids"])]) for r in rows]
    found = []
    for row, own in zip(rows, log_probs(policy, items, work.numerics, work.config["micro_tokens"], share), strict=True):
        if [len(values) for values in own] != [len(values) for values in frozen[row["id"]]]:
            raise StageError(f"the reference of row {row['id']} has another length than its completions")
        chosen, rejected = (
            float(new.sum(dtype=np.float64) - old.sum(dtype=np.float64)) for new, old in zip(own, frozen[row["id"]], strict=True)
        )
        found.append((chosen, rejected))
    return found


def relabelled(
    rows: Sequence[Record], values: Sequence[tuple[float, float]], tokenizer: Any, sentence: str
) -> tuple[list[Record], dict[str, Any]]:
    """Return two rows a pair, side by side, each with its goal in the prompt, and what to record.

    Goals are whole numbers: the range between two percentiles of all qualities is mapped to 1 to 10, rounded and clipped. Left
    out are pairs whose answers have one goal, which prefer neither, and pairs whose rejected answer has the higher quality.

    Args:
        rows: tokenised pairs.
        values: quality of chosen and rejected of each, on any scale.
        tokenizer: whose chat template the goal goes through.
        sentence: that states a goal; slot {goal}.

    Raises:
        InputError: no pair is left.
        StageError: a quality is not finite.
    """
    if not np.isfinite(values).all():
        raise StageError(f"{int((~np.isfinite(values)).sum())} qualities of training answers are not finite")
    low, high = (float(value) for value in np.percentile(np.asarray(values, dtype=np.float64), RANGE))
    made: list[Record] = []
    counts = Counter(equal_goals=0, misordered=0)
    places: Counter[str] = Counter()
    for row, (better, worse) in zip(rows, values, strict=True):
        if better < worse:
            counts["misordered"] += 1
            continue
        high_goal, low_goal = goal_of(better, low, high), goal_of(worse, low, high)
        if high_goal == low_goal:
            counts["equal_goals"] += 1
            continue
        for goal, best, worst in ((high_goal, "chosen", "rejected"), (low_goal, "rejected", "chosen")):
            messages, rendered, place = stated(tokenizer, row["prompt"], sentence.format(goal=goal))
            places[place] += 1
            made.append(
                {
                    **row,
                    "id": f"{row['id']}:g{goal}",
                    "cluster": row["cluster"] or row["id"],
                    "prompt": messages,
                    "prompt_text": rendered.text,
                    "prompt_ids": rendered.ids,
                    "chosen": row[best],
                    "rejected": row[worst],
                    "scores": [1.0, 1 - ((high_goal - low_goal) / 9) ** 2],
                    "more": [],
                    "goal": goal,
                }
            )
    if not made:
        raise InputError(
            f"relabel reward_augmented leaves nothing of {len(rows)} training pairs ({counts['equal_goals']} with one goal, "
            f"{counts['misordered']} with the rejected answer scored higher)",
            "a pair needs two qualities, the chosen answer's the higher one, that differ on a scale of ten",
            "choose other scores, or leave relabel out of data_axes",
        )
    by_goal = Counter(row["goal"] for row in made)
    return made, {
        "pairs": len(rows),
        **counts,
        "lowest_goal_at": low,
        "highest_goal_at": high,
        "rows_by_goal": {str(goal): by_goal[goal] for goal in sorted(by_goal)},
        "goal_stated_in": dict(places),
    }


def goal_of(quality: float, low: float, high: float) -> int:
    """Return the goal that a quality meets: ``low`` is 1, ``high`` is 10, halves go up."""
    if high <= low:
        return LOWEST
    goal = floor(LOWEST + (HIGHEST - LOWEST) * (quality - low) / (high - low) + 0.5)
    return min(HIGHEST, max(LOWEST, goal))


def with_goal(row: Record, goal: int, tokenizer: Any, sentence: str) -> Record:
    """Return a row whose policy reads a goal; its messages stay the plain ones."""
    _, rendered, _ = stated(tokenizer, row["prompt"], sentence.format(goal=goal))
    return {**row, "prompt_text": rendered.text, "prompt_ids": rendered.ids}


def stated(tokenizer: Any, prompt: Messages, goal: str) -> tuple[list[dict[str, str]], Rendered, str]:
    """Return (the messages with a sentence that states the goal, as rendered, where it stands).

    It stands at the end of the prompt's system message, or in one of its own; and at the beginning of the first user's message
    where the chat template refuses a system message, or leaves it out.

    Raises:
        StageError: it is nowhere to be seen.
    """
    for place, messages in _ways(prompt, goal):
        try:
            rendered = render(tokenizer, messages)
        except TemplateError:
            continue
        if goal in rendered.text:
            return messages, rendered, place
    raise StageError("the model's chat template shows a goal neither in a system message nor in the user's")


def _ways(prompt: Messages, goal: str) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Yield the ways to state a goal, the preferred one first."""
    plain = [dict(message) for message in prompt]
    if plain[0]["role"] == "system":
        yield "system message", [{"role": "system", "content": f"{plain[0]['content']} {goal}".strip()}, *plain[1:]]
    else:
        yield "system message of its own", [{"role": "system", "content": goal}, *plain]
    asked = next(place for place, message in enumerate(plain) if message["role"] == "user")
    yield (
        "user message",
        [
            {"role": "user", "content": f"{goal}\n\n{message['content']}"} if place == asked else message
            for place, message in enumerate(plain)
        ],
    )
