"""Training on the policy's own answers: rounds of sampling, labelling and steps (semi-online and online preference training).

A round answers the prompts of the next steps with the policy as it is, adds what else competes (the data's own answers, the
reference's greedy answer, other models' answers), lets the labeller rank the candidates, and trains on the best against the
worst. Every step has a full batch: further prompts make up for those without a preference, and pairs that fill no batch wait
for the next round. SELM's iterations are rounds with ``human``, ``greedy``, no own samples and ``refresh`` 1 for dpo+exploration;
TSO's data construction is rounds with ``models``, ``human`` and ``refresh``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np
import torch

from spo_bench.errors import StageError
from spo_bench.files import read_jsonl
from spo_bench.models.chat import completion_ids, special_ids
from spo_bench.models.decoding import Way
from spo_bench.models.policy import stop_tokens
from spo_bench.models.sampling import find_way, sample
from spo_bench.stages.base import Work
from spo_bench.stages.examples import example, reference_of, sums_of
from spo_bench.stages.labelling import Labeller, labeller
from spo_bench.store.checkpoints import Saved, State
from spo_bench.training.examples import Example, met_completions, mismatched, step_rows, stream_seed
from spo_bench.training.loop import TrainSettings, begin, fit, trained
from spo_bench.training.moving import MovingReference
from spo_bench.training.objective import Objective, Reference
from spo_bench.training.scoring import log_probs
from spo_bench.training.trie import Ints

Record = Mapping[str, Any]
Candidate = tuple[str, list[int]]  # text, token ids
MOST_ROUNDS = 10  # times as many as pairs from every prompt would take; then the labeller prefers too little to go on
# What is kept of a training, with more JSON values, and with the weights of a reference that is no part of the progress.
Kept = Callable[..., State]
NO_REFERENCE = Reference((), torch.empty(0, 2), torch.empty(0, 2))


@dataclass(frozen=True)
class Training:
    """A training that is set up but for its reference: what is minimised, and on which rows."""

    objective: Objective
    tokenizer: Any
    settings: TrainSettings
    records: Sequence[Record]
    obstacle: str | None


def run_rounds(
    work: Work, training: Training, log: Callable[[dict[str, Any]], None], kept: Kept, saved: Saved | None
) -> dict[str, Any]:
    """Train on the policy's own answers; return what to record besides the steps. What is ``kept`` after a step is what it goes
    on from when it is ``saved``: the round under way too, with its pairs.

    Config: regime (settings; ``every`` and ``reuse`` say how many steps a round has), generate, labeller.
    Inputs: those of the labeller; model:0, model:1, … (samples of further models on the training prompts).

    Raises:
        StageError: the labeller preferred one answer to another too rarely.
    """
    regime, settings, objective = work.config["regime"], training.settings, training.objective
    batches = regime["every"] or 1
    progress, label = begin(objective, settings), labeller(work)
    objective.model.eval()
    longest = max(len(record["prompt_ids"]) for record in training.records) + work.config["generate"]["max_new_tokens"]
    way = find_way(objective.model, longest, objective.numerics)
    # The policy begins as the reference; from then on the reference is a second set of the trained weights.
    reference = MovingReference(trained(objective.model), mixup=1.0, every=1)
    others = [_answers(work, name) for name in sorted(work.inputs) if name.startswith("model:")]
    size = min(settings.batch_size, len(training.records))
    if objective.method.needs_kl and size < 2:
        raise StageError("one pair a step: a mismatched pair needs another pair's answers; give at least two training rows")
    most = MOST_ROUNDS * ceil(settings.steps / (batches * regime["reuse"]))
    plan = step_rows(len(training.records), size, most * batches, settings.seed)
    counts = dict.fromkeys(("rounds", "prompts", "pairs", "ties", "invalid"), 0)
    waiting: list[Example] = []  # pairs that fill no batch yet
    used: list[Example] = []  # pairs of the round under way
    steps: list[Ints] = []  # and its steps
    begin_at = 0  # of which so many are done
    tokens: list[int] = []
    if saved is not None:
        values = saved.values["rounds"]
        counts, tokens, begin_at = values["counts"], values["tokens"], values["done"]
        waiting, used = ([Example.of_record(one) for one in values[name]] for name in ("waiting", "used"))
        steps = [np.asarray(rows) for rows in values["steps"]]
        progress.restore(objective, saved, reference)

    def keep(done: int) -> None:
        def state() -> State:
            pairs = {"waiting": [one.record() for one in waiting], "used": [one.record() for one in used]}
            rounds = {"counts": counts, "tokens": tokens, "steps": [rows.tolist() for rows in steps], "done": done, **pairs}
            return kept(progress, {"rounds": rounds}, reference)

        work.checkpoint.step(state)

    while progress.step < settings.steps and (steps or counts["rounds"] < most):
        if not steps:
            start = counts["rounds"] * batches
            rows = [training.records[i] for batch in plan[start : start + batches] for i in batch]
            seed = stream_seed(settings.seed, "round", counts["rounds"])
            greedy = _greedy(work, training, way, reference, rows, seed)
            candidates = _candidates(work, training, way, rows, greedy, others, seed)
            pairs, ties = _pairs(training, rows, candidates, greedy, label)
            for name, count in (("rounds", 1), ("prompts", len(rows)), ("pairs", len(pairs)), ("ties", ties)):
                counts[name] += count
            counts["invalid"] += len(rows) - len(pairs) - ties
            waiting += pairs
            full = min(len(waiting) // size, batches)
            steps = [np.arange(n * size, (n + 1) * size) for n in range(full)] * regime["reuse"]
            steps, begin_at = steps[: settings.steps - progress.step], 0
            used, waiting = waiting[: full * size], waiting[full * size :]
            tokens += [item.row(share=False)[0].size for item in used]
        if steps:
            frozen = _reference(training, reference, used, steps)
            fit(replace(objective, reference=frozen), used, settings, log, steps, progress, keep, begin_at)
        if regime["refresh"] and counts["rounds"] % regime["refresh"] == 0:
            reference.follow(1)
        used, steps = [], []
        keep(0)
    if progress.step < settings.steps:
        raise StageError(
            f"{counts['rounds']} rounds gave {counts['pairs']} pairs from {counts['prompts']} prompts ({counts['ties']} ties, "
            f"{counts['invalid']} without a verdict), too few for {settings.steps} steps of {size}: the answers hardly differ to "
            "the labeller; raise samples or the temperature, or let others compete"
        )
    separate = sum(tokens) / len(tokens)
    return {"tokens_per_pair_separate": separate, "regime": counts, "decoding_fallback": way.obstacle}


def _answers(work: Work, name: str) -> dict[str, tuple[str, bool]]:
    """Return another model's answers by row id, and whether each came to its end."""
    return {
        row["id"]: (row["answer"].strip(), row["finish"] == "stop") for row in read_jsonl(work.inputs[name] / "samples.jsonl")
    }


def _greedy(
    work: Work, training: Training, way: Way, reference: MovingReference, rows: Sequence[Record], seed: int
) -> list[Candidate] | None:
    """Return the reference's greedy answers, where they compete or an addition wants them."""
    if not work.config["regime"]["greedy"] and "exploration" not in training.objective.additions:
        return None
    with reference.in_place(training.objective.model):
        return _sampled(work, training, way, rows, {**work.config["generate"], "temperature": 0}, [seed])


def _candidates(
    work: Work,
    training: Training,
    way: Way,
    rows: Sequence[Record],
    greedy: Sequence[Candidate] | None,
    others: Sequence[Mapping[str, tuple[str, bool]]],
    seed: int,
) -> list[list[Candidate]]:
    """Return the answers that compete for every row, without repetitions."""
    regime, tokenizer = work.config["regime"], training.tokenizer
    found: list[list[Candidate]] = [[] for _ in rows]
    special = special_ids(tokenizer)
    seeds = [stream_seed(seed, "answer", number) for number in range(regime["samples"])]
    for place, one in enumerate(_sampled(work, training, way, rows, work.config["generate"], seeds)):
        found[place % len(rows)].append(one)
    for place, row in enumerate(rows):
        if regime["greedy"] and greedy is not None:
            found[place].append(greedy[place])
        if regime["human"]:
            found[place] += [(row[side], list(row[f"{side}_ids"])) for side in ("chosen", "rejected")]
        for answers in others:
            text, ended = answers.get(row["id"], ("", False))
            ids = completion_ids(tokenizer, text)[: None if ended else -1]
            if text and not special & set(ids[:-1]):
                found[place].append((text, ids[: training.settings.max_length - len(row["prompt_ids"])]))
    # An answer that was cut is judged as it is trained on: without what comes after the cut.
    found = [[_as_trained(tokenizer, text, ids) for text, ids in one] for one in found]
    return [list({tuple(ids): (text, ids) for text, ids in one}.values()) for one in found]


def _as_trained(tokenizer: Any, text: str, ids: list[int]) -> Candidate:
    return (text if ids[-1] == tokenizer.eos_token_id else tokenizer.decode(ids, skip_special_tokens=True).strip(), ids)


def _sampled(
    work: Work, training: Training, way: Way, rows: Sequence[Record], settings: Mapping[str, Any], seeds: Sequence[int]
) -> list[Candidate]:
    """Answer every row's prompt with the model as it stands: all rows under the first seed, then under the next."""
    model, tokenizer = training.objective.model, training.tokenizer
    model.eval()
    drawn, asked = [stream_seed(seed, "sampling", place) for seed in seeds for place in range(len(rows))], [*rows] * len(seeds)
    stops = stop_tokens(work.inputs["policy"], tokenizer)
    found = sample(model, [row["prompt_ids"] for row in asked], settings, stops, drawn, training.objective.numerics, way)
    answers = []
    for row, ids in zip(asked, found, strict=True):
        kept = ids[: training.settings.max_length - len(row["prompt_ids"])]
        if kept[-1] in stops:
            kept = [*kept[:-1], tokenizer.eos_token_id]
        answers.append((tokenizer.decode(kept, skip_special_tokens=True).strip(), kept))
    return answers


def _pairs(
    training: Training,
    rows: Sequence[Record],
    candidates: Sequence[Sequence[Candidate]],
    greedy: Sequence[Candidate] | None,
    label: Labeller,
) -> tuple[list[Example], int]:
    """Return the best against the worst answer of every row that has two of different worth, and how many rows are ties."""
    values = label(rows, [[text for text, _ in one] for one in candidates])
    explores = "exploration" in training.objective.additions
    pairs: list[Example] = []
    ties = 0
    for place, (row, one, worth) in enumerate(zip(rows, candidates, values, strict=True)):
        known = [(value, number) for number, value in enumerate(worth) if value is not None]
        if len(known) < 2 or max(known)[0] == min(known)[0]:
            ties += len(known) == len(worth)
            continue
        (high, best), (low, worst) = max(known, key=lambda v: v[0]), min(known, key=lambda v: v[0])
        # A labeller's numbers have any scale, also below 0: they are no relevances, so a listwise loss gets the order alone.
        scores = None if training.objective.method.data == "listwise" else [high, low]
        record = {"id": row["id"], "prompt_ids": row["prompt_ids"], "scores": scores}
        for side, number in (("chosen", best), ("rejected", worst)):
            record |= {side: one[number][0], f"{side}_ids": one[number][1]}
        explored = np.asarray(greedy[place][1], dtype=np.int64) if explores and greedy is not None else None
        pairs.append(example(record, training.tokenizer, training.objective.spo, training.settings, explored))
    return pairs, ties


def _reference(training: Training, reference: MovingReference, pairs: Sequence[Example], plan: Sequence[Ints]) -> Reference:
    """Score a round's pairs (and, where the method has a KL, its mismatched pairs) under the reference."""
    objective, settings = training.objective, training.settings

    def scored(items: Sequence[tuple[Ints, Sequence[Ints]]]) -> list[list[np.ndarray[Any, Any]]]:
        with reference.in_place(objective.model):
            return log_probs(objective.model, items, objective.numerics, settings.micro_tokens, settings.packing == "trie")

    met = None
    if objective.method.needs_kl:
        met = [
            (pairs[a].prompt, met_completions(pairs[a].prompt, pairs[b].chosen, pairs[b].rejected, settings.max_length))
            for rows in plan
            for a, b in mismatched(rows)
        ]
    tokens = scored([(item.prompt, item.scored) for item in pairs])
    frozen = reference_of(pairs, tokens, None)
    if met is None:
        return frozen
    return replace(frozen, mismatched=sums_of(scored(met)).view(len(plan), -1, 2))
