"""Whether a model can be run over tries, found out by trying."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from spo_bench.errors import StageError
from spo_bench.models.numerics import Numerics
from spo_bench.models.positions import length_dependent
from spo_bench.training.forward import hidden_states, token_log_probs
from spo_bench.training.trie import Ints, Response, build_row, pack

TOLERANCE = 2e-3  # nats; a model that ignores the mask or the positions is off by far more
# Weights in low precision round more (0.24 nats measured on SmolLM2-135M): there the bound is a share of what it does to an
# answer to see its sibling, up to the second number.
ROUGH = 0.15, 0.5
LEAK = 1e-5  # of a branch's change, in its sibling; rounding stays below 1e-6, what passes tokens on in columns above 1e-4
ROWS = 8  # of the trie that is changed: in low precision one alone may round a leak away


def trie_obstacle(model: Any, max_length: int) -> str | None:
    """Say why a model cannot be run over tries, None if it can.

    Log-probabilities of a small trie are compared with the model's own logits on the plain sequences, which also checks that the
    head is reproduced (scales, soft caps). Where attention reaches less far than ``max_length``, the trie is longer than that.

    Raises:
        StageError: separate sequences do not give the model's own numbers either.
    """
    config = model.config.get_text_config()
    reach = [
        getattr(config, name, None) for name in ("sliding_window", "attention_window_size", "attention_chunk_size", "index_topk")
    ]
    short = [length for length in reach if isinstance(length, int) and length < max_length]
    vocabulary = model.get_output_embeddings().weight.shape[0]
    draw = np.random.default_rng(0).integers(0, vocabulary, (min(short) if short else 0) + 12)
    prompt, first, second = draw[:-8], draw[-8:-3], np.concatenate([draw[-8:-6], draw[-3:]])
    was_training, before = model.training, config._attn_implementation
    model.eval()
    try:
        own = torch.cat([_own(model, prompt, completion) for completion in (first, second)])
        allowed = TOLERANCE
        first_weight = next(model.parameters())
        if first_weight.dtype != torch.float32 or torch.is_autocast_enabled(first_weight.device.type):
            beside = _own(model, np.concatenate([prompt, first]), second)
            allowed = max(TOLERANCE, min(ROUGH[1], ROUGH[0] * float((beside - own[len(first) :]).abs().max())))
        apart = _gap(model, prompt, (first, second), False, own, allowed)
        if apart is not None:
            raise StageError(
                f"the head of {type(model).__name__} is not reproduced: the log-probabilities of its hidden states are off by "
                f"{apart:.3g} nats from its own logits; this architecture cannot be trained here"
            )
        reason = length_dependent(config, max_length)
        if reason is not None:
            return reason
        gap = _gap(model, prompt, (first, second), True, own, allowed)
        obstacle = None if gap is None else f"its log-probabilities over a trie are off by {gap:.3g} nats"
        obstacle = obstacle or _structure(model, bool(short))
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        obstacle = f"it does not take a trie ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
    finally:
        model.train(was_training)
    if obstacle is not None and config._attn_implementation != before:
        model.set_attn_implementation(before)
    return obstacle


def _own(model: Any, prompt: Ints, completion: Ints) -> Tensor:
    """Return the log-probabilities of a completion's tokens by the model's own logits, (length,)."""
    ids = torch.from_numpy(np.concatenate([prompt, completion])).to(next(model.parameters()).device)[None]
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    return logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0]


def _gap(model: Any, prompt: Ints, completions: tuple[Ints, Ints], share: bool, own: Tensor, allowed: float) -> float | None:
    """Return by how much our forward is off from the model's own, in nats; None where that is allowed."""
    batch = pack([build_row(prompt, [Response(tokens) for tokens in completions], share)], share).to(own.device)
    with torch.no_grad():
        gap = float((token_log_probs(model, hidden_states(model, batch)[0], batch) - own).abs().max())
    return None if gap <= allowed else gap


def _structure(model: Any, windowed: bool) -> str | None:
    """Say which part of a trie a model overlooks, whatever the size and the type of its weights; None where it keeps to all.

    Every token of a branch is replaced, and its sibling, next to it on the line, must not notice. Where attention reaches less
    far than a row, some layer must have asked for a window: a model may know of it in a mask alone, which a trie has not.
    """
    vocabulary, device = model.get_output_embeddings().weight.shape[0], next(model.parameters()).device
    draws = np.random.default_rng(1).integers(0, vocabulary - 3, (ROWS, 4, 4))
    draws[:, 1:, 0] = vocabulary - np.arange(3, 0, -1)  # the branches stand in this order in both packs
    states = []
    for branch in (1, 2):
        rows = [build_row(draw[0], [Response(draw[branch]), Response(draw[3])]) for draw in draws]
        batch = pack(rows).to(device)
        with torch.no_grad():
            lines = torch.split(hidden_states(model, batch)[0].float(), [row.size for row in rows])
        states.append([torch.stack([lines[i][row.paths[j].tolist()] for i, row in enumerate(rows)]) for j in (0, 1)])
    changed, leaked = (float((first - second).abs().max()) for first, second in zip(*states, strict=True))
    if leaked > LEAK * changed:
        return f"a branch of a trie changes its sibling, by {leaked / changed:.2g} of its own change"
    if windowed and batch.sight is not None and not any((*batch.sight.windowed, *batch.sight.masks)):
        return "its attention reaches less far than a row, but its attention function is not told how far"
    return None


def shares_prefixes(model: Any, packing: str, max_length: int, numerics: Numerics) -> bool:
    """Say whether a model is run over tries: where it is asked for and the model can, in the type it is run in."""
    with numerics.autocast():
        return packing == "trie" and trie_obstacle(model, max_length) is None
