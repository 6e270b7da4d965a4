"""From a model and two sets of images to the tree of figures."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt

from nearfar.data import ImageSet
from nearfar.errors import InputError
from nearfar.evaluation.figures import evaluate_embeddings, finite
from nearfar.evaluation.leaks import find_copies, leak_figures, leak_parts


def evaluate(
    model: Any,
    gallery: Any,
    queries: Any,
    *,
    k: int | None = None,
    validation: Any = None,
    seed: int = 0,
    bootstrap: int = 1000,
) -> dict[str, Any]:
    """Embed two sets of images and judge the ``model`` by the neighbours that ``queries`` have in ``gallery``.

    When both are one set (the same object, or the same content), every query is left out of its own neighbours. The
    metric, k, vote and threshold are those of the model's recipe (``recipe.evaluate``); cosine, 10 neighbours, majority
    and the best threshold on ``validation`` without one.

    Args:
        model: anything with ``transform(images) -> [N, D]``, such as ``nearfar.Embedder``.
        gallery: an ``ImageSet`` with labels.
        queries: an ``ImageSet`` with labels. Classes are matched by name.
        k: how many neighbours vote; None is the recipe's.
        validation: an ``ImageSet`` on which the threshold of verification is chosen, apart from the queries.
        seed: of pairs, K-means, samples and intervals.
        bootstrap: how many samples the intervals are drawn from; 0 leaves them out.

    Returns:
        The tree of ``evaluate_embeddings``, with the time that embedding took; and under ``leaks`` how many queries have a
        copy in the gallery, and what figures are without them (``leak_figures``), where both hold images of one size.

    Raises:
        InputError: a set has no labels, or as ``evaluate_embeddings``.
    """
    sets = {"gallery": gallery, "queries": queries, **({} if validation is None else {"validation": validation})}
    for name, images in sets.items():
        if getattr(images, "labels", None) is None:
            raise InputError(f"{name} has no labels; figures need an ImageSet with the class of every image")
    classes = _all_classes(sets)
    same = gallery is queries or (len(gallery) == len(queries) and gallery.fingerprint() == queries.fingerprint())
    recipe = getattr(model, "recipe_", getattr(model, "recipe", None))  # as resolved by fit, if it was
    settings = getattr(recipe, "evaluate", None)

    started = time.perf_counter()
    of_gallery = np.asarray(model.transform(gallery))
    of_queries = of_gallery if same else np.asarray(model.transform(queries))
    embed_seconds = time.perf_counter() - started
    held = None
    if validation is not None:
        held = (np.asarray(model.transform(validation)), _numbers(validation, classes))
    known, truth, copies = _numbers(gallery, classes), _numbers(queries, classes), None
    if isinstance(gallery, ImageSet) and isinstance(queries, ImageSet) and gallery.shape[1:] == queries.shape[1:]:
        copies = find_copies(gallery, queries, exclude=np.arange(len(queries)) if same else None)
    figures = evaluate_embeddings(
        of_gallery,
        known,
        of_queries,
        truth,
        classes=classes,
        metric=getattr(settings, "metric", "cosine"),
        k=getattr(settings, "k", 10) if k is None else k,
        vote=getattr(settings, "vote", "majority"),
        threshold=getattr(settings, "threshold", None),
        same_set=same,
        validation=held,
        seed=seed,
        bootstrap=bootstrap,
        parts=None if copies is None else leak_parts(copies),
    )
    if copies is not None:
        parts = figures.pop("parts")
        figures["leaks"] = finite(leak_figures(copies, parts, truth, known, queries.ids.tolist(), gallery.ids.tolist()))
    embedded = len(gallery) + (0 if same else len(queries))
    figures["timing"] |= {"embed_seconds": embed_seconds, "images_per_second": embedded / embed_seconds}
    figures["data"] |= {f"{name}_name": str(images.name) for name, images in sets.items()}
    return figures


def _all_classes(sets: dict[str, Any]) -> list[str]:
    """Return the class names of all ``sets``: the gallery's first, then those that only the others have."""
    return list(dict.fromkeys(str(name) for images in sets.values() for name in images.classes))


def _numbers(images: Any, classes: list[str]) -> npt.NDArray[np.int64]:
    """Return the labels of ``images`` as numbers of ``classes``."""
    place = {name: number for number, name in enumerate(classes)}
    own = np.array([place[str(name)] for name in images.classes], dtype=np.int64)
    return own[images.labels]
