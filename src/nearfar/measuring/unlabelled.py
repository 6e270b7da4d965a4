"""A run judged by images without labels: whether it finds them again by changed views of them, and texts by images.

Formulas and the changes are `nearfar.evaluation.views`'.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nearfar.errors import InputError
from nearfar.evaluation.baselines import MOST_QUERIES, Untrained
from nearfar.evaluation.bootstrap import LEVEL, bootstrap_intervals
from nearfar.evaluation.figures import finite
from nearfar.evaluation.geometry import UNIFORMITY_SAMPLE, directions, effective_rank, uniformity
from nearfar.evaluation.leaks import find_copies, leak_figures, leak_parts
from nearfar.evaluation.views import CHANGES, Views, figures_by_view, means, rank_views, view_rows
from nearfar.measuring.judging import Judged, of_the_run
from nearfar.search.exact import nearest
from nearfar.search.vectors import Metric

if TYPE_CHECKING:
    from nearfar.measuring.beside import Other

Floats = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Found:
    """Views of the images that a run is judged by, and what they found among these."""

    views: Views
    z: Floats  # embeddings of the views [n, D]
    ranks: Wide  # at which each finds its own image, from 1 [n]
    first: Ints  # the image that is nearest to each [n]
    seconds: float  # that the search for ``first`` took

    def missed(self, limit: int) -> Ints:
        """Places of the views, at most ``limit``, that find another image first; those with the worst ranks first."""
        places = np.flatnonzero((self.ranks > 1) & (self.first != self.views.rows))
        return places[np.lexsort((places, -self.ranks[places]))][:limit]


def look_for_views(judged: Judged) -> Found:
    """Embed a view of each image (of 10,000 of them at most) and search for it among the images.

    Raises:
        InputError: there is a single image, among which nothing can be missed.
    """
    count, metric = len(judged.z), judged.model.recipe_.evaluate.metric
    if count < 2:
        raise InputError(f"{judged.source} has 1 image without a label: to be found again among others, it takes at least 2")
    views = Views(judged.queries, view_rows(count))
    z = np.concatenate([judged.model.transform(part) for part in views.parts()])
    started = time.perf_counter()
    first = nearest(z, judged.z, 1, metric=metric)[1][:, 0]
    seconds = time.perf_counter() - started
    return Found(views, z, rank_views(z, judged.z, views.rows, metric=metric), first, seconds)


def figures_of_views(judged: Judged, found: Found, other: Other | None = None) -> dict[str, Any]:
    """The tree of ``metrics.json`` where the images have no labels: of classes there is nothing to say.

    Args:
        judged: the run and the images.
        found: of `look_for_views`.
        other: a model to stand beside, or None.

    Returns:
        ``views``, ``geometry``, ``leaks``, ``baselines``, ``confidence``, ``data``, ``timing``; ``towers`` where the run has
        a text tower and the images have captions; see docs/evaluation.md.
    """
    settings, images, seed = judged.model.recipe_.evaluate, judged.queries, judged.config["seed"]
    own, rows = figures_by_view(found.ranks), found.views.rows
    copies = find_copies(images, images, exclude=np.arange(len(images)))
    parts = {
        name: {"queries": int(flags[rows].sum()), **means({key: values[flags[rows]] for key, values in own.items()})}
        for name, flags in leak_parts(copies).items()
    }
    ids = images.ids.tolist()
    confidence: dict[str, Any] = {"level": LEVEL, "samples": settings.bootstrap}
    if settings.bootstrap:
        confidence["views"] = bootstrap_intervals(own, samples=settings.bootstrap, seed=seed)
    tree: dict[str, Any] = {
        "views": {**means(own), "changes": {name: value for name, value in asdict(CHANGES).items() if value}},
        "geometry": _geometry(judged, found),
        "leaks": leak_figures(copies, parts, None, None, ids, ids),
        "confidence": confidence,
    }
    try:
        tree["baselines"] = _baselines(judged, found, other)
    except InputError as reason:
        tree["left_out"] = {"baselines": str(reason)}
    if judged.model.has_text and any(images.texts or ()):
        from nearfar.measuring.captions import towers

        tree["towers"] = towers(judged.model, images, judged.z, None, ())
    facts = of_the_run(judged)
    tree |= facts
    tree["timing"] = {
        "search_seconds": found.seconds,
        "queries_per_second": len(rows) / found.seconds,
        **facts["timing"],
    }
    tree["data"] = {
        "source": judged.source,
        "split": judged.split,
        "queries": len(rows),
        "gallery": len(judged.z),
        "gallery_is": "themselves, which have no labels; each is looked for by a changed view of it",
        "dimensions": judged.z.shape[1],
        "metric": settings.metric,
        "new_classes": 0,
        "skipped": list(images.skipped),
        "seed": seed,
    }
    result: dict[str, Any] = finite(tree)
    return result


def _geometry(judged: Judged, found: Found) -> dict[str, float | None]:
    """How the images lie in space, and how far their views are from them."""
    unit = directions(judged.z)
    sample = view_rows(len(unit), UNIFORMITY_SAMPLE)
    apart = directions(found.z).astype(np.float64) - unit[found.views.rows]
    return {
        "effective_rank": effective_rank(judged.z),
        "alignment": float(np.square(apart).sum(axis=1).mean()),
        "uniformity": uniformity(unit[sample]),
    }


def _baselines(judged: Judged, found: Found, other: Other | None) -> dict[str, Any]:
    """The same search, of some of the views, among pixels, their principal components, and by another model.

    Raises:
        InputError: there are too many images for it.
    """
    untrained = Untrained(judged.queries, judged.z.shape[1], None if other is None else other[1])
    places = view_rows(len(found.views), MOST_QUERIES)
    metric: Metric = "euclidean" if judged.model.recipe_.evaluate.metric == "euclidean" else "cosine"
    gallery = untrained.embed(judged.queries)
    asked = [untrained.embed(part) for part in found.views.parts(places)]
    tree: dict[str, Any] = {}
    for name, vectors in gallery.items():
        started = time.perf_counter()
        views = np.concatenate([each[name] for each in asked])
        ranks = rank_views(views, vectors, found.views.rows[places], metric=metric)
        tree[name] = {
            **({"name": other[0]} if other is not None and name == "model" else {"size": list(untrained.size)}),
            "dimensions": vectors.shape[1],
            "metric": metric,
            "queries": len(places),
            "views": means(figures_by_view(ranks)),
            "seconds": time.perf_counter() - started,
        }
    return tree
