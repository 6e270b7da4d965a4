"""Are these two of one class? Accuracy at a threshold, and what all thresholds together say.

A pair counts as the same when the Euclidean distance d of its embeddings (of their directions, under the cosine) is
below the threshold. System C's rule "1 - d > 0.5" is the threshold 0.5 (Hadsell, Chopra, LeCun 2006).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nearfar.errors import InputError
from nearfar.search.vectors import Metric, as_vectors, check_metric, unit_rows

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Wide = npt.NDArray[np.float64]

FIXED_THRESHOLD = 0.5
_ROC_POINTS = 200


class Pairs(NamedTuple):
    """Row numbers ``a`` and ``b`` [M] of the partners, and whether they are of the ``same`` class [M]."""

    a: Ints
    b: Ints
    same: Flags


def draw_pairs(labels: npt.NDArray[Any], *, seed: int = 0) -> Pairs:
    """Draw for every row one partner of its class and one of another, uniformly among those there are.

    Rows alone in their class get no same partner; where there is one class only, there are no different ones.

    Args:
        labels: [N].
        seed: the same seed draws the same pairs.

    Returns:
        The pairs of the same class first, each part in the order of rows.
    """
    labels = np.asarray(labels)
    generator = np.random.default_rng(seed)
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    order = np.argsort(codes, kind="stable")
    starts = (np.cumsum(counts) - counts)[codes]
    sizes = counts[codes]
    place = np.empty(len(order), dtype=np.int64)  # of each row, among rows in order of classes
    place[order] = np.arange(len(order))
    steps = generator.integers(1, np.maximum(sizes, 2))
    partners = order[starts + (place - starts + steps) % sizes]
    draws = generator.integers(0, np.maximum(len(order) - sizes, 1))
    others = order[np.minimum(draws + np.where(draws >= starts, sizes, 0), len(order) - 1)]
    rows = np.arange(len(order))
    a, b = rows[sizes > 1], rows[sizes < len(order)]
    return Pairs(
        np.concatenate([a, b]),
        np.concatenate([partners[a], others[b]]),
        np.concatenate([np.ones(len(a), dtype=bool), np.zeros(len(b), dtype=bool)]),
    )


def pair_distances(vectors: Any, pairs: Pairs, *, metric: Metric = "cosine") -> Wide:
    """Return the Euclidean distance of each pair of rows of ``vectors`` [N, D], at unit length if ``metric`` is
    "cosine": float64 [M]."""
    points = as_vectors(vectors, "vectors")
    if check_metric(metric) == "cosine":
        points = unit_rows(points, "vectors")
    distances = np.empty(len(pairs.a))
    step = max(1, (1 << 20) // points.shape[1])
    for start in range(0, len(distances), step):
        part = slice(start, start + step)
        gaps = points[pairs.a[part]].astype(np.float64) - points[pairs.b[part]]
        distances[part] = np.sqrt((gaps * gaps).sum(axis=1))
    return distances


def verification_figures(
    distances: Wide,
    same: Flags,
    *,
    threshold: float | None = None,
    validation: tuple[Wide, Flags] | None = None,
) -> dict[str, Any]:
    """Figures of pairs at ``distances`` [M], of which ``same`` [M] are truly of one class.

    Args:
        distances: of the pairs; smaller for pairs that look the same.
        same: the truth.
        threshold: what the recipe says, or None: the best on ``validation``, or 0.5 without it.
        validation: distances and truth of other pairs, on which the best threshold is chosen. One chosen on the very
            pairs that are judged would flatter.

    Returns:
        ``accuracy`` at ``threshold``, and where that is ``threshold_from`` ("given", "validation" or "fixed");
        ``accuracy_best`` at ``threshold_best``, the best one on ``validation`` (None without it); ``auroc`` and ``eer``
        (None without pairs of both kinds); ``pairs``, how many; and ``roc``: ``false_positive_rate`` and
        ``true_positive_rate`` at no more than 200 thresholds.

    Raises:
        InputError: empty, or unequal lengths.
    """
    _check(distances, same)
    best = None if validation is None else best_threshold(*validation)
    used = next(value for value in (threshold, best, FIXED_THRESHOLD) if value is not None)
    false_rate, true_rate = roc(distances, same)
    both = bool(same.any()) and not bool(same.all())
    points = np.unique(np.linspace(0, len(false_rate) - 1, _ROC_POINTS).round()).astype(np.int64)
    shown = points if both else points[:0]
    return {
        "accuracy": accuracy_at(distances, same, used),
        "threshold": used,
        "threshold_from": "given" if threshold is not None else "fixed" if best is None else "validation",
        "accuracy_best": None if best is None else accuracy_at(distances, same, best),
        "threshold_best": best,
        "auroc": auroc(distances, same) if both else None,
        "eer": equal_error_rate(false_rate, true_rate) if both else None,
        "pairs": len(distances),
        "roc": {
            "false_positive_rate": false_rate[shown].tolist(),
            "true_positive_rate": true_rate[shown].tolist(),
        },
    }


def accuracy_at(distances: Wide, same: Flags, threshold: float) -> float:
    """Share of pairs for which ``distance < threshold`` says the truth."""
    return float(((distances < threshold) == same).mean())


def best_threshold(distances: Wide, same: Flags) -> float:
    """Return the threshold of the greatest accuracy: half way between two distances; of several, the lowest.

    Raises:
        InputError: empty, or unequal lengths.
    """
    _check(distances, same)
    order = np.argsort(distances, kind="stable")
    ordered, truth = distances[order], same[order]
    # With the threshold before the i-th distance, the i pairs before it are called the same.
    right = np.concatenate([[0], np.cumsum(truth)]) + np.concatenate([[0], np.cumsum(~truth[::-1])])[::-1]
    edges = np.concatenate([[True], ordered[1:] > ordered[:-1], [True]])
    best = int(np.argmax(np.where(edges, right, -1)))
    if best == 0:
        return float(ordered[0])
    if best == len(ordered):
        return float(np.nextafter(ordered[-1], np.inf))
    middle = float((ordered[best - 1] + ordered[best]) / 2.0)
    return middle if middle > ordered[best - 1] else float(ordered[best])


def auroc(distances: Wide, same: Flags) -> float:
    """Chance that a pair of one class is nearer than a pair of two, ties counting half (Mann, Whitney 1947)."""
    _, codes, counts = np.unique(-distances, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2.0)[codes]  # the mean rank of each group of equal scores, from 1
    positives, negatives = int(same.sum()), int((~same).sum())
    return float((ranks[same].sum() - positives * (positives + 1) / 2.0) / (positives * negatives))


def roc(distances: Wide, same: Flags) -> tuple[Wide, Wide]:
    """Return the false and the true positive rate, both from 0 to 1, as the threshold rises."""
    order = np.argsort(distances, kind="stable")
    ordered, truth = distances[order], same[order]
    last = np.concatenate([np.flatnonzero(ordered[1:] > ordered[:-1]), [len(ordered) - 1]])
    false_counts = np.concatenate([[0], np.cumsum(~truth)[last]])
    true_counts = np.concatenate([[0], np.cumsum(truth)[last]])
    return false_counts / max(false_counts[-1], 1), true_counts / max(true_counts[-1], 1)


def equal_error_rate(false_rate: Wide, true_rate: Wide) -> float:
    """Where false positives are as frequent as false negatives, on straight lines between the points of ``roc``."""
    gap = false_rate - (1.0 - true_rate)  # rises from -1 to 1
    after = int(np.argmax(gap >= 0.0))
    before = after - 1
    share = -gap[before] / (gap[after] - gap[before])
    return float(false_rate[before] + share * (false_rate[after] - false_rate[before]))


def _check(distances: Wide, same: Flags) -> None:
    if len(distances) == 0:
        raise InputError("there is no pair to verify; at least two rows are needed")
    if distances.shape != same.shape:
        raise InputError(f"distances has {len(distances):,} entries, same has {len(same):,}")
