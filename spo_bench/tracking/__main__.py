"""The process beside a run: ``python -m spo_bench.tracking``."""

from spo_bench.tracking.follow import main

main()
