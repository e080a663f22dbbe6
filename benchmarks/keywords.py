"""Key content and degraded copies: responses a second on one core.

Usage: python benchmarks/keywords.py PAIRS.jsonl[.gz] [--json]
"""

from __future__ import annotations

import argparse
import json
import platform
import time

from spo_bench.plugins import get_task
from spo_bench.spo.degrade import degraded_copies
from spo_bench.spo.settings import SpoSettings


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--task", default="dialogue")
    parser.add_argument("--json", action="store_true")
    wanted = parser.parse_args()
    rows = [row for row in get_task(wanted.task, wanted.data).load("train", None, 0) if row.unusable is None]
    texts = [text for row in rows for text in (row.chosen, row.rejected)]
    words = sum(len(text.split()) for text in texts) / len(texts)
    result = {"python": platform.python_version(), "responses": len(texts), "words_each": words, "responses_a_second": {}}
    for name, settings in {
        "default": SpoSettings(),
        "words": SpoSettings(unit="word"),
        "random_removal": SpoSettings(control="random_removal"),
    }.items():
        started = time.perf_counter()
        for text in texts:
            degraded_copies(text, settings, 0)
        result["responses_a_second"][name] = len(texts) / (time.perf_counter() - started)
    if wanted.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{len(texts)} responses of {words:.0f} words, three degraded copies each, Python {platform.python_version()}")
    for name, rate in result["responses_a_second"].items():
        print(f"{name:15} {rate:9.0f} responses a second")


if __name__ == "__main__":
    main()
