"""Embeddings brought down to two or three dimensions, for looking only: no figure is computed from them."""

from __future__ import annotations

import importlib
import importlib.util
import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearfar.errors import InputError
from nearfar.plots.check import check_numbers
from nearfar.search.exact import nearest

_TSNE_DIMENSIONS = 50  # principal components that t-SNE is given; more cost time and change the picture little
_TSNE_FEWEST = 5  # points
_FFT_FROM = 4_000  # points, from which on interpolation (Linderman et al. 2019) takes less time than Barnes-Hut
_EARLY, _LATE = 100, 250  # rounds for so many points, which after them change places, but hardly the picture
_GRID = {"ints_in_interval": 2, "min_num_intervals": 25}  # twice as coarse as usual: a quarter of the Fourier transforms


def project_pca(z: ArrayLike, dimensions: int = 2) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Principal component analysis (Pearson 1901; Hotelling 1933).

    Args:
        z: points [N, D].
        dimensions: how many components to keep.

    Returns:
        The points [N, dimensions] and the share of the variance that each component explains [dimensions]. Where ``z``
        has fewer directions of variance, the rest is zero. The sign of a component is such that its largest loading
        is positive, so that the same data always gives the same picture.

    Raises:
        InputError: ``z`` is not a table of finite numbers, or ``dimensions`` is less than 1.
    """
    points = check_numbers("z", z, "[N, D]")
    if dimensions < 1:
        raise InputError(f"dimensions is {dimensions}, expected at least 1")
    centred = points - points.mean(axis=0)
    count, width = centred.shape
    if width <= count:
        variances, axes = np.linalg.eigh(centred.T @ centred)
    else:  # the same directions from the smaller of the two products
        variances, left = np.linalg.eigh(centred @ centred.T)
        axes = centred.T @ left
        axes /= np.maximum(np.linalg.norm(axes, axis=0), np.finfo(np.float64).tiny)
    keep = min(dimensions, len(variances))
    variances = np.maximum(variances[::-1], 0.0)
    axes = axes[:, ::-1][:, :keep]
    axes *= np.where(axes[np.abs(axes).argmax(axis=0), np.arange(keep)] < 0, -1.0, 1.0)
    projected = np.zeros((count, dimensions))
    projected[:, :keep] = centred @ axes
    shares = np.zeros(dimensions)
    if variances.sum() > 0:
        shares[:keep] = variances[:keep] / variances.sum()
    return projected, shares


def project_tsne(z: ArrayLike, seed: int = 0, *, perplexity: float = 30.0, threads: int = 1) -> NDArray[np.float64]:
    """t-SNE (van der Maaten and Hinton 2008) to two dimensions, started from the principal components.

    openTSNE does it where it is installed (``pip install 'nearfar[project]'``): 10,000 points take some eight seconds of
    one core. Else scikit-learn does, which takes five times as long: see ``sample_rows`` for fewer points.

    Args:
        z: points [N, D], at least 5 of them. Euclidean distances count, for unit rows the same order as cosines.
        seed: of the random numbers; the same seed gives the same picture, whatever ``threads`` is.
        perplexity: roughly how many neighbours a point cares about; lowered for fewer than 91 points.
        threads: how many processor cores to use.

    Returns:
        Positions [N, 2], centred on zero.

    Raises:
        InputError: ``z`` is not a table of finite numbers, or has fewer than 5 rows.
    """
    points = check_numbers("z", z, "[N, D]")
    count, width = points.shape
    if count < _TSNE_FEWEST:
        raise InputError(f"z has {count} rows, t-SNE needs at least {_TSNE_FEWEST} points")
    if not perplexity > 0:
        raise InputError(f"perplexity is {perplexity}, expected a number above 0")
    if width > _TSNE_DIMENSIONS:
        points, _ = project_pca(points, _TSNE_DIMENSIONS)
    start, _ = project_pca(points, 2)
    spread = start[:, 0].std()
    # A hair of noise parts points that lie on one another, which t-SNE could not.
    start = start / (spread if spread > 0 else 1.0) + np.random.default_rng(seed).normal(scale=0.01, size=start.shape)
    start *= 1e-4
    perplexity = min(perplexity, (count - 1) / 3)
    fit = _opentsne if importlib.util.find_spec("openTSNE") else _sklearn_tsne
    placed = fit(points, start, seed, perplexity, threads)
    return placed - placed.mean(axis=0)


def _opentsne(
    points: NDArray[np.float64], start: NDArray[np.float64], seed: int, perplexity: float, threads: int
) -> NDArray[np.float64]:
    module = importlib.import_module("openTSNE")
    if len(points) < _FFT_FROM:
        model = module.TSNE(
            perplexity=perplexity,
            initialization=start,
            random_state=seed,
            n_jobs=threads,
            neighbors="exact",
            negative_gradient_method="bh",
        )
        return np.asarray(model.fit(points), dtype=np.float64)
    # Our own neighbours: scikit-learn's set how many threads the whole process computes with, and disturb other threads.
    single, count = points.astype(np.float32), len(points)
    distances, rows = nearest(single, single, min(count - 1, int(3 * perplexity)), metric="euclidean", exclude=np.arange(count))
    graph = module.nearest_neighbors.PrecomputedNeighbors(rows, distances.astype(np.float64))
    near = module.affinity.PerplexityBasedNN(knn_index=graph, perplexity=perplexity, n_jobs=threads)
    placed = module.TSNEEmbedding(start, near, negative_gradient_method="fft", n_jobs=threads, random_state=seed, **_GRID)
    # Exaggeration and rates as Belkina et al. (2019) found them; openTSNE's own, with fewer rounds.
    rounds = {"exaggeration": 12.0, "learning_rate": len(points) / 12.0, "momentum": 0.5}
    placed = placed.optimize(_EARLY, **rounds)
    return np.asarray(placed.optimize(_LATE, learning_rate=float(len(points)), momentum=0.8), dtype=np.float64)


def _sklearn_tsne(
    points: NDArray[np.float64], start: NDArray[np.float64], seed: int, perplexity: float, threads: int
) -> NDArray[np.float64]:
    from sklearn.manifold import TSNE

    model = TSNE(perplexity=perplexity, init=start.astype(np.float32), random_state=seed, n_jobs=threads)
    return np.asarray(model.fit_transform(points.astype(np.float32)), dtype=np.float64)


def sample_rows(labels: ArrayLike, limit: int, seed: int = 0) -> NDArray[np.int64]:
    """At most ``limit`` row numbers, ascending, with the classes in the proportions they have.

    Args:
        labels: class numbers [N].
        limit: how many rows at most.
        seed: of the random choice.

    Returns:
        Row numbers [min(N, limit)], int64. Every class gets its share rounded down, the classes with the largest
        remainders one more (Hamilton's method).

    Raises:
        InputError: ``limit`` is less than 1.
    """
    numbers = np.asarray(labels)
    if numbers.ndim != 1:
        raise InputError(f"labels has shape {list(numbers.shape)}, expected [N]")
    if limit < 1:
        raise InputError(f"limit is {limit}, expected at least 1 row")
    if len(numbers) <= limit:
        return np.arange(len(numbers))
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(numbers))
    _, which, sizes = np.unique(numbers, return_inverse=True, return_counts=True)
    shares = sizes * (limit / len(numbers))
    quotas = np.floor(shares).astype(np.int64)
    largest = np.argsort(-(shares - quotas), kind="stable")
    quotas[largest[: math.floor(limit - quotas.sum())]] += 1
    by_class = order[np.argsort(which[order], kind="stable")]
    place = np.arange(len(numbers)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(by_class[place < np.repeat(quotas, sizes)])
