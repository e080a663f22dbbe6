"""Preference losses: one small file each, found by themselves. Importing this package does not import torch."""

from spo_bench.methods.base import Addition, Default, Hyperparameters, Lists, Method, Pairs
from spo_bench.methods.pairwise import pair_loss
from spo_bench.methods.registry import (
    SFT,
    Registry,
    addition_names,
    check_additions,
    discover,
    get_addition,
    get_method,
    method_names,
    resolve,
    resolve_addition,
)

__all__ = [
    "SFT",
    "Addition",
    "Default",
    "Hyperparameters",
    "Lists",
    "Method",
    "Pairs",
    "Registry",
    "addition_names",
    "check_additions",
    "discover",
    "get_addition",
    "get_method",
    "method_names",
    "pair_loss",
    "resolve",
    "resolve_addition",
]
