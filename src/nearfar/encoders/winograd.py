"""Convolutions in fewer multiplications (Winograd 1980; Lavin, Gray 2016): several outputs of a row or column at a time.

m outputs of a kernel of r weights along a row are the middle of a product of polynomials. By their values at n = m + r - 1
points that takes n multiplications instead of m r; rows and columns together n^2 instead of m^2 r^2. Multiplied are maps
[images, channels] by weights [channels, channels], one product of matrices for each pair of points, and the steps to the points
and back are products with small fixed matrices. So all of it, forwards and backwards, is work that processors do best.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

MOST_POINTS = 9
"""Of one row, infinity among them: more of them save more multiplications and lose more digits."""

_POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5)
_EIGHT = (0.0, 2 / 3, -2 / 3, 4 / 3, -4 / 3, 5 / 2, -5 / 2, 1 / 3)
"""Eight of which one more of the above would be, with half the rounding."""

_CHUNK = 1 << 21
"""Numbers that the maps at all points have at a time, so that they stay in the cache until they are used."""


@dataclass(frozen=True)
class Line:
    """The steps of one direction, for rows (or columns) of some size, in tiles of as many outputs each.

    Of the points of all tiles the first ones of each come first, then the second ones: equal points have equal weights.
    """

    enter: Tensor  # [points * tiles, size]: pixels to the points, the border of zeros included
    leave: Tensor  # [outputs, points * tiles]
    points: int  # of a tile
    tiles: int


def tiles(outputs: int, kernel: int) -> tuple[int, int]:
    """How many tiles one direction is made in, as few as the number of points allows, and the outputs of each."""
    count = -(-outputs // (MOST_POINTS - kernel + 1))
    return count, -(-outputs // count)


@cache
def line(size: int, outputs: int, kernel: int, padding: int) -> Line:
    """The matrices for rows of ``size`` pixels, ``padding`` zeros on either side, of which ``outputs`` outputs are wanted."""
    count, made = tiles(outputs, kernel)
    after, before, _ = _tile(made, kernel)
    points = len(before)
    enter, leave = np.zeros((points, count, size)), np.zeros((outputs, points, count))
    for tile in range(count):
        first = tile * made
        for j in range(points):
            if 0 <= first + j - padding < size:
                enter[:, tile, first + j - padding] = before[:, j]
        leave[first : first + made, :, tile] = after[: outputs - first]
    return Line(
        torch.from_numpy(enter.reshape(-1, size)).float(),
        torch.from_numpy(leave.reshape(outputs, -1)).float(),
        points,
        count,
    )


def _tile(outputs: int, kernel: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A, B and G so that A ((G g) * (B d)) are the ``outputs`` inner products of g with d, each one further along d.

    The transpose of how polynomials of degrees outputs - 1 and kernel - 1 are multiplied by their values at n - 1 points and
    their leading coefficients (Toom 1963, Cook 1966), which is interpolation after Lagrange: row i of B has the coefficients
    of the product over j != i of (x - p_j), the last row those of the product over all.
    """
    n = outputs + kernel - 1
    points = np.array(_EIGHT if n == len(_EIGHT) + 1 else _POINTS[: n - 1])
    before = np.zeros((n, n))
    of_kernel = np.zeros((n, kernel))
    for i, p in enumerate(points):
        others = np.delete(points, i)
        before[i, : n - 1] = np.atleast_1d(np.poly(others))[::-1]
        of_kernel[i] = p ** np.arange(kernel) / np.prod(p - others)
    before[-1] = np.poly(points)[::-1]
    of_kernel[-1, -1] = 1.0
    after = np.zeros((outputs, n))
    after[:, :-1] = points[None] ** np.arange(outputs)[:, None]
    after[-1, -1] = 1.0
    return after, before, of_kernel


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int], outputs: tuple[int, int]) -> Tensor:
    """The first ``outputs`` rows and columns of the convolution of ``x`` with ``weight``, stride 1, up to rounding.

    Rounding is some 1e-6 of the numbers' spread with up to 8 points a tile (up to 6 outputs of a kernel of 3), 2e-5 with 9.

    Args:
        x: float32 [B, C, H, W], with channels innermost best.
        weight: [O, C, r, s].
        bias: [O], or None.
        padding: zeros around ``x``, above and below, left and right.
        outputs: rows and columns that are wanted.

    Returns:
        [B, O, *outputs], channels innermost.
    """
    y: Tensor = _Convolve.apply(x, weight, bias, padding, outputs)
    return y


def at_points(weight: Tensor, outputs: tuple[int, int]) -> Tensor:
    """Weights [O, C, r, s] at the points of tiles for so many outputs: [points, O, C], for `convolve_at`."""
    width, channels, *kernel = weight.shape
    flat = weight.permute(3, 2, 0, 1).reshape(-1, width * channels)
    return torch.mm(_grid(*outputs, *kernel), flat).view(-1, width, channels)


@torch.no_grad()
def convolve_at(
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None,
    kernel: tuple[int, int],
    padding: tuple[int, int],
    outputs: tuple[int, int],
    *,
    pool: bool = False,
    relu: bool = False,
) -> Tensor:
    """As `convolve`, without gradients, by weights that `at_points` has made once for these ``outputs``.

    With ``pool`` and ``relu`` the max-pooling of 2 x 2 (``outputs`` are then even) and the ReLU that follow it are done too,
    while the cache still holds the maps, of which only a quarter is then written.
    """
    rows, columns = (line(*each) for each in zip(x.shape[2:], outputs, kernel, padding, strict=True))
    step = 2 if pool else 1
    y = x.new_empty(len(x), outputs[0] // step, outputs[1] // step, weights.shape[1])
    for into, made in _chunks(x, weights, rows, columns, y, None):
        if pool:
            made = torch.maximum(made[0::2], made[1::2])
            made = torch.maximum(made[:, 0::2], made[:, 1::2])
        if bias is not None:
            made += bias
        made = made.permute(2, 0, 1, 3)
        torch.clamp(made, min=0, out=into) if relu else into.copy_(made)
    return y.permute(0, 3, 1, 2)


def _chunks(
    x: Tensor, weights: Tensor, rows: Line, columns: Line, y: Tensor, kept: list[Tensor] | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Some images at a time: where they belong in ``y`` [B, ...], and what was made of them, [h, w, n, O].

    Their maps at the points are appended to ``kept``.
    """
    batch, channels = x.shape[:2]
    points, width, _ = weights.shape
    parts = rows.tiles * columns.tiles
    pixels = x.permute(2, 3, 0, 1)
    chunk = _chunk(points * parts * max(width, channels))
    across = weights.transpose(1, 2)
    for start in range(0, batch, chunk):
        maps = _enter(columns.enter, rows.enter, pixels[:, :, start : start + chunk].contiguous(), columns.tiles)
        count = maps.shape[-2]
        maps = maps.view(points, parts * count, channels)
        if kept is not None:
            kept.append(maps)
        products = torch.bmm(maps, across).view(columns.points, -1, columns.tiles, count, width)
        yield y[start : start + count], _leave(rows.leave, columns.leave, products)


def _chunk(numbers: int) -> int:
    """How many images are taken at a time, of which each has so many numbers at all points."""
    return max(1, _CHUNK // numbers)


@cache
def _grid(height: int, width: int, r: int, s: int) -> Tensor:
    """[points, s * r]: a kernel, columns first, to its values at the points."""
    down, right = (_tile(tiles(outputs, kernel)[1], kernel)[2] for outputs, kernel in ((height, r), (width, s)))
    return torch.from_numpy(np.kron(right, down)).float()


class _Convolve(torch.autograd.Function):
    """Maps at the points are kept for the gradient of the weights; images are taken in chunks, which the cache holds."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int], outputs: tuple[int, int]
    ) -> Tensor:
        kernel = (weight.shape[2], weight.shape[3])
        rows, columns = (line(*each) for each in zip(x.shape[2:], outputs, kernel, padding, strict=True))
        weights = at_points(weight, outputs)
        y = x.new_empty(len(x), *outputs, len(weight))
        kept: list[Tensor] | None = [] if ctx.needs_input_grad[1] else None
        for into, made in _chunks(x, weights, rows, columns, y, kept):
            made = made.permute(2, 0, 1, 3)
            into.copy_(made) if bias is None else torch.add(made, bias, out=into)
        ctx.save_for_backward(*(kept or ()))
        ctx.weights = weights  # no activation: their number does not grow with the images
        ctx.rows, ctx.columns, ctx.shape, ctx.kernel, ctx.outputs = rows, columns, x.shape, kernel, outputs
        return y.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weights, rows, columns, kept = ctx.weights, ctx.rows, ctx.columns, ctx.saved_tensors
        batch, channels, *sides = ctx.shape
        points, width, _ = weights.shape
        parts = rows.tiles * columns.tiles
        chunk = _chunk(points * parts * max(width, channels))
        above = grad.permute(2, 3, 0, 1)
        down, right, up, left = (m.t().contiguous() for m in (rows.leave, columns.leave, rows.enter, columns.enter))
        of_pixels = grad.new_empty(batch, *sides, channels) if ctx.needs_input_grad[0] else None
        of_weights: Tensor | None = None
        for i, start in enumerate(range(0, batch, chunk)):
            slopes = _enter(right, down, above[:, :, start : start + chunk].contiguous(), columns.tiles)
            count = slopes.shape[-2]
            slopes = slopes.view(points, parts * count, width)
            if kept:
                across = slopes.transpose(1, 2)
                of_weights = torch.bmm(across, kept[i]) if of_weights is None else of_weights.baddbmm_(across, kept[i])
            if of_pixels is not None:
                below = torch.bmm(slopes, weights).view(columns.points, -1, columns.tiles, count, channels)
                of_pixels[start : start + count] = _leave(up, left, below).permute(2, 0, 1, 3)
        of_weight = None
        if of_weights is not None:
            flat = torch.mm(_grid(*ctx.outputs, *ctx.kernel).t(), of_weights.view(points, width * channels))
            of_weight = flat.view(*reversed(ctx.kernel), width, channels).permute(2, 3, 1, 0)
        of_bias = grad.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        return None if of_pixels is None else of_pixels.permute(0, 3, 1, 2), of_weight, of_bias, None, None


def _enter(columns: Tensor, rows: Tensor, x: Tensor, tiles: int) -> Tensor:
    """[h, w, n, c] by ``columns`` [p * tiles, w] and ``rows`` [q, h] to [p, q, tiles, n, c]."""
    height, width, count, channels = x.shape
    half = torch.bmm(columns.expand(height, -1, width), x.view(height, width, count * channels))
    half = half.view(height, -1, tiles * count * channels).transpose(0, 1)
    points = len(half)
    return torch.bmm(rows.expand(points, -1, height), half).view(points, len(rows), tiles, count, channels)


def _leave(rows: Tensor, columns: Tensor, x: Tensor) -> Tensor:
    """[p, q, tiles, n, c] by ``rows`` [h, q] and ``columns`` [w, p * tiles] to [h, w, n, c]."""
    points, q, tiles, count, channels = x.shape
    height, width = len(rows), len(columns)
    half = x.new_empty(height, points, tiles * count * channels)
    torch.bmm(rows.expand(points, height, q), x.view(points, q, -1), out=half.transpose(0, 1))
    made = torch.bmm(columns.expand(height, width, -1), half.view(height, points * tiles, count * channels))
    return made.view(height, width, count, channels)
