"""spo-bench judge run, audit, stats, reparse."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from spo_bench.cli.common import WHERE, Device, Group, Json, Offline, StoreDir, TaskDirs, Terminal, cell, print_json, say
from spo_bench.cli.judge_options import (
    BaseUrl,
    Cache,
    Concurrency,
    Epoch,
    Form,
    KeyName,
    MaxCalls,
    MaxCost,
    MaxInvalid,
    MaxTokens,
    Model,
    OrderNames,
    Pairs,
    PriceIn,
    PriceOut,
    Retries,
    Seed,
    TaskName,
    Temperature,
    Template,
    Timeout,
    build,
    settings_of,
)
from spo_bench.cli.judge_stats import stats
from spo_bench.errors import InputError, Interrupted

if TYPE_CHECKING:
    from spo_bench.judging.verdict import Watch

FLIPPED = 50.0  # percent of pairs whose orders disagree, above which a judge decides nothing
FILES = ("verdicts.jsonl", "summary.json")

judge_app = typer.Typer(
    cls=Group,
    help="Verdicts of a judge model on pairs of answers, and how far to trust them.",
    no_args_is_help=True,
    epilog="Example: spo-bench judge run pairs.jsonl --judge gpt-4o-2024-08-06 --out results/judged",
)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(judge_app, name="judge")
    judge_app.command(epilog="Example: spo-bench judge run pairs.jsonl --judge local:models/judge --out results/judged")(run)
    judge_app.command(epilog="Example: spo-bench judge audit labelled.jsonl --judge gpt-4o-2024-08-06")(audit)
    judge_app.command(epilog="Example: spo-bench judge stats results/judged/verdicts.jsonl --json")(stats)
    judge_app.command(epilog="Example: spo-bench judge reparse results/judged")(reparse)


def run(
    pairs: Pairs,
    judge: Model,
    out: Annotated[
        Path | None, typer.Option("--out", help="Directory \\[default: results/judge-FILE].", rich_help_panel=WHERE)
    ] = None,
    base_url: BaseUrl = None,
    api_key_env: KeyName = "OPENAI_API_KEY",
    task: TaskName = "dialogue",
    template: Template = None,
    verdict: Form = "auto",
    orders: OrderNames = "both",
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    seed: Seed = 0,
    epoch: Epoch = 0,
    concurrency: Concurrency = 32,
    retries: Retries = 5,
    timeout: Timeout = 300.0,
    max_cost: MaxCost = None,
    max_calls: MaxCalls = None,
    price_input: PriceIn = None,
    price_output: PriceOut = None,
    max_invalid: MaxInvalid = 0.05,
    cache: Cache = None,
    store: StoreDir = None,
    device: Device = "auto",
    offline: Offline = False,
    tasks: TaskDirs = None,
    json: Json = False,
) -> None:
    """Judge pairs: verdicts.jsonl with a line a pair, and summary.json.

    The same command goes on where it stopped: replies are kept, and only what has no verdict is asked for again.
    """
    from spo_bench.files import write_json, write_jsonl
    from spo_bench.judging.language import too_many_invalid
    from spo_bench.judging.pairs import read_questions
    from spo_bench.judging.records import summary
    from spo_bench.judging.verdict import verdict_record
    from spo_bench.store.place import check_writable

    console = Terminal(stderr=True)
    target = out or Path("results") / f"judge-{pairs.name.split('.')[0]}"
    questions = read_questions(pairs)
    check_writable("out", target)
    settings = settings_of(locals())
    asked, described = build(settings, judge, str(target.absolute()), store, device, offline, tasks)
    started = time.time()
    with _watch(console) as watch:
        judged = asked.judge(questions, watch)
    records = [verdict_record(question, found) for question, found in zip(questions, judged.verdicts, strict=True)]
    failed = too_many_invalid(judged.verdicts, max_invalid)
    record = {
        **summary(records),
        "judge": described | {"form": judged.form},
        "max_invalid": max_invalid,
        "calls_now": judged.calls,
        "cost_now": judged.cost,
        "seconds": time.time() - started,
        "warnings": [*judged.warnings, *_doubts(records)],
        "stopped": str(judged.stopped) if judged.stopped else None,
    }
    write_jsonl(target / FILES[0], records)
    write_json(target / FILES[1], record)
    for warning in record["warnings"]:
        console.print(f"warning: {warning}", markup=False)
    _show(record, target, as_json=json)
    if judged.stopped is not None:
        raise judged.stopped
    if failed is not None:
        console.print(f"failed: {failed}", markup=False)
        raise typer.Exit(1)


def audit(
    pairs: Pairs,
    judge: Model,
    out: Annotated[Path | None, typer.Option("--out", help="A JSON file; its verdicts beside it.", rich_help_panel=WHERE)] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only so many pairs, the first ones.")] = None,
    retest: Annotated[
        int | None, typer.Option("--retest", min=0, help="Pairs judged a second time \\[default: a fifth].")
    ] = None,
    attacked: Annotated[int, typer.Option("--attacked", min=0, help="Pairs on which every attack is tried.")] = 5,
    base_url: BaseUrl = None,
    api_key_env: KeyName = "OPENAI_API_KEY",
    task: TaskName = "dialogue",
    template: Template = None,
    verdict: Form = "auto",
    orders: OrderNames = "both",
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    seed: Seed = 0,
    epoch: Epoch = 0,
    concurrency: Concurrency = 32,
    retries: Retries = 5,
    timeout: Timeout = 300.0,
    max_cost: MaxCost = None,
    max_calls: MaxCalls = None,
    price_input: PriceIn = None,
    price_output: PriceOut = None,
    max_invalid: MaxInvalid = 0.05,
    cache: Cache = None,
    store: StoreDir = None,
    device: Device = "auto",
    offline: Offline = False,
    tasks: TaskDirs = None,
    json: Json = False,
) -> None:
    """Hold a judge against the preferences of people, against itself, against length alone, and against attacks.

    PAIRS has a label a row, or it is preference data (chosen and rejected) that the task reads.
    """
    from spo_bench.cli.judge_audit import print_audit
    from spo_bench.files import write_json, write_jsonl
    from spo_bench.judging.audit import audit as measure
    from spo_bench.store.place import check_writable

    console = Terminal(stderr=True)
    if out is not None:
        check_writable("out", out.parent)
        if out.is_dir():
            raise InputError(f"--out '{out}' is a directory", "--out of an audit is a file", "name a file in it")
    cases = _cases(pairs, task, tasks)[:limit]
    settings = settings_of(locals())
    purse = str((out or pairs.with_suffix(".audit")).absolute())
    asked, described = build(settings, judge, purse, store, device, offline, tasks)
    again = len(cases) // 5 if retest is None else retest
    with _watch(console) as watch:
        first, second = _Watched(asked, watch), _Watched(replace(asked, epoch=epoch + 1), watch)
        found = measure(first, cases, again=second, retest=again, attacked=attacked)
    warnings = _warnings(asked)
    record = {"judge": described, "warnings": warnings, **found.record()}
    if out is not None:
        write_json(out, record)
        write_jsonl(out.with_suffix(".verdicts.jsonl"), first.records + second.records)
    if json:
        print_json(record)
    else:
        print_audit(record)
    for warning in warnings:
        console.print(f"warning: {warning}", markup=False)
    invalid = found.invalid_rate.value or 0.0
    if invalid > max_invalid:
        console.print(
            f"failed: {100 * invalid:.1f} % of the verdicts are invalid, more than {100 * max_invalid:g} %", markup=False
        )
        raise typer.Exit(1)


def reparse(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A verdicts.jsonl, or the directory that holds it.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    json: Json = False,
) -> None:
    """Read the kept replies of a judge again with the present parser; nothing is asked and nothing paid."""
    from spo_bench.files import read_json, write_json, write_jsonl
    from spo_bench.judging.records import read_again, summary
    from spo_bench.judging.rows import read_rows

    file = path / FILES[0] if path.is_dir() else path
    remedy = "give the verdicts.jsonl that `spo-bench judge run` wrote"
    before = list(read_rows(file, remedy))
    after = [read_again(row, place) for place, row in before]
    changed = [
        new["id"]
        for (_, old), new in zip(before, after, strict=True)
        if (old["outcome"], old["score"]) != (new["outcome"], new["score"])
    ]
    if changed and not dry_run:
        write_jsonl(file, after)
        beside = file.with_name(FILES[1])
        if beside.is_file():
            write_json(beside, read_json(beside) | summary(after))
    counts = {"verdicts": len(after), "changed": len(changed), "invalid": sum(row["outcome"] == "invalid" for row in after)}
    if json:
        print_json({**counts, "changed_ids": changed, "written": bool(changed) and not dry_run})
    else:
        said = "would change" if dry_run else "changed"
        say(f"{counts['verdicts']} verdicts read again: {counts['changed']} {said}, {counts['invalid']} invalid")


class _Watched:
    """A judge whose progress is shown and whose verdicts are written down; the audit asks it several times."""

    def __init__(self, judge: Any, watch: Watch) -> None:
        self.judge, self.watch = judge, watch
        self.records: list[dict[str, Any]] = []

    def compare(self, questions: Any) -> Any:
        """Return one verdict a question; raises what stopped the judge."""
        from spo_bench.judging.verdict import verdict_record

        judged = self.judge.judge(questions, self.watch)
        if judged.stopped is not None:
            raise judged.stopped
        found = zip(questions, judged.verdicts, strict=True)
        self.records += [{**verdict_record(*one), "epoch": self.judge.epoch} for one in found]
        return judged.verdicts


def _doubts(records: list[dict[str, Any]]) -> list[str]:
    """Return what makes verdicts worth little: a judge that goes by the order of presentation."""
    from spo_bench.judging.records import presentation, verdict_of

    flips = presentation([verdict_of(record) for record in records])["flip_rate"]
    if flips is None or flips <= FLIPPED:
        return []
    return [
        f"in {flips:.0f} % of the pairs the two orders name different answers: this judge goes by the order, not by the answers"
    ]


def _cases(path: Path, task: str, tasks: list[Path] | None) -> list[Any]:
    """Return the labelled cases of a file, or of preference data that the task reads."""
    from spo_bench.judging.pairs import case_of, is_preferences, read_cases
    from spo_bench.plugins import get_task

    if not is_preferences(path):
        return read_cases(path)
    reader = get_task(task, str(path), tasks or ())
    rows = [row for split in ("eval", "heldout", "train") for row in reader.load(split, None, 0) if row.unusable is None]
    if not rows:
        raise InputError(f"{path} has no usable preference", "an audit needs pairs that people have judged", "give other data")
    return [case_of(row) for row in rows]


def _warnings(judge: Any) -> list[str]:
    from spo_bench.judging.api import ApiJudge
    from spo_bench.judging.capabilities import undated

    warning = undated(judge.model, judge.base_url) if isinstance(judge, ApiJudge) else None
    return [warning] if warning else []


@contextmanager
def _watch(console: Terminal) -> Iterator[Watch]:
    """Show requests as they are answered, on a terminal as a bar, elsewhere as a line now and then."""
    columns = (TextColumn("judging"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    try:
        if console.is_terminal:
            with Progress(*columns, console=console) as bar:
                line = bar.add_task("judging", total=None)
                yield lambda done, total: bar.update(line, completed=done, total=total)
        else:
            last = [time.monotonic()]

            def say(done: int, total: int) -> None:
                if time.monotonic() - last[0] >= 30 or done == total:
                    last[0] = time.monotonic()
                    console.print(f"judging: {done} of {total} requests answered", markup=False)

            yield say
    except KeyboardInterrupt:
        raise Interrupted("stopped; replies received so far are kept, and the same command goes on from there") from None


def _show(record: Mapping[str, Any], target: Path, as_json: bool) -> None:
    if as_json:
        print_json(record)
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in _lines(record):
        table.add_row(cell(name), cell(value))
    Terminal().print(table)
    Terminal(stderr=True).say(f"verdicts: {target / FILES[0]}")


def _lines(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    def percent(name: str) -> str:
        return "–" if record[name] is None else f"{record[name]:.1f} %"

    error = record["standard_error"]
    yield "a wins", percent("win_rate") + (f" ± {error:.1f} (standard error)" if error is not None else "")
    if record["length_controlled_win_rate"] is not None:
        low, high = record["length_controlled_low"], record["length_controlled_high"]
        yield "at equal length", f"{percent('length_controlled_win_rate')} ({low:.1f} to {high:.1f})"
    else:
        yield "at equal length", f"not estimable: {record['length_controlled_reason']}"
    yield "won / tied / lost", f"{record['wins']} / {record['ties']} / {record['losses']}"
    reasons = ", ".join(f"{name} {count}" for name, count in record["invalid_reasons"].items())
    yield "invalid", f"{record['n_invalid']} of {record['n'] + record['n_invalid']}" + (f" ({reasons})" if reasons else "")
    yield "orders disagree", percent("flip_rate")
    yield "shown first wins", percent("first_shown_rate")
    if record["mean_length_a"] is not None:
        yield "mean length", f"{record['mean_length_a']:.0f} and {record['mean_length_b']:.0f} characters"
    cost = "" if record["cost_now"] is None else f", ${record['cost_now']:.4f}"
    yield "requests now", f"{record['calls_now']}{cost} in {record['seconds']:.1f} s"
    for note in record["notes"]:
        yield "note", note
