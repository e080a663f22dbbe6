"""A judge that runs here: any causal language model, read by the log-probabilities of the verdict's letters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from spo_bench.errors import InputError, StageError
from spo_bench.files import canonical_json
from spo_bench.judging.language import Judged, Orders, Reply, Request, plan, verdicts
from spo_bench.judging.prompt import Form, check_template
from spo_bench.judging.reading import LETTERS
from spo_bench.judging.store import ReplyStore
from spo_bench.judging.verdict import Question, Verdict, Watch, unwatched
from spo_bench.models.chat import render
from spo_bench.models.numerics import Numerics
from spo_bench.models.policy import load_policy, load_tokenizer
from spo_bench.training.probe import shares_prefixes
from spo_bench.training.scoring import log_probs

FORM: Form = "logprobs"
AT_ONCE = 256  # requests sorted by length together, and kept when they are answered


def load_local_judge(directory: Path, numerics: Numerics, max_length: int, trust: bool = False, **settings: Any) -> LocalJudge:
    """Return a judge from a model's directory; ``settings`` are the other attributes of ``LocalJudge``."""
    model = load_policy(directory, numerics, trust_remote_code=trust)
    return LocalJudge(
        model=model,
        tokenizer=load_tokenizer(directory, trust),
        numerics=numerics,
        max_length=max_length,
        share=shares_prefixes(model, "trie", max_length, numerics),
        **settings,
    )


@dataclass(frozen=True)
class LocalJudge:
    """A language model asked which answer is better, as a judge behind an endpoint is, but for the letter alone.

    A verdict is P(A) / (P(A) + P(B)) for the next token; the two orders of presentation are averaged, so a judge that always
    says "A" gives 0.5.

    Attributes:
        model, tokenizer: the judge.
        template: instructions with the slots {prompt}, {a} and {b}.
        numerics: device and type.
        max_length: longer questions are invalid, since part of an answer would be hidden from the judge.
        micro_tokens: token budget of one forward pass.
        share: False runs each letter as a sequence of its own, for a model that cannot take a tree mask.
        name: of the judge in messages; empty: as the tokenizer knows it.
        identity: what the model is, by content; it is part of the cache's keys.
        cache: an SQLite file of replies that outlives this run; None: nothing is kept.
        orders, seed, epoch: as of ``ApiJudge``.

    Raises:
        InputError: a template without one of its slots, or a tokenizer for which A or B is not one token of its own.
    """

    model: Any
    tokenizer: Any
    template: str
    numerics: Numerics
    max_length: int
    micro_tokens: int = 4096
    share: bool = True
    name: str = ""
    identity: Mapping[str, Any] = field(default_factory=dict)
    cache: Path | None = None
    orders: Orders = "both"
    seed: int = 0
    epoch: int = 0

    def __post_init__(self) -> None:
        check_template(self.template)
        self._letters()
        if self.cache is not None and not self.identity:
            raise InputError(
                f"judge model '{self._known_as}' with a cache and without identity",
                "kept replies are told apart by what the model is",
                "give identity, or no cache",
            )

    def compare(self, questions: Sequence[Question]) -> list[Verdict]:
        """Return one verdict a question, in order."""
        return self.judge(questions).verdicts

    def judge(self, questions: Sequence[Question], watch: Watch = unwatched) -> Judged:
        """Return the verdicts with how they were come by; ``watch`` is told (orders judged, all that are to be judged)."""
        numerics = [self.numerics.device, self.numerics.dtype, self.numerics.held]
        identity = [dict(self.identity), numerics, self.max_length, self.epoch]
        now: dict[str, Reply] = {}
        with ReplyStore(self.cache) as store:
            planned = plan(store, questions, self.template, FORM, self.orders, self.seed, identity)
            missing = list(planned.missing)
            ids = {request.key: self._ids(request) for request in missing}
            # Requests of like length share a forward pass without waste, whatever their order here.
            missing.sort(key=lambda request: len(ids[request.key]))
            for start in range(0, len(missing), AT_ONCE):
                part = missing[start : start + AT_ONCE]
                now.update(self._replies(part, ids))
                # All of them or none: what is asked together decides how sums round, also after an interruption.
                store.keep_all({r.key: now[r.key].record() for r in part if now[r.key].error is None})
                watch(len(now), len(missing))
        return Judged(verdicts(questions, planned, now, FORM), FORM)

    def _replies(self, part: Sequence[Request], ids: Mapping[str, Sequence[int]]) -> dict[str, Reply]:
        """Return the replies to some requests by key."""
        letters = [np.asarray([token]) for token in self._letters()]
        fitting = [request for request in part if len(ids[request.key]) < self.max_length]
        items = [(np.asarray(ids[request.key]), letters) for request in fitting]
        values = log_probs(self.model, items, self.numerics, self.micro_tokens, share=self.share)
        fault = f"the question is longer than {self.max_length} tokens"
        found = {request.key: Reply(error="too_long", fault=fault) for request in part}
        for request, (first, second) in zip(fitting, values, strict=True):
            usage = {"prompt_tokens": len(ids[request.key]), "completion_tokens": 1}
            said = {LETTERS[0]: float(first[0]), LETTERS[1]: float(second[0])}
            if not all(map(isfinite, said.values())):
                raise StageError(f"judge model '{self._known_as}' gives the letters probabilities that are no numbers")
            found[request.key] = Reply(model=self._known_as, revision=self._revision, letters=said, usage=usage)
        return found

    def _ids(self, request: Request) -> Sequence[int]:
        """Return the tokens of a request. Texts under judgement cannot say the model's own special tokens."""
        text = request.prompt
        for token in {*self.tokenizer.all_special_tokens, *self.tokenizer.get_added_vocab()}:
            if len(token) > 1 and not token.isspace():
                text = text.replace(token, f"{token[0]} {token[1:]}")
        return render(self.tokenizer, [{"role": "user", "content": text}]).ids

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

    @property
    def _known_as(self) -> str:
        return self.name or getattr(self.tokenizer, "name_or_path", "") or "local"

    @property
    def _revision(self) -> str | None:
        """A short hash of what the weights are."""
        return sha256(canonical_json(dict(self.identity)).encode()).hexdigest()[:12] if self.identity else None

    def _unusable(self, why: str) -> InputError:
        return InputError(
            f"judge model '{self._known_as}': {why}",
            "a local judge answers with A or B, each one token of its own",
            "choose another judge model",
        )
