"""Tiny random models of every architecture family in common use: their settings, and what makes each of them special."""

from __future__ import annotations

from typing import Any

import torch

VOCABULARY = 61
WINDOW = 8  # shorter than the rows of the tests, so that it matters
POSITIONS = 64  # enough for every sequence, too few for the columns of a pack


def _settings(**special: Any) -> dict[str, Any]:
    """Return the settings most families share, with this one's changed; None leaves one out."""
    shared = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": POSITIONS,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return {name: value for name, value in (shared | special).items() if value is not None}


def _gpt(**special: Any) -> dict[str, Any]:
    """Return the settings of the families that took over GPT-2's names."""
    shared = {
        "vocab_size": VOCABULARY,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": POSITIONS,
        "initializer_range": 0.2,
    }
    return shared | {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0, "bos_token_id": 1, "eos_token_id": 2} | special


def _rope(kind: str, **settings: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 10000.0, **settings}


_MIXED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 4, "mamba_expand": 2}
_LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12}
_NO_DROPOUT = {"attention_dropout": 0, "hidden_dropout": 0}

# Run over tries. Name -> (model type, settings).
TRIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _settings()),
    "llama3-rope": (
        "llama",
        _settings(
            rope_parameters=_rope(
                "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16
            )
        ),
    ),
    "llama-yarn": ("llama", _settings(rope_parameters=_rope("yarn", factor=4.0, original_max_position_embeddings=16))),
    "qwen2": ("qwen2", _settings()),
    "qwen2-window": ("qwen2", _settings(use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1)),
    "qwen3": ("qwen3", _settings(head_dim=8)),
    "gemma": ("gemma", _settings(head_dim=16)),
    "gemma2": (
        "gemma2",
        _settings(
            head_dim=16, sliding_window=WINDOW, attn_logit_softcapping=2.0, final_logit_softcapping=3.0, query_pre_attn_scalar=24
        ),
    ),
    "gemma3": (
        "gemma3_text",
        _settings(
            head_dim=16,
            query_pre_attn_scalar=24,
            rope_parameters={
                "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000.0},
            },
            **_MIXED,
        ),
    ),
    "gpt2": ("gpt2", _gpt()),
    "gpt2-layer-scale": ("gpt2", _gpt(scale_attn_by_inverse_layer_idx=True)),
    "gpt_neox": ("gpt_neox", _settings(num_key_value_heads=None)),
    "gpt_neox-sequential": ("gpt_neox", _settings(num_key_value_heads=None, use_parallel_residual=False)),
    "mistral": ("mistral", _settings(sliding_window=WINDOW)),
    "phi": ("phi", _settings(partial_rotary_factor=0.5, resid_pdrop=0, embd_pdrop=0, attention_dropout=0)),
    "phi3": ("phi3", _settings(sliding_window=WINDOW, resid_pdrop=0, embd_pdrop=0)),
    "olmo2": ("olmo2", _settings()),
    "olmo3": ("olmo3", _settings(**_MIXED)),
    "opt": ("opt", _settings(num_key_value_heads=None, ffn_dim=64, word_embed_proj_dim=32, init_std=0.2, dropout=0)),
    "granite": (
        "granite",
        _settings(embedding_multiplier=3.0, logits_scaling=4.0, residual_multiplier=0.5, attention_multiplier=0.3),
    ),
    "starcoder2": ("starcoder2", _settings(sliding_window=WINDOW, residual_dropout=0, embedding_dropout=0, attention_dropout=0)),
    "cohere": ("cohere", _settings(logit_scale=0.25)),
    "cohere2": ("cohere2", _settings(logit_scale=0.25, **_MIXED)),
    "smollm3": ("smollm3", _settings(no_rope_layers=[1, 0])),
    "glm4": ("glm4", _settings(head_dim=8)),
    "mixtral": ("mixtral", _settings(num_local_experts=4, num_experts_per_tok=2, sliding_window=WINDOW)),
    "qwen3-moe": ("qwen3_moe", _settings(head_dim=8, **_EXPERTS)),
    "deepseek-v3": (
        "deepseek_v3",
        _settings(
            num_key_value_heads=4,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_group=1,
            topk_group=1,
            moe_intermediate_size=16,
            first_k_dense_replace=1,
            **_LATENT,
        ),
    ),
}

# The text model inside one that also reads images: its settings are one level deeper.
TRIES["gemma3-images"] = (
    "gemma3",
    {
        "text_config": {"model_type": "gemma3_text"} | TRIES["gemma3"][1],
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        "mm_tokens_per_image": 1,
        "image_token_index": VOCABULARY - 1,
    },
)
# The last layers read the keys and values of earlier ones.
TRIES["gemma4"] = (
    "gemma4_text",
    _settings(
        head_dim=8,
        global_head_dim=8,
        num_hidden_layers=4,
        num_kv_shared_layers=2,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=VOCABULARY,
        final_logit_softcapping=3.0,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"] * 2,
    ),
)

# May be run over tries if the result is exact; else as separate sequences. Most have no attention that can be exchanged or that
# is told anything (StableLM), or a bias that depends on columns; the last three a window or chunks that only their mask knows of.
PERHAPS: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": (
        "bloom",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2, **_NO_DROPOUT},
    ),
    "codegen": ("codegen", _gpt(rotary_dim=4, n_ctx=POSITIONS)),
    "falcon": ("falcon", _settings(num_key_value_heads=None, **_NO_DROPOUT)),
    "falcon-alibi": ("falcon", _settings(num_key_value_heads=None, alibi=True, **_NO_DROPOUT)),
    "gpt-j": ("gptj", _gpt(rotary_dim=4)),
    "gpt-neo": (
        "gpt_neo",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": WINDOW,
            "max_position_embeddings": POSITIONS,
            "initializer_range": 0.2,
            "resid_dropout": 0,
            "embed_dropout": 0,
            "attention_dropout": 0,
        },
    ),
    "gpt-oss": ("gpt_oss", _settings(head_dim=8, num_local_experts=4, num_experts_per_tok=2, **_MIXED)),
    "mpt": (
        "mpt",
        {
            "vocab_size": VOCABULARY,
            "d_model": 32,
            "n_layers": 2,
            "n_heads": 4,
            "max_seq_len": POSITIONS,
            "initializer_range": 0.2,
        },
    ),
    "stablelm": ("stablelm", _settings(use_parallel_residual=True, qk_layernorm=True, **_NO_DROPOUT)),
    "llama4": (
        "llama4_text",
        _settings(
            head_dim=8,
            num_local_experts=2,
            num_experts_per_tok=1,
            attention_chunk_size=WINDOW,
            intermediate_size_mlp=32,
            no_rope_layers=[1, 0],
        ),
    ),
    "phimoe": ("phimoe", _settings(sliding_window=WINDOW, num_local_experts=4, num_experts_per_tok=2, attention_dropout=0)),
    "qwen2-moe": (
        "qwen2_moe",
        _settings(
            use_sliding_window=True,
            sliding_window=WINDOW,
            max_window_layers=1,
            shared_expert_intermediate_size=32,
            **_EXPERTS,
        ),
    ),
}

# Carry a state from token to token, in columns, whatever the mask says.
RECURRENT: dict[str, tuple[str, dict[str, Any]]] = {
    "falcon-h1": ("falcon_h1", _settings(head_dim=8, lm_head_multiplier=0.5, mamba_d_ssm=64, **_MAMBA)),
    "jamba": (
        "jamba",
        _settings(
            attn_layer_period=2,
            attn_layer_offset=1,
            expert_layer_period=2,
            expert_layer_offset=1,
            num_experts=2,
            mamba_d_state=4,
            mamba_dt_rank=4,
            use_mamba_kernels=False,
        ),
    ),
    "lfm2": ("lfm2", _settings(layer_types=["conv", "full_attention"], conv_L_cache=3, block_auto_adjust_ff_dim=False)),
    "mamba": ("mamba", _settings(num_key_value_heads=None, state_size=4)),
    "mamba2": ("mamba2", _settings(num_heads=8, head_dim=8, state_size=4, n_groups=1)),
    "minimax": (
        "minimax",
        _settings(
            head_dim=8,
            num_local_experts=2,
            num_experts_per_tok=1,
            layer_types=["linear_attention", "full_attention"],
            block_size=WINDOW,
        ),
    ),
    "qwen3-next": (
        "qwen3_next",
        _settings(
            head_dim=8,
            linear_num_key_heads=2,
            linear_num_value_heads=2,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            shared_expert_intermediate_size=32,
            layer_types=["linear_attention", "full_attention"],
            **_EXPERTS,
        ),
    ),
    "recurrent-gemma": (
        "recurrent_gemma",
        _settings(
            head_dim=8, lru_width=32, attention_window_size=WINDOW, logits_soft_cap=2.0, block_types=["recurrent", "attention"]
        ),
    ),
    "rwkv": ("rwkv", {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "context_length": POSITIONS}),
}

FAMILIES = TRIES | PERHAPS | RECURRENT

# Do something to their logits that is not known here: HyperCLOVAX multiplies where all others divide.
UNKNOWN_HEADS: dict[str, tuple[str, dict[str, Any]]] = {"hyperclovax": ("hyperclovax", _settings(logits_scaling=0.5))}


def build(family: str, **changes: Any) -> Any:
    """Return a model of a family as it begins: random weights, the same ones every time; in evaluation mode."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, settings = (FAMILIES | UNKNOWN_HEADS)[family]
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings | changes)).eval()


def make(family: str, **changes: Any) -> Any:
    """Return such a model with norms, biases and what else begins at a constant moved from it, so that none can be forgotten."""
    model = build(family, **changes)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim == 1:
                weights += 0.1 * torch.randn_like(weights)
    return model
