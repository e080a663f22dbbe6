"""judge_audit: how far to trust a judge on a task, before anybody reads a win rate: held against the data's own preferences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from spo_bench.errors import StageError
from spo_bench.files import write_json, write_jsonl
from spo_bench.judging.audit import audit
from spo_bench.judging.audit_record import Audit, Case
from spo_bench.judging.language import too_many_invalid
from spo_bench.judging.pairs import case_of
from spo_bench.judging.verdict import Judge, Question, Verdict, by_value, verdict_record
from spo_bench.models.reward import load_reward_model, score_answers
from spo_bench.stages.base import Work
from spo_bench.stages.data import as_row, load_split
from spo_bench.stages.judge import language_judge, mark_retry

PASSING = ("outage", "unreadable")  # faults of the endpoint; other invalid verdicts on an attack are what the attack did


def run(work: Work) -> None:
    """Write ``audit.json``: the record of ``spo_bench.judging.audit.Audit`` for the task's first evaluation pairs.

    A judge that reads texts leaves ``verdicts.jsonl`` too: on the pairs, on the attacks (``ID!ATTACK``), and once more (epoch 1).

    Config: judge {kind: reward|local|openai, ...}, rows (how many pairs), and for a judge that reads texts retest (the share of
    them that is judged twice) and attacked (on how many the attacks are tried); for kinds local and reward numerics, for kind
    reward max_length.
    Inputs: data; for kind reward: reward_model, for kind local: judge_model.

    Raises:
        StageError: a judge that reads texts had to stop, or gave too many invalid verdicts; its replies are kept.
    """
    rows = load_split(work.inputs["data"], "eval")[: work.config["rows"]]
    found, invalid = _by_value(work, rows) if work.config["judge"]["kind"] == "reward" else _asked(work, rows)
    write_json(work.out / "audit.json", found.record())
    mark_retry(work, invalid)


def as_case(record: Mapping[str, Any]) -> Case:
    """Return a tokenised preference as a case; pairs that share a source or a prompt are one cluster."""
    return replace(case_of(as_row(record)), cluster=record["cluster"] or record["prompt_text"])


@dataclass(frozen=True)
class _Asked:
    """A judge that is refused where too many verdicts of its first round, the cases themselves, are invalid."""

    judge: Judge
    max_invalid: float
    rounds: list[list[Verdict]] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)

    def compare(self, questions: Sequence[Question]) -> list[Verdict]:
        verdicts = self.judge.compare(questions)
        if not self.rounds and (fault := too_many_invalid(verdicts, self.max_invalid)):
            raise StageError(fault)
        self.rounds.append(verdicts)
        self.records.extend(verdict_record(*one) for one in zip(questions, verdicts, strict=True))
        return verdicts


def _asked(work: Work, rows: Sequence[Mapping[str, Any]]) -> tuple[Audit, int]:
    """Audit a judge that reads texts; return the audit with the number of verdicts that may go better another time."""
    cases, judge = [as_case(row) for row in rows], language_judge(work)
    first = _Asked(judge, work.local["max_invalid"])
    again = _Asked(replace(judge, epoch=judge.epoch + 1), 1.0)  # so few cases say little about a share
    retest = int(work.config["retest"] * len(cases))
    found = audit(first, cases, again=again, retest=retest, attacked=work.config["attacked"])
    write_jsonl(work.out / "verdicts.jsonl", [*first.records, *({**record, "epoch": 1} for record in again.records)])
    on_cases = [verdict for verdicts in (*first.rounds[:1], *again.rounds) for verdict in verdicts]
    on_attacks = [verdict for verdicts in first.rounds[1:] for verdict in verdicts]
    return found, sum(v.outcome == "invalid" for v in on_cases) + sum(map(_failed, on_attacks))


def _failed(verdict: Verdict) -> bool:
    return any(order["error"] in PASSING for order in verdict.orders)


@dataclass(frozen=True)
class _ByValue:
    """A judge that knows the value of every answer to its questions: by question id, (a, b)."""

    values: Mapping[str, tuple[float, float]]

    def compare(self, questions: Sequence[Question]) -> list[Verdict]:
        return [by_value(question, *self.values[question.id]) for question in questions]


def _by_value(work: Work, rows: Sequence[Mapping[str, Any]]) -> tuple[Audit, int]:
    """Audit a reward model, which reads an answer at a time: it can neither change its mind nor be spoken to as a judge."""
    cases = [as_case(row) for row in rows]
    model, tokenizer = load_reward_model(work.inputs["reward_model"], work.numerics, work.local["trust_reward_code"])
    items = [(row["prompt"], text) for row, case in zip(rows, cases) for text in (case.question.a, case.question.b)]
    scores = score_answers(model, tokenizer, items, work.numerics, work.config["max_length"])
    values = {case.question.id: (scores[2 * i], scores[2 * i + 1]) for i, case in enumerate(cases)}
    return audit(_ByValue(values), cases, again=None, retest=0, attacked=0), 0
