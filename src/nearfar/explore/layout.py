"""From vectors to positions on a plane, by the exact nearest neighbours. For looking only: no figure is computed from them.

Knows vectors and a metric; no labels, no images, no files. N points of D numbers.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from nearfar.classify import similarities
from nearfar.explore.positions import NEIGHBORS, place
from nearfar.plots.projections import project_pca
from nearfar.search import NeighborIndex
from nearfar.search.vectors import Metric

PERPLEXITY = 15.0
MOST = 150_000
"""Points that t-SNE lays out; of more, so many are drawn by seed, and the others placed among them."""
_PER_PERPLEXITY = 3  # neighbours; those beyond have next to no weight (van der Maaten 2014)
_FEWEST = 12  # points that t-SNE makes anything of
_FFT_FROM = 10_000  # points, from which interpolation (Linderman et al. 2019) is worth its grid
_EARLY, _LATE = 250, 500  # steps with exaggeration, and without
_EXAGGERATION = 12.0
_EVERY = 125  # steps, after which progress is told

Floats = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Note = Callable[[str], None]


def can_tsne() -> bool:
    """Whether openTSNE is installed."""
    return importlib.util.find_spec("openTSNE") is not None


def lay_out(z: Floats, metric: Metric, *, seed: int, threads: int, note: Note) -> tuple[Floats, str]:
    """Positions of points, such that near ones lie near one another.

    t-SNE (van der Maaten and Hinton 2008) by openTSNE, on the graph of `neighbor_graph`, started from the principal components;
    where that is not installed, or for a handful of points, the first two principal components themselves.

    Args:
        z: [N, D].
        metric: in which near is meant.
        seed: of everything random; the same seed gives the same positions, whatever ``threads`` is.
        threads: how many processor cores to use.
        note: is told how far it is.

    Returns:
        float32 [N, 2] from 0 to 1 with y upwards, and "t-SNE" or "PCA".
    """
    if len(z) < _FEWEST or not can_tsne():
        return into_square(project_pca(z, 2)[0]), "PCA"
    if len(z) <= MOST:
        return into_square(_tsne(z, metric, seed, threads, note)), "t-SNE"
    drawn = np.sort(np.random.default_rng(seed).permutation(len(z))[:MOST])
    rest = np.setdiff1d(np.arange(len(z)), drawn)
    xy = np.empty((len(z), 2), dtype=np.float32)
    xy[drawn] = into_square(_tsne(z[drawn], metric, seed, threads, note))
    note(f"placing {len(rest):,} more points among them")
    scores, rows = NeighborIndex(metric, "exact").fit(z[drawn]).search_rows(z[rest], NEIGHBORS)
    xy[rest] = place(xy[drawn][rows], similarities(scores, metric))
    return xy, "t-SNE"


def neighbor_graph(z: Floats, metric: Metric, k: int) -> tuple[Ints, Wide]:
    """The k nearest of every point, itself not among them, by exact search.

    Args:
        z: [N, D].
        metric: "dot" takes Euclidean neighbours, since by dot product a long vector is near to everything.
        k: at most N - 1.

    Returns:
        Rows [N, k], the nearest first, and their Euclidean distances [N, k]: with "cosine", of the vectors scaled to length 1.
    """
    if metric == "cosine":
        scores, rows = NeighborIndex("cosine", "exact").fit(z).search_rows(z, k, exclude=np.arange(len(z)))
        return rows, np.sqrt(np.maximum(2.0 - 2.0 * scores.astype(np.float64), 0.0))
    distances, rows = NeighborIndex("euclidean", "exact").fit(z).search_rows(z, k, exclude=np.arange(len(z)))
    return rows, distances.astype(np.float64)


def affinities(rows: Ints, distances: Wide, perplexity: float, threads: int) -> Any:
    """openTSNE's affinities of a graph that is given to it; it searches nothing itself."""
    graph = importlib.import_module("openTSNE.nearest_neighbors").PrecomputedNeighbors(rows, distances)
    return importlib.import_module("openTSNE.affinity").PerplexityBasedNN(
        knn_index=graph, perplexity=perplexity, n_jobs=threads
    )


def into_square(xy: npt.ArrayLike) -> Floats:
    """Move and scale points [N, 2] into the square from 0 to 1, both directions alike, with the middle in the middle."""
    points = np.asarray(xy, dtype=np.float64)
    low, high = points.min(axis=0), points.max(axis=0)
    extent = float((high - low).max())
    if extent == 0.0:
        return np.full(points.shape, 0.5, dtype=np.float32)
    return np.clip(0.5 + (points - (low + high) / 2) / extent, 0.0, 1.0).astype(np.float32)


def _tsne(z: Floats, metric: Metric, seed: int, threads: int, note: Note) -> Wide:
    perplexity = min(PERPLEXITY, (len(z) - 1) / _PER_PERPLEXITY)
    k = int(_PER_PERPLEXITY * perplexity)
    note(f"the {k} nearest neighbours of {len(z):,} points")
    rows, distances = neighbor_graph(z, metric, k)
    given = affinities(rows, distances, perplexity, threads)
    start, _ = project_pca(z / np.linalg.norm(z, axis=1, keepdims=True) if metric == "cosine" else z, 2)
    spread = float(start[:, 0].std())
    # A hair of noise parts points that lie on one another, which t-SNE could not.
    start = start / (spread if spread > 0 else 1.0) + np.random.default_rng(seed).normal(scale=0.01, size=start.shape)
    embedding = importlib.import_module("openTSNE").TSNEEmbedding(
        1e-4 * start,
        given,
        negative_gradient_method="bh" if len(z) < _FFT_FROM else "fft",
        n_jobs=threads,
        random_state=seed,
    )
    done, total = 0, _EARLY + _LATE
    for steps, exaggeration in ((_EARLY, _EXAGGERATION), (_LATE, None)):
        for first in range(0, steps, _EVERY):
            count = min(_EVERY, steps - first)
            embedding.optimize(n_iter=count, exaggeration=exaggeration, momentum=0.8, inplace=True, propagate_exception=True)
            done += count
            note(f"t-SNE, step {done} of {total}")
    return np.asarray(embedding, dtype=np.float64)
