"""Several things that cannot be used, told at once: nobody corrects one only to be told the next."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from spo_bench.errors import InputError


class ManyProblems(InputError):  # noqa: N818 - says what they are
    """Two or more problems that were found before anything was run, as a numbered list.

    Args:
        problems: each with what was given, the rule and the remedy.
    """

    def __init__(self, problems: Sequence[InputError]) -> None:
        self.problems = tuple(problems)
        super().__init__(f"{len(self.problems)} problems before anything was run", "none of these is there", "see to each")

    def __str__(self) -> str:
        listed = (
            f"  {number}. " + f"{one.given}\nrule: {one.rule}\nremedy: {one.remedy}".replace("\n", "\n     ")
            for number, one in enumerate(self.problems, start=1)
        )
        return "\n".join([f"{self.given}:", *listed])

    def __reduce__(self) -> tuple[type[ManyProblems], tuple[tuple[InputError, ...]]]:  # type: ignore[override]
        return type(self), (self.problems,)


class Problems:
    """Collects problems; ``found`` holds each once, in the order in which they were found."""

    def __init__(self) -> None:
        self.found: list[InputError] = []

    def add(self, problem: InputError) -> None:
        """Note a problem, or each of several."""
        for one in problem.problems if isinstance(problem, ManyProblems) else (problem,):
            if all(str(one) != str(known) for known in self.found):
                self.found.append(one)

    def noted(self) -> Self:
        """Return a context that notes the problem it ends with, in place of raising it."""
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if isinstance(error, InputError):
            self.add(error)
        return isinstance(error, InputError)

    def together(self) -> InputError | None:
        """Return what was found: one problem as it is, several as a list."""
        return self.found[0] if len(self.found) == 1 else ManyProblems(self.found) if self.found else None

    def raise_any(self) -> None:
        """Raise what was found."""
        if (problem := self.together()) is not None:
            raise problem
