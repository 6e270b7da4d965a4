"""The loss of a whole batch, of which every process has embedded a part, with exact gradients.

Each process gets the same value, and the gradient of what it holds itself: its rows, and its share of what the loss learns.
So the gradients of the parameters are to be added up over processes, not averaged. Knows no formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from nearfar.distributed.group import Group
from nearfar.distributed.part import Part
from nearfar.losses import Loss


def loss_over_processes(
    loss: Loss, group: Group, z: Tensor, labels: Tensor, every_label: Tensor, counts: Sequence[int]
) -> Tensor:
    """The loss of the rows of all processes, a scalar.

    - A loss that is made of sums over rows (`Loss.adds_up`): each process compares its own rows with all, and the sums are
      added up. One gather and one sum of B x D numbers, and the few sums themselves.
    - One that is, but compares rows with classes only: the same without a gather.
    - Any other: each process computes all of it, and keeps the gradient of its own rows. One gather.

    Args:
        loss: what to learn by.
        group: the processes.
        z: embeddings of this process ``[n, D]``.
        labels: theirs ``[n]``.
        every_label: those of all processes, in their order ``[B]``.
        counts: rows of each process; they add up to B.

    Raises:
        InputError: as the loss.
    """
    if loss.adds_up():
        if not loss.takes_keys:
            return add_up(loss, group, loss.sums(z, labels))
        keys = gather_rows(z, group, counts)
        offset = sum(counts[: group.rank])
        return add_up(loss, group, loss.sums(z, labels, keys, every_label, key_offset=offset))
    return whole_loss(loss, group, gather_rows(z, group, counts, own=True), every_label)


def add_up(loss: Loss, group: Group, sums: Tensor) -> Tensor:
    """The loss from the sums over all processes, of which the gradient is that of this one's ``sums`` ``[S]``."""
    overall = group.total(sums.detach().clone())
    return loss.combine(sums + (overall - sums.detach()))


def whole_loss(loss: Loss, group: Group, *inputs: Any) -> Tensor:
    """``loss(*inputs)``, which each process computes alike; what the loss learns has its gradient from process 0 alone."""
    if group.first:
        value: Tensor = loss(*inputs)
        return value
    fixed = {name: weight.detach() + 0.0 * weight for name, weight in loss.named_parameters()}
    value = functional_call(loss, fixed, inputs)
    return value


def gather_rows(z: Tensor, group: Group, counts: Sequence[int], *, own: bool = False) -> Tensor:
    """The rows of all processes ``[B, D]``, with gradient.

    Args:
        z: those of this process ``[n, D]``.
        group: the processes.
        counts: rows of each.
        own: all processes compute the same of these rows, so that the gradient of this one's is complete; else it is added
            up over processes.
    """
    rows: Tensor = _Gather.apply(z, group, tuple(counts), own)
    return rows


def in_order(z: Tensor, part: Part, group: Group) -> Tensor:
    """The embeddings of all images of a batch, in their order there, from those of a part; without gradient.

    Args:
        z: ``[n, D]``, in the order of ``part.images``.
        part: what this process embedded.
        group: the processes.
    """
    places = torch.from_numpy(part.places).to(z.device)
    if not part.alone:
        z, places = group.gather(z, part.embedded), group.gather(places, part.embedded)
    return z[places.argsort()]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, group: Group, counts: tuple[int, ...], own: bool) -> Tensor:
        ctx.group, ctx.counts, ctx.own = group, counts, own
        return group.gather(z, counts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        start = sum(ctx.counts[: ctx.group.rank])
        if ctx.own:
            return grad[start : start + ctx.counts[ctx.group.rank]], None, None, None
        return ctx.group.scatter_sum(grad, ctx.counts), None, None, None
