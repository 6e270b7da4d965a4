"""What the same search finds without any learning: among raw pixels, and among as many principal components of them.

An embedding is worth its training by what it adds to these.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nearfar.classify import Vote
from nearfar.data import ImageSet
from nearfar.errors import InputError
from nearfar.evaluation.clustering import clustering_figures
from nearfar.evaluation.figures import finite, search_figures
from nearfar.evaluation.pixels import flat_pixels, parts, reduced_size
from nearfar.evaluation.verification import draw_pairs, pair_distances, verification_figures
from nearfar.plots import sample_rows
from nearfar.search.vectors import Metric, unit_rows

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Plain = dict[str, Floats]
"""Images as each baseline embeds them: "pixels" [N, P], "pca" [N, D] and, where another model was named, "model" [N, E]."""

MOST_NUMBERS = 1024
"""Numbers an image at most: what is larger is averaged down, and said so. 28 x 28 grey is taken as it is."""

MOST_GALLERY = 100_000
"""Images beyond which baselines would take longer than all other figures together."""

MOST_QUERIES = 2500
"""Queries that baselines are measured on at most, classes in proportion."""

_CLUSTERING = ("rand", "adjusted_rand", "nmi")  # the others are lengths in a space of its own


@dataclass(frozen=True, kw_only=True)
class Terms:
    """How a run is measured, and its baselines with it."""

    names: list[str]  # of all classes
    metric: Metric  # for "dot", which among pixels would only find the brightest pictures, baselines take cosine
    k: int  # neighbours that vote
    vote: Vote
    seed: int  # of pairs, K-means, intervals and the choice of queries
    bootstrap: int  # samples behind the intervals; 0 leaves them out


class Untrained:
    """Two embeddings that nobody trained.

    ``pixels``: the pixels in [0, 1], one after the other; images of more than 1,024 numbers are averaged over squares of
    pixels until they have no more. ``pca``: these, projected to the first principal components (Pearson 1901) of the images
    that the run was trained on.

    Args:
        images: that the components are those of.
        dimensions: of the run's embedding.
        other: what embeds images as another model does, or None.

    Raises:
        InputError: there are too many images.
    """

    def __init__(self, images: ImageSet, dimensions: int, other: Callable[[ImageSet], Floats] | None = None) -> None:
        self.other = other
        _check_count(len(images))
        self.size = reduced_size(images.channels, images.size, MOST_NUMBERS)
        self.mean, self.axes = principal_axes(flat_pixels(images, self.size), dimensions)

    def embed(self, images: ImageSet) -> Plain:
        """The embeddings of ``images``."""
        _check_count(len(images))
        x = flat_pixels(images, self.size)
        plain = {"pixels": without_zeros(x), "pca": without_zeros(project(x, self.mean, self.axes))}
        return plain if self.other is None else {**plain, "model": self.other(images)}


def asked_rows(labels: Ints, seed: int) -> Ints:
    """The queries that baselines are measured on, of those with ``labels`` [N]: all, or ``MOST_QUERIES`` in proportion."""
    return sample_rows(labels, MOST_QUERIES, seed)


def measure_baselines(
    gallery: Plain,
    known: Ints,
    queries: Plain,
    truth: Ints,
    *,
    terms: Terms,
    exclude: Ints | None = None,
    held: tuple[Plain, Ints] | None = None,
) -> dict[str, Any]:
    """Measure each in the way the run itself is measured.

    Args:
        gallery: M images.
        known: class numbers [M].
        queries: N images.
        truth: class numbers [N].
        terms: how to measure.
        exclude: a row of the gallery for each query that it does not find, its own [N].
        held: images and class numbers on which the threshold of pairs is chosen.

    Returns:
        For each of them: ``dimensions, metric, queries, classification, retrieval, verification, clustering, confidence``
        and ``seconds``; by class and class against class is left out.

    Raises:
        InputError: the gallery is too large for it.
    """
    _check_count(len(known))
    terms = dataclasses.replace(terms, metric="euclidean" if terms.metric == "euclidean" else "cosine")
    tree: dict[str, Any] = {}
    for name in gallery:
        started = time.perf_counter()
        others = None if held is None else (held[0][name], held[1])
        figures = _measure(gallery[name], known, queries[name], truth, terms, exclude, others)
        about = {"dimensions": queries[name].shape[1], "metric": terms.metric, "queries": len(truth)}
        tree[name] = finite({**about, **figures, "seconds": time.perf_counter() - started})
    return tree


def joined(one: Plain, other: Plain) -> Plain:
    """The images of both, ``one`` first."""
    return {name: np.concatenate([x, other[name]]) for name, x in one.items()}


def principal_axes(x: Floats, dimensions: int) -> tuple[Floats, Floats]:
    """The mean [P] of the rows of ``x`` [N, P], and the orthonormal directions of most variance, [P, min(dimensions, P)]."""
    mean = x.mean(axis=0, dtype=np.float64).astype(np.float32)
    scatter = np.zeros((x.shape[1], x.shape[1]))
    for part in parts(len(x)):
        centred = x[part] - mean
        scatter += centred.T @ centred
    return mean, np.linalg.eigh(scatter)[1][:, ::-1][:, :dimensions].astype(np.float32)


def project(x: Floats, mean: Floats, axes: Floats) -> Floats:
    """``(x - mean) @ axes`` without a second copy of ``x`` [N, P]: float32 [N, D]."""
    projected = np.empty((len(x), axes.shape[1]), dtype=np.float32)
    for part in parts(len(x)):
        projected[part] = (x[part] - mean) @ axes
    return projected


def without_zeros(x: Floats) -> Floats:
    """``x`` [N, D] where a row of zeros, an all-black image, which has no direction, is evenly almost black instead."""
    black = ~x.any(axis=1)
    if not black.any():
        return x
    lifted = x.copy()
    lifted[black] = 1.0 / 255.0
    return lifted


def _measure(
    gallery: Floats,
    known: Ints,
    queries: Floats,
    truth: Ints,
    terms: Terms,
    exclude: Ints | None,
    held: tuple[Floats, Ints] | None,
) -> dict[str, Any]:
    metric = terms.metric
    if metric == "cosine":
        gallery, queries = unit_rows(gallery, "gallery"), unit_rows(queries, "queries")
    tree = search_figures(
        gallery,
        known,
        queries,
        truth,
        names=terms.names,
        metric=metric,
        k=terms.k,
        vote=terms.vote,
        exclude=exclude,
        seed=terms.seed,
        bootstrap=terms.bootstrap,
    )
    for section, key in (("classification", "per_class"), ("classification", "confusion"), ("retrieval", "per_class")):
        del tree[section][key]
    clusters = clustering_figures(queries, truth, seed=terms.seed)
    return {
        "classification": tree["classification"],
        "retrieval": tree["retrieval"],
        "verification": _verification(queries, truth, terms, held),
        "clustering": {key: clusters[key] for key in _CLUSTERING},
        "confidence": tree["confidence"],
    }


def _verification(queries: Floats, truth: Ints, terms: Terms, held: tuple[Floats, Ints] | None) -> dict[str, Any]:
    """Figures of pairs; a threshold that the recipe gives suits the run's own distances alone, so the best is sought."""
    sides: list[tuple[Any, Any] | None] = []
    for x, labels in ((queries, truth), *([] if held is None else [held])):
        pairs = draw_pairs(labels, seed=terms.seed)
        sides.append((pair_distances(x, pairs, metric=terms.metric), pairs.same) if len(pairs.a) else None)
    if sides[0] is None:
        return {"accuracy": None, "auroc": None, "eer": None, "threshold": None, "pairs": 0}
    figures = verification_figures(*sides[0], validation=sides[1] if len(sides) > 1 else None)
    del figures["roc"]
    return figures


def _check_count(count: int) -> None:
    if count > MOST_GALLERY:
        raise InputError(f"the gallery has {count:,} images, and baselines are measured on at most {MOST_GALLERY:,}")
