"""From lists of answers to pairs: what a pairwise loss makes of more than two answers to a prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from spo_bench.methods.base import Hyperparameters, Lists, Method, Pairs

if TYPE_CHECKING:
    from torch import Tensor


def _paired(lists: Lists, better: Callable[[Tensor], Tensor], worse: Callable[[Tensor], Tensor]) -> Pairs:
    """Return pairs: ``better`` and ``worse`` take the chosen and the rejected side's values, (pairs,), from (batch, n)."""

    def both(values: Tensor | None) -> tuple[Any, Any]:
        return (None, None) if values is None else (better(values), worse(values))

    sums, lengths = (*both(lists.policy), *both(lists.reference)), both(lists.lengths)
    return Pairs(*sums, *lengths, lists.kl, *both(lists.scores), *both(lists.collisions), seed=lists.seed)


def pair_of(lists: Lists, better: int = 0, worse: int = -1) -> Pairs:
    """Return one pair a list: the answers in these two places, by default the best and the worst."""
    return _paired(lists, lambda values: values[:, better], lambda values: values[:, worse])


def all_pairs(lists: Lists) -> tuple[Pairs, Tensor]:
    """Return every pair of answers of one list whose scores differ, better first, and the list each belongs to, (pairs,).

    Without scores a list has two answers, of which the first is better. Raises ValueError for a longer list without scores,
    and for a list in which no two scores differ.
    """
    import torch

    batch, size = lists.policy.shape
    if size == 2:
        return pair_of(lists), torch.arange(batch, device=lists.policy.device)
    if lists.scores is None or bool((lists.scores.diff(dim=1) > 0).any()):
        raise ValueError(f"a list of {size} answers needs scores that fall along it to be cut into pairs")
    better, worse = torch.triu_indices(size, size, 1, device=lists.policy.device)
    differ = lists.scores[:, better] > lists.scores[:, worse]
    owner, which = differ.nonzero(as_tuple=True)
    if not bool(differ.any(dim=1).all()):
        raise ValueError("a list needs two answers whose scores differ")

    pairs = _paired(lists, lambda v: v[owner, better[which]], lambda v: v[owner, worse[which]])
    return pairs, owner


def row_losses(
    method: Method, lists: Lists, hyper: Hyperparameters, running: Mapping[str, Tensor] | None = None
) -> tuple[Tensor, Mapping[str, Tensor] | None]:
    """Return a method's loss of every row, (batch,), and its running statistics with this batch counted.

    Args:
        method: a listwise method sees the whole list; any other the list's pairs, whose mean is the list's loss.
        lists: the rows; two answers each are pairs.
        hyper: the method's hyperparameters.
        running: statistics before this batch; None: before the first.
    """
    if method.list_loss is not None:
        return method.list_loss(lists, hyper), running
    pairs, owner = all_pairs(lists)
    if method.running is not None:
        running = method.running.update(pairs, hyper, running if running is not None else started(method, lists.policy))
        pairs = replace(pairs, running=running)
    losses = method.loss(pairs, hyper)
    if lists.policy.shape[1] == 2:
        return losses, running
    if method.by_rank:  # no list has losses of its own
        return losses.mean().expand(len(lists.policy)), running
    counts = owner.bincount(minlength=len(lists.policy))
    return losses.new_zeros(len(lists.policy)).index_add(0, owner, losses) / counts, running


def started(method: Method, like: Tensor) -> dict[str, Tensor]:
    """Return a method's running statistics before its first step, as scalars of the type and on the device of ``like``."""
    start = method.running.start if method.running is not None else {}
    return {name: like.new_tensor(value) for name, value in start.items()}
