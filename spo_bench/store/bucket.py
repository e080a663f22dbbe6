"""Objects behind an fsspec URL, by name: the few operations a store needs, and what is wrong in words when one fails."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from spo_bench.errors import InputError, Unreachable, is_disk_full
from spo_bench.store.provenance import without_secrets

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
AT_ONCE = 8  # files on their way
CHUNK = 1 << 22  # bytes of an object that are read at a time
ATTEMPTS = 5  # at a request, with growing pauses: some ten seconds where nobody answers; AWS_MAX_ATTEMPTS says otherwise
REMEDY = (
    "check the address, the bucket's name and rights, the credentials (environment or ~/.aws) and AWS_ENDPOINT_URL; "
    "then the same command goes on where it was"
)


class Object(NamedTuple):
    """What a listing says of an object, or of a file.

    Attributes:
        size: bytes.
        modified: when it was written, in seconds since 1970; of an object by the server's clock.
    """

    size: int
    modified: float


class Bucket:
    """The objects under a URL; cheap to make and to send, and connected when it is first used.

    Args:
        url: PROTOCOL://BUCKET/PREFIX, without a slash at the end.

    Raises:
        InputError: the URL holds credentials, or nothing here can open it.
    """

    def __init__(self, url: str) -> None:
        self.protocol, _, rest = url.partition("://")
        self.url = f"{self.protocol}://{rest.strip('/')}"
        if self.url != without_secrets([self.url])[0]:
            raise InputError(
                f"store {without_secrets([self.url])[0]}",
                "an address has no account in it: it stands in files and messages",
                "give the credentials in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or in ~/.aws",
            )
        if not rest.strip("/"):
            raise InputError(f"store '{url}'", "an address names a bucket", f"give {self.protocol}://BUCKET/PREFIX")

    def __reduce__(self) -> tuple[type[Bucket], tuple[str]]:
        return type(self), (self.url,)

    @cached_property
    def _files(self) -> Any:
        import fsspec

        try:
            files = fsspec.filesystem(self.protocol, use_listings_cache=False, **_options(self.protocol))
        except (ImportError, ValueError) as error:
            what = "pip install 'spo-bench[s3]'" if self.protocol == "s3" else "install the package that fsspec names"
            raise InputError(
                f"store '{self.url}': {_short(error)}", f"fsspec can open {self.protocol}:// addresses here", what
            ) from error
        return files

    @cached_property
    def _root(self) -> str:
        return str(self._files._strip_protocol(self.url)).rstrip("/")

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    @contextmanager
    def _asking(self, name: str, writing: bool = False) -> Iterator[None]:
        """Turn what a library raises into words. A full disk stays what it is; so does FileNotFoundError, unless it means the
        bucket, as where it was to be written to.
        """
        try:
            yield
        # Each library below fsspec has errors of its own, few of them of a common kind.
        except Exception as error:
            if isinstance(error, InputError) or is_disk_full(error) or (isinstance(error, FileNotFoundError) and not writing):
                raise
            raise Unreachable(
                f"store '{self.url}': {name or 'its list'}: {_short(error)}",
                "the bucket is there, and its objects can be listed, read and written",
                REMEDY,
            ) from error

    def reach(self, write: bool) -> None:
        """Check that objects can be listed, and with ``write`` that they can be written, read and removed.

        Raises:
            InputError: they cannot be.
        """
        self.find("runs")  # a short list
        if write:
            name, text = f"locks/try-{uuid4().hex}", b"spo-bench tries whether it can write"
            self.write(name, text)
            if self.read(name) != text:
                raise Unreachable(f"store '{self.url}': what was written is read back otherwise", "objects stay", REMEDY)
            self.remove(name)

    def find(self, under: str = "") -> dict[str, Object]:
        """Return all objects in a folder, by name."""
        with self._asking(under, writing=True):
            try:
                found = self._files.find(self._path(under), detail=True, refresh=True)
            except FileNotFoundError as error:
                if error.__cause__ is not None:  # it is the bucket that is not there
                    raise
                return {}
        start = len(self._root) + 1
        return {path[start:]: Object(int(one["size"] or 0), _when(one)) for path, one in sorted(found.items())}

    def has(self, name: str) -> bool:
        """Say whether there is an object."""
        with self._asking(name):
            return bool(self._files.isfile(self._path(name)))

    def read(self, name: str) -> bytes:
        """Return an object's content.

        Raises:
            FileNotFoundError: there is none.
        """
        with self._asking(name):
            return bytes(self._files.cat_file(self._path(name)))

    def read_all(self, names: Iterable[str]) -> dict[str, bytes]:
        """Return the contents of many small objects, without those that are not there."""
        paths = {self._path(name): name for name in names}
        with self._asking("many"):
            found = self._files.cat(list(paths), on_error="omit") if paths else {}
        return {paths[path]: bytes(content) for path, content in found.items()}

    def write(self, name: str, content: bytes, new: bool = False) -> bool:
        """Write an object; with ``new`` one that is there stays, where the server can decide that. Say whether it was written."""
        with self._asking(name, writing=True):
            try:
                self._files.pipe_file(self._path(name), content, mode="create" if new else "overwrite")
            except FileExistsError:
                return False
            except OSError as error:
                if new and "PreconditionFailed" in str(error.__cause__):
                    return False
                raise
        return True

    def upload(self, files: Iterable[tuple[Path, str]]) -> None:
        """Write files as objects, some at a time."""
        self._each(files, lambda path, name: self._files.put_file(str(path), self._path(name)), writing=True)

    def download(self, files: Iterable[tuple[Path, str]]) -> None:
        """Write objects as files, some at a time.

        Raises:
            FileNotFoundError: an object is not there; the message is its name.
        """

        def get(path: Path, name: str) -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._files.get_file(self._path(name), str(path))
            except FileNotFoundError as error:
                raise FileNotFoundError(name) from error

        self._each(files, get, writing=False)

    def _each(self, files: Iterable[tuple[Path, str]], act: Callable[[Path, str], object], writing: bool) -> None:
        def one(path: Path, name: str) -> None:
            with self._asking(name, writing):
                act(path, name)

        with ThreadPoolExecutor(AT_ONCE) as threads:
            try:
                for done in [threads.submit(one, path, name) for path, name in files]:
                    done.result()
            except BaseException:
                threads.shutdown(cancel_futures=True)
                raise

    def hash(self, name: str) -> str:
        """Return the SHA-256 of an object, which is read and not kept.

        Raises:
            FileNotFoundError: there is none.
        """
        found = hashlib.sha256()
        with self._asking(name), self._files.open(self._path(name), "rb", block_size=CHUNK, cache_type="readahead") as content:
            while part := content.read(CHUNK):
                found.update(part)
        return found.hexdigest()

    def remove(self, *names: str) -> None:
        """Remove objects; those that are not there are no fault."""
        if not names:
            return
        with self._asking(names[0]), suppress(FileNotFoundError):
            if len(names) == 1:
                self._files.rm_file(self._path(names[0]))
            else:
                self._files.rm([self._path(name) for name in names])


def _options(protocol: str) -> dict[str, Any]:
    """Return how a protocol's library is asked to work."""
    if protocol != "s3":
        return {}
    retries = {} if "AWS_MAX_ATTEMPTS" in os.environ else {"retries": {"mode": "standard", "max_attempts": ATTEMPTS}}
    return {"config_kwargs": {"connect_timeout": 10, "read_timeout": 60, **retries}}


def _when(one: dict[str, Any]) -> float:
    """Return when an object was written, from what a listing says of it."""
    found = next((one[name] for name in ("LastModified", "last_modified", "mtime", "updated", "created") if one.get(name)), 0.0)
    return float(found.timestamp() if hasattr(found, "timestamp") else found if isinstance(found, int | float) else 0.0)


def _short(error: BaseException) -> str:
    """Return what an error says, in one line and without what may be a key."""
    line = (str(error).splitlines() or [""])[0]
    return " ".join(without_secrets(f"{type(error).__name__}: {line}".split(" ")))
