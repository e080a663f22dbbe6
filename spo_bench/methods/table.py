"""Methods and additions as text: what each reads, how it is written in a spec, and the tables of the documentation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from spo_bench.methods.base import Addition, Default, Method
from spo_bench.methods.registry import addition_names, get_addition, get_method, method_names

_ARXIV = re.compile(r"arXiv (\d{4}\.\d{5})")


def reads(method: Method) -> list[str]:
    """Return what a loss reads beside the policy's log-probabilities and the lengths."""
    scores = "scores of the answers" if method.needs_scores else "scores of the answers, where the data has them"
    wanted = [
        (method.needs_reference, "the reference"),
        (method.needs_scores or method.data == "listwise", scores),
        (method.needs_collision, "per-token collisions (sum_v p(v)^2)"),
        (method.needs_kl, "mismatched pairs (a prompt with another's answer)"),
        (method.running is not None, "running statistics"),
    ]
    return [name for needed, name in wanted if needed]


def refused_by(addition: Addition) -> dict[str, str]:
    """Return the methods an addition makes no sense with, each with the reason."""
    reasons = {name: addition.refuses(get_method(name), ()) for name in method_names()}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def refused_additions(method: Method) -> dict[str, str]:
    """Return the additions that make no sense with a method, each with the reason."""
    reasons = {name: get_addition(name).refuses(method, ()) for name in addition_names()}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def clashes(addition: Addition) -> dict[str, str]:
    """Return the other additions that one cannot be used beside, each with the reason, whatever the method."""
    reasons: dict[str, str | None] = {}
    for other in (get_addition(name) for name in addition_names() if name != addition.name):
        refused = {*refused_by(addition), *refused_by(other)}
        method = next((get_method(name) for name in method_names() if name not in refused), None)
        if method is not None:
            reasons[other.name] = addition.refuses(method, [other.name]) or other.refuses(method, [addition.name])
    return {name: reason for name, reason in reasons.items() if reason is not None}


def spec_line(one: Method | Addition) -> str:
    """Return the line of a spec that lists a method with all its hyperparameters, or an addition to dpo with all its settings."""
    entry: dict[str, Any] = {"name": one.name, **{key: default.value for key, default in one.defaults.items()}}
    if isinstance(one, Addition):
        entry = {"name": "dpo", "plus": [entry]}
    return _flow({"methods": [entry]})


def _flow(value: Mapping[str, Any]) -> str:
    """Return a mapping of one key as one line of YAML."""
    written = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=float("inf"))
    return written.strip().removeprefix("{").removesuffix("}")


def markdown_table() -> str:
    """Return the tables of all methods and additions in Markdown, made from their declarations."""
    methods = [get_method(name) for name in method_names()]
    additions = [get_addition(name) for name in addition_names()]
    losses = [(_code(m.name), _code(m.formula), _linked(m.reference)) for m in methods]
    needs = [
        (
            _code(m.name),
            m.data,
            "yes" if m.needs_reference else "no",
            m.reduction,
            "yes" if m.batch_coupled else "no",
            "; ".join(reads(m)[m.needs_reference :]) or "–",
            _defaults(m.defaults),
        )
        for m in methods
    ]
    added = [
        (
            _code(f"+{a.name}"),
            _code(a.formula),
            _defaults(a.defaults),
            ", ".join(_code(name) for name in (*refused_by(a), *(f"+{other}" for other in clashes(a)))) or "–",
            _linked(a.reference),
        )
        for a in additions
    ]
    parts = [
        f"### The {len(methods)} losses",
        _table(("method", "loss of a pair", "source"), losses),
        "### What each needs, and its defaults",
        _table(("method", "data", "reference", "log-probs", "batch-coupled", "reads also", "defaults (who uses them)"), needs),
        f"### The {len(additions)} additions",
        _table(("addition", "what it adds", "defaults (who uses them)", "not with", "source"), added),
    ]
    return "\n\n".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code(text: str) -> str:
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def _linked(reference: str) -> str:
    return _ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", reference)


def _defaults(defaults: Mapping[str, Default]) -> str:
    return "<br>".join(f"{_code(f'{key} = {default.value}')} ({default.source})" for key, default in defaults.items())
