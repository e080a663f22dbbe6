"""A judge that runs here: any causal language model, read by the log-probabilities of the verdict tokens, in both orders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from typing import Any

import numpy as np

from spo_bench.errors import InputError
from spo_bench.judging.api_text import check_template
from spo_bench.judging.verdict import Outcome, Question, Verdict, fill
from spo_bench.models.chat import render
from spo_bench.models.numerics import Numerics
from spo_bench.training.scoring import log_probs

LETTERS = ("A", "B")
CLOSING = "\n\nReply with the letter of the better answer, A or B, and nothing else."


@dataclass(frozen=True)
class LocalJudge:
    """A language model asked which answer is better.

    A verdict is P(A) / (P(A) + P(B)) for the next token; the two orders of presentation are averaged, so a judge that always
    says "A" gives 0.5.

    Attributes:
        model, tokenizer: the judge.
        template: instructions with the slots {prompt}, {a} and {b}.
        numerics: device and type.
        max_length: longer questions are invalid, since part of an answer would be hidden from the judge.
        micro_tokens: token budget of one forward pass.
        margin: scores nearer to 0.5 than this are a tie.
        share: False runs each letter as a sequence of its own, for a model that cannot take a tree mask.
        name: of the judge in messages; empty: as the tokenizer knows it.

    Raises:
        InputError: a template without one of its slots, or a tokenizer for which A or B is not one token of its own.
    """

    model: Any
    tokenizer: Any
    template: str
    numerics: Numerics
    max_length: int
    micro_tokens: int = 4096
    margin: float = 0.02
    share: bool = True
    name: str = ""

    def __post_init__(self) -> None:
        check_template(self.template)
        self._letters()

    def compare(self, questions: Sequence[Question]) -> list[Verdict]:
        """Return one verdict a question, in order."""
        letters = [np.asarray([token]) for token in self._letters()]
        items, places = [], []
        for number, question in enumerate(questions):
            for a, b in ((question.a, question.b), (question.b, question.a)):
                text = fill(self.template, prompt=question.prompt, a=a, b=b) + CLOSING
                ids = render(self.tokenizer, [{"role": "user", "content": text}]).ids
                if len(ids) < self.max_length:
                    items.append((np.asarray(ids), letters))
                    places.append(number)
        found: dict[int, list[float]] = {}
        values = log_probs(self.model, items, self.numerics, self.micro_tokens, share=self.share)
        for number, (first, second) in zip(places, values, strict=True):
            found.setdefault(number, []).append(1 / (1 + exp(min(float(second[0]) - float(first[0]), 700.0))))
        return [self._verdict(question, found.get(number, [])) for number, question in enumerate(questions)]

    def _letters(self) -> list[int]:
        """Return the tokens of the verdicts A and B."""
        found: list[int] = []
        for letter in LETTERS:
            ids = list(self.tokenizer(letter, add_special_tokens=False)["input_ids"])
            if len(ids) == 2 and not self.tokenizer.decode(ids[:1]).strip(" ▁"):
                ids = ids[1:]  # before it stands a mark for the space that a word begins with
            if len(ids) != 1:
                raise self._unusable(f"'{letter}' is {len(ids)} tokens")
            if ids[0] == self.tokenizer.unk_token_id:
                raise self._unusable(f"'{letter}' is not in its vocabulary")
            if ids[0] in found:
                raise self._unusable(f"{' and '.join(LETTERS)} are the same token")
            found.append(int(ids[0]))
        return found

    def _unusable(self, why: str) -> InputError:
        name = self.name or getattr(self.tokenizer, "name_or_path", "") or "local"
        return InputError(
            f"judge model '{name}': {why}",
            "a local judge answers with A or B, each one token of its own",
            "choose another judge model",
        )

    def _verdict(self, question: Question, first_wins: Sequence[float]) -> Verdict:
        """Average the orders: the probability that the answer shown first is better, of (a, b) and of (b, a)."""
        if len(first_wins) < 2:
            return Verdict(question.id, "invalid", None, (), f"the question is longer than {self.max_length} tokens")
        score = (first_wins[0] + 1 - first_wins[1]) / 2
        outcome: Outcome = "tie" if abs(score - 0.5) < self.margin else "a" if score > 0.5 else "b"
        orders = [{"first": "a", "p_first": first_wins[0]}, {"first": "b", "p_first": first_wins[1]}]
        return Verdict(question.id, outcome, score, orders)
