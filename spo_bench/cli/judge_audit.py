"""How an audit of a judge is shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from spo_bench.cli.common import Terminal, cell

Line = tuple[str, str, str]


def print_audit(record: Mapping[str, Any]) -> None:
    """Print an audit's record: what was measured, with its interval, and what it means."""
    judge = record["judge"]
    console = Terminal()
    console.print(f"{judge['model']} with the prompt {judge['prompt']} on {record['cases']} labelled pairs", markup=False)
    table = Table(box=None, pad_edge=False)
    for column in ("measure", "value", "of"):
        table.add_column(column, overflow="fold")
    for line in _lines(record):
        table.add_row(*map(cell, line))
    console.print(table)
    if record["attacks"]:
        console.print(_attacks(record["attacks"]))
    level = f"{100 * record['confidence']:g} %"
    tried = " An attack is tried on the answer that had not won." if record["attacks"] else ""
    console.print(f"In parentheses the {level} interval.{tried}", markup=False)


def _lines(record: Mapping[str, Any]) -> Iterator[Line]:
    null = record["length_only"]
    yield "names the label people gave", _share(record["accuracy"]), "a tie of the judge is one half"
    yield "  the longer answer does so", _share(null["accuracy"]), "a judge that reads nothing"
    p = "" if null["p"] is None else f"p = {null['p']:.3g}"
    yield "  judge minus longer answer", _share(null["difference"], signed=True), p
    yield "names it, ties included", _share(record["agreement"]), ""
    kappa = record["kappa"]
    yield "Cohen's kappa", _plain(kappa["value"], kappa["low"], kappa["high"]), "0: chance, 1: always"
    yield "orders disagree", _share(record["position_flip_rate"]), "of pairs asked in both orders"
    yield "answer shown first wins", _share(record["first_shown_rate"]), "50 %: no position bias"
    yield "ties", _share(record["tie_rate"]), ""
    yield "longer answer wins", _share(record["longer_wins_rate"]), f"for people: {_share(record['human_longer_wins_rate'])}"
    if record["retest"]:
        retest = record["retest"]
        yield "same outcome when asked again", _share(retest["same_outcome"]), f"{retest['asked']} pairs"
    if record["attacks"]:
        attacks = record["attacks"]
        yield "attacks that win", _share(attacks["success"]), f"{attacks['cases']} pairs"
        yield "  a harmless sentence does so", _share(attacks["harmless"]["success"]), "what any change of the text does"
        changed = f"a harmless sentence: {_share(attacks['harmless']['changed'])}"
        yield "attacks that change the outcome", _share(attacks["changed"]), changed
        yield "attacks that escape judgement", _share(attacks["invalid"]), "no verdict"
    reasons = ", ".join(f"{name} {count}" for name, count in record["invalid_reasons"].items())
    yield "invalid", _share(record["invalid_rate"]), reasons
    if record["cost_per_verdict"]["value"] is not None:
        yield "cost a verdict", f"${record['cost_per_verdict']['value']:.6f}", ""


def _attacks(attacks: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("attack", "wins", "changes", "invalid", "what it is"):
        table.add_column(column, overflow="fold")
    for name, one in {**attacks["each"], "harmless": attacks["harmless"]}.items():
        rates = [_percent(one[key]["value"]) for key in ("success", "changed", "invalid")]
        table.add_row(*map(cell, (name, *rates, one["summary"])))
    return table


def _share(rate: Mapping[str, Any], signed: bool = False) -> str:
    if rate["value"] is None:
        return "–"
    value = f"{100 * rate['value']:+.1f} points" if signed else f"{100 * rate['value']:.1f} %"
    return value if rate["low"] is None else f"{value} ({100 * rate['low']:.1f} to {100 * rate['high']:.1f})"


def _plain(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if low is None or high is None else f"{value:.2f} ({low:.2f} to {high:.2f})"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"
