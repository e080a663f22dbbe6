"""What the benchmarks measure with: the machine, its matmul rate, the arithmetic of a step, and things that take turns."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import multiprocessing
import platform
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spo_bench.engine.free import cores_here
from spo_bench.files import write_json
from spo_bench.training.loop import peak_memory, reset_peak_memory

LIBRARIES = ("torch", "transformers", "peft", "trl")
SQUARE = (2048, 2048, 2048)  # a product too large for a cache, which every library does well
GIB = 2**30

Shape = tuple[int, int, int]


def describe(device: str = "cpu") -> dict[str, Any]:
    """Return versions and hardware: Python, libraries, processor, cores, what it has for bf16; the GPU where one is used."""
    found = {"python": platform.python_version()}
    found |= {name: version(name) for name in LIBRARIES if importlib.util.find_spec(name)}
    info = Path("/proc/cpuinfo")
    lines = [line.partition(":") for line in info.read_text(encoding="utf-8").splitlines()] if info.exists() else []
    facts = {name.strip(): value.strip() for name, _, value in reversed(lines)}
    flags = sorted(flag for flag in facts.get("flags", "").split() if flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16"))
    machine = {"processor": facts.get("model name", platform.processor()), "features": flags, "cores": cores_here()}
    if device.startswith("cuda"):
        machine |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return {"versions": found, "machine": machine}


def wait(device: str) -> None:
    """Wait until a device has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def seconds_of(action: Callable[[], object], device: str = "cpu") -> float:
    """Return the seconds an action takes on a device."""
    wait(device)
    started = time.perf_counter()
    action()
    wait(device)
    return time.perf_counter() - started


def alternate(things: Mapping[str, Callable[[], object]], rounds: int, device: str = "cpu") -> dict[str, list[float]]:
    """Run things in turn, so that a machine that slows down slows them all; return each one's seconds, (rounds,).

    One more round before those warms up and is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in things}
    for turn in range(rounds + 1):
        for name, thing in things.items():
            taken = seconds_of(thing, device)
            if turn:
                seconds[name].append(taken)
    return seconds


def matmul_rate(shapes: Sequence[Shape], dtype: str, device: str = "cpu", repeats: int = 3) -> dict[Shape, float]:
    """Return the rate of (m, k) @ (k, n) for each shape (m, k, n), in multiplications and additions a second, best of several."""
    rates = {}
    for shape in shapes:
        m, k, n = shape
        a, b = (torch.randn(size, dtype=getattr(torch, dtype), device=device) for size in ((m, k), (k, n)))
        out = a @ b
        best = min(seconds_of(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), device) for _ in range(repeats))  # type: ignore[misc]
        rates[shape] = 2 * m * k * n / best
    return rates


def products_of(model: Any, tokens: int, positions: int) -> Counter[Shape]:
    """Return the matrix products of a training step, forward and backward, with how often each occurs.

    Args:
        model: a Hugging Face causal language model, all of whose weights are trained.
        tokens: through the transformer, in one forward pass.
        positions: through the language-model head.
    """
    found: Counter[Shape] = Counter()
    for weight, rows in [*((weight, tokens) for weight in _matrices(model)), (model.get_output_embeddings().weight, positions)]:
        outputs, inputs = weight.shape
        found.update([(rows, inputs, outputs), (rows, outputs, inputs), (outputs, rows, inputs)])
    return found


def _matrices(model: Any) -> list[torch.nn.Parameter]:
    """Return the matrices every token is multiplied with: no embeddings, no head, adapters included."""
    apart = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    apart.add(id(model.get_output_embeddings().weight))
    return [weight for weight in model.parameters() if weight.ndim == 2 and id(weight) not in apart]


@dataclass(frozen=True)
class Load:
    """What a step carries: tokens through the transformer, positions through the head, (query, key) pairs that attend."""

    tokens: int
    positions: int
    attended: int

    def __add__(self, other: Load) -> Load:
        """Return both together."""
        return Load(self.tokens + other.tokens, self.positions + other.positions, self.attended + other.attended)


def step_flops(model: Any, load: Load) -> float:
    """Return the multiplications and additions a training step needs; what is computed twice is counted once.

    A matrix of w weights costs 2 w a token forward, 2 w for the gradient of its input, and 2 w for its own if it is trained:
    6 w with full fine-tuning, 4 w where it is frozen under an adapter. So the transformer costs ``tokens`` times that over all
    its matrices, and the head ``positions`` times it. Attention has two products forward (scores, values) and four backward,
    each 2 x heads x head width for an attended pair. Left out as below one percent: norms, activations, the softmax, the
    optimizer. For a mixture of experts this counts every expert.
    """
    config, head = model.config, model.get_output_embeddings().weight
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads

    def cost(weight: torch.nn.Parameter) -> int:
        return weight.numel() * (6 if weight.requires_grad else 4)

    transformer = load.tokens * sum(cost(weight) for weight in _matrices(model))
    attention = load.attended * config.num_hidden_layers * 6 * 2 * heads * width
    return float(transformer + load.positions * cost(head) + attention)


class Turn:
    """A child's end of taking turns: it works while it has the turn, and sleeps while another one has it."""

    def __init__(self, pipe: Connection, device: str) -> None:
        self._pipe, self._device, self._started = pipe, torch.device(device), 0.0

    def ready(self, **about: Any) -> None:
        """Say that everything is set up, and wait for the first turn. Peak memory counts from here."""
        reset_peak_memory(self._device)
        self._hand_over({"ready": about})

    def done(self, **record: Any) -> None:
        """Hand over after one unit of work, with what there is to tell of it, and wait for the next turn."""
        wait(str(self._device))
        taken = time.perf_counter() - self._started
        self._hand_over({**record, "turn_seconds": taken, "turn_peak_memory": peak_memory(self._device)})

    def _hand_over(self, message: dict[str, Any]) -> None:
        self._pipe.send(message)
        self._pipe.recv()
        self._started = time.perf_counter()


@dataclass(frozen=True)
class Side:
    """One of those that take turns, in a process of its own.

    Attributes:
        name: for tables.
        work: a function of a module, called in the child as ``work(turn, **arguments)``: it sets up, calls ``turn.ready``, and
            ``turn.done`` after every unit of work; it returns after as many as it is given turns.
        arguments: for ``work``; what can be pickled.
    """

    name: str
    work: Callable[..., None]
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Taken:
    """What a side did: what it said when ready, and a record a turn with ``turn_seconds`` and ``turn_peak_memory``, bytes."""

    about: dict[str, Any]
    turns: list[dict[str, Any]]

    def seconds(self) -> list[float]:
        """Return the seconds of every turn but the first, which warms up."""
        return [turn["turn_seconds"] for turn in self.turns[1:]]

    @property
    def peak(self) -> int:
        """The most memory in use during the turns, bytes: of the process on a CPU, of its tensors on a GPU."""
        return max(int(turn["turn_peak_memory"]) for turn in self.turns)


class SideError(Exception):
    """A child ended before its last turn.

    Attributes:
        name: of the side.
        out_of_memory: whether the GPU had too little memory for it.
    """

    def __init__(self, name: str, reason: str, out_of_memory: bool) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.out_of_memory = name, out_of_memory


def take_turns(sides: Sequence[Side], rounds: int, device: str = "cpu") -> dict[str, Taken]:
    """Let sides work in turn, each in its own process so that their memory stays apart; one more round before warms up.

    They are set up one after the other. While one has its turn all others sleep on a pipe.

    Raises:
        SideError: a child raised something.
    """
    with _children(sides, device) as pipes:
        taken = {side.name: Taken(_answer(side.name, pipes[side.name])["ready"], []) for side in sides}
        for _ in range(rounds + 1):
            for name, pipe in pipes.items():
                pipe.send("go")
                taken[name].turns.append(_answer(name, pipe))
    return taken


@contextmanager
def _children(sides: Sequence[Side], device: str) -> Iterator[dict[str, Connection]]:
    """Start the sides and give their pipes; a child is ended by its pipe being closed."""
    # Children are forked from a process that has imported the libraries and has done nothing with them.
    context, children, pipes = multiprocessing.get_context("forkserver"), [], {}
    context.set_forkserver_preload(["transformers", "peft", "spo_bench.stages.examples"])
    try:
        for side in sides:
            here, there = context.Pipe()
            child = context.Process(target=_serve, args=(there, device, side.work, dict(side.arguments)), daemon=True)
            child.start()
            there.close()
            children.append(child)
            pipes[side.name] = here
            here.poll(None)  # the next one is set up when this one is ready
        yield pipes
    finally:
        for pipe in pipes.values():
            pipe.close()
        for child in children:
            child.join(60)
            if child.is_alive():
                child.terminate()


def _answer(name: str, pipe: Connection) -> dict[str, Any]:
    """Return a child's next message."""
    try:
        message: dict[str, Any] = pipe.recv()
    except EOFError as error:
        raise SideError(name, "its process ended (see above; killed if there is nothing)", False) from error
    if "failed" in message:
        raise SideError(name, message["failed"], message["out_of_memory"])
    return message


def _serve(pipe: Connection, device: str, work: Callable[..., None], arguments: dict[str, Any]) -> None:
    """Do a side's work in the child."""
    torch.set_num_threads(cores_here())
    try:
        work(Turn(pipe, device), **arguments)
    except (EOFError, BrokenPipeError):  # the parent has seen enough
        return
    except torch.OutOfMemoryError as error:
        pipe.send({"failed": str(error).splitlines()[0], "out_of_memory": True})
    except Exception as error:
        pipe.send({"failed": f"{type(error).__name__}: {error}", "out_of_memory": False})
        raise


def matmul_side(turn: Turn, products: Mapping[Shape, int], dtype: str, device: str = "cpu") -> None:
    """Measure the machine's matmul rate whenever it has the turn: a side for ``take_turns``.

    Tells of every turn ``square``, the rate of one large product, and ``products``, that of the products of a step, each as often
    as it occurs there, and ``shapes``, each one's own.
    """
    turn.ready()
    work = {shape: count * math.prod(shape) for shape, count in products.items()}
    while True:
        rates = matmul_rate([SQUARE, *products], dtype, device)
        mixed = sum(work.values()) / sum(work[shape] / rates[shape] for shape in products)
        turn.done(square=rates[SQUARE], products=mixed, shapes={"×".join(map(str, shape)): rate for shape, rate in rates.items()})


def matmul_rates(taken: Taken) -> dict[str, float]:
    """Return the median over turns of what ``matmul_side`` found: ``square`` and ``products``."""
    return {name: statistics.median(turn[name] for turn in taken.turns[1:]) for name in ("square", "products")}


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the slope of log y against log x: the power with which y grows."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def r_squared(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the share of y's variance that a straight line over x explains."""
    residual = np.asarray(y) - np.polyval(np.polyfit(x, y, 1), x)
    return 1 - float(np.var(residual) / np.var(y))


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table: texts to the left, numbers to the right with three figures, None as a dash."""

    def cell(value: Any) -> str:
        if value is None:
            return "–"
        if isinstance(value, float):
            return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)

    right = [any(isinstance(row[i], int | float) for row in rows) for i in range(len(head))]
    text = [list(head), ["---:" if r else "---" for r in right], *([cell(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in text)


def headline(about: Mapping[str, Any]) -> str:
    """Return ``describe``'s answer as a line."""
    machine = about["machine"]
    on = machine.get("gpu") or f"{machine['cores']} cores of {machine['processor']} ({', '.join(machine['features'])})"
    return ", ".join([on, *(f"{name} {number}" for name, number in about["versions"].items())])


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add ``--json`` and ``--out``."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--out", type=Path, help="write the JSON to this file, too")


def show(result: Mapping[str, Any], wanted: argparse.Namespace, text: Callable[[], str]) -> None:
    """Print a result as tables or JSON, and write the JSON where asked to."""
    if wanted.out is not None:
        write_json(wanted.out, result)
    print(json.dumps(result, indent=1) if wanted.json else f"{headline(result['about'])}\n\n{text()}")
