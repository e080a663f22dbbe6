"""``python -m spo_bench`` is the command ``spo-bench``."""

from spo_bench.cli.main import main

main()
