"""How many bytes of disk a run takes, estimated before it runs. No heavy import: planning uses this.

Weights decide it where there are any: 4 bytes a parameter that is trained, for every policy and reward model that is left; and
while a training runs, its checkpoint with the two moments of AdamW, of which a new one is whole before the old one goes. Rows and
answers are counted generously: those of the built-in demonstration take a third of what is counted for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from spo_bench.engine.memory import COPIES, ROW, TRAINING, count_rows, follows, model_of, origin, size_of, trained_parameters
from spo_bench.matrix.cells import Cell
from spo_bench.models.source import TOKENIZER_FILES
from spo_bench.stages.base import Stage, plain_data
from spo_bench.store.artifacts import Store

PARAMETER = 4  # bytes: weights are saved in fp32
MOMENTS = 2  # numbers of the optimizer beside each that is trained
AT_A_TIME = 2  # checkpoints of a training: the new one, until it is whole, and the old one
KIB = 2**10
DATA = ROW // 2  # bytes a row of the data: its texts and token ids
PASS = 4 * KIB  # a row whose log-probabilities are kept
ANSWER = 4 * KIB  # a prompt that is answered, scored, or judged
STEP = KIB  # a line of a training's log
REPORT = 16 * KIB**2  # tables, figures and the page


class Space(NamedTuple):
    """Bytes of disk.

    Attributes:
        weights: of all policies and reward models that are left to make.
        checkpoints: of as many trainings as run at a time.
        rows: of data, answers, verdicts and all else in the store.
        out: of the run's directory.
    """

    weights: float
    checkpoints: float
    rows: float
    out: float

    @property
    def store(self) -> float:
        """What the store takes."""
        return self.weights + self.checkpoints + self.rows


def space(cells: Sequence[Cell], missing: Sequence[Stage], store: Store, jobs: int) -> Space:
    """Return what a run takes.

    Args:
        cells: all of them.
        missing: stages that are left to make.
        store: where data are looked at as far as they are there.
        jobs: stages at a time.
    """
    left = {stage.key for stage in missing}
    checkpoints = sorted(map(checkpoint, missing), reverse=True)
    out = sum(
        _rows(stage, store)
        for cell in cells
        if left & {stage.key for stage in cell.stages.values()}
        for name, stage in cell.stages.items()
        if stage.kind in ("train", "generate", "score", "judge")
    )
    return Space(
        weights=sum(map(_weights, missing)),
        checkpoints=sum(checkpoints[:jobs]),
        rows=sum(_rows(stage, store) for stage in missing),
        out=out + (REPORT if missing else 0),
    )


def checkpoint(stage: Stage) -> float:
    """Return what the checkpoints of a stage take while it runs; answers under way are few bytes."""
    numbers = 1 + MOMENTS + follows(stage)
    return float(AT_A_TIME * numbers * PARAMETER * trained_parameters(stage))


def _weights(stage: Stage) -> float:
    """Return the bytes of the model that a stage leaves, with its tokenizer."""
    model = model_of(stage)
    if model is None or (stage.kind not in TRAINING and stage.kind != "model"):
        return 0.0
    parameters = trained_parameters(stage) if stage.kind in TRAINING else size_of(model).parameters
    return float(parameters * PARAMETER + _tokenizer(model))


def _tokenizer(model: Stage) -> int:
    """Return the bytes of a model's tokenizer."""
    directory = origin(model)
    found = [directory / name for name in TOKENIZER_FILES] if directory is not None else []
    return sum(path.stat().st_size for path in found if path.is_file())


def _rows(stage: Stage, store: Store) -> float:
    """Return the bytes of what a stage leaves besides weights."""
    data = plain_data(stage)
    if data is None:
        return 0.0
    if stage.kind in ("data", "rows"):
        return float(count_rows(data, store) * DATA)
    train, evaluated = (count_rows(data, store, (split,)) for split in ("train", "eval"))
    if stage.kind == "train":
        settings = stage.config["settings"]
        return float(STEP * (settings["max_steps"] or settings["epochs"] * train / settings["batch_size"]))
    if stage.kind in ("reference", "mismatched", "explored", "copies"):
        return float((train + evaluated) * (COPIES if stage.kind == "copies" else PASS))
    answered = train if str(stage.config.get("split", "eval")).startswith("train") else evaluated
    return float(answered * ANSWER)
