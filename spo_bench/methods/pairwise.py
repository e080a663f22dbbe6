"""One loss of one batch of pairs, for anyone who has log-probabilities and no trainer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from spo_bench.errors import InputError
from spo_bench.methods.base import Pairs
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
        hyperparameters: the method's own; the rest keep their defaults. A method that compares with the log-ratio of
            mismatched pairs (kto) also takes ``z0``, that mean in nats: by default 0, its value where policy and reference agree.

    Raises InputError for an unknown name or hyperparameter, for shapes that differ, and for a reference that is missing.
    """
    import torch

    method = get_method(name)
    z0 = hyperparameters.pop("z0", 0.0) if method.needs_kl else 0.0
    hyper = resolve(name, hyperparameters)
    given = {
        "policy_chosen": policy_chosen,
        "policy_rejected": policy_rejected,
        "reference_chosen": reference_chosen,
        "reference_rejected": reference_rejected,
        "chosen_length": chosen_length,
        "rejected_length": rejected_length,
    }
    if not method.needs_reference:
        given["reference_chosen"] = given["reference_rejected"] = None
    for key, value in given.items():
        optional = key.startswith("reference") and not method.needs_reference
        if value is None and optional:
            continue
        if not isinstance(value, torch.Tensor) or value.ndim != 1 or value.shape != policy_chosen.shape:
            found = f"shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
            raise InputError(
                f"{key} of {name}: {found}", "every input is a tensor of one shape (batch,)", f"give {key} as (batch,)"
            )
        if not key.endswith("length") and not value.is_floating_point():
            raise InputError(f"{key} of {name}: {value.dtype}", "log-probabilities are floating point", f"give {key} as float32")
        if key.endswith("length") and bool((value < 1).any()):
            raise InputError(
                f"{key} of {name}: {value.min().item()}", "a completion has at least 1 token", "drop empty completions"
            )
    kl = None
    if method.needs_kl:
        if not math.isfinite(float(z0)):
            raise InputError(
                f"z0 = {z0!r} of method {name}", "z0 is a finite number of nats", "give such a value, or leave z0 out"
            )
        kl = torch.as_tensor(z0, dtype=policy_chosen.dtype, device=policy_chosen.device).expand_as(policy_chosen)
    pairs = Pairs(
        policy_chosen,
        policy_rejected,
        given["reference_chosen"],
        given["reference_rejected"],
        chosen_length.to(policy_chosen),
        rejected_length.to(policy_chosen),
        kl,
    )
    return method.loss(pairs, hyper)
