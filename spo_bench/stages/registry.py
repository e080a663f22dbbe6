"""Which function makes which kind of artifact, and the version of its code. No heavy import: planning uses this."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from spo_bench.stages.base import Stage, Work
from spo_bench.store.artifacts import Store

# kind -> (function, version). Raise a version whenever the function, or what it calls, changes the numbers it writes.
KINDS = {
    "tokenizer": ("spo_bench.stages.model:run", 1),
    "model": ("spo_bench.stages.model:run", 1),
    "data": ("spo_bench.stages.data:run", 2),
    "copies": ("spo_bench.stages.copies:run", 1),
    "sft": ("spo_bench.stages.sft:run", 3),
    "reference": ("spo_bench.stages.reference:run", 3),
    "mismatched": ("spo_bench.stages.reference:run_mismatched", 3),
    "explored": ("spo_bench.stages.reference:run_explored", 3),
    "train": ("spo_bench.stages.train:run", 5),
    "rows": ("spo_bench.stages.rows:run", 2),
    "goals": ("spo_bench.stages.goals:run", 3),
    "generate": ("spo_bench.stages.generate:run", 3),
    "score": ("spo_bench.stages.score:run", 3),
    "reward_model": ("spo_bench.stages.reward_model:run", 4),
    "reward": ("spo_bench.stages.reward:run", 3),
    "judge": ("spo_bench.stages.judge:run", 2),
    "judge_audit": ("spo_bench.stages.judge_audit:run", 3),
}


def version(kind: str) -> int:
    """Return the code version of a kind of stage."""
    return KINDS[kind][1]


def execute(stage: Stage, store: Store) -> Path:
    """Make a stage's artifact in the store, unless it is there, and return its directory. Its inputs must be there."""
    module, _, name = KINDS[stage.kind][0].partition(":")

    def build(part: Path) -> None:
        function: Callable[[Work], None] = getattr(import_module(module), name)
        inputs = {label: source.path(store) for label, source in stage.inputs.items()}
        function(Work(out=part, config=stage.config, inputs=inputs, local=stage.local))

    return stage.path(store) if stage.done(store) else store.make(stage.kind, stage.key, stage.identity, build)
