"""Where tasks come from: the built-in ``tasks/`` folder, entry points, and folders a person names.

A folder's modules are loaded by file under a private package name, so that no other module called ``tasks`` can stand in for
them and relative imports between them work. A plugin module is a ``*.py`` whose name does not start with an underscore; its
tasks are the ``Task`` subclasses defined in it that have a ``name``.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.metadata import entry_points
from pathlib import Path

import spo_bench
from spo_bench.errors import InputError, suggestion
from spo_bench.task import Task

GROUP = "spo_bench.tasks"
NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class TaskPlugin:
    """A task that can be used: its name, its class, and where it was found."""

    name: str
    cls: type[Task]
    origin: str


@dataclass(frozen=True)
class BrokenPlugin:
    """A plugin that could not be loaded: its module's or entry point's name, where it is, and where and why it failed."""

    name: str
    origin: str
    reason: str


def where_it_failed(error: BaseException) -> str:
    """Return the places in a plugin's own code that an error came through, and the error; nothing of who called it."""
    ours = (str(Path(spo_bench.__file__).parent), str(Path(importlib.__file__).parent), "<frozen")
    frames = [one for one in traceback.extract_tb(error.__traceback__) if not one.filename.startswith(ours)]
    return "".join([*traceback.format_list(frames), *traceback.format_exception_only(error)]).rstrip()


def built_in_folder() -> Path:
    """Return the built-in ``tasks/``: beside the package in a checkout and in an installed copy alike."""
    return Path(spo_bench.__file__).resolve().parent.parent / "tasks"


def is_built_in(cls: type[Task]) -> bool:
    """Say whether a task is one of ours."""
    return Path(inspect.getfile(cls)).resolve().is_relative_to(built_in_folder())


def find_tasks(directories: Iterable[str | Path] = ()) -> dict[str, TaskPlugin]:
    """Return the usable tasks by name: built in, from entry points, and from the given folders (or single ``.py`` files).

    Raises:
        InputError: two tasks have one name, or a given folder is not there.
    """
    found: dict[str, TaskPlugin] = {}
    for plugin in _everything(directories):
        if isinstance(plugin, BrokenPlugin):
            continue
        if plugin.name in found:
            raise InputError(
                f"two tasks are named '{plugin.name}': {found[plugin.name].origin} and {plugin.origin}",
                "a task's name is unique",
                "rename one of them, or leave its plugin out",
            )
        found[plugin.name] = plugin
    return dict(sorted(found.items()))


def broken_tasks(directories: Iterable[str | Path] = ()) -> list[BrokenPlugin]:
    """Return the plugins that could not be loaded, with where and why they failed; they do not stop the others."""
    return [plugin for plugin in _everything(directories) if isinstance(plugin, BrokenPlugin)]


def unknown_task(name: str, directories: Iterable[str | Path] = (), where: str = "") -> InputError:
    """Build the error for a task that is not there: the nearest name, or where and why its plugin failed."""
    directories = list(directories)
    broken = broken_tasks(directories)
    place = f" in {where}" if where else ""
    for plugin in broken:
        if plugin.name == name:
            return InputError(
                f"task '{name}'{place} cannot be used: {plugin.origin} could not be loaded\n{plugin.reason}",
                "a task plugin can be imported and defines a Task subclass with a name",
                "repair the plugin (`spo-bench tasks validate PATH` checks it), or leave it out",
            )
    remedy = suggestion(name, find_tasks(directories))
    if broken:
        remedy += f"; could not be loaded: {', '.join(f'{p.name} ({p.origin})' for p in broken)}"
    return InputError(f"unknown task '{name}'{place}", "a task is one of the known names", remedy)


def get_task(name: str, data: str | None = None, directories: Iterable[str | Path] = ()) -> Task:
    """Return a task of that name over ``data`` (a local file or a hub id; None for tasks that make their own rows).

    Raises:
        InputError: there is no such task, its plugin is broken, or it needs data and none was given.
    """
    directories = list(directories)
    found = find_tasks(directories)
    if name not in found:
        raise unknown_task(name, directories)
    check_data(found[name], data)
    return found[name].cls(data)


def check_data(plugin: TaskPlugin, data: str | None) -> None:
    """Raise InputError where a task lacks the data it needs, or is given data it would not read."""
    if data is None and plugin.cls.needs_data:
        raise InputError(
            f"task '{plugin.name}' has no data",
            "this task reads preferences from a file or a hub data set",
            f"give it: {{name: {plugin.name}, data: FILE_OR_HUB_ID}}",
        )
    if data is not None and plugin.cls.controlled and not plugin.cls.needs_data:
        raise InputError(
            f"task '{plugin.name}' is given data '{data}'", "a controlled task makes its own rows", "leave `data` out"
        )


def _everything(directories: Iterable[str | Path]) -> Iterator[TaskPlugin | BrokenPlugin]:
    """Yield every plugin, usable or broken, in the order built-in, entry points, folders."""
    places = [built_in_folder()]
    for given in directories:
        path = Path(given).expanduser()
        if not path.is_dir() and not (path.is_file() and path.suffix == ".py"):
            raise InputError(
                f"task folder '{given}' is not there", "a folder of task plugins (*.py), or one such file", "check the path"
            )
        if path.resolve() not in places:
            places.append(path.resolve())
    if places[0].is_dir():
        yield from _folder(places[0], _stamp(places[0]))
    yield from _from_entry_points()
    for place in places[1:]:
        yield from _folder(place, _stamp(place))


def _stamp(place: Path) -> tuple[tuple[str, int, int], ...]:
    """Return what changes when a file in the folder does, so that a long-lived process sees the change."""
    folder = place if place.is_dir() else place.parent
    return tuple((path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(folder.glob("*.py")))


@functools.lru_cache(maxsize=64)
def _folder(place: Path, stamp: tuple[tuple[str, int, int], ...]) -> tuple[TaskPlugin | BrokenPlugin, ...]:
    """Load a folder (or one file of it) as a package of its own."""
    folder = place if place.is_dir() else place.parent
    package = f"_spo_bench_tasks_{hashlib.sha256(f'{place}|{stamp}'.encode()).hexdigest()[:16]}"
    modules = [place] if place.is_file() else [folder / name for name, _, _ in stamp if not name.startswith("_")]
    try:
        _load_package(package, folder)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a plugin raises is reported under its name
        return (BrokenPlugin(folder.name, f"{folder / '__init__.py'}", where_it_failed(error)),)
    plugins: list[TaskPlugin | BrokenPlugin] = []
    for path in modules:
        try:
            module = importlib.import_module(f"{package}.{path.stem}")
        except (Exception, SystemExit) as error:  # noqa: BLE001 - as above
            plugins.append(BrokenPlugin(path.stem, str(path), where_it_failed(error)))
            continue
        classes = [value for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__]
        # A name that starts with an underscore, or no `name`, marks a base class that is shared within the module.
        tasks = [cls for cls in classes if issubclass(cls, Task) and not cls.__name__.startswith("_") and hasattr(cls, "name")]
        if not tasks:
            plugins.append(
                BrokenPlugin(path.stem, str(path), "the module defines no subclass of spo_bench.task.Task with a name")
            )
        plugins += [_plugin(cls, path.stem, f"{path} ({cls.__name__})") for cls in dict.fromkeys(tasks)]
    return tuple(plugins)


def _load_package(package: str, folder: Path) -> None:
    """Put the folder's package into ``sys.modules`` under its private name."""
    init = folder / "__init__.py"
    spec: ModuleSpec | None
    if init.is_file():
        spec = importlib.util.spec_from_file_location(package, init, submodule_search_locations=[str(folder)])
    else:
        spec = ModuleSpec(package, None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
    if spec is None:
        raise ImportError(f"{init} cannot be loaded")
    importlib.invalidate_caches()
    module = importlib.util.module_from_spec(spec)
    sys.modules[package] = module
    if spec.loader is not None:
        spec.loader.exec_module(module)


def _from_entry_points() -> Iterator[TaskPlugin | BrokenPlugin]:
    """Yield what other packages declare under the entry-point group."""
    points = {(point.name, point.value): point for point in entry_points(group=GROUP)}
    for (name, value), point in sorted(points.items()):
        package = f" of {point.dist.name} {point.dist.version}" if point.dist is not None else ""
        origin = f"entry point {name} = {value}{package}"
        try:
            cls = point.load()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a plugin raises is reported under its name
            yield BrokenPlugin(name, origin, where_it_failed(error))
        else:
            yield _plugin(cls, name, origin)


def _plugin(cls: object, module: str, origin: str) -> TaskPlugin | BrokenPlugin:
    """Return the plugin of a class, broken where it is no task or its name cannot be used."""
    if not (isinstance(cls, type) and issubclass(cls, Task)):
        return BrokenPlugin(module, origin, f"it gives {cls!r}, not a subclass of spo_bench.task.Task")
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not NAME.fullmatch(name):
        return BrokenPlugin(
            module, origin, f"its name is {name!r}; a name is lower-case letters, digits and underscores, a letter first"
        )
    return TaskPlugin(name, cls, origin)
