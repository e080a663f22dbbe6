"""+ref_sync: a reference that follows the policy (TR-DPO)."""

from __future__ import annotations

from collections.abc import Collection

from spo_bench.methods.base import Addition, Default, Method


def refuses(method: Method, others: Collection[str]) -> str | None:
    """Refuse methods that read no reference."""
    return None if method.needs_reference else f"{method.name} reads no reference, so nothing would change"


ADDITION = Addition(
    name="ref_sync",
    version=1,
    defaults={
        "mixup": Default(0.6, "TRL's DPOConfig", above=0, at_most=1),
        "every": Default(512, "TRL's DPOConfig; set it to a fraction of your run", at_least=1),
    },
    formula="every `every` steps: reference <- mixup * policy + (1 - mixup) * reference",
    reference="Gorbatovski et al. 2024 (TR-DPO), arXiv 2404.09656",
    refuses=refuses,
    traps=(
        "the reference is run beside the policy from the first update on, which costs one forward pass a step and a copy of the "
        "trained weights",
        "log-ratios in train.jsonl are to the reference of that step; those of the report are to the first one",
        "with an adapter, mixing the two low-rank factors is not mixing the weights: there mixup must be 1",
    ),
)
