"""From a task's rows to what the loop trains on: token ids, degraded copies, and the reference's log-probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spo_bench.errors import StageError
from spo_bench.spo.settings import SpoSettings
from spo_bench.stages.copies import Maker
from spo_bench.stages.reference import load
from spo_bench.training.examples import Copy, Example
from spo_bench.training.loop import TrainSettings
from spo_bench.training.objective import Reference
from spo_bench.training.scoring import Floats
from spo_bench.training.trie import Ints


def example(
    record: Mapping[str, Any],
    tokenizer: Any,
    spo: SpoSettings | None,
    settings: TrainSettings,
    explored: Ints | None = None,
    copies: Sequence[Copy] | None = None,
) -> Example:
    """Return a row as the loop sees it, with its degraded copies if there is SPO.

    ``explored`` is the reference's greedy answer, for an addition that wants it. ``copies`` are those of the row where they were
    made before; else they are made here.
    """
    prompt, chosen, rejected = (np.asarray(record[name], dtype=np.int64) for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
    if copies is None:
        copies = Maker(spo, settings.seed, settings.max_length).copies(record, tokenizer) if spo is not None else ()
    return Example(
        id=record["id"],
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        copies=tuple(copies),
        between=tuple(np.asarray(ids, dtype=np.int64) for ids in record.get("between_ids", ())),
        scores=tuple(record["scores"]) if record.get("scores") else None,
        explored=explored,
    )


def stored_reference(inputs: Mapping[str, Path], examples: Sequence[Example], settings: TrainSettings) -> Reference:
    """Read the frozen log-probabilities of the training rows, with those of mismatched pairs and explored answers if any.

    Raises:
        StageError: a row is missing or has another length than its completions.
    """
    count = len(examples[0].answers)
    tokens: list[tuple[Floats, ...]] = load(inputs["reference"] / "train.safetensors", count)[: len(examples)]
    if "explored" in inputs:
        greedy = load(inputs["explored"] / "explored.safetensors", 1)[: len(examples)]
        tokens = [(*answers, *more) for answers, more in zip(tokens, greedy, strict=True)]
    pairs = None
    if "mismatched" in inputs:
        stored = load(inputs["mismatched"] / "mismatched.safetensors")
        pairs = sums_of(stored).view(settings.steps, -1, 2)
    return reference_of(examples, tokens, pairs)


def reference_of(examples: Sequence[Example], tokens: Sequence[Sequence[Floats]], mismatched: torch.Tensor | None) -> Reference:
    """Put per-token log-probabilities (of every row's scored responses) together as the loop reads them.

    Raises:
        StageError: a row has other lengths than its completions.
    """
    for item, values in zip(examples, tokens, strict=True):
        if [len(ids) for ids in item.scored] != [len(sequence) for sequence in values]:
            raise StageError(f"the reference of row {item.id} has another length than its completions")
    scores = [item.scores for item in examples]
    known = [row for row in scores if row is not None]
    return Reference(
        tokens=tokens,
        sums=sums_of(tokens),
        lengths=torch.tensor([[len(sequence) for sequence in row] for row in tokens]),
        scores=torch.tensor(known) if len(known) == len(examples) else None,
        mismatched=mismatched,
    )


def sums_of(tokens: Sequence[Sequence[Floats]]) -> torch.Tensor:
    """Return the sums of per-token values, shape (rows, sequences a row)."""
    return torch.tensor([[float(sequence.sum(dtype=np.float64)) for sequence in row] for row in tokens])
