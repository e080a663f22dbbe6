"""From artifacts to a run directory: one folder a cell, and the two files that list them."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from spo_bench.files import fingerprint, read_json, read_jsonl, write_json, write_jsonl
from spo_bench.matrix.cells import Cell
from spo_bench.models.source import weights_hash
from spo_bench.stages.base import Stage, policy_at
from spo_bench.store import sealed
from spo_bench.store.artifacts import Store
from spo_bench.store.hashes import HashCache

SCHEMA_VERSION = 1
DONE = "DONE"  # a cell's file that is written last
# Scalars of a training: name -> whether more is better.
COSTS = {
    "seconds": False,
    "step_seconds": False,
    "pairs_per_second": True,
    "peak_memory": False,
    "tokens_per_pair": False,
    "tokens_per_pair_separate": False,
}


def cell_record(cell: Cell, failures: Mapping[str, str]) -> dict[str, Any]:
    """Return a cell's line of ``cells.jsonl``."""
    # An audit that could not be finished says nothing about the cell; the run tells it apart.
    own = [stage for name, stage in cell.stages.items() if name != "judge_audit"]
    reason = next((failures[stage.key] for stage in own if stage.key in failures), None)
    return {
        "id": cell.id,
        "model": cell.model,
        "task": cell.task,
        "method": cell.method,
        "spo": spo_record(cell),
        "seed": cell.seed,
        "axes": dict(cell.axes),
        "status": "failed" if reason else "done",
        "reason": reason,
        "keys": {name: stage.key for name, stage in cell.stages.items()},
    }


def spo_record(cell: Cell) -> Any:
    """Return False for a baseline, else the SPO settings with their display label."""
    return {**cell.spo.model_dump(mode="json"), "label": cell.spo.label()} if cell.spo else False


def write_record(run: Path, record: Mapping[str, Any]) -> None:
    """Write ``run.json``."""
    write_json(run / "run.json", sealed.signed(record))


def write_cell(run: Path, cell: Cell, store: Store, provenance: Mapping[str, Any]) -> None:
    """Write ``cells/ID``; ``DONE``, with size and SHA-256 of every file, comes last.

    A finished folder of the same keys is left as it is, unless it was written from artifacts that may have been made again.
    """
    if is_written(run, cell):
        return
    folder = run / "cells" / cell.id
    keys = {name: stage.key for name, stage in cell.stages.items()}
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    paths = {name: stage.path(store) for name, stage in cell.stages.items()}
    record = {key: value for key, value in cell_record(cell, {}).items() if key not in ("status", "reason", "keys")}
    write_json(folder / "spec.json", {**record, "stages": {name: stage.identity for name, stage in cell.stages.items()}})
    if "train" in paths:
        shutil.copyfile(paths["train"] / "train.jsonl", folder / "train.jsonl")
        os.symlink(policy_at(paths["train"]), folder / "policy", target_is_directory=True)
    write_jsonl(folder / "samples.jsonl", answers(paths))
    judged = [row for name, path in paths.items() if name.startswith("judge/") for row in read_jsonl(path / "judgments.jsonl")]
    write_jsonl(folder / "judgments.jsonl", judged)
    read = {stage.config["judge"]["kind"] != "gold" for name, stage in cell.stages.items() if name.startswith("judge/")}
    found = scores(paths, judged, control_length=True in read)
    write_json(folder / "scores.json", {**found, "prompts": texts(paths)})
    made = [name for name in ("train", "generate") if name in paths]
    ways = {name: fallbacks(paths[name]) | less_at_once(cell.stages[name], store) for name in made}
    told = {"fallbacks": {name: found for name, found in ways.items() if found}}
    write_json(folder / "provenance.json", {**provenance, "keys": keys, "seed": cell.seed, **told, **contents(cell, store)})
    retry = sum(store.to_retry(stage.kind, stage.key) for stage in cell.stages.values())
    write_json(folder / DONE, sealed.signed({"keys": keys, "retry": retry, "files": sealed.listed(folder)}))


def is_written(run: Path, cell: Cell) -> bool:
    """Say whether ``cells/ID`` is finished, from artifacts of the same keys that are final, and each file as it was written: in
    size, and in content where it was touched since.
    """
    folder = run / "cells" / cell.id
    try:
        done = sealed.read_signed(folder / DONE)
        if done["keys"] != {name: stage.key for name, stage in cell.stages.items()} or done["retry"]:
            return False
        written = (folder / DONE).stat().st_mtime_ns
        for name, known in done["files"].items():
            if sealed.file_fault(folder / name, known, (folder / name).stat().st_mtime_ns > written):
                return False
    except (OSError, ValueError, KeyError):
        return False
    return "train" not in cell.stages or (folder / "policy").is_dir()


def fallbacks(artifact: Path) -> dict[str, str]:
    """Return why a stage went a slower way than it might have, as its summary says: what ("packing", "decoding") -> reason."""
    summary = read_json(artifact / "summary.json")
    return {key.removesuffix("_fallback"): why for key, why in summary.items() if key.endswith("_fallback") and why}


def less_at_once(stage: Stage, store: Store) -> dict[str, str]:
    """Return that too little memory cut what goes through the model at once, where it did: "memory" -> how."""
    halvings = (store.record(stage.kind, stage.key) or {}).get("halvings", 0)
    return {"memory": f"did not suffice: micro-batches halved, times {halvings}"} if halvings else {}


def texts(paths: Mapping[str, Path]) -> dict[str, dict[str, str]]:
    """Return what the ids of a cell's metrics stand for, as short fingerprints: id -> prompt, chosen answer, pair.

    Two runs are compared where these agree, without keeping the texts.
    """
    rows = {row["id"]: row for row in read_jsonl(paths.get("rows", paths["data"]) / "eval.jsonl")}
    prompts = {row["id"]: row["prompt"] for row in read_jsonl(paths["generate"] / "samples.jsonl")}
    return {
        "prompt": {name: short_fingerprint(prompt) for name, prompt in prompts.items()},
        "chosen": {name: short_fingerprint(rows[name]["chosen"]) for name in prompts},
        "pair": {name: short_fingerprint(row["prompt_text"], row["chosen"], row["rejected"]) for name, row in rows.items()},
    }


def short_fingerprint(*parts: str) -> str:
    """Return the first 12 hex digits of a fingerprint: enough to tell two texts behind one id apart."""
    return fingerprint(*parts)[:12]


def contents(cell: Cell, store: Store) -> dict[str, Any]:
    """Return hashes of weights: of the policy, of the policies it was judged against, and of the reward models.

    Opponents go by their names, reward models by the stage that reads them.
    """
    hashes = HashCache(store.root)
    stages = cell.stages
    against = {
        name.removeprefix("judge/"): stage.inputs["opponent"].inputs
        for name, stage in stages.items()
        if name.startswith("judge/") and "opponent" in stage.inputs
    }
    opponents = {name: _policy_hash(one["policy"], one["base"], store, hashes) for name, one in against.items()}
    policy = _policy_hash(stages["train" if "train" in stages else "sft"], stages["sft"], store, hashes)
    readers = {name: _reward_model(stage) for name, stage in stages.items() if name.startswith(("reward/", "judge/"))}
    models = {name: weights_hash([model.path(store)], hashes) for name, model in readers.items() if model is not None}
    return {"policy": policy, "opponents": opponents, "reward_models": models}


def _policy_hash(policy: Stage, base: Stage, store: Store, hashes: HashCache) -> str | None:
    """Return the hash of a policy's weights, with those of its base where it is an adapter."""
    folders = [policy_at(policy.path(store))]
    if (folders[0] / "adapter_config.json").is_file():
        folders.append(policy_at(base.path(store)))
    return weights_hash(folders, hashes)


def _reward_model(stage: Stage) -> Stage | None:
    """Return the reward model whose scores a stage makes, or decides by; None where there is none."""
    return (
        stage.inputs["own_rewards"].inputs["reward_model"] if "own_rewards" in stage.inputs else stage.inputs.get("reward_model")
    )


def answers(paths: Mapping[str, Path]) -> Iterator[dict[str, Any]]:
    """Yield a cell's samples, each with the data's chosen and rejected answer to its prompt."""
    rows = {row["id"]: row for row in read_jsonl(paths.get("rows", paths["data"]) / "eval.jsonl")}
    for sample in read_jsonl(paths["generate"] / "samples.jsonl"):
        yield {**sample, **{side: rows[sample["id"]][side] for side in ("chosen", "rejected")}}


WIN_RATES = {"sft": "win_rate_sft", "chosen": "win_rate_chosen", "baseline": "head_to_head"}


def scores(paths: Mapping[str, Path], judged: Sequence[Mapping[str, Any]], control_length: bool = False) -> dict[str, Any]:
    """Return a cell's metrics (one value a prompt or pair), scalars (one value) and length-controlled win rates.

    A known reward is not swayed by length, so its verdicts need no ``control_length``.
    """
    metrics: dict[str, Any] = read_json(paths["score"] / "scores.json")["metrics"]
    length = metrics["length"]
    for name, path in paths.items():
        if name.startswith("reward/"):
            by_id = {row["id"]: row["reward"] for row in read_jsonl(path / "rewards.jsonl")}
            metrics[name] = {**length, "values": [by_id[i] for i in length["ids"]], "higher_is_better": True}
    if "goals" in paths:
        metrics |= read_json(paths["goals"] / "scores.json")["metrics"]
    controlled: dict[str, Any] = {}
    for opponent, name in WIN_RATES.items():
        rows = [row for row in judged if row["opponent"] == opponent]
        by_id = {row["id"]: row["score"] for row in rows}
        if by_id:
            metrics[name] = {**length, "values": [by_id[i] for i in length["ids"]], "higher_is_better": True}
        if by_id and control_length:
            controlled[f"length_controlled_{name}"] = {"opponent": opponent, **length_controlled_rate(rows)}
    scalars: dict[str, Any] = {}
    summary = read_json(paths["train"] / "summary.json") if "train" in paths else {}
    if summary:
        scalars = {name: {"value": float(summary[name]), "higher_is_better": higher} for name, higher in COSTS.items()}
    bins = summary["degrees"]["bins"] if summary.get("degrees") else {}
    threads = summary.get("threads")
    return {"metrics": metrics, "scalars": scalars, "threads": threads, "length_controlled": controlled, "degree_bins": bins}


def length_controlled_rate(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the win rate that would have been at equal length, with its interval; None with the reason where it is refused."""
    from spo_bench.stats import length_controlled  # statsmodels is slow to load

    found = length_controlled(
        [math.nan if row["score"] is None else row["score"] for row in rows],
        [row["length_a"] - row["length_b"] for row in rows],
        clusters=[row["cluster"] for row in rows],
    )
    numbers = {"value": found.rate, "low": found.low, "high": found.high, "slope": found.slope}
    known: dict[str, Any] = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
    invalid = sum(row["score"] is None for row in rows)
    return {**known, "n": found.n, "n_invalid": invalid, "reason": found.reason, "higher_is_better": True}


def failed_audits(cells: Sequence[Cell], failures: Mapping[str, str]) -> dict[str, str]:
    """Return why audits of the judge could not be finished, by "MODEL/TASK"."""
    stages = {f"{cell.model}/{cell.task}": cell.stages.get("judge_audit") for cell in cells}
    return {place: failures[stage.key] for place, stage in stages.items() if stage is not None and stage.key in failures}


def judge_audits(cells: Sequence[Cell], store: Store) -> dict[str, Any]:
    """Return the audits of the judge by "MODEL/TASK", each with the judge's name, for those that were made."""
    found = {}
    for cell in cells:
        stage = cell.stages.get("judge_audit")
        if stage is not None and stage.done(store):
            record = read_json(stage.fetch(store, weights=False) / "audit.json")
            found[f"{cell.model}/{cell.task}"] = {"judge": stage.local["judge_name"], **record}
    return found
