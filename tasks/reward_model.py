"""Any preference pairs, with reward models as the evaluation."""

from __future__ import annotations

from typing import ClassVar

from ._pairs import PairTask


class RewardModel(PairTask):
    """Answers to the prompts of any pair data; policies are scored by the reward models of the spec."""

    name = "reward_model"
    summary = "any preference pairs; policies are scored by the spec's reward models"
    needs_rewards: ClassVar[bool] = True
    judge_prompt = """\
Two answers to the same prompt are given. Decide which one a careful reader would rather have received: the one that answers what
was asked more fully and more correctly. The order of the two answers is no reason, and neither is their length.

Prompt:
{prompt}

Answer A:
{a}

Answer B:
{b}
"""
