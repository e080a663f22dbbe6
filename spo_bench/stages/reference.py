"""reference: per-token fp32 log-probabilities under the frozen policy; one pass serves every method, variant and seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from spo_bench.errors import StageError
from spo_bench.files import read_jsonl
from spo_bench.models.policy import load_policy
from spo_bench.stages.base import Work
from spo_bench.stages.data import load_split, loop_settings, training_rows
from spo_bench.store.checkpoints import State
from spo_bench.task import SplitName
from spo_bench.training.examples import met_completions, mismatched, step_rows
from spo_bench.training.probe import shares_prefixes
from spo_bench.training.scoring import Floats, log_probs
from spo_bench.training.trie import Ints

SPLITS: tuple[SplitName, ...] = ("train", "eval")


def run(work: Work) -> None:
    """Write ``SPLIT.safetensors`` for train and eval: values and lengths of a row's answers from best to worst, row by row."""
    model = load_policy(work.inputs["policy"], work.numerics, trust_remote_code=work.local["trust_remote_code"])
    share = shares_prefixes(model, work.config["packing"], work.config["max_length"], work.numerics)
    passes = Passes(work, model, work.config["micro_tokens"], share)
    for split in SPLITS:
        records = load_split(work.inputs["data"], split)
        items = [(np.asarray(r["prompt_ids"]), [np.asarray(ids) for ids in answer_ids(r)]) for r in records]
        save(work.out / f"{split}.safetensors", passes.run(split, items))


def run_mismatched(work: Work) -> None:
    """Write ``mismatched.safetensors``: every step's prompts with the next row's completions, in the order of the steps.

    Config: settings (of the loop: its steps, batch size and seed decide who meets whom), fraction, numerics.
    """
    model = load_policy(work.inputs["policy"], work.numerics, trust_remote_code=work.local["trust_remote_code"])
    records = training_rows(work)
    settings = loop_settings(work)
    if min(settings.batch_size, len(records)) < 2:
        raise StageError("one training row a step: a mismatched pair needs another row's completions; give at least two rows")
    sides = [tuple(np.asarray(r[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids")) for r in records]
    items = [
        (sides[a][0], met_completions(sides[a][0], sides[b][1], sides[b][2], settings.max_length))
        for rows in step_rows(len(records), settings.batch_size, settings.steps, settings.seed)
        for a, b in mismatched(rows)
    ]
    share = shares_prefixes(model, settings.packing, settings.max_length, work.numerics)
    passes = Passes(work, model, settings.micro_tokens, share)
    save(work.out / "mismatched.safetensors", passes.run("mismatched", items))


def run_explored(work: Work) -> None:
    """Write ``explored.safetensors``: the policy's own greedy answer to every training prompt, under that policy.

    Config: max_length (longer ones are cut, as ``explored_ids`` does), micro_tokens, packing, numerics. Inputs: policy, data,
    samples (one a training row).
    """
    model = load_policy(work.inputs["policy"], work.numerics, trust_remote_code=work.local["trust_remote_code"])
    share = shares_prefixes(model, work.config["packing"], work.config["max_length"], work.numerics)
    records = load_split(work.inputs["data"], "train")
    answers = explored_ids(work.inputs["samples"], records, work.config["max_length"])
    items = [(np.asarray(r["prompt_ids"]), [ids]) for r, ids in zip(records, answers, strict=True)]
    passes = Passes(work, model, work.config["micro_tokens"], share)
    save(work.out / "explored.safetensors", passes.run("explored", items))


class Passes:
    """Forward passes over one or more lists of items, which go on where they were stopped.

    Args:
        work: the stage's.
        model: a policy.
        micro_tokens: budget of a forward pass.
        share: whether rows are run as tries.
    """

    def __init__(self, work: Work, model: Any, micro_tokens: int, share: bool) -> None:
        self.work, self.model, self.micro_tokens, self.share = work, model, micro_tokens, share
        self.done: dict[str, list[Floats]] = {}
        if (saved := work.checkpoint.load()) is not None:
            flat = dict(saved.tensors())
            for name, lengths in saved.values["lengths"].items():
                self.done[name] = np.split(flat[name].numpy(), np.cumsum(lengths)[:-1])

    def run(self, name: str, items: Sequence[tuple[Ints, Sequence[Ints]]]) -> list[list[Floats]]:
        """Return the per-token log-probabilities of a list of items."""
        done, step = self.done.setdefault(name, []), self.work.checkpoint.step
        with self.work.checkpoint.keeping():
            return log_probs(
                self.model,
                items,
                self.work.numerics,
                self.micro_tokens,
                self.share,
                done,
                lambda: step(self._state),
                self.work.ranks,
            )

    def _state(self) -> State:
        some = {name: values for name, values in self.done.items() if values}
        flat = {name: torch.from_numpy(np.concatenate(values)) for name, values in some.items()}
        return flat, {"lengths": {name: [len(each) for each in values] for name, values in some.items()}}


def answer_ids(record: Mapping[str, Any]) -> list[Sequence[int]]:
    """Return the token ids of a row's answers, from best to worst."""
    return [record["chosen_ids"], *record.get("between_ids", ()), record["rejected_ids"]]


def explored_ids(samples: Path, records: Sequence[Mapping[str, Any]], max_length: int) -> list[Ints]:
    """Return the token ids of the greedy answers to these rows, as they fit behind their prompts."""
    by_row = {row["id"]: row["ids"] for row in read_jsonl(samples / "samples.jsonl")}
    return [np.asarray(by_row[r["id"]][: max_length - len(r["prompt_ids"])], dtype=np.int64) for r in records]


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


def load(path: Path, answers: int = 2) -> list[tuple[Floats, ...]]:
    """Return per row the per-token values of its answers (or of whatever number of sequences a row has in this file)."""
    stored = load_file(str(path))
    arrays = np.split(stored["values"], np.cumsum(stored["lengths"])[:-1]) if len(stored["lengths"]) else []
    return [tuple(arrays[i : i + answers]) for i in range(0, len(arrays), answers)]
