from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from nearfar.errors import InputError
from nearfar.evaluation.classification import classification_figures, confusion_matrix, recall_by_probability


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
@pytest.mark.parametrize("seed", range(5))
def test_as_scikit_learn_also_with_classes_that_are_missing(seed: int) -> None:
    generator = np.random.default_rng(seed)
    truth, predicted = generator.integers(6, size=30), generator.integers(1, 8, size=30)
    figures = classification_figures(truth, predicted, 9)
    assert figures["accuracy"] == pytest.approx(metrics.accuracy_score(truth, predicted))
    for name in ("precision", "recall", "f1"):
        score = getattr(metrics, f"{name}_score")
        assert figures[f"{name}_macro"] == pytest.approx(score(truth, predicted, average="macro", zero_division=0))
        each = score(truth, predicted, average=None, labels=range(9), zero_division=0)
        np.testing.assert_allclose(figures["by_class"][name], each)
    np.testing.assert_array_equal(
        confusion_matrix(truth, predicted, 9), metrics.confusion_matrix(truth, predicted, labels=range(9))
    )


def test_top_k_of_the_vote_as_scikit_learn_where_there_is_no_tie() -> None:
    generator = np.random.default_rng(0)
    chances, truth = generator.dirichlet(np.ones(7), size=60), generator.integers(7, size=60)
    found = recall_by_probability(chances, truth)
    for k in range(1, 6):
        assert found[str(k)] == pytest.approx(metrics.top_k_accuracy_score(truth, chances, k=k, labels=range(7)))


def test_a_class_without_a_vote_is_not_found_by_chance() -> None:
    chances = np.array([[0.0, 1.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]])
    assert recall_by_probability(chances, np.array([0, 0]), (1, 2, 3, 4)) == {"1": 0.0, "2": 0.5, "3": 0.5, "4": 1.0}


def test_wrong_input_is_refused() -> None:
    zero = np.zeros(3, dtype=np.int64)
    for call, message in [
        (lambda: classification_figures(zero[:0], zero[:0], 2), "truth is empty"),
        (lambda: classification_figures(zero, zero[:2], 2), r"predicted has shape \(2,\)"),
        (lambda: classification_figures(zero + 2, zero, 2), "truth holds 2 to 2, expected numbers of 2 classes"),
        (lambda: recall_by_probability(np.ones((3, 2)), zero - 1), "truth holds -1"),
    ]:
        with pytest.raises(InputError, match=message):
            call()
