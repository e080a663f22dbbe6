"""Which function makes which kind of artifact, and the version of its code. No heavy import: planning uses this."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from spo_bench.judging.sharing import sharing
from spo_bench.judging.store import FILE
from spo_bench.stages.base import Stage, Work, smaller
from spo_bench.stages.together import together
from spo_bench.store.artifacts import Store
from spo_bench.store.checkpoints import EVERY, Checkpoint
from spo_bench.store.live import LIVE, Live

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
    "generate": ("spo_bench.stages.generate:run", 4),
    "score": ("spo_bench.stages.score:run", 3),
    "reward_model": ("spo_bench.stages.reward_model:run", 4),
    "reward": ("spo_bench.stages.reward:run", 3),
    "judge": ("spo_bench.stages.judge:run", 2),
    "judge_audit": ("spo_bench.stages.judge_audit:run", 3),
}


SHARDED = ("sft", "train")  # of what several devices do together: each holds a part of the weights; of the others all of them
TOGETHER = (*SHARDED, "reference", "mismatched", "explored", "generate", "score", "reward")


def devices(stage: Stage) -> int:
    """Return how many processes make a stage together, each with a device of its own."""
    return int(stage.local.get("devices", 1)) if stage.kind in TOGETHER else 1


def version(kind: str) -> int:
    """Return the code version of a kind of stage."""
    return KINDS[kind][1]


@dataclass(frozen=True)
class How:
    """How a stage is made here; nothing of it changes what it computes, but for rounding.

    Attributes:
        halvings: how many times what goes through the model at once is halved, since memory did not suffice.
        every: seconds between checkpoints.
        wait: whether to wait where another process makes the same.
        live: whether somebody follows the rows of a training.
        places: the devices it computes on, "cuda:0" and so on; none: those of its own settings.
    """

    halvings: int = 0
    every: float = EVERY
    wait: bool = True
    live: bool = False
    places: tuple[str, ...] = ()


def asks_judge(stage: Stage) -> bool:
    """Say whether a stage may ask a judge behind an endpoint."""
    judges = (stage.config.get(name) for name in ("judge", "labeller"))
    return any(isinstance(judge, Mapping) and judge.get("kind") == "openai" for judge in judges)


def execute(stage: Stage, store: Store, how: How | None = None) -> Path:
    """Make a stage's artifact in the store, unless it is there, and return its directory.

    Raises:
        Damaged: an input is not as it was made, or not there.
        Busy: another process makes it, and this one shall not wait.
    """
    if stage.done(store):
        return stage.path(store)
    how = how or How()
    module, _, called = KINDS[stage.kind][0].partition(":")
    name = (stage.kind, stage.key)
    kept = store.checkpoint(*name)
    checkpoint, live = Checkpoint(kept, how.every, store.beyond(*name)), Live(kept / LIVE if how.live else None)

    local = {**stage.local, "judge_cache": str(store.root / FILE)}  # of the machine that makes it
    if how.places:
        local |= {"device": how.places[0], "places": how.places}

    def build(part: Path) -> None:
        for source in stage.inputs.values():
            if not source.on_disk:
                store.check(source.kind, source.key)
        function: Callable[[Work], None] = getattr(import_module(module), called)
        inputs = {label: source.path(store) for label, source in stage.inputs.items()}
        config = smaller(stage.config, how.halvings) if how.halvings else stage.config
        work = Work(out=part, config=config, inputs=inputs, local=local, checkpoint=checkpoint, live=live)
        if (count := devices(stage)) > 1:
            together(function, work, count)
        else:
            function(work)

    note = {"halvings": how.halvings} if how.halvings else {}
    # What a judge was paid for outlives its stage, and the machine on which it was paid.
    with sharing(store) if asks_judge(stage) else nullcontext():
        made = store.make(*name, stage.identity, build, how.wait, note)
    checkpoint.clear()
    return made
