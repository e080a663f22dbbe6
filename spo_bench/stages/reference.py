"""reference: per-token fp32 log-probabilities under the frozen policy; one pass serves every method, variant and seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from spo_bench.errors import StageError
from spo_bench.models.policy import load_policy
from spo_bench.stages.base import Work
from spo_bench.stages.data import load_split, training_rows
from spo_bench.task import SplitName
from spo_bench.training.examples import met_completions, mismatched, step_rows
from spo_bench.training.loop import TrainSettings
from spo_bench.training.probe import shares_prefixes
from spo_bench.training.scoring import Floats, log_probs

SPLITS: tuple[SplitName, ...] = ("train", "eval")


def run(work: Work) -> None:
    """Write ``SPLIT.safetensors`` for train and eval: values and lengths of chosen and rejected, row by row."""
    model = load_policy(work.inputs["policy"], work.numerics, trust_remote_code=work.local["trust_remote_code"])
    share = shares_prefixes(model, work.config["packing"], work.config["max_length"])
    for split in SPLITS:
        records = load_split(work.inputs["data"], split)
        items = [(np.asarray(r["prompt_ids"]), [np.asarray(r["chosen_ids"]), np.asarray(r["rejected_ids"])]) for r in records]
        save(work.out / f"{split}.safetensors", log_probs(model, items, work.numerics, work.config["micro_tokens"], share))


def run_mismatched(work: Work) -> None:
    """Write ``mismatched.safetensors``: every step's prompts with the next row's completions, in the order of the steps.

    Config: settings (of the loop: its steps, batch size and seed decide who meets whom), fraction, numerics.
    """
    model = load_policy(work.inputs["policy"], work.numerics, trust_remote_code=work.local["trust_remote_code"])
    records = training_rows(work)
    settings = TrainSettings.for_rows(work.config["settings"], len(records))
    if min(settings.batch_size, len(records)) < 2:
        raise StageError("one training row a step: a mismatched pair needs another row's completions; give at least two rows")
    sides = [tuple(np.asarray(r[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids")) for r in records]
    items = [
        (sides[a][0], met_completions(sides[a][0], sides[b][1], sides[b][2], settings.max_length))
        for rows in step_rows(len(records), settings.batch_size, settings.steps, settings.seed)
        for a, b in mismatched(rows)
    ]
    share = shares_prefixes(model, settings.packing, settings.max_length)
    values = log_probs(model, items, work.numerics, settings.micro_tokens, share)
    save(work.out / "mismatched.safetensors", values)


def save(path: Path, values: Sequence[Sequence[Floats]]) -> None:
    """Write per-token values of completions in order.

    Raises:
        StageError: a value is not finite.
    """
    arrays = [array for row in values for array in row]
    flat = np.concatenate(arrays) if arrays else np.empty(0, np.float32)
    if not np.isfinite(flat).all():
        raise StageError(f"{int((~np.isfinite(flat)).sum())} reference log-probabilities are not finite ({path.stem})")
    save_file({"values": flat.astype(np.float32), "lengths": np.asarray([len(a) for a in arrays], dtype=np.int64)}, str(path))


def load(path: Path) -> list[tuple[Floats, Floats]]:
    """Return per row the per-token values of chosen and rejected."""
    stored = load_file(str(path))
    arrays = np.split(stored["values"], np.cumsum(stored["lengths"])[:-1]) if len(stored["lengths"]) else []
    return list(zip(arrays[::2], arrays[1::2], strict=True))
