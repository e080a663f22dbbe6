"""rows: a task's data with its training rows changed along the data axes; it takes the place of ``data`` in later stages."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spo_bench.errors import InputError, StageError, unknown
from spo_bench.files import read_json, write_json, write_jsonl
from spo_bench.models.policy import load_tokenizer
from spo_bench.plugins import get_task
from spo_bench.stages.base import Work
from spo_bench.stages.data import AUDIT_COUNTS, NAMED_DROPS, load_split, with_ids
from spo_bench.stages.lists import listed
from spo_bench.stages.relabel import qualities, relabelled, with_goal
from spo_bench.training.examples import stream_seed

Record = Mapping[str, Any]
SIDES = ("chosen", "rejected")
ANY_DOMAIN = "domain"  # held out in place of a name: a third of the domains


def run(work: Work) -> None:
    """Write ``SPLIT.jsonl`` for every split, ``eval@GOAL.jsonl`` for every goal of ``goals``, and ``audit.json``.

    The rows for sft and for training reward models stay as they are: all cells share the first, and the second judge answers in
    every domain. Changes come in the order holdout, list, relabel, label_flip.

    Config: label_flip (a share), holdout (domains), list {size, source, version} or null, relabel {name, scores, goal} or null
    (by a reward model also dtype, in which it scores, and version, of the code that does), goals, seed, max_length; for
    relabelling by a model also numerics, micro_tokens, packing.
    Inputs: data, model (the tokenizer); reward_model, or labeller, base and reference, where relabelling asks for them.
    Local: task, data, tasks_dirs, trust_remote_code; trust_reward_code (of a reward model; false where it is not given).
    """
    config = work.config
    if config["list"] and config["relabel"]:
        raise StageError("a goal belongs to a pair: lists cannot be relabelled")
    task = get_task(work.local["task"], work.local["data"], [Path(d) for d in work.local["tasks_dirs"]])
    tokenizer = load_tokenizer(work.inputs["model"], work.local["trust_remote_code"])
    audit = read_json(work.inputs["data"] / "audit.json")
    axes: dict[str, Any] = {}
    train: Sequence[Record] = load_split(work.inputs["data"], "train")
    tested: Sequence[Record] = load_split(work.inputs["data"], "eval")
    if config["holdout"]:
        train, tested, axes["holdout"] = held_out(train, tested, config["holdout"], config["seed"])
    if config["list"]:
        train, axes["list"] = listed(train, config["list"], tokenizer, config["seed"])
    if config["relabel"]:
        train, axes["relabel"] = relabelled(train, qualities(work, train), tokenizer, task.goal_prompt)
        axes["relabel"] |= {"scores": config["relabel"]["scores"], "goal": config["relabel"]["goal"]}
    if config["label_flip"]:
        train, axes["label_flip"] = flipped(train, config["label_flip"], config["seed"])

    kept, counts, dropped = encoded(train, tokenizer, config["max_length"])
    if not kept:
        raise InputError(
            f"no training row is left ({dropped[0]['reason']})" if dropped else "no training row is left",
            "a policy needs training rows",
            "give more data, or raise train.max_length",
        )
    write_jsonl(work.out / "train.jsonl", kept)
    audit["splits"]["train"] |= counts
    axes["unusable"] = {"train": len(dropped), "rows": dropped[:NAMED_DROPS]}
    goal = config["relabel"]["goal"] if config["relabel"] else None
    rows, by_goal = evaluation(tested, goal, config["goals"], tokenizer, task.goal_prompt, config["max_length"])
    if not rows:
        raise InputError("no evaluation row is left", "a policy is evaluated on eval rows", "raise train.max_length")
    kept, counts, _ = encoded(rows, tokenizer, config["max_length"])
    write_jsonl(work.out / "eval.jsonl", kept)
    for asked, prompts in by_goal.items():
        write_jsonl(work.out / f"eval@{asked}.jsonl", prompts)
    audit["splits"]["eval"] |= counts
    axes["unusable"]["eval"] = len(tested) - len(rows)
    for split in ("sft", "heldout"):
        shutil.copyfile(work.inputs["data"] / f"{split}.jsonl", work.out / f"{split}.jsonl")
    write_json(work.out / "audit.json", {**audit, "axes": axes})


def held_out(
    train: Sequence[Record], tested: Sequence[Record], wanted: Sequence[str], seed: int
) -> tuple[list[Record], list[Record], dict[str, Any]]:
    """Return (training rows of the other domains, evaluation rows of these domains, what to record).

    ``domain`` alone is a third of the domains, at least one and at most all but one, in the order of a hash of their names.

    Raises:
        InputError: rows without a domain, a domain that is not there, or nothing left to train or to evaluate on.
    """
    for split, rows in (("train", train), ("eval", tested)):
        bare = [row for row in rows if row["domain"] is None]
        if bare:
            raise InputError(
                f"holdout of {', '.join(wanted)}: {len(bare)} of {len(rows)} {split} rows have no domain "
                f"(the first is row {bare[0]['number']})",
                "rows are held out by their domain",
                "give every row a `domain`, or leave holdout out of data_axes",
            )
    known = sorted({row["domain"] for row in (*train, *tested)})
    names = set(wanted)
    if tuple(wanted) == (ANY_DOMAIN,):
        by_hash = sorted(known, key=lambda name: place_of(seed, "holdout", name))
        names = set(by_hash[: max(1, min(len(known) - 1, round(len(known) / 3)))])
    for name in names.difference(known):
        raise unknown("domain", name, known, "data_axes, holdout")
    kept = [row for row in train if row["domain"] not in names]
    # A prompt that stands under two domains belongs to that of its first row, which also stands for it in every metric.
    first: dict[str, str] = {}
    for row in tested:
        first.setdefault(row["prompt_text"], row["domain"])
    asked = [row for row in tested if first[row["prompt_text"]] in names]
    for split, rows in (("training", kept), ("evaluation", asked)):
        if not rows:
            raise InputError(
                f"holdout of {', '.join(sorted(names))} leaves no {split} row (domains: {', '.join(known)})",
                "a policy is trained on the other domains and evaluated on these",
                "hold out fewer domains, or others; or give the task more rows",
            )
    removed = {"train_removed": len(train) - len(kept), "eval_removed": len(tested) - len(asked)}
    return kept, asked, {"domains": sorted(names), "known": len(known), **removed}


def place_of(seed: int, *names: str) -> float:
    """Return a number in [0, 1) that depends on nothing but a seed and names."""
    return (stream_seed(seed, *names) >> 8) / 2**48  # 48 bits: a float holds them all


def flipped(train: Sequence[Record], rate: float, seed: int) -> tuple[list[Record], dict[str, Any]]:
    """Return the rows with the preference of about this share of them turned round, and what to record.

    Whether a row is flipped depends on its id alone, and a row flipped at one rate is flipped at every higher one. Scores stay
    at their places: what is wrong is the label with its strength. Of a list the whole order is turned round.
    """
    rows: list[Record] = []
    for row in train:
        if place_of(seed, "flip", row["id"]) >= rate:
            rows.append(row)
            continue
        turned = {**row, "chosen": row["rejected"], "rejected": row["chosen"]}
        rows.append({**turned, "between": row["between"][::-1]} if "between" in row else turned)
    count = sum(new is not old for new, old in zip(rows, train, strict=True))
    return rows, {"rate": rate, "flipped": count}


def encoded(
    rows: Sequence[Record], tokenizer: Any, max_length: int
) -> tuple[list[dict[str, Any]], dict[str, int], list[dict[str, Any]]]:
    """Return (rows with the token ids of their answers, their audit counts, those with nothing usable left and why).

    ``rows``, ``dropped`` and ``empty_answers`` are not among the counts: they say what the source held.
    """
    counts: Counter[str] = Counter(dict.fromkeys(AUDIT_COUNTS, 0))
    kept, dropped = [], []
    for row in rows:
        record, reason = with_ids(row, SIDES, tokenizer, max_length, counts)
        if reason is None:
            kept.append(record)
        else:
            dropped.append({"id": row["id"], "reason": reason})
    counts |= {"kept": len(kept), "distinct_prompts": len({row["prompt_text"] for row in kept})}
    source = ("rows", "dropped", "empty_answers")
    return kept, {name: count for name, count in counts.items() if name not in source}, dropped


def evaluation(
    tested: Sequence[Record], goal: int | None, goals: Sequence[int], tokenizer: Any, sentence: str, max_length: int
) -> tuple[list[Record], dict[int, list[Record]]]:
    """Return the evaluation rows at a goal (None: without one), and for every goal of ``goals`` one row a distinct plain prompt.

    The messages of a prompt stay the plain ones, which judges and reward models read; the policy reads the goal with them.
    Rows that do not fit with every goal are left out of all, so that all goals have the same rows.
    """
    made: dict[int | None, dict[str, Record]] = {}
    for asked in dict.fromkeys([goal, *goals]):
        rows = tested if asked is None else [with_goal(row, asked, tokenizer, sentence) for row in tested]
        made[asked] = {row["id"]: row for row in encoded(rows, tokenizer, max_length)[0]}
    fitting = [row for row in tested if all(row["id"] in part for part in made.values())]
    first: dict[str, str] = {}
    for row in fitting:
        first.setdefault(row["prompt_text"], row["id"])
    return [made[goal][row["id"]] for row in fitting], {g: [made[g][name] for name in first.values()] for g in goals}
