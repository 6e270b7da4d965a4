from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from nearfar.errors import InputError
from nearfar.evaluation.verification import (
    accuracy_at,
    auroc,
    best_threshold,
    draw_pairs,
    equal_error_rate,
    pair_distances,
    roc,
    verification_figures,
)


def noisy(seed: int, count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    same = generator.random(count) < 0.4
    return np.round(generator.gamma(4.0, 0.2, size=count) + 0.4 * ~same, 2), same


@settings(max_examples=60, deadline=None)
@given(labels=st.lists(st.integers(0, 5), min_size=1, max_size=40), seed=st.integers(0, 1000))
def test_every_row_gets_one_partner_of_each_kind_where_there_is_one(labels: list[int], seed: int) -> None:
    truth = np.array(labels)
    pairs = draw_pairs(truth, seed=seed)
    np.testing.assert_array_equal(truth[pairs.a] == truth[pairs.b], pairs.same)
    assert (pairs.a != pairs.b).all()
    counts = np.bincount(truth)[truth]
    np.testing.assert_array_equal(pairs.a[pairs.same], np.flatnonzero(counts > 1))
    np.testing.assert_array_equal(pairs.a[~pairs.same], np.flatnonzero(counts < len(truth)))
    for one, other in zip(pairs, draw_pairs(truth, seed=seed), strict=True):
        np.testing.assert_array_equal(one, other)


def test_partners_are_drawn_uniformly() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    drawn = np.zeros((8, 8))
    for seed in range(3000):
        pairs = draw_pairs(labels, seed=seed)
        drawn[pairs.a, pairs.b] += 1 / 3000
    same = labels[:, None] == labels
    np.fill_diagonal(same, False)
    expected = same / same.sum(1, keepdims=True) + (labels[:, None] != labels) / (labels[:, None] != labels).sum(1)[:, None]
    np.testing.assert_allclose(drawn, expected, atol=0.05)


def test_distances_of_pairs() -> None:
    generator = np.random.default_rng(0)
    z = generator.normal(size=(20, 3)).astype(np.float32)
    pairs = draw_pairs(generator.integers(3, size=20))
    expected = [np.linalg.norm(z[a].astype(float) - z[b]) for a, b in zip(pairs.a, pairs.b, strict=True)]
    np.testing.assert_allclose(pair_distances(z, pairs, metric="euclidean"), expected)
    unit = z.astype(np.float64) / np.linalg.norm(z.astype(np.float64), axis=1)[:, None]
    cosine = (unit[pairs.a] * unit[pairs.b]).sum(1)
    np.testing.assert_allclose(pair_distances(z, pairs), np.sqrt(2 - 2 * cosine), atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_curve_and_area_as_scikit_learn_ties_included(seed: int) -> None:
    distances, same = noisy(seed)
    false_rate, true_rate = roc(distances, same)
    expected = metrics.roc_curve(same, -distances, drop_intermediate=False)
    np.testing.assert_allclose(false_rate, expected[0])
    np.testing.assert_allclose(true_rate, expected[1])
    assert auroc(distances, same) == pytest.approx(metrics.roc_auc_score(same, -distances))
    rate = equal_error_rate(false_rate, true_rate)
    assert rate == pytest.approx(1.0 - np.interp(rate, false_rate, true_rate))


def test_best_threshold_is_the_best_of_all() -> None:
    for seed in range(20):
        distances, same = noisy(seed, 5 + 3 * seed)
        candidates = np.concatenate([np.unique(distances), [np.inf]])
        best = max(accuracy_at(distances, same, candidate) for candidate in candidates)
        threshold = best_threshold(distances, same)
        assert np.isfinite(threshold)
        assert accuracy_at(distances, same, threshold) == pytest.approx(best)
    assert best_threshold(np.array([1.0, 3.0]), np.array([True, False])) == 2.0
    assert accuracy_at(np.ones(3), np.ones(3, dtype=bool), best_threshold(np.ones(3), np.ones(3, dtype=bool))) == 1.0
    assert accuracy_at(np.ones(3), np.zeros(3, dtype=bool), best_threshold(np.ones(3), np.zeros(3, dtype=bool))) == 1.0
    close = np.array([1.0, np.nextafter(1.0, 2.0)])
    assert accuracy_at(close, np.array([True, False]), best_threshold(close, np.array([True, False]))) == 1.0


def test_the_threshold_is_the_given_one_or_comes_from_validation_and_never_from_the_judged_pairs() -> None:
    distances, same = noisy(0)
    held = noisy(1)
    plain = verification_figures(distances, same)
    assert (plain["threshold"], plain["threshold_from"], plain["threshold_best"]) == (0.5, "fixed", None)
    # System C's rule: same when 1 - d > 0.5.
    assert plain["accuracy"] == pytest.approx(((1.0 - distances > 0.5) == same).mean())
    chosen = verification_figures(distances, same, validation=held)
    assert chosen["threshold"] == chosen["threshold_best"] == best_threshold(*held)
    assert chosen["threshold_from"] == "validation"
    both = verification_figures(distances, same, threshold=0.7, validation=held)
    assert (both["threshold"], both["threshold_from"]) == (0.7, "given")
    assert both["accuracy"] == accuracy_at(distances, same, 0.7)
    assert both["accuracy_best"] == chosen["accuracy"]
    assert len(both["roc"]["true_positive_rate"]) <= 200
    assert both["roc"]["false_positive_rate"][0] == 0.0
    assert both["roc"]["true_positive_rate"][-1] == 1.0


def test_pairs_of_one_kind_have_no_curve() -> None:
    figures = verification_figures(np.array([0.1, 0.9]), np.array([True, True]))
    assert figures["auroc"] is None
    assert figures["eer"] is None
    assert figures["roc"]["true_positive_rate"] == []
    assert figures["accuracy"] == 0.5


def test_perfect_and_reversed_pairs() -> None:
    same = np.array([True, True, False, False])
    for distances, area, rate in (([0.1, 0.2, 0.8, 0.9], 1.0, 0.0), ([0.8, 0.9, 0.1, 0.2], 0.0, 1.0)):
        figures = verification_figures(np.array(distances), same)
        assert (figures["auroc"], figures["eer"]) == (area, rate)


def test_wrong_input_is_refused() -> None:
    with pytest.raises(InputError, match="no pair to verify"):
        verification_figures(np.empty(0), np.empty(0, dtype=bool))
    with pytest.raises(InputError, match="distances has 2 entries, same has 1"):
        best_threshold(np.ones(2), np.ones(1, dtype=bool))
