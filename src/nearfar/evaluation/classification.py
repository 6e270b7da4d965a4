"""Figures of predicted labels against true ones, and of neighbours' probabilities.

Labels are numbers of classes here; names are the caller's affair.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from nearfar.errors import InputError

Codes = npt.NDArray[np.int64]
Wide = npt.NDArray[np.float64]


def confusion_matrix(truth: Codes, predicted: Codes, classes: int) -> Codes:
    """Count how often class i was taken for class j: int64 [classes, classes], from ``truth`` and ``predicted`` [N]."""
    _check_codes(truth, "truth", len(truth), classes)
    _check_codes(predicted, "predicted", len(truth), classes)
    places = truth * classes + predicted
    return np.bincount(places, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


def classification_figures(truth: Codes, predicted: Codes, classes: int) -> dict[str, Any]:
    """Accuracy, and precision, recall and F1 of each class and averaged over classes, all in [0, 1].

    A class takes part in the averages when it occurs among ``truth`` or ``predicted``. A precision or recall without
    anything to divide by is 0, as in scikit-learn.

    Args:
        truth: [N], numbers from 0 to ``classes`` - 1.
        predicted: [N].
        classes: how many there are.

    Returns:
        ``accuracy, precision_macro, recall_macro, f1_macro``, and ``by_class``: arrays [classes] of ``precision,
        recall, f1, queries``.

    Raises:
        InputError: empty, unequal lengths, or a number that is no class.
    """
    if len(truth) == 0:
        raise InputError("truth is empty, expected at least one label")
    confusion = confusion_matrix(truth, predicted, classes)
    right = np.diag(confusion).astype(np.float64)
    true_count, predicted_count = confusion.sum(axis=1), confusion.sum(axis=0)
    precision, recall = _ratio(right, predicted_count), _ratio(right, true_count)
    f1 = _ratio(2.0 * right, true_count + predicted_count)
    there = (true_count + predicted_count) > 0
    return {
        "accuracy": float(right.sum() / len(truth)),
        "precision_macro": float(precision[there].mean()),
        "recall_macro": float(recall[there].mean()),
        "f1_macro": float(f1[there].mean()),
        "by_class": {"precision": precision, "recall": recall, "f1": f1, "queries": true_count},
    }


def recall_by_probability(probabilities: Wide, truth: Codes, ks: tuple[int, ...] = (1, 2, 3, 4, 5)) -> dict[str, float]:
    """Share of queries whose class is among the k classes to which their neighbours give the highest probability.

    This is top-k accuracy of the vote (system D), not the recall@k of retrieval, which looks at the k nearest images.
    Of equal probabilities the true class comes last; so a class that no neighbour has is not found by chance.

    Args:
        probabilities: [N, C].
        truth: [N], numbers from 0 to C - 1.
        ks: each k from 1; where it is not below C every query is right.

    Returns:
        The share by k as text.
    """
    _check_codes(truth, "truth", len(probabilities), probabilities.shape[1])
    own = np.take_along_axis(probabilities, truth[:, None], axis=1)
    rank = (probabilities >= own).sum(axis=1)
    return {str(k): float((rank <= k).mean()) for k in ks}


def _check_codes(codes: Codes, name: str, count: int, classes: int) -> None:
    if codes.shape != (count,):
        raise InputError(f"{name} has shape {codes.shape}, expected ({count},)")
    if count and (codes.min() < 0 or codes.max() >= classes):
        raise InputError(f"{name} holds {codes.min()} to {codes.max()}, expected numbers of {classes} classes")


def _ratio(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> Wide:
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
