"""Clusters of a gallery, where it has some: what lies in a far cluster need not be compared with a query at all.

Trained embeddings are such galleries: a class is a small cloud far from the others.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nearfar.search.bulk import Cells
from nearfar.search.scoring import Gallery, spread_places
from nearfar.search.tensors import as_tensor, products
from nearfar.search.vectors import Floats, Ints, Metric, squared_lengths

_SAMPLE = 4096
"""Vectors that K-means sees."""
_ROUNDS = 6
"""Of Lloyd's algorithm; more would move the centres by little."""
_TIGHT = 0.3
"""Cells are worth their while where the squared distances to their centres are less than this share of the variance."""
_ROWS = 4096
"""Rows of a cell, about: smaller ones leave the matrix products too little to do."""
_MOST = 64
"""Cells at most."""


def make_cells(queries: Floats, gallery: Gallery, metric: Metric) -> Cells | None:
    """Cluster a gallery by K-means on a sample, or return None where it is no set of clusters.

    Args:
        queries: [N, D].
        gallery: a few thousand vectors or more.
        metric: "cosine" (of unit rows), "dot" or "euclidean".
    """
    count = min(_MOST, len(gallery) // _ROWS)
    if count < 2:
        return None
    sample = as_tensor(gallery.at(spread_places(len(gallery), _SAMPLE)))
    centres = _k_means(sample, count)
    apart = (sample - centres[_nearest(sample, centres)]).square().sum()
    if float(apart) >= _TIGHT * float((sample - sample.mean(dim=0)).square().sum()):
        return None
    cell, distances = np.empty(len(gallery), dtype=np.uint8), np.empty(len(gallery))
    points = centres.numpy()
    for start in range(0, len(gallery), 1 << 16):
        rows = gallery.between(start, start + (1 << 16))
        own = _nearest(as_tensor(rows), centres).numpy()
        cell[start : start + len(rows)] = own
        # The subtraction is in float32, as is that of the search.
        distances[start : start + len(rows)] = np.sqrt(squared_lengths(rows - points[own])) * (1.0 + 1e-6)
    order: Ints = np.argsort(cell, kind="stable")
    sizes = np.bincount(cell, minlength=count)
    there = np.flatnonzero(sizes)  # none is empty but by accident
    starts = np.cumsum(sizes) - sizes
    radii = np.maximum.reduceat(distances[order], starts[there])
    bounds = [*starts[there].tolist(), len(gallery)]
    home = np.concatenate([_nearest(as_tensor(part), centres[there]).numpy() for part in _parts(queries)])
    return Cells(order, bounds, points[there], radii, home)


def _parts(queries: Floats) -> list[Floats]:
    return [queries[start : start + (1 << 16)] for start in range(0, len(queries), 1 << 16)]


def _nearest(vectors: Tensor, centres: Tensor) -> Tensor:
    """Return the nearest of ``centres`` [C, D] for each of ``vectors`` [N, D]: [N]."""
    return products(vectors, centres, -0.5 * torch.linalg.vecdot(centres, centres)).argmax(dim=1)


def _k_means(sample: Tensor, count: int) -> Tensor:
    """Return centres [count, D]: K-means++ (Arthur, Vassilvitskii 2007), then Lloyd's rounds. Seeded."""
    generator = torch.Generator().manual_seed(0)
    centres = sample[:1].clone()
    apart = (sample - centres).square().sum(dim=1)
    while len(centres) < count and float(apart.sum()) > 0.0:
        centres = torch.cat([centres, sample[torch.multinomial(apart, 1, generator=generator)]])
        apart = torch.minimum(apart, (sample - centres[-1]).square().sum(dim=1))
    for _ in range(_ROUNDS):
        own = _nearest(sample, centres)
        sums = torch.zeros_like(centres).index_add_(0, own, sample)
        sizes = torch.bincount(own, minlength=len(centres))
        centres = torch.where(sizes[:, None] > 0, sums / sizes[:, None].clamp(min=1), centres)
    return centres
