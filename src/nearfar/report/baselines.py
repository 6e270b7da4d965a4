"""What the same search finds without any learning: among raw pixels, and among as many principal components of them.

An embedding is worth its training by what it adds to these.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from nearfar.classify import Vote, similarities, winners
from nearfar.data import ImageSet
from nearfar.errors import InputError
from nearfar.evaluation.bootstrap import bootstrap_intervals
from nearfar.evaluation.classification import classification_figures
from nearfar.evaluation.figures import finite
from nearfar.evaluation.retrieval import rank_queries, summarize
from nearfar.evaluation.verification import draw_pairs, pair_distances, verification_figures
from nearfar.plots import sample_rows
from nearfar.search import NeighborIndex
from nearfar.search.vectors import Metric

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

MOST_NUMBERS = 1024
"""Numbers an image at most: what is larger is averaged down, and said so. 28 x 28 grey is taken as it is."""

MOST_GALLERY = 100_000
"""Images beyond which baselines would take longer than all the rest of a report together."""

MOST_QUERIES = 2500
"""Queries that baselines are measured on at most, classes in proportion, where the gallery is apart from them."""

_BLOCK = 4096


@dataclass(frozen=True, kw_only=True)
class Terms:
    """How a run is measured, and its baselines with it."""

    classes: int  # how many there are
    same: bool  # the queries are the gallery, and each is left out of its own search
    metric: Metric  # for "dot", which among pixels would only find the brightest pictures, baselines take cosine
    k: int  # neighbours that vote
    vote: Vote
    seed: int  # of pairs and intervals
    bootstrap: int  # samples behind the intervals; 0 leaves them out


def measure_baselines(
    gallery: ImageSet, gallery_labels: Ints, queries: ImageSet, labels: Ints, *, dimensions: int, terms: Terms
) -> dict[str, Any]:
    """Measure two embeddings that nobody trained, in the way the run itself is measured.

    ``pixels``: the pixels in [0, 1], one after the other; images of more than 1,024 numbers are averaged over squares of
    pixels until they have no more. ``pca``: these, projected to the gallery's first ``dimensions`` principal components
    (Pearson 1901).

    Args:
        gallery: M images.
        gallery_labels: class numbers [M].
        queries: N images of the same size.
        labels: class numbers [N].
        dimensions: of the run's embedding.
        terms: how to measure.

    Returns:
        For each of the two: ``dimensions, metric, size`` (height and width of the images that the numbers are of), ``queries``,
        ``classification, retrieval, verification`` (AUROC and equal error rate), ``confidence`` and ``seconds``.

    Raises:
        InputError: the gallery is too large for it.
    """
    if len(gallery) > MOST_GALLERY:
        raise InputError(f"the gallery has {len(gallery):,} images, and baselines are measured on at most {MOST_GALLERY:,}")
    if not terms.same and len(queries) > MOST_QUERIES:
        rows = sample_rows(labels, MOST_QUERIES, terms.seed)
        queries, labels = queries.subset(rows), labels[rows]
    terms = dataclasses.replace(terms, metric="euclidean" if terms.metric == "euclidean" else "cosine")
    size = reduced_size(gallery.channels, gallery.size)
    started = time.perf_counter()
    known = flat_pixels(gallery, size)
    asked = known if terms.same else flat_pixels(queries, size)
    tree: dict[str, Any] = {}
    for name in ("pixels", "pca"):
        if name == "pca":
            mean, axes = principal_axes(known, dimensions)
            projected = project(known, mean, axes)
            known, asked = projected, projected if terms.same else project(asked, mean, axes)
        about = {"dimensions": known.shape[1], "metric": terms.metric, "size": list(size), "queries": len(queries)}
        figures = _measure(without_zeros(known), gallery_labels, without_zeros(asked), labels, terms)
        now = time.perf_counter()
        tree[name] = finite({**about, **figures, "seconds": now - started})
        started = now
    return tree


def reduced_size(channels: int, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width that images of ``size`` are averaged down to: ``size`` over the least whole number that suffices."""
    by = 1
    while channels * math.ceil(size[0] / by) * math.ceil(size[1] / by) > MOST_NUMBERS:
        by += 1
    return math.ceil(size[0] / by), math.ceil(size[1] / by)


def flat_pixels(images: ImageSet, size: tuple[int, int]) -> Floats:
    """The pixels of every image in [0, 1], averaged down to ``size``: float32 [N, C * H * W]."""
    flat = np.empty((len(images), images.channels * size[0] * size[1]), dtype=np.float32)
    for part in _parts(len(images)):
        pixels = torch.from_numpy(np.ascontiguousarray(images.images[part])).float().div_(255.0)
        if images.size != size:
            pixels = torch.nn.functional.adaptive_avg_pool2d(pixels, size)
        flat[part] = pixels.flatten(1).numpy()
    return flat


def principal_axes(x: Floats, dimensions: int) -> tuple[Floats, Floats]:
    """The mean [P] of the rows of ``x`` [N, P], and the orthonormal directions of most variance, [P, min(dimensions, P)]."""
    mean = x.mean(axis=0, dtype=np.float64).astype(np.float32)
    scatter = np.zeros((x.shape[1], x.shape[1]))
    for part in _parts(len(x)):
        centred = x[part] - mean
        scatter += centred.T @ centred
    return mean, np.linalg.eigh(scatter)[1][:, ::-1][:, :dimensions].astype(np.float32)


def project(x: Floats, mean: Floats, axes: Floats) -> Floats:
    """``(x - mean) @ axes`` without a second copy of ``x`` [N, P]: float32 [N, D]."""
    projected = np.empty((len(x), axes.shape[1]), dtype=np.float32)
    for part in _parts(len(x)):
        projected[part] = (x[part] - mean) @ axes
    return projected


def _measure(gallery: Floats, known: Ints, queries: Floats, truth: Ints, terms: Terms) -> dict[str, Any]:
    metric, exclude = terms.metric, np.arange(len(queries)) if terms.same else None
    scores, rows = NeighborIndex(metric=metric).fit(gallery).search_rows(queries, terms.k, exclude=exclude)
    codes = known[rows]
    predicted = winners(codes, similarities(scores, metric), terms.vote)
    classification = classification_figures(truth, predicted, terms.classes)
    del classification["by_class"]
    first = codes[:, 0] == truth
    ranked = rank_queries(queries, truth, gallery, known, metric=metric, exclude=exclude).figures()
    pairs = draw_pairs(truth, seed=terms.seed)
    verification: dict[str, Any] = {"auroc": None, "eer": None}
    if len(pairs.a):
        judged = verification_figures(pair_distances(queries, pairs, metric=metric), pairs.same)
        verification = {name: judged[name] for name in verification}
    tree = {
        "classification": {**classification, "one_nn_accuracy": float(first.mean()), "k": terms.k, "vote": terms.vote},
        "retrieval": summarize(ranked, truth)[0],
        "verification": verification,
    }
    if terms.bootstrap:
        own = {"accuracy": (predicted == truth).astype(np.float64), "one_nn_accuracy": first.astype(np.float64)}
        intervals = bootstrap_intervals({**own, **ranked}, samples=terms.bootstrap, seed=terms.seed)
        sections = {"classification": own, "retrieval": ranked}
        tree["confidence"] = {section: {name: intervals[name] for name in group} for section, group in sections.items()}
    return tree


def without_zeros(x: Floats) -> Floats:
    """``x`` [N, D] where a row of zeros, an all-black image, which has no direction, is evenly almost black instead."""
    black = ~x.any(axis=1)
    if not black.any():
        return x
    lifted = x.copy()
    lifted[black] = 1.0 / 255.0
    return lifted


def _parts(count: int) -> Iterator[slice]:
    for start in range(0, count, _BLOCK):
        yield slice(start, start + _BLOCK)
