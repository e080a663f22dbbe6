"""How much memory a stage takes at its peak, estimated before it runs, and how much is free. No heavy import: planning uses this.

The estimate is rough (compare it with ``peak_memory`` of a training) and is there to decide what may run side by side:

- a process that has loaded its libraries: ``PROCESS``;
- a model that is only run: its weights, in the type they are held in;
- a model that is trained fully: weights, gradients and AdamW's two moments, 16 bytes a parameter in fp32; under an adapter the
  weights as they are held, and 16 bytes a parameter of the adapter;
- trained on its own answers, or with a reference that follows it: the trained weights once more;
- activations of one forward pass of ``micro_tokens`` tokens: kept for the backward pass in training, a token and layer
  ``12 width + 4 inner`` numbers (inputs and outputs of norms and projections; gate, up, activation and their product), of one
  layer alone where they are computed twice or not kept;
- generation: keys and values of a whole batch at its longest;
- logits: a few buffers of one chunk.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from spo_bench.files import read_json
from spo_bench.models.embedded import ARCHITECTURE, vocabulary
from spo_bench.models.numerics import CACHE_TOKENS
from spo_bench.stages.base import Stage

GIB = 2**30
PROCESS = 0.5 * GIB
LOGITS = 0.25 * GIB
BYTES = {"float32": 4, "bfloat16": 2}
TRAINED = 16  # bytes a trained parameter: value, gradient, two moments
TRAINING = ("train", "sft", "reward_model")
FORWARD_TOKENS = 4096  # of stages whose config has no budget: reward models and judges


@dataclass(frozen=True)
class Size:
    """What of a model decides its memory: its parameters, its layers, and a layer's widths (hidden, feed-forward, keys)."""

    parameters: int
    layers: int
    width: int
    inner: int
    keys: int


def estimate(stage: Stage) -> float:
    """Return the peak memory of a stage in bytes, roughly."""
    size = _size(stage) if "numerics" in stage.config else None
    if size is None:
        return PROCESS
    config, numerics = stage.config, stage.config["numerics"]
    held, computed = BYTES[numerics["held"]], BYTES[numerics["dtype"]]
    weights = size.parameters * (held + (computed if computed < held else 0))  # autocast keeps a copy in the compute type
    number = (12 * size.width + 4 * size.inner) * computed
    settings = config.get("settings", config)
    tokens = _longest_pass(config, settings)
    if stage.kind not in TRAINING:
        cache = 0
        if stage.kind == "generate":
            longest = _data_length(stage) + settings["max_new_tokens"]
            cache = min(settings["batch_size"] * longest, max(longest, CACHE_TOKENS)) * size.layers * 2 * size.keys * computed
        return PROCESS + LOGITS + weights + tokens * number + cache
    trained = size.parameters
    if config.get("lora"):
        trained = _adapter(size, config["lora"])
    else:
        weights -= size.parameters * held  # counted with what is trained
    weights += trained * TRAINED
    if config.get("regime") or "ref_sync" in config.get("additions", {}):
        weights += trained * held
    kept = 1 if config["gradient_checkpointing"] else size.layers
    return PROCESS + LOGITS + weights + tokens * (kept * number + size.layers * size.width * computed)


def _longest_pass(config: Mapping[str, Any], settings: Mapping[str, Any]) -> int:
    """Return how many tokens go through a model at once, at most."""
    budget = settings.get("micro_tokens") or config.get("micro_tokens") or FORWARD_TOKENS
    return max(int(budget), int(settings.get("max_length") or config.get("max_length") or 0))


def _data_length(stage: Stage) -> int:
    data = stage.inputs.get("data")
    return int(data.config["max_length"]) if data is not None else 0


def _adapter(size: Size, lora: Mapping[str, Any]) -> int:
    """Return the parameters of an adapter on all linear layers of a gated model; an upper bound for fewer."""
    attention, feed_forward = 4 * 2 * size.width, 3 * (size.width + size.inner)
    return int(lora["rank"]) * size.layers * (attention + feed_forward)


@lru_cache(maxsize=1 << 16)
def _size(stage: Stage) -> Size | None:
    """Return the size of the model a stage runs: of the largest where it runs several one after the other."""
    if stage.kind == "model":
        if "embedded" in stage.config:
            return _from_config({**ARCHITECTURE, "vocab_size": len(vocabulary())}, None)
        directory = Path(stage.local.get("directory") or stage.local["base"])
        return _on_disk(directory, (directory / "config.json").stat().st_mtime_ns)
    sources = [one for name, one in stage.inputs.items() if one.kind in ("model", *TRAINING)]
    sizes = [size for source in sources if (size := _size(source)) is not None]
    return max(sizes, key=lambda size: size.parameters, default=None)


@lru_cache(maxsize=256)
def _on_disk(directory: Path, changed: int) -> Size:
    """Return the size of a model directory; ``changed`` makes an edited one be read anew."""
    return _from_config(read_json(directory / "config.json"), directory)


def _from_config(config: Mapping[str, Any], directory: Path | None) -> Size:
    config = {**config, **config.get("text_config", {})}

    def first(*names: str, default: int = 0) -> int:
        return int(next((config[name] for name in names if config.get(name)), default))

    width = first("hidden_size", "n_embd", "d_model", "dim")
    layers = first("num_hidden_layers", "n_layer", "num_layers")
    inner = first("intermediate_size", "n_inner", "ffn_dim", "d_ff", default=4 * width)
    heads = first("num_attention_heads", "n_head", default=1)
    keys = first("num_key_value_heads", default=heads) * first("head_dim", default=width // heads)
    if directory is None:
        parameters = layers * (2 * width * width + 2 * width * keys + 3 * width * inner) + first("vocab_size") * width
    else:
        parameters = sum(_count(path) for path in directory.glob("*.safetensors"))
    return Size(parameters, layers, width, inner, keys)


def _count(path: Path) -> int:
    """Return the number of values in a safetensors file, from its header: 8 bytes of length, then JSON."""
    with path.open("rb") as handle:
        header = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
    return sum(prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def free_memory(device: str) -> float:
    """Return the free bytes of what stages fill: this machine's memory, or that of a CUDA device; infinite where nobody says."""
    if device.startswith("cuda"):
        return _free_on_gpu(device.partition(":")[2] or "0")
    return min(_available(), _left_in_group())


def _available() -> float:
    """Return what Linux could give to new processes."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return float("inf")
    return next((int(line.split()[1]) * 1024.0 for line in lines if line.startswith("MemAvailable")), float("inf"))


def _left_in_group() -> float:
    """Return what the limit of this container leaves (control groups, version 2 or 1)."""
    root = Path("/sys/fs/cgroup")
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            return float((root / limit).read_text()) - float((root / used).read_text())
        except (OSError, ValueError):  # not this version, or "max": no limit
            continue
    return float("inf")


def _free_on_gpu(index: str) -> float:
    """Return the free bytes of a GPU, as its driver's own tool says."""
    command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits", "-i", index]
    try:
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]) * 2**20  # noqa: S603
    except (OSError, subprocess.CalledProcessError, ValueError, IndexError):
        return float("inf")
