"""train: one policy, by one method, with or without SPO."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from spo_bench.errors import StageError
from spo_bench.files import write_json, write_jsonl
from spo_bench.methods import Method, get_method
from spo_bench.models.activations import spare_activations
from spo_bench.models.policy import add_lora, load_policy, load_tokenizer, save_policy
from spo_bench.spo.head import DegreeHead, add_bins, bin_counts, degree_loss
from spo_bench.spo.settings import SpoSettings
from spo_bench.stages.base import Work
from spo_bench.stages.copies import load as load_copies
from spo_bench.stages.data import load_split, loop_settings, training_rows
from spo_bench.stages.examples import example, stored_reference
from spo_bench.stages.reference import explored_ids
from spo_bench.stages.rounds import NO_REFERENCE, Kept, Training, run_rounds
from spo_bench.store.checkpoints import Saved, State
from spo_bench.training.examples import Copy, Example, micro_batches, stream_seed
from spo_bench.training.forward import pool
from spo_bench.training.loop import Progress, TrainSettings, begin, fit, peak_memory, reset_peak_memory
from spo_bench.training.moving import MovingReference
from spo_bench.training.objective import Objective
from spo_bench.training.probe import trie_obstacle
from spo_bench.training.sharding import Group, shard, whole_state
from spo_bench.training.trie import Ints


def run(work: Work) -> None:
    """Write ``policy/`` (a Hugging Face directory), ``train.jsonl`` and ``summary.json``.

    Config: method {name, version, hyperparameters}, additions (name -> {version, settings}), spo (settings or null), settings
    (of the loop), lora, fraction (of the training rows), equal_steps (whether a fraction takes as many steps as all
    rows),
    gradient_checkpointing, numerics; with pairs of the policy's own answers regime, generate, generate_version,
    labeller.
    Inputs: policy, data; copies with SPO; offline also reference, mismatched where the method has a KL, greedy and explored where
    an addition wants the reference's greedy answer. What a regime needs: see ``rounds``.
    """
    started = time.perf_counter()
    training, ranks = prepare(work), work.ranks
    saved = work.checkpoint.load()
    steps: list[dict[str, Any]] = list(saved.values["steps"]) if saved else []
    before = saved.values["seconds"] if saved else 0.0

    def kept(progress: Progress, more: Mapping[str, Any], reference: MovingReference | None = None) -> State:
        values = {"steps": steps, "seconds": before + time.perf_counter() - started, **progress.values(), **more}
        return progress.state(training.objective, reference), values

    make = run_rounds if work.config.get("regime") else offline
    with work.checkpoint.keeping():
        more = make(work, training, work.live.log(steps), kept, saved)
    device = torch.device(work.numerics.device)
    summary = costs(steps, before + time.perf_counter() - started, device) | more
    summary |= {"devices": ranks.count, "threads": summary["threads"] * ranks.count} if ranks.count > 1 else {}
    if work.config.get("regime"):  # sampling and labelling are part of what a pair costs
        summary["pairs_per_second"] = sum(row["pairs"] for row in steps) / summary["seconds"]
    objective, settings, spo = training.objective, training.settings, training.objective.spo
    weights = None if objective.sharded is None else whole_state(objective.model)
    if spo is not None:
        rows, copies = load_split(work.inputs["data"], "eval"), load_copies(work.inputs["copies"], "eval")
        held_out = [example(row, training.tokenizer, spo, settings, copies=made) for row, made in zip(rows, copies, strict=True)]
        summary["degrees"] = degree_accuracy(objective, held_out, settings)
    write_jsonl(work.out / "train.jsonl", steps)
    if ranks.rank == 0:  # the others have no whole weights
        save_policy(objective.model, training.tokenizer, work.out / "policy", weights)
    write_json(work.out / "summary.json", {**summary, "packing": settings.packing, "packing_fallback": training.obstacle})


def prepare(work: Work) -> Training:
    """Load the policy, this rank's part of it, and set up what is minimised; the rows come with the reference later."""
    method = get_method(work.config["method"]["name"])
    spo = SpoSettings(**work.config["spo"]["settings"]) if work.config["spo"] else None
    trust = work.local["trust_remote_code"]
    tokenizer = load_tokenizer(work.inputs["policy"], trust)
    records = training_rows(work)
    settings = loop_settings(work)
    reset_peak_memory(torch.device(work.numerics.device))
    sharded, ranks = None, work.ranks
    for _ in ranks.in_turn():  # a model is whole on one rank at a time
        model = load_policy(work.inputs["policy"], work.numerics, trust_remote_code=trust)
        with work.numerics.autocast():
            obstacle = trie_obstacle(model, settings.max_length) if settings.packing == "trie" else None
        if work.config["lora"]:
            model = add_lora(model, work.config["lora"], stream_seed(settings.seed, "adapter"))
        else:
            model.requires_grad_(True)
        spare_activations(model, work.config["gradient_checkpointing"])
        if isinstance(ranks, Group):
            sharded = shard(model, work.numerics, ranks)
    if obstacle is not None:
        settings = replace(settings, packing="separate")
    head = DegreeHead(model.config.hidden_size, spo, seed=stream_seed(settings.seed, "head")) if spo else None
    objective = Objective(
        model=model,
        head=head.to(work.numerics.device) if head else None,
        method=method,
        hyper=work.config["method"]["hyperparameters"],
        spo=spo,
        reference=NO_REFERENCE,
        numerics=work.numerics,
        additions={name: one["settings"] for name, one in work.config.get("additions", {}).items()},
        seed=settings.seed,
        ranks=ranks,
        sharded=sharded,
    )
    return Training(objective, tokenizer, settings, records, obstacle)


def offline(
    work: Work, training: Training, log: Callable[[dict[str, Any]], None], kept: Kept, saved: Saved | None
) -> dict[str, Any]:
    """Train on the data's pairs; return what to record besides the steps. What is ``kept`` after a step is what it goes on from
    when it is ``saved``.
    """
    records, settings, objective = training.records, training.settings, training.objective
    spo = objective.spo
    copies: Sequence[Sequence[Copy]] = [()] * len(records) if spo is None else load_copies(work.inputs["copies"], "train")
    greedy: Sequence[Ints | None] = [None] * len(records)
    if "greedy" in work.inputs:
        greedy = explored_ids(work.inputs["greedy"], records, settings.max_length)
    examples = [
        example(record, training.tokenizer, spo, settings, explored, made)
        for record, explored, made in zip(records, greedy, copies[: len(records)], strict=True)
    ]
    check_scores(objective.method, examples)
    objective = replace(objective, reference=stored_reference(work.inputs, examples, settings))
    progress = begin(objective, settings)
    if saved is not None:
        progress.restore(objective, saved)
    fit(
        objective,
        examples,
        settings,
        log,
        progress=progress,
        between=lambda place: work.checkpoint.step(lambda: kept(progress, {})),
        begin_at=progress.step,
    )
    separate = sum(item.row(share=False)[0].size for item in examples)
    return {"tokens_per_pair_separate": separate / len(examples)}


def check_scores(method: Method, examples: Sequence[Example]) -> None:
    """Refuse rows whose scores a method cannot read.

    Raises:
        StageError: naming a row, where scores are missing, or below 0 for a listwise method.
    """
    bare = [item.id for item in examples if item.scores is None]
    if method.needs_scores and bare:
        raise StageError(
            f"{method.name} reads the data's scores of both answers, and {len(bare)} of {len(examples)} training rows have none "
            f"(row {bare[0]}): give score_chosen and score_rejected, or another method"
        )
    if method.data != "listwise":
        return
    if bare and len(bare) < len(examples):
        raise StageError(
            f"{method.name} ranks by the data's scores, and {len(bare)} of {len(examples)} training rows have none "
            f"(row {bare[0]}): give scores to all rows, or to none"
        )
    for item in examples:
        if item.scores and (min(item.scores) < 0 or max(item.scores) == 0):
            raise StageError(
                f"{method.name} reads scores as relevances, at least 0 and one above 0, and row {item.id} has "
                f"{list(item.scores)}: shift the data's scores"
            )


@torch.no_grad()
def degree_accuracy(objective: Objective, examples: Sequence[Example], settings: TrainSettings) -> dict[str, Any]:
    """Return the head's accuracy on held-out rows: overall, [correct, count] by row and by length bin of the copies."""
    if objective.head is None or objective.spo is None:
        raise StageError("degree accuracy was asked for without SPO")
    objective.model.eval()
    bins: dict[str, list[int]] = {}
    by_row = []
    for start in range(0, len(examples), settings.batch_size):
        part = list(examples[start : start + settings.batch_size])
        for batch in micro_batches(part, np.arange(len(part)), settings.micro_tokens, settings.packing == "trie"):
            packed = batch.to(torch.device(objective.numerics.device))
            layer = objective.forward(packed)[2]
            pooled, lengths = pool(layer, packed.pack, objective.spo.pool)
            degrees, sides = (torch.from_numpy(v).to(pooled.device) for v in (batch.degrees, batch.sides))
            _, predicted = degree_loss(objective.head, pooled, degrees, lengths, sides, objective.spo)
            correct = (predicted == degrees).cpu()
            add_bins(bins, bin_counts(lengths, predicted == degrees))
            counts = [len(part[place].copies) for place in batch.places]
            for place, hits in zip(batch.places, torch.split(correct, counts), strict=True):
                by_row.append({"id": part[place].id, "correct": int(hits.sum()), "count": len(hits)})
    total = sum(row["count"] for row in by_row)
    return {"accuracy": sum(row["correct"] for row in by_row) / total if total else None, "rows": by_row, "bins": bins}


def costs(steps: Sequence[Mapping[str, Any]], seconds: float, device: torch.device) -> dict[str, Any]:
    """Return what a training took: tokens a pair; seconds, and on how many threads; peak memory in bytes."""
    step_seconds = sum(row["seconds"] for row in steps)
    return {
        "tokens_per_pair": sum(row["tokens"] for row in steps) / sum(row["pairs"] for row in steps),
        "steps": len(steps),
        "seconds": seconds,
        "threads": torch.get_num_threads(),
        "step_seconds": step_seconds,
        "pairs_per_second": sum(row["pairs"] for row in steps) / step_seconds,
        "peak_memory": max(peak_memory(device), *(row["peak_memory"] for row in steps)),
    }
