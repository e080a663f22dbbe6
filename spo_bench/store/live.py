"""The rows of a training under way, in a file beside its checkpoints, for whoever follows it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from spo_bench.files import write_jsonl

LIVE = "live.jsonl"
EVERY = 1.0  # seconds that rows may wait, so that short steps are not held up by a slow disk
Row = dict[str, Any]


class Live:
    """Writes what is followed.

    Args:
        path: of the file; None: nobody follows, and nothing is written.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path

    def log(self, steps: list[Row]) -> Callable[[Row], None]:
        """Return what takes the row of a step: it is added to ``steps``, whose rows so far the file begins with."""
        path = self.path
        if path is None:
            return steps.append
        waiting: list[Row] = []
        written = time.monotonic()
        with suppress(OSError):  # nobody's numbers depend on it
            write_jsonl(path, steps)

        def add(row: Row) -> None:
            nonlocal written
            steps.append(row)
            waiting.append(row)
            if time.monotonic() - written < EVERY:
                return
            written = time.monotonic()
            # Opened anew each time: another machine on a shared file system sees what a file held when it was closed.
            with suppress(OSError), path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in waiting))
                waiting.clear()

        return add


class Tail:
    """Reads a file of rows that grows, or is begun anew.

    Args:
        path: of the file, which need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file, self._read = 0, 0  # which file it was, and how many bytes of it were read

    def rows(self) -> Iterator[Row]:
        """Yield the rows that are new; all of them where the file was begun anew."""
        try:
            with self.path.open("rb") as file:
                state = os.fstat(file.fileno())
                if state.st_ino != self._file or state.st_size < self._read:
                    self._file, self._read = state.st_ino, 0
                file.seek(self._read)
                new = file.read()
        except OSError:
            return
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            yield json.loads(line)
