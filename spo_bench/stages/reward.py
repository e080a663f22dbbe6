"""reward: a reward model's score of a policy's answers (and of the data's chosen answers, for judging by reward)."""

from __future__ import annotations

from spo_bench.files import read_jsonl, write_jsonl
from spo_bench.models.reward import load_reward_model, score_answers
from spo_bench.stages.base import Work
from spo_bench.stages.data import eval_prompts


def run(work: Work) -> None:
    """Write ``rewards.jsonl``: id, reward.

    Config: max_length, numerics, of ("samples", or "chosen": the data's answers). Inputs: reward_model, data, samples.
    """
    model, tokenizer = load_reward_model(work.inputs["reward_model"], work.numerics, work.local["trust_remote_code"])
    prompts = {row["id"]: row for row in eval_prompts(work.inputs["data"])}
    if work.config["of"] == "chosen":
        answers = {row["id"]: row["chosen"] for row in prompts.values()}
    else:
        answers = {row["id"]: row["answer"] for row in read_jsonl(work.inputs["samples"] / "samples.jsonl")}
    items = [(prompts[row]["prompt"], answer) for row, answer in answers.items()]
    scores = score_answers(model, tokenizer, items, work.numerics, work.config["max_length"], ranks=work.ranks)
    write_jsonl(work.out / "rewards.jsonl", ({"id": row, "reward": score} for row, score in zip(answers, scores, strict=True)))
