"""What the ranks of tests do: the processes that train together import it by name."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any

import torch
from conftest import tiny_model
from safetensors.torch import save_file
from test_training import CPU, SETTINGS, reference_of, some_examples

from spo_bench.errors import StageError
from spo_bench.files import write_jsonl
from spo_bench.methods import get_method, resolve
from spo_bench.models.policy import add_lora
from spo_bench.ranks import whole
from spo_bench.spo.head import DegreeHead
from spo_bench.spo.settings import SpoSettings
from spo_bench.stages.base import Work
from spo_bench.store.checkpoints import State
from spo_bench.training import loop
from spo_bench.training.examples import stream_seed
from spo_bench.training.loop import begin, fit
from spo_bench.training.objective import Objective
from spo_bench.training.sharding import Group, shard

LORA = {"rank": 4, "alpha": 8, "dropout": 0.0, "target_modules": "all-linear"}


def every_case(work: Work) -> None:
    """Train every case of the config; write its weights and its log."""
    for name, case in work.config["cases"].items():
        weights, rows = one(work, **case)
        save_file(weights, work.out / f"{name}.safetensors")
        write_jsonl(work.out / f"{name}.jsonl", rows)


def stopped(work: Work) -> None:
    """Train one case; the last rank gets a signal in the middle of a step."""
    rows = list[dict[str, Any]]()

    def log(row: dict[str, Any]) -> None:
        rows.append(row)
        if len(rows) == work.config["stop"] and work.ranks.rank == work.ranks.count - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    weights, _ = one(work, **work.config["case"], rows=rows, log=log)
    save_file(weights, work.out / "weights.safetensors")
    write_jsonl(work.out / "rows.jsonl", rows)


def gradients(work: Work) -> None:
    """Write the whole gradient of the first step, of which all ranks must have the same bits, the degree head's among them."""
    found: dict[str, torch.Tensor] = {}
    plain = loop.descend

    def noted(optimizer: torch.optim.Optimizer, weights: Sequence[torch.nn.Parameter], rate: float, clip: float) -> torch.Tensor:
        for weight in weights:
            found[f"{len(found)}"] = whole(weight.grad).clone()
        return plain(optimizer, weights, rate, clip)

    loop.descend = noted
    one(work, **work.config["case"], steps=1)
    marks = work.ranks.gather(sha256(b"".join(value.numpy().tobytes() for value in found.values())).hexdigest())
    assert len(set(marks)) == 1
    save_file(found, work.out / "gradients.safetensors")


def failing(work: Work) -> None:
    """Fail on one rank, while the others wait for it."""
    if work.ranks.rank == 1:
        if work.config["how"] == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise StageError("rank 1 cannot go on")
    work.ranks.gather(None)


def one(
    work: Work,
    method: str,
    spo: bool,
    lora: bool,
    steps: int = 20,
    additions: dict[str, Any] | None = None,
    rows: list[dict[str, Any]] | None = None,
    log: Callable[[dict[str, Any]], None] | None = None,
) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Train a tiny model by a method, 9 rows a step in several passes; return its whole weights and its log."""
    ranks, changes = work.ranks, {"batch_size": 9, "steps": steps, "learning_rate": 1e-4, "micro_tokens": 64}
    settings = replace(SETTINGS, **changes)
    settings_of_spo = SpoSettings(degrees=3) if spo else None
    examples = some_examples(copies=spo)
    model = tiny_model()
    reference = reference_of(model, examples, settings, method)
    if lora:
        model = add_lora(model, LORA, 3)
    objective = Objective(
        model=model,
        head=DegreeHead(32, settings_of_spo, seed=stream_seed(settings.seed, "head")) if settings_of_spo else None,
        method=get_method(method),
        hyper=resolve(method, {}),
        spo=settings_of_spo,
        reference=reference,
        numerics=CPU,
        additions=additions or {},
        ranks=ranks,
        sharded=shard(model, CPU, ranks) if isinstance(ranks, Group) else None,
    )
    rows = [] if rows is None else rows
    progress = begin(objective, settings)
    if (saved := work.checkpoint.load()) is not None:
        progress.restore(objective, saved)
        rows += saved.values["rows"]

    def state() -> State:
        return progress.state(objective), {"rows": rows, **progress.values()}

    with work.checkpoint.keeping():
        fit(
            objective,
            examples,
            settings,
            log or rows.append,
            progress=progress,
            between=lambda place: work.checkpoint.step(state),
            begin_at=progress.step,
        )
    trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    return {name: whole(weight.detach()).clone() for name, weight in trained}, rows
