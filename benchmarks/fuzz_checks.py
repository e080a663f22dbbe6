"""What has to hold whatever is given to the parts that read what others wrote. ``fuzz.py`` and ``tests/test_fuzz.py`` ask it.

Every check takes a case and an empty folder of its own, and returns a short name of what happened; it raises ``Broken`` where
something does not hold, and passes on everything that is raised and should not be.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeVar, get_args

from spo_bench.errors import InputError
from spo_bench.files import canonical_json
from spo_bench.judging.annotations import read_judged
from spo_bench.judging.completion import letters_of, text_of, usage_of, words_of
from spo_bench.judging.language import Said, order, reread, verdict
from spo_bench.judging.pairs import is_preferences, read_cases, read_questions
from spo_bench.judging.prompt import Form, prompts
from spo_bench.judging.rates import rates
from spo_bench.judging.reading import Error, Reading, read
from spo_bench.judging.records import read_again, summary
from spo_bench.judging.rows import read_rows
from spo_bench.judging.verdict import Question, verdict_record
from spo_bench.matrix.load import load_spec
from spo_bench.plugins import find_tasks
from spo_bench.spo.degrade import MASK, degraded_copies, degree_labels, removal
from spo_bench.spo.keywords import STOPWORDS, Phrase, scan
from spo_bench.spo.settings import SpoSettings
from spo_bench.task import SPLITS, Row, SplitName, Task

T = TypeVar("T")
KIB, MIB, GIB = 2**10, 2**20, 2**30
TRIES = 3  # for a time that is too long: other processes slow this one down
SECONDS = 4.0  # of processor time, on a busy machine, for as many bytes as ``LARGE`` says; more may take longer in proportion
LARGE = {"spec": 64 * KIB, "rows": 64 * KIB, "verdicts": MIB, "keywords": 64 * KIB}
MAX_LENGTH = 256
ENDS = (None, "stop", "length", "content_filter", "tool_calls", "error", "something else")
FORMS: tuple[Form, ...] = get_args(Form)
_SWAPPED = str.maketrans("ABab", "BAba")
SPO = [
    SpoSettings(**settings)
    for settings in (
        {},
        {"op": "mask", "order": "position"},
        {"unit": "word", "order": "random", "degrees": 9},
        {"unit": "word", "op": "mask", "order": "score_asc", "degrees": 2},
        {"control": "random_removal", "degrees": 5},
        {"control": "shuffled_degrees", "order": "random", "fractions": (0.0, 0.5, 1.0), "degrees": 3},
    )
]


class Case(NamedTuple):
    """A file that is given: how its name ends, which decides how it is read, and its content."""

    suffix: str
    content: bytes


class Broken(AssertionError):  # noqa: N818 - says what it is
    """Something does not hold."""


def holds(condition: object, said: str) -> None:
    """Raise Broken unless a condition holds."""
    if not condition:
        raise Broken(said)


# Two promises of every check: nothing is written, and time is bounded.

_watching = False
_written: list[str] = []


def _watch(event: str, details: tuple[Any, ...]) -> None:
    """Note what is changed on the disk while something is watched; an audit hook stays for good."""
    if _watching and event == "open" and isinstance(details[2], int):
        if details[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND):
            _written.append(f"open {details[0]}")
    elif _watching and event in ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.truncate"):
        _written.append(f"{event} {details[0]}")


sys.addaudithook(_watch)


def bounded(target: str, size: int, action: Callable[[], T]) -> T:
    """Return what an action returns; it writes nothing, and takes no more processor time than ``size`` bytes may take."""
    global _watching
    bytecode = sys.dont_write_bytecode
    _written.clear()
    taken, most = math.inf, SECONDS * max(1.0, size / LARGE[target])
    for _ in range(TRIES):
        _watching = sys.dont_write_bytecode = True
        started = time.process_time()
        try:
            found = action()
        finally:
            _watching, sys.dont_write_bytecode = False, bytecode
        holds(not _written, f"written: {_written}")
        taken = min(taken, time.process_time() - started)
        if taken <= most:
            return found
    raise Broken(f"{target} takes more than {most:g} s of processor time")


def outcome(action: Callable[[], T]) -> T | InputError:
    """Return what an action returns, or the InputError it raises, whose message can be written to a file."""
    try:
        return action()
    except InputError as error:
        holds(error.given and error.rule and error.remedy, f"a message without given, rule or remedy: {error}")
        try:
            str(error).encode()
        except UnicodeEncodeError:
            raise Broken(f"a message that no file can hold: {str(error)!a}") from None
        return error


def name_of(found: object) -> str:
    """Return what happened, for errors their message without names, values and places: what was found is new if this is new."""
    if not isinstance(found, InputError):
        return type(found).__name__
    given, rule = (re.sub(r"\d+|'[^']*'|\"[^\"]*\"|/\S+", "·", text) for text in (found.given, found.rule))
    return f"{given[-80:]} {rule[:80]}"


def alike(one: object, other: object) -> bool:
    """Whether two outcomes are the same."""
    return str(one) == str(other) if isinstance(one, InputError) else one == other


# Specs.


def check_spec(case: Case, folder: Path) -> str:
    """A spec, which is the same after it is written and loaded again, or an InputError; the same bytes give the same."""
    path = folder / f"case{case.suffix}"
    path.write_bytes(case.content)
    found = bounded("spec", len(case.content), lambda: outcome(lambda: load_spec(path)))
    holds(alike(found, outcome(lambda: load_spec(path))), "the same bytes gave two results")
    if not isinstance(found, InputError):
        text = canonical_json(found.model_dump(mode="json"))
        holds(load_spec(json.loads(text)) == found, "another spec after it was written as JSON")
        path.write_text(text, encoding="utf-8")  # JSON is YAML
        holds(load_spec(path) == found, "another spec after it was written as YAML")
    return name_of(found)


# Rows of preferences.


@cache
def tokenizer() -> Any:
    """Return the tokenizer of the embedded model."""
    from spo_bench.models.embedded import build_embedded
    from spo_bench.models.policy import load_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        build_embedded(Path(folder), 0)
        return load_tokenizer(Path(folder))


@cache
def dialogue() -> type[Task]:
    """Return a task that reads rows of every form."""
    return find_tasks()["dialogue"].cls


def check_rows(case: Case, folder: Path) -> str:
    """Each row in one split, and from the data stage kept, or dropped and counted; or an InputError with its place."""
    from spo_bench.stages.data import prepare

    path, words = folder / f"case{case.suffix}", tokenizer()
    path.write_bytes(case.content)
    size = 8 * len(case.content) if case.suffix == ".jsonl.gz" else len(case.content)
    found = bounded("rows", size, lambda: outcome(lambda: _splits(path)))
    again = outcome(lambda: dialogue()(str(path)).load("train", None, 0))
    if isinstance(found, InputError):
        holds(alike(found, again), "the same bytes gave two results")
        of_file = re.search(r"is empty|cannot be unpacked|is not parquet|ending", found.given) or case.suffix == ".json"
        holds(str(path) in found.given and (of_file or re.search(r"row \d", found.given)), f"no file or row in: {found.given}")
        return name_of(found)
    holds(found["train"] == again, "the same bytes gave two results")
    task = dialogue()(str(path))
    parts = [found["eval"], found["heldout"], found["train"]]
    numbers = sorted(row.number for part in parts for row in part)
    holds(numbers == _numbers(path), "a row of the file in no split, or in two")
    holds([row.number for row in task.load("train", 2, 0)] == [row.number for row in parts[2]][:2], "a limit takes other rows")
    asked = [{canonical_json(row.prompt) for row in part if row.unusable is None} for part in parts]
    holds(sum(map(len, asked)) == len(set().union(*asked)), "one prompt in two splits")
    dropped = 0
    for split, rows in found.items():
        done = outcome(lambda: prepare(task, rows, split, words, MAX_LENGTH))  # noqa: B023
        if isinstance(done, InputError):
            return name_of(done)
        kept, counts, why = done
        holds(len(kept) + len(why) == len(rows) and counts["kept"] + counts["dropped"] == counts["rows"], "a row is not counted")
        holds(all(_usable(row) for row in rows if row.unusable is None), "a row that cannot be used has no reason")
        canonical_json([kept, why]).encode()
        dropped += len(why)
    return f"rows {sorted({str(row.unusable) for part in parts for row in part})} {min(dropped, 1)}"


def _splits(path: Path) -> dict[SplitName, Sequence[Row]]:
    """Return the rows of every split."""
    task = dialogue()(str(path))
    return {split: task.load(split, None, 0) for split in SPLITS}


def _usable(row: Row) -> bool:
    """Whether a row's content is that of a preference, or of a demonstration."""
    canonical_json(asdict(row)).encode()
    return bool(row.prompt and row.prompt[-1]["role"] == "user" and row.chosen and row.chosen != row.rejected)


def _numbers(path: Path) -> list[int]:
    """Return the numbers of a file's rows, counted without the code that is checked."""
    if path.name.endswith(".parquet"):
        import pyarrow.parquet as pq  # type: ignore[import-untyped]

        return list(range(1, pq.read_table(path).num_rows + 1))
    content = gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes()
    content = content.removeprefix(b"\xef\xbb\xbf")
    if path.name.endswith(".json"):
        return list(range(1, len(json.loads(content)) + 1))
    return [number for number, line in enumerate(content.split(b"\n"), start=1) if line.strip()]


# Verdicts.


def check_verdicts(case: Case, folder: Path) -> str:
    """A judge's reply (.txt), what an endpoint sends (.body.json), or a file that a ``judge`` command reads."""
    if case.suffix == ".txt":
        return _check_reply(case.content.decode("utf-8", "replace"))
    if case.suffix == ".body.json":
        return _check_body(case.content)
    path = folder / f"case{case.suffix}"
    path.write_bytes(case.content)
    actions: list[Callable[[], Any]] = [
        lambda: _rates(path),
        lambda: [prompts("{prompt}{a}{b}", one, ("a", "b"), "json", 0) for one in read_questions(path)],
        lambda: read_cases(path),
        lambda: is_preferences(path),
        lambda: summary([read_again(row, place) for place, row in read_rows(path, "none")]),
    ]
    names = []
    for action in actions:
        size = 8 * len(case.content) if case.suffix.endswith(".gz") else len(case.content)
        found = bounded("verdicts", size, lambda: outcome(action))  # noqa: B023
        holds(repr(found) == repr(outcome(action)), "the same bytes gave two results")
        holds(not isinstance(found, InputError) or str(path) in found.given, f"no file in: {found}")
        names.append(name_of(found))
    return "; ".join(names)


def _rates(path: Path) -> list[Any]:
    """Return what ``judge stats`` says of a file."""
    judged = read_judged(path)
    scores = [pairing.score for one in judged for pairing in one.pairings]
    holds(len(scores) == len(list(read_rows(path, "none"))), "a verdict is not counted")
    holds(all(score is None or 0 <= score <= 1 for score in scores), "a score that is none")
    found = [rates(one.pairings, one.side).record() for one in judged]
    canonical_json(found)
    return found


def _check_reply(text: str) -> str:
    """One outcome for every form and every end of a reply, and the same for what a verdict must not depend on."""
    names = []
    for form in FORMS:
        for end in ENDS:
            found = bounded("verdicts", len(text), lambda: read(form, text, end))  # noqa: B023
            _check_reading(form, text, end, found)
            if end != "stop":
                continue
            names.append(f"{form} {found.first} {found.error}")
            same = [
                text + " ",
                f"\n\t{text}\r\n",
                "The reasons come first. " + text,
                text + " That is all.",
                text.replace("\n", "\r\n"),
            ]
            if form == "text":
                same.append(text.upper())
            for other in same:
                now = read(form, other, end)
                holds((now.first, now.error) == (found.first, found.error), f"{form}: {other[:60]!r} is read as {now}")
            # Other letters in escapes, in `false` and in NaN would be no swapped verdict.
            if form == "text" or not re.search(r"\\|false|NaN", text):
                now = read(form, text.translate(_SWAPPED), end)
                swapped = None if found.first is None else 1 - found.first
                holds((now.first, now.error) == (swapped, found.error), f"{form}: with A and B swapped it is read as {now}")
    return "; ".join(names)


def _check_reading(form: Form, text: str | None, end: str | None, found: Reading, letters: Any = None) -> None:
    """A score or a reason; and the records made of it, and read again, say the same."""
    holds((found.first is None) == (found.error in get_args(Error)) == bool(found.reason), f"neither score nor reason: {found}")
    holds(found.first is None or 0 <= found.first <= 1, f"a score that is none: {found}")
    holds(found.first in (None, 0.0, 0.5, 1.0) or form == "logprobs", f"a score that is no verdict: {found}")
    reply = {"text": text, "finish_reason": end, "letters": letters, "notes": [], "parameters": None}
    reply |= dict.fromkeys(("model", "revision", "usage", "cost"))
    orders = [order(first, Said(found, reply), form, False, "") for first in ("a", "b")]
    both = verdict("case", orders, form)
    holds((both.outcome == "invalid") == (both.score is None) == (found.first is None), f"no one outcome: {both}")
    holds(both.score in (None, 0.5), "a judge that names the answer shown first prefers one of them")
    holds(reread(reply, form) == found, "a kept reply is read in another way")
    record = json.loads(canonical_json(verdict_record(Question("case", "", "", "", {}), both)))
    holds(read_again(record, "here") == record, "a verdict is another one when it is read again")


def _check_body(content: bytes) -> str:
    """What an endpoint sends, of whatever shape."""
    try:
        body = json.loads(content, object_hook=lambda fields: SimpleNamespace(**fields))
        plain = json.loads(content)
    except (ValueError, RecursionError, TypeError):
        return "no JSON"
    choices = getattr(body, "choices", None)
    choice = choices[0] if isinstance(choices, list) and choices else body
    letters, usage = letters_of(choice), usage_of(body)
    text = text_of(getattr(getattr(choice, "message", None), "content", None))
    said = words_of(SimpleNamespace(body=plain, message="none"))  # type: ignore[arg-type]
    holds(isinstance(text, str) and isinstance(said, str), "a text that is none")
    holds(usage is None or all(count >= 0 for count in usage.values()), f"a usage that is none: {usage}")
    found = read("logprobs", None, "length", letters)
    _check_reading("logprobs", None, "length", found, letters)
    swapped = letters and {{"A": "B", "B": "A"}[letter]: value for letter, value in letters.items()}
    now = read("logprobs", None, "length", swapped)
    holds(now.error == found.error, f"with A and B swapped it is read as {now}")
    holds(
        now.first is None or math.isclose(now.first, 1 - (found.first or 0), abs_tol=1e-9), f"not 1 - {found.first}: {now.first}"
    )
    return f"{found.error} {text == ''} {usage is None} {letters and sorted(letters)}"


# Key content.


def check_keywords(case: Case, folder: Path) -> str:
    """Phrases that stand in the text, and copies that lack them and nothing else."""
    text = case.content.decode("utf-8", "replace")
    words, phrases = bounded("keywords", len(case.content), lambda: scan(text))
    holds(scan(text) == (words, phrases), "the same text gave two results")
    for found in (words, phrases):
        holds(all(one.text and text[one.start : one.end] == one.text for one in found), "a phrase that is not in the text")
        holds(all(one.end <= other.start for one, other in pairwise(found)), "phrases out of order, or one over another")
    holds(
        all((one.score == 0) == (one.text.casefold().replace("’", "'") in STOPWORDS) for one in words), "a stop word with a score"
    )
    holds(sum(one.size for one in phrases) == sum(one.score > 0 for one in words), "a word in no phrase, or in two")
    holds(all(one.score >= one.size >= 1 for one in phrases), "a phrase with a lower score than one word has")
    seen = ""
    for settings in SPO:
        size = len(case.content) * settings.degrees
        copies = bounded("keywords", size, lambda: degraded_copies(text, settings, 0))  # noqa: B023
        _check_copies(text, settings, copies, phrases)
        seen += "".join("01"[copy is None] for copy in copies) + " "
    return f"{len(words).bit_length()} {len(phrases).bit_length()} {seen}"


def _check_copies(text: str, settings: SpoSettings, copies: Sequence[str | None], phrases: Sequence[Phrase]) -> None:
    """What ``spo_bench.spo.degrade`` promises."""
    holds(copies == degraded_copies(text, settings, 0), "the same text and seed gave other copies")
    holds(len(copies) == settings.degrees and copies[0] == text, "the intact answer is not degree 0")
    holds(sorted(degree_labels(text, settings, 0)) == list(range(settings.degrees)), "labels that are no permutation")
    units, counts = removal(text, settings, 0)
    holds(len({unit.start for unit in units}) == len(units), "a unit that goes twice")
    numbers = [counts[degree] for degree in sorted(counts)]
    holds(
        all(low < high for low, high in pairwise([0, *numbers, len(units) + 1])), "a degree that lacks no more than the one below"
    )
    if settings.control == "random_removal":
        holds(set(numbers) <= set(accumulate(_sizes(phrases))), "another number of words than key content has")
    elif settings.order in ("score_desc", "score_asc"):
        falling = units if settings.order == "score_desc" else units[::-1]
        holds(all(one.score >= other.score for one, other in pairwise(falling)), "units that do not go by their scores")
    elif settings.order == "position":
        holds(units == sorted(units), "units that do not go as they stand in the text")
    for degree, copy in enumerate(copies[1:], start=1):
        gone = sorted(units[: counts.get(degree, 0)])
        starts, ends = [0, *(unit.end for unit in gone)], [*(unit.start for unit in gone), len(text)]
        left = (MASK if settings.op == "mask" else "").join(text[start:end] for start, end in zip(starts, ends, strict=True))
        holds((copy is None) == (degree not in counts or not left.strip()), f"degree {degree} is, or is not, there")
        holds(copy is None or _dense(copy) == _dense(left), f"degree {degree} lacks something else than its units")
        holds(copy is None or len(copy) <= len(left), f"degree {degree} has more spaces than the answer")


def _sizes(phrases: Sequence[Phrase]) -> list[int]:
    """Return how many words phrases have, in the order of their going."""
    return [phrase.size for phrase in sorted(phrases, key=lambda phrase: -phrase.score)]


def _dense(text: str) -> str:
    return "".join(text.split())


Check = Callable[[Case, Path], str]
CHECKS: dict[str, Check] = {"spec": check_spec, "rows": check_rows, "verdicts": check_verdicts, "keywords": check_keywords}
