"""Key content and degraded copies: responses a second on one core, seen before, and by processes; and with their tokens.

Usage: python benchmarks/keywords.py PAIRS.jsonl[.gz] [--model MODEL_DIRECTORY] [--repeat 8] [--processes N] [--json]

``repeat`` makes the data larger by numbered copies of its answers, so that processes have something to do; they are counted from
the first answer to the last, without their start. With ``--model``, copies are turned into token ids too, as a run stores them.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from measuring import add_output, describe, show, table

from spo_bench.engine.local import cores_here
from spo_bench.models.policy import load_tokenizer
from spo_bench.plugins import get_task
from spo_bench.spo.degrade import REMEMBERED, degraded_copies
from spo_bench.spo.settings import SpoSettings
from spo_bench.stages.copies import Maker
from spo_bench.stages.data import tokenised

SETTINGS = {"default": {}, "words": {"unit": "word"}, "random_removal": {"control": "random_removal"}}
MAX_LENGTH = 1024


def degrade(texts: Sequence[str], settings: SpoSettings) -> int:
    """Make the copies of texts; return how many texts there were."""
    for text in texts:
        degraded_copies(text, settings, 0)
    return len(texts)


def rate(count: int, action: Callable[[], object]) -> float:
    """Return how many responses an action does in a second of this process's own time on a core."""
    started = time.process_time()
    action()
    return count / (time.process_time() - started)


def by_processes(texts: Sequence[str], processes: int) -> float:
    """Return the responses a second of processes that are running already."""
    parts = [texts[start::processes] for start in range(processes)]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        list(pool.map(degrade, [part[:1] for part in parts], [SpoSettings()] * processes))
        started = time.perf_counter()
        list(pool.map(degrade, parts, [SpoSettings()] * processes))
        return len(texts) / (time.perf_counter() - started)


def with_tokens(rows: Sequence[Any], model: Path) -> dict[str, float]:
    """Return the responses a second with token ids, and the share of that time that is degradation."""
    tokenizer = load_tokenizer(model)
    every = (tokenised(row, "train", tokenizer, MAX_LENGTH, Counter())[0] for row in rows)
    records = list(islice((record for record in every if record), 1000))
    maker = Maker(SpoSettings(), 0, MAX_LENGTH)
    texts = [record[side] for record in records for side in ("chosen", "rejected")]
    alone = rate(len(texts), lambda: degrade([f"{text} " for text in texts], SpoSettings()))
    whole = rate(len(texts), lambda: [maker.copies(record, tokenizer) for record in records])
    return {"with_token_ids": whole, "share_of_degradation": whole / alone}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--task", default="dialogue")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--repeat", type=int, default=8)
    parser.add_argument("--processes", type=int, default=cores_here())
    add_output(parser)
    wanted = parser.parse_args()
    rows = [row for row in get_task(wanted.task, wanted.data).load("train", None, 0) if row.unusable is None]
    once = [text for row in rows for text in (row.chosen, row.rejected)]
    # No text is met twice where that is not what is measured: one that was met lately is not looked at again.
    tokens = None if wanted.model is None else with_tokens(rows, wanted.model)
    rates = {}
    for place, (name, settings) in enumerate(SETTINGS.items()):
        texts = [f"{text}{' ' * (place + 2)}" for text in once]
        rates[name] = rate(len(texts), lambda texts=texts, settings=settings: degrade(texts, SpoSettings(**settings)))  # type: ignore[misc]
    few = [f"{text}\n" for text in once[: REMEMBERED // 2]]
    degrade(few, SpoSettings())
    rates["seen before"] = rate(len(few), lambda: degrade(few, SpoSettings()))
    many = [f"{text} {number}" for number in range(wanted.repeat) for text in once]
    rates["1 process"] = by_processes(many, 1)
    rates[f"{wanted.processes} processes"] = by_processes(many, wanted.processes)
    words = sum(len(text.split()) for text in once) / len(once)
    result: dict[str, Any] = {"about": describe(), "responses": len(once), "words_each": words, "responses_a_second": rates}
    if tokens is not None:
        result["tokens"] = tokens

    def text() -> str:
        lines = [f"{len(once)} responses of {words:.0f} words, three degraded copies each"]
        lines.append(table(["how", "responses a second"], [[name, f"{value:,.0f}"] for name, value in rates.items()]))
        if tokens is not None:
            share = f"{tokens['share_of_degradation']:.0%} of it degradation"
            lines.append(f"with token ids: {tokens['with_token_ids']:,.0f} responses a second, {share}")
        return "\n\n".join(lines)

    show(result, wanted, text)


if __name__ == "__main__":
    main()
