"""model, tokenizer: what a matrix starts from. Only the embedded model and merged adapters are made, others lie on disk."""

from __future__ import annotations

from pathlib import Path

from spo_bench.models.embedded import build_embedded
from spo_bench.models.policy import load_policy, load_tokenizer, save_policy
from spo_bench.stages.base import Work


def run(work: Work) -> None:
    """Write the embedded model (randomly initialised from ``seed``), or base weights with an adapter merged into them.

    Config: {embedded, seed}, or {weights, adapter, numerics}. Local: base, adapter. A merged model is its own reference, so a
    policy that starts from an adapter is never compared with the weights under it.
    """
    if "adapter" not in work.config:
        build_embedded(work.out, work.config["seed"])
        return
    base = Path(work.local["base"])
    model = load_policy(Path(work.local["adapter"]), work.numerics, base=base, trust_remote_code=work.local["trust_remote_code"])
    save_policy(model, load_tokenizer(base), work.out)
