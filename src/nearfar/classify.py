"""From neighbours to labels: votes as pure functions on arrays, and the classifier that searches and votes.

A vote sees labels and similarities, never vectors. "Similarity" is greater for nearer neighbours: the cosine, the dot
product, or for Euclidean distances ``-d^2 / 2``, which for unit vectors is the cosine less one.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal, Self, cast, get_args

import numpy as np
import numpy.typing as npt

from nearfar.calibrate import PRECISION, Calibration, calibrate, class_probabilities, label_probability
from nearfar.errors import InputError, did_you_mean
from nearfar.params import Params
from nearfar.search.index import NeighborIndex, not_fitted
from nearfar.search.vectors import Metric, as_vectors, check_k, check_metric

Vote = Literal["majority", "similarity"]
Codes = npt.NDArray[np.int64]
Wide = npt.NDArray[np.float64]

VOTES: tuple[str, ...] = get_args(Vote)
TEMPERATURE = 0.07
"""Of the similarity-weighted vote, as in Wu et al. 2018."""

_TIE_BREAK = 1e-9
_BLOCK = 1 << 20


def similarities(scores: npt.NDArray[Any], metric: Metric) -> Wide:
    """Turn the scores of a search [N, k] into similarities [N, k], of which the greater is the nearer."""
    wide = scores.astype(np.float64)
    return -0.5 * wide**2 if metric == "euclidean" else wide


def vote_weights(similarity: Wide, vote: Vote) -> Wide:
    """Return what each neighbour's vote counts, [N, k], summing to 1 in each row.

    "majority": 1 / k each. "similarity": in proportion to exp(similarity / 0.07), the weights of Wu et al. 2018
    (Unsupervised feature learning via non-parametric instance discrimination).
    """
    if vote == "majority":
        return np.full(similarity.shape, 1.0 / similarity.shape[1])
    weights = np.exp((similarity - similarity.max(axis=1, keepdims=True)) / TEMPERATURE)
    return weights / weights.sum(axis=1, keepdims=True)


def winners(codes: Codes, similarity: Wide, vote: Vote = "majority") -> Codes:
    """Return the class that the neighbours vote for, [N].

    Args:
        codes: the classes of the neighbours [N, k], nearest first, as numbers.
        similarity: of the neighbours [N, k].
        vote: "majority": the class of most neighbours; of several, the one of the greater summed similarity; of
            several still, the one with the nearest neighbour. "similarity": the class of the greatest summed weight
            (``vote_weights``); of several, the one with the nearest neighbour.
    """
    result = np.empty(len(codes), dtype=np.int64)
    step = max(1, _BLOCK // codes.shape[1] ** 2)
    for start in range(0, len(codes), step):
        part = slice(start, start + step)
        of_class = codes[part, :, None] == codes[part, None, :]  # [n, k, k]
        if vote == "majority":
            votes = of_class.sum(axis=2).astype(np.float64)
            leads = votes == votes.max(axis=1, keepdims=True)
            tied = np.where(of_class, similarity[part, None, :], 0.0).sum(axis=2)
        else:
            leads = np.ones(of_class.shape[:2], dtype=bool)
            tied = np.where(of_class, vote_weights(similarity[part], vote)[:, None, :], 0.0).sum(axis=2)
        tied = np.where(leads, tied, -np.inf)
        # argmax takes the first, which is the nearest.
        first = np.argmax(tied == tied.max(axis=1, keepdims=True), axis=1)
        result[part] = np.take_along_axis(codes[part], first[:, None], axis=1)[:, 0]
    return result


def probabilities(codes: Codes, similarity: Wide, classes: int, vote: Vote = "majority") -> Wide:
    """Return the share of the vote that each class has, [N, classes], summing to 1 in each row.

    Where the first place is shared, the winner's share is raised by one in 10^9, so that the greatest share is always
    that of ``winners``.

    Args:
        codes: the classes of the neighbours [N, k], numbers from 0 to ``classes`` - 1.
        similarity: of the neighbours [N, k].
        classes: how many there are.
        vote: see ``vote_weights``.
    """
    places = np.arange(len(codes))[:, None] * classes + codes
    shares: Wide = np.zeros((len(codes), classes))
    np.add.at(shares.reshape(-1), places.ravel(), vote_weights(similarity, vote).ravel())
    first = winners(codes, similarity, vote)
    rows = np.arange(len(codes))
    lead = shares[rows, first]
    # Sums of equal weights in another order may differ in the last bits: they are tied all the same.
    tied = (shares >= lead[:, None] - 1e-12).sum(axis=1) > 1
    shares[rows[tied], first[tied]] += _TIE_BREAK
    shares[tied] /= 1.0 + _TIE_BREAK
    return shares


def check_vote(vote: object) -> Vote:
    """Return ``vote`` if it is one of ``VOTES``.

    Raises:
        InputError: it is not.
    """
    if vote not in VOTES:
        raise InputError(f"vote is {vote!r}{did_you_mean(str(vote), VOTES)}")
    return cast("Vote", vote)


class NeighborClassifier(Params):
    """Labels by the vote of the nearest neighbours.

    Args:
        index: a fitted ``NeighborIndex`` with labels, ready to predict; or one whose settings ``fit`` takes over into
            an index of its own. None is ``NeighborIndex()``.
        k: how many neighbours vote.
        vote: "majority" or "similarity"; see ``winners`` for how ties end.
        calibration: what ``calibrate`` found, for probabilities that mean what they say. None: the share of the vote.

    Attributes:
        classes_: the distinct labels, sorted; the columns of ``predict_proba``.
        n_features_in_: D, the length of a vector.
    """

    _estimator_type = "classifier"
    _own: NeighborIndex
    _coded: tuple[npt.NDArray[Any], npt.NDArray[Any], Codes]

    def __init__(
        self,
        index: NeighborIndex | None = None,
        k: int = 10,
        vote: str = "majority",
        calibration: Calibration | None = None,
    ) -> None:
        self.index = index
        self.k = k
        self.vote = vote
        self.calibration = calibration

    def fit(self, X: Any, y: Any) -> Self:
        """Index the vectors ``X`` [N, D] with their labels ``y`` [N]; the index that was given stays as it is.

        Raises:
            InputError: see ``NeighborIndex.fit``; or ``k`` exceeds N.
        """
        if y is None:
            raise InputError("NeighborClassifier requires y to be passed, but the target y is None")
        check_vote(self.vote)
        own = NeighborIndex() if self.index is None else type(self.index)(**self.index.get_params(deep=False))
        own.fit(X, _column(y))
        if check_k(self.k, max(self.k, 1)) > len(own):
            raise InputError(f"k is {self.k}, but X has n_samples = {len(own)}; expected as many samples as neighbours")
        self._own = own
        self._codes()
        return self

    @property
    def classes_(self) -> npt.NDArray[Any]:
        """The distinct labels, sorted."""
        return self._codes()[1]

    @property
    def n_features_in_(self) -> int:
        """The length of a vector."""
        return self._gallery().n_features_in_

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """Return the label that the neighbours of each row of ``X`` [N, D] vote for, [N].

        Raises:
            InputError: see ``NeighborIndex.search``; or the index has no labels.
        """
        _, classes, _ = self._codes()
        codes, similarity = self._neighbours(X)
        return classes[winners(codes, similarity, check_vote(self.vote))]

    def predict_proba(self, X: Any) -> Wide:
        """Return the share of the vote that each class has, [N, classes], in the order of ``classes_``.

        With ``calibration`` it is the calibrated probability. ``predict`` names the class that won the vote all the same; in
        rare cases another is the more probable.

        Raises:
            InputError: as ``predict``.
        """
        _, classes, _ = self._codes()
        codes, similarity = self._neighbours(X)
        if self.calibration is not None:
            return class_probabilities(codes, similarity, len(classes), self.calibration)
        return probabilities(codes, similarity, len(classes), check_vote(self.vote))

    def calibrate(self, X: Any, y: Any) -> Self:
        """Set ``calibration`` by vectors ``X`` [N, D] that are not in the index, and their labels ``y`` [N].

        Raises:
            InputError: as ``predict``; or the lengths differ.
        """
        _, classes, _ = self._codes()
        codes, similarity = self._neighbours(X)
        truth = _column(y)
        if truth.shape != (len(codes),):
            raise InputError(f"y has shape {truth.shape}, X has {len(codes):,} rows; expected one label for each row")
        # A label that the index lacks is no neighbour's.
        own = classes[codes] == truth[:, None]
        labels = winners(codes, similarity, check_vote(self.vote))
        self.calibration = calibrate(codes, similarity, own, labels, classes[labels] == truth, len(classes))
        return self

    def known(self, X: Any, precision: float = PRECISION) -> npt.NDArray[np.bool_]:
        """Say for each row of ``X`` [N, D] whether its label is to be believed, [N].

        Of the labels that are, a share ``precision`` is right; see ``Calibration.threshold``.

        Raises:
            InputError: as ``predict``; there is no calibration, or the precision is out of range.
        """
        if self.calibration is None:
            raise InputError(
                "there is no calibration to tell the known by; call calibrate(X, y) with vectors that are not in the index"
            )
        codes, similarity = self._neighbours(X)
        labels = winners(codes, similarity, check_vote(self.vote))
        line = self.calibration.threshold(precision)
        return label_probability(codes, similarity, labels, self.calibration) >= line

    def score(self, X: Any, y: Any) -> float:
        """Return the share of rows of ``X`` [N, D] that get their label in ``y`` [N]."""
        return float(np.mean(self.predict(X) == np.asarray(y)))

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_own") or (self.index is not None and self.index.__sklearn_is_fitted__())

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags

        tags = super().__sklearn_tags__()
        tags.estimator_type = "classifier"
        tags.classifier_tags = ClassifierTags()
        tags.target_tags.required = True
        return tags

    def _gallery(self) -> NeighborIndex:
        if hasattr(self, "_own"):
            return self._own
        if self.index is None or not self.index.__sklearn_is_fitted__():
            raise not_fitted(self)
        return self.index

    def _codes(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any], Codes]:
        """Return the labels of the index, its classes, and each row's class as a number; counted once."""
        labels = self._gallery().labels
        if labels is None:
            raise InputError("the index has no labels to vote with; fit it with y")
        if not hasattr(self, "_coded") or self._coded[0] is not labels:
            classes, codes = np.unique(labels, return_inverse=True)
            self._coded = (labels, classes, codes.astype(np.int64))
        return self._coded

    def _neighbours(self, X: Any) -> tuple[Codes, Wide]:
        """Return the classes of the k nearest neighbours as numbers [N, k], and their similarities [N, k]."""
        gallery = self._gallery()
        queries = as_vectors(X, "X", dimensions=gallery.n_features_in_, owner=type(self).__name__)
        scores, rows = gallery.search_rows(queries, self.k)
        return self._codes()[2][rows], similarities(scores, check_metric(gallery.metric))


def _column(y: Any) -> npt.NDArray[Any]:
    """Return labels [N, 1] as [N], with scikit-learn's warning; others as they are."""
    labels = np.asarray(y)
    if labels.ndim != 2 or labels.shape[1] != 1:
        return labels
    from sklearn.exceptions import DataConversionWarning

    warnings.warn("A column-vector y was passed when a 1d array was expected.", DataConversionWarning, stacklevel=3)
    return labels[:, 0]
