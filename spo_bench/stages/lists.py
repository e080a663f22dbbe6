"""Rows with more than two answers: the data's scored ones, or the chosen one and its degraded copies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from spo_bench.errors import InputError
from spo_bench.spo.degrade import degraded_copies
from spo_bench.spo.settings import SpoSettings

Record = Mapping[str, Any]
Scored = tuple[str, float]


def listed(train: Sequence[Record], wanted: Mapping[str, Any], tokenizer: Any, seed: int) -> tuple[list[Record], dict[str, Any]]:
    """Return the rows as lists of ``size`` answers, and what to record; rows of which no such list can be made are dropped.

    A list is a row whose ``chosen`` and ``rejected`` are its best and worst answers, with the others ``between`` them and the
    ``scores`` of all, falling.

    Args:
        train: tokenised rows.
        wanted: size; source (data or degraded); version (of the degradation; part of the key alone).
        tokenizer: whose end token tells whether an answer was cut.
        seed: of the degradation.

    Raises:
        InputError: no list can be made of any row.
    """
    size, source = wanted["size"], wanted["source"]
    rows: list[Record] = []
    dropped: Counter[str] = Counter()
    for row in train:
        answers = spread(scored(row), size) if source == "data" else copies(row, size, tokenizer.eos_token_id, seed)
        if isinstance(answers, str):
            dropped[answers] += 1
            continue
        texts = [text for text, _ in answers]
        best, worst = {"chosen": texts[0]}, {"rejected": texts[-1]}
        rows.append({**row, **best, **worst, "between": texts[1:-1], "scores": [s for _, s in answers], "more": []})
    if not rows:
        reasons = "; ".join(f"{reason}: {count}" for reason, count in dropped.items())
        remedy = "give data with `responses` and `scores`" if source == "data" else "lower list_size"
        raise InputError(
            f"list_size {size} from {source}: no list can be made of any of {len(train)} training rows ({reasons})",
            f"a row needs {size} different answers with scores that are not all the same"
            if source == "data"
            else f"a chosen answer needs {size - 1} degraded copies, all different",
            f"{remedy}, or use {{size: {size}, source: {'degraded' if source == 'data' else 'data'}}}",
        )
    return rows, {"size": size, "list_source": source, "kept": len(rows), "dropped": dict(dropped)}


def scored(row: Record) -> list[Scored]:
    """Return a row's different answers with their scores, best first; of equal ones in the row's order. None without scores."""
    if row["scores"] is None:
        return []
    answers = [(row["chosen"], row["scores"][0]), *map(tuple, row["more"]), (row["rejected"], row["scores"][1])]
    first: dict[str, float] = {}
    for text, score in answers:
        first.setdefault(text, score)
    return sorted(first.items(), key=lambda answer: -answer[1])


def spread(ranked: Sequence[Scored], size: int) -> list[Scored] | str:
    """Return ``size`` of the ranked answers: the best, the worst, and evenly spaced ranks between; or why there are none."""
    if len(ranked) < size:
        return "too few scored answers"
    if ranked[0][1] == ranked[-1][1]:
        return "best and worst have one score"
    return [ranked[place * (len(ranked) - 1) // (size - 1)] for place in range(size)]


def copies(row: Record, size: int, end: int, seed: int) -> list[Scored] | str:
    """Return the chosen answer and its degraded copies, scored by the share of key content they keep; or why there are none.

    A chosen answer that was cut makes none: it has no end token, its shorter copies would have one, and the end would tell the
    degree.
    """
    if row["chosen_ids"][-1] != end:
        return "the chosen answer was cut"
    settings = SpoSettings(degrees=size)
    texts = [text for text in degraded_copies(row["chosen"], settings, seed) if text is not None]
    if len(texts) < size:
        return "too few key phrases"
    if len(set(texts)) < size:
        return "two copies are the same"
    return [(text, 1 - share) for text, share in zip(texts, settings.rho(), strict=True)]
