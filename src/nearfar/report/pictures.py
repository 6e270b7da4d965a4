"""All plots of a run that fit it. What does not is named with the reason, never drawn badly."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from nearfar import plots
from nearfar.data import ImageSet
from nearfar.errors import InputError
from nearfar.measuring.judging import Judged
from nearfar.plots import Plot
from nearfar.report.gather import (
    NEIGHBORS_SHOWN,
    Answers,
    embed_untrained,
    mean_cosines,
    present,
    sample_pairs,
)

Ints = npt.NDArray[np.int64]

GROUPS: dict[str, tuple[str, ...]] = {
    "How training went": ("loss",),
    "Right and wrong": ("confusion", "confusion_errors", "most_confused"),
    "Who is near": ("neighbors", "views", "views_missed", "recall_at_k", "worst_mistakes", "copies"),
    "Same or different": ("distances", "pairs", "pairs_predicted"),
    "The embedding as a map": (
        "scatter",
        "density",
        "scatter_gallery",
        "density_gallery",
        "scatter_before",
        "pca_2d",
        "pca_3d",
        "tsne",
    ),
    "Classes against classes": ("class_cosines",),
}
"""Every plot that a report may have, under the headings of the page."""

SCORE_NAMES = {"cosine": "cosine similarity", "dot": "dot product", "euclidean": "distance"}
"""By metric, what stands under a neighbour."""
MISTAKES = 20
_TSNE_POINTS = {"opentsne": 10_000, "scikit-learn": 2_500}  # by what draws the map: the latter takes five times as long
_BEFORE_POINTS = 10_000  # images that the untrained encoder embeds too
_MAP_POINTS = 20_000  # dots on a PCA map; more cannot be told apart
_QUERIES, _PAIRS = 10, 20
_LINE_NAMES = {"pca": "PCA of the pixels", "pixels": "raw pixels", "model": "other model"}


@dataclass
class Album:
    """The plots that were drawn, each as PNG and SVG, and why others were not."""

    plots: dict[str, Plot] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    files: dict[str, tuple[bytes, str]] = field(default_factory=dict)

    def add(self, name: str, draw: Callable[[], Plot]) -> None:
        """Draw one plot, or note the reason that it cannot be drawn."""
        try:
            self.plots[name] = plot = draw()
        except InputError as reason:
            self.left_out[name] = str(reason)
        else:
            self.files[name] = plot.png_bytes(), plot.svg_text()

    def groups(self) -> Iterator[tuple[str, list[Plot]]]:
        """The plots under their headings, those without any left out."""
        for heading, names in GROUPS.items():
            if found := [self.plots[name] for name in names if name in self.plots]:
                yield heading, found


def draw_plots(judged: Judged, figures: Mapping[str, Any], answers: Answers, gallery: ImageSet | InputError) -> Album:
    """Draw everything that fits the run and images with labels.

    Args:
        judged: the run, and the images that it is judged by.
        figures: the tree of ``metrics.json``, with ``baselines`` where there are any.
        answers: what the neighbours of every query say.
        gallery: the images behind the rows of the gallery, or why they are not to be had.
    """
    album = Album()
    with ThreadPoolExecutor(2) as pool:
        spots = Spots(judged, pool)  # t-SNE needs no figure: it goes on while all others are drawn
        album.add("loss", lambda: loss(judged))
        _draw_confusions(album, judged, answers)
        _draw_neighbors(album, judged, answers, gallery)
        album.add("recall_at_k", lambda: _recall(judged, figures))
        album.add("copies", lambda: copies(judged, figures, gallery))
        _draw_pairs(album, judged, figures)
        _draw_maps(album, judged, spots)
    return album


class Spots:
    """The queries before and after training, and their t-SNE, which threads of ``pool`` work on; one core for each map.

    Attributes:
        classes: names of those that occur; none without labels.
        labels: numbers of ``classes`` [N], or None.
        rows: of the queries that are shown before and after training, ascending [n].
        before: embeddings of these by the untrained encoder [n, D].
    """

    def __init__(self, judged: Judged, pool: ThreadPoolExecutor) -> None:
        self.classes: list[str] = []
        self.labels: Ints | None = None
        if judged.told:
            self.classes, (self.labels,) = present(judged.classes, judged.labels)
        seed = judged.config["seed"]
        self.rows = plots.sample_rows(judged.labels, _BEFORE_POINTS, seed)
        self.before, after = embed_untrained(judged, self.rows), judged.z[self.rows]
        by = "opentsne" if importlib.util.find_spec("openTSNE") else "scikit-learn"
        self.few = plots.sample_rows(judged.labels[self.rows], _TSNE_POINTS[by], seed)
        self.maps: list[Future[Any]] = []
        if judged.z.shape[1] > 2:
            self.maps = [pool.submit(plots.project_tsne, z[self.few], seed) for z in (self.before, after)]

    def labels_at(self, rows: Ints) -> Ints | None:
        """The labels of the queries ``rows``, where there are labels."""
        return None if self.labels is None else self.labels[rows]


def loss(judged: Judged) -> Plot:
    rows = judged.model.history_
    if not rows:
        raise InputError("nothing was trained, or the run folder has no history.jsonl")
    held = [row.get("validation", {}).get("loss") for row in rows]
    return plots.loss_by_epoch(
        [row["loss"] for row in rows],
        held if any(value is not None for value in held) else None,
        [row["learning_rate"] for row in rows],
        epochs=[row["epoch"] for row in rows],
    )


def _draw_confusions(album: Album, judged: Judged, answers: Answers) -> None:
    classes, (labels, predicted) = present(judged.classes, judged.labels, answers.predicted)
    counts = plots.count_confusions(labels, predicted, classes)
    album.add("confusion", lambda: plots.confusion_matrix(counts, classes))
    album.add("confusion_errors", lambda: plots.confusion_matrix(counts, classes, diagonal=False))
    album.add("most_confused", lambda: plots.most_confused(counts, classes))


def _draw_neighbors(album: Album, judged: Judged, answers: Answers, gallery: ImageSet | InputError) -> None:
    metric = judged.model.recipe_.evaluate.metric

    def neighbors() -> Plot:
        if isinstance(gallery, InputError):
            raise gallery
        rows = plots.one_per_class(judged.labels, limit=_QUERIES, seed=judged.config["seed"])
        found = answers.rows[rows, :NEIGHBORS_SHOWN]
        classes, (asked, near) = present(judged.classes, judged.labels[rows], answers.codes[rows, :NEIGHBORS_SHOWN].ravel())
        return plots.neighbor_grid(
            judged.queries.images[rows],
            asked,
            gallery.images[found.ravel()].reshape(*found.shape, *judged.queries.shape[1:]),
            near.reshape(found.shape),
            answers.scores[rows, :NEIGHBORS_SHOWN],
            classes,
            score_name=SCORE_NAMES[metric],
        )

    def mistakes() -> Plot:
        rows = answers.worst(judged.labels, MISTAKES)
        return plots.worst_mistakes(
            judged.queries.images[rows],
            judged.labels[rows],
            answers.predicted[rows],
            answers.votes[rows],
            judged.classes,
            nearest=None if isinstance(gallery, InputError) else gallery.images[answers.nearest_of_predicted(rows)],
            limit=MISTAKES,
            total=len(judged.labels),
        )

    album.add("neighbors", neighbors)
    album.add("worst_mistakes", mistakes)


def copies(judged: Judged, figures: Mapping[str, Any], gallery: ImageSet | InputError) -> Plot:
    """Queries beside their copies in the gallery."""
    if isinstance(gallery, InputError):
        raise gallery
    pairs = figures["leaks"]["examples"]
    if not pairs:
        raise InputError("no image has a copy in the gallery")

    def side(images: ImageSet, key: str) -> Any:
        place = {name: row for row, name in enumerate(images.ids.tolist())}
        return images.images[np.array([place[pair[key]] for pair in pairs])]

    same = np.array([pair["same_class"] for pair in pairs]) if judged.told else None
    likeness = 100.0 * np.array([pair["likeness"] for pair in pairs])
    asked, copied = side(judged.queries, "query"), side(gallery, "gallery")
    plot = plots.pair_grid(asked, copied, same, scores=likeness, score_name="100 r", limit=len(pairs), name="copies")
    found = figures["leaks"]["exact"] + (figures["leaks"]["near"] or 0)
    caption = (
        "Left a query, right its copy in the gallery, from the most to the least alike: r is the correlation of their pixels, "
        "1 for exact copies"
    )
    alt = f"{len(pairs)} of {found:,} queries with their copies in the gallery"
    if same is not None:
        caption += "; before it stands whether their classes are the same"
        alt += f", {int(same.sum())} of the same class"
    return dataclasses.replace(plot, caption=f"{caption}.", alt=f"{alt}.")


def _recall(judged: Judged, figures: Mapping[str, Any]) -> Plot:
    curves, ks = {judged.config["recipe"]["name"]: figures["retrieval"]}, (1, 5, 10)
    curves |= {_LINE_NAMES[name]: tree["retrieval"] for name, tree in figures.get("baselines", {}).items()}
    if any(curve["recall@1"] is None for curve in curves.values()):
        raise InputError("no query has an image of its class in the gallery")
    chances = figures["classification"]["recall_by_probability"]
    return plots.recall_at_k(
        {name: [curve[f"recall@{k}"] for k in ks] for name, curve in curves.items()},
        ks,
        probability={judged.config["recipe"]["name"]: list(chances.values())},
        probability_k=[int(k) for k in chances],
    )


def _draw_pairs(album: Album, judged: Judged, figures: Mapping[str, Any]) -> None:
    threshold = figures["verification"]["threshold"]
    pairs = sample_pairs(judged)
    drawn = pairs.mixed(_PAIRS, judged.config["seed"])
    images = judged.queries.images[np.concatenate([pairs.a[drawn], pairs.b[drawn]])]
    first, second, same = images[: len(drawn)], images[len(drawn) :], pairs.same[drawn]

    def distances() -> Plot:
        if pairs.same.all() or not pairs.same.any():
            raise InputError("the images give no pairs of one class, or none of two")
        name = "distance of the directions of two embeddings" if _angular(judged) else "distance of two embeddings"
        return plots.distance_histogram(
            pairs.distances[pairs.same], pairs.distances[~pairs.same], threshold, measure="distance", axis_name=name
        )

    def verdicts() -> Plot:
        if not len(drawn):
            raise InputError("the images give no pairs")
        apart = pairs.distances[drawn]
        plot = plots.pair_grid(first, second, same, predicted=apart < threshold, scores=apart, limit=_PAIRS)
        return add(plot, f"d is the distance of the two embeddings; below {threshold:.3g} the model says the same.")

    album.add("distances", distances)
    if judged.model.recipe_.sampling.kind == "pairs":
        album.add("pairs", lambda: plots.pair_grid(first, second, same, limit=_PAIRS))
    album.add("pairs_predicted", verdicts)


def _draw_maps(album: Album, judged: Judged, spots: Spots) -> None:
    labels = spots.labels
    assert labels is not None
    draw_maps(album, judged, spots)
    if judged.z.shape[1] == 2:
        album.add("density", lambda: plots.density_map(judged.z, labels, spots.classes))
        if not judged.same:
            names, (known,) = present(judged.classes, judged.gallery_labels)
            album.add("scatter_gallery", lambda: _of_gallery(plots.scatter_map, judged, known, names))
            album.add("density_gallery", lambda: _of_gallery(plots.density_map, judged, known, names))

    def cosines() -> Plot:
        means = [mean_cosines(z, labels[spots.rows], len(spots.classes)) for z in (judged.z[spots.rows], spots.before)]
        plot = plots.class_cosines(means[0], spots.classes, before=means[1])
        if _angular(judged):
            return plot
        return add(
            plot, "This run goes by distance, not by angle: its classes may lie in one direction and still be far apart."
        )

    album.add("class_cosines", cosines)
    draw_tsne(album, spots)


def draw_maps(album: Album, judged: Judged, spots: Spots) -> None:
    """The queries as dots in the plane, in two dimensions as they are and before training, else by principal components."""
    classes = spots.classes
    if judged.z.shape[1] == 2:
        album.add("scatter", lambda: plots.scatter_map(judged.z, spots.labels, classes))
        album.add("scatter_before", lambda: _scatter_before(spots.before, spots.labels_at(spots.rows), classes))
    elif judged.z.shape[1] > 2:
        shown = plots.sample_rows(judged.labels, _MAP_POINTS, judged.config["seed"])
        z, labels = judged.z[shown], spots.labels_at(shown)
        album.add("pca_2d", lambda: plots.pca_map(z, labels, classes, dimensions=2))
        album.add("pca_3d", lambda: plots.pca_map(z, labels, classes, dimensions=3))


def draw_tsne(album: Album, spots: Spots) -> None:
    """t-SNE before and after training; last, since the others need not wait for it."""
    if not spots.maps:
        return

    def tsne() -> Plot:
        before, after = (found.result() for found in spots.maps)
        return plots.tsne_maps(before, after, spots.labels_at(spots.rows[spots.few]), spots.classes)

    album.add("tsne", tsne)


def _scatter_before(before: Any, labels: Any, classes: list[str]) -> Plot:
    plot = plots.scatter_map(before, labels, classes, name="scatter_before")
    return add(plot, "This is where the network placed the images before training.")


def _of_gallery(draw: Callable[..., Plot], judged: Judged, labels: Any, classes: list[str]) -> Plot:
    name = "scatter_gallery" if draw is plots.scatter_map else "density_gallery"
    return add(draw(judged.gallery, labels, classes, name=name), "These are the gallery's images, which it was trained on.")


def _angular(judged: Judged) -> bool:
    return judged.model.recipe_.evaluate.metric == "cosine"


def add(plot: Plot, sentence: str) -> Plot:
    """``plot`` with one more sentence in its caption."""
    return dataclasses.replace(plot, caption=f"{plot.caption} {sentence}")
