"""One loss of one batch of pairs, for anyone who has log-probabilities and no trainer."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from spo_bench.errors import InputError, unknown
from spo_bench.methods.base import Method, Pairs
from spo_bench.methods.lists import started
from spo_bench.methods.registry import get_method, resolve

if TYPE_CHECKING:
    from torch import Tensor


def pair_loss(
    name: str,
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor | None,
    reference_rejected: Tensor | None,
    chosen_length: Tensor,
    rejected_length: Tensor,
    **hyperparameters: Any,
) -> Tensor:
    """Return the per-pair loss of a method, shape (batch,), without reduction: the same code the trainer runs.

    Args:
        name: a method, see ``method_names``.
        policy_chosen, policy_rejected: summed completion log-probabilities under the policy, nats, (batch,), floating point.
        reference_chosen, reference_rejected: the same under the reference; None for methods that need none.
        chosen_length, rejected_length: completion token counts, (batch,), at least 1.
        hyperparameters: the method's own; the rest keep their defaults. Some methods read more of a pair, given here too:
            ``z0`` (kto), the mean log-ratio of mismatched pairs in nats, by default 0, its value where policy and reference
            agree; ``chosen_score`` and ``rejected_score`` (margin_dpo, neural_ndcg), the data's quality of the answers, (batch,);
            ``chosen_collision`` and ``rejected_collision`` (wpo), the sums over a completion of log sum_v p(v)^2 under the
            policy, nats, (batch,).

    A batch-coupled method takes the batch for the whole of the first step. Of two such methods the rows mean something else than
    pairs: aot's come in the order of the sorted batch; beta_dpo's dropped pairs are 0 and the kept ones weighted up, so that the
    mean over the batch is the mean over the kept pairs.

    Raises InputError for an unknown name or hyperparameter, for shapes that differ, and for an input that is missing.
    """
    method = get_method(name)
    read = [
        *(SCORES if method.needs_scores or method.data == "listwise" else ()),
        *(COLLISIONS if method.needs_collision else ()),
        *(("z0",) if method.needs_kl else ()),
    ]
    more = {key: value for key in read if (value := hyperparameters.pop(key, None)) is not None}
    z0 = _anchor(name, more.pop("z0", 0.0))
    missing = [key for key in read if key not in more and key != "z0"]
    if missing and (method.needs_scores or method.needs_collision or more):
        raise InputError(f"{name} without {' and '.join(missing)}", f"{name} reads them of every pair", "give them as (batch,)")
    for key in hyperparameters:
        if key not in method.defaults:
            raise unknown("hyperparameter", key, [*method.defaults, *read], where=f"method {name}")
    hyper = resolve(name, hyperparameters)
    inputs = {
        "policy_chosen": policy_chosen,
        "policy_rejected": policy_rejected,
        "reference_chosen": reference_chosen,
        "reference_rejected": reference_rejected,
        "chosen_length": chosen_length,
        "rejected_length": rejected_length,
        **more,
    }
    if not method.needs_reference:
        inputs["reference_chosen"] = inputs["reference_rejected"] = None
    _check(method, inputs, policy_chosen)
    alike: dict[str, Any] = {key: None if value is None else value.to(policy_chosen) for key, value in inputs.items()}
    pairs = Pairs(**alike)
    if method.needs_kl:
        pairs = replace(pairs, kl=policy_chosen.new_full(policy_chosen.shape, z0))
    if method.running is not None:
        pairs = replace(pairs, running=method.running.update(pairs, hyper, started(method, policy_chosen)))
    try:
        return method.loss(pairs, hyper)
    except ValueError as error:
        raise InputError(f"pairs for {name}", str(error), f"see `spo-bench methods show {name}`") from error


def _anchor(name: str, z0: Any) -> float:
    """Return z0 as a number, or raise InputError."""
    try:
        value = float(z0)
    except (TypeError, ValueError, RuntimeError):
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"z0 = {z0!r} of method {name}", "z0 is a finite number of nats", "give such a value, or leave z0 out")
    return value


SCORES = ("chosen_score", "rejected_score")
COLLISIONS = ("chosen_collision", "rejected_collision")


def _check(method: Method, inputs: dict[str, Any], like: Any) -> None:
    """Raise InputError for an input that is not a tensor of the shape and kind it must have."""
    import torch

    for key, value in inputs.items():
        if value is None and key.startswith("reference") and not method.needs_reference:
            continue
        if not isinstance(value, torch.Tensor) or value.ndim != 1 or value.shape != like.shape or not len(value):
            found = f"shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
            raise InputError(
                f"{key} of {method.name}: {found}",
                "every input is a tensor of one shape (batch,), with at least one pair",
                f"give {key} as (batch,)",
            )
        if not key.endswith(("length", "score")) and not value.is_floating_point():
            raise InputError(
                f"{key} of {method.name}: {value.dtype}", "log-probabilities are floating point", f"give {key} as float32"
            )
        if not bool(value.isfinite().all()):
            raise InputError(f"{key} of {method.name}: not finite", "every input is a finite number", "drop such pairs")
        if key.endswith("length") and bool((value < 1).any()):
            raise InputError(
                f"{key} of {method.name}: {value.min().item()}", "a completion has at least 1 token", "drop empty completions"
            )
