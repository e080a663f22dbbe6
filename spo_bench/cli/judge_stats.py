"""spo-bench judge stats: win rates from files of verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from spo_bench.cli.common import Json, Terminal, cell, print_json

if TYPE_CHECKING:
    from spo_bench.judging.rates import Rates

Files = Annotated[
    list[Path],
    typer.Argument(metavar="FILE...", help="verdicts.jsonl or judgments.jsonl [.gz], or AlpacaEval annotations (a JSON list)."),
]


def stats(files: Files, json: Json = False) -> None:
    """Print win rate, standard error, 95 % interval and length-controlled win rate, in percent.

    Our own verdicts speak of answer a, AlpacaEval's annotations of output_2. Invalid verdicts are left out, and counted.
    """
    from spo_bench.judging.annotations import read_judged
    from spo_bench.judging.rates import rates

    files = [path / "verdicts.jsonl" if path.is_dir() else path for path in files]
    found = [
        (str(path), [(judged.subject, judged.opponent, rates(judged.pairings, judged.side)) for judged in read_judged(path)])
        for path in files
    ]
    if json:
        records: list[dict[str, Any]] = [
            {"file": file, "subject": subject, "opponent": opponent, **rate.record()}
            for file, results in found
            for subject, opponent, rate in results
        ]
        print_json(records[0] if len(records) == 1 else records)
        return
    console = Terminal()
    for file, results in found:
        _print_table(console, file, results)
    console.print(
        "In percent of the n valid verdicts, ± a standard error; a tie is half a win. Lengths: mean characters.", markup=False
    )


def _print_table(console: Terminal, file: str, results: list[tuple[str, str, Rates]]) -> None:
    table = Table(title=cell(file), title_justify="left", box=None, pad_edge=False)
    table.add_column("subject", overflow="fold")
    for column in ("win rate", "95 %", "equal\nlength", "95 %", "n", "invalid", "length\na / b"):
        table.add_column(column, justify="right", no_wrap=True)
    for subject, opponent, rate in results:
        error = "" if rate.standard_error is None else f" ± {rate.standard_error:.2f}"
        table.add_row(
            cell(f"{subject} against {opponent}"),
            _number(rate.win_rate, 2) + error,
            _range(rate.low, rate.high),
            _number(rate.length_controlled_win_rate, 2),
            _range(rate.length_controlled_low, rate.length_controlled_high),
            str(rate.n),
            str(rate.n_invalid),
            f"{_number(rate.mean_length_a, 0)} / {_number(rate.mean_length_b, 0)}",
        )
    console.print(table)
    for subject, opponent, rate in results:
        if rate.length_controlled_reason is not None:
            reason = f"{subject} against {opponent}: no rate at equal length: {rate.length_controlled_reason}."
            console.print(reason, markup=False)
    console.print()


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _range(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"{low:.1f}–{high:.1f}"
