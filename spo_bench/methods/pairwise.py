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

    A batch-coupled method takes the batch for the whole of the first step.

    Raises InputError for an unknown name or hyperparameter, for shapes that differ, and for an input that is missing.
    """
    method = get_method(name)
    read = [
        *(SCORES if method.needs_scores or method.data == "listwise" else ()),
        *(COLLISIONS if method.needs_collision else ()),
    ]
    more = {key: hyperparameters.pop(key) for key in read if hyperparameters.get(key) is not None}
    z0 = hyperparameters.pop("z0", 0.0) if method.needs_kl else 0.0
    missing = [key for key in read if key not in more]
    if missing and (method.needs_scores or method.needs_collision or len(missing) < len(read)):
        raise InputError(
            f"{name} without {' and '.join(missing)}", f"{name} reads {' and '.join(read)} of every pair", "give both as (batch,)"
        )
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
    for key in [key for key in inputs if key.endswith(("length", "score"))]:
        inputs[key] = inputs[key].to(policy_chosen)
    pairs = Pairs(**inputs)
    if method.needs_kl:
        if not math.isfinite(float(z0)):
            raise InputError(
                f"z0 = {z0!r} of method {name}", "z0 is a finite number of nats", "give such a value, or leave z0 out"
            )
        pairs = replace(pairs, kl=policy_chosen.new_full(policy_chosen.shape, float(z0)))
    if method.running is not None:
        pairs = replace(pairs, running=method.running.update(pairs, hyper, started(method, policy_chosen)))
    try:
        return method.loss(pairs, hyper)
    except ValueError as error:
        raise InputError(f"pairs for {name}", str(error), f"see `spo-bench methods show {name}`") from error


SCORES = ("chosen_score", "rejected_score")
COLLISIONS = ("chosen_collision", "rejected_collision")


def _check(method: Method, inputs: dict[str, Any], like: Any) -> None:
    """Raise InputError for an input that is not a tensor of the shape and kind it must have."""
    import torch

    for key, value in inputs.items():
        if value is None and key.startswith("reference") and not method.needs_reference:
            continue
        if not isinstance(value, torch.Tensor) or value.ndim != 1 or value.shape != like.shape:
            found = f"shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
            raise InputError(
                f"{key} of {method.name}: {found}", "every input is a tensor of one shape (batch,)", f"give {key} as (batch,)"
            )
        if not key.endswith(("length", "score")) and not value.is_floating_point():
            raise InputError(
                f"{key} of {method.name}: {value.dtype}", "log-probabilities are floating point", f"give {key} as float32"
            )
        if key.endswith("length") and bool((value < 1).any()):
            raise InputError(
                f"{key} of {method.name}: {value.min().item()}", "a completion has at least 1 token", "drop empty completions"
            )
