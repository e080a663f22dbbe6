"""From a task's rows to what the loop trains on: token ids, degraded copies, and the reference's log-probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spo_bench.errors import StageError
from spo_bench.files import read_jsonl
from spo_bench.models.chat import completion_ids
from spo_bench.spo.degrade import degraded_copies, degree_labels
from spo_bench.spo.settings import SpoSettings
from spo_bench.stages.reference import load
from spo_bench.training.examples import SIDES, Copy, Example
from spo_bench.training.loop import TrainSettings
from spo_bench.training.objective import Reference
from spo_bench.training.scoring import Floats
from spo_bench.training.trie import Ints


def example(
    record: Mapping[str, Any],
    tokenizer: Any,
    spo: SpoSettings | None,
    settings: TrainSettings,
    on_policy: Mapping[str, Sequence[int]] | None = None,
    explored: Ints | None = None,
) -> Example:
    """Return a row as the loop sees it, with its degraded copies if there is SPO.

    An answer that was cut has no end token and shows nothing beyond the cut; neither do its copies, else the end would tell
    their degree. ``on_policy`` holds the SFT policy's own answers by row id, which then take the place of the data's.
    ``explored`` is the reference's greedy answer, for an addition that wants it.
    """
    prompt, chosen, rejected = (np.asarray(record[name], dtype=np.int64) for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
    copies: list[Copy] = []
    if spo is not None:
        intact = {i: ids for i, ids in enumerate((chosen, rejected)) if spo.side in (SIDES[i], "both")}
        if on_policy is not None:
            intact = {0: np.asarray(on_policy[record["id"]], dtype=np.int64)}
        for side, ids in intact.items():
            cut = ids[-1] != tokenizer.eos_token_id
            whole = cut or on_policy is not None
            text = tokenizer.decode(ids, skip_special_tokens=True).strip() if whole else record[SIDES[side]]
            for degree, copy in zip(
                degree_labels(text, spo, settings.seed), degraded_copies(text, spo, settings.seed), strict=True
            ):
                if copy is None:
                    continue
                # The intact copy is the answer itself, token by token.
                tokens = (
                    ids if copy == text else np.asarray(completion_ids(tokenizer, copy)[: -1 if cut else None], dtype=np.int64)
                )
                if len(tokens):
                    copies.append(Copy(tokens[: settings.max_length - len(prompt)], degree, side))
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


def samples_of(directory: Path) -> dict[str, list[int]]:
    """Return the token ids of sampled answers by row id."""
    return {row["id"]: row["ids"] for row in read_jsonl(directory / "samples.jsonl")}


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
