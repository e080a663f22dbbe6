"""What a stage has to do, counted before it runs: operations, bytes, rows, questions. No heavy import: planning uses this.

A matrix of w weights takes 2 w operations a token forward, and twice that backward (for its input, and for itself: the second
half is left out where an adapter is trained in its place). The head is multiplied at positions whose token is predicted;
attention takes 4 x width a layer and pair of tokens that attend forward. Norms, softmax and activations are left out as below a
percent or two.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, comb
from typing import Any, NamedTuple

from spo_bench.engine.lengths import copies_a_pair, lengths_of, more_of_copies
from spo_bench.engine.memory import BYTES, FORWARD_TOKENS, Size, count_rows, model_of, size_of, trained_parameters
from spo_bench.engine.shares import asks_endpoint
from spo_bench.models.numerics import cache_shape
from spo_bench.stages.base import Stage, plain_data
from spo_bench.store.artifacts import Store

BACKWARD, ADAPTED = 2, 1  # operations backward for each forward: of weights that are trained, and of frozen ones under an adapter
ADAM = 7  # numbers of four bytes that are read or written for each that is trained: gradient, value, moments, and the norm's pass
PARAMETER = 4  # bytes: weights are saved in fp32
REPLY = 200  # tokens of a judge's answer on this machine, where it has to reason in words


class Load(NamedTuple):
    """What a stage has to do.

    Attributes:
        learned: operations of forward and backward passes in training.
        read: operations of passes that only read, prompts of answers included.
        drawn: operations of answering, token by token.
        moved: bytes that go through the device's memory for answers and for the optimizer.
        layers: layers that are called, each time over whatever goes through it at once; three times each in training.
        disk: bytes of weights that are read and written.
        rows: texts that are read, tokenised or scored one by one.
        calls: requests to a judge behind an endpoint, one after another: those under way at once count as one.
    """

    learned: float = 0.0
    read: float = 0.0
    drawn: float = 0.0
    moved: float = 0.0
    layers: float = 0.0
    disk: float = 0.0
    rows: float = 0.0
    calls: float = 0.0

    def __add__(self, other: tuple[float, ...]) -> Load:  # type: ignore[override]
        return Load(*(a + b for a, b in zip(self, other, strict=True)))

    def __mul__(self, count: float) -> Load:  # type: ignore[override]
        return Load(*(value * count for value in self))


NOTHING = Load()


# A model at work, in numbers.


def forward(size: Size, tokens: float, positions: float, context: float) -> float:
    """Return the operations of a forward pass.

    Args:
        size: of the model; a mixture of experts counts as if every token went through all of them.
        tokens: through the transformer.
        positions: through the head.
        context: mean number of tokens that a token sees.
    """
    body = size.parameters - size.head - size.looked_up
    return 2.0 * body * tokens + 2.0 * size.head * positions + 4.0 * size.layers * size.width * context * tokens


def learning(size: Size, tokens: float, positions: float, context: float, adapter: bool = False, twice: bool = False) -> float:
    """Return the operations of forward and backward passes; ``twice``: activations are computed again for the backward pass."""
    return forward(size, tokens, positions, context) * (1 + twice + (ADAPTED + 1 if adapter else 2 * BACKWARD) / 2)


def answering(size: Size, prompts: float, prompt: float, answer: float, longest: float, rows: int, held: int) -> Load:
    """Return what answers take, ``rows`` of them under way at once.

    Args:
        size: of the model.
        prompts: how many.
        prompt, answer: mean tokens of a prompt, and of what is answered.
        longest: most tokens of an answer.
        rows: answers under way at once, at most.
        held: bytes a number of the weights and of the cache.
    """
    rows = max(1, min(rows, ceil(prompts)))
    # The last ones under way end one by one, so that some row goes on until the longest answer.
    steps = longest + max(0.0, prompts - rows) * answer / rows
    context = prompt + answer / 2
    cache = prompts * answer * context * size.layers * 2 * size.keys * held
    return Load(
        read=forward(size, prompts * prompt, prompts, prompt / 2),
        drawn=forward(size, prompts * answer, prompts * answer, context),
        moved=steps * (size.parameters - size.looked_up) * held + cache,
        layers=steps * size.layers,
    )


# Stages.


def load_of(stage: Stage, store: Store) -> Load:
    """Return what a stage has to do."""
    return _Counted(stage, store).load()


def steps_of(settings: Mapping[str, Any], rows: float) -> int:
    """Return the steps of a training on so many rows, as the loop counts them."""
    return settings["max_steps"] or max(1, round(settings["epochs"] * max(1, int(rows) // settings["batch_size"])))


class _Counted:
    """One stage's numbers."""

    def __init__(self, stage: Stage, store: Store) -> None:
        self.stage, self.store, self.config = stage, store, stage.config
        self.data = plain_data(stage)
        model = model_of(stage)
        self.size = size_of(model) if model is not None else Size(0, 0, 0, 0, 0)
        self.numerics = self.config.get("numerics", {"held": "float32", "dtype": "float32"})
        self.settings = self.config.get("settings", self.config)

    def load(self) -> Load:
        """Return all it has to do."""
        kind = self.stage.kind
        if kind == "model" and "assumed" in self.stage.local:
            return Load(disk=self.size.parameters * 2.0)  # it is fetched, as a rule in two bytes a number
        if kind == "sft":
            return self._sft()
        if self.data is None:
            return NOTHING
        self.lengths = lengths_of(self.data, self.store)
        count = {
            "data": lambda: Load(rows=self._rows()),
            "rows": lambda: Load(rows=self._rows()),
            "copies": self._copies,
            "reference": lambda: self._reading(self._rows("train", "eval"), self._pair()),
            "mismatched": lambda: self._reading(self._pairs(), self._pair()),
            "explored": lambda: self._reading(self._rows("train"), self.lengths.prompt + self._answer()),
            "train": self._train,
            "reward_model": self._reward_model,
            "generate": self._generate,
            "score": self._score,
            "reward": lambda: self._reading(self._rows("eval"), self.lengths.prompt + self._answer(), head=False),
            "judge": self._judge,
            "judge_audit": self._judge,
            "goals": lambda: Load(rows=self._rows("eval")),
        }
        return count[kind]() if kind in count else NOTHING

    def _rows(self, *splits: str) -> float:
        found = count_rows(self.data, self.store, splits) if splits else count_rows(self.data, self.store)  # type: ignore[arg-type]
        return float(found)

    def _pairs(self) -> float:
        """Return how many pairs a training sees, all epochs together."""
        fraction = self.config.get("fraction", 1.0)
        rows = self._rows("train") * (1.0 if self.config.get("equal_steps") else fraction)
        return float(steps_of(self.settings, rows) * self.settings["batch_size"])

    def _shares(self) -> bool:
        return bool(self.settings.get("packing", "trie") == "trie")

    def _pair(self) -> float:
        """Return the tokens that go through a model for a pair, without copies."""
        one = self.lengths
        return one.prompt + one.answers if self._shares() else 2 * one.prompt + one.chosen + one.rejected

    def _answer(self) -> float:
        """Return the mean tokens of an answer of a policy: as long as those it learns from, and at most as many as allowed."""
        most = self._generation().get("max_new_tokens")
        mean = (self.lengths.chosen + self.lengths.rejected) / 2
        return min(mean, most) if most else mean

    def _generation(self) -> Mapping[str, Any]:
        samples = self.stage.inputs.get("samples")
        config = samples.config if samples is not None else self.config
        found: Mapping[str, Any] = config.get("generate", config.get("settings", {}))
        return found

    def _weights(self, models: float = 1.0) -> float:
        """Return the bytes of weights that are read: once to see that they are whole, once to be used."""
        return 2 * models * self.size.parameters * PARAMETER

    def _passes(self, tokens: float) -> float:
        """Return the layers that are called for so many tokens."""
        budget = self.settings.get("micro_tokens") or self.config.get("micro_tokens") or FORWARD_TOKENS
        return ceil(tokens / budget) * self.size.layers

    def _reading(self, rows: float, tokens: float, head: bool = True) -> Load:
        """Return what one pass over rows of so many tokens takes that only reads."""
        positions = max(0.0, tokens - self.lengths.prompt) if head else 0.0
        operations = forward(self.size, rows * tokens, rows * positions, tokens / 2)
        return Load(read=operations, layers=self._passes(rows * tokens), disk=self._weights(), rows=rows)

    def _learning(self, pairs: float, tokens: float, positions: float) -> Load:
        """Return what training takes on pairs of so many tokens each."""
        steps = pairs / self.settings["batch_size"]
        adapter = bool(self.config.get("lora"))
        trained = trained_parameters(self.stage)
        context = self.lengths.prompt + (self.lengths.chosen + self.lengths.rejected) / 4
        done = learning(
            self.size, pairs * tokens, pairs * positions, context, adapter, bool(self.config["gradient_checkpointing"])
        )
        layers = steps * 3 * self._passes(self.settings["batch_size"] * tokens)
        disk = self._weights() + 2 * PARAMETER * trained
        return Load(learned=done, moved=steps * ADAM * PARAMETER * trained, layers=layers, disk=disk, rows=pairs)

    def _sft(self) -> Load:
        sources = [one for name, one in self.stage.inputs.items() if name.startswith("data:")]
        every = [lengths_of(one, self.store) for one in sources]
        weights = [max(1.0, count_rows(one, self.store, ("sft",))) for one in sources]
        self.lengths = every[0]
        mean = [sum(w * getattr(one, name) for w, one in zip(weights, every)) / sum(weights) for name in ("prompt", "chosen")]
        pairs = float(steps_of(self.settings, sum(weights)) * self.settings["batch_size"])
        return self._learning(pairs, sum(mean), mean[1])

    def _reward_model(self) -> Load:
        one = self.lengths
        pairs = float(steps_of(self.settings, self._rows("heldout")) * self.settings["batch_size"])
        tokens = 2 * one.prompt + one.chosen + one.rejected
        return self._learning(pairs, tokens, 0.0) + self._reading(self._rows("eval"), tokens, head=False)

    def _train(self) -> Load:
        one, pairs, regime = self.lengths, self._pairs(), self.config.get("regime")
        answers, copies = one.answers if self._shares() else one.chosen + one.rejected, self._spo()
        listed = self.stage.inputs["data"].config.get("list")
        further = (listed["size"] - 2) * one.chosen if listed else 0.0
        further += one.chosen * ("explored" in self.stage.inputs)
        load = self._learning(pairs, self._pair() + copies + further, answers + further)
        if copies:
            load += self._reading(self._rows("eval"), self._pair() + copies, head=False)._replace(disk=0.0)
        if "ref_sync" in self.config.get("additions", {}) or regime:
            load += self._reading(pairs, self._pair())
        return load + self._rounds(pairs) if regime else load

    def _spo(self) -> float:
        """Return the tokens that a pair's degraded copies add."""
        spo = self.config.get("spo")
        if spo is None:
            return 0.0
        source = self.stage.inputs.get("copies")
        settings = source.config["spo"]["settings"] if source is not None else spo["settings"]
        added, apart = more_of_copies(self.lengths, settings)
        return added if self._shares() else apart + copies_a_pair(self.lengths, settings) * self.lengths.prompt

    def _rounds(self, pairs: float) -> Load:
        """Return what a policy's own answers take, drawn and ranked while it is trained."""
        regime, settings = self.config["regime"], self.config["generate"]
        own = pairs * (regime["samples"] + regime["greedy"])
        load = self._answers(own, settings)
        if self.config["labeller"]["kind"] == "openai":
            each = comb(regime["samples"] + 2 * regime["human"] + regime["greedy"], 2)
            return load + Load(calls=pairs * each * 2 / self.stage.local["judge"]["concurrency"])
        return load + self._reading(own, self.lengths.prompt + self._answer(), head=False)

    def _answers(self, prompts: float, settings: Mapping[str, Any]) -> Load:
        held = BYTES[self.numerics["dtype"]]
        longest = settings["max_new_tokens"]
        token = self.size.layers * 2 * self.size.keys * held
        rows, _ = cache_shape(settings["batch_size"], ceil(self.lengths.prompt) + longest, token)
        return answering(self.size, prompts, self.lengths.prompt, self._answer(), longest, rows, held)

    def _generate(self) -> Load:
        split = str(self.config["split"])
        prompts = self._rows("train" if split.startswith("train") else "eval")
        return self._answers(prompts, self.settings) + Load(disk=self._weights(), rows=prompts)

    def _copies(self) -> Load:
        each = copies_a_pair(self.lengths, self.config["spo"]["settings"])
        return Load(rows=each * self._rows(*self.config["splits"]))

    def _score(self) -> Load:
        rows = self._rows("eval")
        texts = Load(rows=rows * (1 + len(self.config["metrics"])))
        if "policy" not in self.stage.inputs:
            return texts
        own = self._reading(rows, self.lengths.prompt + self._answer())
        return texts + self._reading(rows, self._pair()) + own * 2 + Load(disk=-self._weights())

    def _judge(self) -> Load:
        judge = self.config["judge"]
        rows = self._rows("eval") if self.stage.kind == "judge" else float(min(self.config["rows"], self._rows("eval")))
        orders = 2 if judge.get("settings", {}).get("orders") == "both" else 1
        if asks_endpoint(self.stage):
            return Load(calls=rows * orders / self.stage.local["judge"]["concurrency"], rows=rows)
        if judge["kind"] == "local":
            asked = self.lengths.prompt + 2 * self._answer() + REPLY
            return self._answers(rows * orders, {"max_new_tokens": REPLY, "batch_size": 16}) + self._reading(rows * orders, asked)
        if "reward_model" in self.stage.inputs:
            return self._reading(2 * rows, self.lengths.prompt + self.lengths.chosen, head=False)
        return Load(rows=rows)
