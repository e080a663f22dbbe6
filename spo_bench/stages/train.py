"""train: one policy, by one method, with or without SPO."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spo_bench.errors import StageError
from spo_bench.files import read_jsonl, write_json, write_jsonl
from spo_bench.methods import get_method
from spo_bench.models.chat import completion_ids
from spo_bench.models.policy import add_lora, checkpoint_activations, load_policy, load_tokenizer, save_policy
from spo_bench.spo.degrade import degraded_copies, degree_labels
from spo_bench.spo.head import DegreeHead, add_bins, bin_counts, degree_loss
from spo_bench.spo.settings import SpoSettings
from spo_bench.stages.base import Work
from spo_bench.stages.data import load_split, training_rows
from spo_bench.stages.reference import load as load_reference
from spo_bench.training.examples import SIDES, Copy, Example, micro_batches, stream_seed
from spo_bench.training.forward import hidden_states, pool
from spo_bench.training.loop import TrainSettings, fit, peak_memory, reset_peak_memory
from spo_bench.training.objective import Objective, Reference
from spo_bench.training.probe import trie_obstacle


def run(work: Work) -> None:
    """Write ``policy/`` (a Hugging Face directory), ``train.jsonl`` and ``summary.json``.

    Config: method {name, version, hyperparameters}, spo (settings or null), settings (of the loop), lora, fraction (of the
    training rows), gradient_checkpointing, numerics.
    Inputs: policy, data, reference; mismatched where the method has a KL; samples where SPO degrades the policy's own answers.
    """
    started = time.perf_counter()
    method = get_method(work.config["method"]["name"])
    spo = SpoSettings(**work.config["spo"]["settings"]) if work.config["spo"] else None
    tokenizer = load_tokenizer(work.inputs["policy"], work.local["trust_remote_code"])
    records = training_rows(work)
    settings = TrainSettings.for_rows(work.config["settings"], len(records))
    reset_peak_memory(torch.device(work.numerics.device))
    on_policy = _samples(work.inputs["samples"]) if spo is not None and spo.text == "on_policy" else None
    examples = [example(record, tokenizer, spo, settings, on_policy) for record in records]

    model = load_policy(work.inputs["policy"], work.numerics, trust_remote_code=work.local["trust_remote_code"])
    obstacle = trie_obstacle(model, settings.max_length) if settings.packing == "trie" else None
    if obstacle is not None:
        settings = replace(settings, packing="separate")
    if work.config["lora"]:
        model = add_lora(model, work.config["lora"], stream_seed(settings.seed, "adapter"))
    else:
        model.requires_grad_(True)
    if work.config["gradient_checkpointing"]:
        checkpoint_activations(model)
    head = DegreeHead(model.config.hidden_size, spo, seed=stream_seed(settings.seed, "head")) if spo else None
    objective = Objective(
        model=model,
        head=head.to(work.numerics.device) if head else None,
        method=method,
        hyper=work.config["method"]["hyperparameters"],
        spo=spo,
        reference=reference(work.inputs, records, settings),
        numerics=work.numerics,
    )
    steps: list[dict[str, Any]] = []
    fit(objective, examples, settings, steps.append)
    write_jsonl(work.out / "train.jsonl", steps)
    save_policy(model, tokenizer, work.out / "policy")
    summary = summarise(examples, steps, settings, time.perf_counter() - started, torch.device(work.numerics.device))
    if head is not None and spo is not None:
        held_out = [example(r, tokenizer, spo, settings) for r in load_split(work.inputs["data"], "eval")]
        summary["degrees"] = degree_accuracy(objective, held_out, settings)
    write_json(work.out / "summary.json", {**summary, "packing": settings.packing, "packing_fallback": obstacle})


def example(
    record: Mapping[str, Any],
    tokenizer: Any,
    spo: SpoSettings | None,
    settings: TrainSettings,
    on_policy: Mapping[str, Sequence[int]] | None = None,
) -> Example:
    """Return a row as the loop sees it, with its degraded copies if there is SPO.

    An answer that was cut has no end token and shows nothing beyond the cut; neither do its copies, else the end would tell
    their degree. ``on_policy`` holds the SFT policy's own answers by row id, which then take the place of the data's.
    """
    prompt, chosen, rejected = (np.asarray(record[name], dtype=np.int64) for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
    copies: list[Copy] = []
    if spo is not None:
        intact = {i: ids for i, ids in enumerate((chosen, rejected)) if spo.side in (SIDES[i], "both")}
        if on_policy is not None:
            intact = {0: np.asarray(on_policy[record["id"]], dtype=np.int64)}
        for side, ids in intact.items():
            cut = ids[-1] != tokenizer.eos_token_id
            whole = cut or on_policy is not None
            text = tokenizer.decode(ids, skip_special_tokens=True).strip() if whole else record[SIDES[side]]
            for degree, copy in zip(
                degree_labels(text, spo, settings.seed), degraded_copies(text, spo, settings.seed), strict=True
            ):
                if copy is None:
                    continue
                # The intact copy is the answer itself, token by token.
                tokens = (
                    ids if copy == text else np.asarray(completion_ids(tokenizer, copy)[: -1 if cut else None], dtype=np.int64)
                )
                if len(tokens):
                    copies.append(Copy(tokens[: settings.max_length - len(prompt)], degree, side))
    return Example(id=record["id"], prompt=prompt, chosen=chosen, rejected=rejected, copies=tuple(copies))


def _samples(directory: Path) -> dict[str, list[int]]:
    return {row["id"]: row["ids"] for row in read_jsonl(directory / "samples.jsonl")}


def reference(inputs: Mapping[str, Path], records: Sequence[Mapping[str, Any]], settings: TrainSettings) -> Reference:
    """Read the frozen log-probabilities of the training rows.

    Raises:
        StageError: a row is missing or has another length than its completion.
    """
    tokens = load_reference(inputs["reference"] / "train.safetensors")[: len(records)]
    for record, (chosen, rejected) in zip(records, tokens, strict=True):
        if len(chosen) != len(record["chosen_ids"]) or len(rejected) != len(record["rejected_ids"]):
            raise StageError(f"the reference of row {record['id']} has another length than its completions")
    pairs = None
    if "mismatched" in inputs:
        stored = load_reference(inputs["mismatched"] / "mismatched.safetensors")
        flat = torch.tensor([[float(a.sum(dtype=np.float64)), float(b.sum(dtype=np.float64))] for a, b in stored])
        pairs = flat.view(settings.steps, -1, 2)
    return Reference(
        tokens=tokens,
        sums=torch.tensor([[float(a.sum(dtype=np.float64)), float(b.sum(dtype=np.float64))] for a, b in tokens]),
        lengths=torch.tensor([[len(a), len(b)] for a, b in tokens]),
        mismatched=pairs,
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
            with objective.numerics.autocast():
                layer = hidden_states(objective.model, packed.pack, objective.spo.layer)[1]
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


def summarise(
    examples: Sequence[Example], steps: Sequence[Mapping[str, Any]], settings: TrainSettings, seconds: float, device: torch.device
) -> dict[str, Any]:
    """Return costs: tokens a pair as trained and as separate sequences; seconds; peak memory in bytes."""
    separate = sum(item.row(share=False)[0].size for item in examples)
    step_seconds = sum(row["seconds"] for row in steps)
    return {
        "tokens_per_pair": sum(row["tokens"] for row in steps) / sum(row["pairs"] for row in steps),
        "tokens_per_pair_separate": separate / len(examples),
        "steps": settings.steps,
        "seconds": seconds,
        "step_seconds": step_seconds,
        "pairs_per_second": sum(row["pairs"] for row in steps) / step_seconds,
        "peak_memory": peak_memory(device),
    }
