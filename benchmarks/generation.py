"""Answers: rows that end and begin at any step, against transformers' ``generate`` on fixed batches, in turn.

Usage: python benchmarks/generation.py MODEL_DIRECTORY PAIRS.jsonl[.gz] [--prompts 64] [--max-new-tokens 128] [--batch-size 32]
       python benchmarks/generation.py embedded [--store DIR]

Both ways answer the same prompts with the same settings. ``embedded`` is the SFT policy of the preset `quick`, on the prompts of
its first task; it is made first if the store does not hold it. Drawn answers differ, so the ratio is of tokens a second; with
``--temperature 0`` the answers are the same, which is counted.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from measuring import add_output, alternate, describe, show, table
from own_side import whole_rows
from transformers import GenerationConfig

from spo_bench.engine.free import cores_here
from spo_bench.matrix.cells import expand
from spo_bench.matrix.evaluation import Place
from spo_bench.matrix.load import load_spec
from spo_bench.models.numerics import Numerics
from spo_bench.models.policy import load_policy, load_tokenizer, stop_tokens
from spo_bench.models.sampling import find_way, sample
from spo_bench.stages.base import Stage
from spo_bench.stages.data import eval_prompts
from spo_bench.stages.registry import execute
from spo_bench.store.artifacts import Store
from spo_bench.store.hashes import HashCache

Answers = list[list[int]]


def made(stage: Stage, store: Store) -> Path:
    """Return a stage's artifact, made with all it needs."""
    for source in stage.inputs.values():
        made(source, store)
    return execute(stage, store)


def embedded(store: Store) -> tuple[Path, list[list[int]]]:
    """Return the SFT policy of the embedded default, and the prompts of its first task."""
    cell = expand(load_spec("quick"), Place("cpu", HashCache(store.root)))[0]
    data, policy = (made(cell.stages[name], store) for name in ("data", "sft"))
    return policy, [row["prompt_ids"] for row in eval_prompts(data)]


@torch.no_grad()
def in_fixed_batches(
    model: Any, prompts: Sequence[Sequence[int]], settings: dict[str, Any], stops: list[int], pad: int
) -> Answers:
    """Answer with ``generate``: left-padded batches of like length, each until its longest answer has ended."""
    greedy = settings["temperature"] == 0
    drawn = {} if greedy else {"temperature": settings["temperature"], "top_p": settings["top_p"], "top_k": 0}
    model.generation_config = GenerationConfig(
        max_new_tokens=settings["max_new_tokens"], do_sample=not greedy, eos_token_id=stops, pad_token_id=pad, **drawn
    )
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: Answers = [[] for _ in prompts]
    for start in range(0, len(order), settings["batch_size"]):
        members = order[start : start + settings["batch_size"]]
        width = max(len(prompts[i]) for i in members)
        ids = torch.tensor([[pad] * (width - len(prompts[i])) + list(prompts[i]) for i in members])
        present = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in members])
        found = model.generate(input_ids=ids.to(model.device), attention_mask=present.to(model.device))
        for i, line in zip(members, found[:, width:].tolist(), strict=True):
            end = next((place for place, token in enumerate(line) if token in stops), len(line) - 1)
            answers[i] = line[: end + 1]
    return answers


def measure(wanted: argparse.Namespace) -> dict[str, Any]:
    """Return seconds and tokens of both ways."""
    if wanted.model == "embedded":
        torch.set_num_threads(1)  # as its stages run
        directory, prompts = embedded(Store(wanted.store))
    else:
        torch.set_num_threads(cores_here())
        directory = Path(wanted.model)
        rows = whole_rows(load_tokenizer(directory), wanted.data, wanted.task, wanted.prompts, 512)
        prompts = [row["prompt_ids"] for row in rows]
    prompts = prompts[: wanted.prompts]
    numerics = Numerics(wanted.device, wanted.dtype, wanted.dtype)
    tokenizer, model = load_tokenizer(directory), load_policy(directory, numerics)
    settings = {name: getattr(wanted, name) for name in ("max_new_tokens", "temperature", "top_p", "batch_size")}
    stops = stop_tokens(directory, tokenizer)
    way = find_way(model, max(map(len, prompts)) + wanted.max_new_tokens, numerics)  # as a stage: once
    counts: dict[str, list[int]] = {"in rows": [], "in fixed batches": []}
    last: dict[str, Answers] = {}

    def keep(name: str, answers: Answers) -> None:
        last[name] = answers
        counts[name].append(sum(map(len, answers)))

    seconds = alternate(
        {
            "in fixed batches": lambda: keep(
                "in fixed batches", in_fixed_batches(model, prompts, settings, stops, tokenizer.pad_token_id)
            ),
            "in rows": lambda: keep("in rows", sample(model, prompts, settings, stops, range(len(prompts)), numerics, way)),
        },
        wanted.rounds,
        wanted.device,
    )
    ways = {
        name: {
            "seconds": statistics.median(taken),
            "tokens": statistics.median(counts[name][1:]),
            "tokens_per_second": sum(counts[name][1:]) / sum(taken),
        }
        for name, taken in seconds.items()
    }
    ratio = ways["in rows"]["tokens_per_second"] / ways["in fixed batches"]["tokens_per_second"]
    same = sum(a == b for a, b in zip(last["in rows"], last["in fixed batches"], strict=True))
    return {
        "about": describe(wanted.device),
        "model": directory.name if wanted.model != "embedded" else "embedded",
        "settings": {**settings, "dtype": wanted.dtype, "threads": torch.get_num_threads()},
        "decoding_fallback": way.obstacle,
        "prompts": len(prompts),
        "prompt_tokens": sum(map(len, prompts)),
        "ways": ways,
        "ratio": ratio,
        "same_answers": same if wanted.temperature == 0 else None,
    }


def report(result: dict[str, Any]) -> str:
    """Return the table."""
    rows = [[name, way["seconds"], way["tokens"], way["tokens_per_second"]] for name, way in result["ways"].items()]
    lines = [
        f"{result['model']}: {result['prompts']} prompts of {result['prompt_tokens']} tokens; {result['settings']}",
        table(["", "seconds", "tokens of answers", "tokens a second"], rows),
        f"In rows / in fixed batches, tokens a second: {result['ratio']:.2f}",
    ]
    if result["same_answers"] is not None:
        lines.append(f"Same answers: {result['same_answers']} of {result['prompts']}")
    return "\n\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a Hugging Face directory, or `embedded`")
    parser.add_argument("data", nargs="?", help="preference rows whose prompts are answered; not for `embedded`")
    parser.add_argument("--task", default="dialogue")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--store", type=Path, default=Path("generation-store"), help="where the embedded policy is kept")
    add_output(parser)
    wanted = parser.parse_args()
    if wanted.model != "embedded" and wanted.data is None:
        parser.error("PAIRS is missing")
    result = measure(wanted)
    show(result, wanted, lambda: report(result))


if __name__ == "__main__":
    main()
