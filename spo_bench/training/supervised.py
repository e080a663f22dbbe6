"""Supervised fine-tuning on demonstrations: the policy a preference method starts from."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch

from spo_bench.errors import StageError
from spo_bench.models.numerics import Numerics
from spo_bench.ranks import ALONE, Ranks
from spo_bench.store.checkpoints import Checkpoint
from spo_bench.store.live import Live
from spo_bench.training.examples import passes, step_rows, stream_seed
from spo_bench.training.forward import Statistics
from spo_bench.training.loop import TrainSettings, adamw, descend, learning_rate_at, peak_memory
from spo_bench.training.state import state_of
from spo_bench.training.trie import TrieRow, pack


def finetune(
    model: Any,
    rows: Sequence[TrieRow],
    settings: TrainSettings,
    numerics: Numerics,
    share: bool,
    steps: list[dict[str, Any]],
    checkpoint: Checkpoint | None = None,
    live: Live | None = None,
    ranks: Ranks = ALONE,
    sharded: Statistics | None = None,
) -> None:
    """Minimise the mean negative log-likelihood of completion tokens, in place; ``steps`` gets one row a step.

    Args:
        model: a causal language model; all weights that require gradients are trained.
        rows: prompt and scored completion, one trie each.
        share: whether rows were built as tries, to stand side by side on a line.
        settings: the loop's settings.
        numerics: device and compute type.
        steps: gets {step, loss, grad_norm, learning_rate, tokens, seconds, peak_memory}.
        checkpoint: where the state is kept between steps; None: nowhere.
        live: who follows the steps; None: nobody.
        ranks: the processes that share every step.
        sharded: the model in the module that makes its weights whole, where ranks hold parts of them.

    Raises:
        StageError: the loss is not finite.
    """
    device = torch.device(numerics.device)
    statistics = sharded or Statistics(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = adamw(trained, settings.weight_decay)
    checkpoint = checkpoint or Checkpoint()
    state = state_of({"policy": model}, {"policy": optimizer})
    if (saved := checkpoint.load()) is not None:
        saved.restore(state)
        steps += saved.values["steps"]
    log = (live or Live()).log(steps)
    plan = step_rows(len(rows), settings.batch_size, settings.steps, settings.seed)
    for step, chosen in enumerate(plan[len(steps) :], len(steps)):
        started = time.perf_counter()
        model.train()
        torch.manual_seed(stream_seed(settings.seed, "dropout", step))
        total = sum(len(path) for i in chosen for path in rows[i].paths)
        loss_sum, tokens = torch.zeros((), device=device), 0
        groups, missing = passes([rows[i].size for i in chosen], settings.micro_tokens, ranks)
        for number, group in enumerate(groups + [[0]] * missing):
            batch = pack([rows[chosen[place]] for place in group], share).to(device)
            with numerics.autocast():
                values = statistics(batch, -1, False)[0]
            if number >= len(groups):  # another rank has one more
                (0 * values.sum()).backward()
                continue
            loss = -values.sum() / total
            loss.backward()
            loss_sum += loss.detach()
            tokens += len(batch.tokens)
        rate = learning_rate_at(settings, step)
        grad_norm = descend(optimizer, trained, rate, settings.clip)
        loss_value, norm = torch.stack([loss_sum, grad_norm]).tolist()
        loss_value, tokens = (sum(parts) for parts in zip(*ranks.gather((loss_value, tokens)), strict=True))
        if not math.isfinite(loss_value) or not math.isfinite(norm):
            raise StageError(f"supervised fine-tuning: loss {loss_value}, gradient norm {norm} at step {step}")
        seconds = time.perf_counter() - started
        log(
            {
                "step": step,
                "loss": loss_value,
                "grad_norm": norm,
                "learning_rate": rate,
                "tokens": tokens,
                "seconds": seconds,
                "peak_memory": peak_memory(device),
            }
        )
        checkpoint.step(lambda: (state, {"steps": steps}))
    model.eval()
