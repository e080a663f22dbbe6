"""From a pack to numbers: hidden states, per-token log-probabilities, sums per response.

Full-vocabulary logits exist for a few chunks of completion tokens at a time.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from spo_bench.models.policy import causal
from spo_bench.training.attention import use_tries
from spo_bench.training.logprobs import LogProbs, chunk_rows
from spo_bench.training.trie import Pack


def decoder(model: Any) -> Any:
    """Return the transformer under a causal language model's head, adapters included."""
    inner = causal(model)
    trunk = inner.get_decoder()
    return inner.model if trunk is inner else trunk


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
    if batch.sight is not None:
        use_tries(model)
        # The mask is a stand-in that models hand on as it is: the attention function reads ``trie``.
        out = trunk(
            input_ids=batch.tokens[None],
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=batch.tokens.device),
            position_ids=batch.positions[None],
            use_cache=False,
            output_hidden_states=every,
            trie=batch.sight,
        )
        flat = [states[0] for states in (out.last_hidden_state, *((out.hidden_states[layer],) if every else ()))]
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
    scale, cap = head_shape(model)
    logits: Tensor = model.get_output_embeddings()(hidden) * scale
    return logits if cap is None else torch.tanh(logits / cap) * cap


def head_shape(model: Any) -> tuple[float, float | None]:
    """Return (scale, soft cap) of a model's logits."""
    config = model.config.get_text_config()
    factors, divisors = (
        [float(getattr(config, name, None) or 1.0) for name in names]
        for names in (("logit_scale", "lm_head_multiplier"), ("logits_scaling",))
    )
    scale = math.prod(factors) / math.prod(divisors)
    cap = getattr(config, "final_logit_softcapping", None)
    return scale, getattr(config, "logits_soft_cap", None) if cap is None else cap


def token_log_probs(model: Any, hidden: Tensor, batch: Pack) -> Tensor:
    """Return the log-probability of every token of every scored response, fp32, nats, shape (tokens,)."""
    return token_statistics(model, hidden, batch)[0]


def token_statistics(model: Any, hidden: Tensor, batch: Pack, collisions: bool = False) -> tuple[Tensor, Tensor | None]:
    """Return (log p(y_t), log sum_v p(v)^2) at every token of every scored response, fp32, nats, each of shape (tokens,).

    Only the nodes that predict a wanted token go through the head, chunk by chunk; past a fixed size a chunk's logits are
    computed again in the backward pass instead of being kept. The second, the log-probability that two draws from the policy
    agree, has no gradient and is None unless ``collisions`` asks for it.
    """
    rows, head = chosen(hidden, batch.edge_parents), model.get_output_embeddings()
    if type(head) is torch.nn.Linear:
        dtype = torch.get_autocast_dtype(rows.device.type) if torch.is_autocast_enabled(rows.device.type) else rows.dtype
        edges, agreed = LogProbs.apply(
            rows.to(dtype), head.weight, head.bias, batch.edge_tokens, *head_shape(model), collisions, torch.is_grad_enabled()
        )
    else:  # an adapter on the head, or a layer of the model's own
        edges, agreed = _checkpointed(model, rows, batch.edge_tokens, collisions)
    return chosen(edges, batch.token_edges), agreed[batch.token_edges] if collisions else None


def _checkpointed(model: Any, rows: Tensor, targets: Tensor, collisions: bool) -> tuple[Tensor, Tensor]:
    """Return both statistics of every row through whatever the head is; autograd computes each chunk again."""

    def chunk(part: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        logits = head_logits(model, part).float()
        total = logits.logsumexp(dim=1)
        agree = (2 * logits.detach()).logsumexp(dim=1) - 2 * total.detach() if collisions else total.detach()
        return logits.gather(1, wanted[:, None])[:, 0] - total, agree

    size = chunk_rows(model.get_output_embeddings().weight.shape[0], rows.device.type)
    pieces = [(rows[i : i + size], targets[i : i + size]) for i in range(0, max(1, len(rows)), size)]
    edges = [checkpoint(chunk, *piece, use_reentrant=False) for piece in pieces]
    return torch.cat([edge[0] for edge in edges]), torch.cat([edge[1] for edge in edges])


class Statistics(torch.nn.Module):
    """From a pack to what a loss reads, as one module: where the weights of a model are sharded, they are whole inside.

    Args:
        model: a causal language model.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Pack, layer: int, collisions: bool) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return log-probabilities and collisions as ``token_statistics``, (tokens,), and a layer's states, (nodes, hidden)."""
        last, states = hidden_states(self.model, batch, layer)
        return *token_statistics(self.model, last, batch, collisions), states


def chosen(values: Tensor, places: Tensor) -> Tensor:
    """Return the rows at some places, of which the gradients of those that come twice are added in one order: with
    ``values[places]``, threads of a CPU add them in any.
    """
    return values.index_select(0, places)


def response_sums(values: Tensor, batch: Pack) -> Tensor:
    """Return the sum of per-token values for each scored response, of shape (scored,)."""
    return values.new_zeros(len(batch.scored_lengths)).index_add(0, batch.token_owner, values)


def pool(hidden: Tensor, batch: Pack, how: str) -> tuple[Tensor, Tensor]:
    """Pool the hidden states of each pooled response's completion.

    Args:
        hidden: (nodes, hidden).
        batch: the pack.
        how: "mean_completion" or "last_token".

    Returns:
        (pooled fp32 of shape (pooled, hidden), token counts of shape (pooled,)).
    """
    counts = batch.pooled_lengths
    if how == "last_token":
        return chosen(hidden, batch.last_nodes).float(), counts
    sums = hidden.new_zeros(len(counts), hidden.shape[1], dtype=torch.float32)
    sums = sums.index_add(0, batch.pool_owner, chosen(hidden, batch.pool_nodes).float())
    return sums / counts[:, None], counts
