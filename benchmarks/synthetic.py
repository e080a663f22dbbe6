"""Models with random weights and rows of synthetic words, for machines that have no data: sizes and lengths are of real ones."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from own_side import Record
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from spo_bench.models.chat import completion_ids
from spo_bench.models.numerics import Numerics
from spo_bench.spo.keywords import STOPWORDS

# 1B: the sizes of Llama 3.2 1B; 7B: those of Mistral 7B, a Llama in all but its window. The others are for checks.
LLAMAS: Mapping[str, Mapping[str, Any]] = {
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
    | {"num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True},
    "7B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
    | {"num_key_value_heads": 8, "vocab_size": 32000},
    "small": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4, "num_attention_heads": 8}
    | {"num_key_value_heads": 4, "vocab_size": 32000},
    "tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"num_key_value_heads": 2, "vocab_size": 512},
}
# Tokens of prompt, chosen and rejected at LEVELS of their distributions, by the tokenizer and template of SmolLM2-135M-Instruct.
# hh: 1,250 usable rows of Anthropic's hh-rlhf, harmless-base, test split. tldr: 248 pairs of news summaries with human
# preferences (Zhang et al. 2023, Benchmarking LLMs for News Summarization), prompts that end with "TL;DR:". tiny: made up.
LEVELS = (0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1)
LENGTHS: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "hh": {
        "prompt": (33, 38, 40, 55, 122, 197, 303, 386, 880),
        "chosen": (2, 7, 9, 15, 27, 50, 88, 116, 259),
        "rejected": (2, 7, 10, 17, 35, 64, 105, 137, 557),
    },
    "tldr": {
        "prompt": (364, 528, 535, 624, 963, 1284, 1719, 1949, 2160),
        "chosen": (33, 41, 51, 58, 63, 70, 82, 85, 105),
        "rejected": (33, 38, 43, 51, 60, 64, 75, 84, 105),
    },
    "tiny": {
        "prompt": (4, 4, 5, 6, 8, 10, 12, 14, 16),
        "chosen": (4, 5, 6, 8, 10, 12, 14, 16, 20),
        "rejected": (4, 5, 6, 8, 10, 12, 14, 16, 20),
    },
}
SHARES = (0.5, 0.1)  # of stop words and of full stops among the words, so that key content is cut into phrases
WORDS = 200  # different stop words; all other words are content


@cache
def word_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer with a token a word: an end token, a full stop, stop words, and w0, w1, … for all others."""
    words = ["<end>", "<unknown>", ".", *sorted(STOPWORDS)[:WORDS]]
    words += [f"w{i}" for i in range(vocabulary - len(words))]
    made = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unknown>"))
    made.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", pad_token="<end>", unk_token="<unknown>")


def make_model(kind: str, numerics: Numerics | None) -> tuple[Any, PreTrainedTokenizerFast]:
    """Return a Llama with random weights, the same at every call, and its tokenizer; without numerics no model, None."""
    tokenizer = word_tokenizer(LLAMAS[kind]["vocab_size"])
    if numerics is None:
        return None, tokenizer
    config = LlamaConfig(
        **LLAMAS[kind],
        max_position_embeddings=8192,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    with torch.device(numerics.device):  # made where it is used: a 7B model made on a CPU takes minutes
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, numerics.held), attn_implementation="sdpa")
    return model.eval(), tokenizer


def make_rows(tokenizer: PreTrainedTokenizerFast, lengths: str, count: int, seed: int = 0) -> list[Record]:
    """Return rows of synthetic words whose prompts and answers follow distributions of lengths (end token included).

    Each of the three lengths is taken evenly over its distribution, so that a few rows have the lengths of many, in an order of
    its own.
    """
    draw = np.random.default_rng(seed)
    levels = (np.arange(count) + 0.5) / count
    sizes = {
        name: draw.permutation(np.interp(levels, LEVELS, points)).round().astype(int) for name, points in LENGTHS[lengths].items()
    }
    stops, content = sorted(STOPWORDS)[:WORDS], len(tokenizer) - WORDS - 3

    def text(size: int) -> str:
        kinds = draw.random(size)
        words = [
            stops[draw.integers(WORDS)] if kind < SHARES[0] else "." if kind < sum(SHARES) else f"w{draw.integers(content)}"
            for kind in kinds
        ]
        return " ".join(words)

    rows: list[Record] = []
    for i in range(count):
        prompt = text(sizes["prompt"][i]) + " "  # so that what follows is a word of its own
        chosen, rejected = (text(max(2, sizes[name][i] - 1)) for name in ("chosen", "rejected"))
        row = {"id": f"row{i}", "prompt_text": prompt, "chosen": chosen, "rejected": rejected}
        ids = {"prompt_ids": tokenizer(prompt)["input_ids"]}
        ids |= {f"{side}_ids": completion_ids(tokenizer, row[side]) for side in ("chosen", "rejected")}
        rows.append({**row, **ids})
    return rows
