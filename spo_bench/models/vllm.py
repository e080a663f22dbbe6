"""Answers by vLLM, an engine for large policies on CUDA. It is an extra: nothing of it is imported before it is used."""

from __future__ import annotations

import gc
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from spo_bench.errors import InputError
from spo_bench.files import read_json
from spo_bench.models.numerics import Numerics

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what room for an adapter vLLM can be told to keep
OLDEST = (0, 19, 1)  # the first that goes together with transformers 5
SHARE, ROOM = 0.9, 0.95  # of the GPU's memory, and of what is free of it, that vLLM is given at most


def check(device: str, rank: int = 0) -> str:
    """Return the version that is installed; it can change numbers.

    Args:
        device: where the policy is to answer.
        rank: of the adapters that answer; 0: none do.

    Raises:
        InputError: vLLM is not installed or too old, the device is not the first GPU in sight, the one that it takes, or vLLM
            takes no adapter of that rank.
    """
    if device not in ("cuda", "cuda:0"):
        raise InputError(
            f"generate.backend vllm on device {device}",
            "vLLM answers on the first GPU in sight",
            "use --device cuda, with CUDA_VISIBLE_DEVICES for another GPU; or backend: transformers",
        )
    if rank > LORA_RANKS[-1]:
        raise InputError(
            f"generate.backend vllm with train.lora.rank {rank}",
            f"vLLM takes adapters up to rank {LORA_RANKS[-1]}",
            "lower the rank, or set backend: transformers",
        )
    try:
        found = version("vllm")
    except PackageNotFoundError:
        raise InputError(
            "generate.backend vllm without the package",
            "vLLM is an extra of spo-bench",
            "pip install 'spo-bench[vllm]', or set backend: transformers",
        ) from None
    if tuple(int(part) for part in re.findall(r"\d+", found)[:3]) < OLDEST:
        raise InputError(
            f"generate.backend vllm with vllm {found}",
            f"vLLM goes together with transformers 5 from {'.'.join(map(str, OLDEST))} on",
            "pip install --upgrade 'spo-bench[vllm]', or set backend: transformers",
        )
    return found


def sample(
    directory: Path,
    base: Path,
    prompts: Sequence[Sequence[int]],
    settings: Mapping[str, Any],
    stops: Sequence[int],
    seeds: Sequence[int],
    numerics: Numerics,
    trust_remote_code: bool = False,
) -> list[list[int]]:
    """Return the token ids of one answer a prompt, as ``sampling.sample`` does; the random numbers are vLLM's own.

    Args:
        directory: the policy: full weights, or an adapter.
        base: what an adapter sits on.
        prompts: token ids of the prompts.
        settings: max_new_tokens, temperature (0: greedy), top_p, batch_size (answers under way at once).
        stops: tokens that end an answer.
        seeds: one a prompt.
        numerics: device and compute type.
        trust_remote_code: whether the model's own code may run.

    Raises:
        InputError: see ``check``.
    """
    check(numerics.device)
    if not prompts:
        return []
    import torch
    from vllm import LLM, SamplingParams, TokensPrompt
    from vllm.lora.request import LoRARequest

    adapter = directory / "adapter_config.json"
    lora: dict[str, Any] = {}
    if adapter.is_file():
        rank = read_json(adapter)["r"]
        lora = {"enable_lora": True, "max_lora_rank": next(room for room in LORA_RANKS if room >= rank)}
    gc.collect()
    torch.cuda.empty_cache()  # what this process ran before must not be missing there
    free, whole = torch.cuda.mem_get_info()
    engine = LLM(
        model=str(base if lora else directory),
        dtype=numerics.dtype,
        load_format="safetensors",
        trust_remote_code=trust_remote_code,
        max_model_len=max(map(len, prompts)) + settings["max_new_tokens"],
        max_num_seqs=settings["batch_size"],
        gpu_memory_utilization=min(SHARE, ROOM * free / whole),
        skip_tokenizer_init=True,
        **lora,
    )
    try:
        found = engine.generate(
            [TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts],
            sampling_params=[
                SamplingParams(
                    max_tokens=settings["max_new_tokens"],
                    temperature=settings["temperature"],
                    top_p=settings["top_p"],
                    seed=seed,
                    # The end token is one of these; so the token that ended an answer is always its last one.
                    stop_token_ids=list(stops),
                    ignore_eos=True,
                    detokenize=False,
                )
                for seed in seeds
            ],
            use_tqdm=False,
            lora_request=LoRARequest("policy", 1, str(directory)) if lora else None,
        )
        return [list(one.outputs[0].token_ids) for one in found]
    finally:
        engine.llm_engine.engine_core.shutdown()  # it runs in a process of its own, which holds the GPU's memory until then
