"""Attention over tries, as an attention function of transformers: models call it by name in every layer.

On a CPU it is computed block by block with the scores of one block at a time, which are computed again in the backward pass
(the exact blockwise attention of Dao et al. 2022, arXiv 2205.14135, over the blocks of ``blocks``). On CUDA it is FlexAttention
under the same rule. Sliding windows count tokens of a path; soft caps are those of Gemma 2.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from spo_bench.models.policy import causal
from spo_bench.training.blocks import Block, Sight

NAME = "spo_bench_trie"
GRAPHS = 128  # that torch.compile may make of FlexAttention in one process
# What models hand on to their attention function that does not change what it computes. Anything else (sinks, biases, the indices
# of sparse attention) is refused unless it is None or False, so that a new kind of attention is not taken for the plain one.
HARMLESS = {
    "position_ids", "cache_position", "position_embeddings", "is_causal", "use_cache", "return_dict", "past_key_values",
    "output_attentions", "output_hidden_states", "output_router_logits", "num_items_in_batch", "layer_idx", "logits_to_keep",
}  # fmt: skip


def use_tries(model: Any) -> None:
    """Make a model's attention take tries; without a trie it computes what it did.

    Raises:
        ValueError: the model's attention cannot be replaced.
    """
    inner = causal(model)
    if inner.config._attn_implementation != NAME:
        inner.set_attn_implementation(NAME)
        if inner.config._attn_implementation != NAME:
            raise ValueError("its attention cannot be replaced")


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    trie: Sight | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Attend.

    Args:
        module: the layer.
        query: (batch, heads, queries, size); over a trie batch is 1.
        key, value: (batch, key heads, keys, size).
        attention_mask: where there is no trie: bool, (batch, 1, queries, keys), or None for a causal one.
        scaling: of the scores; None: 1 / sqrt(size).
        dropout: of the attention weights.
        sliding_window: tokens a query sees, itself included.
        softcap: scores become softcap * tanh(scores / softcap).
        trie: who sees whom.

    Returns:
        (batch, queries, heads, value size), and no weights.

    Raises:
        ValueError: the model asks for what is not computed here.
    """
    refused = [name for name, value in more.items() if name not in HARMLESS and value is not None and value is not False]
    if refused:
        raise ValueError(f"its attention needs {', '.join(sorted(refused))}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if trie is None:
        return _without_trie(module, query, key, value, attention_mask, scale, dropout, softcap), None
    # Under autocast rotary positions leave queries and keys in fp32; products run in the type that was asked for.
    query, key = query.to(value.dtype), key.to(value.dtype)
    if query.is_cuda and dropout == 0:
        return _flex(query, key, value, trie, scale, sliding_window, softcap), None
    blocks, places = trie.within(sliding_window)
    if dropout > 0:
        parts = [_plain(*_gathered(query[0], key[0], value[0], block), block.bias, scale, softcap, dropout) for block in blocks]
        return _scattered(parts, places)[None], None
    out: Tensor = _Blockwise.apply(query[0], key[0], value[0], blocks, places, scale, softcap)
    return out[None], None


def _without_trie(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    dropout: float,
    softcap: float | None,
) -> Tensor:
    """Attend over ordinary sequences: (batch, queries, heads, value size)."""
    if softcap is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        out: Tensor = sdpa_attention_forward(module, query, key, value, mask, dropout=dropout, scaling=scale)[0]
        return out
    bias = query.new_zeros(1, query.shape[2], key.shape[2], dtype=torch.float32)
    if mask is None:
        seen = torch.ones(bias.shape[1:], dtype=torch.bool, device=bias.device).tril(key.shape[2] - query.shape[2])[None]
    else:
        seen = mask[:, 0]
    bias = bias.masked_fill(~seen, torch.finfo(torch.float32).min)
    groups = (key.shape[1], query.shape[1] // key.shape[1])
    whole = query.unflatten(1, groups).transpose(0, 1).flatten(2, 3)
    parts = _plain(whole, key.transpose(0, 1), value.transpose(0, 1), bias, scale, softcap, dropout)
    return parts.permute(1, 3, 0, 2, 4).flatten(2, 3)


def _gathered(query: Tensor, key: Tensor, value: Tensor, block: Block) -> tuple[Tensor, Tensor, Tensor]:
    """Return a block's queries, (key heads, blocks, group * queries, size), keys and values, (key heads, blocks, keys, size)."""
    return _by_key_head(query[:, block.queries], key.shape[0]), key[:, block.keys], value[:, block.keys]


def _by_key_head(values: Tensor, heads: int) -> Tensor:
    """Put heads that share keys together: (heads, blocks, queries, size) -> (key heads, blocks, group * queries, size)."""
    return values.unflatten(0, (heads, -1)).transpose(1, 2).flatten(2, 3)


def _scattered(parts: list[Tensor], places: Tensor) -> Tensor:
    """Put outputs of blocks, (key heads, blocks, group, queries, size), in the order of nodes: (nodes, heads, size)."""
    flat = [part.permute(1, 3, 0, 2, 4).flatten(2, 3).flatten(0, 1) for part in parts]
    return torch.cat(flat)[places]


def _weights(queries: Tensor, keys: Tensor, bias: Tensor, softcap: float | None) -> tuple[Tensor, Tensor | None]:
    """Return attention weights, fp32, (key heads, blocks, group, queries, keys), and the capped scores where they are capped."""
    scores = torch.matmul(queries, keys.transpose(-1, -2)).float().unflatten(2, (-1, bias.shape[1]))
    capped = None if softcap is None else torch.tanh(scores / softcap) * softcap
    return (scores if capped is None else capped).add(bias[:, None]).softmax(-1), capped


def _plain(
    queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor, scale: float, softcap: float | None, dropout: float
) -> Tensor:
    """Attend in operations that autograd follows, for what the blockwise function leaves out."""
    weights = _weights(queries * scale, keys, bias, softcap)[0]
    weights = torch.nn.functional.dropout(weights, dropout, training=dropout > 0).to(values.dtype)
    return torch.matmul(weights.flatten(2, 3), values).unflatten(2, (-1, bias.shape[1]))


class _Blockwise(torch.autograd.Function):
    """Attention over blocks; what is kept for the backward pass is of the size of the inputs, not of the scores."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        blocks: tuple[Block, ...],
        places: Tensor,
        scale: float,
        softcap: float | None,
    ) -> Tensor:
        """(heads, nodes, size), (key heads, nodes, size) -> (nodes, heads, value size)."""
        parts = []
        for block in blocks:
            queries, keys, values = _gathered(query, key, value, block)
            weights = _weights(queries.mul_(scale), keys, block.bias, softcap)[0].to(values.dtype)
            parts.append(torch.matmul(weights.flatten(2, 3), values).unflatten(2, (-1, block.bias.shape[1])))
        out = _scattered(parts, places)
        ctx.save_for_backward(query, key, value, out)
        ctx.rest = blocks, scale, softcap
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of query, key and value."""
        query, key, value, out = ctx.saved_tensors
        blocks, scale, softcap = ctx.rest
        slope = (grad.float() * out.float()).sum(-1).t()  # (heads, nodes): sum over keys of weight * its gradient
        grad = grad.transpose(0, 1)
        d_query = torch.empty_like(query)
        # Nodes first, all heads in one row: a gradient is added to its node's row in one piece.
        d_key, d_value = (x.new_zeros(x.shape[1], x.shape[0] * x.shape[2], dtype=torch.float32) for x in (key, value))
        for block in blocks:
            queries, keys, values = _gathered(query, key, value, block)
            here, width = block.present[..., None], block.bias.shape[1]
            # Padded queries are node 0 once more: they must not add to its gradient.
            grads = _by_key_head(grad[:, block.queries].mul_(here), len(keys))
            inner = _by_key_head(slope[:, block.queries, None].mul_(here), len(keys)).unflatten(2, (-1, width))
            weights, capped = _weights(queries.mul_(scale), keys, block.bias, softcap)
            d_values = torch.matmul(weights.to(values.dtype).flatten(2, 3).transpose(-1, -2), grads)
            d_scores = torch.matmul(grads, values.transpose(-1, -2)).float().unflatten(2, (-1, width)).sub_(inner).mul_(weights)
            if capped is not None:
                d_scores.mul_(1 - (capped / softcap).square())
            d_scores = d_scores.to(keys.dtype).flatten(2, 3)
            d_queries = torch.matmul(d_scores, keys).mul_(scale).unflatten(2, (-1, width)).transpose(1, 2).flatten(0, 1)
            d_query[:, block.queries[block.present]] = d_queries[:, block.present]
            d_keys = torch.matmul(d_scores.transpose(-1, -2), queries)
            for total, part in ((d_key, d_keys), (d_value, d_values)):
                total.index_add_(0, block.keys.flatten(), part.permute(1, 2, 0, 3).flatten(2).flatten(0, 1).float())
        d_key, d_value = (total.unflatten(1, (len(key), -1)).transpose(0, 1).to(key.dtype) for total in (d_key, d_value))
        return d_query, d_key, d_value, None, None, None, None


def _flex(
    query: Tensor, key: Tensor, value: Tensor, trie: Sight, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    """Attend with FlexAttention: (1, nodes, heads, value size)."""
    cap = softcap

    def capped(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return score if cap is None else torch.tanh(score / cap) * cap

    flex, _ = _flex_functions(query.is_cuda)
    out = flex(
        query,
        key,
        value,
        score_mod=None if softcap is None else capped,
        block_mask=block_mask(trie, window),
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2)


@cache
def _flex_functions(compiled: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return (flex_attention, create_block_mask), compiled where they run on CUDA."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    if not compiled:
        return flex_attention, create_block_mask
    # Every head size, type, window and cap is a graph of its own, and one process serves several models. Past the limit
    # FlexAttention would hold all scores; a whole graph is demanded, so that it fails instead.
    torch._dynamo.config.recompile_limit = max(GRAPHS, torch._dynamo.config.recompile_limit)
    flex = torch.compile(flex_attention, dynamic=True, fullgraph=True)
    return flex, torch.compile(create_block_mask, dynamic=True, fullgraph=True)


def block_mask(trie: Sight, window: int | None) -> Any:
    """Return FlexAttention's block mask of a pack for a window, made once a pack."""
    if window not in trie.masks:
        ends, positions = trie.ends, trie.positions

        def seen(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            ancestor = (k <= q) & (q < ends[k])
            return ancestor if window is None else ancestor & (positions[q] - positions[k] < window)

        make = _flex_functions(ends.is_cuda)[1]
        with torch.no_grad():
            trie.masks[window] = make(seen, None, None, len(ends), len(ends), device=ends.device)
    return trie.masks[window]


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
