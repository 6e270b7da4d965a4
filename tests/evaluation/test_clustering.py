from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from nearfar.errors import InputError
from nearfar.evaluation.clustering import (
    adjusted_rand_index,
    class_sums,
    clustering_figures,
    contingency,
    davies_bouldin,
    k_means,
    normalized_mutual_information,
    rand_index,
    silhouette,
)


@pytest.mark.parametrize("seed", range(6))
def test_agreement_of_two_labellings_as_scikit_learn(seed: int) -> None:
    generator = np.random.default_rng(seed)
    a = generator.integers(1 + seed, size=50)
    b = np.where(generator.random(50) < 0.5, a, generator.integers(4, size=50))
    table = contingency(a, b)
    assert rand_index(table) == pytest.approx(metrics.rand_score(a, b))
    assert adjusted_rand_index(table) == pytest.approx(metrics.adjusted_rand_score(a, b))
    assert normalized_mutual_information(table) == pytest.approx(metrics.normalized_mutual_info_score(a, b), abs=1e-12)


def test_rand_index_counts_pairs() -> None:
    a, b = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 0])
    agree = [(a[i] == a[j]) == (b[i] == b[j]) for i in range(5) for j in range(i)]
    assert rand_index(contingency(a, b)) == pytest.approx(np.mean(agree))
    assert rand_index(contingency(a[:1], b[:1])) is None
    assert adjusted_rand_index(contingency(a[:1], b[:1])) is None


def slow_davies_bouldin(z: np.ndarray, labels: np.ndarray) -> float:
    """As system B states it: S(i, j) = (W_i + W_j) / B_ij, the mean over i of the largest."""
    centres = [z[labels == c].mean(0) for c in np.unique(labels)]
    within = [
        np.mean([np.linalg.norm(x - centre) for x in z[labels == c]])
        for c, centre in zip(np.unique(labels), centres, strict=True)
    ]
    worst = [
        max((within[i] + within[j]) / np.linalg.norm(centres[i] - centres[j]) for j in range(len(centres)) if j != i)
        for i in range(len(centres))
    ]
    return float(np.mean(worst))


def test_davies_bouldin_and_silhouette_as_the_loop_and_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    labels = np.array([0] * 20 + [3] * 15 + [7] * 14 + [9])
    z = generator.normal(size=(50, 3)) + labels[:, None]
    assert davies_bouldin(z, labels) == pytest.approx(slow_davies_bouldin(z, labels))
    assert davies_bouldin(z, labels) == pytest.approx(metrics.davies_bouldin_score(z, labels))
    assert silhouette(z, labels) == pytest.approx(metrics.silhouette_score(z, labels))


def test_what_has_no_value_is_none() -> None:
    z = np.array([[0.0, 0.0], [2.0, 0.0], [1.0, 1.0], [1.0, -1.0]])
    assert davies_bouldin(z, np.array([0, 0, 1, 1])) is None  # one centroid for both classes
    assert davies_bouldin(z, np.zeros(4, dtype=int)) is None
    assert davies_bouldin(np.ones((4, 2)), np.array([0, 0, 1, 1])) == 0.0  # nothing within, nothing between
    assert silhouette(z, np.zeros(4, dtype=int)) is None
    assert silhouette(z, np.arange(4)) is None


def test_clear_clusters_are_found_and_scored() -> None:
    generator = np.random.default_rng(1)
    labels = generator.integers(4, size=200)
    z = 50.0 * np.eye(4, 5)[labels] + generator.normal(size=(200, 5))
    figures = clustering_figures(z, labels, seed=3)
    assert figures["rand"] == figures["adjusted_rand"] == figures["nmi"] == 1.0
    assert figures["clusters"] == 4
    assert figures["davies_bouldin"] == pytest.approx(metrics.davies_bouldin_score(z, labels), rel=1e-5)
    assert figures["davies_bouldin_clusters"] == pytest.approx(figures["davies_bouldin"])
    assert figures["silhouette"] == pytest.approx(metrics.silhouette_score(z, labels), rel=1e-5)
    assert figures == clustering_figures(z, labels, seed=3)
    assert clustering_figures(z, labels, clusters=2)["rand"] != 1.0


def test_a_collapsed_embedding_clusters_without_a_warning() -> None:
    figures = clustering_figures(np.ones((20, 3)), np.arange(20) % 4)
    assert figures["adjusted_rand"] == 0.0
    assert k_means(np.ones((5, 2)), 3).tolist() == [0] * 5


def test_class_sums_are_the_sums_of_each_class() -> None:
    generator = np.random.default_rng(2)
    values, codes = generator.normal(size=(30, 4)).astype(np.float32), generator.integers(5, size=30)
    expected = np.stack([values[codes == c].astype(np.float64).sum(0) for c in range(6)])
    np.testing.assert_allclose(class_sums(values, codes, 6), expected, rtol=1e-12)


def test_wrong_input_is_refused() -> None:
    for arguments, message in [
        ({"labels": np.arange(3)}, "labels has shape"),
        ({"labels": np.arange(4), "clusters": 5}, "clusters is 5, expected 1 to 4"),
        ({"labels": np.arange(4), "clusters": 0}, "clusters is 0"),
    ]:
        with pytest.raises(InputError, match=message):
            clustering_figures(np.ones((4, 2)), **arguments)
