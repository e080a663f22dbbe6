"""judge: a policy's answers against an opponent's, prompt by prompt."""

from __future__ import annotations

from pathlib import Path

from spo_bench.files import read_jsonl, write_jsonl
from spo_bench.judging.api import ApiJudge
from spo_bench.judging.local import LocalJudge
from spo_bench.judging.verdict import Judge, Question, Verdict, by_value
from spo_bench.models.chat import plain_text
from spo_bench.models.policy import load_policy, load_tokenizer
from spo_bench.plugins import get_task
from spo_bench.stages.base import Work
from spo_bench.stages.data import as_row, eval_prompts
from spo_bench.training.probe import shares_prefixes


def run(work: Work) -> None:
    """Write ``judgments.jsonl``: a verdict a prompt, a = the policy, b = the opponent.

    Config: judge {kind: gold|reward|local|openai, ...}, opponent ("sft", "baseline" or "chosen"), numerics.
    Inputs: data, samples, opponent (samples; absent for "chosen"); for kind reward: own_rewards, opponent_rewards; for kind
    local: judge_model.
    """
    prompts = {row["id"]: row for row in eval_prompts(work.inputs["data"])}
    own = _answers(work.inputs["samples"])
    against = _answers(work.inputs["opponent"]) if "opponent" in work.inputs else {i: row["chosen"] for i, row in prompts.items()}
    questions = [Question(i, plain_text(prompts[i]["prompt"]), answer, against[i], prompts[i]) for i, answer in own.items()]
    verdicts = {"gold": _gold, "reward": _reward, "local": _asked, "openai": _asked}[work.config["judge"]["kind"]](
        work, questions
    )
    write_jsonl(work.out / "judgments.jsonl", ({"opponent": work.config["opponent"], **v.record()} for v in verdicts))


def _answers(directory: Path) -> dict[str, str]:
    return {row["id"]: row["answer"] for row in read_jsonl(directory / "samples.jsonl")}


def _gold(work: Work, questions: list[Question]) -> list[Verdict]:
    """The known reward of a controlled world decides."""
    task = get_task(work.local["task"], work.local["data"], [Path(d) for d in work.local["tasks_dirs"]])
    return [by_value(q, task.true_reward(as_row(q.row), q.a), task.true_reward(as_row(q.row), q.b)) for q in questions]


def _reward(work: Work, questions: list[Question]) -> list[Verdict]:
    """A reward model decides; its scores are there already."""
    own, against = (
        {row["id"]: row["reward"] for row in read_jsonl(work.inputs[name] / "rewards.jsonl")}
        for name in ("own_rewards", "opponent_rewards")
    )
    return [by_value(q, own[q.id], against[q.id]) for q in questions]


def _asked(work: Work, questions: list[Question]) -> list[Verdict]:
    return language_judge(work).compare(questions)


def language_judge(work: Work) -> Judge:
    """Return the judge of config ``judge`` that reads texts: a model on this machine (local), or behind an endpoint (openai).

    An endpoint's replies are kept outside the artifact, so none is paid twice.
    """
    config = work.config["judge"]
    if config["kind"] == "openai":
        asked = {key: value for key, value in config.items() if key != "kind"}
        return ApiJudge(**asked, **{**work.local["judge"], "cache": Path(work.local["judge"]["cache"])})
    directory, trust, limit = work.inputs["judge_model"], work.local["judge_trust"], config["max_length"]
    model = load_policy(directory, work.numerics, trust_remote_code=trust)
    return LocalJudge(
        model=model,
        tokenizer=load_tokenizer(directory, trust),
        template=config["template"],
        numerics=work.numerics,
        max_length=limit,
        share=shares_prefixes(model, "trie", limit),
        name=work.local["judge_name"],
    )
