"""Products of many queries and many vectors at once, in bfloat16 or float32, with a bound on their error.

The similarity of a pair is its dot product, or minus half its squared distance: greater is nearer. oneDNN computes
``similarity + bias`` for a part of the gallery and a block of queries, where the bias of a query is minus what its
similarities are compared with, plus a bound on the error: what comes out negative was surely less. Numbers near the limit
are small, so that to round them to bfloat16 costs nothing; and as positive floats have the order of their bits, they are
compared as whole numbers.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nearfar.search.tensors import as_tensor, narrow_products, products
from nearfar.search.vectors import Floats, Ints, Metric, squared_lengths

Wide = npt.NDArray[np.float64]

_UNIT, _NARROW_UNIT = 2.0**-24, 2.0**-8
"""Unit roundoffs of float32 and bfloat16."""
_UNIT_LENGTH = 1.0 + 2.0**-20
"""More than the length of a row that was divided by its length in float32."""
_TINY = 2.0**-120
"""More than numbers that are flushed to zero can add up to, for each unit of length."""


class Part(NamedTuple):
    """Some of the gallery, moved to a centre and narrowed."""

    places: Ints | None  # None: in a row, from start
    start: int
    size: int
    keys: Tensor  # [groups * group, D + columns]
    centre: Floats  # [D]
    longest: float  # the greatest length of a row
    lost: float  # the greatest length of what narrowing took from a row


class Block(NamedTuple):
    """Some queries, moved to a centre and narrowed."""

    which: Ints  # [n]
    weights: Tensor  # [n, D + columns]
    constant: Wide  # what the products lack of the similarity: [n]
    lengths: Wide  # [n]
    lost: Wide  # [n]

    def take(self, some: Ints) -> Block:
        """Those at ``some`` [m] of its places."""
        return Block(self.which[some], self.weights[some], self.constant[some], self.lengths[some], self.lost[some])


def greatest_possible(queries: Floats, centres: Floats, radii: Wide, metric: Metric) -> Wide:
    """Bound the similarity of queries [n, D] to whatever lies within ``radii`` [C] of ``centres`` [C, D] from above: [n, C]."""
    wide, points = queries.astype(np.float64), centres.astype(np.float64)
    products, squares, lengths = wide @ points.T, np.square(wide).sum(1)[:, None], np.square(points).sum(1)
    reach = squares + lengths
    apart = np.sqrt(np.maximum(reach - 2.0 * products - 1e-12 * reach, 0.0))
    above = -0.5 * np.maximum(apart * (1.0 - 1e-6) - radii, 0.0) ** 2
    if metric != "euclidean":
        by_angle = products + np.sqrt(squares) * radii
        # For unit rows, which are so but for rounding, the cosine is 1 - d^2 / 2.
        above = by_angle if metric == "dot" else np.minimum(by_angle, above + 1.0)
    possible: Wide = above + 1e-6 * (1.0 + np.abs(above))
    return possible


class Tiles:
    """How vectors of one width are narrowed and multiplied.

    Args:
        dimensions: D.
        metric: "cosine" (of unit rows), "dot" or "euclidean".
        narrow: whether in bfloat16, where ``has_narrow_products``; else in float32.
        moved: whether parts and blocks may be moved to a centre.
    """

    def __init__(self, dimensions: int, metric: Metric, *, narrow: bool, moved: bool) -> None:
        self.dimensions, self.metric, self.narrow = dimensions, metric, narrow
        self.type = torch.bfloat16 if narrow else torch.float32
        # A row's own term, -|h|^2 / 2 or c.h, goes along as columns; three bfloat16 hold the digits of a float32.
        plain = metric != "euclidean" and not moved
        self.columns = 0 if plain else 3 if narrow else 1

    def part(self, vectors: Floats, centre: Floats, *, group: int, start: int = 0, places: Ints | None = None) -> Part:
        """Narrow some of the gallery [n, D]; filled up by copies of the last row to a multiple of ``group``."""
        rows = as_tensor(vectors)
        moved = rows - as_tensor(centre) if centre.any() else rows
        count, width = moved.shape
        plain = not self.columns and not self.narrow and count % group == 0
        if plain and self.metric == "cosine":
            return Part(places, start, count, moved, centre, _UNIT_LENGTH, 0.0)
        squares = torch.linalg.vecdot(moved, moved)
        longest = math.sqrt(float(squares.max()) * (1.0 + (width + 2) * _UNIT))
        if plain:
            return Part(places, start, count, moved, centre, longest, 0.0)
        keys = torch.empty((-(-count // group) * group, width + self.columns), dtype=self.type)
        keys[:count, :width] = moved
        lost = 0.0
        if self.narrow:
            rest = moved - keys[:count, :width]
            lost = math.sqrt(float(torch.linalg.vecdot(rest, rest).max()) * (1.0 + (width + 2) * _UNIT))
        if self.columns:
            term = squares.mul_(-0.5) if self.metric == "euclidean" else moved @ as_tensor(centre)
            for column in range(width, width + self.columns):
                keys[:count, column] = term
                term = term - keys[:count, column]
        keys[count:] = keys[count - 1]  # in the last row's own group: the maximum of none is changed
        return Part(places, start, count, keys, centre, longest, lost)

    def block(self, queries: Floats, which: Ints, centre: Floats) -> Block:
        """Narrow the queries ``which`` [n] of ``queries`` [N, D]."""
        own = queries[which]
        moved = as_tensor(own - centre if centre.any() else own)
        width = moved.shape[1]
        weights = torch.ones((len(which), width + self.columns), dtype=self.type)
        weights[:, :width] = moved
        lost = np.zeros(len(which))
        if self.narrow:
            rest = moved - weights[:, :width]
            lost = np.sqrt(squared_lengths(rest.numpy()))
        squares = squared_lengths(moved.numpy())
        constant = -0.5 * squares if self.metric == "euclidean" else own.astype(np.float64) @ centre.astype(np.float64)
        return Block(which, weights, constant, np.sqrt(squares), lost)

    def error(self, part: Part, block: Block, bias: Wide | float) -> Wide:
        """Bound what a product, before it is rounded to the type of the result, may be wrong by: [n].

        Narrowing takes parts of known length away, and |a.b| <= |a| |b|. A sum of n products in float32 is off by at most
        n 2^-24 times the sum of their magnitudes (Higham 2002, section 3.1).
        """
        p, h = block.lengths, part.longest
        narrowed = block.lost * h + (p + block.lost) * part.lost
        reach = (p + block.lost) * (h + part.lost) + np.abs(bias)
        if self.columns:
            centre = float(np.sqrt(squared_lengths(part.centre[None])[0]))
            # The row's term, the rounding of the moves, and of the constant.
            reach += h * h + p * p if self.metric == "euclidean" else (centre + p) * (h + centre)
        terms = self.dimensions + self.columns + 16
        return (narrowed + terms * _UNIT * reach) * (1.0 + 1e-6) + terms * _TINY * (1.0 + p + h)

    def product(self, part: Part, block: Block, bias: Wide) -> Tensor:
        """Return ``similarity - block.constant + bias`` [rows, n]."""
        multiply = narrow_products if self.narrow else products
        return multiply(part.keys, block.weights, torch.from_numpy(bias.astype(np.float32)))

    def compared(self, tile: Tensor) -> Tensor:
        """``tile`` as numbers of which the positive ones can be compared fast: whole ones for bfloat16."""
        return tile.view(torch.int16) if self.narrow else tile

    def reached(self, values: Tensor, least: Tensor) -> Tensor:
        """Say which of ``values`` [n, m], as `compared` gives them, are not surely below ``least`` [n], positive."""
        if self.narrow:
            least = (least.view(torch.int32) >> 16).to(torch.int16)  # rounded towards zero
        return values >= least[:, None]

    def lowest(self, values: Tensor) -> Tensor:
        """The least that, before rounding, gave ``values`` of a tile; where positive."""
        if self.narrow:
            return (values.to(torch.int32) << 16).view(torch.float32) * (1.0 - _NARROW_UNIT)
        return values * (1.0 - 2.0 * _UNIT)

    def highest(self, values: Tensor) -> Tensor:
        """The greatest that gave ``values``; where positive."""
        if self.narrow:
            return (values.to(torch.int32) << 16).view(torch.float32) * (1.0 + _NARROW_UNIT)
        return values * (1.0 + 2.0 * _UNIT)
