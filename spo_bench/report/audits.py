"""Tables of what was read and what was judged: rows kept and dropped, answers cut off, verdicts that were none."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from .entries import model_entry, text_entry
from .grid import Column, Entry, Table, number
from .results import Cell, Results

_SPLITS = ("sft", "train", "heldout", "eval")
_FIRST = ("rows", "kept", "dropped", "overlap")
"""What a reader looks for first; the other counts follow."""


def data(results: Results) -> Table:
    """Return the data audit: per model, task and split, the rows read, kept and dropped, what was cut, and the overlap."""
    found: list[tuple[str, str, str, dict[str, Any]]] = []
    for (model, task), audit in results.audits.items():
        splits: Mapping[str, Mapping[str, Any]] = audit["splits"]
        shared: Mapping[str, int] = audit.get("overlap") or {}
        for name in sorted(splits, key=lambda name: _SPLITS.index(name) if name in _SPLITS else len(_SPLITS)):
            found.append((model, task, name, {**splits[name], **({"overlap": shared[name]} if name in shared else {})}))
    counts = list(dict.fromkeys([*_FIRST, *(key for *_, split in found for key in split if _is_number(split[key]))]))
    columns = [Column(key, key.capitalize(), numeric=False, once=key != "split") for key in ("model", "task", "split")]
    columns += [Column(key, key.replace("_", " ").capitalize()) for key in counts]
    body = [
        [model_entry(model), text_entry(task), text_entry(name), *(_split_count(split, key) for key in counts)]
        for model, task, name, split in found
    ]
    caption = [
        "Rows read, kept and dropped. A dropped row’s content could not be used; the reasons are in run.json.",
        "Overlap: prompts of a split that are also among those of sft or train.",
        *overlap_notes(results),
    ]
    return Table("data", "Data", columns, body, [f"{model}/{task}" for model, task, *_ in found], caption)


def overlap_notes(results: Results) -> list[str]:
    """Return a sentence for every split that shares prompts with training; none where all is held out."""
    notes = []
    for (_, task), audit in results.audits.items():
        for split, shared in (audit.get("overlap") or {}).items():
            if shared:
                prompts = audit["splits"].get(split, {}).get("distinct_prompts")
                share = f"{shared:,} of {prompts:,}" if prompts else f"{shared:,}"
                notes.append(f"Not held out: {share} {split} prompts of {task} are also among those policies are trained on.")
    return list(dict.fromkeys(notes))


def degree(results: Results) -> Table:
    """Return how well the head tells degrees, within bins of the copy's token length: on held-out rows where these were
    measured, else late in training.

    Removal shortens a text, so a head could tell degrees from length alone; within a bin it cannot do so as easily.
    """
    groups: dict[tuple[str, str, str, str], Counter[str]] = {}
    for cell in results.done:
        where, several = degree_bins(cell)
        for bins in several:
            counts = groups.setdefault((cell.model, cell.task, cell.name, where), Counter())
            for name, (correct, count) in bins.items():
                counts[f"{name} right"] += correct
                counts[name] += count
    found = {key for counts in groups.values() for key in counts if not key.endswith(" right")}
    bins_seen = sorted(found, key=bin_start)
    columns = [Column(key, key.capitalize(), numeric=False, once=key != "method") for key in ("model", "task", "method")]
    columns += [Column("rows", "Measured on", numeric=False)]
    columns += [Column("all", "All"), *(Column(name, f"{name} tokens") for name in bins_seen)]
    body = []
    for (model, task, method, where), counts in groups.items():
        shares = [(counts[name], counts[f"{name} right"]) for name in bins_seen]
        shares.insert(0, (sum(n for n, _ in shares), sum(right for _, right in shares)))
        entries = [Entry(right / n, f"{100 * right / n:.1f}", f"({n:,})", n=n) if n else Entry() for n, right in shares]
        body.append([model_entry(model), *(text_entry(text) for text in (task, method, where)), *entries])
    caption = ["Percent of copies whose degree the head tells right (copies in brackets), seeds together."]
    return Table("degree", "Degree accuracy by length", columns, body, [f"{key[0]}/{key[1]}" for key in groups], caption)


def degree_bins(cell: Cell) -> tuple[str, Sequence[Mapping[str, Sequence[int]]]]:
    """Return (which rows were looked at, counts {bin: [right, copies]} to be added up); no counts for a cell without SPO."""
    if not cell.label:
        return "", []
    if held_out := cell.scores.get("degree_bins"):
        return "held-out rows", [held_out]
    steps = [row["degree_accuracy_bins"] for row in cell.rows("train") if row.get("degree_accuracy_bins")]
    return "training rows, last quarter of the steps", steps[-max(1, len(steps) // 4) :]


def bin_start(name: str) -> tuple[float, str]:
    """Return what a bin of lengths is sorted by: where it starts, and its name."""
    """Return what sorts bins by length: the number a bin's name begins with, and the name."""
    digits = "".join(letter if letter.isdigit() else " " for letter in name).split()
    return (float(digits[0]) if digits else math.inf), name


def evaluation(results: Results) -> Table:
    """Return the evaluation audit: per cell, answers and how they ended; per opponent, verdicts by outcome and by order."""
    found = [(cell, opponent, checks) for cell in results.done for opponent, checks in _checks(cell)]
    keys = list(dict.fromkeys(key for *_, checks in found for key in checks))
    columns = [Column(key, key.capitalize(), numeric=False, once=True) for key in ("model", "task", "method")]
    columns += [Column("seed", "Seed", numeric=False), Column("opponent", "Against", numeric=False)]
    columns += [Column(key, key.replace("_", " ").capitalize()) for key in keys]
    body = [
        [
            model_entry(cell.model),
            text_entry(cell.task),
            text_entry(cell.name),
            Entry(cell.seed, str(cell.seed)),
            text_entry(opponent),
            *(_count(checks.get(key)) for key in keys),
        ]
        for cell, opponent, checks in found
    ]
    caption = [
        "Cut off: answers that reached the token limit. Invalid verdicts count neither as a win nor as a loss, and are left out.",
        "Shares are of the cell’s answers, or of its verdicts against one opponent.",
    ]
    caption += _order_notes(keys) + _length_notes(results)
    return Table("audit", "Evaluation audit", columns, body, [f"{cell.model}/{cell.task}" for cell, *_ in found], caption)


def _order_notes(keys: Sequence[str]) -> list[str]:
    notes = []
    if "flips" in keys:
        notes.append("Flips: valid verdicts whose two orders of presentation name different answers.")
    if "first_shown" in keys:
        notes.append("First shown: share of orders naming an answer that name the one shown first; 0.5 is even-handed.")
    if "characters" in keys:
        notes.append("Characters: mean length of the policy’s answers, and of its opponent’s.")
    return notes


def _length_notes(results: Results) -> list[str]:
    """Say what the win rate at equal length is, and why some are missing."""
    rates = [rate for cell in results.done for rate in cell.length_controlled.values()]
    if not rates:
        return []
    reasons = Counter(str(rate["reason"]) for rate in rates if rate["value"] is None)
    refused = [f"Not given {count} time{'s' if count > 1 else ''}: {reason}." for reason, count in reasons.most_common()]
    return ["At equal length: the win rate predicted for answers as long as their opponent's (length-controlled).", *refused]


def _checks(cell: Cell) -> list[tuple[str, dict[str, float]]]:
    """Return (opponent, counts and shares), one an opponent; a cell that is not judged has one without opponent."""
    samples, verdicts = cell.rows("samples"), cell.rows("judgments")
    checks: dict[str, float] = {"answers": len(samples)}
    if samples:
        checks["cut_off"] = sum(row.get("finish") == "length" for row in samples) / len(samples)
        checks["empty"] = sum(not str(row.get("answer", "")).strip() for row in samples) / len(samples)
        checks["mean_tokens"] = sum(float(row.get("tokens") or 0) for row in samples) / len(samples)
    known = {key: float(value) for key, value in cell.audit().items() if _is_number(value)}
    by_opponent: dict[str, list[dict[str, Any]]] = {}
    for row in verdicts:
        by_opponent.setdefault(str(row["opponent"]), []).append(row)
    equal = {str(rate["opponent"]): rate["value"] for rate in cell.length_controlled.values()}
    found = []
    for opponent, rows in by_opponent.items():
        at_equal = {"at_equal_length": equal[opponent]} if equal.get(opponent) is not None else {}
        found.append((opponent, {**checks, **_verdict_checks(rows), **at_equal, **known}))
    return found or [("", {**checks, **known})]


def _verdict_checks(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return what verdicts against one opponent show."""
    outcomes: Counter[str] = Counter("invalid" if row.get("score") is None else str(row.get("outcome")) for row in rows)
    checks: dict[str, float] = {"verdicts": len(rows)}
    checks |= {name: outcomes[kind] / len(rows) for name, kind in (("ties", "tie"), ("invalid", "invalid"))}
    checks |= _order_checks(rows)
    for name, key in (("characters", "length_a"), ("opponent_characters", "length_b")):
        lengths = [length for row in rows if (length := row.get(key)) is not None]
        checks |= {name: sum(lengths) / len(lengths)} if lengths else {}
    scores = [float(row["score"]) for row in rows if row.get("score") is not None]
    return checks | ({"win_rate": sum(scores) / len(scores)} if scores else {})


def _order_checks(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return how the order of presentation bears on verdicts, for judges that are shown answers in an order."""
    if not any("first" in order for row in rows for order in row.get("orders") or ()):
        return {}
    from spo_bench.judging.records import presentation  # loads statsmodels, which is slow
    from spo_bench.judging.verdict import Verdict

    found = presentation([Verdict(str(row["id"]), row["outcome"], row["score"], row.get("orders") or ()) for row in rows])
    shown = {"flips": found["flip_rate"], "first_shown": found["first_shown_rate"]}
    return {name: value / 100 for name, value in shown.items() if value is not None}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _split_count(split: Mapping[str, Any], key: str) -> Entry:
    """Return a split's count; nothing where there is no overlap to count, since the split is one that policies train on."""
    return Entry(text="") if key == "overlap" and key not in split else _count(split.get(key))


def _count(value: Any) -> Entry:
    if not _is_number(value):
        return Entry()
    return Entry(value, f"{value:,}" if isinstance(value, int) else number(value, 3 if abs(value) < 1 else 1))
