"""Answers under way: a cache in which an answer may end, and another begin, at any step.

Every answer is a row. Rows are aligned at their right end: a step writes one column for all of them, and columns before a row's
beginning are masked. A row that ends is overwritten by the last one, so that only one row is copied. A new row is written behind
the others, so that its prompt ends where they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from spo_bench.models.numerics import cache_shape
from spo_bench.models.policy import causal
from spo_bench.models.positions import length_dependent

PREFILL_TOKENS = 4096  # of prompts in one forward pass: enough for full speed, little enough for activations to be small
SHARED = 16  # a beginning of all prompts is computed once if it is as long; for a shorter one the mask it needs costs more
TOLERANCE, ROUGH = 1e-3, 0.1  # of the logits' range, in fp32 and in lower precision; what ignores mask or cache is off by more

Ids = Sequence[int]


@dataclass
class Row:
    """One answer under way.

    Attributes:
        place: of its prompt among all prompts.
        begin: column of the prompt's first token.
        token: the last one, which the next step reads.
        made: how many tokens the answer has.
    """

    place: int
    begin: int
    token: int
    made: int = 0


@dataclass(frozen=True)
class Way:
    """How the answers of a model are decoded.

    Attributes:
        obstacle: why not in rows, None where they are.
        lasting: whether a long sequence changes the model's positions until it meets a short one.
        token_bytes: of one token's keys and values in all layers, where they are decoded in rows.
    """

    obstacle: str | None
    lasting: bool = False
    token_bytes: int = 0


class Columns(DynamicLayer):
    """One layer's keys and values: the first ``rows`` rows and the columns [left, right) of a larger buffer are in use."""

    def __init__(self, like: DynamicLayer, rows: int, columns: int) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = like.keys.dtype, like.keys.device, True
        # Zeros: what is masked is multiplied by 0, and what happens to lie in memory may be no number.
        self.keys, self.values = (
            part.new_zeros(rows, part.shape[1], columns, part.shape[3]) for part in (like.keys, like.values)
        )
        self.rows = self.left = self.right = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write one column, each of shape (rows, heads, 1, size), and return all columns in use, that one included."""
        self.keys[: self.rows, :, self.right] = key_states[:, :, 0]
        self.values[: self.rows, :, self.right] = value_states[:, :, 0]
        used = slice(None, self.rows), slice(None), slice(self.left, self.right + 1)
        return self.keys[used], self.values[used]

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values."""
        return sum(part[0, :, 0].nbytes for part in (self.keys, self.values))

    def get_seq_length(self) -> int:
        """Return the number of columns in use."""
        return self.right - self.left

    def move(self, target: tuple[Any, ...], source: tuple[Any, ...]) -> None:
        """Copy a part of the buffers to another place; the two may overlap."""
        for part in (self.keys, self.values):
            part[target] = part[source].clone()


class Rows:
    """The answers under way with their cache.

    Args:
        model: a causal language model (or an adapter on one) whose cache holds keys and values of every token.
        prompts: all prompts that will be added; each has at least one token.
        steps: most tokens of an answer.
        size: most rows at once.
        token_bytes: of one token's keys and values; with it, there may be fewer rows: see ``cache_shape``.

    Attributes:
        rows: the answers under way.
        places, made: those of every row in the last step, on the model's device, shape (rows,).
    """

    def __init__(self, model: Any, prompts: Sequence[Ids], steps: int, size: int, token_bytes: int = 0) -> None:
        self.model, self.prompts = model, prompts
        self.trunk = causal(model).get_decoder()
        self.device = next(model.parameters()).device
        self.takes_positions = "position_ids" in signature(causal(model).forward).parameters
        self.rows: list[Row] = []
        self.right = 0
        self.places = self.made = torch.empty(0, dtype=torch.int64)
        span = max(map(len, prompts)) + steps
        self.size, columns = cache_shape(min(size, len(prompts)), span, token_bytes)
        self.columns = columns if len(prompts) > self.size else span
        first, last = min(prompts, key=list), max(prompts, key=list)  # in dictionary order: what these two share, all share
        same = next((n for n, (a, b) in enumerate(zip(first, last)) if a != b), min(len(first), len(last)))
        # A prompt's last token is not part of it: the first step reads that.
        same = min(same, min(map(len, prompts)) - 1)
        self.shared = same if same >= SHARED and len(prompts) > 1 else 0
        self.beginning = self._prefill([first[: self.shared]], None) if self.shared else None
        self.cache = Cache(layers=[])

    def add(self, places: Sequence[int]) -> None:
        """Let the answers to these prompts begin. While others are under way, none of these prompts may be longer than theirs."""
        if not self.rows:
            self.right = max(len(self.prompts[place]) for place in places) - 1
        owners: dict[tuple[int, ...], list[int]] = {}
        for place in places:
            owners.setdefault(tuple(self.prompts[place]), []).append(place)
        group: list[tuple[int, ...]] = []
        for prompt in [*owners, None]:
            if group and (prompt is None or max(map(len, (*group, prompt))) * (len(group) + 1) > PREFILL_TOKENS):
                self._place(group, [owners[one] for one in group])
                group = []
            group += [] if prompt is None else [prompt]

    def _place(self, prompts: Sequence[tuple[int, ...]], owners: Sequence[Sequence[int]]) -> None:
        """Run some prompts and write what they leave into the rows of their owners."""
        found = self._prefill([prompt[:-1] for prompt in prompts], self.beginning)
        if not self.cache.layers:
            self.cache.layers += [Columns(layer, self.size, self.columns) for layer in found.layers]
        for line, (prompt, places) in enumerate(zip(prompts, owners, strict=True)):
            begin = self.right - len(prompt) + 1
            for place in places:
                for layer, source in zip(self.cache.layers, found.layers, strict=True):
                    layer.keys[len(self.rows), :, begin : self.right] = source.keys[line, :, : len(prompt) - 1]
                    layer.values[len(self.rows), :, begin : self.right] = source.values[line, :, : len(prompt) - 1]
                self.rows.append(Row(place, begin, prompt[-1]))

    def _prefill(self, prompts: Sequence[Ids], beginning: DynamicCache | None) -> DynamicCache:
        """Return keys and values of prompts, each line's tokens first and then what is of no use."""
        known = self.shared if beginning is not None else 0
        cache = DynamicCache()
        for number, layer in enumerate(beginning.layers if beginning is not None else ()):
            cache.update(*(part.expand(len(prompts), -1, -1, -1) for part in (layer.keys, layer.values)), number)
        width = max(1, *map(len, prompts)) - known
        if width > 0:  # otherwise the prompts are the beginning
            # Padding comes after the tokens, where causal attention does not look: no mask is needed.
            ids = torch.zeros(len(prompts), width, dtype=torch.int64)
            for line, prompt in enumerate(prompts):
                ids[line, : len(prompt) - known] = torch.tensor(prompt[known:])
            positions = torch.arange(known, known + width, device=self.device)[None]
            more = {"position_ids": positions.expand(len(prompts), -1)} if self.takes_positions else {}
            self.trunk(input_ids=ids.to(self.device), past_key_values=cache, use_cache=True, **more)
        return cache

    def step(self) -> Tensor:
        """Return the logits of every row's next token, shape (rows, vocabulary)."""
        left = min(row.begin for row in self.rows)
        if self.right == self.columns:
            for layer in self.cache.layers:
                rows = slice(None, len(self.rows))
                layer.move((rows, slice(None), slice(0, self.right - left)), (rows, slice(None), slice(left, self.right)))
            for row in self.rows:
                row.begin -= left
            self.right, left = self.right - left, 0
        for layer in self.cache.layers:
            layer.rows, layer.left, layer.right = len(self.rows), left, self.right
        state = [[row.token, row.begin, row.place, row.made] for row in self.rows]
        tokens, begins, places, made = torch.tensor(state).to(self.device).split(1, dim=1)  # one copy to the device
        self.places, self.made = places[:, 0], made[:, 0]
        ragged = any(row.begin > left for row in self.rows)
        out = self.model(
            input_ids=tokens,
            attention_mask=(torch.arange(left, self.right + 1, device=self.device) >= begins).long() if ragged else None,
            past_key_values=self.cache,
            use_cache=True,
            **({"position_ids": self.right - begins} if self.takes_positions else {}),
        )
        self.right += 1
        logits: Tensor = out.logits[:, -1]
        return logits

    def drop(self, number: int) -> None:
        """End a row; the last one takes its number."""
        last, columns = len(self.rows) - 1, slice(self.rows[-1].begin, self.right)
        if number < last:
            for layer in self.cache.layers:
                layer.move((number, slice(None), columns), (last, slice(None), columns))
            self.rows[number] = self.rows[last]
        self.rows.pop()


@torch.no_grad()
def way_of(model: Any, longest: int) -> Way:
    """Return how answers of a model are decoded, found out by trying.

    Two prompts with a common beginning are answered, the shorter one from the second step on, when the longer one has ended in
    its place; the logits are held against the model's own on each sequence alone.

    Args:
        model: a policy in evaluation mode. It is run under the caller's autocast.
        longest: most tokens of a prompt with its answer.
    """
    inner = causal(model)
    dependent = length_dependent(inner.config.get_text_config(), longest)
    if dependent is not None:
        return Way(dependent, lasting=True)
    kinds = {type(layer) for layer in DynamicCache(config=inner.config).layers}
    if getattr(inner, "_is_stateful", False) or not kinds <= {DynamicLayer, DynamicSlidingWindowLayer}:
        return Way("it carries more from token to token than keys and values")
    draw = torch.randint(inner.get_input_embeddings().weight.shape[0], (SHARED + 5,), generator=torch.Generator().manual_seed(0))
    ids: list[int] = draw.tolist()
    prompts = [[*ids[:SHARED], *ids[-4:]], ids[: SHARED + 1], ids[: SHARED + 3]]
    gaps = []
    try:
        rows = Rows(model, prompts, 2, 2)
        rows.add([0, 2])
        for _ in range(2):
            for row, ours in zip(rows.rows, rows.step().float(), strict=True):
                alone = torch.tensor([prompts[row.place]], device=rows.device)
                theirs = model(input_ids=alone, use_cache=False).logits[0, -1].float()
                gaps.append(float((ours - theirs).abs().max() / (theirs.max() - theirs.min())))
            if len(gaps) == 2:
                prompts[2].append(ids[-1])
                rows.rows[1].token = ids[-1]
                rows.drop(0)
                rows.add([1])
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return Way(f"its cache cannot be laid out in rows ({type(error).__name__}: {str(error).partition(chr(10))[0]})")
    exact = next(model.parameters()).dtype == torch.float32 and not torch.is_autocast_enabled(rows.device.type)
    if not all(gap <= (TOLERANCE if exact else ROUGH) for gap in gaps):  # a gap that is no number is none that is allowed
        return Way(f"in rows its logits are off by {max(gaps):.2g} of their range")
    return Way(None, token_bytes=sum(layer.token_bytes for layer in rows.cache.layers))
