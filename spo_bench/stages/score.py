"""score: everything about a policy that needs no opponent: true reward, length, diversity, KL, held-out pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spo_bench.files import read_json, read_jsonl, write_json
from spo_bench.methods import get_method
from spo_bench.methods.base import Pairs
from spo_bench.models.policy import load_policy
from spo_bench.plugins import get_task
from spo_bench.stages.base import Work, policy_at
from spo_bench.stages.data import as_row, eval_prompts, load_split
from spo_bench.stages.metrics import distinct, text_metric
from spo_bench.stages.reference import load as load_reference
from spo_bench.training.probe import shares_prefixes
from spo_bench.training.scoring import log_probs


def run(work: Work) -> None:
    """Write ``scores.json``: {"metrics": {name: {ids, values, clusters, higher_is_better, unit}}}.

    Config: metrics (name -> content of a local script),
    method (null for the SFT policy itself), numerics, micro_tokens, packing, max_length.
    Inputs: samples, data, reference, base, and policy for a trained cell. Local: task, tasks_dirs, metrics
    (name -> what to load).
    """
    samples = list(read_jsonl(work.inputs["samples"] / "samples.jsonl"))
    prompts = {row["id"]: row for row in eval_prompts(work.inputs["data"])}
    task = get_task(work.local["task"], work.local["data"], [Path(d) for d in work.local["tasks_dirs"]])
    metrics = {
        "length": per_prompt(samples, prompts, [s["tokens"] for s in samples], False),
        "distinct_2": per_prompt(samples, prompts, [distinct(s["answer"], 2) for s in samples], True),
        "cut_off": per_prompt(samples, prompts, [float(s["finish"] == "length") for s in samples], False),
    }
    if task.controlled:
        values: list[float | None] = [float(task.true_reward(as_row(prompts[s["id"]]), s["answer"])) for s in samples]
        metrics["true_reward"] = per_prompt(samples, prompts, values, True)
    for name, source in work.local["metrics"].items():
        score = text_metric(source)
        values = score([s["answer"] for s in samples], [prompts[s["id"]]["chosen"] for s in samples])
        metrics[name] = per_prompt(samples, prompts, values, True)
    if work.config["method"] is not None:
        metrics |= trained_metrics(work, samples, prompts)
    write_json(work.out / "scores.json", {"metrics": metrics})


def per_prompt(
    samples: Sequence[Mapping[str, Any]], prompts: Mapping[str, Mapping[str, Any]], values: Sequence[float | None], higher: bool
) -> dict[str, Any]:
    """Return a metric with one value a prompt."""
    ids = [sample["id"] for sample in samples]
    return {
        "ids": ids,
        "values": list(values),
        "clusters": [prompts[i]["cluster"] or i for i in ids],
        "higher_is_better": higher,
        "unit": "prompt",
    }


def trained_metrics(work: Work, samples: Sequence[Mapping[str, Any]], prompts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what compares a trained policy with its reference: KL on its own answers, log-ratios and accuracy on eval pairs."""
    trust = work.local["trust_remote_code"]
    budget = work.config["micro_tokens"]
    rows = load_split(work.inputs["data"], "eval")
    pairs = [(np.asarray(r["prompt_ids"]), [np.asarray(r["chosen_ids"]), np.asarray(r["rejected_ids"])]) for r in rows]
    # An answer without any token cannot be: generation yields at least one.
    answers = [(np.asarray(prompts[s["id"]]["prompt_ids"]), [np.asarray(s["ids"])]) for s in samples]

    policy = load_policy(policy_at(work.inputs["policy"]), work.numerics, base=work.inputs["base"], trust_remote_code=trust)
    share = shares_prefixes(policy, work.config["packing"], work.config["max_length"], work.numerics)
    own_pairs = log_probs(policy, pairs, work.numerics, budget, share, ranks=work.ranks)
    own_answers = log_probs(policy, answers, work.numerics, budget, share, ranks=work.ranks)
    del policy
    base = load_policy(work.inputs["base"], work.numerics, trust_remote_code=trust)
    base_answers = log_probs(base, answers, work.numerics, budget, share, ranks=work.ranks)
    kl = [float((own[0] - frozen[0]).sum(dtype=np.float64)) for own, frozen in zip(own_answers, base_answers, strict=True)]

    frozen_pairs = load_reference(work.inputs["reference"] / "eval.safetensors")
    sums = torch.tensor([[float(v.sum(dtype=np.float64)) for v in row] for row in own_pairs], dtype=torch.float64)
    frozen = torch.tensor([[float(v.sum(dtype=np.float64)) for v in row] for row in frozen_pairs], dtype=torch.float64)
    lengths = torch.tensor([[len(v) for v in row] for row in own_pairs], dtype=torch.float64)
    both = Pairs(sums[:, 0], sums[:, 1], frozen[:, 0], frozen[:, 1], lengths[:, 0], lengths[:, 1])
    chosen, rejected = get_method(work.config["method"]["name"]).rewards(both, work.config["method"]["hyperparameters"])
    accuracy = (chosen > rejected).double() + 0.5 * (chosen == rejected).double()
    ratios = both.log_ratios()
    metrics = {
        "kl": per_prompt(samples, prompts, kl, False),
        "implicit_accuracy": per_pair(rows, accuracy.tolist(), True),
        "chosen_logratio": per_pair(rows, ratios[0].tolist(), True),
        "rejected_logratio": per_pair(rows, ratios[1].tolist(), False),
    }
    degrees = read_json(work.inputs["policy"] / "summary.json").get("degrees")
    if degrees:
        by_row = {row["id"]: row["correct"] / row["count"] if row["count"] else None for row in degrees["rows"]}
        metrics["degree_accuracy"] = per_pair(rows, [by_row[row["id"]] for row in rows], True)
    return metrics


def per_pair(rows: Sequence[Mapping[str, Any]], values: Sequence[float | None], higher: bool) -> dict[str, Any]:
    """Return a metric with one value a held-out pair; pairs of one prompt or source form a cluster."""
    return {
        "ids": [row["id"] for row in rows],
        "values": list(values),
        "clusters": [row["cluster"] or row["prompt_text"] for row in rows],
        "higher_is_better": higher,
        "unit": "pair",
    }
