"""reward_model: a Bradley-Terry reward model trained inside the matrix on held-out pairs, which no policy sees."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from spo_bench.errors import StageError
from spo_bench.files import write_json
from spo_bench.models.activations import spare_activations
from spo_bench.models.reward import encode, load_reward_model, rewards_of, score_answers
from spo_bench.stages.base import Work
from spo_bench.stages.data import load_split
from spo_bench.training.examples import step_rows, stream_seed
from spo_bench.training.loop import TrainSettings, adamw, descend, learning_rate_at
from spo_bench.training.state import state_of
from spo_bench.training.trie import fill_budget


def run(work: Work) -> None:
    """Write the reward model as a Hugging Face directory and ``accuracy.json`` (on the eval pairs, which it has not seen).

    The loss of a pair is -log sigmoid(reward of chosen - reward of rejected) (Bradley and Terry 1952).
    Config: settings (of the loop), gradient_checkpointing, max_length, numerics, scores (the type in which it scores).
    Inputs: policy (the weights it starts from), data.
    """
    rows, limit = load_split(work.inputs["data"], "heldout"), work.config["max_length"]
    if not rows:
        raise StageError("a reward model was to be trained, but the task has no held-out pairs (limit.heldout)")
    settings = TrainSettings.for_rows(work.config["settings"], len(rows))
    torch.manual_seed(stream_seed(settings.seed, "reward head"))
    model, tokenizer = load_reward_model(work.inputs["policy"], work.numerics, work.local["trust_remote_code"], fresh=True)
    spare_activations(model, work.config["gradient_checkpointing"])
    pairs = [[encode(tokenizer, row["prompt"], row[side], limit) for side in ("chosen", "rejected")] for row in rows]
    weights = list(model.parameters())
    optimizer = adamw(weights, settings.weight_decay)
    state, begin_at = state_of({"policy": model}, {"policy": optimizer}), 0
    if (saved := work.checkpoint.load()) is not None:
        saved.restore(state)
        begin_at = saved.values["step"]
    plan = step_rows(len(rows), settings.batch_size, settings.steps, settings.seed)
    with work.checkpoint.keeping():
        for step, chosen in enumerate(plan[begin_at:], begin_at):
            model.train()
            torch.manual_seed(stream_seed(settings.seed, "dropout", step))
            for group in fill_budget([sum(map(len, pairs[i])) for i in chosen], settings.micro_tokens):
                ids = [pairs[chosen[place]][side] for place in group for side in (0, 1)]
                rewards = rewards_of(model, tokenizer, ids, work.numerics).view(-1, 2)
                loss = -logsigmoid(rewards[:, 0] - rewards[:, 1]).sum() / len(chosen)
                if not torch.isfinite(loss):
                    raise StageError(f"the reward model's loss is {float(loss)} at step {step}")
                loss.backward()
            descend(optimizer, weights, learning_rate_at(settings, step), settings.clip)
            work.checkpoint.step(lambda done=step + 1: (state, {"step": done}))  # type: ignore[misc]
    model.eval()
    write_json(work.out / "accuracy.json", pair_accuracy(model, tokenizer, load_split(work.inputs["data"], "eval"), work, limit))
    model.save_pretrained(str(work.out))
    tokenizer.save_pretrained(str(work.out))


def pair_accuracy(model: Any, tokenizer: Any, rows: list[Any], work: Work, limit: int) -> dict[str, Any]:
    """Return the share of pairs whose chosen answer scores higher (ties count half), and the number of pairs."""
    numerics = replace(work.numerics, dtype=work.config["scores"])
    scores = {
        side: score_answers(model, tokenizer, [(r["prompt"], r[side]) for r in rows], numerics, limit)
        for side in ("chosen", "rejected")
    }
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(scores["chosen"], scores["rejected"], strict=True)]
    return {"accuracy": sum(wins) / len(wins) if wins else None, "pairs": len(wins)}
