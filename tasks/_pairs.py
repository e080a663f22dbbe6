"""Pair data of any origin as rows: what a record means, which split it is in, and which rows cannot be used."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import reprlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from spo_bench.errors import InputError
from spo_bench.task import HALF_CHARACTER, Row, SplitName, Task, half_character

from ._read import Fields, Messages, Record, Source, file_identity, kind, local_file, read

PAIRS_VERSION = 3  # raised whenever this module changes what a file gives
EVAL_SHARE, HELDOUT_SHARE = 0.15, 0.15
_SALT = "spo-bench/split/1"
_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True)
class Pair:
    """What a record says, before splits are made. ``fault``: why its content cannot be used."""

    prompt: Messages
    chosen: str
    rejected: str
    number: int = 0
    cluster: str | None = None
    domain: str | None = None
    scores: tuple[float, float] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    fault: str | None = None
    more: tuple[tuple[str, float], ...] = ()


def turns(transcript: str) -> Messages | None:
    """Return the messages of a transcript with turns ``Human:`` and ``Assistant:``, None where text precedes the first."""
    before, *parts = _TURN.split(transcript)
    if before.strip() or not parts:
        return None
    return tuple({"role": _SPEAKERS[who], "content": text.strip()} for who, text in zip(parts[::2], parts[1::2]))


def from_transcripts(chosen: Messages | None, rejected: Messages | None) -> Pair:
    """Return the pair of two transcripts: the prompt is what they share up to the last assistant turn, which both end with.

    Transcripts that part earlier than in that turn have no common prompt.
    """
    if not chosen or not rejected or chosen[:-1] != rejected[:-1]:
        return Pair((), "", "", fault="no common prompt")
    fault = (
        None
        if chosen[-1]["role"] == rejected[-1]["role"] == "assistant"
        else "a transcript does not end with the assistant's turn"
    )
    return Pair(chosen[:-1], chosen[-1]["content"], rejected[-1]["content"], fault=fault)


def parse(fields: Fields) -> Pair:
    """Return the pair of a record.

    Its forms: ``prompt`` (text or messages) with ``chosen`` and ``rejected`` (text, or messages); ``chosen`` and ``rejected``
    alone as whole transcripts, in the HH form or as messages; ``prompt`` with ``responses`` (texts) and their ``scores``; or
    the TL;DR comparisons' ``info``, ``summaries``, ``choice``.
    Optional fields: ``cluster`` or ``article_id``, ``domain`` or ``subreddit``, ``score_chosen`` and ``score_rejected`` (or
    ``chosen_score`` and ``rejected_score``).
    """
    if "summaries" in fields.value and "chosen" not in fields.value:
        return _comparison(fields)
    if "responses" in fields.value and "chosen" not in fields.value:
        return _list(fields)
    chosen, rejected = fields.need("chosen"), fields.need("rejected")
    if isinstance(chosen, list) or isinstance(rejected, list):
        pair = _of_messages(fields, fields.messages("chosen"), fields.messages("rejected"))
    elif "prompt" in fields.value:
        pair = Pair(_prompt(fields), fields.text("chosen").strip(), fields.text("rejected").strip())
    else:
        transcripts = fields.text("chosen"), fields.text("rejected")
        if not any(_TURN.search(text) for text in transcripts):
            raise fields.fault(
                "prompt", "missing, and 'chosen' is no transcript with turns 'Human:' and 'Assistant:'", "a row has a prompt"
            )
        pair = from_transcripts(*map(turns, transcripts))
    scores = fields.numbers("score_chosen", "score_rejected") or fields.numbers("chosen_score", "rejected_score")
    return replace(
        pair,
        cluster=fields.label("cluster", "article_id"),
        domain=fields.label("domain", "subreddit"),
        scores=(scores[0], scores[1]) if scores else None,
    )


def _of_messages(fields: Fields, chosen: Messages, rejected: Messages) -> Pair:
    """Return the pair of two lists of messages: whole dialogues, or answers alone with a ``prompt`` beside them."""
    whole = [bool(messages) and messages[0]["role"] != "assistant" for messages in (chosen, rejected)]
    if all(whole) or ("prompt" not in fields.value and any(whole)):
        return from_transcripts(chosen, rejected)
    prompt = _prompt(fields)
    return from_transcripts((*prompt, *chosen), (*prompt, *rejected))


def _list(fields: Fields) -> Pair:
    """Return the pair of a list of scored responses: the best and the worst, with the others beside them."""
    texts = [fields.text_of(f"responses[{i}]", text).strip() for i, text in enumerate(fields.items("responses"))]
    scores = [fields.number_of(f"scores[{i}]", score) for i, score in enumerate(fields.items("scores"))]
    if len(texts) < 2:
        raise fields.fault("responses", f"{len(texts)} items", "'responses' lists at least two answers")
    if len(scores) != len(texts):
        raise fields.fault("scores", f"{len(scores)} items, {len(texts)} responses", "'scores' has one number a response")
    (chosen, best), *more, (rejected, worst) = sorted(zip(texts, scores), key=lambda one: -one[1])
    fault = "its best and its worst response have one score" if best == worst else None
    if fault is None and not all(texts):
        fault = "a response is empty"
    return Pair(
        prompt=_prompt(fields),
        chosen=chosen,
        rejected=rejected,
        cluster=fields.label("cluster", "article_id"),
        domain=fields.label("domain", "subreddit"),
        scores=(best, worst),
        fault=fault,
        more=tuple(more),
    )


def _comparison(fields: Fields) -> Pair:
    """Return the pair of two summaries of one post or article, of which ``choice`` is preferred."""
    info, summaries, choice = fields.inside("info"), fields.need("summaries"), fields.need("choice")
    if not isinstance(summaries, list) or len(summaries) != 2:
        raise fields.fault(
            "summaries",
            f"{len(summaries)} items" if isinstance(summaries, list) else kind(summaries),
            "'summaries' lists two summaries",
        )
    if isinstance(choice, bool) or choice not in (0, 1):
        raise fields.fault("choice", reprlib.repr(choice), "'choice' is 0 or 1, the place of the preferred summary")
    texts = [fields.inside("summaries", index).text("text").strip() for index in (0, 1)]
    body = info.text("post") if info.value.get("post") is not None else info.text("article")
    title, subreddit = info.label("title"), info.label("subreddit")
    parts = [
        f"SUBREDDIT: r/{subreddit}" if subreddit else "",
        f"TITLE: {title}" if title else "",
        f"POST: {body.strip()}",
        "TL;DR:",
    ]
    extra = fields.inside("extra") if isinstance(fields.value.get("extra"), dict) else None
    confidence = extra.value["confidence"] if extra is not None and extra.numbers("confidence") else None
    return Pair(
        prompt=({"role": "user", "content": "\n\n".join(part for part in parts if part)},),
        chosen=texts[int(choice)],
        rejected=texts[1 - int(choice)],
        cluster=info.label("id"),
        domain=subreddit,
        meta={} if confidence is None else {"confidence": confidence},
        fault=None if body.strip() else "prompt is empty",
    )


def _prompt(fields: Fields) -> Messages:
    """Return the field ``prompt`` as messages; a text in the HH form gives its turns."""
    if isinstance(fields.need("prompt"), list):
        return fields.messages("prompt")
    text = fields.text("prompt").strip()
    dialogue = turns(text) if text.startswith("Human:") and text.endswith("Assistant:") else None
    return dialogue[:-1] if dialogue else ({"role": "user", "content": text},)


def joined(messages: Messages) -> Messages:
    """Join consecutive turns of one speaker, which many chat templates refuse."""
    turns = groupby(messages, key=lambda message: message["role"])
    return tuple({"role": who, "content": "\n\n".join(filter(None, (one["content"] for one in some)))} for who, some in turns)


def content_fault(pair: Pair, split: SplitName) -> str | None:
    """Return why a pair cannot be used in a split, None where it can."""
    roles = [message["role"] for message in pair.prompt if message["role"] != "system"]
    checks = [
        (pair.fault is not None, pair.fault),
        (not any(message["content"] for message in pair.prompt), "prompt is empty"),
        (roles[-1:] != ["user"], "the prompt does not end with the user's turn"),
        (roles[:1] != ["user"], "the dialogue does not begin with the user's turn"),
        (not pair.prompt or not pair.prompt[-1]["content"], "the last turn of the prompt is empty"),
        (not pair.chosen, "chosen is empty"),
        (split != "sft" and not pair.rejected, "rejected is empty"),
        (split != "sft" and pair.chosen == pair.rejected, "chosen and rejected are identical"),
        (half_character(vars(pair)), HALF_CHARACTER),
    ]
    return next((reason for wrong, reason in checks if wrong), None)


def _short(value: Any) -> str:
    """Return 16 hex digits that stand for a JSON value."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def components(keys: Sequence[Sequence[str]]) -> list[str]:
    """Return for every row the smallest key among all rows it is connected to by shared keys."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for row in keys:
        for key in row:
            parent.setdefault(key, key)
            low, high = sorted((root(row[0]), root(key)))
            parent[high] = low
    return [root(row[0]) for row in keys]


def bucket(component: str) -> float:
    """Return a number in [0, 1) that depends on the component's key alone."""
    return int.from_bytes(hashlib.sha256(f"{_SALT}/{component}".encode("utf-8", "surrogatepass")).digest()[:6], "big") / 2**48


class PairTask(Task):
    """Preferences from a file or a hub data set.

    Splits: 15 % eval, 15 % heldout, the rest train, by a hash of what a row belongs to: its ``cluster`` (or ``article_id``)
    and its prompt, so that neither is ever in two splits. A hub set with its own test split is evaluated on that. The split
    ``sft`` holds the chosen answers of train. ``limit`` cuts an order decided by ``seed``: a smaller limit is a beginning of a
    larger one.
    """

    def parse(self, fields: Fields) -> Pair:
        """Return the pair of a record; raises InputError for a structural fault."""
        return parse(fields)

    def _pair(self, record: Record) -> Pair:
        """Return the pair of a record, one that cannot be used where the record was not read."""
        return self.parse(Fields(record)) if record.fault is None else Pair((), "", "", fault=record.fault)

    @functools.cached_property
    def _source(self) -> Source:
        if self.data is None:
            raise InputError(
                f"task '{self.name}' has no data", "this task reads preferences", "give it `data`: a file or a hub id"
            )
        return read(self.data)

    @functools.cached_property
    def _content(self) -> Mapping[str, str]:
        path = local_file(self.data) if self.data is not None else None
        return self._source.identity if path is None else file_identity(path)

    def identity(self) -> dict[str, Any]:
        """Return what decides the rows: the data's content, and the versions of the task and of this reader."""
        return {**super().identity(), "pairs": PAIRS_VERSION, "data": dict(self._content)}

    @functools.cached_property
    def _parts(self) -> Mapping[str, Sequence[tuple[Pair, str | None]]]:
        """The pairs of eval, heldout and train, each with the cluster it shares with other rows (None: it stands alone)."""
        own_test = self._source.test
        records = [*self._source.records, *(own_test or ())]
        pairs = [replace(self._pair(record), number=record.number) for record in records]
        pairs = [replace(pair, prompt=joined(pair.prompt)) for pair in pairs]
        keys = []
        for place, pair in enumerate(pairs):
            # A pair without a prompt belongs to no other row.
            prompt = f"prompt/{_short(pair.prompt)}" if pair.prompt else f"row/{place}"
            keys.append([prompt] if pair.cluster is None else [f"cluster/{pair.cluster}", prompt])
        belongs = components(keys)
        sizes = Counter(belongs)
        tested = set(belongs[len(self._source.records) :])
        parts: dict[str, list[tuple[Pair, str | None]]] = {"eval": [], "heldout": [], "train": []}
        for place, (pair, component) in enumerate(zip(pairs, belongs)):
            share = bucket(component)
            if own_test is None:
                part = "eval" if share < EVAL_SHARE else "heldout" if share < EVAL_SHARE + HELDOUT_SHARE else "train"
            elif place >= len(self._source.records):
                part = "eval"
            else:
                part = "heldout" if share < HELDOUT_SHARE else "train"
                if component in tested:
                    pair = replace(pair, fault=pair.fault or "its prompt is also in the test split")
            parts[part].append((pair, component if sizes[component] > 1 else None))
        return parts

    def load(self, split: SplitName, limit: int | None, seed: int) -> Sequence[Row]:
        """Return the rows of a split, at most ``limit``, in an order decided by ``seed``; unusable rows carry their reason.

        Raises:
            InputError: the data is structurally at fault, with file, row and field.
        """
        rows = sorted(self._rows(split), key=lambda row: hashlib.sha256(f"{seed}/{row.id}".encode()).digest())
        return rows if limit is None else rows[:limit]

    def _rows(self, split: SplitName) -> list[Row]:
        """Return all rows of a split in the order of the source."""
        seen: Counter[str] = Counter()
        rows = []
        for pair, cluster in self._parts["train" if split == "sft" else split]:
            rejected = "" if split == "sft" else pair.rejected
            # Rows without a prompt have nothing to tell them apart but their place.
            name = _short([[dict(m) for m in pair.prompt], pair.chosen, rejected, *([] if pair.prompt else [pair.number])])
            seen[name] += 1
            rows.append(
                Row(
                    id=name if seen[name] == 1 else f"{name}-{seen[name]}",
                    prompt=pair.prompt,
                    chosen=pair.chosen,
                    rejected=rejected,
                    scores=pair.scores,
                    domain=pair.domain,
                    cluster=cluster,
                    meta=pair.meta,
                    number=pair.number,
                    unusable=content_fault(pair, split),
                    more=() if split == "sft" else pair.more,
                )
            )
        return rows
