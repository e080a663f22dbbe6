"""Whether a model can be run over tries, found out by trying."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from spo_bench.training.forward import hidden_states, token_log_probs
from spo_bench.training.trie import Response, build_row, pack

TOLERANCE = 2e-3  # nats; a model that ignores the mask or the positions is off by far more


def trie_obstacle(model: Any, max_length: int) -> str | None:
    """Say why a model cannot be run over tries, None if it can.

    A small trie's log-probabilities are compared with the model's own logits on the plain sequences, which also checks that
    the head is reproduced (scales, soft caps).
    """
    config = model.config
    window = getattr(config, "sliding_window", None)
    if window is not None and getattr(config, "use_sliding_window", True) and window < max_length:
        return f"its attention window of {window} tokens is shorter than max_length {max_length}"
    vocabulary = model.get_output_embeddings().weight.shape[0]
    draw = np.random.default_rng(0).integers(0, vocabulary, 12)
    prompt, first, second = draw[:4], draw[4:9], np.concatenate([draw[4:6], draw[9:]])
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            batch = pack([build_row(prompt, [Response(first), Response(second)])]).to(device)
            ours = token_log_probs(model, hidden_states(model, batch)[0], batch)
            theirs = []
            for completion in (first, second):
                ids = torch.from_numpy(np.concatenate([prompt, completion])).to(device)[None]
                logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
                theirs.append(logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0])
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        return f"it does not take a tree mask ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
    finally:
        model.train(was_training)
    gap = float((ours - torch.cat(theirs)).abs().max())
    allowed = TOLERANCE if next(model.parameters()).dtype == torch.float32 else 0.25
    return None if gap <= allowed else f"its log-probabilities under a tree mask are off by {gap:.3g} nats"


def shares_prefixes(model: Any, packing: str, max_length: int) -> bool:
    """Say whether a model is run over tries: where it is asked for and the model can."""
    return packing == "trie" and trie_obstacle(model, max_length) is None
