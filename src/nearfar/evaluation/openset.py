"""Can an embedding tell classes that it knows from those it never saw? Figures of a score that is greater for the former.

Known queries are the positives, as in Hendrycks and Gimpel 2017 (A baseline for detecting misclassified and
out-of-distribution examples in neural networks).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from nearfar.errors import InputError
from nearfar.evaluation.verification import auroc, roc

Wide = npt.NDArray[np.float64]

_POINTS = 200
TRUE_POSITIVE_RATE = 0.95


def open_set_figures(known: Wide, unseen: Wide, threshold: float | None = None) -> dict[str, Any]:
    """How well a score keeps queries of known and of unseen classes apart.

    Args:
        known: scores of queries whose class the gallery has [N].
        unseen: scores of queries whose class it has not [M].
        threshold: at or above which a query is answered; chosen on neither of them.

    Returns:
        ``auroc``, the chance that a known query scores higher than an unseen one, ties counting half; ``fpr@95tpr``, the
        share of unseen queries that pass where 95 % of the known ones do (Liang, Li, Srikant 2018); with a threshold
        ``answered_known`` and ``answered_unseen``, the shares that pass it; ``known`` and ``unseen``, how many; and ``roc``:
        ``false_positive_rate`` and ``true_positive_rate`` at no more than 200 lines.

    Raises:
        InputError: one of them is empty, or holds NaN.
    """
    for name, scores in (("known", known), ("unseen", unseen)):
        if len(scores) == 0:
            raise InputError(f"there is no score of {name} queries; both kinds are needed")
        if np.isnan(scores).any():
            raise InputError(f"the scores of {name} queries hold NaN, expected numbers")
    # To verification a smaller value speaks for the positives.
    values = -np.concatenate([known, unseen])
    positive = np.arange(len(values)) < len(known)
    false_rate, true_rate = roc(values, positive)
    shown = np.unique(np.linspace(0, len(false_rate) - 1, _POINTS).round()).astype(np.int64)
    return {
        "auroc": auroc(values, positive),
        "fpr@95tpr": fpr_at(false_rate, true_rate),
        "answered_known": None if threshold is None else float((known >= threshold).mean()),
        "answered_unseen": None if threshold is None else float((unseen >= threshold).mean()),
        "known": len(known),
        "unseen": len(unseen),
        "roc": {
            "false_positive_rate": false_rate[shown].tolist(),
            "true_positive_rate": true_rate[shown].tolist(),
        },
    }


def fpr_at(false_rate: Wide, true_rate: Wide, wanted: float = TRUE_POSITIVE_RATE) -> float:
    """The least false positive rate at which the true one is at least ``wanted``; both rise, as `roc` gives them."""
    return float(false_rate[int(np.argmax(true_rate >= wanted))])
