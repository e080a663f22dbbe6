"""Preference losses: one small file each, found by themselves. Importing this package does not import torch."""

from spo_bench.methods.base import Default, Hyperparameters, Method, Pairs
from spo_bench.methods.pairwise import pair_loss
from spo_bench.methods.registry import SFT, Registry, discover, get_method, method_names, resolve

__all__ = [
    "SFT",
    "Default",
    "Hyperparameters",
    "Method",
    "Pairs",
    "Registry",
    "discover",
    "get_method",
    "method_names",
    "pair_loss",
    "resolve",
]
