"""Losses that need no negatives: views of an image shall agree, while the columns of the embedding stay alive and apart.

Labels are the numbers of images: rows of one label are views of one image. Without ``keys`` both views stand in ``z`` and
statistics are over all of it; with ``keys`` they are the other view, and statistics are over each side.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nearfar.losses.base import Batch, Loss, number, zero
from nearfar.losses.classes import class_members
from nearfar.losses.distances import positive_squares


class VICRegLoss(Loss):
    """VICReg: invariance, variance, covariance (Bardes, Ponce, LeCun 2022).

    - invariance: the mean squared difference of positive pairs, by column
    - variance: mean over columns of max(0, 1 - sqrt(variance + 1e-4)), so that no column dies
    - covariance: the sum of squared covariances of two columns, divided by the number of columns

    Variance is the mean of both sides, covariance their sum (twice that of ``z`` where there are no ``keys``). One row alone
    has no statistics, and a batch without a positive pair no views: its loss is 0.

    Args:
        invariance: weight of the first.
        variance: weight of the second.
        covariance: weight of the third.
    """

    def __init__(self, *, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0) -> None:
        super().__init__()
        self.invariance = number("invariance", invariance, low=0.0, usual="25 is usual")
        self.variance = number("variance", variance, low=0.0, usual="25 is usual")
        self.covariance = number("covariance", covariance, low=0.0, usual="1 is usual")

    def _loss(self, batch: Batch) -> Tensor:
        count = batch.positive_counts().sum()
        if len(batch.z) < 2 or len(batch.keys) < 2 or not int(count):
            return zero(batch.z, batch.keys)
        dim = batch.z.shape[1]
        agree = positive_squares(batch).to(batch.z.dtype) / (count * dim)
        sides = [batch.z] if batch.symmetric else [batch.z, batch.keys]
        alive, apart = [], []
        for side in sides:
            centred = side - side.mean(0)
            covariance = centred.T @ centred / (len(side) - 1)
            diagonal = covariance.diagonal()
            alive.append((1.0 - (diagonal + 1e-4).sqrt()).clamp_min(0.0).mean())
            apart.append((covariance.square().sum() - diagonal.square().sum()) / dim)
        spread, overlap = torch.stack(alive).mean(), 2.0 * torch.stack(apart).mean()
        return self.invariance * agree + self.variance * spread + self.covariance * overlap


class BarlowTwinsLoss(Loss):
    """Barlow Twins: the cross-correlation of two views shall be the identity (Zbontar et al. 2021).

    Columns are brought to mean 0 and variance 1 over the batch. C is the mean over positive pairs of the outer product of
    the two rows; the loss is the sum over columns of (1 - C_cc)^2 plus ``redundancy`` times the sum of the other C^2.
    One row alone has no statistics, and a batch without a positive pair no views: its loss is 0.

    Args:
        redundancy: weight of the correlations between two columns.
    """

    def __init__(self, *, redundancy: float = 0.005) -> None:
        super().__init__()
        self.redundancy = number("redundancy", redundancy, low=0.0, usual="0.005 is usual")

    def _loss(self, batch: Batch) -> Tensor:
        count = batch.positive_counts().sum()
        if len(batch.z) < 2 or len(batch.keys) < 2 or not int(count):
            return zero(batch.z, batch.keys)
        z = _standard(batch.z)
        keys = z if batch.symmetric else _standard(batch.keys)
        classes, of_keys, of_rows, known = class_members(batch)
        sums = torch.zeros(len(classes), z.shape[1], dtype=z.dtype, device=z.device)
        # The outer products of a class are those of the sums of its rows and of its keys.
        row_sums = sums.index_add(0, of_rows, z * known[:, None])
        key_sums = sums.index_add(0, of_keys, keys)
        cross = row_sums.T @ key_sums
        if batch.offset is not None:
            cross = cross - z.T @ keys[batch.offset : batch.offset + len(z)]
        cross = cross / count
        diagonal = cross.diagonal()
        other = cross.square().sum() - diagonal.square().sum()
        return (1.0 - diagonal).square().sum() + self.redundancy * other


def _standard(rows: Tensor) -> Tensor:
    """Columns of mean 0 and variance 1 over the rows; a constant column becomes 0."""
    centred = rows - rows.mean(0)
    return centred / (centred.square().mean(0) + 1e-5).sqrt()
