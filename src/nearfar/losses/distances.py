"""Sums over all pairs of a batch of functions of Euclidean distances and of squared cosines, without the B x K matrix.

Distances come from products, |a - b|^2 = |a|^2 + |b|^2 - 2ab, which loses digits when a and b lie close together and far
from the origin. So rows are moved to their common mean first (distances do not mind), pairs of one class to the mean of
their class, and what is still too close for comfort is computed again from the difference itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nearfar.losses.base import Batch
from nearfar.losses.classes import chunks, class_members, class_sums
from nearfar.losses.tiles import Layout, Relation, Tile

# Pairs nearer than a tenth of their distance from the mean: there the product form has lost two digits of the square.
_NEAR = 1e-2


def positive_squares(batch: Batch) -> Tensor:
    """The sum of squared distances over the positive pairs, a scalar in float64: O(B D), through the class means."""
    return _PositiveSquares.apply(batch.z, batch.keys, batch)


class _PositiveSquares(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, keys: Tensor, batch: Batch) -> Tensor:
        # A row with itself is at distance 0: self-pairs need no care here.
        classes, of_keys, of_rows, known = class_members(batch)
        keys_in = torch.bincount(of_keys, minlength=len(classes))
        rows_in = torch.bincount(of_rows[known], minlength=len(classes))
        means = class_sums(keys, of_keys, len(classes)) / keys_in[:, None]
        total = torch.zeros((), dtype=torch.float64, device=z.device)
        if len(classes):
            # About the keys' mean the products of rows and keys cancel, and only lengths are left.
            for span in chunks(len(z)):
                lengths = (z[span] - means[of_rows[span]]).square().sum(1)
                total += (lengths * (keys_in[of_rows[span]] * known[span])).sum()
            for span in chunks(len(keys)):
                total += ((keys[span] - means[of_keys[span]]).square().sum(1) * rows_in[of_keys[span]]).sum()
        ctx.save_for_backward(z, keys, of_rows, of_keys, keys_in, rows_in, means, known)
        ctx.symmetric = batch.symmetric
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, keys, of_rows, of_keys, keys_in, rows_in, means, known = ctx.saved_tensors
        twice = (2.0 * grad).to(z.dtype)
        dz = torch.zeros_like(z)
        dkeys = torch.zeros_like(keys) if ctx.needs_input_grad[1] and not ctx.symmetric else None
        if not len(means):
            return dz, dkeys, None
        for span in chunks(len(z)):
            count = (keys_in[of_rows[span]] * known[span]).to(z.dtype)
            torch.mul(z[span] - means[of_rows[span]], (twice * count)[:, None], out=dz[span])
        if ctx.symmetric:
            return dz.mul_(2.0), None, None
        if dkeys is not None:
            moved = class_sums(dz, of_rows, len(means)) / keys_in[:, None]  # 2 sum of (z - mean), once for each key
            for span in chunks(len(keys)):
                own = of_keys[span]
                counts = rows_in[own].to(z.dtype)[:, None]
                dkeys[span] = (keys[span] - means[own]) * (twice * counts) - moved[own]
        return dz, dkeys, None


def negative_hinges(batch: Batch, margin: float, *, squared: bool) -> Tensor:
    """The sum over the negative pairs of max(0, margin - d)^2, or of max(0, margin - d^2) if ``squared``; float64."""
    layout = Layout(batch, by_label=True)
    return _NegativeHinges.apply(batch.z, batch.keys, layout, margin, squared)


class _NegativeHinges(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, keys: Tensor, layout: Layout, margin: float, squared: bool) -> Tensor:
        ctx.save_for_backward(z, keys)
        ctx.sweep = layout, margin, squared
        total = torch.zeros((), dtype=torch.float64, device=z.device)
        if not len(keys):
            return total
        given_z, given_keys = z, keys
        row_places, key_places = layout.row_places(), layout.key_places()
        z, keys = _centred(z, keys)
        lengths, key_lengths = _lengths(z, keys, layout)
        for tile in layout.tiles(z, keys, Relation.NEGATIVES, -2.0, twins=layout.symmetric):
            times = 2 if tile.twin else 1
            squares, near = _squares(tile, lengths, key_lengths, mend=not squared)
            hinge = (margin - (squares if squared else squares.clamp_min_(0.0).sqrt_())).clamp_min_(0.0)
            if not squared:
                hinge.square_()
            if near is not None:
                hinge[near] = 0.0
                for rows, cols in _places(near, tile):
                    steps = given_z[row_places[rows]] - given_keys[key_places[cols]]
                    apart = torch.linalg.vector_norm(steps, dim=1)
                    total += (margin - apart).clamp_min_(0.0).square_().sum() * times
            total += tile.hide(hinge, 0.0).sum() * times
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, keys = ctx.saved_tensors
        layout, margin, squared = ctx.sweep
        if not len(keys):
            return torch.zeros_like(z), torch.zeros_like(keys), None, None, None
        given_z, given_keys = z, keys
        row_places, key_places = layout.row_places(), layout.key_places()
        z, keys = _centred(z, keys)
        lengths, key_lengths = _lengths(z, keys, layout)
        twins = layout.symmetric
        by_row = torch.zeros_like(lengths)
        by_key = by_row if layout.symmetric else torch.zeros_like(key_lengths)
        dz = torch.zeros_like(z)
        dkeys = dz if layout.symmetric else torch.zeros_like(keys) if ctx.needs_input_grad[1] else None
        # The gradient of f(d^2) is 2 f' (a - b); twins and tiles on the diagonal hold every pair in both orders.
        factor = (2.0 * grad * (2.0 if twins else 1.0)).to(z.dtype)

        def weigh(tile: Tile) -> Tensor:
            squares, near = _squares(tile, lengths, key_lengths, mend=not squared)
            if squared:
                weights = (squares < margin).to(z.dtype).neg_()
            else:
                apart = squares.clamp_min_(0.0).sqrt_()
                weights = (apart - margin).clamp_max_(0.0).div_(apart)
            of_keys = dkeys if tile.twin or not twins else None
            if near is not None:
                weights[near] = 0.0
                for rows, cols in _places(near, tile):
                    step = given_z[row_places[rows]] - given_keys[key_places[cols]]
                    length = torch.linalg.vector_norm(step, dim=1)
                    pull = torch.where(length > 0, (length - margin).clamp_max_(0.0) / length, 0.0) * factor
                    step *= pull[:, None]
                    dz.index_add_(0, rows, step)
                    if of_keys is not None:
                        of_keys.index_add_(0, cols, step, alpha=-1.0)
            weights = tile.hide(weights, 0.0).mul_(factor)
            by_row[tile.rows] += weights.sum(1)
            if of_keys is not None:
                by_key[tile.cols] += weights.sum(0)
            return weights.neg_()

        with torch.autocast(device_type=z.device.type, enabled=False):
            layout.push(z, keys, dz, dkeys, Relation.NEGATIVES, -2.0, weigh, twins=twins)
        layout.restore(dz, dkeys)
        _add_scaled(dz, z, by_row, row_places)
        if dkeys is not None and not layout.symmetric:
            _add_scaled(dkeys, keys, by_key, key_places)
        return dz, None if layout.symmetric else dkeys, None, None, None


def _centred(z: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and keys about the keys' mean; one tensor where they are one."""
    mean = keys.mean(0)
    moved = z - mean
    return moved, moved if keys is z else keys - mean


def _lengths(z: Tensor, keys: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Squared lengths of rows and keys, in the order of the layout."""
    of_rows = torch.linalg.vecdot(z, z)[layout.row_places()]
    if layout.symmetric:
        return of_rows, of_rows
    return of_rows, torch.linalg.vecdot(keys, keys)[layout.key_places()]


def _squares(tile: Tile, lengths: Tensor, key_lengths: Tensor, *, mend: bool) -> tuple[Tensor, Tensor | None]:
    """Squared distances of a tile, in place, and which of its pairs are too near for them (None: none is)."""
    sums = lengths[tile.rows, None] + key_lengths[None, tile.cols]
    squares = tile.scores.add_(sums)
    if not mend:
        return squares, None
    near = squares <= sums.mul_(_NEAR)
    if tile.skip is not None:
        near &= ~tile.skip
    return squares, near if bool(near.any()) else None


def _places(near: Tensor, tile: Tile) -> Iterator[tuple[Tensor, Tensor]]:
    """Where the near pairs of a tile stand in the layout, some thousand at a time: each will be a row of differences."""
    for part in near.nonzero().split(4096):
        yield part[:, 0] + tile.rows.start, part[:, 1] + tile.cols.start


def _add_scaled(target: Tensor, rows: Tensor, factors: Tensor, places: Tensor) -> None:
    """Add ``factors * rows`` to the target; the factors stand in the order of the layout."""
    factor = torch.empty_like(factors)
    factor[places] = factors
    target.addcmul_(rows, factor[:, None])


def squared_products(batch: Batch) -> Tensor:
    """The sum of (z_i . k_j)^2 over all pairs, self-pairs left out; a scalar in float64.

    It is the inner product of the D x D matrices Z'Z and K'K: O(B D^2), without any similarity.
    """
    return _SquaredProducts.apply(batch.z, batch.keys, batch)


class _SquaredProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, keys: Tensor, batch: Batch) -> Tensor:
        of_rows = _gram(z)
        of_keys = of_rows if batch.symmetric else _gram(keys)
        own = None
        total = (of_rows * of_keys).sum()
        if batch.offset is not None:
            own = torch.linalg.vecdot(z, keys[batch.offset : batch.offset + len(z)])
            total -= own.double().square().sum()
        ctx.save_for_backward(z, keys, of_rows, of_keys, own)
        ctx.symmetric, ctx.offset = batch.symmetric, batch.offset
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, keys, of_rows, of_keys, own = ctx.saved_tensors
        factor = 4.0 * grad if ctx.symmetric else 2.0 * grad
        dz = _product(z, of_keys * factor)
        dkeys = _product(keys, of_rows * factor) if ctx.needs_input_grad[1] and not ctx.symmetric else None
        if own is not None:
            weights = (own * factor.to(own.dtype))[:, None]
            span = slice(ctx.offset, ctx.offset + len(z))
            dz.addcmul_(keys[span], weights, value=-1.0)
            if dkeys is not None:
                dkeys[span].addcmul_(z, weights, value=-1.0)
        return dz, dkeys, None


def _gram(rows: Tensor) -> Tensor:
    """Z'Z in float64, ``[D, D]``: what is left after the positives are taken away is small beside it."""
    total = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64, device=rows.device)
    for span in chunks(len(rows)):
        wide = rows[span].double()
        total.addmm_(wide.T, wide)
    return total


def _product(rows: Tensor, matrix: Tensor) -> Tensor:
    """``rows @ matrix`` in float64, returned in the type of the rows."""
    out = torch.empty_like(rows)
    for span in chunks(len(rows)):
        out[span] = rows[span].double() @ matrix
    return out
