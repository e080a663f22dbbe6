"""sft: the policy a model's methods start from, fine-tuned once on the demonstrations of all tasks of the matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from spo_bench.errors import StageError
from spo_bench.files import write_jsonl
from spo_bench.models.activations import spare_activations
from spo_bench.models.policy import load_policy, load_tokenizer, save_policy
from spo_bench.stages.base import Work
from spo_bench.stages.data import load_split
from spo_bench.training.loop import TrainSettings
from spo_bench.training.probe import shares_prefixes
from spo_bench.training.sharding import Group, shard, whole_state
from spo_bench.training.supervised import finetune
from spo_bench.training.trie import Response, build_row


def run(work: Work) -> None:
    """Write the fine-tuned policy and ``train.jsonl``.

    Config: settings (of the loop), gradient_checkpointing, numerics. Inputs: model, data:0, data:1, …
    """
    torch.manual_seed(work.config["settings"]["seed"])
    records = [row for name in sorted(work.inputs) if name.startswith("data:") for row in load_split(work.inputs[name], "sft")]
    if not records:
        raise StageError("supervised fine-tuning was asked for, but no task of this matrix has demonstrations (split sft)")
    settings = TrainSettings.for_rows(work.config["settings"], len(records))
    sharded, ranks = None, work.ranks
    for _ in ranks.in_turn():  # a model is whole on one rank at a time
        model = load_policy(work.inputs["model"], work.numerics, trust_remote_code=work.local["trust_remote_code"])
        share = shares_prefixes(model, settings.packing, settings.max_length, work.numerics)
        spare_activations(model, work.config["gradient_checkpointing"])
        if isinstance(ranks, Group):
            sharded = shard(model, work.numerics, ranks)
    rows = [build_row(np.asarray(r["prompt_ids"]), [Response(np.asarray(r["chosen_ids"]))], share) for r in records]
    steps: list[dict[str, Any]] = []
    with work.checkpoint.keeping():
        finetune(model, rows, settings, work.numerics, share, steps, work.checkpoint, work.live, ranks, sharded)
    weights = None if sharded is None else whole_state(model)
    if ranks.rank == 0:  # the others have no whole weights
        save_policy(model, load_tokenizer(work.inputs["model"], work.local["trust_remote_code"]), work.out, weights)
    write_jsonl(work.out / "train.jsonl", steps)
