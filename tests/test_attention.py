"""The blockwise attention, FlexAttention under the same rule, and the chunked head, against the plain formulas."""

import numpy as np
import pytest
import torch

from spo_bench.training.attention import _flex, attention
from spo_bench.training.logprobs import LogProbs, chunk_rows
from spo_bench.training.trie import Response, build_row, pack

HEADS, KEY_HEADS, SIZE = 6, 2, 8


def some_pack(seed=0):
    """Rows of several blocks and rows that share one; branches that begin early and late."""
    draw = np.random.default_rng(seed)
    rows = []
    for length in (3, 90, 140, 5, 7):
        prompt, answer = draw.integers(0, 50, length), draw.integers(0, 50, 2 * length)
        copies = [np.delete(answer, np.arange(i, i + 2)) for i in range(1, len(answer) - 2, max(1, length // 2))]
        rows.append(build_row(prompt, [Response(answer), *(Response(copy) for copy in copies)]))
    return pack(rows)


def inputs(nodes, dtype=torch.float64):
    torch.manual_seed(0)
    shapes = ((HEADS, SIZE), (KEY_HEADS, SIZE), (KEY_HEADS, SIZE + 4))
    return [torch.randn(1, nodes, *shape, dtype=dtype).transpose(1, 2).requires_grad_() for shape in shapes]


def dense(query, key, value, batch, window, softcap):
    """softmax(cap(q k / sqrt(size)) + mask) v, with the mask from each node's ancestors, walked parent by parent."""
    positions = batch.sight.positions
    seen, last = torch.eye(len(positions), dtype=torch.bool), {}
    for node, depth in enumerate(positions.tolist()):
        if depth:
            seen[node] |= seen[last[depth - 1]]  # depth first: its parent is the last node one step above
        last[depth] = node
    if window is not None:
        seen &= positions[:, None] - positions < window
    key, value = (x.repeat_interleave(HEADS // KEY_HEADS, 1) for x in (key, value))
    scores = query @ key.transpose(-1, -2) * SIZE**-0.5
    scores = scores if softcap is None else torch.tanh(scores / softcap) * softcap
    return (scores.masked_fill(~seen, float("-inf")).softmax(-1) @ value).transpose(1, 2)


def out_and_gradients(function, parts):
    out = function(*parts)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(out.dtype)
    return [out, *torch.autograd.grad((out * weight).sum(), parts)]


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("window", [None, 9])
def test_blocks_give_what_the_formula_gives(window, softcap):
    batch = some_pack()
    blocks = batch.sight.within(window)[0]
    assert len(blocks) > 2
    assert any((~block.present).any() for block in blocks), "padding is tested too"
    parts = inputs(len(batch.tokens))
    more = {"trie": batch.sight, "sliding_window": window, "softcap": softcap}
    ours = out_and_gradients(lambda *x: attention(None, *x, None, **more)[0], parts)
    for found, wanted in zip(ours, out_and_gradients(lambda *x: dense(*x, batch, window, softcap), parts), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)  # scores are fp32


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("window", [None, 9])
def test_flex_attention_gives_what_the_blocks_give(window, softcap):
    """What runs on CUDA, here in FlexAttention's own reference implementation, which has no backward pass on a CPU."""
    batch = some_pack()
    query, key, value = (part.detach().float() for part in inputs(len(batch.tokens)))
    value = value[..., :SIZE].contiguous()
    blocks = attention(None, query, key, value, None, trie=batch.sight, sliding_window=window, softcap=softcap)[0]
    flex = _flex(query, key, value, batch.sight, SIZE**-0.5, window, softcap)
    torch.testing.assert_close(flex, blocks, rtol=1e-4, atol=1e-5)


def test_dropout_leaves_the_mean_and_drops():
    batch = some_pack()
    parts = [part.detach() for part in inputs(len(batch.tokens), torch.float32)]
    torch.manual_seed(0)
    whole = attention(None, *parts, None, trie=batch.sight)[0]
    drops = torch.stack([attention(None, *parts, None, trie=batch.sight, dropout=0.3)[0] for _ in range(100)])
    spread = drops.std(0) / 100**0.5
    assert spread.mean() > 0
    assert ((drops.mean(0) - whole).abs() <= 5.5 * spread + 1e-6).all()


def test_what_is_not_computed_is_refused():
    batch = some_pack()
    with pytest.raises(ValueError, match="s_aux"):
        attention(None, *inputs(len(batch.tokens)), None, trie=batch.sight, s_aux=torch.zeros(HEADS))


def test_a_new_kind_of_attention_is_refused_with_and_without_a_trie():
    """Sparse attention hands its function the keys to look at; whoever overlooks them is off by nats, silently."""
    batch = some_pack()
    parts = [part.detach() for part in inputs(len(batch.tokens), torch.float32)]
    for more in ({"trie": batch.sight}, {"softcap": 1.5}):
        with pytest.raises(ValueError, match="indices"):
            attention(None, *parts, None, indices=torch.zeros(1, 4, dtype=torch.int64), **more)
        attention(None, *parts, None, position_ids=batch.positions[None], indices=None, is_causal=True, **more)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (0.5, None), (0.5, 2.0)])
@pytest.mark.parametrize("kept", [0, 1, 3], ids="{} chunks kept".format)
def test_the_chunked_head_gives_what_the_formula_gives(monkeypatch, biased, scale, cap, kept):
    monkeypatch.setattr("spo_bench.training.logprobs.chunk_rows", lambda *_: 4)
    monkeypatch.setattr("spo_bench.training.logprobs.KEPT_ELEMENTS", {"cpu": kept * 4 * 23})
    torch.manual_seed(0)
    rows, weight, bias = torch.randn(11, 5), torch.randn(23, 5), torch.randn(23) if biased else None
    targets, upstream = torch.randint(0, 23, (11,)), torch.randn(11)
    parts = [part.requires_grad_() for part in (rows, weight, bias) if part is not None]
    values, agree = LogProbs.apply(rows, weight, bias, targets, scale, cap, True, True)
    logits = torch.nn.functional.linear(rows, weight, bias) * scale
    logits = logits if cap is None else torch.tanh(logits / cap) * cap
    wanted = logits.log_softmax(-1)
    torch.testing.assert_close(values, wanted.gather(1, targets[:, None])[:, 0])
    torch.testing.assert_close(agree, wanted.exp().square().sum(1).log())
    plain = torch.autograd.grad((wanted.gather(1, targets[:, None])[:, 0] * upstream).sum(), parts)
    for found, expected in zip(torch.autograd.grad((values * upstream).sum(), parts), plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keep", [False, True])
def test_a_frozen_head_gets_no_gradient_and_a_fixed_number_of_log_probabilities_is_held(monkeypatch, keep):
    monkeypatch.setattr("spo_bench.training.logprobs.KEPT_ELEMENTS", {"cpu": 2 * 128 * 2000})
    monkeypatch.setattr("spo_bench.training.logprobs.CHUNK_ELEMENTS", {"cpu": 1})
    rows, weight = torch.randn(600, 5, requires_grad=True), torch.randn(2000, 5)
    held = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: held.append(tuple(x.shape)) or x, lambda x: x):
        values, _ = LogProbs.apply(rows, weight, None, torch.randint(0, 2000, (600,)), 1.0, None, False, keep)
    values.sum().backward()
    assert rows.grad is not None
    assert weight.grad is None
    assert held == [(600, 5), (2000, 5), (600,), *[(128, 2000)] * (2 if keep else 0)]


def test_a_chunk_has_rows_that_multiply_well():
    assert chunk_rows(49152, "cpu") == 320
    assert chunk_rows(256_000, "cpu") == 128
    assert chunk_rows(1000, "cuda") % 64 == 0
