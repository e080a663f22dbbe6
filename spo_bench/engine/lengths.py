"""How many tokens the rows of a task have, found out before anything runs: by its data, a sample of their texts, or an
assumption.

The first rows stand for all of them, which are in an order drawn by seed. Where token ids are not made yet, texts are counted in
words and marks: exact for the embedded model, and 1.1 of a usual tokenizer's tokens a word (English; 1.04 on HH dialogues, 1.18
on news). How many more tokens degraded copies bring is counted on the texts in words either way: the ratio is the tokens' to 2 %.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from spo_bench.errors import InputError
from spo_bench.files import canonical_json, read_json, read_jsonl
from spo_bench.models.chat import plain_text
from spo_bench.plugins import get_task
from spo_bench.spo.degrade import degraded_copies
from spo_bench.spo.settings import SpoSettings
from spo_bench.stages.base import Stage
from spo_bench.store.artifacts import Store

SAMPLE = 64  # rows that stand for a split
LARGEST = 64 * 2**20  # bytes of a data file that is read for a plan
WORD = re.compile(r"\w+|[^\w\s]")
TOKENS_A_WORD = 1.1
MARKS = 8  # tokens of a chat template around a prompt
MORE_A_DEGREE = 0.52  # of the answers' own tokens, what a degree's copies add to them: measured on HH (4 degrees: 1.57 more)

DATA, TEXTS, ASSUMED = "the data's tokens", "words of the data", "an assumed length"
# Tokens of (prompt, chosen, rejected) where the data is not at hand. Dialogues: 400 rows of HH's harmless-base in SmolLM2's
# tokens, with the marks of their turns. Summaries: TL;DR posts as their authors filtered them, of up to 512 tokens, with
# summaries of 24 to 48 tokens (Stiennon et al. 2020); 350 of a post is a guess.
TYPICAL = {"dialogue": (150.0, 40.0, 50.0), "summarization": (350.0, 40.0, 40.0)}


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of a row.

    Attributes:
        prompt, chosen, rejected: of it.
        shared: tokens that the two answers begin with together.
        basis: what the numbers rest on.
        texts: (chosen, rejected) of some rows; none where they are not at hand.
    """

    prompt: float
    chosen: float
    rejected: float
    shared: float
    basis: str
    texts: tuple[tuple[str, str], ...] = ()

    @property
    def answers(self) -> float:
        """Tokens of both answers, what they share counted once."""
        return self.chosen + self.rejected - self.shared


def lengths_of(data: Stage, store: Store) -> Lengths:
    """Return the mean lengths of the training rows of a task's plain data, as its artifact, a sample of it, or nobody knows."""
    return _lengths(data, str(data.path(store)) if data.done(store) else "")


@cache
def _lengths(data: Stage, made: str) -> Lengths:
    if made:
        return _of_rows(Path(made))
    most = float(data.config["max_length"])
    rows = _sample(data)
    if not rows:
        prompt, chosen, rejected = TYPICAL.get(data.local["task"], (most / 2, most / 8, most / 8))
        prompt = min(prompt, most - max(chosen, rejected))
        return Lengths(prompt, chosen, rejected, 0.0, ASSUMED)
    embedded = "embedded" in data.inputs["model"].config
    factor, marks = (1.0, 0) if embedded else (TOKENS_A_WORD, MARKS)
    prompts = _mean([len(words(prompt)) for prompt, _, _ in rows]) * factor + marks
    texts = tuple((chosen, rejected) for _, chosen, rejected in rows)
    sides = [[words(text) for text in pair] for pair in texts]
    chosen, rejected = (_mean([len(pair[side]) for pair in sides]) * factor + 1 for side in (0, 1))
    shared = _mean([len(a) + len(b) - nodes((a, b)) for a, b in sides]) * factor
    return Lengths(prompts, chosen, rejected, shared, TEXTS, texts)


def _of_rows(made: Path) -> Lengths:
    """Return the lengths of data that is made: means over all rows, and what answers share from some of them."""
    counted = read_json(made / "audit.json")["splits"]["train"]
    kept = max(1, int(counted["kept"]))
    rows = list(islice(read_jsonl(made / "train.jsonl"), SAMPLE))
    sides = [(row["chosen_ids"], row["rejected_ids"]) for row in rows]
    shared = _mean([len(a) + len(b) - nodes((a, b)) for a, b in sides])
    texts = tuple((row["chosen"], row["rejected"]) for row in rows)
    prompt, chosen, rejected = (counted[f"{name}_tokens"] / kept for name in ("prompt", "chosen", "rejected"))
    return Lengths(prompt, chosen, rejected, shared, DATA, texts)


def _sample(data: Stage) -> list[tuple[str, str, str]]:
    """Return (prompt, chosen, rejected) of some training rows; none where reading them would take long or cannot be done."""
    local, limit = data.local, data.config["limit"]["train"]
    file = Path(local["data"]).expanduser() if local["data"] else None
    if file is not None and (not file.is_file() or file.stat().st_size > LARGEST):
        return []
    try:
        task = get_task(local["task"], local["data"], [Path(folder) for folder in local["tasks_dirs"]])
        rows = task.load("train", min(limit or SAMPLE, SAMPLE), data.config["seed"])
    except InputError:  # told by the run itself
        return []
    return [(plain_text(row.prompt), row.chosen, row.rejected) for row in rows if row.unusable is None]


def more_of_copies(lengths: Lengths, spo: Mapping[str, Any]) -> tuple[float, float]:
    """Return the tokens that degraded copies add to a trie of both answers, and those of all copies apart."""
    factor, apart, _ = _copies(lengths.texts, canonical_json(spo))
    return lengths.answers * factor, lengths.answers * apart


def copies_a_pair(lengths: Lengths, spo: Mapping[str, Any]) -> float:
    """Return how many sequences of a pair the degree head reads, intact ones included."""
    return _copies(lengths.texts, canonical_json(spo))[2]


@cache
def _copies(texts: Sequence[tuple[str, str]], spo: str) -> tuple[float, float, float]:
    """Return what copies add to the answers, as shares of the answers' own tokens (in a trie, apart), and their number a pair."""
    settings = SpoSettings.model_validate_json(spo)
    sides = {"chosen": (0,), "rejected": (1,), "both": (0, 1)}[settings.side]
    if not texts:
        share = len(sides) / 2
        added = MORE_A_DEGREE * (settings.degrees - 1) * share
        return added, added + share, settings.degrees * len(sides)
    own = added = apart = count = 0
    for pair in texts:
        answers = [words(text) for text in pair]
        copies = [words(copy) for side in sides for copy in degraded_copies(pair[side], settings, 0) if copy]
        alone = nodes(answers)
        own, added = own + alone, added + nodes([*answers, *copies]) - alone
        apart, count = apart + sum(map(len, copies)), count + len(copies)
    return added / max(1, own), apart / max(1, own), count / len(texts)


def words(text: str) -> list[str]:
    """Return the words and marks of a text."""
    return WORD.findall(text)


def nodes(sequences: Sequence[Sequence[Any]]) -> int:
    """Return the number of distinct prefixes of some sequences: the nodes of their trie.

    In sorted order a sequence shares with all before it what it shares with the last one.
    """
    count, before = 0, list[Any]()
    for sequence in sorted(map(list, sequences)):
        shared = next((place for place, (a, b) in enumerate(zip(before, sequence)) if a != b), min(len(before), len(sequence)))
        count, before = count + len(sequence) - shared, sequence
    return count


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
