"""Metrics of an answer's text: diversity, ROUGE-L, and anything the `evaluate` library has."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from spo_bench.errors import InputError, unknown

TextMetric = Callable[[Sequence[str], Sequence[str]], list[float | None]]
_WORD = re.compile(r"\w+")


def distinct(text: str, n: int) -> float | None:
    """Return the share of a text's word n-grams that differ (Li et al. 2016); None for a text with fewer than n words."""
    words = _WORD.findall(text.lower())
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def rouge_l(answers: Sequence[str], references: Sequence[str]) -> list[float | None]:
    """Return the ROUGE-L F measure of each answer against its reference (Lin 2004), with stemming."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return [
        float(scorer.score(reference, answer)["rougeL"].fmeasure) for answer, reference in zip(answers, references, strict=True)
    ]


def text_metric(name: str) -> TextMetric:
    """Return a metric by name: "rouge_l", or "evaluate:NAME" for any metric of the `evaluate` library or a local script.

    Raises:
        InputError: an unknown name, or a metric `evaluate` cannot load here.
    """
    if name == "rouge_l":
        return rouge_l
    if name.startswith("evaluate:"):
        return _evaluate_metric(name.removeprefix("evaluate:"))
    raise unknown("metric", name, ["rouge_l", "evaluate:NAME"])


def _evaluate_metric(name: str) -> TextMetric:
    import evaluate

    try:
        metric: Any = evaluate.load(name)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(
            f"metric 'evaluate:{name}' cannot be loaded ({str(error).splitlines()[0]})",
            "an evaluate metric needs its script: from the hub, which needs a network, or as a local path",
            "give the path of the metric's script, or leave the metric out",
        ) from error

    def score(answers: Sequence[str], references: Sequence[str]) -> list[float | None]:
        values: list[float | None] = []
        for answer, reference in zip(answers, references, strict=True):
            result = metric.compute(predictions=[answer], references=[reference])
            number = next((v for v in result.values() if isinstance(v, (int, float)) and not isinstance(v, bool)), None)
            values.append(None if number is None else float(number))
        return values

    return score
