"""judge: a policy's answers against an opponent's, prompt by prompt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from spo_bench.errors import StageError
from spo_bench.files import read_jsonl, write_jsonl, write_text
from spo_bench.judging.api import ApiJudge
from spo_bench.judging.language import too_many_invalid
from spo_bench.judging.local import LocalJudge, load_local_judge
from spo_bench.judging.verdict import Question, Verdict, by_value, verdict_record
from spo_bench.models.chat import plain_text
from spo_bench.plugins import get_task
from spo_bench.stages.base import Work
from spo_bench.stages.data import as_row, eval_prompts
from spo_bench.store.artifacts import RETRY


def run(work: Work) -> None:
    """Write ``judgments.jsonl``: a verdict a prompt, a = the policy, b = the opponent, with the characters of both answers.

    Config: judge {kind: gold|reward|local|openai, ...}, opponent ("sft", "baseline" or "chosen"), numerics.
    Inputs: data, samples, opponent (samples; absent for "chosen"); for kind reward: own_rewards, opponent_rewards; for kind
    local: judge_model.

    Raises:
        StageError: a judge that reads texts had to stop, or gave too many invalid verdicts; its replies are kept.
    """
    questions = read_questions(work.inputs)
    verdicts = {"gold": _gold, "reward": _reward, "local": _asked, "openai": _asked}[work.config["judge"]["kind"]](
        work, questions
    )
    records = (verdict_record(question, verdict) for question, verdict in zip(questions, verdicts, strict=True))
    write_jsonl(work.out / "judgments.jsonl", ({"opponent": work.config["opponent"], **record} for record in records))
    mark_retry(work, sum(verdict.outcome == "invalid" for verdict in verdicts))


def read_questions(inputs: Mapping[str, Path]) -> list[Question]:
    """Return what a judge is asked about: a question a prompt that was answered."""
    prompts = {row["id"]: row for row in eval_prompts(inputs["data"])}
    own = _answers(inputs["samples"])
    against = _answers(inputs["opponent"]) if "opponent" in inputs else {i: row["chosen"] for i, row in prompts.items()}
    return [Question(i, plain_text(prompts[i]["prompt"]), answer, against[i], prompts[i]) for i, answer in own.items()]


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
    """A judge that reads texts decides; compare raises where it has to stop, and its replies are kept."""
    verdicts = language_judge(work).compare(questions)
    if fault := too_many_invalid(verdicts, work.local["max_invalid"]):
        raise StageError(fault)
    return verdicts


def mark_retry(work: Work, invalid: int) -> None:
    """Mark an artifact whose invalid verdicts an endpoint may give another time: they are asked for again by the next run."""
    if invalid and work.config["judge"]["kind"] == "openai":
        write_text(work.out / RETRY, f"{invalid}\n")


def language_judge(work: Work) -> ApiJudge | LocalJudge:
    """Return the judge of config ``judge`` that reads texts: a model on this machine (local), or behind an endpoint (openai).

    Its replies are kept outside the artifact, so that none is asked for or paid twice.
    """
    settings, cache = work.config["judge"]["settings"], Path(work.local["judge_cache"])
    if work.config["judge"]["kind"] == "openai":
        return ApiJudge(**settings, **work.local["judge"], cache=cache)
    return load_local_judge(
        work.inputs["judge_model"],
        work.numerics,
        trust=work.local["judge_trust"],
        name=work.local["judge_name"],
        identity=work.local["judge_identity"],
        cache=cache,
        **settings,
    )
