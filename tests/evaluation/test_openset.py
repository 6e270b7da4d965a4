from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from nearfar.errors import InputError
from nearfar.evaluation.openset import open_set_figures

SCORES = st.lists(st.integers(0, 20), min_size=1, max_size=60)


def theirs(known: Any, unseen: Any) -> tuple[float, float]:
    """Both figures by scikit-learn."""
    truth, scores = np.repeat([1, 0], [len(known), len(unseen)]), np.concatenate([known, unseen])
    false_rate, true_rate, _ = roc_curve(truth, scores, drop_intermediate=False)
    return float(roc_auc_score(truth, scores)), float(false_rate[true_rate >= 0.95].min())


@settings(max_examples=150, deadline=None)
@given(SCORES, SCORES)
def test_as_scikit_learn_ties_included(known: list[int], unseen: list[int]) -> None:
    a, b = np.array(known) / 20, np.array(unseen) / 20
    found = open_set_figures(a, b, 0.5)
    assert (found["auroc"], found["fpr@95tpr"]) == pytest.approx(theirs(a, b), abs=1e-12)
    assert found["answered_known"] == pytest.approx(sum(x >= 10 for x in known) / len(known))
    assert found["answered_unseen"] == pytest.approx(sum(x >= 10 for x in unseen) / len(unseen))
    assert (found["known"], found["unseen"]) == (len(known), len(unseen))


def test_many_scores_and_a_short_curve() -> None:
    random = np.random.default_rng(0)
    known, unseen = random.normal(2.0, 1.0, 3000), random.normal(0.0, 1.0, 2000)
    found = open_set_figures(known, unseen)
    assert (found["auroc"], found["fpr@95tpr"]) == pytest.approx(theirs(known, unseen), abs=1e-12)
    assert found["answered_known"] is None
    rates = found["roc"]["false_positive_rate"], found["roc"]["true_positive_rate"]
    assert len(rates[0]) == len(rates[1]) == 200
    falling = np.sort(np.concatenate([unseen, [np.inf, -np.inf]]))[::-1]
    for false_rate, true_rate in zip(*rates, strict=True):
        passed = round(false_rate * len(unseen))  # so the line lies between two scores of unseen queries
        assert (known >= falling[passed]).mean() - 1e-12 <= true_rate <= (known > falling[passed + 1]).mean() + 1e-12


def test_apart_alike_and_turned_round() -> None:
    high, low = np.arange(10.0) + 10, np.arange(10.0)
    assert [open_set_figures(high, low)[key] for key in ("auroc", "fpr@95tpr")] == [1.0, 0.0]
    assert [open_set_figures(low, high)[key] for key in ("auroc", "fpr@95tpr")] == [0.0, 1.0]
    assert open_set_figures(np.ones(5), np.ones(7))["auroc"] == 0.5


def test_wrong_input_is_refused_in_one_line() -> None:
    some, none = np.ones(3), np.ones(0)
    for known, unseen, message in [
        (none, some, "no score of known queries"),
        (some, none, "no score of unseen queries"),
        (some * np.nan, some, "scores of known queries hold NaN"),
        (some, some * np.nan, "scores of unseen queries hold NaN"),
    ]:
        with pytest.raises(InputError, match=message):
            open_set_figures(known, unseen)
