"""What the ranks of tests do: the processes that train together import it by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from conftest import tiny_model
from safetensors.torch import save_file
from test_training import CPU, SETTINGS, reference_of, some_examples

from spo_bench.files import write_jsonl
from spo_bench.methods import get_method, resolve
from spo_bench.models.policy import add_lora
from spo_bench.ranks import Ranks, whole
from spo_bench.spo.head import DegreeHead
from spo_bench.spo.settings import SpoSettings
from spo_bench.stages.base import Work
from spo_bench.training.examples import stream_seed
from spo_bench.training.loop import begin, fit
from spo_bench.training.objective import Objective
from spo_bench.training.sharding import Group, shard

LORA = {"rank": 4, "alpha": 8, "dropout": 0.0, "target_modules": "all-linear"}


def every_case(work: Work, ranks: Ranks) -> None:
    """Train every case of the config; write its weights and its log."""
    for name, case in work.config["cases"].items():
        weights, rows = one(ranks, steps=work.config["steps"], **case)
        if ranks.rank == 0:
            save_file(weights, work.out / f"{name}.safetensors")
            write_jsonl(work.out / f"{name}.jsonl", rows)


def one(
    ranks: Ranks, method: str, spo: bool, lora: bool, steps: int, additions: dict[str, Any] | None = None, **changes: Any
) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Train a tiny model by a method, 9 rows a step; return its whole weights and its log."""
    settings = replace(SETTINGS, **{"batch_size": 9, "steps": steps, "learning_rate": 1e-4, "micro_tokens": 64, **changes})
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
    rows: list[dict[str, Any]] = []
    fit(objective, examples, settings, rows.append, progress=begin(objective, settings))
    return {name: whole(weight.detach()).clone() for name, weight in model.named_parameters() if weight.requires_grad}, rows
