"""+sft: a likelihood term on the chosen answer beside any loss."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from spo_bench.methods.base import Addition, Default, Hyperparameters, Lists, Method

if TYPE_CHECKING:
    from torch import Tensor


def term(lists: Lists, settings: Hyperparameters, hyper: Hyperparameters) -> Tensor:
    """Return eta * (-s_w/|y_w|) of the best answer, shape (batch,)."""
    return -settings["eta"] * lists.policy[:, 0] / lists.lengths[:, 0]


def refuses(method: Method, others: Collection[str]) -> str | None:
    """Refuse a second likelihood term."""
    if method.likelihood:
        return f"the loss of {method.name} holds a likelihood term of the chosen answer already: set its weight there"
    return None


ADDITION = Addition(
    name="sft",
    version=1,
    defaults={"eta": Default(0.2, "the average variant in the code of arXiv 2405.16436", above=0)},
    formula="+ eta * (-s_w/|y_w|)",
    reference="Liu et al. 2024, arXiv 2405.16436 (the average variant, for any loss)",
    term=term,
    refuses=refuses,
    traps=(
        "the weight does not know the method's scale: next to ipo's squares, eta 0.2 is little, next to simpo's loss much",
        "each answer counts once; libraries that average over all tokens of a batch let long answers count more",
    ),
)
