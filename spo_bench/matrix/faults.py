"""From pydantic's errors to one InputError that says where, what was given, the rule and the remedy."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from spo_bench.errors import InputError, suggestion

Path = tuple[str | int, ...]
_SHOWN = 8  # faults named at once
# What pydantic says in words of Python, in those of a YAML file.
_WORDS = {
    **dict.fromkeys(("tuple_type", "list_type"), "it should be a list"),
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "it should be a mapping of keys to values"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "it should be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "it should be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "it should be true or false"),
    "string_type": "it should be text",
}


class _Brief(reprlib.Repr):
    """Values of whatever size in a few words, as a YAML file has them."""

    def repr_bool(self, value: bool, level: int) -> str:
        return str(value).lower()

    def repr_NoneType(self, value: None, level: int) -> str:  # noqa: N802 - reprlib finds it by the type's name
        return "null"


_brief = _Brief()
_brief.maxlevel, _brief.maxstring, _brief.maxother = 2, 80, 80
_REMEDY = "correct this key; `spo-bench presets show quick` prints a complete spec"


def brief(value: Any) -> str:
    """Write a value of whatever size for a message."""
    return _brief.repr(value)


def fault(given: str, rule: str, remedy: str = "", key: str = "") -> PydanticCustomError:
    """Build an error to raise inside a validator; ``key`` is the field it is about, where the validator sees the whole model."""
    return PydanticCustomError("spec_fault", "{given}", {"given": given, "rule": rule, "remedy": remedy, "key": key})


def from_input_error(error: InputError) -> PydanticCustomError:
    """Build the error to raise inside a validator from one that a lower room raised."""
    return fault(error.given, error.rule, error.remedy)


def dotted(path: Path) -> str:
    """Write a path as in ``tasks[0].limit.train``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def as_input_error(
    error: ValidationError, model: type[BaseModel], place: Callable[[Path], str], remedy: str = _REMEDY
) -> InputError:
    """Return one InputError for all faults; ``place`` gives file and line of a path, ``remedy`` where no other is known."""
    faults: dict[Path, tuple[str, str, str]] = {}
    for item in error.errors(include_url=False):
        path, owner, found = _locate(model, item["loc"], str(item["type"]))
        context: Mapping[str, Any] = item.get("ctx", {})
        if item["type"] == "spec_fault":
            path += (context["key"],) if context["key"] else ()
            entry = (context["given"], context["rule"], context["remedy"] or remedy)
        elif item["type"] == "extra_forbidden" and owner is not None:
            entry = (
                f"unknown key '{path[-1]}'",
                "only the keys of this section are known",
                suggestion(str(path[-1]), owner.model_fields),
            )
        elif item["type"] == "missing":
            entry = (f"'{path[-1]}' is missing", _rule("it must be given", found), remedy)
        else:
            text = re.sub(r"^\w+ should", "it should", item["msg"].removeprefix("Value error, "))
            text = _WORDS.get(str(item["type"]), re.sub(r" after validation, not \d+$", "", text))
            names = re.findall(r"'([^']*)'", str(context.get("expected", "")))
            advice = suggestion(item["input"], names) if names and isinstance(item["input"], str) else remedy
            entry = (f"given {brief(item['input'])}", _rule(text, found), advice)
        # A list whose items are all at fault is reported as too short besides.
        if item["type"] != "too_short" or not item["input"]:
            faults.setdefault(path, entry)
    lines = [
        (f"{place(path)}{f', {dotted(path)}' if path else ''}: {given}", rule, advice)
        for path, (given, rule, advice) in faults.items()
    ]
    if len(lines) == 1:
        return InputError(*lines[0])
    listed = "\n".join(f"  - {given}\n    rule: {rule}\n    remedy: {advice}" for given, rule, advice in lines[:_SHOWN])
    more = f"\n  and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return InputError(
        f"{len(lines)} faults in {place(())}:\n{listed}{more}",
        "every key is known and has a value it can take",
        "correct these keys",
    )


def _rule(text: str, found: FieldInfo | None) -> str:
    """Return the rule with what the field is for."""
    return f"{text} ({found.description})" if found is not None and found.description else text


def _locate(model: type[BaseModel], loc: Path, kind: str) -> tuple[Path, type[BaseModel] | None, FieldInfo | None]:
    """Return pydantic's location without its union tags, the model its last key belongs to, and the field there."""
    path: list[str | int] = []
    owner: type[BaseModel] | None = model
    here: type[BaseModel] | None = model  # the model whose keys come next
    found: FieldInfo | None = None
    for number, part in enumerate(loc):
        if isinstance(part, int):
            path.append(part)
        elif here is not None and part in here.model_fields:
            path.append(part)
            owner, found = here, here.model_fields[part]
            here = _model_in(found.annotation)
        elif kind in ("extra_forbidden", "missing") and number == len(loc) - 1:
            path.append(part)
            owner, found = here, None
    return tuple(path), owner, found


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the first pydantic model inside an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _model_in(arg)) is not None), None)
