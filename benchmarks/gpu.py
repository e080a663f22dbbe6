"""Everything that needs a GPU, in one run: against TRL at its best settings, the share of the bf16 rate, exactness, kernels.

Usage: python benchmarks/gpu.py [--models 1B 7B] [--weights full lora] [--lengths hh tldr] [--budget 540] [--out gpu.json]
       python benchmarks/gpu.py --tiny          the same code on a CPU within a minute, with models of no use

Llama configurations with random weights, in bfloat16, over synthetic rows with the lengths of real data; DPO there, DPO and DPO
with SPO here. What runs out of memory is tried again with smaller forward passes, then with activations computed twice; the
figures say what was used. Small models take turns step by step; large ones run one after the other, since two do not fit. The
file is written anew after every case, and no case begins when the budget is used up: a run that is cut short leaves what it has.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import GIB, SQUARE, Side, SideError, Taken, add_output, describe, matmul_rate, seconds_of, show, table, take_turns
from own_side import Setup, examples_of, objective_of, own_side, prepared
from synthetic import LENGTHS, LLAMAS, make_model, make_rows
from trl_side import attention_there, trl_side

from spo_bench.files import write_json
from spo_bench.spo.settings import SpoSettings
from spo_bench.training.attention import attention
from spo_bench.training.blocks import Sight
from spo_bench.training.loop import START_TOLERANCE, fit
from spo_bench.training.scoring import log_probs
from spo_bench.training.trie import pack

PAIRS = {"hh": 32, "tldr": 16, "tiny": 4}
# What to try, best first, until one fits: (tokens here or pairs there of a forward pass, activations computed twice).
OWN_TRIES = ((16384, False), (8192, False), (4096, False), (16384, True), (4096, True))
TRL_TRIES = ((16, False), (8, False), (4, False), (16, True), (4, True))
TOGETHER = ("1B", "tiny")  # three trainings fit into a GPU
LARGE_SQUARE = (8192, 8192, 8192)
RATIOS = (("trl dpo", "dpo"), ("trl dpo", "dpo+SPO"), ("dpo+SPO", "dpo"))


def case(model: str, weights: str, lengths: str, wanted: argparse.Namespace, rate: float) -> dict[str, Any]:
    """Run one model, kind of training and kind of lengths; return a line for each side. ``rate`` is the machine's."""
    pairs = PAIRS[lengths]
    setup = Setup(pairs, wanted.steps + 1, 1e-6, 4096, "bfloat16", wanted.device, weights == "lora")
    make = partial(make_model, model, setup.numerics)
    records = make_rows(make_model(model, None)[1], lengths, pairs * setup.steps)
    own = {"model": make, "records": records}
    tries: dict[str, list[Side]] = {}
    for name, spo in (("dpo", None), ("dpo+SPO", SpoSettings())):
        fitted = [replace(setup, micro=micro, checkpointing=twice) for micro, twice in OWN_TRIES]
        tries[name] = [Side(name, own_side, {**own, "setup": one, "spo": spo}) for one in fitted]
    if wanted.trl:
        fitted = [replace(setup, micro=micro, checkpointing=twice) for micro, twice in TRL_TRIES if micro <= pairs]
        tries["trl dpo"] = [Side("trl dpo", trl_side, {**own, "setup": one}) for one in fitted]
    groups = [tries] if model in TOGETHER else [{name: one} for name, one in tries.items()]
    lines = [line for group in groups for line in settle(group, wanted.steps, wanted.device, rate)]
    seconds = {line["what"]: line["seconds_a_step"] for line in lines if "failed" not in line}
    ratios = {f"{a} / {b}": seconds[a] / seconds[b] for a, b in RATIOS if a in seconds and b in seconds}
    return {"model": model, "weights": weights, "lengths": lengths, "pairs": pairs, "lines": lines, "ratios": ratios}


def settle(tries: Mapping[str, Sequence[Side]], rounds: int, device: str, rate: float) -> list[dict[str, Any]]:
    """Let the first try of every name take turns; where one runs out of memory, its next one; return a line a name."""
    left = {name: list(sides) for name, sides in tries.items()}
    failed: list[dict[str, Any]] = []
    while left:
        try:
            taken = take_turns([sides[0] for sides in left.values()], rounds, device)
        except SideError as error:
            left[error.name] = left[error.name][1:] if error.out_of_memory else []
            if not left[error.name]:
                failed.append({"what": error.name, "failed": str(error)})
                del left[error.name]
        else:
            return [*(line(name, one, left[name][0].arguments, rate) for name, one in taken.items()), *failed]
    return failed


def line(name: str, taken: Taken, told: Mapping[str, Any], rate: float) -> dict[str, Any]:
    """Return a training's figures; ``told`` is what the side was told.

    Raises:
        ValueError: it trained on other token ids than it was given.
    """
    setup: Setup = told["setup"]
    if taken.about["ids"] != [[row[f"{part}_ids"] for part in ("prompt", "chosen", "rejected")] for row in told["records"]]:
        raise ValueError(f"{name} trained on other token ids than it was given")
    seconds, flops = taken.seconds(), taken.about.get("flops")
    return {
        "what": name,
        "seconds_a_step": sum(seconds) / len(seconds),
        "pairs_a_second": setup.batch_size * len(seconds) / sum(seconds),
        "tokens_a_step": sum(taken.about["tokens"][1:]) / len(seconds),
        "peak_gib": taken.peak / GIB,
        "of_matmul_rate": sum(flops[1:]) / sum(seconds) / rate if flops else None,
        "micro": setup.micro,
        "checkpointing": setup.checkpointing,
        "losses": [turn["loss"] for turn in taken.turns],
    }


def small_objective(wanted: argparse.Namespace, dtype: str, packing: str) -> tuple[Any, ...]:
    """Return (objective, examples, settings) of a small model that is not tiny, DPO with SPO, at learning rate 0."""
    setup = Setup(4, 2, 0.0, 4096, dtype, wanted.device, micro=8192)
    kind = "tiny" if wanted.tiny else "small"
    model, tokenizer = make_model(kind, setup.numerics)
    settings, spo = setup.loop(packing), SpoSettings()
    examples = examples_of(make_rows(tokenizer, "tiny" if wanted.tiny else "hh", 4), tokenizer, spo, settings)
    return objective_of(prepared(model, setup), examples, spo, settings, setup.numerics), examples, settings


def exactness(wanted: argparse.Namespace, dtype: str) -> dict[str, Any]:
    """Hold tries against separate sequences on the device: log-probabilities, loss and gradient norm of a step."""
    found: dict[str, tuple[np.ndarray[Any, Any], dict[str, Any]]] = {}
    for packing in ("trie", "separate"):
        objective, examples, settings = small_objective(wanted, dtype, packing)
        items = [(item.prompt, item.scored) for item in examples]
        values = log_probs(objective.model, items, objective.numerics, settings.micro_tokens, packing == "trie")
        logs: list[dict[str, Any]] = []
        fit(objective, examples, settings, logs.append, [np.arange(len(examples))])
        found[packing] = np.concatenate([sequence for row in values for sequence in row]), logs[0]
    (trie, ours), (separate, theirs) = found["trie"], found["separate"]
    gap = np.abs(trie - separate)
    mean, largest = START_TOLERANCE[dtype]
    return {
        "dtype": dtype,
        "tokens": len(gap),
        "mean_gap": float(gap.mean()),
        "largest_gap": float(gap.max()),
        "allowed": [mean, largest],
        "loss": [ours["loss"], theirs["loss"]],
        "grad_norm": [ours["grad_norm"], theirs["grad_norm"]],
        "same": bool(gap.mean() <= mean and gap.max() <= largest),
    }


def synchronisations(wanted: argparse.Namespace) -> dict[str, int] | None:
    """Return where a training step waits for the GPU, with how often; None without a GPU. The log at its end reads its row."""
    if wanted.device == "cpu":
        return None
    objective, examples, settings = small_objective(wanted, "bfloat16", "trie")
    rows = [np.arange(len(examples))]
    progress = fit(objective, examples, settings, lambda row: None, rows)
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            fit(objective, examples, settings, lambda row: None, rows, progress)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = [f"{Path(one.filename).name}:{one.lineno}" for one in seen if "synchroniz" in str(one.message)]
    return dict(Counter(places).most_common())


def kernels(wanted: argparse.Namespace) -> dict[str, Any]:
    """Time the package's attention over one line of tries against SDPA with a boolean mask, forward and backward.

    What a pack costs once for all layers (its masks) is timed apart.
    """
    from torch.nn.functional import scaled_dot_product_attention

    cuda, count, heads, width = wanted.device != "cpu", 2 if wanted.tiny else 24, 2 if wanted.tiny else 32, 128
    tokenizer = make_model("tiny", None)[1]
    settings = Setup(count, 1, 0.0, 4096).loop()
    rows = make_rows(tokenizer, "tiny" if wanted.tiny else "hh", count)
    tries = [item.row()[0] for item in examples_of(rows, tokenizer, SpoSettings(), settings)]
    device = torch.device(wanted.device)

    def fresh() -> Sight:
        found = pack(tries).to(device).sight
        assert found is not None
        return found

    kept = fresh()
    place = torch.arange(len(kept.ends), device=device)
    mask = (place[None] <= place[:, None]) & (place[:, None] < kept.ends[None])
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, len(place), width, device=device, dtype=torch.bfloat16 if cuda else torch.float32).requires_grad_()
        for _ in range(3)
    )
    runs: dict[str, Callable[[], torch.Tensor]] = {
        "sdpa": lambda: scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2),
        "trie": lambda: attention(None, query, key, value, None, trie=kept)[0],
        "trie, of a new pack": lambda: attention(None, query, key, value, None, trie=fresh())[0],
    }
    gap = float((runs["trie"]() - runs["sdpa"]()).detach().float().abs().max())

    def both_ways(name: str) -> None:
        torch.autograd.backward(runs[name]().sum())

    seconds = {name: min(seconds_of(lambda name=name: both_ways(name), wanted.device) for _ in range(5)) for name in runs}  # type: ignore[misc]
    return {"tokens": len(place), "seconds": seconds, "sdpa / trie": seconds["sdpa"] / seconds["trie"], "largest_gap": gap}


def measure(wanted: argparse.Namespace) -> dict[str, Any]:
    """Run all that is wanted, writing the file after every part."""
    started = time.perf_counter()
    shape = SQUARE if wanted.tiny else LARGE_SQUARE
    rate = matmul_rate([shape], "bfloat16", wanted.device, repeats=10)[shape]
    result: dict[str, Any] = {
        "about": describe(wanted.device),
        "matmul_tflops": rate / 1e12,
        "attention_there": attention_there(),
        "exactness": [exactness(wanted, dtype) for dtype in ("float32", "bfloat16")],
        "synchronisations": synchronisations(wanted),
        "kernels": kernels(wanted),
        "cases": [],
        "left_out": [],
    }
    for lengths in wanted.lengths:
        for weights in wanted.weights:
            for model in wanted.models:
                if time.perf_counter() - started > wanted.budget:
                    result["left_out"].append([model, weights, lengths])
                    continue
                result["cases"].append(case(model, weights, lengths, wanted, rate))
                if wanted.out is not None:
                    write_json(wanted.out, result)
    return result


def activations(line: Mapping[str, Any]) -> str:
    """Say what became of a training's activations, or why there is no training."""
    return str(line["failed"]) if "failed" in line else "computed twice" if line["checkpointing"] else "held"


def tables(result: dict[str, Any]) -> str:
    """Return the tables."""
    parts = [f"bf16 matmul rate: {result['matmul_tflops']:.3g} TFLOP/s; TRL's attention: {result['attention_there']}"]
    names = ("seconds_a_step", "pairs_a_second", "tokens_a_step", "peak_gib", "of_matmul_rate", "micro")
    rows = [
        [
            f"{one['model']} {one['weights']} {one['lengths']}",
            line["what"],
            *(line.get(name) for name in names),
            activations(line),
        ]
        for one in result["cases"]
        for line in one["lines"]
    ]
    head = ("case", "training", "seconds a step", "pairs a second", "tokens a step", "peak GiB", "of matmul rate", "a pass")
    parts.append(table((*head, "activations"), rows))
    rows = [
        [f"{one['model']} {one['weights']} {one['lengths']}", name, value]
        for one in result["cases"]
        for name, value in one["ratios"].items()
    ]
    parts.append(table(("case", "ratio of seconds", "measured"), rows))
    for one in result["exactness"]:
        gap = f"{one['mean_gap']:.2g} nats on average, {one['largest_gap']:.2g} at most over {one['tokens']} tokens"
        parts.append(f"tries against separate sequences, {one['dtype']}: {'the same' if one['same'] else 'NOT THE SAME'}, {gap}")
    kernel = result["kernels"]
    parts.append(
        f"attention over {kernel['tokens']} tokens: sdpa / trie {kernel['sdpa / trie']:.2f}, gap {kernel['largest_gap']:.2g}"
    )
    waits = result["synchronisations"]
    parts.append("waits for the GPU in a step: " + ("not measured, no GPU" if waits is None else str(waits or "none")))
    return "\n\n".join(parts)


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["1B", "7B"], choices=sorted(LLAMAS))
    parser.add_argument("--weights", nargs="+", default=["full", "lora"], choices=["full", "lora"])
    parser.add_argument("--lengths", nargs="+", default=["hh", "tldr"], choices=sorted(LENGTHS))
    parser.add_argument("--steps", type=int, default=4, help="timed steps, after one to warm up")
    parser.add_argument("--budget", type=float, default=3600.0, help="seconds after which no further case begins")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--no-trl", dest="trl", action="store_false", help="measure ours only")
    parser.add_argument("--tiny", action="store_true", help="tiny models and rows on a CPU")
    add_output(parser)
    wanted = parser.parse_args(words)
    if wanted.tiny:
        wanted.models, wanted.lengths, wanted.steps, wanted.device = ["tiny"], ["tiny"], 2, "cpu"
    return wanted


def main() -> None:
    """Measure and print."""
    wanted = parsed()
    result = measure(wanted)
    show(result, wanted, lambda: tables(result))


if __name__ == "__main__":
    main()
