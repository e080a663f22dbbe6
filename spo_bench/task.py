"""What a task is: where prompts and preferences come from, and how an answer is evaluated."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from spo_bench.files import file_hash

SplitName = Literal["sft", "train", "heldout", "eval"]
SPLITS: tuple[SplitName, ...] = ("sft", "train", "heldout", "eval")


HALF_CHARACTER = "the text holds half a character (a lone surrogate)"


def half_character(value: object) -> bool:
    """Say whether a text within a JSON value holds half a character, which JSON can spell and no UTF-8 file can hold."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


@dataclass(frozen=True)
class Row:
    """One preference: a prompt and two answers of which the first is preferred.

    Attributes:
        id: stable and content-based; unique within a task. The same row has the same id in every run.
        prompt: chat messages, ``({"role": "user"|"assistant"|"system", "content": text}, ...)``; the last is the user's.
        chosen: the preferred answer. In the split ``sft`` it is the demonstration.
        rejected: the other answer; empty in the split ``sft``.
        scores: a quality of chosen and rejected where the data has one.
        more: further answers to the prompt with their quality, on the scale of ``scores``; none without ``scores``.
        domain: a tag for hold-out by domain.
        cluster: rows of one source (an article with several evaluators) share it; None: the row stands alone.
        meta: what the task needs to evaluate an answer to this prompt; JSON values only.
        number: the row's place in its source, counted from 1.
        unusable: why this row's content cannot be used; such a row is dropped and counted in the data audit.
    """

    id: str
    prompt: tuple[Mapping[str, str], ...]
    chosen: str
    rejected: str
    scores: tuple[float, float] | None = None
    domain: str | None = None
    cluster: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    number: int = 0
    unusable: str | None = None
    more: tuple[tuple[str, float], ...] = ()


class Task:
    """A source of preferences and its evaluation. Subclass it, set the class attributes, write ``load``.

    Attributes:
        name: the name used in a spec; lower case, digits, underscores.
        version: raise it whenever ``load`` or an evaluation changes what it returns: it is part of every key.
        summary: one line for ``spo-bench tasks``.
        controlled: True where the true reward is a known function (``true_reward``).
        metrics: extra per-prompt metrics reported for this task: "rouge_l" or "evaluate:NAME".
        judge_prompt: instructions for a judge model; slots {prompt}, {a} and {b} are filled by name.
        judge_prompt_version: of its wording, for reports; raise it whenever the wording changes.
        goal_prompt: the sentence that asks for an answer of a certain quality; slot {goal}, a whole number from 1 to 10.
        needs_data: whether a spec must give ``data`` for this task.
        needs_rewards: whether a spec must list reward models, because they are how this task is evaluated.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    summary: ClassVar[str] = ""
    controlled: ClassVar[bool] = False
    metrics: ClassVar[tuple[str, ...]] = ()
    judge_prompt: ClassVar[str] = ""
    judge_prompt_version: ClassVar[int] = 1
    goal_prompt: ClassVar[str] = "The overall score of the answer is to be {goal} on a scale from 1 to 10."
    needs_data: ClassVar[bool] = True
    needs_rewards: ClassVar[bool] = False

    def __init__(self, data: str | None = None) -> None:
        self.data = data

    def identity(self) -> dict[str, Any]:
        """Return what decides which rows ``load`` returns: by content, never by path."""
        local = self.data is not None and Path(self.data).is_file()
        return {
            "task": self.name,
            "version": self.version,
            "data": file_hash(Path(self.data)) if local and self.data else self.data,
        }

    def load(self, split: SplitName, limit: int | None, seed: int) -> Sequence[Row]:
        """Return the rows of a split, at most ``limit``, in an order decided by ``seed``.

        Splits never share a prompt. Raises InputError where the data is structurally at fault.
        """
        raise NotImplementedError

    def true_reward(self, row: Row, answer: str) -> float:
        """Return the known reward of an answer to the row's prompt; only controlled tasks have one."""
        raise NotImplementedError(f"task {self.name} has no known reward")
