"""The table of settings: what every arm was trained with, where each value comes from, and how many settings were tried."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from spo_bench.errors import InputError
from spo_bench.matrix.sections import GenerateSpec, SftSpec, TrainSpec
from spo_bench.methods import Addition, Default, Method, get_addition, get_method
from spo_bench.spo.settings import SpoSettings

from .entries import text_entry
from .grid import Column, Entry, Table
from .results import SFT, Cell, Results

METHOD, ADDED, TRAINING, SPO, DECODING, RUN = "Method", "Added", "Training", "SPO", "Decoding", "Run"
SPEC, DEFAULT, OURS, COMPUTED = "spec", "default", "ours", "computed"
"""Where a value comes from, in a word; the defaults of methods say it themselves."""
Place = tuple[str, str]
"""Group and setting: a column."""
Found = tuple[Any, str]
"""A setting's value and where it comes from."""
_TRAIN = (
    "batch_size",
    "learning_rate",
    "epochs",
    "max_steps",
    "warmup",
    "schedule",
    "weight_decay",
    "clip",
    "max_length",
    "lora",
)
_DECODING = ("temperature", "top_p", "max_new_tokens")
OPTIMIZER = "AdamW, β 0.9 0.999, ε 1e-08"
"""What the training loops step with: torch's AdamW with the betas and the eps it has by default."""
_ENTRY = ("name", "label", "plus", "train")
"""Keys of a method's entry in a spec that are no hyperparameters."""
_NULL = {"fractions": "k / (degrees − 1)", "control": "none", "lora": "none"}
"""How a setting that is null is shown; any other then says nothing."""


@dataclass(frozen=True)
class _Arm:
    """A row: a method and SPO settings, whatever the model, task, seed and data.

    ``entry`` is the method's in the spec; empty for SFT, and where the spec has none.
    """

    results: Results
    entry: Mapping[str, Any]
    cells: Sequence[Cell]

    @property
    def spec(self) -> Mapping[str, Any]:
        return self.results.spec

    @property
    def cell(self) -> Cell:
        return self.cells[0]

    @cached_property
    def kind(self) -> tuple[str, bool]:
        """What its settings are tried for: the method with what is added to it, with SPO or without."""
        plus = [str(one["name"]) for one in self.entry.get("plus") or []]
        return "+".join([str(self.entry.get("name") or self.cell.method), *plus]), self.cell.spo is not None

    @cached_property
    def values(self) -> dict[Place, Found]:
        """Every setting it has."""
        return dict([*_method(self.entry), *_training(self), *_spo(self.cell.spo or {}), *_evaluation(self)])


def hyperparameters(results: Results) -> Table:
    """Return an arm a row and a setting a column; each value with its source: what a method's default says of itself, "default"
    of this package, "ours" (SPO's defaults), or "spec" where it was written in the run's spec.

    Values are those of run.json's resolved spec; the compute type is the one the cells found on their machine. Settings that are
    the same in all arms that have them fold into the caption.
    """
    arms = _arms(results)
    counted = [arm.kind for arm in arms if not (arm.cell.spo or {}).get("control")]
    order = (METHOD, ADDED, TRAINING, SPO, DECODING, RUN)
    places = sorted(dict.fromkeys(place for arm in arms for place in arm.values), key=lambda place: order.index(place[0]))
    sources = list(dict.fromkeys(arm.values[place][1] for place in places for arm in arms if place in arm.values))
    letters = {
        source: _letters(i) for i, source in enumerate(one for one in sources if one not in (SPEC, DEFAULT, OURS, COMPUTED))
    }
    columns = [Column("arm", "Arm", numeric=False), *(_column(place, arms) for place in places), Column("tried", "Tried")]
    body = []
    for arm in arms:
        settings = [_entry(place[1], arm.values[place], letters) if place in arm.values else Entry(text="") for place in places]
        count = None if (arm.cell.spo or {}).get("control") else counted.count(arm.kind)
        body.append([text_entry(_name(arm.cell)), *settings, Entry(text="") if count is None else Entry(count, str(count))])
    table = Table("hyperparameters", "Hyperparameters", columns, body, [arm.cell.method for arm in arms])
    shown = {row[i].source for row in body for i in table.visible()}
    caption = [f"({letter}): {source}." for source, letter in letters.items() if source in shown]
    caption += [
        "spec: written in this run’s spec; default: of this package; computed: from steps, batch and rows; ours: SPO’s defaults, "
        "which are guesses since none were published. An empty place: the arm has no such setting.",
        "Tried: number of settings of this method (baseline), or of its SPO variants, in this run; controls not counted. What "
        "was tuned before or outside this run is not seen here.",
    ]
    return replace(table, caption=caption)


def _arms(results: Results) -> list[_Arm]:
    """Return the arms in the order of the cells, a method's baseline before its variants, SFT first."""
    found: dict[tuple[str, str], list[Cell]] = {}
    for cell in results.cells:
        found.setdefault((cell.method, cell.settings), []).append(cell)
    methods = {method: i for i, method in enumerate(dict.fromkeys(cell.method for cell in results.cells))}
    entries = results.method_entries
    arms = [_Arm(results, entries.get(cells[0].method, {}), cells) for cells in found.values()]
    return sorted(arms, key=lambda arm: (arm.cell.method != SFT, methods[arm.cell.method], arm.cell.spo is not None))


def _name(cell: Cell) -> str:
    return " ".join(part for part in (cell.method, cell.label) if part)


def _letters(i: int) -> str:
    return chr(ord("a") + i % 26) * (1 + i // 26)


def _column(place: Place, arms: Sequence[_Arm]) -> Column:
    """Return a setting's column; in the caption it names the methods that have it, unless all have that can have it."""
    group, key = place
    having = list(dict.fromkeys(arm.cell.method for arm in arms if place in arm.values))
    others = {arm.cell.method for arm in arms} - {*having}
    if not others or (others == {SFT} and group in (METHOD, ADDED, SPO)):
        whose = ""
    else:
        whose = f"all but {SFT}" if others == {SFT} else ", ".join(having)
    numeric = all(_is_number(arm.values[place][0]) for arm in arms if place in arm.values)
    return Column(key, key.replace("_", " "), group, numeric=numeric, fold=True, whose=whose)


def _entry(key: str, found: Found, letters: Mapping[str, str]) -> Entry:
    value, source = found
    text = _text(value) if value is not None else _NULL[key]
    return Entry(value if _is_number(value) else text, text, f"({letters.get(source, source)})", source=source)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(one)}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return " ".join(_text(one) for one in value)
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _method(entry: Mapping[str, Any]) -> Iterator[tuple[Place, Found]]:
    """Yield the hyperparameters of a method, and the settings of what is added to it."""
    if not entry:
        return
    own = _defaults(str(entry.get("name")), get_method)
    for key in (key for key in entry if key not in _ENTRY):
        yield (METHOD, key), _declared(entry[key], own.get(key))
    for added in entry.get("plus") or []:
        name = str(added["name"])
        defaults = _defaults(name, get_addition)
        for key in (key for key in added if key != "name"):
            yield (ADDED, f"{name} {key}"), _declared(added[key], defaults.get(key))


def _defaults(name: str, find: Any) -> Mapping[str, Default]:
    """Return the defaults of a method or addition; none where its plugin is no longer here."""
    try:
        found: Method | Addition = find(name)
    except InputError:
        return {}
    return found.defaults


def _declared(value: Any, default: Default | None) -> Found:
    return value, default.source if default is not None and default.value == value else SPEC


def _spo(settings: Mapping[str, Any]) -> Iterator[tuple[Place, Found]]:
    known = {key: value for key, value in settings.items() if key in SpoSettings.model_fields}
    off = bool(known) and SpoSettings.model_validate(known).gammas() == (0.0, 0.0)
    for key, field in SpoSettings.model_fields.items():
        if key == "gamma" and off:
            yield (SPO, key), (0.0, SPEC)  # as the loss uses it, whatever the setting beside the control says
        elif key in settings:
            yield (SPO, key), (settings[key], OURS if settings[key] == field.default else SPEC)


def _training(arm: _Arm) -> Iterator[tuple[Place, Found]]:
    """Yield the settings of training: the section ``train`` with what the method replaces; of SFT, its own section before it."""
    general = dict(arm.spec.get("train") or {})
    found = {key: _section(key, value, TrainSpec) for key, value in (general | dict(arm.entry.get("train") or {})).items()}
    if arm.cell.method == SFT:
        sft = dict(arm.spec.get("sft") or {})
        if not sft.get("steps"):
            return  # the model is the SFT policy already
        found |= {key: _section(key, value, SftSpec) for key, value in sft.items()}
        found |= {"max_steps": found.pop("steps"), "lora": (None, DEFAULT)}  # all weights are trained
    if found.get("max_steps", (None, ""))[0] is not None:
        found.pop("epochs", None)  # they do not decide
        if passes := _passes(arm, found):
            found["epochs"] = (passes, COMPUTED)
    if found:
        yield (TRAINING, "optimizer"), (OPTIMIZER, DEFAULT)
    for key in _TRAIN:
        if key in found and (found[key][0] is not None or key in _NULL):
            yield (TRAINING, key), found[key]
    if dtype := _dtype(arm.cells):
        asked = [general.get("dtype"), *(one.get("dtype") for one in arm.spec.get("models") or [] if isinstance(one, Mapping))]
        yield (TRAINING, "dtype"), (dtype, DEFAULT if {*asked} <= {"auto", None} else SPEC)


def _passes(arm: _Arm, found: Mapping[str, Found]) -> float | None:
    """Return the passes over the training pairs that the steps make; None where tasks differ, or it is not known.

    On plain data: an arm trained on a share of the pairs goes round more often.
    """
    if arm.cell.method == SFT or arm.cell.axes:
        return None
    steps, batch = found["max_steps"][0], found.get("batch_size", (None, ""))[0]
    audits = arm.results.audits
    splits = [(audits.get((cell.model, cell.task)) or {}).get("splits") or {} for cell in arm.cells]
    rows = {(split.get("train") or {}).get("kept") for split in splits}
    count = rows.pop() if len(rows) == 1 else None
    return round(steps * batch / count, 2) if batch and count else None


def _evaluation(arm: _Arm) -> Iterator[tuple[Place, Found]]:
    """Yield how answers are sampled, and the arm's seeds."""
    generate = dict(arm.spec.get("generate") or {})
    for key in _DECODING:
        if key in generate:
            yield (DECODING, key), _section(key, generate[key], GenerateSpec)
    yield (RUN, "seeds"), (" ".join(str(seed) for seed in sorted({cell.seed for cell in arm.cells})), SPEC)


def _section(key: str, value: Any, section: type[TrainSpec] | type[SftSpec] | type[GenerateSpec]) -> Found:
    known = section.model_fields.get(key)
    return value, DEFAULT if known is not None and known.default == value else SPEC


def _dtype(cells: Sequence[Cell]) -> str:
    """Return the compute types of an arm's policies, one a model where models differ; empty where no cell says."""
    finished = {cell.model: cell for cell in reversed(cells) if cell.done}
    found = []
    for cell in finished.values():
        config = (cell.stages.get("train") or cell.stages.get("sft") or {}).get("config") or {}
        found.append(str((config.get("numerics") or {}).get("dtype") or ""))
    return ", ".join(sorted({one for one in found if one}))
