"""Where a model's files are, and what they are by content. No heavy import: planning uses this."""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from spo_bench.errors import InputError
from spo_bench.files import fingerprint, read_json
from spo_bench.models.known import known_config
from spo_bench.store.hashes import HashCache

EMBEDDED = "embedded"
INDEX = "model.safetensors.index.json"  # of weights in several files
HUB_PATIENCE = 10.0  # seconds for a question to the hub that fetches nothing
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
    return _here(name) or _snapshot(name, revision, offline, with_code)


def find(name: str, revision: str | None = None, offline: bool = False, with_code: bool = False) -> Path | None:
    """Return the local directory of a model as far as it is here, None for a hub id that could be fetched; fetches nothing.

    Raises:
        InputError: as ``resolve``.
    """
    if (local := _here(name)) is not None:
        return local
    try:
        return _snapshot(name, revision, True, with_code)
    except InputError:
        if offline or _hub_offline():
            raise
    from huggingface_hub import HfApi

    with _told(name):
        if HfApi().model_info(name, revision=revision, timeout=HUB_PATIENCE).gated:
            HfApi().auth_check(name)
    return None


def assumed_config(name: str, revision: str | None = None) -> dict[str, Any] | None:
    """Return the config by which a hub model can be planned that is not here; None for one that is. Nothing is fetched.

    It is its own config.json where that is in the hub's cache, else that of ``models.known``.

    Raises:
        InputError: a path where nothing is, or a hub id of which nothing is known.
    """
    if _here(name) is not None:
        return None
    with suppress(InputError):
        if any(_snapshot(name, revision, True, False).glob("*.safetensors")):
            return None
    from huggingface_hub import hf_hub_download

    with suppress(InputError), _told(name):
        return config_of(Path(hf_hub_download(name, "config.json", revision=revision, local_files_only=True)).parent)
    return known_config(name)


def _here(name: str) -> Path | None:
    """Return the local directory that a name is, None for a hub id."""
    local = Path(os.path.expanduser(name))  # unlike Path's, it passes over users whom nobody knows
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
    return None


def _snapshot(name: str, revision: str | None, offline: bool, with_code: bool) -> Path:
    from huggingface_hub import snapshot_download

    # Weights as safetensors only: a pickle can run code.
    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", *(["*.py"] if with_code else [])]
    with _told(name):
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=offline or _hub_offline())
        )


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Say of a hub id that could not be had what the hub's client says."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    # Its bases are the errors of the HTTP library below the client, whichever it is: a silent hub is told by these.
    failed: tuple[type[BaseException], ...] = (LocalEntryNotFoundError, HFValidationError, OSError, *HfHubHTTPError.__bases__)
    try:
        yield
    except failed as error:
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
    weights = weight_files(directory)
    named = (directory / name for name in ("config.json", "adapter_config.json", "generation_config.json"))
    settings = [path for path in named if path.is_file()]
    return {path.name: hashes.hash(path) for path in [*settings, *sorted(directory.glob("*.py")), *weights]}


def weight_files(directory: Path) -> list[Path]:
    """Return the safetensors files of a model or an adapter.

    Raises:
        InputError: there are none, or what would be loaded is another file.
    """
    weights = sorted(directory.glob("*.safetensors"))
    fault = "holds no *.safetensors" if not weights else _not_safe(directory, {path.name for path in weights})
    if fault:
        raise InputError(
            f"model directory '{directory}' {fault}",
            "weights are read as safetensors only, because other formats can run code when loaded",
            "load the model once with transformers and call save_pretrained(directory)",
        )
    return weights


def is_adapter(directory: Path) -> bool:
    """Say whether a directory holds an adapter, which the libraries take before any full weights beside it."""
    return (directory / "adapter_config.json").is_file()


def _not_safe(directory: Path, weights: Collection[str]) -> str:
    """Return why the file that the libraries would load is none of the safetensors files, nothing where it is one."""
    if is_adapter(directory):
        wanted: Sequence[str] = ("adapter_model.safetensors",)
    else:
        named = config_of(directory).get("transformers_weights")
        wanted = (str(named),) if named is not None else ("model.safetensors", INDEX)
    there = next((name for name in wanted if (directory / name).is_file()), "")
    if Path(there).name != there or not there.endswith((".safetensors", ".safetensors.index.json")):
        return f"holds no {' or '.join(wanted)} of its own"
    if there in weights:
        return ""
    strange = sorted(name for name in _parts(directory / there) if Path(name).name != name or not name.endswith(".safetensors"))
    return f"has an index of weights that names {reprlib.repr(strange[0])}" if strange else ""


def _parts(index: Path) -> set[str]:
    """Return the files that an index of weights names; raises InputError where it cannot be read."""
    try:
        return {str(name) for name in read_json(index)["weight_map"].values()}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise InputError(
            f"the weights in '{index.parent}' are not whole: {index.name} cannot be read",
            "every file of a model is there as it was saved",
            "download or copy the model again",
        ) from None


def check_weights(directory: Path) -> None:
    """Check that the weights of a model are whole, without reading them: no file is missing, or shorter than its header says.

    Raises:
        InputError: there are none, or some are not whole.
    """
    files = weight_files(directory)
    wanted = _parts(directory / INDEX) if (directory / INDEX).is_file() else ()
    faults = [f"{name} is missing" for name in sorted(wanted) if not (directory / name).is_file()]
    faults += [fault for path in files if (fault := _cut(path)) is not None]
    if faults:
        raise InputError(
            f"the weights in '{directory}' are not whole: {', '.join(faults)}",
            "every file of a model is there as it was saved",
            "download or copy the model again",
        )


def _cut(path: Path) -> str | None:
    """Return what is wrong with the length of a safetensors file, None where it is as its header says."""
    size = path.stat().st_size
    try:
        start, header = weights_header(path)
        end = start + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, TypeError, KeyError, IndexError):
        return f"the header of {path.name} cannot be read"
    return None if size == end else f"{path.name} has {size:,} bytes of {end:,}"


def weights_header(path: Path) -> tuple[int, dict[str, Any]]:
    """Return (where the values begin, tensor name -> its entry) of a safetensors file: 8 bytes of length, then JSON.

    Raises:
        ValueError: it is none.
    """
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError(f"{path} has no header")
        header: dict[str, Any] = json.loads(handle.read(length))
    return 8 + length, {name: entry for name, entry in header.items() if name != "__metadata__"}


def weights_hash(directories: Sequence[Path], hashes: HashCache) -> str | None:
    """Return one SHA-256 of the weights in some directories (an adapter and what it sits on), None where there are none.

    Only weights count, file by file in the order of their names: the same policy has the same hash whatever library saved it.
    """
    files = [path for directory in directories for path in hashes.weights(directory)]
    return fingerprint(*(f"{path.name} {hashes.hash(path)}" for path in files)) if files else None


def model_identity(directory: Path, hashes: HashCache) -> dict[str, Any]:
    """Return what a model and its tokenizer are by content."""
    return {"weights": weights_identity(directory, hashes), "tokenizer": tokenizer_identity(directory, hashes)}


def config_of(directory: Path) -> dict[str, Any]:
    """Return the config.json of a model.

    Raises:
        InputError: it is no JSON object.
    """
    try:
        found = read_json(directory / "config.json")
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}")
    except (OSError, ValueError) as error:
        raise InputError(
            f"'{directory / 'config.json'}' cannot be read ({error})",
            "a model's config.json is a JSON object",
            "download or copy the model again",
        ) from error
    return found


def layers_and_positions(directory: Path) -> tuple[int | None, int | None]:
    """Return a model's number of layers and of positions, as its config.json says; None where it does not."""
    config = config_of(directory)
    layers = config.get("num_hidden_layers", config.get("n_layer"))
    positions = config.get("max_position_embeddings", config.get("n_positions"))
    return layers, positions


def check_policy(directory: Path) -> None:
    """Check that a model continues a text token by token. What comes with code of its own may.

    Raises:
        InputError: it is an adapter, or its config.json names an encoder, or an encoder with a decoder.
    """
    check_whole(directory)
    config = config_of(directory)
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


def check_whole(directory: Path) -> None:
    """Refuse an adapter where a model is asked for: it would bring weights that its own settings name, from wherever."""
    if is_adapter(directory):
        raise InputError(
            f"'{directory}' is an adapter (it holds adapter_config.json)",
            "a model is given by its full weights; an adapter stands beside them",
            "give the weights it sits on, and for a policy the adapter as {path: ..., adapter: ...}",
        )


def check_architecture(directory: Path, trusted: bool) -> None:
    """Check that the installed transformers knows an architecture, or that code that comes with it may run.

    Raises:
        InputError: neither is so.
    """
    config = config_of(directory)
    kind = config.get("model_type")
    brought = "auto_map" in config
    if kind is None or (brought and trusted):
        return
    from transformers import CONFIG_MAPPING
    from transformers import __version__ as installed

    if kind in CONFIG_MAPPING:
        return
    given = f"model '{directory}' is of the architecture '{kind}', which transformers {installed} does not know"
    if brought:
        given += "; it comes with code of its own"
        raise InputError(given, "such code runs for trusted policies only", "set trust_remote_code for it, or choose another")
    raise InputError(given, "transformers builds the model", "upgrade transformers, or choose another model")


def check_reward_model(directory: Path) -> None:
    """Check that a model gives one number.

    Raises:
        InputError: it is an adapter, or its config.json names another number of outputs.
    """
    check_whole(directory)
    outputs = len(config_of(directory).get("id2label", (0, 1)))  # two is the library's default, left unsaid
    if outputs != 1:
        raise InputError(
            f"'{directory}' has {outputs} outputs", "a reward model gives one number", "give a reward model (num_labels = 1)"
        )


def tokenizer_identity(directory: Path, hashes: HashCache) -> dict[str, Any]:
    """Return what a tokenizer is by content, its chat template included.

    Raises:
        InputError: there is no tokenizer in the directory.
    """
    found = {path.name: hashes.hash(path) for path in tokenizer_files(directory)}
    settings = directory / "tokenizer_config.json"
    config = read_json(settings) if settings.is_file() else {}
    return {"files": found, "config": {key: config[key] for key in TOKENIZER_KEYS if key in config}}


def tokenizer_files(directory: Path) -> list[Path]:
    """Return the files of the tokenizer in a model directory.

    Raises:
        InputError: there is none.
    """
    found = [directory / name for name in TOKENIZER_FILES if (directory / name).is_file()]
    if not found:
        raise InputError(
            f"'{directory}' holds no tokenizer",
            "a model directory brings its own tokenizer",
            "save it there with tokenizer.save_pretrained",
        )
    return found
