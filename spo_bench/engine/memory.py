"""How much memory a stage takes at its peak, estimated before it runs. No heavy import: planning uses this.

The estimate is rough (compare it with ``peak_memory`` of a training) and is there to decide what may run side by side; what a
stage takes at the least is what can be said for sure, and is there to refuse what can never run:

- a process that has loaded its libraries: ``PROCESS``, with CUDA ``CUDA_PROCESS`` and a context on the device;
- a row of the data: ``ROW`` bytes as it is read, ``COPIES`` more with its degraded copies;
- a model that is only run: its weights, in the type they are held in, on each device;
- a model that is trained fully: weights, gradients and AdamW's two moments, 16 bytes a parameter in fp32; under an adapter the
  weights as they are held, and 16 bytes a parameter of the adapter;
- trained on its own answers, or with a reference that follows it: the trained weights once more; and the weights of whom ranks
  its answers;
- activations of one forward pass: of ``micro_tokens`` tokens, or of the longest row, which stands alone where it is longer; kept
  for the backward pass in training, a token and layer ``12 width + 4 inner`` numbers (inputs and outputs of norms and
  projections; gate, up, activation and their product), of one layer alone where they are computed twice or not kept;
- generation, also between the steps of a training on the policy's own answers: keys and values of all answers under way, as they
  are held, within ``CACHE_BYTES``; vLLM takes what there is, so it runs alone;
- logits: a few buffers of one chunk.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from spo_bench.engine.free import INFINITE, Need, gpu_size
from spo_bench.files import read_json, read_jsonl
from spo_bench.models.embedded import ARCHITECTURE, vocabulary
from spo_bench.models.numerics import cache_shape
from spo_bench.models.source import weights_header
from spo_bench.stages.base import Stage, plain_data
from spo_bench.stages.registry import SHARDED, devices
from spo_bench.store.artifacts import Store
from spo_bench.task import SPLITS

GIB = 2**30
PROCESS = 0.5 * GIB
CUDA_PROCESS = 3 * GIB
LOGITS = 0.25 * GIB
ROW, COPIES = 12 * 2**10, 5 * 2**10
BYTES = {"float32": 4, "bfloat16": 2}
TRAINED = 16  # bytes a trained parameter: value, gradient, two moments
TRAINING = ("train", "sft", "reward_model")
TIED = ("gpt2", "gemma", "gemma2", "gemma3", "gemma3_text", "opt", "bloom")  # whose embeddings are the head unless said otherwise
ROWWISE = ("train", "sft", "reward_model", "reference", "mismatched", "explored", "score")  # these never split a row
FORWARD_TOKENS = 4096  # of stages whose config has no budget: reward models and judges
READ = 64 * 2**20  # bytes of rows that are looked through for the longest one; more take too long before a start


@dataclass(frozen=True)
class Size:
    """What of a model decides its memory and its arithmetic.

    Attributes:
        parameters, layers: how many it has.
        width, inner, keys: of a layer: hidden, feed-forward, keys.
        head: parameters of the head over the vocabulary; 0 where it has none, or the config does not say.
        looked_up: parameters that are looked up and multiply nothing: embeddings that are not the head too.
    """

    parameters: int
    layers: int
    width: int
    inner: int
    keys: int
    head: int = 0
    looked_up: int = 0


def estimate(stage: Stage, store: Store | None = None, least: bool = False, count: int | None = None) -> Need:
    """Return the peak memory of a stage, roughly.

    Args:
        stage: any.
        store: where its inputs are looked at as far as they are there; None: only its settings are known.
        least: what it takes however little goes through the model at once, in place of the peak.
        count: on how many devices; None: as many as it says. What is returned of a GPU is the peak of each.
    """
    count = count or devices(stage)
    kept = ROW + (COPIES if stage.kind == "copies" or "copies" in stage.inputs else 0)
    rows = 0 if least else kept * sum(count_rows(data, store) for data in _data_of(stage))
    model = model_of(stage)
    if "numerics" not in stage.config or model is None:
        return Need(PROCESS + rows)
    numerics = stage.config["numerics"]
    parts = count if stage.kind in SHARDED else 1
    weights, rest = _on_device(stage, size_of(model), store, least, parts)
    # On their way to the device, or before they are divided, weights lie in this machine's memory whole, for each process.
    whole = weights * parts
    if numerics["device"] == "cpu":
        return Need(count * (PROCESS + rows + max(weights + rest, whole)))
    return Need(count * (CUDA_PROCESS + rows + whole), PROCESS + weights + rest)


def idle_worker(gpus: Sequence[str]) -> Need:
    """Return what a worker process keeps that has nothing to do: also a context on each GPU."""
    return Need(CUDA_PROCESS, PROCESS) if gpus else Need(PROCESS)


def _on_device(stage: Stage, size: Size, store: Store | None, least: bool, parts: int) -> tuple[float, float]:
    """Return the bytes a stage's weights take where it computes, and all else there: gradients, moments, activations, caches."""
    config, numerics = stage.config, stage.config["numerics"]
    held, computed = BYTES[numerics["held"]], BYTES[numerics["dtype"]]
    number = (12 * size.width + 4 * size.inner) * computed
    settings = config.get("settings", config)
    tokens = _shortest_pass(stage, settings, store) if least else _longest_pass(stage, settings, store)
    logits = 0 if least else LOGITS
    weights = size.parameters * held / parts
    copy = size.parameters * computed / parts if computed < held else 0  # autocast keeps one in the compute type
    if stage.kind not in TRAINING:
        cache = _cache(size, computed, _data_length(stage), settings) if stage.kind == "generate" and not least else 0
        rest = logits + copy + tokens * number + cache
        if settings.get("backend") == "vllm" and not least:
            whole = gpu_size(str(stage.local.get("device", numerics["device"])))
            rest = max(rest, whole - weights if whole < INFINITE else 0)
        return weights, rest
    trained = trained_parameters(stage)
    learning = trained * TRAINED / parts - (0 if config.get("lora") else weights)
    if follows(stage):
        learning += trained * held / parts
    ranking = [size_of(stage.inputs[name]) for name in ("reward_model", "judge_model") if name in stage.inputs]
    learning += sum(one.parameters * BYTES["float32"] for one in ranking)
    kept = 1 if config["gradient_checkpointing"] else size.layers
    cache = _cache(size, computed, settings["max_length"], config["generate"]) if config.get("regime") and not least else 0
    return weights, logits + copy + learning + cache + tokens * (kept * number + size.layers * size.width * computed)


def _cache(size: Size, computed: int, prompt: int, settings: Mapping[str, Any]) -> int:
    """Return the bytes that keys and values of answers under way take."""
    token = size.layers * 2 * size.keys * computed
    rows, columns = cache_shape(settings["batch_size"], prompt + settings["max_new_tokens"], token)
    return rows * columns * token


# Rows.


def _data_of(stage: Stage) -> Iterator[Stage]:
    """Yield the data that a stage may hold."""
    if (own := plain_data(stage)) is not None:
        yield own
    yield from (source for name, source in stage.inputs.items() if name.startswith("data:"))


def count_rows(data: Stage, store: Store | None, splits: Collection[str] = SPLITS) -> int:
    """Return how many rows the data has in some splits, as counted or as asked for; 0 where nobody knows."""
    audit = data.path(store) / "audit.json" if store is not None and data.here(store) else None
    if audit is not None and audit.is_file():
        counted = read_json(audit)["splits"]
        return sum(int(counted[split]["kept"]) for split in splits)
    return sum(data.config["limit"][split] or 0 for split in splits)


def _shortest_pass(stage: Stage, settings: Mapping[str, Any], store: Store | None) -> int:
    """Return how many tokens go through a model at once, at the least: a row, where it is known how long the longest is."""
    seen = _longest_row(stage, settings["packing"] == "trie", store) if stage.kind == "train" else None
    return seen or 1


def _longest_pass(stage: Stage, settings: Mapping[str, Any], store: Store | None) -> int:
    """Return how many tokens go through a model at once, at most: the budget, or a row that is longer."""
    length = int(settings.get("max_length") or stage.config.get("max_length") or 0)
    budget = int(settings.get("micro_tokens") or stage.config.get("micro_tokens") or FORWARD_TOKENS)
    if stage.kind not in ROWWISE:
        return max(budget, length)
    spo = stage.config.get("spo")
    copies = 0
    if spo is not None:
        copies = spo["settings"]["degrees"] * (2 if _are_answers(spo) else 1)
    answers = 1 if stage.kind == "sft" else _answers(stage.inputs.get("data"))
    further = ("greedy" in stage.inputs) + 2 * ("mismatched" in stage.inputs)
    bound = (max(answers, copies) if _are_answers(spo) else answers + copies) * length
    seen = _longest_row(stage, settings["packing"] == "trie", store) if stage.kind == "train" else None
    return max(budget, length, min(bound, seen or bound) + further * length)


def _are_answers(spo: Mapping[str, Any] | None) -> bool:
    """Say whether the copies of degree 0 are all the answers of a pair, so that these need not be counted once more."""
    return spo is not None and spo["settings"]["side"] == "both" and spo["settings"]["text"] == "dataset"


def _answers(data: Stage | None) -> int:
    """Return how many answers a row has: two, or as many as a list."""
    wanted = data.config.get("list") if data is not None else None
    return int(wanted["size"]) if wanted else 2


def _longest_row(stage: Stage, share: bool, store: Store | None) -> int | None:
    """Return the tokens of the longest training row, with its copies, from what is made already; None where that is too little.

    No prefix but the prompt counts as shared, so it is an upper bound for tries.
    """
    data, copies, spo = stage.inputs["data"], stage.inputs.get("copies"), stage.config.get("spo")
    if store is None or not data.here(store) or stage.config.get("regime"):
        return None
    path = data.path(store) / "train.jsonl"
    if not path.is_file() or path.stat().st_size > READ:
        return None
    made = copies.path(store) / "train.safetensors" if copies is not None else None
    if made is not None and not made.is_file():
        return None
    prompts, answers, counts = _lengths(str(path))
    if made is not None:
        import numpy as np

        more, tokens = _copy_lengths(str(made))
        together = np.maximum if _are_answers(spo) else np.add
        answers, counts = together(answers, tokens), together(counts, more)
    return int(((1 if share else counts) * prompts + answers).max(initial=0))


@lru_cache(maxsize=64)
def _lengths(path: str) -> tuple[Any, Any, Any]:
    """Return the tokens of each row's prompt and of its answers together, and how many answers it has; (rows,) each."""
    import numpy as np

    found = [
        (len(row["prompt_ids"]), sum(map(len, answers)), len(answers))
        for row in read_jsonl(Path(path))
        for answers in [[row["chosen_ids"], row["rejected_ids"], *row.get("between_ids", ())]]
    ]
    prompts, answers, counts = np.asarray(found, dtype=np.int64).reshape(-1, 3).T
    return prompts, answers, counts


@lru_cache(maxsize=64)
def _copy_lengths(path: str) -> tuple[Any, Any]:
    """Return how many copies each row has, and their tokens together; (rows,) each."""
    import numpy as np
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as stored:
        lengths, counts = (stored.get_tensor(name).astype(np.int64) for name in ("lengths", "counts"))
    ends = np.cumsum(counts)
    summed = np.concatenate([[0], np.cumsum(lengths)])
    return counts, summed[ends] - summed[ends - counts]


def _data_length(stage: Stage) -> int:
    data = stage.inputs.get("data")
    return int(data.config["max_length"]) if data is not None else 0


# Models.


def trained_parameters(stage: Stage) -> int:
    """Return how many parameters a stage trains; 0 where it trains none.

    Of an adapter, as if it were on all linear layers of a gated model: an upper bound for fewer.
    """
    model = model_of(stage)
    if stage.kind not in TRAINING or model is None:
        return 0
    size, lora = size_of(model), stage.config.get("lora")
    if not lora:
        return size.parameters
    attention, feed_forward = 4 * 2 * size.width, 3 * (size.width + size.inner)
    return int(lora["rank"]) * size.layers * (attention + feed_forward)


def follows(stage: Stage) -> bool:
    """Say whether a training holds its trained weights once more, as the reference of its own time."""
    return bool(stage.config.get("regime")) or "ref_sync" in stage.config.get("additions", {})


def model_of(stage: Stage) -> Stage | None:
    """Return the model that a stage runs or trains, None where it runs none; to others `model` is a tokenizer."""
    if stage.kind == "model":
        return stage
    if stage.kind == "score" and "policy" not in stage.inputs:
        return None
    policies = ("model",) if stage.kind == "sft" else ("policy", "base")
    first = ("judge_model", "reward_model", "labeller")
    names = (*policies, *first) if stage.kind in ("train", "reward_model") else (*first, *policies)
    return next((stage.inputs[name] for name in names if name in stage.inputs), None)


def size_of(stage: Stage) -> Size:
    """Return the size of a model: as it lies on disk, or that of the model it was made from."""
    if stage.kind == "model":
        if "embedded" in stage.config:
            return _embedded()
        if "assumed" in stage.local:
            return _from_config(stage.local["config"], None)
        directory = str(stage.local.get("directory") or stage.local["base"])
        try:
            changed = os.stat(f"{directory}/config.json").st_mtime_ns
        except OSError:
            changed = 0
        return _on_disk(directory, changed)
    source = stage.inputs.get("model" if stage.kind == "sft" else "policy")
    return size_of(source) if source is not None else NO_MODEL


def origin(stage: Stage) -> Path | None:
    """Return the directory of the model on disk that a model was made from, None for the embedded one."""
    while stage.kind != "model":
        source = stage.inputs.get("model" if stage.kind == "sft" else "policy")
        if source is None:
            return None
        stage = source
    directory = stage.local.get("directory") or stage.local.get("base")
    return Path(directory) if directory is not None else None


NO_MODEL = Size(0, 0, 0, 0, 0)


@lru_cache(maxsize=1)
def _embedded() -> Size:
    return _from_config({**ARCHITECTURE, "vocab_size": len(vocabulary())}, None)


@lru_cache(maxsize=256)
def _on_disk(name: str, changed: int) -> Size:
    """Return the size of a model directory; ``changed`` makes an edited one be read anew.

    An estimate refuses nothing: where the config cannot be read, the bytes of the files remain.
    """
    directory = Path(name)
    try:
        return _from_config(read_json(directory / "config.json"), directory)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return Size(_by_bytes(directory), 0, 0, 0, 0)


def _from_config(config: Mapping[str, Any], directory: Path | None) -> Size:
    config = {**config, **(config.get("text_config") or {})}

    def first(*names: str, default: int = 0) -> int:
        return int(next((config[name] for name in names if config.get(name)), default))

    width = first("hidden_size", "n_embd", "d_model", "dim")
    layers = first("num_hidden_layers", "n_layer", "num_layers")
    inner = first("intermediate_size", "n_inner", "ffn_dim", "d_ff", default=4 * width)
    heads = first("num_attention_heads", "n_head", default=1)
    keys = first("num_key_value_heads", default=heads) * first("head_dim", default=width // heads)
    words, tied = first("vocab_size") * width, bool(config.get("tie_word_embeddings", config.get("model_type") in TIED))
    if directory is None:
        queries = heads * first("head_dim", default=width // heads)
        matrices = layers * (2 * width * queries + 2 * width * keys + 3 * width * inner)
        parameters = first("parameters", default=matrices + words * (1 if tied else 2))
    else:
        parameters = sum(_count(path) for path in directory.glob("*.safetensors")) or _by_bytes(directory)
    head = int(config.get("head_parameters", words))
    return Size(parameters, layers, width, inner, keys, head, 0 if tied and head else words)


def _by_bytes(directory: Path) -> int:
    """Return how many parameters the files of a model hold if each takes two bytes, as in most that are published."""
    files = [*directory.glob("*.safetensors"), *directory.glob("*.bin")]
    return sum(path.stat().st_size for path in files) // 2


def _count(path: Path) -> int:
    """Return the number of values in a safetensors file."""
    return sum(prod(entry["shape"]) for entry in weights_header(path)[1].values())
