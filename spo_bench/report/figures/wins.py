"""Win rates: how every policy's verdicts against each opponent fell, as bars."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from matplotlib.collections import PolyCollection
from matplotlib.patches import Patch

from spo_bench.engine.collect import WIN_RATES

from ..entries import level_decimals
from ..tables import Numbers
from .ladders import Ladder, Rung, draw_ladders, ladder
from .levels import level_text
from .policies import Policy, level_of, levels_of, of_plain_data, place_title, policies, what_intervals_are
from .style import INK, QUIET, SPO, Drawing, plain, widest

OUTCOMES: Mapping[str, dict[str, Any]] = {
    "win": {"facecolor": "#2f6690", "edgecolor": "#2f6690"},
    "tie": {"facecolor": "#dfe2e6", "edgecolor": QUIET},
    "lose": {"facecolor": "white", "edgecolor": SPO, "hatch": "////////"},
    "invalid": {"facecolor": "white", "edgecolor": INK, "linestyle": (0, (1, 1))},
}
"""How a verdict fell, from the policy's side -> how its part of a bar looks."""
_OPPONENTS = {"sft": "against SFT", "chosen": "against chosen", "baseline": "against own baseline"}
_FELL = {"a": "win", "b": "lose", "tie": "tie", "invalid": "invalid"}
_BAR, _SPACE, _GAP = 0.8, 0.06, 0.2
"""Inches: the least length of a bar, the room between a bar and its number, and between the bars against two opponents."""
_BEGIN = re.compile(r'\{"opponent": "(\w+)", "id": "[^"\\]*", "outcome": "(\w+)"')
_Counts = Mapping[str, Counter[str]]


def draw(numbers: Numbers) -> list[Drawing]:
    """Draw the verdicts on the policies of every model and task; nothing where nothing was judged."""
    found, note = of_plain_data(policies(numbers.results))
    shown = {place: [(one, counts) for one in own if (counts := outcomes(one))] for place, own in found.items()}
    shown = {place: judged for place, judged in shown.items() if judged}
    if not shown:
        return []
    every = {opponent for judged in shown.values() for _, counts in judged for opponent in counts}
    opponents = [*(one for one in _OPPONENTS if one in every), *sorted(every - _OPPONENTS.keys())]
    levels = {one: levels_of(numbers, WIN_RATES[one]) if one in WIN_RATES else {} for one in opponents}
    rates = {
        (place, i, opponent): level
        for place, judged in shown.items()
        for i, (one, _) in enumerate(judged)
        for opponent in opponents
        if (level := level_of(levels[opponent], one)) is not None
    }
    digits = {
        one: level_decimals([level for key, level in rates.items() if key[2] == one], WIN_RATES[one])
        for one in levels
        if one in WIN_RATES
    }
    texts = {key: level_text(level, WIN_RATES[key[2]], digits[key[2]]) for key, level in rates.items()}
    heads = [plain(_OPPONENTS.get(one, f"against {one}")) for one in opponents]
    beside = _SPACE + widest([*texts.values()]) + _GAP
    width = len(opponents) * max(_BAR + beside, widest(heads) + _GAP) - _GAP
    ladders = []
    for place, judged in shown.items():
        rungs = ladder([one for one, _ in judged])
        bars = [(opponent, [counts.get(opponent, Counter()) for _, counts in judged]) for opponent in opponents]
        own_texts = [[texts.get((place, i, opponent), "") for i in range(len(judged))] for opponent in opponents]
        paint = partial(_paint, heads, [counts for _, counts in bars], own_texts, rungs, beside)
        ladders.append(Ladder(place_title(numbers.results, place), rungs, [], paint))
    seen = {kind for judged in shown.values() for _, counts in judged for one in counts.values() for kind in one}
    entries = {kind: Patch(linewidth=0.6, **look) for kind, look in OUTCOMES.items() if kind in seen}
    caption = (
        "How verdicts fell, seeds together. Beside the bars: win rate in percent, ties one half and invalid verdicts left out, "
        f"with {what_intervals_are(level.seeds for level in rates.values())}{note}"
    )
    return draw_ladders("win_rates", caption, ladders, entries=entries, least=width, below=0.22, above=0.4, lift=0.16)


def outcomes(policy: Policy) -> _Counts:
    """Return how the verdicts of all seeds fell, from the policy's side: opponent -> win, tie, lose or invalid -> count."""
    found: dict[str, Counter[str]] = {}
    for cell in policy.cells:
        if path := cell.file("judgments.jsonl"):
            with path.open(encoding="utf-8") as lines:
                for opponent, outcome in filter(None, map(_verdict, lines)):
                    found.setdefault(opponent, Counter())[_FELL.get(outcome, "invalid")] += 1
    return found


def _verdict(line: str) -> tuple[str, str] | None:
    """Return opponent and outcome of a line, None for an empty one.

    The judge's replies, which follow, make lines long and there may be millions; what is needed stands at their beginning.
    """
    if begin := _BEGIN.match(line):
        return begin[1], begin[2]
    if not line.strip():
        return None
    row = json.loads(line)
    return str(row["opponent"]), str(row["outcome"])


def _paint(
    heads: Sequence[str],
    bars: Sequence[Sequence[Counter[str]]],
    texts: Sequence[Sequence[str]],
    rungs: Sequence[Rung],
    beside: float,
    panel: Any,
    plot: float,
) -> None:
    """Draw one group of bars an opponent, side by side, each with room for its number; the x axis is in inches."""
    wide = (plot + _GAP) / len(heads)
    bar = wide - beside
    for place, (head, counts) in enumerate(zip(heads, bars)):
        left = place * wide
        boxes: dict[str, list[Any]] = {kind: [] for kind in OUTCOMES}
        for rung, fell in zip(rungs, counts):
            at = left
            for kind in OUTCOMES:
                end = at + bar * fell[kind] / max(1, fell.total())
                if fell[kind]:
                    low, high = rung.at - 0.36, rung.at + 0.36
                    boxes[kind].append([(at, low), (end, low), (end, high), (at, high)])
                at = end
        for kind, some in boxes.items():
            if some:
                panel.add_collection(PolyCollection(some, linewidth=0.6, **OUTCOMES[kind]), autolim=False)
        for rung, text in zip(rungs, texts[place]):
            panel.text(left + bar + _SPACE, rung.at, text, va="center_baseline", color="#3c4149")
        panel.text(left, -0.75, head, va="bottom", color="#3c4149")
        last = rungs[-1].at + 0.6
        panel.plot([left + bar / 2] * 2, [-0.6, last], color=INK, linewidth=0.6, linestyle=(0, (2, 2)), zorder=3)
        for share in (0, 50, 100):
            text = f"{share} %" if share == 100 else str(share)
            panel.text(left + bar * share / 100, last + 0.15, text, ha="center", va="top", color="#3c4149")
    panel.set_xlim(0, plot)
    panel.set_axis_off()
