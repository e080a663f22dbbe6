"""Configs of well-known hub models, so that a plan can be made of them before they are here.

What stands here is what their config.json says, in its words, and the number of their parameters as the hub counts them. A model
that is here, or whose config.json the hub's cache holds, is planned by that; this table is for where neither is at hand.
"""

from __future__ import annotations

from typing import Any

from spo_bench.errors import InputError, suggestion

_NAMES = (
    *("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("vocab_size", "tie_word_embeddings", "parameters"),
)
# Models of one shape: (layers, width, feed-forward, heads, key-value heads, head width, vocabulary, tied, parameters) -> hub ids.
_SHAPES: dict[tuple[int, ...], tuple[str, ...]] = {
    (30, 576, 1536, 9, 3, 64, 49152, 1, 134_515_008): ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M-Instruct"),
    (32, 960, 2560, 15, 5, 64, 49152, 1, 361_821_120): ("HuggingFaceTB/SmolLM2-360M", "HuggingFaceTB/SmolLM2-360M-Instruct"),
    (24, 2048, 8192, 32, 32, 64, 49152, 1, 1_711_376_384): ("HuggingFaceTB/SmolLM2-1.7B", "HuggingFaceTB/SmolLM2-1.7B-Instruct"),
    (24, 896, 4864, 14, 2, 64, 151936, 1, 494_032_768): ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B-Instruct"),
    (28, 1536, 8960, 12, 2, 128, 151936, 1, 1_543_714_304): ("Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-1.5B-Instruct"),
    (36, 2048, 11008, 16, 2, 128, 151936, 1, 3_085_938_688): ("Qwen/Qwen2.5-3B", "Qwen/Qwen2.5-3B-Instruct"),
    (28, 3584, 18944, 28, 4, 128, 152064, 0, 7_615_616_512): ("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B-Instruct"),
    (48, 5120, 13824, 40, 8, 128, 152064, 0, 14_770_033_664): ("Qwen/Qwen2.5-14B", "Qwen/Qwen2.5-14B-Instruct"),
    (36, 4096, 12288, 32, 8, 128, 151936, 0, 8_190_735_360): ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B-Base"),
    (16, 2048, 8192, 32, 8, 64, 128256, 1, 1_235_814_400): ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B-Instruct"),
    (28, 3072, 8192, 24, 8, 128, 128256, 1, 3_212_749_824): ("meta-llama/Llama-3.2-3B", "meta-llama/Llama-3.2-3B-Instruct"),
    (32, 4096, 11008, 32, 32, 128, 32000, 0, 6_738_415_616): ("meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b-chat-hf"),
    (32, 4096, 14336, 32, 8, 128, 128256, 0, 8_030_261_248): (
        *("meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-8B-Instruct", "meta-llama/Llama-3.1-8B"),
        *("meta-llama/Llama-3.1-8B-Instruct", "princeton-nlp/Llama-3-Base-8B-SFT"),
    ),
    (32, 4096, 14336, 32, 8, 128, 32000, 0, 7_241_732_096): (
        *("mistralai/Mistral-7B-v0.1", "mistralai/Mistral-7B-Instruct-v0.1", "mistralai/Mistral-7B-Instruct-v0.2"),
        *("HuggingFaceH4/mistral-7b-sft-beta", "HuggingFaceH4/zephyr-7b-beta", "alignment-handbook/zephyr-7b-sft-full"),
    ),
    (32, 4096, 14336, 32, 8, 128, 32768, 0, 7_248_023_552): ("mistralai/Mistral-7B-v0.3", "mistralai/Mistral-7B-Instruct-v0.3"),
    (26, 2304, 9216, 8, 4, 256, 256000, 1, 2_614_341_888): ("google/gemma-2-2b", "google/gemma-2-2b-it"),
    (42, 3584, 14336, 16, 8, 256, 256000, 1, 9_241_705_984): ("google/gemma-2-9b", "google/gemma-2-9b-it"),
}
_CONFIGS: dict[str, dict[str, Any]] = {
    name: dict(zip(_NAMES, shape, strict=True)) for shape, names in _SHAPES.items() for name in names
}
# An encoder with one number for an output; its feed-forward has no gate, and its embeddings are only looked up.
_CONFIGS["OpenAssistant/reward-model-deberta-v3-large-v2"] = {
    "num_hidden_layers": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "vocab_size": 128100,
    "parameters": 435_062_785,
    "head_parameters": 0,
}
_BY_NAME = {name.lower(): config for name, config in _CONFIGS.items()}


def known_config(name: str) -> dict[str, Any]:
    """Return the config of a hub model, in the words of a config.json, with its number of ``parameters``.

    Raises:
        InputError: it is not in the table.
    """
    if (found := _BY_NAME.get(name.lower())) is not None:
        return found
    raise InputError(
        f"model '{name}' is not here, and its size is not known",
        "a plan fetches nothing: it needs a model's directory, its config.json in the hub's cache, or an id that it knows",
        f"`hf download {name} config.json`, or check the id: {suggestion(name, _CONFIGS)}",
    )
