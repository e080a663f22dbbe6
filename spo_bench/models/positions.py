"""Rotary positions whose frequencies depend on how long the longest sequence is."""

from __future__ import annotations

from typing import Any

LENGTH_DEPENDENT = ("dynamic", "longrope")


def length_dependent(config: Any, longest: int) -> str | None:
    """Say which rotary positions of a model depend on the longest sequence of a batch; None where none do up to a length.

    Args:
        config: the model's, or of the text model inside it.
        longest: most tokens of a sequence.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    parts = [part for part in (rope, *rope.values()) if isinstance(part, dict)]  # one for all layers, or one a kind of layer
    kinds = {str(part.get("rope_type")) for part in parts} & set(LENGTH_DEPENDENT)
    if not kinds:
        return None
    stated = [part["original_max_position_embeddings"] for part in parts if part.get("original_max_position_embeddings")]
    trained = min(stated) if stated else getattr(config, "original_max_position_embeddings", None)
    if longest <= (trained or config.max_position_embeddings):
        return None
    return f"its positions ({', '.join(sorted(kinds))}) depend on the longest sequence of a batch"
