"""Do the clusters that an embedding forms agree with the classes, and how well are the classes apart?"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from nearfar.errors import InputError
from nearfar.search.vectors import as_vectors

Codes = npt.NDArray[np.int64]
Wide = npt.NDArray[np.float64]

SILHOUETTE_SAMPLE = 2000


def clustering_figures(
    vectors: Any, labels: Codes, *, clusters: int | None = None, seed: int = 0
) -> dict[str, float | int | None]:
    """Cluster ``vectors`` by K-means and compare the clusters with the ``labels``.

    Args:
        vectors: numbers [N, D].
        labels: whole numbers [N].
        clusters: how many; None takes as many as there are distinct labels.
        seed: of K-means and of the silhouette's sample.

    Returns:
        ``rand, adjusted_rand, nmi`` (of the clusters against the labels), ``davies_bouldin, silhouette`` (of the
        labels), ``davies_bouldin_clusters, silhouette_clusters``, and ``clusters``. None where a figure is undefined.

    Raises:
        InputError: shapes do not fit, NaN, or fewer vectors than clusters.
    """
    points = as_vectors(vectors, "vectors")
    labels = np.asarray(labels)
    if labels.shape != (len(points),):
        raise InputError(f"labels has shape {labels.shape}, vectors has {len(points):,} rows")
    count = len(np.unique(labels)) if clusters is None else clusters
    if not 1 <= count <= len(points):
        raise InputError(f"clusters is {count}, expected 1 to {len(points):,}, the number of vectors")
    found = k_means(points, count, seed=seed)
    table = contingency(labels, found)
    sample = np.random.default_rng(seed).permutation(len(points))[:SILHOUETTE_SAMPLE]
    return {
        "rand": rand_index(table),
        "adjusted_rand": adjusted_rand_index(table),
        "nmi": normalized_mutual_information(table),
        "davies_bouldin": davies_bouldin(points, labels),
        "silhouette": silhouette(points[sample], labels[sample]),
        "davies_bouldin_clusters": davies_bouldin(points, found),
        "silhouette_clusters": silhouette(points[sample], found[sample]),
        "clusters": count,
    }


def k_means(vectors: npt.NDArray[Any], clusters: int, *, seed: int = 0) -> Codes:
    """Return the cluster of each row of ``vectors`` [N, D]: K-means++ and Lloyd, the best of three runs.

    Of more than 100 clusters one run is made: it takes long, and runs differ little.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # Fewer distinct points than clusters: a collapsed embedding, which the figures say themselves.
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = KMeans(clusters, n_init=3 if clusters <= 100 else 1, random_state=seed).fit(vectors)
    return np.asarray(fitted.labels_, dtype=np.int64)


def contingency(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> Codes:
    """Count how many elements have label i in ``a`` [N] and j in ``b`` [N]: int64 [labels of a, labels of b]."""
    rows, columns = (np.unique(labels, return_inverse=True) for labels in (a, b))
    places = rows[1] * len(columns[0]) + columns[1]
    table = np.bincount(places, minlength=len(rows[0]) * len(columns[0]))
    return table.reshape(len(rows[0]), len(columns[0])).astype(np.int64)


def rand_index(table: Codes) -> float | None:
    """Share of pairs of elements that both labellings put together or both put apart (Rand 1971), in [0, 1].

    Args:
        table: from ``contingency``.

    Returns:
        None where there is no pair.
    """
    together, in_rows, in_columns, pairs = _pair_counts(table)
    return (pairs + 2 * together - in_rows - in_columns) / pairs if pairs else None


def adjusted_rand_index(table: Codes) -> float | None:
    """Rand index less what chance gives, 1 for equal labellings and 0 on average for random ones (Hubert, Arabie 1985)."""
    together, in_rows, in_columns, pairs = _pair_counts(table)
    if not pairs:
        return None
    expected = in_rows * in_columns / pairs
    largest = (in_rows + in_columns) / 2.0
    return (together - expected) / (largest - expected) if largest != expected else 1.0


def normalized_mutual_information(table: Codes) -> float:
    """Mutual information over the mean of both entropies, in [0, 1]; 1 where both labellings have one label only."""
    shares = table / table.sum()
    rows, columns = shares.sum(axis=1), shares.sum(axis=0)
    entropies = _entropy(rows) + _entropy(columns)
    if entropies == 0.0:
        return 1.0
    mutual = entropies - _entropy(shares.ravel())
    return float(min(max(2.0 * mutual / entropies, 0.0), 1.0))


def davies_bouldin(vectors: npt.NDArray[Any], labels: npt.NDArray[Any]) -> float | None:
    """Davies-Bouldin index (1979), from 0, smaller is better.

    With W_i the mean Euclidean distance of class i to its centroid and B_ij the distance of two centroids, it is the
    mean over i of the largest (W_i + W_j) / B_ij.

    Args:
        vectors: [N, D].
        labels: [N].

    Returns:
        None for fewer than two classes, or where two classes of more than one point share their centroid.
    """
    classes, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if len(classes) < 2:
        return None
    centroids = class_sums(vectors, codes, len(classes)) / counts[:, None]
    distances = np.empty(len(codes))
    for start in range(0, len(codes), 1 << 14):
        part = slice(start, start + (1 << 14))
        distances[part] = np.linalg.norm(vectors[part] - centroids[codes[part]], axis=1)
    within = np.bincount(codes, weights=distances) / counts
    largest = np.zeros(len(classes))
    for i, centroid in enumerate(centroids):
        between = np.linalg.norm(centroids - centroid, axis=1)
        spread = within + within[i]
        between[i] = np.inf
        if np.any((between == 0.0) & (spread > 0.0)):
            return None
        largest[i] = np.divide(spread, between, out=np.zeros(len(classes)), where=between > 0.0).max()
    return float(largest.mean())


def silhouette(vectors: npt.NDArray[Any], labels: npt.NDArray[Any]) -> float | None:
    """Mean silhouette (Rousseeuw 1987) with Euclidean distances, in [-1, 1]; 0 for a point alone in its class.

    It needs all distances, [N, N]: give it a sample.

    Returns:
        None for fewer than two classes, or where every point is a class of its own.
    """
    classes, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if not 2 <= len(classes) < len(codes):
        return None
    wide = np.asarray(vectors, dtype=np.float64)
    squares = np.einsum("nd,nd->n", wide, wide)
    distances = squares[:, None] + squares[None, :] - 2.0 * (wide @ wide.T)
    np.fill_diagonal(distances, 0.0)
    distances = np.sqrt(np.maximum(distances, 0.0))
    sums = class_sums(distances, codes, len(classes)).T  # [N, classes]; distances are symmetric
    own = sums[np.arange(len(codes)), codes] / np.maximum(counts[codes] - 1, 1)
    others = sums / counts
    others[np.arange(len(codes)), codes] = np.inf
    nearest = others.min(axis=1)
    larger = np.maximum(own, nearest)
    value = np.divide(nearest - own, larger, out=np.zeros(len(codes)), where=larger > 0.0)
    return float(np.where(counts[codes] > 1, value, 0.0).mean())


def class_sums(values: npt.NDArray[Any], codes: Codes, classes: int) -> Wide:
    """Sum the rows of ``values`` [N, D] by class ``codes`` [N], in float64: [classes, D]."""
    order = np.argsort(codes, kind="stable")
    present, starts = np.unique(codes[order], return_index=True)
    sums = np.zeros((classes, values.shape[1]))
    for code, start, end in zip(present, starts, [*starts[1:], len(codes)], strict=True):
        sums[code] = values[order[start:end]].sum(axis=0, dtype=np.float64)
    return sums


def _pair_counts(table: Codes) -> tuple[int, int, int, int]:
    """Pairs together in both labellings, in the first, in the second, and all pairs; as whole numbers of any size."""

    def pairs(counts: npt.NDArray[Any]) -> int:
        return sum(int(count) * (int(count) - 1) // 2 for count in counts.ravel() if count > 1)

    total = int(table.sum())
    return pairs(table), pairs(table.sum(axis=1)), pairs(table.sum(axis=0)), total * (total - 1) // 2


def _entropy(shares: Wide) -> float:
    there = shares[shares > 0.0]
    return float(-(there * np.log(there)).sum())
