"""What is held for the backward pass: less than autograd would hold, for the same numbers."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from test_architectures import alone, gradient
from tiny_models import FAMILIES, make
from torch.nn.functional import silu
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from spo_bench.models.activations import spare_activations
from spo_bench.training.loop import adamw

HIDDEN, INNER, ROWS = 6, 16, 5
CONFIG = LlamaConfig(hidden_size=HIDDEN, intermediate_size=INNER, num_attention_heads=1)


def spared(model) -> set[str]:
    """Make a model spare its activations; return the names of the classes that do now."""
    before = {name: type(module) for name, module in model.named_modules()}
    spare_activations(model, checkpointing=False)
    return {before[name].__name__ for name, module in model.named_modules() if type(module) is not before[name]}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_computes_the_same_and_learns_the_same(family):
    """To the bit forward; gradients are formed in another order."""
    plain, sparing = make(family), make(family)
    spared(sparing)
    theirs, ours = alone(plain), alone(sparing)
    assert torch.equal(theirs[0], ours[0])
    expected, found = gradient(plain, theirs), gradient(sparing, ours)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral"])
def test_common_families_spare(family):
    assert {kind[-3:] for kind in spared(make(family))} == {"MLP", "orm"}


def test_other_norms_are_left_alone():
    """Gemma's norms multiply by 1 + w."""
    assert spared(make("gemma2")) == {"Gemma2MLP"}
    assert spared(make("gpt2")) == set()


def held(module, hidden) -> int:
    """Return how many numbers a module holds for its backward pass, besides its weights."""
    weights, sizes = {weight.data_ptr() for weight in module.parameters()}, {}

    def note(part):
        if part.data_ptr() not in weights:
            sizes[part.data_ptr()] = part.numel()
        return part

    with torch.autograd.graph.saved_tensors_hooks(note, lambda part: part):
        out = module(hidden)
        total = sum(sizes.values())
    out.sum().backward()
    return total


def test_what_is_held_by_hand():
    """A gated layer: its input, gate and up; a norm: its input and one factor a row."""
    torch.manual_seed(0)
    layers = torch.nn.ModuleList([LlamaMLP(CONFIG), LlamaRMSNorm(HIDDEN)])
    before = [held(layer, torch.randn(ROWS, HIDDEN, requires_grad=True)) for layer in layers]
    assert spared(layers) == {"LlamaMLP", "LlamaRMSNorm"}
    after = [held(layer, torch.randn(ROWS, HIDDEN, requires_grad=True)) for layer in layers]
    assert after == [ROWS * (HIDDEN + 2 * INNER), ROWS * (HIDDEN + 1)]
    assert before == [ROWS * (HIDDEN + 4 * INNER), ROWS * (2 * HIDDEN + 1)]


def test_frozen_matrices_get_no_gradient():
    torch.manual_seed(0)
    layer = LlamaMLP(CONFIG).requires_grad_(False)
    hidden = torch.randn(ROWS, HIDDEN, requires_grad=True)
    (plain,) = torch.autograd.grad(layer(hidden).square().sum(), hidden)
    assert spared(layer) == {"LlamaMLP"}
    (found,) = torch.autograd.grad(layer(hidden).square().sum(), hidden)
    torch.testing.assert_close(found, plain)
    assert held(layer, hidden) == ROWS * 2 * INNER, "its input is held for the gradient of its matrices alone"
    assert all(weight.grad is None for weight in layer.parameters())


def test_an_adapter_on_a_matrix_is_left_alone():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(make("llama"), LoraConfig(r=2, target_modules=["down_proj"], task_type="CAUSAL_LM"))
    assert spared(model) == {"LlamaRMSNorm"}


def test_under_autocast_it_computes_in_bfloat16_as_autograd_does():
    torch.manual_seed(0)
    layer = LlamaMLP(CONFIG)
    hidden, results = torch.randn(ROWS, HIDDEN, requires_grad=True), []
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = layer(hidden)
        results.append((out, *torch.autograd.grad(out.float().square().sum(), [hidden, *layer.parameters()])))
        spared(layer)
    (plain, *theirs), (found, *ours) = results
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, plain)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - other).abs().max() <= 2e-2 * other.abs().max()


class Alike(LlamaMLP):
    """Has the parts of a gated layer, and adds its input."""

    def forward(self, x):
        return x + self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))


def test_what_only_looks_like_a_gated_layer_is_left_alone():
    assert spared(Alike(CONFIG)) == set()


def test_a_sparing_model_can_be_thrown_away():
    """Nothing refers back to it: its memory is free without a search for cycles."""
    layer = LlamaMLP(CONFIG)
    spared(layer)
    gone = weakref.ref(layer)
    gc.disable()
    try:
        del layer
        assert gone() is None
    finally:
        gc.enable()


def test_checkpointing_besides():
    plain, sparing = make("llama"), make("llama").train()
    expected = gradient(plain, alone(plain))
    spare_activations(sparing, checkpointing=True)
    assert sparing.is_gradient_checkpointing
    found = gradient(sparing, alone(sparing))
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_moments_that_are_there_from_the_start_change_nothing():
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Linear(3, 2) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    first = adamw(list(ours.parameters()), 0.1)
    assert [sorted(state) for state in first.state.values()] == [["exp_avg", "exp_avg_sq", "step"]] * 2
    second = torch.optim.AdamW(theirs.parameters(), weight_decay=0.1, fused=True)
    for _ in range(3):
        for layer, optimizer in ((ours, first), (theirs, second)):
            layer(torch.ones(1, 3)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
