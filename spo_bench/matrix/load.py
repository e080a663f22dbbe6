"""From a preset, a YAML file or a mapping to a checked spec."""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from yaml.constructor import ConstructorError
from yaml.scanner import ScannerError

from spo_bench.errors import InputError, suggestion, unknown
from spo_bench.matrix.faults import as_input_error, brief
from spo_bench.matrix.spec import TRAINED, Spec
from spo_bench.models.source import EMBEDDED
from spo_bench.plugins import find_tasks

PRESETS = Path(__file__).parent / "presets"
DEFAULT = "quick"
LARGEST = 100_000  # values in a file; a few nested aliases can stand for billions
DEEPEST = 50  # lists and mappings in one another, far from where the interpreter's own limit is in any place
LARGEST_FILE = 1_000_000  # bytes, read in seconds
_KEEP = (EMBEDDED, TRAINED)  # names with a meaning of their own, never paths
_TOO_DEEP = f"more than {DEEPEST} lists and mappings in one another, aliases written out"
Marks = dict[tuple[str | int, ...], str]


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, with the numbers of YAML 1.2: ``1e-6`` is a number, not text; what a value cannot be has its place."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Return the next node; raises ValueError where it is too deep, since every token costs as much as there are levels."""
        self.depth += 1
        if self.depth > DEEPEST + 1:
            raise ValueError(_TOO_DEEP)
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def scan_flow_scalar_non_spaces(self, double: bool, start_mark: yaml.Mark) -> list[str]:
        """Return the next pieces of a quoted text; raises ScannerError where an escape is no character of Unicode."""
        try:
            pieces: list[str] = super().scan_flow_scalar_non_spaces(double, start_mark)
        except (ValueError, OverflowError):
            raise ScannerError(None, None, "an escape is no character of Unicode", self.get_mark()) from None
        return pieces

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Return a node's value; raises ConstructorError where its text is none of its type, or of a size nothing here has."""
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, int) and value.bit_length() > 64:
                raise ValueError
        except (ValueError, LookupError, AttributeError, ArithmeticError):
            kind, mark = node.tag.rpartition(":")[2], node.start_mark
            raise ConstructorError(None, None, f"{brief(node.value)} is no {kind} that can be used", mark) from None
        return value


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


@dataclass
class _Raw:
    """What a file says, with the line of every key."""

    value: dict[str, Any]
    marks: Marks = field(default_factory=dict)


def presets() -> dict[str, str]:
    """Return the presets with the first line of their comment."""
    return {path.stem: path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ") for path in sorted(PRESETS.glob("*.yaml"))}


def preset_text(name: str) -> str:
    """Return a preset as it is written; raises InputError with the nearest name."""
    if name not in presets():
        raise unknown("preset", name, presets())
    return (PRESETS / f"{name}.yaml").read_text(encoding="utf-8")


def load_spec(
    source: str | Path | Mapping[str, Any] | Spec | None = None,
    *,
    methods: Iterable[str] = (),
    tasks: Iterable[str] = (),
    models: Iterable[str] = (),
    seeds: Iterable[int] = (),
    tasks_dirs: Iterable[str | Path] = (),
) -> Spec:
    """Return the spec of a preset's name, a YAML file or a mapping; None is the embedded default.

    Args:
        source: where it is. A preset's name comes before a file of that name without ending.
        methods, tasks, models, seeds: see ``narrow``.
        tasks_dirs: further folders of task plugins.

    Raises:
        InputError: all faults at once, each with file, line, key, what was given, the rule and the remedy.
    """
    if isinstance(source, Spec):
        return narrow(source, methods=methods, tasks=tasks, models=models, seeds=seeds)
    if isinstance(source, Mapping):
        origin, raw = "the given mapping", _extended(_Raw(dict(source)), "the given mapping", Path.cwd(), ())
        raw.value.setdefault("name", "spec")
    else:
        path = _find(DEFAULT if source is None else source)
        origin, raw = _shown(path), _read(path, ())
    directories = list(tasks_dirs)
    context = {"tasks": find_tasks(directories), "directories": directories}
    try:
        spec = Spec.model_validate(raw.value, context=context)
    except ValidationError as error:
        raise as_input_error(error, Spec, lambda path: place_in(raw.marks, path, origin)) from None
    return narrow(spec, methods=methods, tasks=tasks, models=models, seeds=seeds)


def narrow(
    spec: Spec,
    *,
    methods: Iterable[str] = (),
    tasks: Iterable[str] = (),
    models: Iterable[str] = (),
    seeds: Iterable[int] = (),
) -> Spec:
    """Return the part of a spec with these labels (or names, or model paths) and seeds; nothing given means all.

    What is left keeps its numbers: the SFT policy is still trained on the tasks of the whole matrix.

    Raises:
        InputError: something is asked for that the spec does not hold, with what is there.
    """
    place, tasks = f"spec '{spec.name}'", list(tasks)
    return spec.model_copy(
        update={
            "methods": _selected("method", list(methods), spec.methods, lambda e: (e.label, e.name), place),
            "sft_tasks": spec.tasks if tasks and spec.sft.steps and spec.sft_tasks is None else spec.sft_tasks,
            "tasks": _selected("task", tasks, spec.tasks, lambda e: (e.label, e.name), place),
            "models": _selected("model", list(models), spec.models, lambda e: (e.label, e.path), place),
            "seeds": _selected("seed", [str(seed) for seed in seeds], spec.seeds, lambda seed: (str(seed),), place),
        }
    )


def _selected(kind: str, wanted: Sequence[str], entries: Sequence[Any], names: Any, place: str) -> tuple[Any, ...]:
    """Return the entries one of whose names is wanted, in the spec's order."""
    for name in wanted:
        if not any(name in names(entry) for entry in entries):
            raise unknown(kind, name, [names(entry)[0] for entry in entries], where=place)
    return tuple(entry for entry in entries if not wanted or any(name in wanted for name in names(entry)))


def _find(source: str | Path) -> Path:
    """Return the file of a preset's name or a path."""
    if isinstance(source, str) and source in presets():
        return PRESETS / f"{source}.yaml"
    path = _existing(source)
    if path is not None and path.is_file():
        return path
    if path is not None and path.is_dir():
        raise InputError(f"spec '{source}' is a folder", "a spec is a preset's name or a YAML file", "name the file")
    folder = _existing(Path(source).parent)
    near = sorted(p.name for p in folder.iterdir() if p.suffix in (".yaml", ".yml")) if folder and folder.is_dir() else []
    close = difflib.get_close_matches(Path(source).name, near, n=1)
    also = f"; did you mean the file '{folder / close[0]}'?" if folder and close else ""
    raise InputError(
        f"spec '{source}' is neither a preset nor a file",
        "a spec is a preset's name or a YAML file",
        f"{suggestion(str(source), presets())}{also}",
    )


def _shown(path: Path) -> str:
    return f"preset {path.stem}" if path.parent == PRESETS else str(path)


def _read(path: Path, chain: tuple[Path, ...]) -> _Raw:
    """Return what a file says, over what it extends."""
    here = path.resolve()
    if here in chain:
        raise InputError(
            f"{_shown(chain[-1])} extends {_shown(path)}, which leads back to itself",
            "a spec cannot extend itself: " + " > ".join(_shown(p) for p in (*chain[chain.index(here) :], here)),
            "break the circle",
        )
    raw = parse_yaml(path)
    if "name" not in raw.value:
        raw.value["name"] = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).lstrip("._-") or "spec"
    return _extended(raw, _shown(path), path.parent, (*chain, here))


def _extended(raw: _Raw, origin: str, folder: Path, chain: tuple[Path, ...]) -> _Raw:
    """Lay what was read over what its key ``extends`` names; paths in it are meant from its own folder."""
    value = _with_paths(raw.value, folder)
    if "extends" not in value:
        return _Raw(value, raw.marks)
    place = place_in(raw.marks, ("extends",), origin)
    base = value.pop("extends")
    if not isinstance(base, str):
        raise InputError(f"{place}, extends: given {brief(base)}", "extends is one preset's name or one file", "give a name")
    beside = _existing(base, folder)
    try:
        found = beside if base not in presets() and beside is not None and beside.is_file() else _find(base)
    except InputError as error:
        raise InputError(
            f"{place}, extends: {error.given}", "extends is a preset's name or a file, from this file's folder", error.remedy
        ) from None
    below = _read(found, chain)
    return _Raw(_merged(below.value, value), {**below.marks, **raw.marks})


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one mapping over another: mappings merge, everything else is replaced."""
    result = dict(below)
    for key, value in above.items():
        under = result.get(key)
        # A judge of another backend has nothing in common with the one below.
        fresh = key == "judge" and isinstance(value, Mapping) and "backend" in value
        merge = isinstance(under, Mapping) and isinstance(value, Mapping) and not fresh
        result[key] = _merged(under or {}, value) if merge else value
    return result


def parse_yaml(path: Path, what: str = "a spec", remedy: str = "see `spo-bench presets show quick`") -> _Raw:
    """Return the mapping in a YAML file, which is ``what``, and the line of every key.

    Raises:
        InputError: it cannot be read, is not UTF-8, not YAML (with line and column), empty, no mapping, or has a key twice.
    """
    try:
        if (size := path.stat().st_size) > LARGEST_FILE:
            raise InputError(f"{path} has {size:,} bytes", f"{what} has at most {LARGEST_FILE:,}", remedy)
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error})", f"{what} is a UTF-8 text file", "check the file") from error
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        values, depth = _extent(node, {})
        if values > LARGEST:
            raise ValueError(f"more than {LARGEST} values, aliases written out")
        if depth > DEEPEST:
            raise ValueError(_TOO_DEEP)
        marks: Marks = {}
        _mark(node, (), _shown(path), marks, set())
        value = loader.construct_document(node) if node is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InputError(
            f"{_shown(path)}{at}: {error.problem or error.context}", f"{what} is YAML", "correct the line; indent with spaces"
        ) from error
    except (yaml.YAMLError, ValueError, ArithmeticError, RecursionError) as error:
        text = _TOO_DEEP if isinstance(error, RecursionError) else str(error)
        raise InputError(f"{_shown(path)}: {text}", f"{what} is YAML", "correct the file") from error
    if not isinstance(value, dict):
        given = "is empty" if value is None else f"holds a {type(value).__name__}"
        raise InputError(f"{_shown(path)} {given}", f"{what} is a mapping of keys to values", remedy)
    return _Raw({str(key): item for key, item in value.items()}, marks)


def _extent(node: yaml.Node | None, known: dict[int, tuple[float, int]]) -> tuple[float, int]:
    """Return how many values a node stands for, aliases written out, and how deep; one that holds itself has no end."""
    if not isinstance(node, yaml.CollectionNode):
        return 1, 0
    if id(node) not in known:
        known[id(node)] = inf, 0
        children = [child for item in node.value for child in (item if isinstance(item, tuple) else (item,))]
        sizes, depths = zip((0, 0), *(_extent(child, known) for child in children))
        known[id(node)] = 1 + sum(sizes), 1 + max(depths)
    return known[id(node)]


def _mark(node: yaml.Node | None, path: tuple[str | int, ...], name: str, marks: Marks, seen: set[int]) -> None:
    """Note the line of every key and item, and refuse a key that stands twice in one mapping."""
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for place, item in enumerate(node.value):
            marks[(*path, place)] = f"{name}, line {item.start_mark.line + 1}"
            _mark(item, (*path, place), name, marks, seen)
    elif isinstance(node, yaml.MappingNode):
        keys: dict[str, int] = {}
        for key, item in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.value in keys:
                raise InputError(
                    f"{name}, line {line}: key '{key.value}' again, first in line {keys[key.value]}",
                    "a key stands once in a mapping",
                    "remove one of them",
                )
            if isinstance(key, yaml.ScalarNode):
                keys[key.value] = line
                marks[(*path, key.value)] = f"{name}, line {line}"
                _mark(item, (*path, key.value), name, marks, seen)


def place_in(marks: Marks, path: tuple[str | int, ...], origin: str) -> str:
    """Return file and line of the longest part of a path that stands in a file."""
    return next((marks[path[:end]] for end in range(len(path), 0, -1) if path[:end] in marks), origin)


def _with_paths(raw: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a spec's mapping with its relative local paths made absolute where something is there."""
    value = dict(raw)

    def listed(key: str, change: Any) -> None:
        if isinstance(value.get(key), list | tuple):
            value[key] = [change(item) for item in value[key]]

    def inside(item: Any, *keys: str) -> Any:
        if not isinstance(item, Mapping):
            return item
        return {**item, **{key: _local(item[key], folder) for key in keys if key in item}}

    listed("models", lambda item: _local(item, folder) if isinstance(item, str) else inside(item, "path", "adapter"))
    for key in ("tasks", "sft_tasks"):
        listed(key, lambda item: _with_metrics(inside(item, "data"), folder))
    listed("rewards", lambda item: _local(item, folder))
    if isinstance(axes := value.get("data_axes"), Mapping):
        value["data_axes"] = {key: _in_axis(item, folder) for key, item in axes.items()}
    judge = value.get("judge")
    if isinstance(judge, str) and judge.startswith(("reward:", "local:")):
        backend, _, model = judge.partition(":")
        value["judge"] = f"{backend}:{_local(model, folder)}"
    elif isinstance(judge, Mapping) and judge.get("backend") in ("reward", "local"):
        value["judge"] = inside(judge, "model")
    return value


def _in_axis(item: Any, folder: Path) -> Any:
    """Return a data axis with the paths of its models made absolute: of labellers, of scores, of others that answer."""
    if isinstance(item, list | tuple):
        return [_in_axis(one, folder) for one in item]
    if not isinstance(item, Mapping):
        return item
    own = dict(item)
    for key in ("labeller", "scores"):
        if isinstance(own.get(key), str) and own[key].startswith("reward:"):
            own[key] = f"reward:{_local(own[key].removeprefix('reward:'), folder)}"
    if isinstance(own.get("models"), list | tuple):
        own["models"] = [_local(name, folder) for name in own["models"]]
    return own


def _with_metrics(item: Any, folder: Path) -> Any:
    """Return a task's mapping with the paths of local metric scripts made absolute."""
    if not isinstance(item, Mapping) or not isinstance(item.get("metrics"), list | tuple):
        return item
    scripts = [
        name.removeprefix("evaluate:") if isinstance(name, str) and name.startswith("evaluate:") else None
        for name in item["metrics"]
    ]
    metrics = [name if script is None else f"evaluate:{_local(script, folder)}" for name, script in zip(item["metrics"], scripts)]
    return {**item, "metrics": metrics}


def _local(name: Any, folder: Path) -> Any:
    """Return the absolute path of what a name is in the spec's folder, else in the working directory, else the name itself."""
    if not isinstance(name, str) or not name or name in _KEEP:
        return name
    for base in (folder, Path.cwd()):
        if (path := _existing(name, base)) is not None:
            return os.path.abspath(path)  # a link keeps its name: it is the model's label
    return name


def _existing(name: str | Path, folder: Path = Path()) -> Path | None:
    """Return the path of what a name is from a folder, None where nothing is there, as of a user whom nobody knows."""
    path = folder / os.path.expanduser(name)
    try:
        return path if path.exists() else None
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return None
