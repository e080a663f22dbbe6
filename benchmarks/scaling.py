"""What a training step costs against rows, length and degrees; tries against separate sequences; a matrix against its cells.

Usage: python benchmarks/scaling.py MODEL PAIRS.jsonl[.gz] [--what rows length degrees layout cells processes] [--json]

Real training steps, optimizer included, of DPO and of DPO with SPO, full fine-tuning. What is compared runs in turn on one model:
the cost of a step does not depend on the weights. Rows of a step are taken evenly over the lengths of the data, so that steps of
any number of rows are alike. Cells: the whole command with an empty store, one stage at a time, for a growing number of methods,
each with and without SPO; what a further cell costs beside its own training steps. Processes: the same steps by one process on
one core and by several that share the weights, each on a core of its own, in turn.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matrix import own_matrix
from measuring import add_output, alternate, describe, r_squared, show, slope, table
from own_side import Record, Setup, add_data, examples_of, length, load_of, objective_of, prepared, spread, whole_rows
from ranks_side import compare

from spo_bench.engine.attempt import keep_freed_memory
from spo_bench.engine.free import cores_here
from spo_bench.models.policy import load_policy, load_tokenizer
from spo_bench.spo.settings import SpoSettings
from spo_bench.training.loop import Progress, begin, fit

WHAT = ("rows", "length", "degrees", "layout", "cells", "processes")
METHODS = ("dpo", "ipo", "simpo", "kto")
SPO = SpoSettings()


@dataclass
class Bench:
    """A model, its tokenizer, rows, and the one state of an optimizer that all steps share.

    Attributes:
        model, tokenizer: of the model directory.
        records: the rows.
        setup: the training.
        rounds: timed rounds.
        progress: made by the first step.
        losses: of the last step of every name.
    """

    model: Any
    tokenizer: Any
    records: Sequence[Record]
    setup: Setup
    rounds: int
    progress: Progress | None = None
    losses: dict[str, float] = field(default_factory=dict)

    def step(self, name: str, records: Sequence[Record], spo: SpoSettings | None, packing: str) -> tuple[Callable[[], None], int]:
        """Return a function that takes one training step over rows, and the tokens it computes."""
        settings = replace(self.setup, batch_size=len(records)).loop(packing)
        examples = examples_of(records, self.tokenizer, spo, settings)
        objective = objective_of(self.model, examples, spo, settings, self.setup.numerics)
        own = begin(objective, settings)
        # An optimizer takes its memory in its first step: one for the policy serves all, a head has its own.
        self.progress = self.progress or own
        own.policy, own.step = self.progress.policy, 1  # as a step in the middle: the first one has checks of its own

        def run() -> None:
            fit(
                objective, examples, settings, lambda row: self.losses.update({name: row["loss"]}), [np.arange(len(records))], own
            )

        return run, load_of(examples, packing == "trie").tokens

    def cost(self, steps: dict[str, tuple[Sequence[Record], SpoSettings | None, str]]) -> list[dict[str, Any]]:
        """Run steps in turn, each given as (rows, SPO, packing); return their tokens and median seconds."""
        made = {name: self.step(name, *step) for name, step in steps.items()}
        seconds = alternate({name: run for name, (run, _) in made.items()}, self.rounds)
        return [
            {"what": name, "rows": len(steps[name][0]), "tokens": tokens, "seconds": statistics.median(seconds[name])}
            for name, (_, tokens) in made.items()
        ]


def rows(bench: Bench, counts: Sequence[int]) -> dict[str, Any]:
    """Measure the cost against rows: linear if r² of a straight line is near 1, for tokens and for seconds."""
    found: dict[str, Any] = {}
    for name, spo in (("dpo", None), ("dpo+SPO", SPO)):
        lines = bench.cost({f"{name}, {n} rows": (spread(bench.records, n), spo, "trie") for n in counts})
        fits = {of: r_squared(counts, [line[of] for line in lines]) for of in ("tokens", "seconds")}
        found[name] = {"lines": lines, "r_squared": fits, "slope": slope(counts, [line["seconds"] for line in lines])}
    return found


def lengths(bench: Bench, count: int, parts: int = 4) -> dict[str, Any]:
    """Measure the cost against length: so many rows around each of some quantiles of length."""
    ordered = sorted(bench.records, key=length)
    starts = [round((len(ordered) - count) * part / (parts - 1)) for part in range(parts)]
    groups = {
        f"{length(ordered[start])} to {length(ordered[start + count - 1])}": ordered[start : start + count] for start in starts
    }
    found: dict[str, Any] = {}
    for name, spo in (("dpo", None), ("dpo+SPO", SPO)):
        lines = bench.cost({f"{name}, rows of {of} tokens": (group, spo, "trie") for of, group in groups.items()})
        found[name] = {"lines": lines, "slope": slope([line["tokens"] for line in lines], [line["seconds"] for line in lines])}
    return found


def degrees(bench: Bench, count: int, numbers: Sequence[int]) -> dict[str, Any]:
    """Measure the cost against degrees, each copy a sequence of its own before sharing; sub-linear if the slope is below 1."""
    some = spread(bench.records, count)
    steps: dict[str, Any] = {"dpo": (some, None, "trie")}
    steps |= {f"dpo+SPO, {n} degrees": (some, SpoSettings(degrees=n), "trie") for n in numbers}
    lines = bench.cost(steps)
    slopes = {of: slope(numbers, [line[of] for line in lines[1:]]) for of in ("tokens", "seconds")}
    return {"lines": lines, "slopes": slopes}


def layout(bench: Bench, count: int) -> dict[str, Any]:
    """Measure tries against separate sequences: tokens a pair over all rows, seconds over a few, losses at the same weights."""
    # The reference is the model as it is, and others' steps move it: at rate 0 the losses of all four are of the same weights.
    still = replace(bench, setup=replace(bench.setup, learning_rate=0.0), losses={})
    some = spread(bench.records, count)
    kinds = {("dpo", "trie"): None, ("dpo", "separate"): None, ("dpo+SPO", "trie"): SPO, ("dpo+SPO", "separate"): SPO}
    lines = still.cost({f"{name} {packing}": (some, spo, packing) for (name, packing), spo in kinds.items()})
    settings = bench.setup.loop()
    for line, ((_, packing), spo) in zip(lines, kinds.items(), strict=True):
        whole = load_of(examples_of(bench.records, bench.tokenizer, spo, settings), packing == "trie")
        line |= {"tokens_a_pair": whole.tokens / len(bench.records), "loss": still.losses[line["what"]]}
    taken = {line["what"]: line["seconds"] for line in lines}
    pairs = [
        ("dpo separate", "dpo trie"),
        ("dpo+SPO separate", "dpo+SPO trie"),
        ("dpo+SPO trie", "dpo trie"),
        ("dpo+SPO trie", "dpo separate"),
    ]
    return {"lines": lines, "ratios": {f"{a} / {b}": taken[a] / taken[b] for a, b in pairs}}


def cells(wanted: argparse.Namespace) -> dict[str, Any]:
    """Measure a matrix against its cells: seconds of the whole command, and of training, for one, two and more methods."""
    asked = argparse.Namespace(
        model=wanted.model,
        data=Path(wanted.data),
        task=wanted.task,
        batch=wanted.pairs,
        steps=wanted.cell_steps,
        max_length=wanted.max_length,
        dtype=wanted.dtype,
        seeds=[0],
        jobs="1",
    )
    lines = []
    for count in wanted.methods:
        with tempfile.TemporaryDirectory() as folder:
            found = own_matrix(argparse.Namespace(**vars(asked), methods=METHODS[:count]), Path(folder))
        lines.append({"cells": found["cells"], "seconds": found["seconds"], "training": sum(found["training_seconds"])})
    numbers, seconds = [line["cells"] for line in lines], [line["seconds"] for line in lines]
    each, first = np.polyfit(numbers, seconds, 1)
    own = sum(line["training"] for line in lines) / sum(numbers)
    return {
        "lines": lines,
        "r_squared": r_squared(numbers, seconds),
        "once": float(first),
        "a_cell": float(each),
        "training_a_cell": own,
    }


def processes(wanted: argparse.Namespace) -> dict[str, Any]:
    """Measure how much of the ideal is left when several processes take a step together."""
    config = {name: getattr(wanted, name) for name in ("task", "max_length", "micro_tokens", "count", "dtype", "data")}
    config |= {"model": str(wanted.model), "pairs": 2 * wanted.pairs, "steps": 3}
    kinds = (("dpo", False), ("dpo+SPO", True))
    lines = [{"what": name, **compare({**config, "spo": spo}, wanted.processes, wanted.rounds)} for name, spo in kinds]
    return {"processes": wanted.processes, "pairs_a_step": config["pairs"], "lines": lines}


def measure(wanted: argparse.Namespace) -> dict[str, Any]:
    """Measure what is wanted."""
    torch.set_num_threads(cores_here())
    keep_freed_memory()
    setup = Setup(wanted.pairs, 1, 1e-6, wanted.max_length, wanted.dtype, micro=wanted.micro_tokens)
    tokenizer = load_tokenizer(wanted.model)
    records = whole_rows(tokenizer, wanted.data, wanted.task, None, wanted.max_length)[: wanted.count]
    bench = Bench(prepared(load_policy(wanted.model, setup.numerics), setup), tokenizer, records, setup, wanted.rounds)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "rows": lambda: rows(bench, wanted.rows),
        "length": lambda: lengths(bench, wanted.pairs),
        "degrees": lambda: degrees(bench, wanted.pairs, wanted.degrees),
        "layout": lambda: layout(bench, wanted.pairs),
        "cells": lambda: cells(wanted),
        "processes": lambda: processes(wanted),
    }
    setting = {"model": wanted.model.name, "dtype": wanted.dtype, "pairs_a_step": wanted.pairs, "rows_of_data": len(records)}
    return {"about": describe(), "setting": setting, **{name: parts[name]() for name in wanted.what}}


def tables(result: dict[str, Any]) -> str:
    """Return the tables."""
    head, names = ("step", "rows", "tokens", "seconds"), ("what", "rows", "tokens", "seconds")
    parts = []
    for what in ("rows", "length"):
        for name, found in result.get(what, {}).items():
            parts.append(table(head, [[line[key] for key in names] for line in found["lines"]]))
            fits = "".join(f", r² of {of} {value:.4f}" for of, value in found.get("r_squared", {}).items())
            parts.append(
                f"{name}: seconds grow with {'rows' if what == 'rows' else 'tokens'} to the power {found['slope']:.2f}{fits}"
            )
    if found := result.get("degrees"):
        parts.append(table(head, [[line[key] for key in names] for line in found["lines"]]))
        parts.append("with degrees to the power " + ", ".join(f"{value:.2f} ({of})" for of, value in found["slopes"].items()))
    if found := result.get("layout"):
        more = ("tokens_a_pair", "loss")
        rows_ = [[line[key] for key in (*names, *more[:1])] + [f"{line['loss']:.6f}"] for line in found["lines"]]
        parts.append(table((*head, "tokens a pair", "loss"), rows_))
        parts.append(table(("ratio of seconds", "measured"), list(found["ratios"].items())))
    if found := result.get("cells"):
        keys = ("cells", "seconds", "training")
        parts.append(table(("cells", "seconds", "of them training"), [[line[key] for key in keys] for line in found["lines"]]))
        parts.append(
            f"a further cell takes {found['a_cell']:.1f} s, of them {found['training_a_cell']:.1f} s its own training; "
            f"what is made once {found['once']:.1f} s; r² {found['r_squared']:.4f}"
        )
    if found := result.get("processes"):
        keys = ("what", "one", "several", "efficiency", "memory", "losses_apart")
        head = (
            "step",
            "one, s",
            f"{found['processes']} processes, s",
            "efficiency",
            "memory of a process / of one",
            "losses apart",
        )
        parts.append(table(head, [[line[key] for key in keys] for line in found["lines"]]))
    return "\n\n".join(parts)


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data(parser)
    parser.add_argument("--what", nargs="+", default=list(WHAT), choices=WHAT)
    parser.add_argument("--rows", nargs="+", type=int, default=[4, 8, 16, 24], help="rows a step")
    parser.add_argument("--degrees", nargs="+", type=int, default=[2, 4, 8, 16])
    parser.add_argument("--methods", nargs="+", type=int, default=[1, 2, 4], help="how many methods the matrices have")
    parser.add_argument("--cell-steps", type=int, default=4, help="steps of a cell's training")
    parser.add_argument("--pairs", type=int, default=4, help="rows a step where they do not vary")
    parser.add_argument("--processes", type=int, default=2, help="that take a step together")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds, after one to warm up")
    parser.add_argument("--count", type=int, default=400, help="rows of the data that are used")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    add_output(parser)
    return parser.parse_args(words)


def main() -> None:
    """Measure and print."""
    wanted = parsed()
    result = measure(wanted)
    show(result, wanted, lambda: tables(result))


if __name__ == "__main__":
    main()
