"""This package's training against TRL's: seconds a step, peak memory, and that the losses are the same.

Usage: python benchmarks/vs_trl.py MODEL_DIRECTORY PAIRS.jsonl[.gz] [--pairs 4] [--steps 4] [--dtypes float32 bfloat16] [--no-trl]

Full fine-tuning by DPO, here also with SPO at its defaults (4 degrees, both sides). Every step is a real one, optimizer included,
over the same rows in the same order with the same settings; the reference pass lies before the timed steps on both sides. Each
training has a process of its own, so that memory stays apart, and they take turns step by step: while one works the others sleep.
A further process measures the machine's matmul rate whenever it has the turn: of one large product, and of the products of a
step. Everything is compared by ratios of the seconds for the same steps; the first step warms up. Peak memory is that during the
steps.

A group of processes is held in memory together: ours with the clock, TRL with each of ours, and at last ours in all types.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from measuring import (
    GIB,
    SQUARE,
    Side,
    Taken,
    add_output,
    describe,
    matmul_rates,
    matmul_side,
    show,
    table,
    take_turns,
)
from own_side import Record, Setup, add_data, own_side, step_products, whole_rows
from trl_side import trl_side

from spo_bench.models.policy import load_tokenizer
from spo_bench.spo.settings import SpoSettings

# What losses and gradient norms may differ by, relative to max(1, |value|). In bfloat16 the two sides round other packs of the
# same tokens, and their own references, differently.
TOLERANCE = {"float32": {"loss": 1e-4, "grad_norm": 1e-3}, "bfloat16": {"loss": 5e-2, "grad_norm": 1e-1}}
# What is aimed at: TRL's seconds in ours, without and with SPO; our memory in TRL's; the share of the matmul rate; what SPO may
# cost; float32's seconds in bfloat16's.
SPEED, SPO_SPEED, MEMORY, RATE, SPO_COST, BF16 = 6.0, 3.0, 0.35, 0.75, 1.9, 1.5


def sides(model: Path, records: Sequence[Record], setup: Setup, trl: bool, keep_memory: bool) -> list[Side]:
    """Return the trainings of one type: TRL's if wanted, and ours without and with SPO."""
    own = {"model": model, "records": records, "setup": setup}
    theirs = {**own, "setup": replace(setup, micro=setup.batch_size), "keep_memory": keep_memory}
    found = [Side(f"trl dpo {setup.dtype}", trl_side, theirs)] if trl else []
    return [
        *found,
        Side(f"dpo {setup.dtype}", own_side, {**own, "spo": None}),
        Side(f"dpo+SPO {setup.dtype}", own_side, {**own, "spo": SpoSettings()}),
    ]


def line(name: str, taken: Taken, pairs: int, rates: Mapping[str, float]) -> dict[str, Any]:
    """Return a training's figures; ``rates`` are the machine's in its type. TRL's arithmetic is not counted."""
    seconds, tokens = taken.seconds(), taken.about["tokens"][1:]
    mean = sum(seconds) / len(seconds)
    achieved = sum(taken.about["flops"][1:]) / sum(seconds) if "flops" in taken.about else None
    return {
        "what": name,
        "seconds_a_step": mean,
        "each_step": seconds,
        "tokens_a_step": sum(tokens) / len(tokens),
        "pairs_a_second": pairs / mean,
        "peak_gib": taken.peak / GIB,
        "of_square": achieved / rates["square"] if achieved else None,
        "of_products": achieved / rates["products"] if achieved else None,
        "losses": [turn["loss"] for turn in taken.turns],
        "grad_norms": [turn["grad_norm"] for turn in taken.turns],
    }


def agreement(theirs: Taken, ours: Taken, dtype: str) -> dict[str, Any]:
    """Return the largest differences over all steps, the tolerances, and whether they are kept.

    Raises:
        ValueError: the two sides trained on other token ids, or a loss is no number.
    """
    if theirs.about["ids"] != ours.about["ids"]:
        raise ValueError("TRL's token ids of these rows are not ours: the losses cannot be compared")
    gaps, allowed = gaps_of(theirs, ours), TOLERANCE[dtype]
    return {"gaps": gaps, "allowed": allowed, "same": all(gaps[name] <= allowed[name] for name in gaps)}


def gaps_of(one: Taken, other: Taken) -> dict[str, float]:
    """Return the largest differences of losses and gradient norms over all steps, relative to max(1, |value|).

    Raises:
        ValueError: one of them is no number.
    """
    found = {}
    for name in ("loss", "grad_norm"):
        pairs = [(a[name], b[name]) for a, b in zip(one.turns, other.turns, strict=True)]
        if not all(math.isfinite(value) for pair in pairs for value in pair):
            raise ValueError(f"{name} of a step is no number: {pairs}")
        found[name] = max(abs(a - b) / max(1.0, abs(a)) for a, b in pairs)
    return found


def ratio(name: str, value: float, target: float, at_least: bool = True) -> dict[str, Any]:
    """Return a ratio with what it is to be."""
    return {"ratio": name, "value": value, "target": target, "at_least": at_least}


def against_trl(theirs: Taken, ours: Taken, names: tuple[str, str], aim: float) -> list[dict[str, Any]]:
    """Return the ratios of a training here to TRL's, which took turns with it: sums of seconds over the same steps."""
    trl, own = names
    return [
        ratio(f"{trl} / {own}, seconds", sum(theirs.seconds()) / sum(ours.seconds()), aim),
        ratio(f"{own} / {trl}, peak memory", ours.peak / theirs.peak, MEMORY, at_least=False),
    ]


def measure(wanted: argparse.Namespace) -> dict[str, Any]:
    """Run all groups and return what was found."""
    setup = Setup(wanted.pairs, wanted.steps + 1, wanted.learning_rate, wanted.max_length, micro=wanted.micro_tokens)
    count = setup.batch_size * setup.steps
    records = whole_rows(load_tokenizer(wanted.model), wanted.data, wanted.task, count, wanted.max_length)
    products = step_products(wanted.model, records, setup)
    lines: dict[str, dict[str, Any]] = {}
    ratios: list[dict[str, Any]] = []
    rates: dict[str, dict[str, float]] = {}
    same: dict[str, Any] = {}
    rounding: dict[str, dict[str, float]] = {}
    for dtype in wanted.dtypes:
        typed = replace(setup, dtype=dtype)
        group = sides(wanted.model, records, typed, wanted.trl, wanted.trl_keeps_memory)
        plain, spo = group[-2:]
        clock = Side("matmul", matmul_side, {"products": products, "dtype": dtype})
        taken = take_turns([clock, plain, spo], wanted.steps)
        rates[dtype] = matmul_rates(taken.pop("matmul"))
        if wanted.trl:  # with one of ours at a time: all three together do not fit into the memory of a small machine
            for own, aim in ((plain, SPEED), (spo, SPO_SPEED)):
                pair = take_turns([group[0], own], wanted.steps)
                theirs, ours = pair[group[0].name], pair[own.name]
                ratios += against_trl(theirs, ours, (group[0].name, own.name), aim)
                if own is plain:
                    same[dtype] = agreement(theirs, ours, dtype)
                    taken = {group[0].name: theirs, **taken}
        lines |= {name: line(name, one, wanted.pairs, rates[dtype]) for name, one in taken.items()}
        cost = sum(taken[spo.name].seconds()) / sum(taken[plain.name].seconds())
        ratios.append(ratio(f"{spo.name} / {plain.name}, seconds", cost, SPO_COST, at_least=False))
        ratios += [
            ratio(f"{one.name}, of the rate of a large product", lines[one.name]["of_square"], RATE) for one in (plain, spo)
        ]
    if len(wanted.dtypes) > 1:
        both = [
            side for dtype in wanted.dtypes for side in sides(wanted.model, records, replace(setup, dtype=dtype), False, False)
        ]
        taken = take_turns(both, wanted.steps)
        total = {name: sum(one.seconds()) for name, one in taken.items()}
        rounding = {name: gaps_of(taken[f"{name} float32"], taken[f"{name} bfloat16"]) for name in ("dpo", "dpo+SPO")}
        ratios += [
            ratio(f"{name} float32 / bfloat16, seconds", total[f"{name} float32"] / total[f"{name} bfloat16"], BF16)
            for name in ("dpo", "dpo+SPO")
        ]
    return {
        "about": describe(),
        "setting": {"pairs_a_step": wanted.pairs, "steps": wanted.steps, "rows": len(records), "model": wanted.model.name}
        | {"trl_keeps_memory": wanted.trl_keeps_memory},
        "matmul": rates,
        "lines": list(lines.values()),
        "ratios": [{**one, "reached": (one["value"] >= one["target"]) == one["at_least"]} for one in ratios],
        "same": same,
        "rounding": rounding,
    }


def tables(result: dict[str, Any]) -> str:
    """Return the tables."""
    columns = ("what", "seconds_a_step", "tokens_a_step", "pairs_a_second", "peak_gib", "of_square", "of_products")
    head = ("training", "seconds a step", "tokens a step", "pairs a second", "peak GiB", "of a large product", "of its products")
    parts = [table(head, [[one[name] for name in columns] for one in result["lines"]])]
    rows = [
        [
            one["ratio"],
            one["value"],
            ("≥ " if one["at_least"] else "≤ ") + f"{one['target']:g}",
            "yes" if one["reached"] else "NO",
        ]
        for one in result["ratios"]
    ]
    parts.append(table(("ratio", "measured", "aim", "reached"), rows))
    parts += [
        f"matmul rate, {dtype}: {one['square'] / 1e9:.0f} GFLOP/s ({'×'.join(map(str, SQUARE))}), {one['products'] / 1e9:.0f} "
        f"GFLOP/s (the products of a step of dpo, each as often as it occurs)"
        for dtype, one in result["matmul"].items()
    ]
    for dtype, one in result["same"].items():
        gaps = ", ".join(f"{name} {gap:.2g} (allowed {one['allowed'][name]:g})" for name, gap in one["gaps"].items())
        parts.append(f"against TRL, {dtype}, {'the same' if one['same'] else 'NOT THE SAME'}: largest differences {gaps}")
    for name, found in result["rounding"].items():
        gaps = ", ".join(f"{of} {gap:.2g}" for of, gap in found.items())
        parts.append(f"{name}, bfloat16 against float32 over all steps: largest differences {gaps}")
    return "\n\n".join(parts)


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data(parser)
    parser.add_argument("--pairs", type=int, default=4, help="pairs a step")
    parser.add_argument("--steps", type=int, default=4, help="timed steps, after one to warm up")
    parser.add_argument("--learning-rate", type=float, default=1e-5, help="large enough that the losses move within a few steps")
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=["float32", "bfloat16"])
    parser.add_argument("--no-trl", dest="trl", action="store_false", help="measure ours only")
    parser.add_argument("--trl-keeps-memory", action="store_true", help="give TRL our allocator settings too")
    add_output(parser)
    return parser.parse_args(words)


def main() -> None:
    """Measure, print, and fail if the losses are not the same."""
    wanted = parsed()
    result = measure(wanted)
    show(result, wanted, lambda: tables(result))
    if not all(one["same"] for one in result["same"].values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
