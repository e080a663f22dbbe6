"""copies: the degraded copies of a task's answers as token ids, made once for every method and seed that sees the same ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from spo_bench.files import read_jsonl
from spo_bench.models.chat import completion_ids
from spo_bench.models.policy import load_tokenizer
from spo_bench.processes import LARGE, Pool, may_start_processes
from spo_bench.spo.degrade import degraded_copies, degree_labels
from spo_bench.spo.settings import SpoSettings
from spo_bench.stages.base import Work
from spo_bench.stages.data import load_split
from spo_bench.training.examples import SIDES, Copy

Record = Mapping[str, Any]
FIELDS = ("id", "prompt_ids", *SIDES, *(f"{side}_ids" for side in SIDES))


@dataclass(frozen=True)
class Maker:
    """How copies are made: settings, the seed of what is drawn, and how many tokens a prompt and a copy have together."""

    spo: SpoSettings
    seed: int
    max_length: int

    def copies(self, record: Record, tokenizer: Any, own: Sequence[int] | None = None) -> list[Copy]:
        """Return the copies of a row's answers, intact ones included; with ``own``, those of this answer in their place.

        An answer that was cut has no end token and shows nothing beyond the cut; neither do its copies, else the end would tell
        their degree. Its text, and that of a policy's own answer, is read from its tokens.
        """
        made: list[Copy] = []
        sides = [side for side, name in enumerate(SIDES) if self.spo.side in (name, "both")] if own is None else [0]
        for side in sides:
            ids = np.asarray(record[f"{SIDES[side]}_ids"] if own is None else own, dtype=np.int64)
            cut = ids[-1] != tokenizer.eos_token_id
            whole = cut or own is not None
            text = tokenizer.decode(ids, skip_special_tokens=True).strip() if whole else record[SIDES[side]]
            labels = degree_labels(text, self.spo, self.seed)
            for degree, copy in zip(labels, degraded_copies(text, self.spo, self.seed), strict=True):
                if copy is None:
                    continue
                # The intact copy is the answer itself, token by token.
                tokens = (
                    ids if copy == text else np.asarray(completion_ids(tokenizer, copy)[: -1 if cut else None], dtype=np.int64)
                )
                if len(tokens):
                    made.append(Copy(tokens[: self.max_length - len(record["prompt_ids"])], degree, side))
        return made


def run(work: Work) -> None:
    """Write ``SPLIT.safetensors`` for the wanted splits.

    Config: spo {settings (without those of head and loss), version}, seed (0 where nothing is drawn), max_length, splits.
    Inputs: data, model (the tokenizer); samples where the copies are of the policy's own answers to the training prompts.
    """
    maker = Maker(SpoSettings(**work.config["spo"]["settings"]), work.config["seed"], work.config["max_length"])
    trust = work.local["trust_remote_code"]
    for split in work.config["splits"]:
        own = None
        if split == "train" and "samples" in work.inputs:
            own = {row["id"]: row["ids"] for row in read_jsonl(work.inputs["samples"] / "samples.jsonl")}
        rows = load_split(work.inputs["data"], split)
        save(work.out / f"{split}.safetensors", copies_of(rows, maker, work.inputs["model"], trust, own))


def copies_of(
    rows: Sequence[Record],
    maker: Maker,
    tokenizer: Path,
    trust_remote_code: bool = False,
    own: Mapping[str, Sequence[int]] | None = None,
    processes: int | None = None,
) -> list[list[Copy]]:
    """Return the copies of every row, in order; large data is shared by processes where they may be started.

    Args:
        rows: tokenised.
        maker: how.
        tokenizer: its directory.
        trust_remote_code: whether code that comes with it may run.
        own: the policy's own answers by row id, which take the place of the data's.
        processes: how many; None: as many as pay, at most one a core of this stage.
    """
    count = processes or (min(torch.get_num_threads(), len(rows) // LARGE) if may_start_processes() else 1)
    work = (maker, tokenizer, trust_remote_code)
    answers = [None if own is None else own[row["id"]] for row in rows]
    if count <= 1:
        return _part(rows, answers, *work)
    size, needed = ceil(len(rows) / count), [{name: row[name] for name in FIELDS} for row in rows]
    try:
        with Pool(count) as pool:
            made = [
                pool.submit(_part, needed[start : start + size], answers[start : start + size], *work)
                for start in range(0, len(rows), size)
            ]
            return [copies for part in made for copies in part.result()]
    except BrokenProcessPool:  # one was killed, or could not start
        return _part(rows, answers, *work)


def _part(
    rows: Sequence[Record], answers: Sequence[Sequence[int] | None], maker: Maker, tokenizer: Path, trust_remote_code: bool
) -> list[list[Copy]]:
    words = load_tokenizer(tokenizer, trust_remote_code)
    return [maker.copies(row, words, answer) for row, answer in zip(rows, answers, strict=True)]


def save(path: Path, rows: Sequence[Sequence[Copy]]) -> None:
    """Write the copies of rows in order: all tokens in one line, and a copy's length, degree and side, and a row's count."""
    every = [copy for row in rows for copy in row]
    arrays = {
        "tokens": np.concatenate([copy.tokens for copy in every]) if every else np.empty(0),
        "lengths": [len(copy.tokens) for copy in every],
        "degrees": [copy.degree for copy in every],
        "sides": [copy.side for copy in every],
        "counts": [len(row) for row in rows],
    }
    save_file({name: np.asarray(values, dtype=np.int32) for name, values in arrays.items()}, str(path))


def load(directory: Path, split: str) -> list[list[Copy]]:
    """Return the copies of a split's rows, in order."""
    stored = {name: values.astype(np.int64) for name, values in load_file(str(directory / f"{split}.safetensors")).items()}
    tokens = np.split(stored["tokens"], np.cumsum(stored["lengths"])[:-1]) if len(stored["lengths"]) else []
    every = [
        Copy(ids, int(degree), int(side)) for ids, degree, side in zip(tokens, stored["degrees"], stored["sides"], strict=True)
    ]
    ends = np.cumsum(stored["counts"]).tolist()
    return [every[end - count : end] for end, count in zip(ends, stored["counts"].tolist(), strict=True)]
