"""What a report says, and draws, where the images have no labels: how well changed views of them find them again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from nearfar import plots
from nearfar.data import ImageSet
from nearfar.errors import InputError
from nearfar.measuring.judging import Judged
from nearfar.measuring.unlabelled import Found
from nearfar.plots import Plot
from nearfar.report import tables
from nearfar.report.markup import name, text
from nearfar.report.pictures import SCORE_NAMES, Album, Spots, copies, draw_maps, draw_tsne, loss
from nearfar.search import NeighborIndex

_SHOWN, _NEAREST, _MISSED = 10, 8, 20
_CARDS = (
    ("views", "recall@1", "Recall@1"),
    ("views", "recall@10", "Recall@10"),
    ("views", "mrr", "MRR"),
    ("geometry", "effective_rank", "Effective rank"),
)
_NEED_LABELS = ("confusion", "confusion_errors", "most_confused", "recall_at_k", "worst_mistakes", "distances", "class_cosines")


def draw_plots(judged: Judged, figures: Mapping[str, Any], found: Found, gallery: ImageSet | InputError) -> Album:
    """Draw everything that fits the run and images without labels.

    Args:
        judged: the run, and the images that it is judged by.
        figures: the tree of ``metrics.json``.
        found: what views of the images found.
        gallery: the images behind the run's index, or why they are not to be had.
    """
    album = Album()
    with ThreadPoolExecutor(2) as pool:
        spots = Spots(judged, pool)
        album.add("loss", lambda: loss(judged))
        album.add("neighbors", lambda: _neighbors(judged, gallery))
        album.add("views", lambda: _views(judged, found))
        album.add("views_missed", lambda: _missed(judged, found))
        album.add("copies", lambda: copies(judged, figures, judged.queries))
        draw_maps(album, judged, spots)
        draw_tsne(album, spots)
    album.left_out |= dict.fromkeys(_NEED_LABELS, "the images have no labels")
    return album


def in_short(tree: Mapping[str, Any]) -> str:
    """The first paragraph of the page, and the figures below it."""
    data, found = tree["data"], tree["views"]
    spread = tree["confidence"].get("views", {}).get("recall@1")
    sure = f" (95 % interval {100 * spread[0]:.2f} to {100 * spread[1]:.2f})" if spread else ""
    pixels = tree.get("baselines", {}).get("pixels")
    beside = f"; a search among the raw pixels finds {100 * pixels['views']['recall@1']:.2f} %" if pixels else ""
    lead = (
        f"<p>The images of {name(data['source'])} ({text(data['split'])} split) have no labels, so nothing is said of classes. "
        f"Instead a view of {data['queries']:,} of them, turned, cut and made brighter or darker, was looked for among all "
        f"{data['gallery']:,}: the nearest is the image itself for <b>{100 * found['recall@1']:.2f} %</b>{sure}{beside}. "
        "That tells how well pictures are told apart, not whether those of one class lie together.</p>"
    )
    return f"{lead}\n{tables.cards(tree, _CARDS)}"


def not_found(tree: Mapping[str, Any], shown: bool) -> str:
    """How many images their views did not find, and where some are shown."""
    count = tree["data"]["queries"]
    missed = count - round(tree["views"]["recall@1"] * count)
    if not missed:
        return f"<p>None: all {count:,} views find their image first.</p>"
    where = ' Some of them are <a href="#plot-views_missed">shown with their views</a>.' if shown else ""
    return (
        f"<p>{missed:,} of {count:,} views do not find their image first. Images that look alike are found for one "
        f"another, and so are copies, of which the section above tells.{where}</p>"
    )


def _neighbors(judged: Judged, gallery: ImageSet | InputError) -> Plot:
    """Some of the images beside what is nearest to them in the run's index."""
    if isinstance(gallery, InputError):
        raise gallery
    rows = np.sort(np.random.default_rng(judged.config["seed"]).permutation(len(judged.z))[:_SHOWN])
    there = len(judged.gallery) - int(judged.same)
    index, metric = judged.index, judged.model.recipe_.evaluate.metric
    if judged.same:
        index = NeighborIndex(metric, "exact").fit(judged.z)
    scores, found = index.search_rows(judged.z[rows], min(_NEAREST, there), exclude=rows if judged.same else None)
    near = gallery.images[found.ravel()].reshape(*found.shape, *judged.queries.shape[1:])
    return plots.neighbor_grid(judged.queries.images[rows], None, near, None, scores, score_name=SCORE_NAMES[metric])


def _views(judged: Judged, found: Found) -> Plot:
    """Some views beside the images that are nearest to them, their own one framed green."""
    metric, queries = judged.model.recipe_.evaluate.metric, judged.queries
    places = np.sort(np.random.default_rng(judged.config["seed"]).permutation(len(found.ranks))[:_SHOWN])
    index = NeighborIndex(metric, "exact").fit(judged.z)
    scores, rows = index.search_rows(found.z[places], min(_NEAREST, len(judged.z)))
    own = found.views.rows[places]
    occurring, numbers = np.unique(np.concatenate([own, rows.ravel()]), return_inverse=True)
    plot = plots.neighbor_grid(
        found.views.at(places),
        numbers[: len(own)],
        queries.images[rows.ravel()].reshape(*rows.shape, *queries.shape[1:]),
        numbers[len(own) :].reshape(rows.shape),
        scores,
        [str(queries.ids[row]) for row in occurring],
        score_name=SCORE_NAMES[metric],
        name="views",
    )
    caption = (
        "Each row is a changed view of an image, with that image's name, and the images nearest to it, best first: framed "
        f"green the image itself, red and dashed others, with their names. Under each stands the {SCORE_NAMES[metric]}."
    )
    hits = int((rows == own[:, None]).any(axis=1).sum())
    alt = f"{len(places)} views with the {rows.shape[1]} images nearest to each; for {hits} their own image is among these."
    return dataclasses.replace(plot, caption=caption, alt=alt)


def _missed(judged: Judged, found: Found) -> Plot:
    places = found.missed(_MISSED)
    if not len(places):
        raise InputError("every view finds its image first")
    images = judged.queries.images
    return plots.missed_views(
        images[found.views.rows[places]],
        found.views.at(places),
        images[found.first[places]],
        found.ranks[places],
        limit=_MISSED,
        total=len(found.ranks),
    )
