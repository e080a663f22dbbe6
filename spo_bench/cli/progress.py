"""How a run goes, on stderr: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from spo_bench.cli.common import Terminal
from spo_bench.engine.engine import Watcher
from spo_bench.matrix.cells import Cell
from spo_bench.stages.base import Stage


class RunProgress(Watcher):
    """A watcher that shows stages done by kind, cells finished, and the time that is left."""

    def __init__(self, missing: Sequence[Stage], cells: Sequence[Cell], console: Terminal) -> None:
        self.console, self.begun = console, time.perf_counter()
        self.left: Counter[str] = Counter(stage.kind for stage in missing)
        self.total = len(missing)
        self.names: dict[str, str] = {}
        self.open: dict[str, int] = {}  # cell -> how many stages it waits for
        self.waiting: dict[str, list[str]] = defaultdict(list)  # stage -> cells that wait for it
        keys = {stage.key for stage in missing}
        for cell in cells:
            for key in {stage.key for stage in cell.stages.values()} & keys:
                self.names[key] = cell.id
                self.waiting[key].append(cell.id)
                self.open[cell.id] = self.open.get(cell.id, 0) + 1
        self.spent: dict[str, list[float]] = defaultdict(list)
        self.cells_total, self.cells_done = len(self.open), 0
        self.bar: Progress | None = None
        self.task: TaskID | None = None

    def __enter__(self) -> Self:
        if self.console.is_terminal and self.total:
            self.bar = Progress(
                TextColumn("{task.description}", style="bold", markup=False), BarColumn(), MofNCompleteColumn(),
                TextColumn("stages"),
                TextColumn("{task.fields[cells]}"), TimeElapsedColumn(), TextColumn("left {task.fields[left]}"),
                console=self.console,
            )  # fmt: skip
            self.task = self.bar.add_task("starting", total=self.total, cells="", left="?")
            self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.stop()

    def started(self, stage: Stage) -> None:
        """A stage begins."""
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, description=self._label(stage))

    def finished(self, stage: Stage, seconds: float) -> None:
        """A stage has left its artifact."""
        self.spent[stage.kind].append(seconds)
        self._advance(stage, f"{seconds:.1f} s")

    def failed(self, stage: Stage, reason: str) -> None:
        """A stage could not be finished."""
        self._advance(stage, f"FAILED: {reason}")

    def skipped(self, stage: Stage) -> None:
        """A stage was not tried, because an input of it failed; that was told already."""
        self._advance(stage, None)

    def retried(self, stage: Stage, why: str) -> None:
        """A stage that was under way is tried again, otherwise."""
        self._say(f"{self._label(stage)}: tried again: {why}")

    def remade(self, stage: Stage, why: str) -> None:
        """A stage that was done is made again."""
        self.left[stage.kind] += 1
        self.total += 1
        self._say(f"{self._label(stage)}: made again, since it is damaged: {why}")

    def _say(self, text: str) -> None:
        console = self.bar.console if self.bar is not None else self.console
        console.print(text, markup=False, soft_wrap=True)

    def _advance(self, stage: Stage, result: str | None) -> None:
        self.left[stage.kind] -= 1
        for cell in self.waiting.pop(stage.key, ()):
            self.open[cell] -= 1
            self.cells_done += not self.open[cell]
        done, cells = self.total - sum(self.left.values()), f"{self.cells_done}/{self.cells_total} cells"
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=done, total=self.total, cells=cells, left=self.remaining())
            if result and result.startswith("FAILED"):
                self._say(f"{self._label(stage)}: {result}")
        elif result is not None:
            self.console.print(
                f"[{done}/{self.total}] {self._label(stage)}: {result}; {cells}, left {self.remaining()}",
                markup=False,
                soft_wrap=True,
            )

    def remaining(self) -> str:
        """Return the time left, from the mean seconds of each kind of stage and how many ran at a time so far, as "1:23"; "1:23+"
        where stages are left of kinds that have not run yet and are not counted; "?" before anything is known.
        """
        seconds = {kind: sum(each) / len(each) for kind, each in self.spent.items()}
        if not seconds:
            return "?"
        together = max(1.0, sum(map(sum, self.spent.values())) / max(time.perf_counter() - self.begun, 1e-9))
        unknown = any(count for kind, count in self.left.items() if kind not in seconds)
        left = sum(count * seconds.get(kind, 0.0) for kind, count in self.left.items()) / together
        return clock(left) + ("+" if unknown else "")

    def _label(self, stage: Stage) -> str:
        return f"{stage.kind} {self.names.get(stage.key, '')}".strip()


def clock(seconds: float) -> str:
    """Return seconds as "1:23" or "2:03:04"."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
