"""Key content and degraded copies: responses a second on one core and by processes, as texts and as token ids.

Usage: python benchmarks/keywords.py PAIRS.jsonl[.gz] [--model MODEL_DIRECTORY] [--repeat 8] [--processes N] [--json]

``repeat`` makes the data larger by numbered copies of its answers, so that processes have something to do; they are counted from
the first answer to the last, without their start. With ``--model``, copies are also made as a run stores them: as the token ids
of that model's tokenizer, for which its data are tokenised first (not counted).
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from measuring import add_output, describe, show, table

from spo_bench.engine.free import cores_here
from spo_bench.models.policy import load_tokenizer
from spo_bench.plugins import get_task
from spo_bench.processes import Pool
from spo_bench.spo.degrade import degraded_copies
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


@lru_cache(maxsize=1)
def loaded(model: Path) -> Any:
    """Return a tokenizer, loaded once a process."""
    return load_tokenizer(model)


def encode(records: Sequence[Any], model: Path) -> int:
    """Make the copies of both answers of tokenised rows as token ids; return how many answers there were."""
    tokenizer, maker = loaded(model), Maker(SpoSettings(), 0, MAX_LENGTH)
    for record in records:
        maker.copies(record, tokenizer)
    return 2 * len(records)


def rate(action: Callable[[], int]) -> float:
    """Return how many responses an action does in a second of this process's own time on a core."""
    started = time.process_time()
    count = action()
    return count / (time.process_time() - started)


def by_processes(action: Callable[[Any, Any], int], items: Sequence[Any], how: Any, processes: int) -> float:
    """Return the responses a second of processes that are running already and have done one part of each."""
    parts = [items[start::processes] for start in range(processes)]
    with Pool(processes) as pool:
        list(pool.map(action, [part[:1] for part in parts], [how] * processes))
        started = time.perf_counter()
        return sum(pool.map(action, parts, [how] * processes)) / (time.perf_counter() - started)


def tokenised_rows(rows: Sequence[Any], model: Path) -> list[Any]:
    """Return the usable rows with their token ids."""
    tokenizer = loaded(model)
    every = (tokenised(row, "train", tokenizer, MAX_LENGTH, Counter())[0] for row in rows)
    return [record for record in every if record]


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
    counts = sorted({1, wanted.processes})
    rates = {
        f"texts, {name}": rate(lambda settings=settings: degrade(once, SpoSettings(**settings)))  # type: ignore[misc]
        for name, settings in SETTINGS.items()
    }
    many = [f"{text} {number}" for number in range(wanted.repeat) for text in once]
    for count in counts:
        rates[f"texts, {count} process{'es' if count > 1 else ''}"] = by_processes(degrade, many, SpoSettings(), count)
    if wanted.model is not None:
        records = tokenised_rows(rows, wanted.model)
        rates["token ids"] = rate(lambda: encode(records, wanted.model))
        for count in counts:
            rates[f"token ids, {count} process{'es' if count > 1 else ''}"] = by_processes(encode, records, wanted.model, count)
    words = sum(len(text.split()) for text in once) / len(once)
    result: dict[str, Any] = {"about": describe(), "responses": len(once), "words_each": words, "responses_a_second": rates}

    def text() -> str:
        lines = [f"{len(once)} responses of {words:.0f} words, three degraded copies each"]
        lines.append(table(["how", "responses a second"], [[name, f"{value:,.0f}"] for name, value in rates.items()]))
        return "\n\n".join(lines)

    show(result, wanted, text)


if __name__ == "__main__":
    main()
