"""Load and save policies: full weights or a peft adapter, always as ordinary Hugging Face directories."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from spo_bench.errors import InputError
from spo_bench.models.numerics import Numerics
from spo_bench.models.source import is_adapter, weight_files

disable_progress_bar()  # a run shows its own
set_verbosity_error()  # a fresh reward head is no news


def load_tokenizer(directory: Path, trust_remote_code: bool = False) -> Any:
    """Return the tokenizer of a model directory, with a padding token."""
    with own_code_refused(directory):
        tokenizer = AutoTokenizer.from_pretrained(  # a directory  # nosec B615
            str(directory), trust_remote_code=trust_remote_code
        )
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"the tokenizer of '{directory}' has no end token",
            "answers must be able to stop",
            "set eos_token and save the tokenizer again",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = tokenizer.eos_token_id
    return tokenizer


@contextmanager
def own_code_refused(directory: Path) -> Iterator[None]:
    """Say how to allow it where a model can only be read by code that it brings, and which may not run.

    Raises:
        InputError: in place of the library's error.
    """
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise InputError(
            f"model '{directory}' can only be read by code of its own",
            "code that comes with a model runs only where the spec says so for this model",
            "read that code; if you trust it: {path: ..., trust_remote_code: true} under models",
        ) from error


def load_policy(directory: Path, numerics: Numerics, base: Path | None = None, trust_remote_code: bool = False) -> Any:
    """Load a causal language model for evaluation or as the start of training.

    Args:
        directory: full weights, or an adapter (then ``base`` says on what).
        numerics: device, compute type, and the type the weights are held in.
        base: directory of the weights an adapter sits on.
        trust_remote_code: whether the model's own code may run.

    Raises:
        InputError: an adapter without its base weights, weights that are not safetensors, or code that may not run.
    """
    adapter = is_adapter(directory)
    if adapter and (base is None or is_adapter(base)):
        raise InputError(
            f"'{directory}' is an adapter", "an adapter needs the weights it was trained on", "give its base model too"
        )
    weight_files(directory)  # peft has no way to be told that it must not read a pickle
    with own_code_refused(directory):
        model = AutoModelForCausalLM.from_pretrained(  # a directory  # nosec B615
            str(base if adapter else directory),
            dtype=getattr(torch, numerics.held),
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
        )
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(directory), autocast_adapter_dtype=True)
        # Merged into low precision, an update would be rounded away: there the adapter stays beside the weights, as in training.
        model = model.merge_and_unload() if numerics.held == "float32" else model
    return model.to(numerics.device).eval()


def add_lora(model: Any, settings: Mapping[str, Any], seed: int) -> Any:
    """Wrap a frozen model with a trainable LoRA adapter in fp32.

    Args:
        model: the frozen base.
        settings: rank, alpha, dropout, target_modules (names, or "all-linear").
        seed: of the adapter's initialisation; the same for a baseline and its twin.
    """
    from peft import LoraConfig, get_peft_model

    targets = settings["target_modules"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(
            model,
            LoraConfig(
                r=settings["rank"],
                lora_alpha=settings["alpha"],
                lora_dropout=settings["dropout"],
                target_modules=targets if isinstance(targets, str) else list(targets),
                task_type="CAUSAL_LM",
            ),
            autocast_adapter_dtype=True,
        )


def save_policy(model: Any, tokenizer: Any, directory: Path, weights: Mapping[str, Any] | None = None) -> None:
    """Save full weights or the adapter, and the tokenizer, so that ``from_pretrained`` opens the directory.

    Args:
        model, tokenizer: of the policy.
        directory: where to.
        weights: by name, where the model itself does not hold them whole.
    """
    model.save_pretrained(str(directory), safe_serialization=True, **({} if weights is None else {"state_dict": weights}))
    tokenizer.save_pretrained(str(directory))


def stop_tokens(directory: Path, tokenizer: Any) -> list[int]:
    """Return every token that ends an answer: the tokenizer's end token first, then the model's own list."""
    stops = [int(tokenizer.eos_token_id)]
    if (directory / "generation_config.json").is_file():
        listed = GenerationConfig.from_pretrained(str(directory)).eos_token_id  # a directory  # nosec B615
        stops += [] if listed is None else [listed] if isinstance(listed, int) else list(listed)
    return list(dict.fromkeys(stops))


def causal(model: Any) -> Any:
    """Return the causal language model itself, whatever adapter wraps it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
