"""What the controlled worlds share: rows drawn from a seed, splits by prompt, and reading an answer's words.

A world draws a question and answers of mixed quality; a task of that world adds a reward, a known function of the text, and
the reward alone decides which of two answers is preferred. So a world and its twin have the same prompts and answers of the
same distribution, and differ only in what is preferred.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any, ClassVar

from spo_bench.task import Row, SplitName, Task

# Hundredths of all prompts in each split. The split is a function of the prompt's text, so no seed can make two share one.
SHARES: Mapping[SplitName, int] = {"sft": 40, "train": 35, "heldout": 10, "eval": 15}
# Rows of a split where no limit is given: a world has no natural end.
SIZES: Mapping[SplitName, int] = {"sft": 8000, "train": 1000, "heldout": 256, "eval": 256}
# Pairs closer than this are drawn again: below it the order of two answers says next to nothing.
MIN_GAP = 0.05
# Further answers of a training row, so that lists of up to eight can be made of it, and how many are drawn at most to find as
# many that differ.
MORE, DRAWS = 6, 120

_WORD = re.compile(r"[a-z]+")
_SENTENCE_END = re.compile(r"[.!?:;\n]+")


def words(text: str) -> list[str]:
    """Return the words of a text in lower case; anything that is not an English letter separates words."""
    return _WORD.findall(text.lower())


def sentences(text: str) -> list[list[str]]:
    """Return the words of each sentence that has any; sentences end at . ! ? : ; and at a line's end."""
    return [found for part in _SENTENCE_END.split(text) if (found := words(part))]


def sentence_case(text: str) -> str:
    """Return the text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def listed(parts: Sequence[str]) -> str:
    """Join as English lists do: "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)


def split_of(prompt: str) -> SplitName:
    """Return the split a prompt belongs to, by a hash of its text."""
    bucket = int.from_bytes(hashlib.sha256(f"controlled|{prompt}".encode()).digest()[:8], "big") % 100
    for split, share in SHARES.items():
        if bucket < share:
            return split
        bucket -= share
    raise AssertionError("the shares add up to 100")


class ControlledTask(Task):
    """A world and a reward. A world writes ``question`` and ``answer``; a task of it adds ``reward``.

    Attributes:
        world: name of the world; tasks of one world draw the same prompts and the same demonstrations.
        generator: raise it whenever the world draws other rows from the same seed.
    """

    world: ClassVar[str]
    version: ClassVar[int] = 2  # 2: training rows carry further answers
    generator: ClassVar[int] = 1
    controlled: ClassVar[bool] = True
    needs_data: ClassVar[bool] = False

    def question(self, rng: Random) -> tuple[str, str, dict[str, Any]]:
        """Draw a prompt; return its text, its domain and the facts its reward needs (JSON values)."""
        raise NotImplementedError

    def answer(self, meta: Mapping[str, Any], rng: Random) -> str:
        """Draw an answer of random quality to the prompt with these facts."""
        raise NotImplementedError

    def reward(self, meta: Mapping[str, Any], answer: str) -> float:
        """Return the reward in [0, 1] of any text as an answer to the prompt with these facts."""
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        """Return what decides the rows: the task and its world, each with its version. There is no other data."""
        return {**super().identity(), "world": self.world, "generator": self.generator}

    def true_reward(self, row: Row, answer: str) -> float:
        """Return the reward in [0, 1] of any text as an answer to the row's prompt."""
        return self.reward(row.meta, answer)

    def load(self, split: SplitName, limit: int | None, seed: int) -> list[Row]:
        """Draw the rows of a split; a smaller limit gives a prefix of a larger one.

        Prompts of one split are distinct, but for ``sft``, where a prompt may return with another demonstration. A world
        with few prompts may have fewer than ``limit`` of them.
        """
        wanted = SIZES[split] if limit is None else limit
        return [row for row, _ in zip(self._rows(split, seed), range(wanted))]

    def _rows(self, split: SplitName, seed: int) -> Iterator[Row]:
        rng = Random(f"{self.world}|{self.generator}|{split}|{seed}")
        seen: set[str] = set()
        ids: set[str] = set()
        misses = 0
        # A small world runs out of new prompts; after this many fruitless draws in a row there is none left to speak of.
        while misses < 2000:
            prompt, domain, meta = self.question(rng)
            misses += 1
            if split_of(prompt) != split or (prompt in seen and split != "sft"):
                continue
            # The answers have their own stream: how many a task draws does not change which prompts follow.
            answers = Random(f"{rng.random()}")
            chosen, rejected = (self.answer(meta, answers), "") if split == "sft" else self._pair(meta, answers)
            identifier = hashlib.sha256("\n".join([prompt, chosen, rejected]).encode()).hexdigest()[:16]
            if identifier in ids:
                continue
            seen.add(prompt)
            ids.add(identifier)
            misses = 0
            more = self._more(meta, answers, {chosen, rejected}) if split == "train" else ()
            yield Row(
                id=identifier,
                prompt=({"role": "user", "content": prompt},),
                chosen=chosen,
                rejected=rejected,
                scores=(self.reward(meta, chosen), self.reward(meta, rejected)) if rejected else None,
                domain=domain,
                meta=meta,
                number=len(ids),
                more=more,
            )

    def _pair(self, meta: Mapping[str, Any], rng: Random) -> tuple[str, str]:
        while True:
            scored = sorted(
                ((self.reward(meta, text), text) for text in (self.answer(meta, rng), self.answer(meta, rng))), reverse=True
            )
            if scored[0][0] - scored[1][0] >= MIN_GAP:
                return scored[0][1], scored[1][1]

    def _more(self, meta: Mapping[str, Any], rng: Random, taken: set[str]) -> tuple[tuple[str, float], ...]:
        """Draw further answers that differ from those taken and from each other; fewer where the world has no more of them."""
        found: dict[str, float] = {}
        for _ in range(DRAWS):
            if len(found) == MORE:
                break
            text = self.answer(meta, rng)
            if text not in taken:
                found.setdefault(text, self.reward(meta, text))
        return tuple(found.items())


def texts() -> list[str]:
    """Return what any world's prompts can be given besides their own words: the goals that relabelled pairs state."""
    return [ControlledTask.goal_prompt.format(goal=goal) for goal in range(1, 11)]
