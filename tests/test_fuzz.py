"""Every kept case of the fuzzer once more, a few new ones, and that the fuzzer sees what is broken."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import signal
import sys
import time
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings

from spo_bench import plugins
from spo_bench.errors import InputError
from spo_bench.judging.reading import Reading

BENCHMARKS = str(Path(__file__).resolve().parents[1] / "benchmarks")
sys.path.insert(0, BENCHMARKS)
fuzz_checks, fuzz_inputs, fuzz = (importlib.import_module(name) for name in ("fuzz_checks", "fuzz_inputs", "fuzz"))
sys.path.pop(0)

Broken, Case, CHECKS = fuzz_checks.Broken, fuzz_checks.Case, fuzz_checks.CHECKS
KEPT = sorted(path for target in CHECKS for path in (fuzz.CORPUS / target).iterdir())
SPEC = b"models: [embedded]\ntasks: [controlled_dialogue]\nmethods: [dpo]\n"
ROWS = b'{"prompt": "What does the otter eat?", "chosen": "The otter eats crabs.", "rejected": "Grass."}\n' * 3
TEXT = b"The deep red fox and a red fox of the river."


@pytest.fixture(autouse=True, scope="module")
def _plugins_stay():
    """What is installed does not change meanwhile; to look for it takes most of the time of a spec."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "entry_points", functools.cache(plugins.entry_points))
        yield


@pytest.mark.parametrize("path", KEPT, ids=[f"{path.parent.name}/{path.name}" for path in KEPT])
def test_a_kept_case(path, tmp_path):
    CHECKS[path.parent.name](Case(fuzz_inputs.suffix_of(path.name), path.read_bytes()), tmp_path)


@pytest.mark.parametrize("target", CHECKS)
def test_a_few_new_cases(target, tmp_path):
    corpus = fuzz_inputs.load(fuzz.CORPUS / target)

    @settings(max_examples=25, suppress_health_check=list(HealthCheck))
    @given(fuzz_inputs.structured(target, corpus))
    def structured(case):
        CHECKS[target](case, tmp_path)

    structured()
    draw = Random(target)
    for _ in range(25):
        CHECKS[target](fuzz_inputs.mutated(target, draw.choice(corpus), corpus, draw), tmp_path)


# What takes a parser of replies long: nothing that begins a verdict ends it.
LONG = {
    "objects in one another": '{"k":' * 290 + "[" + "1," * 500_000,
    "a text in objects": '{"k":' * 290 + '"' + "\\n" * 500_000,
    "verdicts in objects that do not end": '{"k":' * 290 + "[" + '{"verdict":"A"},' * 60_000,
    "braces": "{" * 1_000_000,
    "objects": '{"verdict":"A"}' * 60_000,
    "brackets": "[" * 1_000_000,
    "marks that do not end": "[[a" * 300_000,
    "spaces in a mark": "[[" + " " * 1_000_000,
    "marks": "[[A]]" * 200_000,
}


@pytest.mark.parametrize("name", LONG)
def test_a_reply_of_a_megabyte_is_read_in_bounded_time(name):
    """A bound that only more than linear time passes, not a measurement."""
    for form in ("json", "text"):
        fuzz_checks.bounded("verdicts", 3 * len(LONG[name]), lambda: fuzz_checks.read(form, LONG[name], "stop"))  # noqa: B023


def raises(error):
    def action(*given, **named):
        raise error

    return action


class UnwritableError(InputError):
    """An error that builds its own message, past what InputError does to it."""

    def __str__(self):
        return "\ud800"


def without_scores(form, text, end, letters=None):
    return Reading(0.5)


PLANTED = {
    "a spec that is none": (
        "spec",
        ".yaml",
        SPEC,
        "load_spec",
        lambda real: lambda path: real(path) if isinstance(path, Path) else None,
    ),
    "another error each time": (
        "spec",
        ".yaml",
        b"[]",
        "load_spec",
        lambda real: lambda path: raises(InputError(str(time.perf_counter()), "rule", "remedy"))(),
    ),
    "a message without a remedy": ("spec", ".yaml", b"[]", "load_spec", lambda real: raises(InputError("given", "rule", ""))),
    "a message that no file can hold": (
        "spec",
        ".yaml",
        b"[]",
        "load_spec",
        lambda real: raises(UnwritableError("given", "rule", "remedy")),
    ),
    "something written": (
        "spec",
        ".yaml",
        SPEC,
        "load_spec",
        lambda real: lambda path: [Path(path).with_name("more").write_text(""), real(path)][1],
    ),
    "a long time": ("spec", ".yaml", SPEC, "load_spec", lambda real: lambda path: [sum(range(10**7)), real(path)][1]),
    "a row that is lost": (
        "rows",
        ".jsonl",
        ROWS,
        "_splits",
        lambda real: lambda path: {k: v[1:] for k, v in real(path).items()},
    ),
    "a row that cannot be used": (
        "rows",
        ".jsonl",
        ROWS.replace(b"Grass.", b""),
        "_splits",
        lambda real: lambda path: {k: [dataclasses.replace(row, unusable=None) for row in v] for k, v in real(path).items()},
    ),
    "an error without its row": (
        "rows",
        ".jsonl",
        ROWS,
        "_splits",
        lambda real: lambda path: raises(InputError(str(path), "rule", "remedy"))(),
    ),
    "a tie for every reply": ("verdicts", ".txt", b"[[A]]", "read", lambda real: without_scores),
    "a verdict that prose changes": (
        "verdicts",
        ".txt",
        b"[[A]]",
        "read",
        lambda real: lambda form, text, end, letters=None: real(form, text if text[:1] == "[" else None, end, letters),
    ),
    "a verdict that is not counted": (
        "verdicts",
        ".jsonl",
        b'{"id": 1, "outcome": "a", "score": 1, "length_a": 1, "length_b": 2}',
        "read_judged",
        lambda real: lambda path: real(path)[1:],
    ),
    "a phrase that is not in the text": (
        "keywords",
        ".txt",
        TEXT,
        "scan",
        lambda real: lambda text: (real(text)[0], [one._replace(text="hen") for one in real(text)[1]]),
    ),
    "a copy that lacks too much": (
        "keywords",
        ".txt",
        TEXT,
        "degraded_copies",
        lambda real: lambda *given: [copy and copy.replace(".", "") for copy in real(*given)],
    ),
    "labels that are no permutation": (
        "keywords",
        ".txt",
        TEXT,
        "degree_labels",
        lambda real: lambda *given: [0] * len(real(*given)),
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_broken_is_seen(name, tmp_path, monkeypatch):
    """The same case holds before it is broken, so that nothing else is seen."""
    target, suffix, content, part, change = PLANTED[name]
    CHECKS[target](Case(suffix, content), tmp_path)
    monkeypatch.setattr(fuzz_checks, "SECONDS", 0.1)
    monkeypatch.setattr(fuzz_checks, part, change(getattr(fuzz_checks, part)))
    with pytest.raises((Broken, InputError)):
        CHECKS[target](Case(suffix, content), tmp_path)


@pytest.mark.parametrize("kind", ["structured", "mutations"])
def test_a_failure_is_found_and_made_small(kind, tmp_path, monkeypatch):
    """A reader that takes no bracket: found in a batch, and cut down to little more than the bracket."""

    def check(case, folder):
        if b"(" in case.content:
            raise KeyError("(")
        return "fine"

    monkeypatch.setitem(fuzz.CHECKS, "keywords", check)
    fuzzing = fuzz.Fuzzing("keywords", tmp_path, [Case(".txt", b"x" * 50 + b"(" + TEXT)])
    getattr(fuzzing, kind)(Random(0))
    ((where, (case, text)),) = fuzzing.failures.items()
    assert where.startswith("KeyError test_fuzz.py:")
    assert "KeyError" in text
    assert b"(" in case.content
    assert len(case.content) < 5
    assert fuzzing.executions.total() >= 200


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    """Fuzz the reader of key content for a moment; return exit code, output, and what was written."""
    monkeypatch.setattr(fuzz, "BATCH", 20)
    monkeypatch.setattr(fuzz, "QUIET", settings(fuzz.QUIET, max_examples=20))
    monkeypatch.setattr(sys, "argv", ["fuzz.py", "--minutes", "0.001", "--what", "keywords", "--out", str(tmp_path / "out")])

    def run():
        with pytest.raises(SystemExit) as ended:
            fuzz.main()
        return ended.value.code, capfd.readouterr().out, {path.name: path.read_bytes() for path in tmp_path.glob("out/*")}

    return run


def test_the_command_says_what_it_tried(command):
    kept = len(list((fuzz.CORPUS / "keywords").iterdir()))
    code, said, files = command()
    assert (code, files) == (0, {})
    assert said.startswith(f"keywords: {kept + 40} cases ({kept} corpus, 20 structured, 20 mutated), ")
    assert said.endswith(" 0 failures\n")


def test_a_process_that_dies_leaves_its_case(command, monkeypatch):
    """As a library would end it that reads what it should not."""

    def check(case, folder):
        (folder / f"case{case.suffix}").write_bytes(case.content)
        if case.content == TEXT:
            os.kill(os.getpid(), signal.SIGKILL)
        return "fine"

    monkeypatch.setitem(fuzz.CHECKS, "keywords", check)
    monkeypatch.setattr(
        fuzz.fuzz_inputs, "load", lambda folder: [Case(".txt", b"fine"), Case(".txt", TEXT), Case(".txt", b"later")]
    )
    code, said, files = command()
    assert (code, files) == (1, {"keywords-0.txt": TEXT})
    assert "exit code -9" in said
