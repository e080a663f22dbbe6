"""+exploration: push down what the reference would say anyway, so that the policy looks elsewhere (SELM)."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from spo_bench.methods.base import Addition, Default, Hyperparameters, Lists, Method

if TYPE_CHECKING:
    from torch import Tensor


def term(lists: Lists, settings: Hyperparameters, hyper: Hyperparameters) -> Tensor:
    """Return alpha * beta * (log pi(y'|x) - log pi_ref(y'|x)) of the reference's greedy answer y', shape (batch,)."""
    if lists.explored is None:
        raise ValueError("exploration needs the log-ratio of the reference's greedy answer, none was given")
    return settings["alpha"] * hyper["beta"] * lists.explored


def refuses(method: Method, others: Collection[str]) -> str | None:
    """Refuse methods without the reward the term is derived from, and a reference that moves away from its answers."""
    if not method.needs_reference or "beta" not in method.defaults:
        return f"the term is beta times a log-ratio to the reference, and {method.name} has none"
    if "ref_sync" in others:
        return "the greedy answers are those of the first reference, and ref_sync replaces it; refresh the reference by rounds"
    return None


ADDITION = Addition(
    name="exploration",
    version=1,
    defaults={"alpha": Default(1e-3, "the authors' settings for Zephyr and Phi-3 (Llama-3: 1e-4)", above=0)},
    formula="+ alpha * beta * (log pi(y'|x) - log pi_ref(y'|x)), y' the reference's greedy answer",
    reference="Zhang et al. 2024 (SELM), arXiv 2405.19332",
    term=term,
    refuses=refuses,
    needs_explored=True,
    traps=(
        "the sign is plus: the probability of what the reference says is pushed down",
        "the authors use it with the logistic loss only, at beta 0.01 and in rounds with fresh samples (the axis `regime`)",
        "TRL's nearest, XPO, has the weight alpha without beta",
    ),
)
