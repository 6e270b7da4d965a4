"""Sums over all pairs of a batch in memory that grows with the batch, not with its square. Gradients are exact.

Similarities are made tile by tile and reduced at once; the backward pass makes them again. Where the batch is compared
with itself the tiles below the diagonal are those above it. Sums over positives need no similarities at all: the sum of
a row's similarities to its class is its product with the sum of the class. ``docs/memory.md`` has the formulas.

Each function returns its result and the rows it was given, for the next one to use: so in the backward pass the gradient
of the rows travels from the last function to the first, each adds its part in place, and there is one of it, not one each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nearfar.losses.base import Batch
from nearfar.losses.classes import chunks, class_members, class_sums
from nearfar.losses.dense import Dense
from nearfar.losses.tiles import Layout, Relation, Tile

_LOG2E = math.log2(math.e)
# Up to here e^(1/tau), e^(-1/tau) and sums of millions of them fit float32; beyond it each row needs its own shift.
_NO_SHIFT = 60.0
# In place of minus infinity, so that differences stay numbers.
_FLOOR = -1e30
# Pairs up to which the whole matrix is quicker: a batch of 256.
_SMALL = 1 << 16


class Tiled:
    """Sums over the pairs of a batch of unit rows, tile by tile.

    ``positives`` and ``negatives`` are how many of each a row has, ``[B]``. Everything by row stands in one order that is
    not that of the batch.

    Args:
        batch: rows and keys with their labels.
        by_label: walk through them in the order of labels; of use where only positives or only negatives are asked for.
    """

    def __init__(self, batch: Batch, *, by_label: bool) -> None:
        self._batch = batch
        self._layout = Layout(batch, by_label=by_label)
        self._z, self._keys = _Enter.apply(batch.z, None if batch.symmetric else batch.keys, self._layout)
        self.positives = self._layout.positives
        self.negatives = self._layout.negatives

    def _apply(self, function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
        result: Tensor
        result, self._z, self._keys = function.apply(self._z, self._keys, *arguments)
        return result

    def logsumexp(self, relation: Relation, temperature: float) -> Tensor:
        """For each row, the log of the sum of e^(s/temperature) over the pairs that count: ``[B]``.

        Minus infinity, with zero gradient, for rows without such a pair.
        """
        return self._apply(_LogSumExp, self._layout, relation, temperature)

    def positive_sums(self) -> Tensor:
        """For each row, the sum of its similarities to its positives, ``[B]``: one product with the sum of its class."""
        return self._apply(_PositiveSums, self._batch, self._layout)

    def positive_softplus(self, against: Tensor, temperature: float) -> Tensor:
        """The sum of log(1 + e^(against_i - s_ip/temperature)) over the positive pairs, a scalar.

        Args:
            against: ``[B]``, what the positives of each row stand against; minus infinity where there is nothing.
            temperature: divides the similarities.
        """
        return self._apply(_PositiveSoftplus, self._layout, against, temperature)

    def pair_sum(
        self,
        relation: Relation,
        function: Callable[..., Tensor],
        *parameters: Tensor,
        by_row: Tensor | None = None,
    ) -> Tensor:
        """Sum an elementwise function of the similarities over the pairs that count.

        Args:
            relation: which pairs count.
            function: ``function(s, *parameters)`` with s ``[R, C]`` returns ``[R, C]``, or ``[V, R, C]`` for V sums at
                once; with ``by_row`` it is ``function(s, by_row [R, 1], *parameters)``.
            parameters: scalars that may want a gradient.
            by_row: ``[B]``, a number for each row; it gets no gradient.

        Returns:
            A scalar, or ``[V]``.
        """
        return self._apply(_PairSum, self._layout, relation, function, by_row, *parameters)


def compare(batch: Batch, *, by_label: bool = True) -> Dense | Tiled:
    """Return the quicker way to sum over the pairs of a batch; both give the same values and gradients."""
    return Dense(batch) if len(batch.z) * len(batch.keys) <= _SMALL else Tiled(batch, by_label=by_label)


Rows = tuple[Tensor, Tensor, Tensor | None]
Gradients = tuple[Tensor | None, ...]


def _result(result: Tensor, z: Tensor, keys: Tensor | None) -> Rows:
    """What every function returns; keys are None where the batch is compared with itself."""
    return result, z.view_as(z), None if keys is None else keys.view_as(keys)


def _targets(ctx: Any, z: Tensor, keys: Tensor | None, dz: Tensor | None, dkeys: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Where a function adds its gradients: to those that come from the functions after it, or to zeros.

    They may be changed in place: each was made by the function after this one, for this one alone.
    """
    of_rows = torch.zeros_like(z) if dz is None else dz
    if keys is None:
        return of_rows, of_rows
    if not ctx.needs_input_grad[1]:
        return of_rows, None
    return of_rows, torch.zeros_like(keys) if dkeys is None else dkeys


class _Enter(torch.autograd.Function):
    """Hands the rows on as they are; their gradient comes back in the order of the layout."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, keys: Tensor | None, layout: Layout) -> tuple[Tensor, Tensor | None]:
        ctx.layout = layout
        ctx.set_materialize_grads(False)
        return z.view_as(z), None if keys is None else keys.view_as(keys)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz: Tensor | None, dkeys: Tensor | None) -> Gradients:
        if dz is not None:
            ctx.layout.restore(dz, dkeys)
        return dz, dkeys, None


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, keys: Tensor | None, layout: Layout, relation: Relation, temperature: float) -> Rows:
        scale = _LOG2E / temperature  # powers of two are several times cheaper than powers of e
        shifted = 1.0 / temperature > _NO_SHIFT
        total = z.new_zeros(len(z))
        top = torch.full_like(total, _FLOOR) if shifted else None
        for tile in layout.tiles(z, z if keys is None else keys, relation, scale, twins=keys is None):
            if top is None:
                tile.hide(tile.scores.exp2_(), 0.0)
                total[tile.rows] += tile.scores.sum(1)
                if tile.twin:
                    total[tile.cols] += tile.scores.sum(0)
                continue
            tile.hide(tile.scores, -math.inf)
            other = tile.scores.clone() if tile.twin else None
            _add_shifted(total[tile.rows], top[tile.rows], tile.scores, 1)
            if other is not None:
                _add_shifted(total[tile.cols], top[tile.cols], other, 0)
        log2 = total.log2() if top is None else total.log2() + top
        ctx.save_for_backward(z, keys, log2)
        ctx.set_materialize_grads(False)
        ctx.sweep = layout, relation, temperature, shifted
        return _result(log2 / _LOG2E, z, keys)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, dz: Tensor | None, dkeys: Tensor | None) -> Gradients:
        z, keys, log2 = ctx.saved_tensors
        layout, relation, temperature, shifted = ctx.sweep
        of_rows, of_keys = _targets(ctx, z, keys, dz, dkeys)
        some = log2 > -math.inf
        grad = torch.zeros_like(log2) if grad is None else torch.where(some, grad / temperature, 0.0)
        twins = keys is None
        weigh: Callable[[Tile], Tensor]
        if shifted:
            # s - (the row's own log-sum) is at most 0, so nothing overflows, and what underflows does not matter.
            log2 = torch.where(some, log2, -_FLOOR)

            def weigh(tile: Tile) -> Tensor:
                scores = tile.scores
                by_key = (scores - log2[tile.cols]).exp2_().mul_(grad[tile.cols]) if twins else None
                scores.sub_(log2[tile.rows, None]).exp2_().mul_(grad[tile.rows, None])
                return tile.hide(scores if by_key is None else scores.add_(by_key), 0.0)

        else:
            share = torch.where(some, grad * torch.exp2(-log2), 0.0)

            def weigh(tile: Tile) -> Tensor:
                weights = tile.scores.exp2_()
                weights.mul_(share[tile.rows, None] + share[tile.cols] if twins else share[tile.rows, None])
                return tile.hide(weights, 0.0)

        with torch.autocast(device_type=z.device.type, enabled=False):
            other = z if keys is None else keys
            layout.push(z, other, of_rows, of_keys, relation, _LOG2E / temperature, weigh, twins=twins)
        return of_rows, None if keys is None else of_keys, None, None, None


def _add_shifted(total: Tensor, top: Tensor, scores: Tensor, dim: int) -> None:
    """Add 2^scores to running sums that are kept as ``total * 2^top``, where ``top`` is the greatest score so far."""
    new = torch.maximum(top, scores.amax(dim))
    total.mul_(torch.exp2(top - new)).add_(scores.sub_(new.unsqueeze(dim)).exp2_().sum(dim))
    top.copy_(new)


class _PositiveSoftplus(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, keys: Tensor | None, layout: Layout, against: Tensor, temperature: float) -> Rows:
        total = torch.zeros((), dtype=torch.float64, device=z.device)
        other = z if keys is None else keys
        for tile in layout.tiles(z, other, Relation.POSITIVES, -1.0 / temperature, twins=keys is None):
            scores = tile.hide(tile.scores, -math.inf)
            total += F.softplus(scores + against[tile.rows, None], threshold=50.0).sum()
            if tile.twin:
                total += F.softplus(scores.add_(against[tile.cols]), threshold=50.0).sum()
        ctx.save_for_backward(z, keys, against)
        ctx.set_materialize_grads(False)
        ctx.sweep = layout, temperature
        return _result(total.to(z.dtype), z, keys)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, dz: Tensor | None, dkeys: Tensor | None) -> Gradients:
        z, keys, against = ctx.saved_tensors
        layout, temperature = ctx.sweep
        of_rows, of_keys = _targets(ctx, z, keys, dz, dkeys)
        grad = z.new_zeros(()) if grad is None else grad
        of_against = torch.zeros_like(against)
        twins = keys is None

        def weigh(tile: Tile) -> Tensor:
            scores = tile.hide(tile.scores, -math.inf)
            by_key = torch.add(scores, against[tile.cols]).sigmoid_() if twins else None
            weights = scores.add_(against[tile.rows, None]).sigmoid_()
            of_against[tile.rows] += weights.sum(1)
            if by_key is not None:
                if tile.twin:
                    of_against[tile.cols] += by_key.sum(0)
                weights.add_(by_key)
            return weights.mul_(-grad / temperature)

        with torch.autocast(device_type=z.device.type, enabled=False):
            other = z if keys is None else keys
            layout.push(z, other, of_rows, of_keys, Relation.POSITIVES, -1.0 / temperature, weigh, twins=twins)
        return of_rows, None if keys is None else of_keys, None, of_against.mul_(grad), None


class _PairSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        keys: Tensor | None,
        layout: Layout,
        relation: Relation,
        function: Callable[..., Tensor],
        by_row: Tensor | None,
        *parameters: Tensor,
    ) -> Rows:
        # A number of the row makes f(s_ij) and f(s_ji) differ.
        twins = keys is None and by_row is None
        ctx.save_for_backward(z, keys, by_row, *parameters)
        ctx.set_materialize_grads(False)
        ctx.sweep = layout, relation, function, twins
        probe = function(z.new_zeros(1, 1), *([] if by_row is None else [by_row[:1, None]]), *parameters)
        total = torch.zeros(probe.shape[:-2], dtype=torch.float64, device=z.device)
        for tile in layout.tiles(z, z if keys is None else keys, relation, 1.0, twins=twins):
            row = [] if by_row is None else [by_row[tile.rows, None]]
            values = _hidden(function(tile.scores, *row, *parameters), tile)
            total += values.sum((-2, -1)) * (2 if tile.twin else 1)
        return _result(total.to(z.dtype), z, keys)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, dz: Tensor | None, dkeys: Tensor | None) -> Gradients:
        z, keys, by_row, *parameters = ctx.saved_tensors
        layout, relation, function, twins = ctx.sweep
        of_rows, of_keys = _targets(ctx, z, keys, dz, dkeys)
        wants = [p.detach().requires_grad_() for p in parameters]
        of_parameters = [torch.zeros_like(p) for p in parameters]

        def weigh(tile: Tile) -> Tensor:
            with torch.enable_grad():
                scores = tile.scores.detach().requires_grad_()
                row = [] if by_row is None else [by_row[tile.rows, None]]
                values = _hidden(function(scores, *row, *wants), tile)
                each = torch.zeros(()) if grad is None else grad[..., None, None] * (2 if tile.twin else 1)
                slope, *others = torch.autograd.grad(values, [scores, *wants], each.expand_as(values))
            for sum_, part in zip(of_parameters, others, strict=True):
                sum_ += part
            # Twins stand for s_ij and s_ji; a tile on the diagonal holds both, and its gradient is counted for one.
            return slope if tile.twin or not twins else slope.mul_(2.0)

        with torch.autocast(device_type=z.device.type, enabled=False):
            layout.push(z, z if keys is None else keys, of_rows, of_keys, relation, 1.0, weigh, twins=twins)
        return of_rows, None if keys is None else of_keys, None, None, None, None, *of_parameters


def _hidden(values: Tensor, tile: Tile) -> Tensor:
    """``values`` with zeros where a pair does not count, so that neither value nor gradient comes from there."""
    if tile.skip is not None:
        values = values.masked_fill(tile.skip, 0.0)
    if tile.own is not None:
        keep = torch.ones(values.shape[-2:], dtype=torch.bool, device=values.device)
        keep[tile.own] = False
        values = torch.where(keep, values, 0.0)
    return values


def positive_sums(batch: Batch) -> Tensor:
    """For each row, the sum of its products with its positives, ``[B]``, in the order of the batch; rows of any length."""
    result: Tensor = _PositiveSums.apply(batch.z, None if batch.symmetric else batch.keys, batch, None)[0]
    return result


class _PositiveSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, keys: Tensor | None, batch: Batch, layout: Layout | None) -> Rows:
        ctx.save_for_backward(z, keys)
        ctx.set_materialize_grads(False)
        ctx.offset, ctx.layout, ctx.centres = batch.offset, layout, None
        other = z if keys is None else keys
        sums = z.new_zeros(len(z))
        if len(other):
            classes, ctx.members, ctx.own_class, ctx.known = class_members(batch)
            ctx.centres = class_sums(other, ctx.members, len(classes))
            for span in chunks(len(z)):
                sums[span] = torch.linalg.vecdot(z[span], ctx.centres[ctx.own_class[span]])
            sums.mul_(ctx.known)
            if batch.offset is not None:
                sums -= torch.linalg.vecdot(z, other[batch.offset : batch.offset + len(z)])
        return _result(sums if layout is None else sums[layout.row_places()], z, keys)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, dz: Tensor | None, dkeys: Tensor | None) -> Gradients:
        z, keys = ctx.saved_tensors
        of_rows, of_keys = _targets(ctx, z, keys, dz, dkeys)
        if ctx.centres is None or grad is None:
            return of_rows, None if keys is None else of_keys, None, None
        other = z if keys is None else keys
        places, key_places = torch.arange(len(z), device=z.device), torch.arange(len(other), device=z.device)
        if ctx.layout is not None:
            places, key_places = ctx.layout.row_places(), ctx.layout.key_places()
        by_row = torch.empty_like(grad)
        by_row[places] = grad
        counted = by_row * ctx.known
        for span in chunks(len(z)):
            rows = places[span]
            of_rows[span].addcmul_(ctx.centres[ctx.own_class[rows]], counted[rows, None])
            if ctx.offset is not None:
                of_rows[span].addcmul_(other[rows + ctx.offset], grad[span, None], value=-1.0)
        if of_keys is not None:
            pulls = class_sums(z, ctx.own_class, len(ctx.centres), counted)
            for span in chunks(len(other)):
                columns = key_places[span]
                of_keys[span] += pulls[ctx.members[columns]]
                if ctx.offset is not None:
                    own = columns - ctx.offset
                    among = (own >= 0) & (own < len(z))
                    own = own.clamp(0, len(z) - 1)
                    of_keys[span].addcmul_(z[own], (by_row[own] * among)[:, None], value=-1.0)
        return of_rows, None if keys is None else of_keys, None, None
