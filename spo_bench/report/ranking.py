"""The table that ranks all policies of a model and task by the verdicts there are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .captions import holdout_notes, scoring_notes
from .entries import model_entry, text_entry
from .grid import Column, Entry, Table, number
from .measure import CONFIDENCE
from .results import SFT, Cell, Metric, Results
from .tables import Numbers

if TYPE_CHECKING:
    from spo_bench.stats import Strength

CHOSEN = "chosen answers"
"""The player that stands for the data's chosen answers."""
VERDICTS = ("win_rate_sft", "win_rate_chosen", "head_to_head")


def ranking(numbers: Numbers) -> Table:
    """Return every policy of a model and task, the data's chosen answers among them, by Bradley-Terry strength against the SFT
    policy; no rows where there are no verdicts.
    """
    results = numbers.results
    columns = [Column("model", "Model", numeric=False, once=True), Column("task", "Task", numeric=False, once=True)]
    columns += [Column("rank", "Rank"), Column("policy", "Policy", numeric=False), Column("strength", "Strength", direction="up")]
    columns += [
        Column("win_sft", "Implied win % vs. SFT", direction="up"),
        Column("n_prompts", "Prompts", fold=True, said="prompts"),
        Column("n_seeds", "Seeds", fold=True, said="seeds"),
    ]
    body, blocks = [], []
    for model in dict.fromkeys(cell.model for cell in results.cells):
        for task in results.tasks:
            for i, one in enumerate(_strengths(results, model, task)):
                body.append([model_entry(model), text_entry(task), *_entries(i + 1, one)])
                blocks.append(f"{model}|{task}")
    caption = [
        *scoring_notes(results, VERDICTS),
        "Bradley-Terry strengths (log-odds, with 95 % intervals over prompts and seeds) from all verdicts: against the SFT "
        "policy, the data’s chosen answers, and the own baseline; a tie counts one half, and every pair that met gets one draw "
        "more. SFT is the zero.",
        "Implied win %: what these strengths predict; it assumes that strength is one scale, so that who beats whom never turns "
        "in a circle. Ranks are by strength alone: neighbours whose intervals overlap may change places.",
        *holdout_notes(results),
    ]
    return Table("ranking", "Ranking of policies", columns, body, blocks, caption)


def _entries(rank: int, one: Strength) -> Sequence[Entry]:
    known = math.isfinite(one.strength)
    strength, win = (_scaled(one, scale, digits) if known else Entry() for scale, digits in ((float, 2), (_share, 1)))
    sizes = [Entry(n, f"{n:,}") for n in (one.n_prompts, one.n_seeds)]
    return [Entry(rank, str(rank)) if known else Entry(), text_entry(one.name), strength, win, *sizes]


def _scaled(one: Strength, scale: Callable[[float], float], digits: int) -> Entry:
    """Return a strength on a scale, with its interval; shares in percent."""
    factor = 1 if scale is float else 100
    value, *ends = (scale(end) for end in (one.strength, one.low, one.high))
    sign = scale is float
    text = number(factor * value, digits, sign)
    if one.name == SFT or not all(map(math.isfinite, ends)):
        return Entry(value, text, n=one.n_prompts)
    small = f"[{', '.join(number(factor * end, digits, sign) for end in ends)}]"
    return Entry(value, text, small, low=ends[0], high=ends[1], n=one.n_prompts)


def _share(strength: float) -> float:
    """Return the win rate that a strength means against a player of strength 0."""
    return (1 + math.tanh(strength / 2)) / 2


def _strengths(results: Results, model: str, task: str) -> Sequence[Strength]:
    """Return the players of a model and task, strongest first; none where no verdict is against SFT."""
    from spo_bench.stats import Games, bradley_terry  # loads statsmodels, which is slow

    cells = [cell for cell in results.done if cell.model == model and cell.task == task]
    played = [(cell.seed, *game) for cell in cells for game in _games(cell)]
    if not any(SFT in (first, second) for _, first, second, _ in played):
        return []
    seeds = {seed: i for i, seed in enumerate(sorted({seed for seed, *_ in played}))}
    prompts: dict[str, int] = {}
    clusters: list[str | None] = []
    for *_, metric in played:
        if list(metric.ids) == list(prompts):
            continue  # the usual case: all on the same prompts
        for one, cluster in zip(metric.ids, metric.clusters or [None] * len(metric.ids)):
            if one not in prompts:
                prompts[one] = len(prompts)
                clusters.append(cluster)
    scores = {pair: np.full((len(seeds), len(prompts)), math.nan) for pair in dict.fromkeys((a, b) for _, a, b, _ in played)}
    for seed, first, second, metric in played:
        scores[(first, second)][seeds[seed], [prompts[one] for one in metric.ids]] = metric.values
    games = [Games(first, second, values) for (first, second), values in scores.items()]
    return bradley_terry(games, SFT, confidence=CONFIDENCE, clusters=clusters if any(clusters) else None)


def _games(cell: Cell) -> Iterator[tuple[str, str, Metric]]:
    """Yield (policy, opponent, scores of the policy) of every kind of verdict a cell has."""
    opponents: Mapping[str, str] = {"win_rate_sft": SFT, "win_rate_chosen": CHOSEN, "head_to_head": cell.family}
    for name, opponent in opponents.items():
        if name in cell.metrics:
            yield cell.name, opponent, cell.metrics[name]
