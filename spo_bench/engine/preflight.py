"""What would end a run later, looked for before anything is run, for what is still missing in the store: a finished run asks
nothing.

``look`` costs nothing and touches nothing: rights, disk, memory, the judge's key. ``check`` also tries: files are made and
removed where the run will write, rows are read, metrics are loaded, and a judge behind an endpoint is asked one question. Models
and data are looked for where the matrix is expanded. The report needs no program besides Python, neither LaTeX nor a browser.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spo_bench.engine.free import INFINITE, Need
from spo_bench.engine.memory import GIB, TRAINING, estimate, model_of, origin
from spo_bench.engine.space import space
from spo_bench.errors import Damaged, InputError
from spo_bench.judging.api import ApiJudge
from spo_bench.judging.capabilities import key_in_environment
from spo_bench.judging.endpoint import Stopped
from spo_bench.judging.sharing import get as get_replies
from spo_bench.judging.store import FILE, ReplyStore, spent_from
from spo_bench.matrix.cells import Cell
from spo_bench.matrix.evaluation import endpoint_settings
from spo_bench.matrix.judge_cost import asked
from spo_bench.matrix.sections import JudgeSpec
from spo_bench.matrix.spec import Spec
from spo_bench.models.source import check_architecture
from spo_bench.plugins import find_tasks, get_task, is_built_in, where_it_failed
from spo_bench.problems import Problems
from spo_bench.stages.audit import check_some
from spo_bench.stages.base import Stage
from spo_bench.store.artifacts import Store
from spo_bench.store.place import check_works, check_writable, free_space
from spo_bench.task import SPLITS, Row, SplitName, Task

MARGIN = 1.1  # of the disk space that is estimated


@dataclass(frozen=True)
class Ahead:
    """A run before it begins.

    Attributes:
        spec: what it was asked for.
        cells: of it; none where they are not known, because a model or data is not there.
        missing: stages that are left to make.
        store, out: where it writes.
        room: all the memory a stage could ever have where it runs, and what is free there now.
        jobs: stages at a time.
        purse: under which its judge is paid.
        tasks_dirs: further folders of task plugins.
    """

    spec: Spec
    cells: Sequence[Cell]
    missing: Sequence[Stage]
    store: Store
    out: Path
    room: tuple[Need, Need]
    jobs: int
    purse: str = ""
    tasks_dirs: Sequence[str] = ()


@dataclass
class Found:
    """What was found.

    Attributes:
        problems: for which a run is refused.
        warnings: with which it runs.
        judge: behind an endpoint, that has to be asked.
        bill: US dollars that were paid for a first question, and are not in the run's purse yet; None: they are.
    """

    problems: Problems = field(default_factory=Problems)
    warnings: list[str] = field(default_factory=list)
    judge: JudgeSpec | None = None
    bill: float | None = None


def look(ahead: Ahead, read: bool = False) -> Found:
    """Return what is seen without trying anything.

    Args:
        ahead: the run.
        read: whether to read the answers and the replies that are kept, to see if anything is left to ask; it takes torch.
    """
    found = Found(judge=_to_ask(ahead, read))
    for name, place in _places(ahead):
        with found.problems.noted():
            check_writable(name, place)
    _disk(ahead, found)
    memory(ahead.missing, ahead.store, *ahead.room, found)
    if found.judge is not None:
        with found.problems.noted():
            key_in_environment(found.judge.api_key_env, found.judge.base_url)
    return found


def check(ahead: Ahead, problems: Problems, warn: Callable[[str], object]) -> None:
    """Look, try, and tell all of it at once.

    Args:
        ahead: the run.
        problems: what was found before, which is told too.
        warn: takes every warning.

    Raises:
        InputError: the run is refused; nothing has been written.
    """
    found = look(ahead, read=True)
    for name, place in _places(ahead):
        with found.problems.noted():
            for lacking in check_works(name, place):
                found.warnings.append(f"--{name} '{place}' is without {lacking}: another process there may make the same twice")
    if ahead.missing or not ahead.cells:
        with found.problems.noted():
            ahead.store.reach(write=True)
    _rows(ahead, found)
    _metrics(ahead, found)
    _architectures(ahead, found)
    if found.judge is not None:
        with found.problems.noted():
            _knock(ahead, found.judge, found)
    for text in found.warnings:
        warn(text)
    for problem in found.problems.found:
        problems.add(problem)
    problems.raise_any()
    if found.bill is not None:
        with ReplyStore(ahead.store.root / FILE) as replies:
            replies.reserve(ahead.purse, found.bill, None, None)


def _places(ahead: Ahead) -> Iterator[tuple[str, Path]]:
    """Yield where the run will write; into the store only where something is missing there, or nobody knows."""
    yield "out", ahead.out
    if ahead.missing or not ahead.cells:
        yield "store", ahead.store.root


# Disk.


def _disk(ahead: Ahead, found: Found) -> None:
    """Hold what the run makes against what is free: together, where store and run are on one disk."""
    needed = space(ahead.cells, ahead.missing, ahead.store, ahead.jobs)
    disks: dict[int, list[tuple[str, Path, float]]] = defaultdict(list)
    room: dict[int, float] = {}
    for name, place, bytes_ in (("store", ahead.store.root, needed.store), ("out", ahead.out, needed.out)):
        disk, room[disk] = free_space(place)
        disks[disk].append((name, place, bytes_))
    for disk, wanted in disks.items():
        total = sum(bytes_ for *_, bytes_ in wanted)
        if total and MARGIN * total > room[disk]:
            places = " and ".join(f"--{name} '{place}'" for name, place, _ in wanted)
            parts = f"policies and reward models {amount(needed.weights)}, checkpoints {amount(needed.checkpoints)}"
            of_store = f" ({parts}, rows and answers {amount(needed.rows)})" if wanted[0][0] == "store" else ""
            found.problems.add(
                InputError(
                    f"{places}: about {amount(total)} will be written{of_store}, and {amount(room[disk])} are free",
                    "what a run makes fits on the disk, with a tenth to spare",
                    "make room, give another place, train adapters (train.lora), or narrow the matrix (--method, --task, --seed)",
                )
            )


# Memory.


def memory(missing: Sequence[Stage], store: Store, whole: Need, free: Need, found: Found) -> None:
    """Hold what every stage takes alone against what this machine and its device have.

    Args:
        missing: stages that are left to make.
        store: where inputs are looked at as far as they are there.
        whole: all there is.
        free: what is free now.
        found: takes the problems and warnings, one a model.
    """
    never: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    now: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    counts: Counter[tuple[str, str]] = Counter()
    lora: set[str] = set()
    for stage in missing:
        model = _name(stage)
        counts[model, stage.kind] += 1
        lora |= {model} if stage.config.get("lora") else set()
        least = estimate(stage, store, least=True)
        # vLLM takes what there is, whatever it needs.
        peak = least if stage.config.get("settings", {}).get("backend") == "vllm" else estimate(stage, store)
        for where, least_, peak_, all_, left in zip(Need._fields, least, peak, whole, free, strict=True):
            # What others hold of a device is not given back; of this machine's memory it may be.
            if least_ > all_ or (where == "device" and least_ > left):
                kinds = never[model, where]
                kinds[stage.kind] = max(kinds.get(stage.kind, 0.0), least_)
            elif peak_ > left:
                kinds = now[model, where]
                kinds[stage.kind] = max(kinds.get(stage.kind, 0.0), peak_)
    for (model, where), kinds in never.items():
        there, left = (getattr(one, where) for one in (whole, free))
        taken = f", of which {amount(left)} are free" if where == "device" and max(kinds.values()) <= there else ""
        found.problems.add(
            InputError(
                f"{model}: {_listed(kinds, model, counts)} at the least",
                f"a stage alone fits into the {amount(there)} that {_PLACES[where]} has{taken}",
                _remedy(kinds, model in lora, taken != ""),
            )
        )
    for (model, where), kinds in now.items():
        free_there = amount(getattr(free, where))
        found.warnings.append(
            f"{model}: {_listed(kinds, model, counts)} at the peak by estimate, and {free_there} of {_PLACES[where]} are free: "
            "memory may run out"
        )


_PLACES: Mapping[str, str] = {"host": "this machine", "device": "the device"}


def _listed(kinds: Mapping[str, float], model: str, counts: Mapping[tuple[str, str], int]) -> str:
    """Return "memory for train 112.0 GiB (24 stages), score 28.3 GiB"."""
    most = sorted(kinds.items(), key=lambda item: -item[1])
    shown = [f"{kind} {amount(need)}" + (f" ({n} stages)" if (n := counts[model, kind]) > 1 else "") for kind, need in most]
    return "memory for " + ", ".join(shown)


def _remedy(kinds: Mapping[str, float], lora: bool, taken: bool) -> str:
    first = "end what else runs on it, or take another device; or " if taken else ""
    if kinds.keys() & set(TRAINING):
        return f"{first}{'' if lora else 'train adapters (train.lora), '}take a smaller model, or a machine with more memory"
    return f"{first}take a smaller model, hold it in bfloat16 (dtype, reward_dtype), or take a machine with more memory"


def _name(stage: Stage) -> str:
    """Return a name for the model that a stage runs: the embedded one, a hub id, or a directory."""
    model = model_of(stage)
    directory = origin(model) if model is not None else None
    if directory is None:
        return "stages without a model" if model is None else "the embedded model"
    cached = [part.removeprefix("models--").replace("--", "/") for part in directory.parts if part.startswith("models--")]
    return f"model '{cached[0] if cached else directory}'"


def amount(number: float) -> str:
    """Return bytes as "1.2 GiB", or as "340 MiB"."""
    if number == INFINITE:
        return "an unknown amount"
    return f"{number / GIB:,.1f} GiB" if number >= GIB else f"{number / 2**20:,.0f} MiB"


# What is loaded.


def _rows(ahead: Ahead, found: Found) -> None:
    """Take the rows that are left to take of files and plugins: their faults are told before anything is loaded for their tokens.
    Those of a hub are fetched later, and the worlds are ours.
    """
    files = {(stage.local["task"], stage.local["data"]): stage.config for stage in ahead.missing if stage.kind == "data"}
    for (name, data), config in files.items():
        task = get_task(name, data, ahead.tasks_dirs)
        if (data is None and is_built_in(type(task))) or (data is not None and not Path(data).is_file()):
            continue
        with found.problems.noted():
            for split in SPLITS:
                _check_rows(task, split, config)


def _check_rows(task: Task, split: SplitName, config: Mapping[str, Any]) -> None:
    try:
        rows = task.load(split, config["limit"][split], config["seed"])
        if all(isinstance(row, Row) for row in rows):
            return check_some(task.name, split, len(rows))
        what = "load() gives something that is no Row"
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - of whatever a plugin does; its author is shown where
        what = f"load() failed\n{where_it_failed(error)}"
    raise InputError(
        f"task '{task.name}', split {split}: {what}",
        "load(split, limit, seed) returns a list of rows",
        "mend the task; `spo-bench tasks validate PATH` tries it",
    )


def _metrics(ahead: Ahead, found: Found) -> None:
    """Load every metric that is left to compute: its script may be missing, or a package that it needs."""
    from spo_bench.stages.metrics import text_metric

    names = [name for stage in ahead.missing if stage.kind == "score" for name in stage.local["metrics"].values()]
    for name in dict.fromkeys(names):
        with found.problems.noted():
            text_metric(name)


def _architectures(ahead: Ahead, found: Found) -> None:
    """Check that every model on disk can be built here; no code that comes with one is run."""
    trusted: dict[str, bool] = {}
    for stage in ahead.missing:
        for name, source in {"": stage, **stage.inputs}.items():
            directory = source.local.get("directory") or source.local.get("base") if source.kind == "model" else None
            if directory is not None:
                own = name not in ("reward_model", "judge_model") and bool(stage.local.get("trust_remote_code"))
                trusted[directory] = trusted.get(directory, True) and own
    for directory, trust in trusted.items():
        with found.problems.noted():
            check_architecture(Path(directory), trust)


# The judge.


def _to_ask(ahead: Ahead, read: bool) -> JudgeSpec | None:
    """Return the judge behind an endpoint that has to be asked, also where nobody knows whether; None where there is none."""
    judge = ahead.spec.judge
    if judge is None or judge.backend != "openai":
        return None
    asking = [stage for stage in ahead.missing if asked(stage) is not None]
    if read and ahead.cells:
        get_replies(ahead.store)
        return judge if any(_has_to_ask(stage, ahead.store) for stage in asking) else None
    return judge if asking or not ahead.cells else None


def _has_to_ask(stage: Stage, store: Store) -> bool:
    """Say whether a stage has anything to ask: none where it only reads the kept replies anew."""
    waits = not all(source.done(store) for source in stage.inputs.values())
    if stage.kind == "train" or waits or store.to_retry(stage.kind, stage.key) or not (store.root / FILE).is_file():
        return True
    from spo_bench.stages.data import load_split
    from spo_bench.stages.judge import read_questions
    from spo_bench.stages.judge_audit import as_case

    try:
        inputs = {name: source.fetch(store, weights=False) for name, source in stage.inputs.items()}
    except Damaged:  # it is made again, and read then
        return True
    if stage.kind == "judge":
        questions = read_questions(inputs)
    else:
        questions = [as_case(row).question for row in load_split(inputs["data"], "eval")[: stage.config["rows"]]]
    judge = ApiJudge(**stage.config["judge"]["settings"], **stage.local["judge"], cache=store.root / FILE)
    return judge.has_to_ask(questions)


def _knock(ahead: Ahead, judge: JudgeSpec, found: Found) -> None:
    """Ask the judge one question within its limits.

    A purse that has paid before pays at once. A new one pays when the run is not refused, since nothing is written before.

    Raises:
        InputError: it would not answer the next ones either.
    """
    file, template = ahead.store.root / FILE, find_tasks(ahead.tasks_dirs)[ahead.spec.tasks[0].name].cls.judge_prompt
    settings, traffic = endpoint_settings(judge, template, ahead.purse)
    begun = spent_from(file, ahead.purse).calls > 0
    try:
        knock = ApiJudge(**settings, **traffic, cache=file if begun else None).knock()
    except Stopped as stopped:
        raise InputError(
            f"the judge {stopped.where} would stop: {stopped.why}",
            "a judge can be asked as long as the run has questions",
            f"{stopped.remedy}, then repeat the command",
        ) from stopped
    if knock.fault is not None:
        found.warnings.append(f"the judge endpoint {knock.address} did not answer a first question: {knock.fault}")
    found.bill = None if begun else knock.cost
