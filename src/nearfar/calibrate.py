"""How sure is a vote? From neighbours to probabilities that mean what they say, and the line below which nothing is known.

Pure functions on arrays of neighbours; nothing here knows of vectors, images or runs. The model is a softmax over the
neighbours' similarities with one more, the background, that stands for "none of these":

    p(class | query) = (1 - u) (S_class + B / C) / (S + B) + u / C

with S_class and S the sums of exp(s / T) over the neighbours of the class and over all, B = exp(b / T), and C classes.

The temperature T says how fast a neighbour's word fades with its distance (Wu et al. 2018 fix one, Guo et al. 2017 fit one
to logits), b is the similarity at which neighbours stop saying anything, and u the share of answers that are wrong however
near the neighbours are. All three are fitted by log loss, in float64, to queries whose class is known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from nearfar.errors import InputError

Codes = npt.NDArray[np.int64]
Wide = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

PRECISION = 0.99
"""Of the answers that are given, where no other is wanted."""
KEPT = 0.97
"""Share of the queries of known classes that a line keeps where precision alone would let all pass: it must lie somewhere, so
that a class never seen has something to fail at. Of MNIST's training images of digits held out (1 and 8; 4; 9) 29 to 68 % pass
where 99 % are kept, 3 to 37 % where 97 % are, and 1 to 23 % where 95 % are."""
BINS = 15
"""Of the expected calibration error, as in Guo et al. 2017."""
FOLDS = 5

_SMALLEST = float(np.finfo(np.float64).eps)
"""A probability of zero counts as this in a log loss, as in scikit-learn."""
_POINTS = 200
_LEAST_ANSWERED = 0.5
_RIDGE = 1e-6
_STARTS = ((-3.0, -4.0), (-0.7, -1.0))
"""Of log T and b, in units of the spread of the similarities around their median."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What is answered, and how rightly, at each line that may be drawn; from the strictest to none.

    Attributes:
        threshold: scores at or above which an answer is given, falling.
        answered: share of the queries that get one, rising to 1.
        precision: share of these that are right.
    """

    threshold: tuple[float, ...]
    answered: tuple[float, ...]
    precision: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The fitted numbers of one embedding with its gallery: of the probabilities, and of the line of the unknown.

    Attributes:
        temperature: T, above 0, in the unit of the similarities.
        background: b, a similarity.
        uniform: u, from 0 to 1.
        classes: C, that the fit knew.
        curve: for `threshold`.
    """

    temperature: float
    background: float
    uniform: float
    classes: int
    curve: Curve

    def threshold(self, precision: float = PRECISION) -> float:
        """The score below which a query is unknown, so that of the answers that are given a share ``precision`` is right.

        It is the lowest such line, but none that keeps more than ``KEPT`` of the queries. Where no line is as precise, it is
        the most precise one that answers at least half of them. For a precision of 0 everything is answered.

        Raises:
            InputError: ``precision`` is not from 0 up to, not including, 1.
        """
        if not 0.0 <= precision < 1.0:
            raise InputError(f"precision is {precision}, expected a share from 0 (answer everything) up to, not including, 1")
        if precision == 0.0:
            return -math.inf
        answered, reached = np.array(self.curve.answered), np.array(self.curve.precision)
        good = np.flatnonzero(reached >= precision)
        if len(good) == 0 or answered[good[-1]] < _LEAST_ANSWERED:
            enough = np.flatnonzero(answered >= min(_LEAST_ANSWERED, answered[-1]))
            good = enough[reached[enough] == reached[enough].max()]
        line = int(np.flatnonzero(answered >= KEPT)[0])
        return self.curve.threshold[min(int(good[-1]), line)]

    def at(self, threshold: float) -> tuple[float, float]:
        """Share of the queries of the fit that are answered at ``threshold``, and share of these answers that are right."""
        given = np.flatnonzero(np.array(self.curve.threshold) >= threshold)
        return (self.curve.answered[given[-1]], self.curve.precision[given[-1]]) if len(given) else (0.0, 0.0)

    def to_dict(self) -> dict[str, Any]:
        """The numbers, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any], where: str = "the calibration") -> Self:
        """What `to_dict` gave.

        Raises:
            InputError: a number is missing, not finite, or out of its range.
        """
        curve = tree.get("curve")
        if not isinstance(curve, Mapping):
            raise InputError(f"{where} is damaged: it has no curve")
        columns = {one.name: _numbers(curve.get(one.name), where) for one in fields(Curve)}
        temperature, background, uniform, classes = _numbers(
            [tree.get(name) for name in ("temperature", "background", "uniform", "classes")], where
        )
        if not (temperature > 0.0 and 0.0 <= uniform <= 1.0 and classes >= 1.0):
            raise InputError(f"{where} is damaged: its temperature, uniform share or number of classes is out of range")
        if len({len(column) for column in columns.values()}) != 1:
            raise InputError(f"{where} is damaged: the columns of its curve differ in length")
        return cls(
            temperature=temperature, background=background, uniform=uniform, classes=int(classes), curve=Curve(**columns)
        )


def label_probability(codes: Codes, similarity: Wide, labels: Codes, fitted: Calibration) -> Wide:
    """The calibrated probability that each query is of the class ``labels`` [N] says, [N].

    Args:
        codes: classes of the neighbours [N, k].
        similarity: of the neighbours [N, k], greater is nearer.
        labels: any class for each query, such as the one that won the vote.
        fitted: whose temperature, background and uniform share are used.
    """
    return _own_share(
        codes == labels[:, None], similarity, fitted.temperature, fitted.background, fitted.uniform, fitted.classes
    )


def class_probabilities(codes: Codes, similarity: Wide, classes: int, fitted: Calibration) -> Wide:
    """The calibrated probability of each of ``classes`` classes, [N, classes], summing to 1 in each row."""
    weights, background = _weights(similarity, fitted.temperature, fitted.background)
    places = np.arange(len(codes))[:, None] * classes + codes
    shares: Wide = np.zeros((len(codes), classes))
    np.add.at(shares.reshape(-1), places.ravel(), weights.ravel())
    shares = (shares + background[:, None] / classes) / (weights.sum(axis=1) + background)[:, None]
    return (1.0 - fitted.uniform) * shares + fitted.uniform / classes


def calibrate(codes: Codes, similarity: Wide, own: Flags, labels: Codes, right: Flags, classes: int) -> Calibration:
    """Fit the probabilities of the labels that a vote gave, and draw the curve of what is answered how rightly.

    Args:
        codes: classes of the neighbours [N, k].
        similarity: of the neighbours [N, k].
        own: whether each neighbour is of its query's true class [N, k].
        labels: the classes that won the vote [N].
        right: whether these are the true ones [N].
        classes: how many there are.

    Raises:
        InputError: no query, or shapes that differ.
    """
    temperature, background, uniform = fit_probabilities(own, similarity, classes)
    chances = _own_share(codes == labels[:, None], similarity, temperature, background, uniform, classes)
    return Calibration(
        temperature=temperature,
        background=background,
        uniform=uniform,
        classes=classes,
        curve=precision_curve(chances, right),
    )


def fit_probabilities(own: Flags, similarity: Wide, classes: int) -> tuple[float, float, float]:
    """Fit temperature, background and uniform share by log loss.

    To the queries one is added that stands for the mistake not yet seen: neighbours at the usual similarities, none of them
    right (the rule of succession, Laplace 1774). Without it a gallery that makes no mistake would be believed without end. By
    the same rule no probability passes (N + 1) / (N + 2), however near the neighbours are: a few queries cannot say more.

    Args:
        own: whether each neighbour is of its query's class [N, k].
        similarity: of the neighbours [N, k].
        classes: how many there are.

    Returns:
        T, b and u.

    Raises:
        InputError: no query, or shapes that differ.
    """
    if own.shape != similarity.shape or own.ndim != 2 or own.size == 0:
        raise InputError(f"own has shape {own.shape}, similarity {similarity.shape}; expected one and the same [N, k], N >= 1")
    centre, spread = _scale(similarity)
    usual = np.median(similarity, axis=0, keepdims=True)
    least = 1.0 / ((len(own) + 2) * (1.0 - 1.0 / classes)) if classes > 1 else 0.0  # u, for the greatest probability
    own = np.concatenate([own, np.zeros_like(own[:1])])
    scaled = (np.concatenate([similarity, usual]) - centre) / spread
    found = [_descend(own, scaled, classes, start, least) for start in _STARTS]
    log_t, b, u = min(found, key=lambda each: each[0])[1]
    return spread * math.exp(log_t), centre + spread * b, 1.0 / (1.0 + math.exp(-u))


def cross_fitted(own: Flags, won: Flags, similarity: Wide, classes: int, *, seed: int = 0) -> tuple[Wide, Wide]:
    """Probabilities for queries that the fit did not see: each fifth of them by what the other four fitted.

    Args:
        own: whether each neighbour is of its query's class [N, k].
        won: whether each neighbour is of the class that won the vote [N, k].
        similarity: of the neighbours [N, k].
        classes: how many there are.
        seed: deals the queries into fifths.

    Returns:
        Of the query's own class and of the class that won the vote, [N] each; of a single query, by its own fit.
    """
    folds = np.random.default_rng(seed).permutation(len(own)) % min(FOLDS, len(own))
    truth, voted = np.empty(len(own)), np.empty(len(own))
    for fold in range(int(folds.max()) + 1):
        held = folds == fold
        rest = ~held if held.sum() < len(own) else held
        numbers = fit_probabilities(own[rest], similarity[rest], classes)
        truth[held] = _own_share(own[held], similarity[held], *numbers, classes)
        voted[held] = _own_share(won[held], similarity[held], *numbers, classes)
    return truth, voted


def log_loss(truth: Wide) -> float:
    """Mean of -log of the probabilities ``truth`` [N] that were given to the true classes."""
    return float(-np.log(np.clip(truth, _SMALLEST, 1.0)).mean())


def expected_calibration_error(confidence: Wide, right: Flags, bins: int = BINS) -> float:
    """How far confidence is from accuracy (Guo et al. 2017): the mean over bins of equal width, by their sizes.

    Args:
        confidence: of each answer [N], from 0 to 1.
        right: whether it is right [N].
        bins: the i-th holds confidences above (i - 1) / bins up to i / bins.

    Raises:
        InputError: empty, or unequal lengths.
    """
    if len(confidence) == 0 or confidence.shape != right.shape:
        raise InputError(
            f"confidence has {len(confidence):,} entries, right has {len(right):,}; expected as many, and at least 1"
        )
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(place, weights=confidence - right, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def precision_curve(scores: Wide, right: Flags) -> Curve:
    """The share of queries answered and the share of right answers, as the line falls; at no more than 200 lines.

    Args:
        scores: [N]; queries of equal scores are answered together.
        right: whether each query's answer is right [N].

    Raises:
        InputError: empty, or unequal lengths.
    """
    if len(scores) == 0 or scores.shape != right.shape:
        raise InputError(f"scores has {len(scores):,} entries, right has {len(right):,}; expected as many, and at least 1")
    order = np.argsort(-scores, kind="stable")
    ordered, hits = scores[order], np.cumsum(right[order])
    last = np.flatnonzero(np.append(ordered[1:] < ordered[:-1], True))
    # Evenly spaced in queries, not in lines: where many scores are equal there are few lines. And the one that keeps KEPT.
    places = np.append(np.linspace(0, len(ordered) - 1, _POINTS - 1).round(), np.ceil(KEPT * len(ordered)) - 1)
    last = last[np.unique(np.searchsorted(last, places))]
    return Curve(
        threshold=tuple(ordered[last].tolist()),
        answered=tuple(((last + 1) / len(ordered)).tolist()),
        precision=tuple((hits[last] / (last + 1)).tolist()),
    )


def _numbers(values: Any, where: str) -> tuple[float, ...]:
    """Finite numbers, at least one, or an error."""
    if not isinstance(values, list | tuple) or not values:
        raise InputError(f"{where} is damaged: its curve lacks a column")
    if any(isinstance(one, bool) or not isinstance(one, int | float) or not math.isfinite(one) for one in values):
        raise InputError(f"{where} is damaged: expected finite numbers")
    return tuple(float(one) for one in values)


def _own_share(chosen: Flags, similarity: Wide, temperature: float, background: float, uniform: float, classes: int) -> Wide:
    """The probability of the class of the ``chosen`` neighbours [N, k], [N]."""
    weights, none = _weights(similarity, temperature, background)
    share = (np.where(chosen, weights, 0.0).sum(axis=1) + none / classes) / (weights.sum(axis=1) + none)
    result: Wide = (1.0 - uniform) * share + uniform / classes
    return result


def _weights(similarity: Wide, temperature: float, background: float) -> tuple[Wide, Wide]:
    """What each neighbour [N, k] and the background [N] weigh, up to a factor for each query."""
    most = np.maximum(similarity.max(axis=1), background)
    return np.exp((similarity - most[:, None]) / temperature), np.exp((background - most) / temperature)


def _scale(similarity: Wide) -> tuple[float, float]:
    """The median of the similarities, and how far most of them are spread."""
    low, centre, high = np.quantile(similarity, [0.05, 0.5, 0.95]).tolist()
    spread = high - low
    return centre, spread if spread > 1e-12 * max(1.0, abs(centre)) else max(1.0, abs(centre))


def _descend(
    own: Flags, scaled: Wide, classes: int, start: tuple[float, float], least: float
) -> tuple[float, tuple[float, float, float]]:
    """The smallest log loss that is found from ``start``, and where: log T, b and the log odds of u, in scaled units.

    ``least`` is the smallest u.
    """
    import torch
    from scipy.optimize import minimize

    similarity, right = torch.from_numpy(np.ascontiguousarray(scaled)), torch.from_numpy(np.ascontiguousarray(own))
    lowest = max(-30.0, math.log(least / (1.0 - least))) if least > 0.0 else -30.0
    begin = torch.tensor([*start, max(-4.0, lowest)], dtype=torch.float64)
    even = torch.tensor(1.0 / classes, dtype=torch.float64).log()

    def loss(at: Wide) -> tuple[float, Wide]:
        found = torch.from_numpy(at.copy()).requires_grad_()
        log_t, b, u = found
        cold = torch.exp(-log_t)
        none = (b * cold).expand(len(similarity), 1)
        words = similarity * cold
        whole = torch.logsumexp(torch.cat([words, none], dim=1), dim=1)
        mine = torch.logsumexp(torch.cat([words.masked_fill(~right, -math.inf), none + even], dim=1), dim=1)
        sure, unsure = torch.nn.functional.logsigmoid(-u), torch.nn.functional.logsigmoid(u)
        logs = torch.logaddexp(sure + mine - whole, unsure + even)
        # Where the queries say nothing about a number, it stays near where it began.
        value = -logs.mean() + _RIDGE * (found - begin).square().sum()
        value.backward()
        return float(value.detach()), np.asarray(found.grad)

    with torch.enable_grad():
        # PyTorch's own L-BFGS would import PyTorch's compiler, which takes longer than the fit.
        options = {"maxiter": 60, "ftol": 1e-12, "gtol": 1e-9}
        bounds = [(-30.0, 30.0), (-30.0, 30.0), (lowest, 30.0)]
        end = minimize(loss, begin.numpy(), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    log_t, b, u = end.x.tolist()
    return float(end.fun), (log_t, b, u)
