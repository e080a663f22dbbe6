"""Whether the files of a run are as it wrote them. What an older version wrote has no checksums, and is read as it is."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from spo_bench.engine.collect import DONE
from spo_bench.errors import InputError
from spo_bench.files import read_json
from spo_bench.store.sealed import file_fault, read_signed

RULE = "the files of a finished run are as it wrote them"
AGAIN = "run the same command again: it writes anew what is damaged"
MEND = "delete this cell's folder and run the same command again: it makes what is missing"


class Files:
    """The files of a cell's folder; each is held against its checksum when it is first asked for.

    Args:
        folder: of the cell.
        keys: of the cell's stages, by cells.jsonl.
    """

    def __init__(self, folder: Path, keys: Mapping[str, str]) -> None:
        self.folder, self.keys = folder, keys
        self._seen: dict[str, Path | None] = {}

    def path(self, name: str) -> Path | None:
        """Return where a file is; None where the cell has none of this name. InputError where it is not as it was written."""
        if name not in self._seen:
            self._seen[name] = self._checked(name)
        return self._seen[name]

    def _checked(self, name: str) -> Path | None:
        path = self.folder / name
        if self._known is not None and (name in self._known or path.exists()):
            known = self._known.get(name)
            why = file_fault(path, known) if known else "does not belong to the cell"
            if why is not None:
                raise InputError(f"{path} {why}", RULE, AGAIN if known and self._is_noticed(path, known) else MEND)
        return path if path.exists() else None

    def _is_noticed(self, path: Path, known: Mapping[str, Any]) -> bool:
        """Return whether a run notices the damage, which does not read files that nobody touched."""
        return bool(file_fault(path, known, contents=False)) or path.stat().st_mtime_ns > (self.folder / DONE).stat().st_mtime_ns

    @cached_property
    def _known(self) -> Mapping[str, Mapping[str, Any]] | None:
        """Size and SHA-256 of every file by name; None where nobody wrote them down."""
        path = self.folder / DONE
        if not path.is_file():
            return None
        done = signed_or_older(path)
        if "files" not in done:
            return None
        if self.keys and done["keys"] != self.keys:
            raise InputError(f"{path} is of another cell than cells.jsonl says, or of a run that was stopped", RULE, AGAIN)
        known: Mapping[str, Mapping[str, Any]] = done["files"]
        return known


def signed_or_older(path: Path) -> Mapping[str, Any]:
    """Return a record that a run wrote with its checksum, or an older version without; InputError where it was altered."""
    try:
        found = read_json(path)
        if not isinstance(found, dict):
            raise ValueError(f"it holds no object, but a {type(found).__name__}")
        return read_signed(path) if found.keys() & {"checksum", "files"} else found
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not as it was written ({error})", RULE, AGAIN) from error
