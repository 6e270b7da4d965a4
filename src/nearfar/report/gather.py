"""From a judged run to the arrays that its plots and baselines are made of. Knows images and vectors, no figures, no page."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nearfar.classify import similarities, vote_weights, winners
from nearfar.encoders import Encoder
from nearfar.evaluation.geometry import cosine_sums, directions
from nearfar.evaluation.verification import draw_pairs, pair_distances
from nearfar.inference import embed, find_device
from nearfar.measuring.judging import Judged
from nearfar.search import NeighborIndex

Floats = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

NEIGHBORS_SHOWN = 8


@dataclass(frozen=True)
class Answers:
    """What the nearest gallery images say of every query.

    Attributes:
        scores: of the neighbours, best first [N, K]; K is at least the number of neighbours that vote, where there are so many.
        rows: the neighbours' rows in the gallery [N, K].
        codes: their class numbers [N, K].
        similarity: of the neighbours, greater is nearer [N, K].
        predicted: the class that the first k of them vote for [N].
        votes: that class's share of the vote [N].
    """

    scores: Floats
    rows: Ints
    codes: Ints
    similarity: Wide
    predicted: Ints
    votes: Wide

    def nearest_of_predicted(self, rows: Ints) -> Ints:
        """The gallery row of the nearest neighbour of the predicted class, for the queries ``rows`` [M]."""
        place = (self.codes[rows] == self.predicted[rows, None]).argmax(axis=1)
        return self.rows[rows, place]

    def worst(self, labels: Ints, limit: int) -> Ints:
        """Rows of the mistakes with the most votes, and of equal votes those with the most similar neighbours."""
        wrong = np.flatnonzero(self.predicted != labels)
        agree = self.codes[wrong] == self.predicted[wrong, None]
        pull = np.where(agree, self.similarity[wrong], 0.0).sum(axis=1) / agree.sum(axis=1)
        return wrong[np.lexsort((-pull, -np.round(self.votes[wrong], 9)))][:limit]


@dataclass(frozen=True)
class PairSample:
    """Pairs of queries that verification is judged on: row numbers, whether they are of one class, how far apart. [M] each."""

    a: Ints
    b: Ints
    same: Flags
    distances: Wide

    def mixed(self, count: int, seed: int) -> Ints:
        """Numbers of ``count`` random pairs, half of them of one class where there are so many, in random order."""
        rng = np.random.default_rng(seed)
        half = [rng.permutation(np.flatnonzero(self.same == kind))[: count // 2] for kind in (True, False)]
        chosen: Ints = rng.permutation(np.concatenate(half))
        return chosen


def answer(judged: Judged, k: int) -> Answers:
    """Search every query among the gallery and let its ``k`` nearest vote, as `nearfar.evaluation` does."""
    settings = judged.model.recipe_.evaluate
    index, exclude, only = judged.index, None, None
    if judged.same:
        index = NeighborIndex(settings.metric, "exact").fit(judged.z)
        exclude = np.arange(len(judged.z))
    elif len(judged.rows) < len(index):
        only = np.unique(judged.gallery_labels)
    there = len(judged.gallery) - int(judged.same)
    scores, rows = index.search_rows(judged.z, min(max(k, NEIGHBORS_SHOWN), there), exclude=exclude, labels=only)
    if only is not None:
        rows = np.searchsorted(judged.rows, rows)  # of the gallery, as the images are
    codes, similarity = judged.gallery_labels[rows], similarities(scores, settings.metric)
    predicted = winners(codes[:, :k], similarity[:, :k], settings.vote)
    weights = vote_weights(similarity[:, :k], settings.vote)
    votes = (weights * (codes[:, :k] == predicted[:, None])).sum(axis=1)
    return Answers(scores, rows, codes, similarity, predicted, np.clip(votes, 0.0, 1.0))


def embed_untrained(judged: Judged, rows: Ints) -> Floats:
    """The queries ``rows`` as the encoder placed them before training, float32 [M, D], each without further views."""
    model, encoder = judged.model, judged.model.untrained()
    if isinstance(encoder, Encoder):
        encoder.tta = ()  # random weights place five views of an image where they place one, in a fifth of the time
    return embed(encoder, judged.queries.subset(rows), model.recipe_.data, device=find_device(model.device))


def mean_cosines(z: Floats, labels: Ints, classes: int) -> Wide:
    """Mean cosine between the rows of every two classes, without pairs of a row with itself; NaN where there is no pair.

    Args:
        z: [N, D].
        labels: numbers from 0 to ``classes`` - 1 [N].

    Returns:
        [classes, classes].
    """
    sums, pairs = cosine_sums(directions(z), labels, classes)
    means: Wide = np.divide(sums, pairs, out=np.full(sums.shape, np.nan), where=pairs > 0)
    return np.clip(means, -1.0, 1.0)


def sample_pairs(judged: Judged) -> PairSample:
    """The pairs of queries behind the figures of verification: the same seed draws the same ones."""
    pairs = draw_pairs(judged.labels, seed=judged.config["seed"])
    distances = np.empty(0)
    if len(pairs.a):
        distances = pair_distances(judged.z, pairs, metric=judged.model.recipe_.evaluate.metric)
    return PairSample(pairs.a, pairs.b, pairs.same, distances)


def present(classes: list[str], *codes: Ints) -> tuple[list[str], list[Ints]]:
    """The names of the classes that occur in ``codes``, and ``codes`` as numbers of those names alone."""
    found = np.unique(np.concatenate(codes))
    return [classes[number] for number in found], [np.searchsorted(found, each).astype(np.int64) for each in codes]
