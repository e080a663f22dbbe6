"""Hashes of large files, so that none is read twice."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from spo_bench.files import file_hash, read_json, write_json
from spo_bench.store import sealed
from spo_bench.store.sealed import WEIGHTS

FILE_HASHES = "file-hashes.json"


class HashCache:
    """Hashes of large files, remembered by path, size and modification time, so that planning does not read weights twice."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root).expanduser().absolute()
        self._path = self.root / FILE_HASHES
        self._known: dict[str, str] = {}
        with suppress(OSError, ValueError):
            known = read_json(self._path)
            self._known = known if isinstance(known, dict) else {}

    def hash(self, path: Path) -> str:
        """Return the SHA-256 of a file's content; of a file in the store as it was when it was made."""
        if (known := self._in_store(path)) is not None:
            return known
        state = path.stat()
        mark = f"{path.resolve()}|{state.st_size}|{state.st_mtime_ns}"
        if mark not in self._known:
            self._known[mark] = file_hash(path)
            if self.root.is_dir():  # planning makes no store
                with suppress(OSError):  # nor does it need to write
                    write_json(self._path, self._known)
        return self._known[mark]

    def weights(self, directory: Path) -> list[Path]:
        """Return the safetensors files of a directory by name; in the store also those that are not on this machine."""
        with suppress(ValueError, OSError, KeyError):
            entry, files = self._entry(directory)
            named = (entry / name for name in files)
            return sorted(path for path in named if path.suffix == WEIGHTS and path.parent == directory.absolute())
        return sorted(directory.glob(f"*{WEIGHTS}"))

    def _in_store(self, path: Path) -> str | None:
        """Return what the seal of the entry that a file belongs to says of it."""
        with suppress(ValueError, OSError, KeyError):
            entry, files = self._entry(path)
            return str(files[path.absolute().relative_to(entry).as_posix()]["sha256"])
        return None

    def _entry(self, path: Path) -> tuple[Path, Mapping[str, Any]]:
        """Return the folder of the entry that a path belongs to, and what its seal says of its files.

        Raises:
            ValueError, OSError, KeyError: it belongs to none.
        """
        kind, key = path.absolute().relative_to(self.root).parts[:2]
        return self.root / kind / key, sealed.record(self.root / kind / key)["files"]
