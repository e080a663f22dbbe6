"""The options of a judge, and the judge they describe."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from spo_bench.cli.common import WHERE
from spo_bench.errors import InputError

JUDGE = "The judge"
LIMITS = "Traffic and money"

Pairs = Annotated[
    Path, typer.Argument(metavar="PAIRS.jsonl", help="Rows of id, prompt, a, b; for an audit also label (a|b|tie).")
]
Model = Annotated[
    str,
    typer.Option(
        "--judge",
        "--model",
        metavar="NAME",
        help="The endpoint's model, or local:MODEL (a directory or hub id).",
        rich_help_panel=JUDGE,
    ),
]
BaseUrl = Annotated[
    str | None,
    typer.Option("--base-url", envvar="OPENAI_BASE_URL", help="Address of an OpenAI-compatible endpoint.", rich_help_panel=JUDGE),
]
KeyName = Annotated[str, typer.Option("--api-key-env", help="Environment variable with the key.", rich_help_panel=JUDGE)]
TaskName = Annotated[str, typer.Option("--task", help="The task whose judge prompt is used.", rich_help_panel=JUDGE)]
Template = Annotated[
    Path | None,
    typer.Option("--template", help="A file with a judge prompt of your own: slots {prompt}, {a}, {b}.", rich_help_panel=JUDGE),
]
Form = Annotated[
    str, typer.Option("--verdict", help="How verdicts are asked for: auto, json, text or logprobs.", rich_help_panel=JUDGE)
]
OrderNames = Annotated[str, typer.Option("--orders", help="both, or one (drawn for each pair).", rich_help_panel=JUDGE)]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", min=1, help="Longest reply, tokens.", rich_help_panel=JUDGE)]
Temperature = Annotated[
    float | None, typer.Option("--temperature", min=0, help="\\[default: 0 where the model takes it]", rich_help_panel=JUDGE)
]
Seed = Annotated[int, typer.Option("--seed", help="Of the marks that fence answers.", rich_help_panel=JUDGE)]
Epoch = Annotated[
    int, typer.Option("--epoch", min=0, help="Judge afresh: replies of one epoch are not used in another.", rich_help_panel=JUDGE)
]
Concurrency = Annotated[int, typer.Option("--concurrency", min=1, help="Most requests at once.", rich_help_panel=LIMITS)]
Retries = Annotated[int, typer.Option("--retries", min=0, help="Further tries of a request.", rich_help_panel=LIMITS)]
Timeout = Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds a reply may take.", rich_help_panel=LIMITS)]
MaxCost = Annotated[
    float | None,
    typer.Option("--max-cost", min=0, help="US dollars; judging stops before it passes them.", rich_help_panel=LIMITS),
]
MaxCalls = Annotated[
    int | None, typer.Option("--max-calls", min=0, help="Requests; judging stops before it passes them.", rich_help_panel=LIMITS)
]
PriceIn = Annotated[
    float | None, typer.Option("--price-input", min=0, help="US dollars a million prompt tokens.", rich_help_panel=LIMITS)
]
PriceOut = Annotated[
    float | None, typer.Option("--price-output", min=0, help="US dollars a million completion tokens.", rich_help_panel=LIMITS)
]
MaxInvalid = Annotated[
    float,
    typer.Option("--max-invalid", min=0, max=1, help="Share of invalid verdicts above which it fails.", rich_help_panel=LIMITS),
]
Cache = Annotated[
    Path | None, typer.Option("--cache", help="File of replies \\[default: judge.sqlite in the store].", rich_help_panel=WHERE)
]


ENDPOINT = (
    *("base_url", "api_key_env", "verdict", "max_tokens", "temperature", "concurrency", "retries", "timeout"),
    *("max_cost", "max_calls", "price_input", "price_output"),
)
"""Options that only a judge behind an endpoint has."""


def settings_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a judge among a command's options."""
    names = (*ENDPOINT, "task", "template", "orders", "seed", "epoch", "cache")
    return {name: values[name] for name in names}


def build(
    settings: Mapping[str, Any], name: str, purse: str, store: str | None, device: str, offline: bool, tasks: list[Path] | None
) -> tuple[Any, dict[str, Any]]:
    """Return (the judge, what it is, for files)."""
    from hashlib import sha256
    from typing import get_args

    from spo_bench.api import default_store
    from spo_bench.errors import unknown
    from spo_bench.judging.language import Orders
    from spo_bench.judging.store import FILE
    from spo_bench.store.opening import open_store
    from spo_bench.store.place import check_writable

    if settings["orders"] not in get_args(Orders):
        raise unknown("choice of orders", settings["orders"], get_args(Orders))
    root = open_store(store or default_store()).root
    check_writable("store", root)
    cache = settings["cache"] or root / FILE
    text, label = _template(settings["task"], settings["template"], tasks)
    same = {"template": text, "cache": cache, **{key: settings[key] for key in ("orders", "seed", "epoch")}}
    described = {"prompt": label, "prompt_sha256": sha256(text.encode()).hexdigest(), "orders": settings["orders"]}
    described |= {"seed": settings["seed"], "epoch": settings["epoch"]}
    backend, colon, model = name.partition(":")
    if not (model if colon else name).strip():
        raise InputError(f"--judge '{name}' names no model", "a judge is an endpoint's model, or local:MODEL", "name the model")
    if backend == "local" and colon:
        return _local(settings, model, same, described, root, device, offline)
    if backend == "openai" and colon:
        name = model
    elif name == "gold" or (backend == "reward" and colon) or (Path(name).is_dir() and settings["base_url"] is None):
        raise InputError(
            f"--judge {name}",
            "a judge of pairs is an endpoint's model or local:MODEL, a model on this machine",
            f"give --judge local:{name}" if Path(name).is_dir() else "name a model that reads both answers",
        )
    return _endpoint(settings, name, purse, same, described)


def _endpoint(
    settings: Mapping[str, Any], name: str, purse: str, same: Mapping[str, Any], described: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    from typing import get_args

    from spo_bench.errors import unknown
    from spo_bench.judging.api import ApiJudge
    from spo_bench.judging.capabilities import address, key_in_environment
    from spo_bench.judging.prompt import Form as Forms

    forms = ("auto", *get_args(Forms))
    if settings["verdict"] not in forms:
        raise unknown("verdict", settings["verdict"], forms)
    judge = ApiJudge(model=name, budget=purse, **same, **{key: settings[key] for key in ENDPOINT})
    key_in_environment(judge.api_key_env, judge.base_url)
    shown = {"max_tokens": judge.room, "temperature": judge.temperature}
    return judge, {"backend": "openai", "model": name, "endpoint": address(judge.base_url), "parameters": shown, **described}


def _local(
    settings: Mapping[str, Any],
    model: str,
    same: Mapping[str, Any],
    described: Mapping[str, Any],
    root: Path,
    device: str,
    offline: bool,
) -> tuple[Any, dict[str, Any]]:
    from dataclasses import fields

    from spo_bench.engine.hire import choose_device
    from spo_bench.judging.settings import ApiSettings, longest
    from spo_bench.models.source import model_identity, resolve
    from spo_bench.store.hashes import HashCache

    defaults = {one.name: one.default for one in fields(ApiSettings)} | {"base_url": os.environ.get("OPENAI_BASE_URL")}
    given = [key for key in ENDPOINT if settings[key] != defaults[key]]
    if given:
        options = ", ".join(f"--{key.replace('_', '-')}" for key in given)
        raise InputError(f"{options} for the judge local:{model}", "only a judge behind an endpoint has these", "leave them out")
    directory = resolve(model, None, offline)
    where = choose_device(device)

    from spo_bench.judging.local import load_local_judge  # torch, which no fault above has to wait for
    from spo_bench.models.numerics import Numerics

    numerics = Numerics(where, "bfloat16" if where.startswith("cuda") else "float32", "float32")
    identity = model_identity(directory, HashCache(root))
    name = f"local:{model}"
    judge = load_local_judge(directory, numerics, longest(directory), name=name, identity=identity, **same)
    return judge, {"backend": "local", "model": model, "weights": identity, "numerics": numerics.identity(), **described}


def _template(task: str, file: Path | None, tasks: list[Path] | None) -> tuple[str, str]:
    """Return a judge prompt and its name."""
    from spo_bench.plugins import find_tasks, unknown_task

    if file is not None:
        try:
            return file.read_text(encoding="utf-8"), str(file)
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"--template '{file}': {error}", "a judge prompt is a text file in UTF-8", "check the path"
            ) from None
    known = find_tasks(tasks or ())
    if task not in known:
        raise unknown_task(task, tasks or ())
    kind = known[task].cls
    if not kind.judge_prompt:
        raise InputError(
            f"task '{task}' has no judge prompt", "a judge needs instructions", "give another --task, or --template FILE"
        )
    return kind.judge_prompt, f"{task}/{kind.judge_prompt_version}"
