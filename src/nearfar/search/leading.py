"""Bounds from a few coordinates: which vectors can be near at all is often seen long before all numbers are multiplied.

Vectors are turned so that most of their length lies in the first coordinates. A product is then that of the leading
coordinates and that of the rest, and the latter is at most the product of the lengths of the rests (Cauchy, Schwarz): one
more column gives a bound from above on every similarity for a fraction of the work. Trained embeddings use few directions,
and a query's neighbours are much nearer to it than all else, so nearly everything is ruled out by it. Noise is not.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nearfar.search.tensors import products
from nearfar.search.tiles import Block, Part

Wide = npt.NDArray[np.float64]

_UNIT = 2.0**-24
"""The unit roundoff of float32."""
_LOST = 2.0**-57
"""More than the length of a vector of 1,024 numbers whose squares are flushed to zero."""


class Leading(NamedTuple):
    """A turn of the space, of which the first coordinates are kept.

    Attributes:
        axes: orthonormal but for rounding [D, p].
        columns: of a part's keys beyond the D of the vectors.
    """

    axes: Tensor
    columns: int

    def keys(self, part: Part) -> Tensor:
        """The leading coordinates of a part's rows, the length of the rest, and the other columns: [rows, p + 1 + columns]."""
        return self._cut(part.keys)

    def weights(self, block: Block) -> Tensor:
        """The same of a block's queries: [n, p + 1 + columns]."""
        return self._cut(block.weights)

    def slack(self, part: Part, block: Block) -> Wide:
        """What products of these may be too small by, beside the rounding of the products themselves: [n].

        A coordinate is a sum of D products, off by D 2^-24 times the length of the vector at most (Higham 2002, section
        3.1), and the axes are rounded; that is p coordinates on both sides.
        """
        slack: Wide = self._off() * block.lengths * part.longest
        return slack

    def _off(self) -> float:
        dimensions, kept = self.axes.shape
        return 4.0 * math.sqrt(kept) * (dimensions + 16) * _UNIT

    def _cut(self, whole: Tensor) -> Tensor:
        dimensions, kept = self.axes.shape
        # One product does it all, since the other columns are taken over by ones and zeros, which is exact.
        turn = torch.zeros((kept + 1 + self.columns, whole.shape[1]))
        turn[:kept, :dimensions] = self.axes.T
        turn[kept + 1 :, dimensions:] = torch.eye(self.columns)
        found = products(whole, turn)
        squares, first = (torch.linalg.vector_norm(x, dim=1).square_() for x in (whole[:, :dimensions], found[:, :kept]))
        rest = first.neg_().add_(squares).clamp_min_(0.0)
        found[:, kept] = rest.add_(squares, alpha=self._off()).sqrt_().add_(_LOST)
        return found


def leading_axes(sample: Tensor) -> Tensor:
    """Orthonormal axes [D, D] of the rows of ``sample`` [n, D], those first that hold most of their squared lengths."""
    wide = sample.to(torch.float64)
    return torch.linalg.eigh(wide.T @ wide)[1].flip(1).to(torch.float32)
