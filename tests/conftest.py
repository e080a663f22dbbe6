"""What tests share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from endpoint import Endpoint, in_thread
from hypothesis import settings

# Before anything imports a hub client: nothing in a test may reach for the net.
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
settings.register_profile("fixed", derandomize=True, database=None, deadline=None)
settings.load_profile("fixed")
torch.set_num_threads(2)

SHARED = Path(__file__).resolve().parents[1].parent / "shared"
MODELS = ("llama", "gpt2", "gpt_neox", "qwen2")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data and the script that makes a real model; tests that use it carry the marker `real`."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"no real data: {SHARED} is not there")
    return SHARED


@pytest.fixture(scope="session")
def smollm2(shared: Path) -> Path:
    """A directory with SmolLM2-135M-Instruct; made once, kept between runs."""
    import subprocess

    directory = (
        Path(os.environ.get("SPO_BENCH_TEST_MODELS", Path.home() / ".cache" / "spo-bench-tests")) / "SmolLM2-135M-Instruct"
    )
    if not (directory / "model.safetensors").is_file():
        directory.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [sys.executable, str(shared / "bin" / "get-smollm2"), str(directory)], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"SmolLM2 cannot be made here: {done.stderr.strip().splitlines()[-1]}")
    return directory


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    """A scripted judge endpoint on this machine, with its key in JUDGE_KEY."""
    from judge_setup import SECRET

    monkeypatch.setenv("JUDGE_KEY", SECRET)
    with in_thread(Endpoint()) as serving:
        yield serving


def tiny_model(kind: str = "llama", vocabulary: int = 61, **changes):
    """A small randomly initialised causal language model of an architecture."""
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        GPTNeoXConfig,
        GPTNeoXForCausalLM,
        LlamaConfig,
        LlamaForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

    torch.manual_seed(0)
    rotary: dict = dict(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.2,
    )
    build = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**rotary, num_key_value_heads=2, **changes)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**rotary, num_key_value_heads=2, **changes)),
        "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**rotary, **changes)),
        "gpt2": lambda: GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocabulary,
                n_embd=32,
                n_layer=2,
                n_head=4,
                initializer_range=0.2,
                resid_pdrop=0,
                embd_pdrop=0,
                attn_pdrop=0,
                **changes,
            )
        ),
    }
    model = build[kind]()
    model.config._attn_implementation = "sdpa"
    return model.eval()
