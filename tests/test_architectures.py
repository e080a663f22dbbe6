"""Every architecture family gives over tries what its own forward gives for each sequence alone, or is not run over tries."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, POSITIONS, RECURRENT, TRIES, UNKNOWN_HEADS, VOCABULARY, WINDOW, make

from spo_bench.errors import StageError
from spo_bench.models.activations import spare_activations
from spo_bench.models.numerics import Numerics
from spo_bench.models.policy import load_policy
from spo_bench.training.forward import hidden_states, pool, token_log_probs
from spo_bench.training.probe import trie_obstacle
from spo_bench.training.trie import Response, build_row, pack

LAYER = 1  # an inner layer: what the degree head may be asked to read
WINDOWED = [family for family, (_, settings) in TRIES.items() if "sliding_window" in settings]


def some_rows(share=True, vocabulary=VOCABULARY):
    """Two rows: a chosen answer with a copy that lacks its fifth to seventh token, and two rejected ones that leave it early."""
    draw = np.random.default_rng(3)
    rows = []
    for length in (11, 14):
        prompt, chosen = draw.integers(3, vocabulary, length), draw.integers(3, vocabulary, 16)
        responses = [
            Response(chosen, True, True),
            Response(np.concatenate([chosen[:3], draw.integers(3, vocabulary, 9)])),
            Response(np.delete(chosen, [4, 5, 6]), False, True),
            Response(draw.integers(3, vocabulary, 7)),
        ]
        rows.append(build_row(prompt, responses, share))
    return rows


def sequences(rows):
    """Return (response, ids of the whole sequence, where its completion begins) of every response, from separate rows."""
    for row in rows:
        for response, path in zip(row.responses, row.paths, strict=True):
            start = row.roots[row.roots <= path[0]].max()
            yield response, torch.from_numpy(row.tokens[start : path[-1] + 1])[None], int(path[0] - start)


def alone(model):
    """Return (per-token log-probabilities, pooled inner states) from the model's own forward, one sequence at a time."""
    values, states = [], []
    for response, ids, begin in sequences(some_rows(share=False)):
        out = model(input_ids=ids, use_cache=False, output_hidden_states=response.pooled)
        if response.scored:
            log_probs = out.logits[0, begin - 1 : -1].float().log_softmax(-1)
            values.append(log_probs.gather(1, ids[0, begin:, None])[:, 0])
        if response.pooled:
            states.append(out.hidden_states[LAYER][0, begin:].float().mean(0))
    return torch.cat(values), torch.stack(states)


def packed(model, share=True, change=lambda batch: batch):
    """Return the same two from one forward over the pack."""
    batch = change(pack(some_rows(share), share))
    last, layer = hidden_states(model, batch, LAYER)
    return token_log_probs(model, last, batch), pool(layer, batch, "mean_completion")[0]


def gradient(model, outputs):
    """Return the gradient of a number in which every output has its own weight, over all trained weights, one after the other."""
    model.zero_grad()
    draw = torch.Generator().manual_seed(1)
    sum((each * torch.randn(each.shape, generator=draw)).sum() for each in outputs).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


made = cache(make)  # one shared copy of a family's model; whoever uses it leaves its weights as they are


@cache
def expected(family):
    """Return log-probabilities, pooled states and gradient of a model of its own that never saw a trie."""
    model = make(family)
    with torch.enable_grad():
        outputs = alone(model)
        return *(each.detach() for each in outputs), gradient(model, outputs)


def assert_same(model, ours, theirs):
    """Values to 1e-5, the gradient to 1e-4 of its largest."""
    for mine, yours in zip(ours, theirs, strict=False):
        torch.testing.assert_close(mine, yours, atol=1e-5, rtol=0)
    assert (gradient(model, ours) - theirs[-1]).abs().max() <= 1e-4 * theirs[-1].abs().max()


def test_the_rows_are_sharp():
    """What a wrong window, a wrong mask or a wrong position would need in order to be noticed is there."""
    batch = pack(some_rows())
    assert len(batch.tokens) > POSITIONS, "a column used as a position must be out of range or plainly wrong"
    for row in some_rows():
        for path in row.paths:
            assert row.positions[path[-1]] >= 2 * WINDOW, "a row must be longer than the window, at both of two layers"
        last = max(row.paths, key=lambda path: path[0])
        parent = row.parents[last[0]]
        assert last[0] - parent > 2 * WINDOW, "between a branch and its parent must lie more columns than the window holds"


@pytest.mark.parametrize("family", TRIES)
def test_a_trie_gives_what_sequences_alone_give(family):
    model = made(family)
    assert trie_obstacle(model, POSITIONS) is None
    assert_same(model, packed(model), expected(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_separate_sequences_give_what_sequences_alone_give(family):
    model = made(family)
    assert_same(model, packed(model, share=False), expected(family))


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - TRIES.keys()))
def test_an_obstacle_is_named_or_there_is_none(family):
    """The one thing that must not happen: no obstacle is found, and the numbers over tries are wrong."""
    model = make(family)
    obstacle = trie_obstacle(model, POSITIONS)
    if family in RECURRENT or obstacle is not None:
        assert obstacle is not None
        assert len(obstacle.split()) > 4
        with torch.no_grad():
            torch.testing.assert_close(alone(model)[0], expected(family)[0], atol=1e-6, rtol=0)
    else:
        assert_same(model, packed(model), expected(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_small_weights_in_low_precision_hide_no_obstacle(family):
    """With weights of 0.02 in bf16 nearly all log-probabilities are alike; what the model can do has not changed."""
    obstacle = trie_obstacle(make(family, initializer_range=0.02).bfloat16(), POSITIONS)
    assert (obstacle is None) == (trie_obstacle(make(family), POSITIONS) is None)


@pytest.mark.parametrize("family", TRIES)
def test_a_bf16_step_is_that_of_fp32_but_for_rounding(family):
    """Weights in fp32 under autocast, forward and backward; attention must keep to one type in both."""
    model = made(family)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert trie_obstacle(model, POSITIONS) is None
        ours = packed(model)
    assert (ours[0] - expected(family)[0]).abs().mean() <= 0.05
    slope = gradient(model, ours)
    assert torch.nn.functional.cosine_similarity(slope.double(), expected(family)[2].double(), dim=0) >= 0.97


@pytest.mark.parametrize("family", UNKNOWN_HEADS)
def test_a_head_that_is_not_reproduced_is_refused(family):
    """Separate sequences would be wrong as well, for the policy and its reference alike, so that nothing else would notice."""
    with pytest.raises(StageError, match="logits"):
        trie_obstacle(make(family), POSITIONS)


@pytest.mark.parametrize("family", TRIES)
def test_wrong_positions_would_be_noticed(family):
    """Positions that count columns, modulo the length of a sequence, instead of tokens along the path."""
    with torch.no_grad():
        values = packed(made(family), change=lambda batch: replace(batch, positions=torch.arange(len(batch.tokens)) % 30))[0]
    assert (values - expected(family)[0]).abs().max() > 0.01


@pytest.mark.parametrize("family", TRIES)
def test_a_mask_without_branches_would_be_noticed(family):
    """The model's own causal forward over the line of nodes, at the right positions: branches see their siblings."""
    model, batch = made(family), pack(some_rows())
    line = batch.tokens[None]
    with torch.no_grad():
        out = model(
            input_ids=line, attention_mask=torch.ones_like(line), position_ids=batch.positions[None], use_cache=False
        ).logits[0]
    values = out.float().log_softmax(-1)[batch.edge_parents].gather(1, batch.edge_tokens[:, None])[:, 0]
    assert (values[batch.token_edges] - expected(family)[0]).abs().max() > 0.1


@pytest.mark.parametrize("family", WINDOWED)
@pytest.mark.parametrize("window", [WINDOW - 1, WINDOW + 1, 4 * WINDOW])
def test_another_window_would_be_noticed(family, window):
    """With a window of one token less or more, and with none, the numbers are others; the trie follows the model there too."""
    other = make(family, sliding_window=window)
    with torch.no_grad():
        theirs, ours = alone(other)[0], packed(other)[0]
    assert (theirs - expected(family)[0]).abs().max() > 0.01
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_adapter(family):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(make(family), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "lora_B" in name:
                weights.normal_(0, 0.1)
    theirs = alone(model)
    assert (theirs[0] - expected(family)[0]).abs().max() > 0.01, "the adapter must matter"
    theirs = (*theirs, gradient(model, theirs))
    assert trie_obstacle(model, POSITIONS) is None
    assert_same(model, packed(model), theirs)
    assert all(("lora" in name) == (p.grad is not None) for name, p in model.named_parameters())


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_activations_computed_twice(family):
    """With gradient checkpointing a layer runs again in the backward pass, and must still know its own pack by then."""
    model, theirs = make(family), expected(family)[-1]
    spare_activations(model.train(), checkpointing=True)
    ours, runs = packed(model), []
    with torch.no_grad():
        hidden_states(model, pack(some_rows()[:1]))
    decoder = model.get_decoder()
    first = decoder.h[0] if family == "gpt2" else decoder.layers[0]
    first.mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    difference = gradient(model, ours) - theirs
    assert runs == [1]
    assert difference.abs().max() <= 1e-4 * theirs.abs().max()


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_weights_in_bfloat16(family):
    """As near to fp32 as sequences alone are in bf16, within a factor of two."""
    exact, model = expected(family)[0], make(family).bfloat16()
    with torch.no_grad():
        theirs, ours = alone(model)[0], packed(model)[0]
    assert trie_obstacle(model, POSITIONS) is None
    assert ours.dtype == torch.float32
    assert (ours - exact).abs().max() <= 2 * (theirs - exact).abs().max()
    assert (ours - exact).abs().mean() <= 1.5 * (theirs - exact).abs().mean()


def test_dropout_of_attention_is_not_forgotten():
    """In training, GPT-2's attention drops weights: other seeds, other numbers; in evaluation it does not."""
    model = make("gpt2", attn_pdrop=0.5)
    seen = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        seen.append(packed(model.train())[0].detach())
    assert (seen[0] - seen[1]).abs().max() > 0.01
    with torch.no_grad():
        torch.testing.assert_close(packed(model.eval())[0], expected("gpt2")[0], atol=1e-5, rtol=0)


def test_frequencies_that_depend_on_the_length_are_an_obstacle():
    """Phi-3's long rope turns every token of a sequence by other angles once the sequence passes 16 tokens: a prompt would
    have to be computed for a short and for a long answer.
    """
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 16}
    rope |= {"short_factor": [1.0, 1.0, 1.0, 1.0], "long_factor": [1.0, 2.0, 3.0, 4.0]}
    model = make("phi3", original_max_position_embeddings=16, rope_parameters=rope, sliding_window=None)
    assert trie_obstacle(model, 16) is None
    assert trie_obstacle(model, POSITIONS) is not None


@pytest.mark.parametrize("family", ["gemma2", "bloom", "mamba"])
def test_families_without_fused_attention_load(family, tmp_path):
    """A saved policy opens for training whatever attention its architecture offers, with the same numbers."""
    make(family).save_pretrained(tmp_path)
    loaded = load_policy(tmp_path, Numerics("cpu", "float32", "float32"))
    with torch.no_grad():
        torch.testing.assert_close(alone(loaded)[0], expected(family)[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "gpt2", "mistral"])
def test_a_model_that_took_tries_generates_as_before(family):
    """With a cache, and with a prompt that is padded on the left."""
    prompts = torch.from_numpy(np.random.default_rng(5).integers(3, VOCABULARY, (2, 12)))
    present = torch.ones_like(prompts)
    present[0, :3] = 0
    wanted = {"input_ids": prompts, "attention_mask": present, "max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    model = make(family)
    before = model.generate(**wanted)
    with torch.no_grad():
        packed(model)
    assert torch.equal(model.generate(**wanted), before)
