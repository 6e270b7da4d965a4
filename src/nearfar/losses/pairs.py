"""Losses of pairs: each pair of rows pulls or pushes on its own, given only whether it is of one class.

Over a batch they are the mean over all pairs; over explicit pairs (``loss.pairs``) the mean over those.
``same`` is true for a pair of one class.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nearfar.losses.base import Batch, RowLoss, check_pairs, choice, number, shares, stacked, zero
from nearfar.losses.distances import negative_hinges, positive_squares, squared_products
from nearfar.losses.mining import distances
from nearfar.losses.tiled import positive_sums


class ContrastiveLoss(RowLoss):
    """Margin loss on distances: one class pulls together, two classes push apart until the margin.

    With h the squared Euclidean distance of a pair, d = sqrt(h), m the margin and w the weight, the mean over pairs of

    - ``distance="euclidean"``:  w * (same * d^2 + (1 - same) * max(0, m - d)^2)
    - ``distance="squared"``:    w * (same * h + (1 - same) * max(0, m - h))

    The first is that of Hadsell, Chopra, LeCun (2006), with w = 1/2.
    Two rows at the same place have no direction to be pushed in: in the first form their gradient is zero.

    Args:
        margin: how far apart two classes are pushed, in the units of the distance.
        distance: ``"euclidean"`` or ``"squared"``.
        weight: factor of the whole.
    """

    takes_pairs: ClassVar[bool] = True

    def __init__(
        self, *, margin: float = 1.0, distance: Literal["euclidean", "squared"] = "euclidean", weight: float = 0.5
    ) -> None:
        super().__init__()
        self.margin = number("margin", margin, above=0.0, usual="1 is usual; unit rows are at most 2 apart")
        self.distance = choice("distance", distance, ("euclidean", "squared"))
        self.weight = number("weight", weight, above=0.0, usual="0.5 or 1 is usual")

    def pairs(self, a: Tensor, b: Tensor, same: Tensor) -> Tensor:
        """Return the mean over pairs of rows: a, b ``[M, D]``, same bool ``[M]``."""
        return self.combine(self.pair_sums(a, b, same)).to(torch.promote_types(a.dtype, torch.float32))

    def pair_sums(self, a: Tensor, b: Tensor, same: Tensor) -> Tensor:
        """The sum over pairs and their number, float64 ``[2]``."""
        a, b, same = check_pairs(a, b, same)
        each = self._each((a - b).square().sum(1), same)
        return stacked((each.sum(), a.new_tensor(len(a))))

    @torch.no_grad()
    def active_pairs(self, a: Tensor, b: Tensor, same: Tensor) -> dict[str, float]:
        """What share of the pairs of one class, and of two, has a loss: a, b ``[M, D]``, same bool ``[M]``."""
        a, b, same = check_pairs(a, b, same)
        return shares(self._each((a - b).square().sum(1), same) > 0, positives=same, negatives=~same)

    def _active(self, batch: Batch) -> dict[str, float]:
        positives, negatives = batch.positives(), batch.negatives()
        pulls = self._each(distances(batch).square(), positives) > 0
        return shares(pulls, positives=positives, negatives=negatives)

    def _each(self, squared: Tensor, same: Tensor) -> Tensor:
        if self.distance == "squared":
            return self.weight * torch.where(same, squared, (self.margin - squared).clamp_min(0.0))
        apart = squared > 0
        # The root has no gradient at 0: there a constant takes its place.
        distance = torch.where(apart, squared, torch.ones_like(squared)).sqrt() * apart
        return self.weight * torch.where(same, squared, (self.margin - distance).clamp_min(0.0).square())

    def _sums(self, batch: Batch) -> tuple[Tensor, Tensor]:
        near = positive_squares(batch)
        far = negative_hinges(batch, self.margin, squared=self.distance == "squared")
        return self.weight * (near + far), near.new_tensor(batch.pairs)


class CosineMSELoss(RowLoss):
    """Mean squared error between the cosine similarity of a pair and 1 (one class) or 0 (two classes).

    The mean over pairs of (cos - same)^2. Lengths below ``eps`` count as ``eps``, so that a zero row has cosine 0.
    """

    takes_pairs: ClassVar[bool] = True

    def __init__(self, *, eps: float = 1e-7) -> None:
        super().__init__()
        self.eps = number("eps", eps, above=0.0, high=1e-2, usual="1e-7 is usual")

    def pairs(self, a: Tensor, b: Tensor, same: Tensor) -> Tensor:
        """Return the mean over pairs of rows: a, b ``[M, D]``, same bool ``[M]``."""
        return self.combine(self.pair_sums(a, b, same)).to(torch.promote_types(a.dtype, torch.float32))

    def pair_sums(self, a: Tensor, b: Tensor, same: Tensor) -> Tensor:
        """The sum over pairs and their number, float64 ``[2]``."""
        a, b, same = check_pairs(a, b, same)
        cosine = (F.normalize(a, dim=1, eps=self.eps) * F.normalize(b, dim=1, eps=self.eps)).sum(1)
        return stacked(((cosine - same.to(cosine.dtype)).square().sum(), a.new_tensor(len(a))))

    def _sums(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if not batch.pairs:
            return zero(batch.z, batch.keys), batch.z.new_zeros(())
        unit = F.normalize(batch.z, dim=1, eps=self.eps)
        keys = unit if batch.symmetric else F.normalize(batch.keys, dim=1, eps=self.eps)
        batch = replace(batch, z=unit, keys=keys)
        # (cos - same)^2 summed over all pairs, with the square multiplied out: no similarity is ever made.
        near = positive_sums(batch).double().sum()
        total = squared_products(batch) - 2.0 * near + batch.positive_counts().sum()
        # Where every cosine is right the terms cancel, to something that rounding may put just below 0.
        return total + (total.clamp_min(0.0) - total).detach(), total.new_tensor(batch.pairs)
