"""The neighbours that judge each image's label: in the embedding of a run, or in embeddings that never saw that label.

Knows images, encoders and search; nothing of votes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nearfar.classify import similarities
from nearfar.data import ImageSet
from nearfar.embedder import Embedder
from nearfar.errors import InputError
from nearfar.labelissues.scores import similarity_scale
from nearfar.search import NeighborIndex
from nearfar.training.progress import Silent, Watcher

Ints = npt.NDArray[np.int64]
Wide = npt.NDArray[np.float64]

NEIGHBORS = 20
_PAIRS = 20_000  # of images at random, whose similarities show the scale


class Part(NamedTuple):
    """Images that were judged in one embedding."""

    held: Ints
    """Their rows in the set [n]."""
    rows: Ints
    """The rows of their neighbours, the nearest first [n, k]."""
    similarity: Wide
    """Of the neighbours, greater is nearer [n, k]."""
    scale: float
    """By how much similarities of any two images differ in this embedding."""


def by_run(model: Embedder, images: ImageSet) -> list[Part]:
    """Each image's neighbours among all others, in the embedding of the run."""
    z = model.transform(images)
    own = np.arange(len(images))
    return [_search(model, z, own, own, min(NEIGHBORS, len(images) - 1))]


def by_folds(
    model: Embedder, images: ImageSet, labels: Ints, folds: int, *, device: str, watcher: Watcher | None = None
) -> list[Part]:
    """Each image's neighbours among those of the other folds, in an embedding trained on these alone by the run's recipe.

    Args:
        model: the run's, for its recipe and seed; its weights are not used.
        images: N images of the size that the model takes.
        labels: numbers of their classes [N].
        folds: into how many parts the images are cut, each class in proportion.
        device: "auto", "cpu" or "cuda".
        watcher: is told how training goes.

    Raises:
        InputError: the recipe needs another run to begin with, or the images of a fold do not fit it.
    """
    recipe, seed, watcher = model.recipe_, model.seed, watcher or Silent()
    if recipe.train.mode != "embedding":
        raise InputError(
            f"the run was trained with train.mode={recipe.train.mode}, which begins with another run that saw every label; "
            "use --folds 0, or a run of an embedding"
        )
    fold = assign_folds(labels, folds, seed=seed)
    k = min(NEIGHBORS, len(images) - int(np.bincount(fold).max()))
    parts = []
    for number in range(folds):
        watcher.note(f"fold {number + 1} of {folds}: training without its images")
        held, rest = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
        # Pairs of a class need two images; one that is alone still serves as a neighbour.
        counts = np.bincount(labels[rest], minlength=int(labels.max()) + 1)
        taught = images.subset(rest[counts[labels[rest]] > 1])
        fresh = Embedder(recipe=recipe, seed=seed, device=device).fit_parts(taught, None, watcher=watcher)
        parts.append(_search(fresh, fresh.transform(images), held, rest, k))
    return parts


def assign_folds(labels: Ints, folds: int, *, seed: int) -> Ints:
    """The fold, 0 to ``folds`` - 1, of each image [N]: drawn by seed, each class spread evenly.

    Raises:
        InputError: fewer than two folds, or more than images.
    """
    if not 2 <= folds <= len(labels):
        raise InputError(f"folds is {folds}, expected 0 for none, or 2 to {len(labels):,}, the number of images")
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(len(labels), dtype=np.int64)
    fold[order] = np.arange(len(labels)) % folds  # one class after the other, so that small ones fill all folds too
    return fold


def _search(model: Embedder, z: npt.NDArray[np.float32], held: Ints, rest: Ints, k: int) -> Part:
    metric = model.recipe_.evaluate.metric
    index = NeighborIndex(metric=metric, backend="exact").fit(z[rest])
    exclude = held if held is rest else None
    scores, rows = index.search_rows(z[held], k, exclude=exclude)
    pairs = np.random.default_rng(0).integers(0, len(z), (2, _PAIRS))
    a, b = (z[side].astype(np.float64) for side in pairs)
    if metric == "cosine":
        a, b = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (a, b))
    apart = np.linalg.norm(a - b, axis=1) if metric == "euclidean" else (a * b).sum(axis=1)
    scale = similarity_scale(similarities(apart, metric))
    return Part(held, rest[rows], similarities(scores, metric), scale)
