"""Our graph is the exact one, openTSNE is given just that, and positions follow from the seed alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from nearfar.explore import layout
from nearfar.explore.layout import affinities, into_square, lay_out, neighbor_graph
from nearfar.search.vectors import Metric


def blobs(count: int = 90, groups: int = 3) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    random = np.random.default_rng(0)
    labels = np.arange(count) % groups
    centres = 4 * random.normal(size=(groups, 8))
    return (centres[labels] + random.normal(size=(count, 8))).astype(np.float32), labels


def test_the_graph_is_that_of_brute_force() -> None:
    z, _ = blobs()
    metrics: tuple[Metric, ...] = ("cosine", "euclidean", "dot")
    for metric in metrics:
        wide = z.astype(np.float64)
        if metric == "cosine":
            wide /= np.linalg.norm(wide, axis=1, keepdims=True)
        apart = np.linalg.norm(wide[:, None] - wide[None], axis=2)
        np.fill_diagonal(apart, np.inf)
        rows, distances = neighbor_graph(z, metric, 7)
        np.testing.assert_array_equal(rows, np.argsort(apart, axis=1)[:, :7])
        np.testing.assert_allclose(distances, np.sort(apart, axis=1)[:, :7], atol=2e-3)


def slow_affinities(
    rows: npt.NDArray[np.int64], distances: npt.NDArray[np.float64], perplexity: float
) -> npt.NDArray[np.float64]:
    """Each row's Gaussian by bisection to the wanted perplexity, then made symmetric (van der Maaten and Hinton 2008)."""
    matrix = np.zeros((len(rows), len(rows)))
    for row, (near, away) in enumerate(zip(rows, distances, strict=True)):
        low, high = 1e-9, 1e9
        for _ in range(200):
            beta = (low * high) ** 0.5
            weights = np.exp(-beta * (away**2 - away.min() ** 2))
            shares = weights / weights.sum()
            entropy = -(shares * np.log(np.maximum(shares, 1e-300))).sum()
            low, high = (beta, high) if entropy > np.log(perplexity) else (low, beta)
        matrix[row, near] = shares
    matrix = (matrix + matrix.T) / 2
    return matrix / matrix.sum()


def test_affinities_are_those_of_our_neighbours() -> None:
    z, _ = blobs()
    rows, distances = neighbor_graph(z, "cosine", 12)
    found = affinities(rows, distances, 4.0, 1).P.toarray()
    expected = slow_affinities(rows, distances, 4.0)
    assert ((found > 0) <= (expected > 0)).all()
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_positions_follow_from_the_seed_alone_and_keep_groups_together() -> None:
    z, labels = blobs()
    told: list[str] = []
    first, method = lay_out(z, "cosine", seed=3, threads=1, note=told.append)
    again, _ = lay_out(z, "cosine", seed=3, threads=2, note=told.append)
    assert method == "t-SNE"
    assert any("150 of 150" in line for line in told)
    np.testing.assert_array_equal(first, again)
    assert first.dtype == np.float32
    assert first.min() == 0.0
    assert first.max() == 1.0
    apart = np.linalg.norm(first[:, None] - first[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    assert (labels[apart.argmin(axis=1)] == labels).all()


def test_by_interpolation_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "_FFT_FROM", 10)
    monkeypatch.setattr(layout, "_LATE", 30)
    z, labels = blobs()
    first, _ = lay_out(z, "euclidean", seed=0, threads=1, note=lambda _: None)
    again, _ = lay_out(z, "euclidean", seed=0, threads=2, note=lambda _: None)
    np.testing.assert_array_equal(first, again)
    apart = np.linalg.norm(first[:, None] - first[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    assert (labels[apart.argmin(axis=1)] == labels).all()


def test_without_opentsne_it_is_pca(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "can_tsne", lambda: False)
    z, _ = blobs()
    found, method = lay_out(z, "euclidean", seed=0, threads=1, note=lambda _: None)
    assert method == "PCA"
    centred = z.astype(np.float64) - z.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    expected = into_square(centred @ axes[:2].T)
    for axis in (0, 1):
        assert min(np.abs(found[:, axis] - one).max() for one in (expected[:, axis], 1 - expected[:, axis])) < 1e-4


def test_of_too_many_points_the_rest_lie_among_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "MOST", 60)
    z, labels = blobs()
    found, _ = lay_out(z, "cosine", seed=0, threads=1, note=lambda _: None)
    apart = np.linalg.norm(found[:, None] - found[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    assert (labels[apart.argmin(axis=1)] == labels).all()


@pytest.mark.parametrize("count", [2, 5, 12, 13])
def test_a_handful_of_points(count: int) -> None:
    z, _ = blobs(count)
    found, method = lay_out(z, "cosine", seed=0, threads=1, note=lambda _: None)
    assert np.isfinite(found).all()
    assert method == ("PCA" if count < 12 else "t-SNE")


def test_the_square_keeps_the_shape() -> None:
    found = into_square([[0, 0], [4, 0], [4, 2]])
    np.testing.assert_allclose(found, [[0, 0.25], [1, 0.25], [1, 0.75]])
    assert into_square([[3, 3], [3, 3]]).tolist() == [[0.5, 0.5]] * 2
