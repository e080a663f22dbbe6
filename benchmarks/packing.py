"""Trie against separate sequences: tokens a pair, seconds a step, and that the losses are the same.

Usage: python benchmarks/packing.py MODEL_DIRECTORY PAIRS.jsonl[.gz] [--pairs 4] [--steps 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from spo_bench.engine.local import cores_here, keep_freed_memory
from spo_bench.methods import get_method, resolve
from spo_bench.models.chat import completion_ids, render
from spo_bench.models.numerics import Numerics
from spo_bench.models.policy import load_policy, load_tokenizer
from spo_bench.plugins import get_task
from spo_bench.spo.head import DegreeHead
from spo_bench.spo.settings import SpoSettings
from spo_bench.stages.examples import example
from spo_bench.training.examples import micro_batches
from spo_bench.training.loop import TrainSettings
from spo_bench.training.objective import Objective, Reference
from spo_bench.training.scoring import log_probs


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data")
    parser.add_argument("--task", default="dialogue")
    parser.add_argument("--pairs", type=int, default=4, help="pairs a step")
    parser.add_argument("--steps", type=int, default=3, help="steps of each, after one to warm up")
    parser.add_argument("--count", type=int, default=400, help="rows whose tokens are counted")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--json", action="store_true")
    wanted = parser.parse_args()

    torch.set_num_threads(cores_here())
    keep_freed_memory()
    numerics = Numerics("cpu", wanted.dtype, "float32")
    tokenizer = load_tokenizer(wanted.model)
    records = []
    for row in get_task(wanted.task, wanted.data).load("train", wanted.count, 0):
        if row.unusable is None:
            ids = {"prompt_ids": render(tokenizer, row.prompt).ids, "chosen_ids": completion_ids(tokenizer, row.chosen)}
            ids["rejected_ids"] = completion_ids(tokenizer, row.rejected)
            if len(ids["prompt_ids"]) + max(len(ids["chosen_ids"]), len(ids["rejected_ids"])) <= wanted.max_length:
                records.append({"id": row.id, "chosen": row.chosen, "rejected": row.rejected, **ids})
    settings = TrainSettings(wanted.pairs, 1, 1e-6, "constant", 0.0, 0.0, 1.0, 2048, "trie", wanted.max_length, 0)
    variants = {"dpo": None, "dpo+SPO": SpoSettings()}
    examples = {name: [example(r, tokenizer, spo, settings) for r in records] for name, spo in variants.items()}
    tokens = {
        (name, layout): statistics.mean(e.row(share=layout == "trie")[0].size for e in rows)
        for name, rows in examples.items()
        for layout in ("trie", "separate")
    }
    model = load_policy(wanted.model, numerics)
    model.requires_grad_(True)
    batch = slice(0, wanted.pairs)
    items = [(e.prompt, [e.chosen, e.rejected]) for e in examples["dpo"][batch]]
    frozen = [(a, b) for a, b in log_probs(model, items, numerics, 2048)]
    reference = Reference(
        tokens=frozen,
        sums=torch.tensor([[float(a.sum()), float(b.sum())] for a, b in frozen]),
        lengths=torch.tensor([[len(a), len(b)] for a, b in frozen]),
    )
    rows = np.arange(len(frozen))
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in tokens}
    losses: dict[tuple[str, str], float] = {}
    for turn in range(wanted.steps + 1):
        for name, layout in tokens:  # A and B in turn: a machine that slows down slows both
            spo = variants[name]
            head = DegreeHead(model.config.hidden_size, spo, seed=0) if spo else None
            objective = Objective(model, head, get_method("dpo"), resolve("dpo", {}), spo, reference, numerics)
            started, loss = time.perf_counter(), 0.0
            batches = micro_batches(examples[name][batch], rows, 2048, layout == "trie")
            copies = sum(len(b.degrees) for b in batches)
            for micro in batches:
                sums, _, layer, _ = objective.forward(micro)
                frozen = objective.stored(rows[micro.places], 0, micro.places)
                lists = objective.lists(micro, sums, frozen, None, rows[micro.places], 0)
                term = objective.losses(lists, None)[0].mean() * len(micro.places) / len(rows)
                if head is not None:
                    term = term + objective.degree(layer, micro, 0, copies)[0]
                term.backward()
                loss += float(term.detach())
            model.zero_grad(set_to_none=True)
            losses[name, layout] = loss
            if turn:
                seconds[name, layout].append(time.perf_counter() - started)
    result = {
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "cores": cores_here(),
        "dtype": wanted.dtype,
        "rows_counted": len(records),
        "pairs_a_step": len(rows),
        "lines": [
            {
                "what": name,
                "layout": layout,
                "tokens_per_pair": tokens[name, layout],
                "seconds_a_step": statistics.median(seconds[name, layout]),
                "loss": losses[name, layout],
            }
            for name, layout in tokens
        ],
    }
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    result["ratios"] = {
        "dpo: separate / trie": medians["dpo", "separate"] / medians["dpo", "trie"],
        "dpo+SPO: separate / trie": medians["dpo+SPO", "separate"] / medians["dpo+SPO", "trie"],
        "dpo+SPO trie / dpo trie": medians["dpo+SPO", "trie"] / medians["dpo", "trie"],
        "dpo+SPO trie / dpo separate": medians["dpo+SPO", "trie"] / medians["dpo", "separate"],
    }
    if wanted.json:
        print(json.dumps(result, indent=1))
        return
    print(
        f"{len(records)} rows counted, {len(rows)} pairs a step, {wanted.dtype}, {cores_here()} cores, torch {torch.__version__}"
    )
    for line in result["lines"]:
        cost = f"{line['tokens_per_pair']:7.0f} tokens a pair  {line['seconds_a_step']:7.2f} s a step"
        print(f"{line['what']:8} {line['layout']:9} {cost}  loss {line['loss']:.5f}")
    for name, ratio in result["ratios"].items():
        print(f"{name:30} {ratio:.2f}")


if __name__ == "__main__":
    main()
