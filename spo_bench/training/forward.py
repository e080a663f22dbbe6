"""From a pack to numbers: hidden states, per-token log-probabilities, sums per response.

Full-vocabulary logits exist for one chunk of completion tokens at a time, in the forward and in the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from spo_bench.training.trie import Pack

# One chunk of logits holds at most this many numbers (64 MiB in fp32): small enough to stay in a page-warm buffer,
# large enough that the matrix product is efficient.
CHUNK_ELEMENTS = 1 << 24


def decoder(model: Any) -> Any:
    """Return the transformer under a causal language model's head, adapters included."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    return causal.get_decoder()


def hidden_states(model: Any, batch: Pack, layer: int = -1) -> tuple[Tensor, Tensor]:
    """Run the transformer over a pack.

    Args:
        model: a Hugging Face causal language model, or one wrapped by peft.
        batch: the pack, on the model's device.
        layer: which hidden states are returned second; -1 is the last, as the head sees them; 0 the embeddings.

    Returns:
        (last, chosen layer), each of shape (nodes, hidden).
    """
    trunk = decoder(model)
    every = layer != -1
    if batch.shared:
        out = trunk(
            input_ids=batch.grid(batch.tokens),
            attention_mask=batch.mask(),
            position_ids=batch.grid(batch.positions),
            use_cache=False,
            output_hidden_states=every,
        )
        flat = [
            states.flatten(0, 1)[batch.cells]
            for states in (out.last_hidden_state, *((out.hidden_states[layer],) if every else ()))
        ]
    else:
        padded, present = _padded(batch)
        out = trunk(input_ids=padded, attention_mask=present.long(), use_cache=False, output_hidden_states=every)
        flat = [states[present] for states in (out.last_hidden_state, *((out.hidden_states[layer],) if every else ()))]
    return flat[0], flat[-1]


def _padded(batch: Pack) -> tuple[Tensor, Tensor]:
    """Return right-padded separate sequences and where they are present, each (sequences, longest)."""
    bounds = torch.cat([batch.roots, batch.roots.new_tensor([len(batch.tokens)])])
    lengths = bounds.diff()
    present = torch.arange(int(lengths.max()), device=lengths.device)[None] < lengths[:, None]
    padded = torch.zeros(present.shape, dtype=torch.int64, device=lengths.device)
    padded[present] = batch.tokens
    return padded, present


def head_logits(model: Any, hidden: Tensor) -> Tensor:
    """Apply the language-model head with the scale or soft cap some architectures put on it: (n, hidden) -> (n, vocabulary)."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    logits: Tensor = causal.get_output_embeddings()(hidden)
    config = causal.config
    if (scale := getattr(config, "logit_scale", None)) is not None:
        logits = logits * scale
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / divisor
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits


def token_log_probs(model: Any, hidden: Tensor, batch: Pack) -> Tensor:
    """Return the log-probability of every token of every scored response, fp32, nats, shape (tokens,)."""
    return token_statistics(model, hidden, batch)[0]


def token_statistics(model: Any, hidden: Tensor, batch: Pack, collisions: bool = False) -> tuple[Tensor, Tensor | None]:
    """Return (log p(y_t), log sum_v p(v)^2) at every token of every scored response, fp32, nats, each of shape (tokens,).

    Only the nodes that predict a wanted token go through the head, chunk by chunk; a chunk's logits are computed again in
    the backward pass instead of being kept. The second, the log-probability that two draws from the policy agree, has no
    gradient and is None unless ``collisions`` asks for it.
    """

    def chunk(rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        logits = head_logits(model, rows).float()
        total = logits.logsumexp(dim=1)
        agree = (2 * logits.detach()).logsumexp(dim=1) - 2 * total.detach() if collisions else None
        return logits.gather(1, targets[:, None])[:, 0] - total, agree

    rows = hidden[batch.edge_parents]
    vocabulary = model.get_output_embeddings().weight.shape[0]
    size = max(1, CHUNK_ELEMENTS // vocabulary)
    pieces = [(rows[i : i + size], batch.edge_tokens[i : i + size]) for i in range(0, len(rows), size)]
    if len(pieces) <= 1 or not torch.is_grad_enabled():
        edges = [chunk(*piece) for piece in pieces]
    else:
        edges = [checkpoint(chunk, *piece, use_reentrant=False) for piece in pieces]
    if not edges:
        empty = hidden.new_zeros(0, dtype=torch.float32)
        return empty, empty if collisions else None
    values = torch.cat([edge[0] for edge in edges])[batch.token_edges]
    agreed = [edge[1] for edge in edges if edge[1] is not None]
    return values, torch.cat(agreed)[batch.token_edges] if agreed else None


def response_sums(values: Tensor, batch: Pack) -> tuple[Tensor, Tensor]:
    """Return (sum, token count) of per-token values for each scored response, each of shape (scored,)."""
    sums = values.new_zeros(batch.scored).index_add(0, batch.token_owner, values)
    counts = torch.bincount(batch.token_owner, minlength=batch.scored)
    return sums, counts


def pool(hidden: Tensor, batch: Pack, how: str) -> tuple[Tensor, Tensor]:
    """Pool the hidden states of each pooled response's completion.

    Args:
        hidden: (nodes, hidden).
        batch: the pack.
        how: "mean_completion" or "last_token".

    Returns:
        (pooled fp32 of shape (pooled, hidden), token counts of shape (pooled,)).
    """
    counts = torch.bincount(batch.pool_owner, minlength=batch.pooled)
    if how == "last_token":
        return hidden[batch.last_nodes].float(), counts
    sums = hidden.new_zeros(batch.pooled, hidden.shape[1], dtype=torch.float32)
    sums = sums.index_add(0, batch.pool_owner, hidden[batch.pool_nodes].float())
    return sums / counts[:, None], counts
