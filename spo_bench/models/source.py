"""Where a model's files are, and what they are by content. No heavy import: planning uses this."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spo_bench.errors import InputError
from spo_bench.files import fingerprint, read_json
from spo_bench.store.artifacts import HashCache

EMBEDDED = "embedded"
# Parts of the names of architectures with a head that continues a text; the last also read images.
CAUSAL = ("CausalLM", "LMHead", "ForConditionalGeneration")
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt", "merges.txt"),
    *("added_tokens.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json"),
)
# Of tokenizer_config.json only what changes token ids: the file also records paths and library versions.
TOKENIZER_KEYS = (
    *(
        "tokenizer_class",
        "bos_token",
        "eos_token",
        "unk_token",
        "pad_token",
        "add_bos_token",
        "add_eos_token",
        "add_prefix_space",
    ),
    *("chat_template", "clean_up_tokenization_spaces", "do_lower_case", "model_max_length"),
)


def resolve(name: str, revision: str | None = None, offline: bool = False, with_code: bool = False) -> Path:
    """Return the local directory of a model: the directory itself, or a hub id's snapshot.

    Raises:
        InputError: nothing is there, or the hub cannot be reached.
    """
    local = Path(name).expanduser()
    if local.is_dir():
        if not (local / "config.json").is_file() and not (local / "adapter_config.json").is_file():
            raise InputError(
                f"model directory '{name}' holds no config.json",
                "a model is an ordinary Hugging Face directory (config.json, tokenizer, *.safetensors)",
                "give the directory that save_pretrained wrote",
            )
        return local
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(
            f"model directory '{name}' is not there", "a path must exist", "check the path, or give a hub id such as org/name"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    # Weights as safetensors only: a pickle can run code.
    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", *(["*.py"] if with_code else [])]
    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=offline or _hub_offline())
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"model '{name}' is neither a local directory nor could it be fetched from the hub ({reason})",
            "a hub id needs a network and access, or an earlier download in the hub's cache",
            "check the name and the connection; or download it elsewhere and give the directory's path",
        ) from error


def _hub_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on")


def weights_identity(directory: Path, hashes: HashCache) -> dict[str, Any]:
    """Return what a model is by content: every safetensors file, what decides how they are run (architecture, end tokens,
    code that comes with it).

    Raises:
        InputError: there are no safetensors weights.
    """
    weights = sorted(directory.glob("*.safetensors"))
    if not weights:
        raise InputError(
            f"model directory '{directory}' holds no *.safetensors",
            "weights are read as safetensors only, because other formats can run code when loaded",
            "load the model once with transformers and call save_pretrained(directory)",
        )
    named = (directory / name for name in ("config.json", "adapter_config.json", "generation_config.json"))
    settings = [path for path in named if path.is_file()]
    return {path.name: hashes.hash(path) for path in [*settings, *sorted(directory.glob("*.py")), *weights]}


def weights_hash(directories: Sequence[Path], hashes: HashCache) -> str | None:
    """Return one SHA-256 of the weights in some directories (an adapter and what it sits on), None where there are none.

    Only weights count, file by file in the order of their names: the same policy has the same hash whatever library saved it.
    """
    files = [path for directory in directories for path in sorted(directory.glob("*.safetensors"))]
    return fingerprint(*(f"{path.name} {hashes.hash(path)}" for path in files)) if files else None


def model_identity(directory: Path, hashes: HashCache) -> dict[str, Any]:
    """Return what a model and its tokenizer are by content."""
    return {"weights": weights_identity(directory, hashes), "tokenizer": tokenizer_identity(directory, hashes)}


def layers_and_positions(directory: Path) -> tuple[int | None, int | None]:
    """Return a model's number of layers and of positions, as its config.json says; None where it does not."""
    config = read_json(directory / "config.json")
    layers = config.get("num_hidden_layers", config.get("n_layer"))
    positions = config.get("max_position_embeddings", config.get("n_positions"))
    return layers, positions


def check_policy(directory: Path) -> None:
    """Check that a model continues a text token by token. What comes with code of its own may.

    Raises:
        InputError: its config.json names an encoder, or an encoder with a decoder.
    """
    config = read_json(directory / "config.json")
    names = [str(name) for name in config.get("architectures") or []]
    if "AutoModelForCausalLM" in config.get("auto_map", {}):
        return
    if config.get("is_encoder_decoder") or (names and not any(part in name for name in names for part in CAUSAL)):
        what = "an encoder with a decoder" if config.get("is_encoder_decoder") else "no causal language model"
        raise InputError(
            f"model '{directory}' ({', '.join(names) or config.get('model_type')}) is {what}",
            "a policy continues a text token by token: a decoder alone, whose prompt and answer are one sequence",
            "give a causal language model (in config.json, architectures: [...ForCausalLM])",
        )


def check_reward_model(directory: Path) -> None:
    """Check that a model gives one number.

    Raises:
        InputError: its config.json names another number of outputs.
    """
    outputs = len(read_json(directory / "config.json").get("id2label", (0, 1)))  # two is the library's default, left unsaid
    if outputs != 1:
        raise InputError(
            f"'{directory}' has {outputs} outputs", "a reward model gives one number", "give a reward model (num_labels = 1)"
        )


def tokenizer_identity(directory: Path, hashes: HashCache) -> dict[str, Any]:
    """Return what a tokenizer is by content, its chat template included.

    Raises:
        InputError: there is no tokenizer in the directory.
    """
    found = {name: hashes.hash(directory / name) for name in TOKENIZER_FILES if (directory / name).is_file()}
    settings = directory / "tokenizer_config.json"
    if not found:
        raise InputError(
            f"'{directory}' holds no tokenizer",
            "a model directory brings its own tokenizer",
            "save it there with tokenizer.save_pretrained",
        )
    config = read_json(settings) if settings.is_file() else {}
    return {"files": found, "config": {key: config[key] for key in TOKENIZER_KEYS if key in config}}
