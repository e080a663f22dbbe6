"""Check a run of controlled tasks: every trained policy's true reward is above its SFT policy's, by an interval without zero.

Usage: python tests/check_learning.py RUN
"""

from __future__ import annotations

import sys
from pathlib import Path

from spo_bench.files import read_jsonl


def main(run: Path) -> int:
    contrasts = [
        row for row in read_jsonl(run / "comparisons.jsonl") if row["kind"] == "training" and row["metric"] == "true_reward"
    ]
    for row in contrasts:
        verdict = "ok" if row["low"] > 0 else "NOT ABOVE"
        sys.stdout.write(
            f"{verdict:10} {row['task']}: {row['variant']} {row['diff']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]\n"
        )
    if not contrasts:
        sys.stdout.write("no contrast with an SFT policy\n")
    return 0 if contrasts and all(row["low"] > 0 for row in contrasts) else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
