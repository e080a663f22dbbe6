"""Tries: every property of the layout, and that numbers do not depend on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import MODELS, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import block_diag

from spo_bench.training.forward import hidden_states, pool, response_sums, token_log_probs
from spo_bench.training.probe import trie_obstacle
from spo_bench.training.trie import Response, build_row, fill_budget, pack, split_by_budget

tokens = st.lists(st.integers(0, 3), min_size=1, max_size=7)


def naive_mask(row):
    """Walk from every node to its root: the ancestors, and the node itself."""
    seen = np.zeros((row.size, row.size), dtype=bool)
    for node in range(row.size):
        at = node
        while at >= 0:
            seen[node, at] = True
            at = row.parents[at]
    return seen


@given(prompt=tokens, completions=st.lists(tokens, min_size=1, max_size=6), share=st.booleans())
def test_every_path_spells_its_sequence(prompt, completions, share):
    row = build_row(prompt, [Response(np.array(c)) for c in completions], share)
    for path, completion in zip(row.paths, completions, strict=True):
        spelled, at = [], path[-1]
        while at >= 0:
            spelled.append(int(row.tokens[at]))
            at = row.parents[at]
        assert spelled[::-1] == prompt + completion
        assert row.positions[path].tolist() == list(range(len(prompt), len(prompt) + len(completion)))


@given(prompt=tokens, completions=st.lists(tokens, min_size=1, max_size=6))
def test_shared_rows_hold_each_distinct_prefix_once(prompt, completions):
    row = build_row(prompt, [Response(np.array(c)) for c in completions])
    prefixes = {tuple((prompt + c)[:n]) for c in completions for n in range(1, len(prompt + c) + 1)}
    assert row.size == len(prefixes)


@given(rows=st.lists(st.tuples(tokens, st.lists(tokens, min_size=1, max_size=4)), min_size=1, max_size=4))
def test_mask_is_ancestry_within_a_row_and_nothing_across(rows):
    built = [build_row(p, [Response(np.array(c)) for c in cs]) for p, cs in rows]
    batch = pack(built)
    seen, times = np.zeros((len(batch.tokens),) * 2, bool), np.zeros(len(batch.tokens), int)
    for block in batch.sight.within(None)[0]:
        for nodes, sources, bias, present in zip(*(part.numpy() for part in vars(block).values()), strict=True):
            assert (bias == 0).any(-1).all(), "a query that sees nothing has a softmax of NaN"
            times[nodes[present]] += 1
            queries, keys = np.nonzero((bias == 0) & present[:, None])
            seen[nodes[queries], sources[keys]] = True
    assert (times == 1).all()
    assert (seen == block_diag(*(naive_mask(row) for row in built)).astype(bool)).all()


def test_a_row_needs_tokens():
    with pytest.raises(ValueError, match="prompt token"):
        build_row([], [Response(np.array([1]))])
    with pytest.raises(ValueError, match="token in each"):
        build_row([1], [Response(np.array([], dtype=np.int64))])


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=30), budget=st.integers(1, 80))
def test_budget_groups_are_consecutive_and_within_the_budget(sizes, budget):
    groups = split_by_budget(sizes, budget)
    assert [i for group in groups for i in group] == list(range(len(sizes)))
    assert all(sum(sizes[i] for i in group) <= budget or len(group) == 1 for group in groups)


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=30), budget=st.integers(1, 80))
def test_filled_groups_are_within_the_budget_full_and_sorted(sizes, budget):
    """First fit, largest first: no two groups would fit together, so all but one are more than half full."""
    groups = fill_budget(sizes, budget)
    totals = [sum(sizes[i] for i in group) for group in groups]
    assert sorted(i for group in groups for i in group) == list(range(len(sizes)))
    assert all(group == sorted(group) for group in groups)
    assert totals == sorted(totals, reverse=True)
    assert all(total <= budget or len(group) == 1 for group, total in zip(groups, totals, strict=True))
    assert all(a + b > budget for i, a in enumerate(totals) for b in totals[i + 1 :])


def test_a_budget_is_filled_by_hand():
    assert fill_budget([358, 928, 233, 295], 1024) == [[1], [0, 2, 3]]
    assert fill_budget([5, 3, 9], 8) == [[2], [0, 1]]


def some_rows(share, vocabulary=61, count=4):
    draw = np.random.default_rng(3)
    rows = []
    for _ in range(count):
        prompt, chosen = draw.integers(0, vocabulary, draw.integers(3, 9)), draw.integers(0, vocabulary, draw.integers(6, 14))
        rejected = np.concatenate([chosen[:2], draw.integers(0, vocabulary, 5)])
        responses = [
            Response(chosen, True, True),
            Response(rejected),
            Response(np.delete(chosen, [2, 3]), False, True),
            Response(chosen[:4], False, True),
        ]
        rows.append(build_row(prompt, responses, share))
    return rows


def numbers(model, share, layer=-1, how="mean_completion"):
    """Per-token log-probabilities, pooled states and all gradients of one pack."""
    batch = pack(some_rows(share), share)
    model.zero_grad()
    last, states = hidden_states(model, batch, layer)
    values = token_log_probs(model, last, batch)
    pooled, counts = pool(states, batch, how)
    (values.square().sum() + pooled.square().sum()).backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return values.detach(), pooled.detach(), counts, gradient, len(batch.tokens)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(("layer", "how"), [(-1, "mean_completion"), (1, "last_token")])
def test_trie_equals_separate_sequences(kind, layer, how):
    """Log-probabilities to 1e-5 and gradients to 1e-4 (relative to the largest), for every architecture family."""
    model = tiny_model(kind)
    together, alone = numbers(model, True, layer, how), numbers(model, False, layer, how)
    assert torch.allclose(together[0], alone[0], atol=1e-5)
    assert torch.allclose(together[1], alone[1], atol=1e-5)
    assert (together[2] == alone[2]).all()
    assert (together[3] - alone[3]).abs().max() <= 1e-4 * alone[3].abs().max()
    assert together[4] < 0.7 * alone[4]


def test_log_probs_are_those_of_the_plain_model():
    """Against the model's own logits on each sequence: log softmax at each completion token."""
    model = tiny_model()
    row = some_rows(True)[0]
    batch = pack([row])
    ours = token_log_probs(model, hidden_states(model, batch)[0], batch)
    prompt = row.tokens[: row.paths[0][0]]
    theirs = []
    for response in row.responses[:2]:
        ids = torch.from_numpy(np.concatenate([prompt, response.tokens]))[None]
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        theirs.append(logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0])
    assert torch.allclose(ours, torch.cat(theirs), atol=1e-5)


def test_chunked_head_equals_one_chunk(monkeypatch):
    model = tiny_model()
    whole = numbers(model, True)
    monkeypatch.setattr("spo_bench.training.logprobs.chunk_rows", lambda *_: 3)
    chunked = numbers(model, True)
    assert torch.allclose(whole[0], chunked[0], atol=1e-6)
    assert torch.allclose(whole[3], chunked[3], atol=1e-4 * float(whole[3].abs().max()))


def test_sums_and_counts():
    """Two responses of 2 and 3 tokens: sums (1+2, 3+4+5), counts (2, 3)."""
    batch = pack([build_row([0], [Response(np.array([1, 2])), Response(np.array([3, 4, 5]))])])
    assert response_sums(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), batch).tolist() == [3.0, 12.0]
    assert batch.scored_lengths.tolist() == [2, 3]


def test_probe_accepts_what_works_and_names_what_does_not():
    assert all(trie_obstacle(tiny_model(kind), 64) is None for kind in MODELS)
    from transformers import MambaConfig, MambaForCausalLM

    recurrent = MambaForCausalLM(MambaConfig(vocab_size=61, hidden_size=32, num_hidden_layers=1, state_size=4))
    assert "trie" in trie_obstacle(recurrent, 64)


def test_probe_finds_a_model_that_ignores_the_mask(monkeypatch):
    model = tiny_model()
    inner = model.model.forward
    monkeypatch.setattr(model.model, "forward", lambda *a, trie=None, **k: inner(*a, **k))
    assert "off by" in trie_obstacle(model, 64)


@pytest.mark.parametrize("what", ["pool", "scores"])
def test_gradients_are_added_in_one_order(what):
    """Nodes that many responses share get the sum of many gradients: on two threads the same bits, ten times."""
    draw, threads = np.random.default_rng(0), torch.get_num_threads()
    shared = draw.integers(0, 50, 60)
    answers = [np.concatenate([shared, draw.integers(0, 50, 4)]) for _ in range(40)]
    row = build_row(draw.integers(0, 50, 5), [Response(one, scored=True, pooled=True) for one in answers])
    batch = pack([row])
    model = tiny_model("llama")
    width = 256 if what == "pool" else model.config.hidden_size
    hidden = torch.randn(len(batch.tokens), width, requires_grad=True)
    weights = torch.randn(40, width) if what == "pool" else torch.randn(len(batch.token_owner))
    found = []
    torch.set_num_threads(2)
    try:
        for _ in range(10):
            values = pool(hidden, batch, "mean_completion")[0] if what == "pool" else token_log_probs(model, hidden, batch)
            found.append(torch.autograd.grad((values * weights).sum(), hidden)[0])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found)
