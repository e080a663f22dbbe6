"""Optional trackers: TensorBoard, Weights & Biases, MLflow, Trackio. Nothing of them is imported where none is asked for.

A run starts one process for each tracker (``beside``), which follows the trainings by the files they write (``follow``) and, when
the run has ended, sends what its directory holds (``finished``). So a tracker changes no number, and whatever it does, prints or
waits for, the run goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

from spo_bench.errors import InputError, unknown
from spo_bench.problems import Problems

from .base import Place, Tracker

TRACKERS = {"wandb": "WandB", "trackio": "Trackio", "mlflow": "Mlflow", "tensorboard": "TensorBoard"}
"""Classes by name, which is that of the module here, of the library and of the extra."""


def choose(names: str | Sequence[str]) -> list[str]:
    """Return the trackers that are asked for, each once; a name may be several with commas between.

    Raises:
        InputError: a name is not known, or its library is not installed; all of them.
    """
    listed = [names] if isinstance(names, str) else names
    asked = list(dict.fromkeys(part.strip() for name in listed for part in name.split(",")))
    problems = Problems()
    for name in asked:
        if name not in TRACKERS:
            problems.add(unknown("tracker", name, TRACKERS))
        elif not is_installed(name):
            problems.add(
                InputError(
                    f"tracker '{name}': its library is not installed",
                    f"it comes with the extra {name}",
                    f"pip install 'spo-bench[{name}]'",
                )
            )
    problems.raise_any()
    return asked


def is_installed(name: str) -> bool:
    """Say whether a library is there; a plain folder of its name, as W&B makes one for its runs, is none."""
    found = find_spec(name)
    return found is not None and found.origin is not None


def connect(name: str, place: Place) -> Tracker:
    """Return a tracker that is ready; its library is imported here."""
    tracker: Tracker = getattr(import_module(f"{__name__}.{name}"), TRACKERS[name])(place)
    return tracker
