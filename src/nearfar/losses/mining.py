"""Choosing triplets worth learning from, out of all that a batch holds.

Each function takes ``(z, labels, keys=None, key_labels=None)`` as the losses do and returns three index tensors ``[T]``:
anchors (rows of z), positives and negatives (rows of keys, or of z where there are none). Distances are Euclidean.
Nothing here has a gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nearfar.errors import InputError
from nearfar.losses.base import Batch, check_batch

Triplets = tuple[Tensor, Tensor, Tensor]

_FAR = float("inf")


def hard_triplets(
    z: Tensor,
    labels: Tensor,
    keys: Tensor | None = None,
    key_labels: Tensor | None = None,
    *,
    key_offset: int | None = None,
) -> Triplets:
    """For each row its farthest positive and its nearest negative (Hermans, Beyer, Leibe 2017: batch hard)."""
    return mine("hard", check_batch(z, labels, keys, key_labels, key_offset))


def semi_hard_triplets(
    z: Tensor,
    labels: Tensor,
    keys: Tensor | None = None,
    key_labels: Tensor | None = None,
    *,
    key_offset: int | None = None,
) -> Triplets:
    """For each positive pair the nearest negative that is farther than the positive (Schroff et al. 2015).

    Positive pairs without such a negative are left out.
    """
    return mine("semi-hard", check_batch(z, labels, keys, key_labels, key_offset))


def easy_positive_triplets(
    z: Tensor,
    labels: Tensor,
    keys: Tensor | None = None,
    key_labels: Tensor | None = None,
    *,
    key_offset: int | None = None,
) -> Triplets:
    """For each row its nearest positive and its nearest negative (Xuan, Stylianou, Pless 2020).

    Classes that have several looks need not be forced into one place.
    """
    return mine("easy-positive", check_batch(z, labels, keys, key_labels, key_offset))


def distance_weighted_triplets(
    z: Tensor,
    labels: Tensor,
    keys: Tensor | None = None,
    key_labels: Tensor | None = None,
    *,
    key_offset: int | None = None,
    generator: torch.Generator | None = None,
) -> Triplets:
    """For each positive pair a random negative, all distances being equally likely (Wu et al. 2017).

    Points spread over a sphere are nearly all sqrt(2) apart; drawing by the inverse of that density shows near and far
    negatives alike. Distances below 0.5 count as 0.5, so that a few noisy pairs do not take all; those above 1.4 are
    drawn only where a row has no other.

    Args:
        z: unit rows ``[B, D]``, D at least 3.
        labels: ``[B]``.
        keys: unit rows ``[K, D]``.
        key_labels: ``[K]``.
        key_offset: where the rows of ``z`` stand in ``keys``.
        generator: where the random numbers come from, on the device of ``z``.
    """
    return mine("distance-weighted", check_batch(z, labels, keys, key_labels, key_offset, unit=True), generator=generator)


def mine(how: str, batch: Batch, distance: Tensor | None = None, *, generator: torch.Generator | None = None) -> Triplets:
    """Mine a checked batch; ``distance`` ``[B, K]`` if it is known already."""
    if not len(batch.keys):
        none = batch.labels[:0]
        return none, none, none
    distance = (distances(batch) if distance is None else distance).detach()
    positives, negatives = batch.positives(), batch.negatives()
    if how in ("hard", "easy-positive"):
        worst = distance.masked_fill(~positives, -_FAR).argmax(1)
        best = distance.masked_fill(~positives, _FAR).argmin(1)
        anchors = (positives.any(1) & negatives.any(1)).nonzero()[:, 0]
        nearest = distance.masked_fill(~negatives, _FAR).argmin(1)
        return anchors, (worst if how == "hard" else best)[anchors], nearest[anchors]
    if how == "semi-hard":
        return _semi_hard(distance, positives, negatives)
    return _distance_weighted(distance, positives, negatives, batch.z.shape[1], generator)


def _semi_hard(distance: Tensor, positives: Tensor, negatives: Tensor) -> Triplets:
    ordered, places = distance.masked_fill(~negatives, _FAR).sort(1)
    # For every pair at once: how many negatives of the row are as near as this key, or nearer.
    nearer = torch.searchsorted(ordered, distance.contiguous(), right=True)
    found = positives & (nearer < negatives.sum(1, keepdim=True))
    anchors, partners = found.nonzero(as_tuple=True)
    return anchors, partners, places[anchors, nearer[anchors, partners]]


def _distance_weighted(
    distance: Tensor, positives: Tensor, negatives: Tensor, dim: int, generator: torch.Generator | None
) -> Triplets:
    if dim < 3:
        raise InputError(f"z has {dim} columns; distance-weighted mining needs at least 3: use another mining")
    near = distance.clamp_min(0.5)
    # The density of distances between random points of a sphere in ``dim`` dimensions, as a logarithm.
    density = (dim - 2.0) * near.log() + (dim - 3.0) / 2.0 * (1.0 - near.square() / 4.0).clamp_min(1e-6).log()
    usual = negatives & (distance < 1.4)
    allowed = torch.where(usual.any(1, keepdim=True), usual, negatives)
    weights = (-density).masked_fill(~allowed, -_FAR)
    rows = allowed.any(1)
    anchors, partners = (positives & rows[:, None]).nonzero(as_tuple=True)
    if not len(anchors):
        return anchors, partners, partners
    # The greatest of log-weights plus Gumbel noise is a draw by those weights: no row can have too many columns for it.
    noise = torch.rand(len(anchors), distance.shape[1], dtype=distance.dtype, device=distance.device, generator=generator)
    tiny = torch.finfo(distance.dtype).tiny
    drawn = (weights[anchors] - noise.clamp_min(tiny).log().neg().clamp_min(tiny).log()).argmax(1)
    return anchors, partners, drawn


def distances(batch: Batch) -> Tensor:
    """Euclidean distances ``[B, K]`` from differences, exact for near rows; the gradient of a distance of 0 is 0."""
    return torch.cdist(batch.z, batch.keys, compute_mode="donot_use_mm_for_euclid_dist")
