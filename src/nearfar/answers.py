"""What a run answers: the vote of what it was trained on, how sure that is, classes that were added later, and "unknown".

Knows vectors, classes as numbers and the file ``calibration.json`` of a run; no images, no networks. Classes that training saw
vote as the recipe says, as if nothing had been added. A class of a few added images would drown in such a vote: it is weighed
by its centre instead.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import nearfar
from nearfar.calibrate import (
    PRECISION,
    Calibration,
    cross_fitted,
    expected_calibration_error,
    label_probability,
    log_loss,
)
from nearfar.calibrate import calibrate as fit_calibration
from nearfar.classify import Vote, similarities, vote_weights, winners
from nearfar.errors import InputError
from nearfar.files import read_json, write_json
from nearfar.recipe import EvaluateSection
from nearfar.search import NeighborIndex
from nearfar.search.vectors import Metric

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int64]
Wide = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

UNKNOWN = "unknown"
CALIBRATION = "calibration.json"
ROWS = 5000
"""Queries that a calibration is fitted to: more change its three numbers by little."""
_FORMAT = 1
_TO_SPHERE = 0.3
"""Share of the mean variance that is added in every direction: an embedding that is trained well leaves almost none in some,
and a class that came later spreads there too."""


@dataclass(frozen=True)
class Gallery:
    """An index in parts: rows of classes that training saw, which vote, rows of classes that came later, and others without
    a label (-1), which have no say.

    What is derived from them is kept: where the index has changed, `gallery_of` makes another.
    """

    index: NeighborIndex
    metric: Metric
    k: int  # how many vote
    vote: Vote
    trained: int  # rows with ids below this are training images
    voting: Codes  # row numbers
    later: Codes  # row numbers

    @cached_property
    def labels(self) -> Codes:
        """The class of each row of the index, as a number [M]."""
        return np.asarray(self.index.labels, dtype=np.int64)

    @cached_property
    def voting_classes(self) -> Codes:
        """The classes that vote, ascending."""
        return np.unique(self.labels[self.voting])

    @cached_property
    def later_classes(self) -> Codes:
        """The classes that came later, ascending."""
        return np.unique(self.labels[self.later])

    @property
    def classes(self) -> int:
        """How many classes vote."""
        return len(self.voting_classes)

    @cached_property
    def centres_of_classes(self) -> tuple[Wide, Wide, Wide]:
        """For the later classes: centres of those that vote [V, D], of the later ones [L, D], and the inverse covariance of
        the first [D, D]. It takes a pass over all vectors, so it is kept."""
        centres, covariance = _spread(self, self.voting_classes)
        others, _ = _spread(self, self.later_classes)
        return centres, others, np.asarray(np.linalg.pinv(covariance, hermitian=True), dtype=np.float64)

    def search(self, z: Floats, exclude: Codes | None = None) -> tuple[Floats, Codes]:
        """Scores and row numbers of the nearest ``k`` of the rows that vote, [N, k]; ``exclude`` as for the index, by id."""
        only = self.voting_classes if len(self.voting) < len(self.index) else None
        return self.index.search_rows(z, self.k, exclude=exclude, labels=only)


@dataclass(frozen=True)
class Answers:
    """What is said of each query [N]."""

    labels: Codes  # the class, as a number
    votes: Wide  # its share of the vote of the nearest k of all rows
    probability: Wide  # that it is right
    known: Flags  # whether that is enough to say it
    nearest: Codes  # row number of the nearest of all rows
    scores: Floats  # of that


def trained_images(config: Mapping[str, Any], index: NeighborIndex) -> int:
    """How many images of the index are those of training: rows with ids below that number are."""
    train = config["data"].get("train")
    count = train.get("images") if isinstance(train, Mapping) else None
    return count if isinstance(count, int) else int(index.ids.max()) + 1


def gallery_of(index: NeighborIndex, settings: EvaluateSection, trained: int) -> Gallery:
    """Tell rows that vote from those of classes that training did not see; where it saw none of them, all with a label vote.

    Raises:
        InputError: no image of the index has a label.
    """
    labels = np.asarray(index.labels, dtype=np.int64)
    labelled = labels >= 0
    if not labelled.any():
        raise InputError(
            "no image of the index has a label, so that there are no classes to name; nearfar index add RUN FOLDER puts "
            "labelled images into it, a few of each class are enough"
        )
    seen = np.isin(labels, np.unique(labels[labelled & (index.ids < trained)]))
    if not seen.any():
        seen = labelled
    voting = np.flatnonzero(seen)
    return Gallery(
        index=index,
        metric=settings.metric,
        k=min(settings.k, len(voting)),
        vote=settings.vote,
        trained=trained,
        voting=voting,
        later=np.flatnonzero(labelled & ~seen),
    )


def unlabelled_gallery(index: NeighborIndex, settings: EvaluateSection, trained: int) -> Gallery:
    """An index that cannot vote: all of it is searched, and what is found names no class."""
    rows = np.arange(len(index))
    k = min(settings.k, len(index))
    return Gallery(index, settings.metric, k=k, vote=settings.vote, trained=trained, voting=rows, later=rows[:0])


def can_vote(index: NeighborIndex) -> bool:
    """Whether two images of an index have a label: with fewer, no class is named."""
    return int((np.asarray(index.labels) >= 0).sum()) > 1


def voters_of(
    folder: Path, index: NeighborIndex, settings: EvaluateSection, trained: int
) -> tuple[Gallery, Calibration] | None:
    """The index of a run as it votes, and what its probabilities come from; None where it cannot (`can_vote`).

    Raises:
        InputError: the calibration that the folder holds is damaged.
    """
    if not can_vote(index):
        return None
    gallery = gallery_of(index, settings, trained)
    return gallery, current_calibration(folder, gallery)


def answer(
    gallery: Gallery,
    z: Floats,
    fitted: Calibration,
    precision: float = PRECISION,
    *,
    near: tuple[Floats, Codes] | None = None,
) -> Answers:
    """Name the class of each query, and say whether that is to be believed.

    Args:
        gallery: what is searched.
        z: [N, D].
        fitted: of this gallery.
        precision: wanted share of right answers among those that are given; see `Calibration.threshold`.
        near: what ``gallery.search(z)`` returns, where that is known already.

    Raises:
        InputError: the precision is out of range.
    """
    line = fitted.threshold(precision)
    scores, rows = gallery.search(z) if near is None else near
    codes, similarity = gallery.labels[rows], similarities(scores, gallery.metric)
    labels = winners(codes, similarity, gallery.vote)
    probability = label_probability(codes, similarity, labels, fitted)
    known = probability >= line
    if len(gallery.later):
        scores, rows = _with_later(gallery, z, scores, rows)
        codes, similarity = gallery.labels[rows], similarities(scores, gallery.metric)
        takes, classes, chance = _challenge(gallery, z, labels, codes[:, 0])
        labels, probability = np.where(takes, classes, labels), np.where(takes, chance, probability)
        known = np.where(takes, chance >= precision, known)
    weights = vote_weights(similarity, gallery.vote)
    return Answers(
        labels=labels,
        votes=np.where(codes == labels[:, None], weights, 0.0).sum(axis=1),
        probability=probability,
        known=known,
        nearest=rows[:, 0],
        scores=scores[:, 0],
    )


def calibrate(gallery: Gallery, validation: tuple[Floats, Codes] | None = None) -> dict[str, Any]:
    """Fit probabilities and the line of the unknown to queries whose class is known.

    Args:
        gallery: what is searched.
        validation: vectors [V, D] and class numbers [V] of images that were not trained on; None: training images of the
            gallery, each left out of its own search. Training has seen these, so they flatter. Of both at most 5,000.

    Returns:
        ``images`` and ``images_are``, what the fit was made on; ``accuracy`` of the vote on them; ``before`` (the share of the
        vote taken for a probability) and ``after``, each with ``ece`` and ``log_loss``, the latter on images that the fit did
        not see, fifth by fifth; and ``fitted``, see `Calibration`.

    Raises:
        InputError: the gallery is too small.
    """
    if validation is not None and np.isin(validation[1], gallery.labels[gallery.voting]).any():
        ours = np.flatnonzero(np.isin(validation[1], gallery.labels[gallery.voting]))
        chosen = _sample(ours)
        z, truth = np.asarray(validation[0][chosen]), validation[1][chosen]
        source, exclude = "validation images", None
    else:
        rows = _sample(np.flatnonzero((gallery.index.ids < gallery.trained) & (gallery.labels >= 0)))
        rows = rows if len(rows) else _sample(gallery.voting)
        z, truth = np.asarray(gallery.index.vectors[rows]), gallery.labels[rows]
        source, exclude = "training images, each left out of its own search", gallery.index.ids[rows]
        gallery = replace(gallery, k=min(gallery.k, len(gallery.voting) - 1))
        if gallery.k < 1:
            raise InputError("the index holds one image that can vote; probabilities need at least two")
    scores, found = gallery.search(z, exclude)
    codes, similarity = gallery.labels[found], similarities(scores, gallery.metric)
    labels, classes = winners(codes, similarity, gallery.vote), gallery.classes
    own, won, right = codes == truth[:, None], codes == labels[:, None], labels == truth
    fitted = fit_calibration(codes, similarity, own, labels, right, classes)
    of_truth, of_label = cross_fitted(own, won, similarity, classes)
    weights = vote_weights(similarity, gallery.vote)
    shares = {name: np.where(flags, weights, 0.0).sum(axis=1) for name, flags in (("truth", own), ("label", won))}
    return {
        "images": len(truth),
        "images_are": source,
        "accuracy": float(right.mean()),
        "before": _quality(shares["truth"], shares["label"], right),
        "after": _quality(of_truth, of_label, right),
        "fitted": fitted.to_dict(),
    }


def write_calibration(folder: Path, gallery: Gallery, record: Mapping[str, Any]) -> None:
    """Keep in a run folder what `calibrate` returned, bound to the model and to the training images of the index.

    Raises:
        InputError: the folder cannot be written to.
    """
    tree = {"format": _FORMAT, "nearfar": nearfar.__version__, "bound_to": binding(gallery), **record}
    write_json(folder / CALIBRATION, tree)


def read_calibration(folder: Path, gallery: Gallery) -> dict[str, Any] | None:
    """What `write_calibration` kept; None where there is nothing, or it is of another model, other images or another vote.

    Raises:
        InputError: the file is damaged.
    """
    path = folder / CALIBRATION
    if not path.exists():
        return None
    tree = read_json(path)
    if tree.get("format") != _FORMAT or tree.get("bound_to") != binding(gallery):
        return None
    if not isinstance(tree.get("fitted"), dict):
        raise InputError(f"{path} is damaged: it has no fitted numbers; delete it, and it is made anew")
    fitted_in(tree, path)
    return {key: value for key, value in tree.items() if key not in ("format", "nearfar", "bound_to")}


def current_calibration(folder: Path, gallery: Gallery) -> Calibration:
    """The calibration of a run; where it has none that fits, one made from its index, and kept if the folder lets us.

    Raises:
        InputError: the file is damaged, or the gallery is too small.
    """
    record = read_calibration(folder, gallery)
    if record is None:
        record = calibrate(gallery)
        with contextlib.suppress(InputError, OSError):  # a run that may only be read is to answer all the same
            write_calibration(folder, gallery, record)
    return fitted_in(record)


def fitted_in(record: Mapping[str, Any], path: Path | str = "the calibration") -> Calibration:
    """The numbers of a record as `calibrate` returns it."""
    return Calibration.from_dict(record["fitted"], str(path))


def binding(gallery: Gallery) -> dict[str, Any]:
    """What a calibration holds for. Images that were added later do not change it, unless they alone have labels."""
    rows = gallery.index.ids < gallery.trained
    if not (gallery.labels[rows] >= 0).any():
        rows[gallery.voting] = True
    digest = hashlib.sha256()
    for column in (gallery.index.ids[rows], gallery.labels[rows]):
        digest.update(np.ascontiguousarray(column, dtype="<i8").tobytes())
    return {
        "model": gallery.index.model_hash,
        "training_images": digest.hexdigest(),
        "metric": gallery.metric,
        "k": gallery.k,
        "vote": gallery.vote,
    }


def _sample(rows: Codes) -> Codes:
    """At most `ROWS` of the rows, always the same ones."""
    return rows if len(rows) <= ROWS else np.sort(np.random.default_rng(0).permutation(rows)[:ROWS])


def _quality(of_truth: Wide, of_label: Wide, right: Flags) -> dict[str, float]:
    return {"ece": expected_calibration_error(np.clip(of_label, 0.0, 1.0), right), "log_loss": log_loss(of_truth)}


def _with_later(gallery: Gallery, z: Floats, scores: Floats, rows: Codes) -> tuple[Floats, Codes]:
    """The nearest k of all rows, from the nearest k that vote and the rows of later classes."""
    only = gallery.later_classes
    found, places = gallery.index.search_rows(z, min(gallery.k, len(gallery.later)), labels=only)
    scores, rows = np.concatenate([scores, found], axis=1), np.concatenate([rows, places], axis=1)
    order = np.argsort(scores if gallery.metric == "euclidean" else -scores, axis=1, kind="stable")[:, : gallery.k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


def _challenge(gallery: Gallery, z: Floats, labels: Codes, nearest: Codes) -> tuple[Flags, Codes, Wide]:
    """Say which queries belong to a class that came later.

    A vote of neighbours would favour what there is more of: of thousands of images some are near to anything. So each later
    class is weighed against the class that won the vote by their centres, few images or many alike: both taken for normal
    distributions that spread as training classes do around theirs (Fisher 1936), with the covariance drawn towards a sphere
    (Friedman 1989). It also takes what has one of its images as the nearest of all.

    Args:
        gallery: what is searched.
        z: [N, D].
        labels: the classes that won the vote [N].
        nearest: the classes of the nearest of all rows [N].

    Returns:
        Whether a later class takes the query, the best one, and its probability against the class that won the vote, [N] each.
    """
    voting, later = gallery.voting_classes, gallery.later_classes
    vectors = z / np.linalg.norm(z, axis=1, keepdims=True) if gallery.metric == "cosine" else z
    wide = vectors.astype(np.float64)
    centres, others, inverse = gallery.centres_of_classes
    own = _log_density(wide, centres[np.searchsorted(voting, labels)], inverse)
    each = np.stack([_log_density(wide, centre, inverse) for centre in others], axis=1)  # [N, later]
    is_near = np.isin(nearest, later)
    best = np.where(is_near, np.minimum(np.searchsorted(later, nearest), len(later) - 1), each.argmax(axis=1))
    ahead = each[np.arange(len(z)), best] - own
    chance = 1.0 / (1.0 + np.exp(-np.clip(ahead, -500.0, 500.0)))
    return (ahead > 0.0) | is_near, later[best], np.where(is_near, np.maximum(chance, 0.5), chance)


def _spread(gallery: Gallery, classes: Codes) -> tuple[Wide, Wide]:
    """The means of the vectors of ``classes`` [C], [C, D], and the covariance around them [D, D], drawn towards a sphere."""
    order = np.argsort(gallery.labels, kind="stable")
    ordered, dimensions = gallery.labels[order], gallery.index.n_features_in_
    bounds = zip(np.searchsorted(ordered, classes), np.searchsorted(ordered, classes, side="right"), strict=True)
    means, scatter, count = np.empty((len(classes), dimensions)), np.zeros((dimensions, dimensions)), 0
    for number, (start, end) in enumerate(bounds):
        vectors = np.asarray(gallery.index.vectors[order[start:end]], dtype=np.float64)
        means[number] = vectors.mean(axis=0)
        vectors -= means[number]
        scatter += vectors.T @ vectors
        count += len(vectors)
    covariance = scatter / count
    return means, covariance + _TO_SPHERE * np.trace(covariance) / dimensions * np.eye(dimensions)


def _log_density(z: Wide, centres: Wide, inverse: Wide) -> Wide:
    """The exponent of the normal density of each row of ``z`` [N, D] around a centre [D] or its own one [N, D]."""
    away = z - centres
    return np.asarray(-0.5 * ((away @ inverse) * away).sum(axis=1))
