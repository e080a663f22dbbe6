"""data: a task's rows, rendered and tokenised once, with an audit. Every method of a task gets the same rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import ceil
from pathlib import Path
from typing import Any

from spo_bench.errors import InputError
from spo_bench.files import read_jsonl, write_json, write_jsonl
from spo_bench.models.chat import completion_ids, render, special_ids
from spo_bench.models.policy import load_tokenizer
from spo_bench.plugins import get_task
from spo_bench.stages.base import Work
from spo_bench.task import HALF_CHARACTER, SPLITS, Row, SplitName, Task, half_character
from spo_bench.training.loop import TrainSettings

NAMED_DROPS = 100  # rows of a split named in the audit; all are counted
LETTERS, ROOM = 100, 100_000  # most characters of a row: so many a token of max_length, but at least these


def run(work: Work) -> None:
    """Write ``SPLIT.jsonl`` for every split and ``audit.json``.

    Config: task (identity), limit, seed, max_length, tokenizer, template. Local: task, data, tasks_dirs.
    """
    task = get_task(work.local["task"], work.local["data"], [Path(d) for d in work.local["tasks_dirs"]])
    tokenizer = load_tokenizer(work.inputs["model"], work.local["trust_remote_code"])
    audit: dict[str, Any] = {"task": task.name, "splits": {}, "dropped_rows": []}
    prompts: dict[str, set[str]] = {}
    for split in SPLITS:
        limit = work.config["limit"][split]
        rows = task.load(split, limit, work.config["seed"])
        if limit is not None and len(rows) > limit:
            raise InputError(
                f"task '{task.name}' gives {len(rows)} {split} rows where {limit} were asked for",
                "load() keeps its limit",
                "mend the task",
            )
        kept, counts, dropped = prepare(task, rows, split, tokenizer, work.config["max_length"])
        write_jsonl(work.out / f"{split}.jsonl", kept)
        audit["splits"][split] = counts
        audit["dropped_rows"] += [{"split": split, **row} for row in dropped[:NAMED_DROPS]]
        prompts[split] = {row["prompt_text"] for row in kept}
    audit["overlap"] = {split: len((prompts["train"] | prompts["sft"]) & prompts[split]) for split in ("eval", "heldout")}
    write_json(work.out / "audit.json", audit)


def prepare(
    task: Task, rows: Sequence[Row], split: SplitName, tokenizer: Any, max_length: int
) -> tuple[list[dict[str, Any]], dict[str, int], list[dict[str, Any]]]:
    """Tokenise rows; return (usable rows, audit counts, dropped rows with reasons)."""
    kept: list[dict[str, Any]] = []
    dropped: list[dict[str, Any]] = []
    counts: Counter[str] = Counter(dict.fromkeys(AUDIT_COUNTS, 0))
    seen: set[str] = set()
    for row in rows:
        counts["rows"] += 1
        reason = row.unusable or content_fault(row, split) or size_fault(row, max_length)
        record: dict[str, Any] = {}
        if reason is None:
            record, reason = tokenised(row, split, tokenizer, max_length, counts)
        if reason is None and row.id in seen:
            raise InputError(
                f"task '{task.name}' gives two {split} rows the id '{row.id}'", "row ids are unique", "fix the task's load()"
            )
        if reason is not None:
            counts["dropped"] += 1
            counts["empty_answers"] += "empty" in reason
            name = row.id.encode("utf-8", "backslashreplace").decode()
            dropped.append({"number": row.number, "id": name, "reason": reason})
            continue
        seen.add(row.id)
        counts["kept"] += 1
        kept.append(record)
    counts["distinct_prompts"] = len({row["prompt_text"] for row in kept})
    return kept, dict(counts), dropped


AUDIT_COUNTS = (
    "rows", "kept", "dropped", "empty_answers", "distinct_prompts", "truncated_chosen", "truncated_rejected",
    "boundary_merges", "bos_0", "bos_1", "bos_2_or_more", "eos_once_chosen", "eos_once_rejected", "prompt_tokens",
    "chosen_tokens", "rejected_tokens",
)  # fmt: skip


def size_fault(row: Row, max_length: int) -> str | None:
    """Say why a row is too large to be tokenised, which takes seconds a megabyte for the few tokens that are kept; None if it is
    not.
    """
    texts = [*(message["content"] for message in row.prompt), row.chosen, row.rejected, *(text for text, _ in row.more)]
    size, most = sum(map(len, texts)), max(LETTERS * max_length, ROOM)
    return f"its texts have {size:,} characters, more than {most:,}" if size > most else None


def content_fault(row: Row, split: SplitName) -> str | None:
    """Say why a row's content cannot be used, None if it can."""
    if half_character(asdict(row)):
        return HALF_CHARACTER
    if not row.prompt or not row.prompt[-1]["content"].strip():
        return "prompt is empty"
    if not row.chosen.strip():
        return "chosen is empty"
    if split == "sft":
        return None
    if not row.rejected.strip():
        return "rejected is empty"
    return "chosen and rejected are identical" if row.chosen.strip() == row.rejected.strip() else None


def tokenised(
    row: Row, split: SplitName, tokenizer: Any, max_length: int, counts: Counter[str]
) -> tuple[dict[str, Any], str | None]:
    """Return (the row with token ids, None), or ({}, why nothing usable is left)."""
    rendered = render(tokenizer, row.prompt)
    record: dict[str, Any] = {
        **asdict(row),
        "prompt": [dict(m) for m in row.prompt],
        "meta": dict(row.meta),
        "prompt_text": rendered.text,
        "prompt_ids": rendered.ids,
    }
    return with_ids(record, ("chosen",) if split == "sft" else ("chosen", "rejected"), tokenizer, max_length, counts)


def with_ids(
    record: Mapping[str, Any], sides: Sequence[str], tokenizer: Any, max_length: int, counts: Counter[str]
) -> tuple[dict[str, Any], str | None]:
    """Return (a rendered record with the token ids of its answers, None), or ({}, why nothing usable is left).

    The answers are those of ``sides`` and, in a list, those ``between`` them.
    """
    special = special_ids(tokenizer)
    prompt = record["prompt_ids"]
    answers = [*((side, record[side]) for side in sides), *(("between", text) for text in record.get("between", ()))]
    notes: Counter[str] = Counter()
    found: list[list[int]] = []
    for name, text in answers:
        ids = completion_ids(tokenizer, text)
        if special & set(ids[:-1]):
            return {}, f"{name} contains a special token of the model"
        whole = tokenizer(record["prompt_text"] + text, add_special_tokens=False)["input_ids"]
        notes["boundary_merges"] += whole != prompt + ids[:-1]
        room = max_length - len(prompt)
        if room < 1:
            return {}, f"nothing of the answers is left after truncation: the prompt alone has {len(prompt)} tokens"
        # A cut-off answer gets no end token: the model must not learn to stop there.
        notes[f"truncated_{name}"] += len(ids) > room
        notes[f"eos_once_{name}"] += len(ids) <= room
        found.append(ids[:room])
        notes[f"{name}_tokens"] += len(found[-1])
    if len({tuple(ids) for ids in found}) < len(found):
        return {}, f"{'chosen and rejected' if len(found) == 2 else 'two answers'} are identical after truncation"
    notes[("bos_0", "bos_1", "bos_2_or_more")[min(leading(prompt, tokenizer.bos_token_id), 2)]] += 1
    if notes["bos_2_or_more"]:
        raise InputError(
            f"the prompt of row {record['number']} begins with two beginning-of-text tokens",
            "a prompt has at most one",
            "remove bos_token from the chat template, or from the data's prompts",
        )
    notes["prompt_tokens"] += len(prompt)
    counts.update(notes)
    ids_of = {f"{side}_ids": ids for side, ids in zip(sides, found, strict=False)}
    return {**record, **ids_of, **({"between_ids": found[len(sides) :]} if "between" in record else {})}, None


def leading(ids: Sequence[int], token: int | None) -> int:
    """Return how many times a token stands at the beginning."""
    return next((i for i, other in enumerate(ids) if other != token), len(ids))


def load_split(directory: Path, split: SplitName) -> list[Mapping[str, Any]]:
    """Return the tokenised rows of a split."""
    return list(read_jsonl(directory / f"{split}.jsonl"))


def training_rows(work: Work) -> list[Mapping[str, Any]]:
    """Return the first ``fraction`` of the training rows, at least one: smaller fractions are nested in larger ones."""
    rows = load_split(work.inputs["data"], "train")
    return rows[: max(1, ceil(work.config["fraction"] * len(rows) - 1e-9))]


def loop_settings(work: Work) -> TrainSettings:
    """Return the loop's settings for the training rows; with ``equal_steps`` a fraction takes as many steps as all rows."""
    rows = load_split(work.inputs["data"], "train") if work.config.get("equal_steps") else training_rows(work)
    return TrainSettings.for_rows(work.config["settings"], len(rows))


def eval_prompts(directory: Path) -> list[Mapping[str, Any]]:
    """Return one evaluation row a distinct prompt: the unit of every per-prompt metric."""
    first: dict[str, Mapping[str, Any]] = {}
    for row in load_split(directory, "eval"):
        first.setdefault(row["prompt_text"], row)
    return list(first.values())


def as_row(record: Mapping[str, Any]) -> Row:
    """Return the task's row a tokenised record came from."""
    return Row(
        id=record["id"],
        prompt=tuple(record["prompt"]),
        chosen=record["chosen"],
        rejected=record["rejected"],
        domain=record["domain"],
        cluster=record["cluster"],
        meta=record["meta"],
        number=record["number"],
    )
