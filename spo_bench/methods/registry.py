"""Which methods and additions there are, and their hyperparameters with defaults filled in and checked.

A method is a module of this package that defines ``METHOD``, or an entry point of the group ``spo_bench.methods`` that loads
to a ``Method``; an addition is a module of the package ``additions`` that defines ``ADDITION``. To add one, add one file.
"""

from __future__ import annotations

import functools
import importlib
import math
import pkgutil
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from spo_bench.errors import InputError, unknown
from spo_bench.methods.base import Addition, Default, Method
from spo_bench.plugins import where_it_failed

GROUP = "spo_bench.methods"
SFT = "sft"  # the name of the row without preference training; no method may take it
_PACKAGE = __name__.rpartition(".")[0]
_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Registry:
    """What discovery found.

    Attributes:
        methods: name -> declaration, sorted by name.
        origins: name -> module or entry point it comes from.
        broken: entry point that could not be loaded -> where and why it failed.
    """

    methods: Mapping[str, Method]
    origins: Mapping[str, str]
    broken: Mapping[str, str]


def _declared(package: str, constant: str) -> Iterator[tuple[str, Any]]:
    """Yield (module name, declaration) of every module of a package that declares one under this name."""
    path = importlib.import_module(package).__path__
    for module in sorted(pkgutil.iter_modules(path), key=lambda found: found.name):
        name = f"{package}.{module.name}"
        declared = getattr(importlib.import_module(name), constant, None)
        if declared is not None:
            yield name, declared


@functools.cache
def discover() -> Registry:
    """Find every method, once a process.

    A broken entry point is recorded and does not stop the others. Raises InputError for two methods with one name, and for
    something declared as a method that is none.
    """
    found: list[tuple[str, Any]] = list(_declared(_PACKAGE, "METHOD"))
    broken: dict[str, str] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        origin = f"entry point {point.name} = {point.value}"
        try:
            found.append((origin, point.load()))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a third party raises is reported under its name
            broken[origin] = where_it_failed(error)
    methods: dict[str, Method] = {}
    origins: dict[str, str] = {}
    for origin, method in found:
        if not isinstance(method, Method):
            raise InputError(
                f"{origin} gives a {type(method).__name__}, not a method",
                "a method is an instance of spo_bench.methods.Method",
                "make it one, or uninstall the plugin",
            )
        if method.name == SFT or not _NAME.fullmatch(method.name):
            raise InputError(
                f"method name '{method.name}' in {origin}",
                f"a name has lower-case letters, digits and underscores, and is not '{SFT}' (the row without training)",
                "rename the method",
            )
        if method.name in methods:
            raise InputError(
                f"two methods are named '{method.name}': {origins[method.name]} and {origin}",
                "a method's name is unique",
                "rename one, or uninstall one of the plugins",
            )
        methods[method.name], origins[method.name] = method, origin
    names = sorted(methods)
    return Registry({name: methods[name] for name in names}, {name: origins[name] for name in names}, broken)


def method_names() -> list[str]:
    """Return the names of all methods, sorted."""
    return list(discover().methods)


def get_method(name: str) -> Method:
    """Return the method of that name; raises InputError with the nearest name, and says which plugins are broken."""
    found = discover()
    if name in found.methods:
        return found.methods[name]
    error = unknown("method", name, found.methods)
    if found.broken:
        plugins = "\n".join(f"{origin} cannot be loaded:\n{text}" for origin, text in found.broken.items())
        error = InputError(error.given, error.rule, f"{error.remedy}\n{plugins}")
    raise error


def resolve(name: str, hyperparameters: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return all hyperparameters of a method: those given, checked, and defaults for the rest.

    Raises InputError for an unknown method or hyperparameter, a wrong type, a value that is not finite or out of range.
    """
    method = get_method(name)
    values = _resolved(f"method {name}", method.defaults, hyperparameters or {})
    if method.check is not None:
        try:
            method.check(values)
        except ValueError as error:
            raise InputError(f"method {name} with {values}", str(error), f"see `spo-bench methods show {name}`") from error
    return values


@functools.cache
def _additions() -> Mapping[str, Addition]:
    return {addition.name: addition for _, addition in _declared(f"{_PACKAGE}.additions", "ADDITION")}


def addition_names() -> list[str]:
    """Return the names of all additions, sorted."""
    return list(_additions())


def get_addition(name: str) -> Addition:
    """Return the addition of that name; raises InputError with the nearest name."""
    if name not in _additions():
        raise unknown("addition", name, _additions())
    return _additions()[name]


def resolve_addition(name: str, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return all settings of an addition, those given checked. Raises InputError as ``resolve`` does."""
    return _resolved(f"addition {name}", get_addition(name).defaults, settings or {})


def check_additions(method: Method, names: Collection[str]) -> None:
    """Raise InputError where a method and additions make no sense together, with the reason."""
    for name in names:
        reason = get_addition(name).refuses(method, [other for other in names if other != name])
        if reason is not None:
            raise InputError(f"{method.name} with +{name}", reason, f"leave +{name} out")


def _resolved(owner: str, defaults: Mapping[str, Default], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return every value of a declaration: those given, checked, and defaults for the rest."""
    values = {key: default.value for key, default in defaults.items()}
    for key, value in given.items():
        if key not in values:
            raise unknown("hyperparameter", key, values, where=owner)
        values[key] = _checked(owner, key, value, defaults[key])
    return values


def _checked(owner: str, key: str, value: Any, default: Default) -> Any:
    """Return a hyperparameter's value in its declared type, or raise InputError."""
    wanted = type(default.value)
    accepted = (int, float) if wanted is float else wanted
    fine = isinstance(value, accepted) and (wanted is bool or not isinstance(value, bool))
    if fine and wanted is float:
        try:
            value = float(value)
        except OverflowError:
            fine = False
        else:
            fine = math.isfinite(value)
    if fine and wanted in (int, float):
        fine = (
            (default.above is None or value > default.above)
            and (default.at_least is None or value >= default.at_least)
            and (default.below is None or value < default.below)
            and (default.at_most is None or value <= default.at_most)
        )
    if not fine or (default.choices and value not in default.choices):
        raise InputError(
            f"{key} = {value!r} of {owner}",
            f"{key} is {default.rule()}",
            f"give such a value, or leave {key} out for the default {default.value!r}",
        )
    return value
