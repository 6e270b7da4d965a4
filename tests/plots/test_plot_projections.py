"""Projections against scikit-learn and plain properties; density levels against the mass they must hold."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from nearfar.plots import project_pca, project_tsne, projections, sample_rows
from nearfar.plots.density import class_density


@pytest.mark.parametrize("shape", [(50, 6), (6, 50), (20, 20)])
def test_pca_agrees_with_scikit_learn(shape: tuple[int, int]) -> None:
    z = np.random.default_rng(0).normal(size=shape) * np.linspace(1, 3, shape[1]) + 5
    points, shares = project_pca(z, 3)
    reference = PCA(3, svd_solver="full").fit(z)
    np.testing.assert_allclose(np.abs(points), np.abs(reference.transform(z)), atol=1e-8)
    np.testing.assert_allclose(shares, reference.explained_variance_ratio_, atol=1e-10)


def test_pca_of_few_directions_is_padded_with_zeros() -> None:
    points, shares = project_pca([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]], 3)
    assert (points == 0).all()
    assert (shares == 0).all()
    points, shares = project_pca([[0.0], [2.0]], 2)
    np.testing.assert_allclose(points, [[-1, 0], [1, 0]])
    np.testing.assert_allclose(shares, [1, 0])


def test_pca_signs_do_not_depend_on_the_order_of_rows() -> None:
    z = np.random.default_rng(1).normal(size=(40, 5))
    points, _ = project_pca(z, 2)
    np.testing.assert_allclose(project_pca(z[::-1], 2)[0][::-1], points, atol=1e-10)


def blobs(count: int = 90, width: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 3
    return rng.normal(size=(3, width))[labels] * 8 + rng.normal(size=(count, width)), labels


FITS = [projections._sklearn_tsne] + ([projections._opentsne] if importlib.util.find_spec("openTSNE") else [])


@pytest.mark.parametrize("fit", FITS)
def test_tsne_keeps_blobs_together(fit: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projections, "_opentsne", fit)
    monkeypatch.setattr(projections, "_sklearn_tsne", fit)
    z, labels = blobs()
    points = project_tsne(z, seed=3)
    assert points.shape == (90, 2)
    np.testing.assert_allclose(points.mean(axis=0), 0, atol=1e-4)
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (labels[distances.argmin(axis=1)] == labels).all()
    assert (project_tsne(z, seed=3, threads=2) == points).all()


@pytest.mark.parametrize("fit", FITS)
def test_tsne_of_coinciding_and_of_very_few_points(fit: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projections, "_opentsne", fit)
    monkeypatch.setattr(projections, "_sklearn_tsne", fit)
    for z in (np.ones((12, 4)), np.random.default_rng(0).normal(size=(5, 80)), np.arange(6.0)[:, None]):
        assert np.isfinite(project_tsne(z)).all()


def test_tsne_of_many_points_keeps_neighbours_and_does_not_depend_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projections, "_FFT_FROM", 300)  # as for thousands of points
    z, labels = blobs(600)
    points = project_tsne(z, seed=3)
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (labels[distances.argmin(axis=1)] == labels).all()
    assert (project_tsne(z, seed=3, threads=2) == points).all()
    near = np.linalg.norm(z[:, None] - z[None], axis=2)
    np.fill_diagonal(near, np.inf)
    kept = [len(set(a) & set(b)) for a, b in zip(distances.argsort()[:, :20], near.argsort()[:, :20], strict=True)]
    assert np.mean(kept) > 2 * 20 * 20 / 200  # twice what chance gives within a blob of 200


def test_tsne_without_opentsne_is_scikit_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(projections.importlib.util, "find_spec", lambda name: asked.append(name))
    z, _ = blobs(30)
    expected = projections._sklearn_tsne
    called = []
    monkeypatch.setattr(projections, "_sklearn_tsne", lambda *given: called.append(given) or expected(*given))
    project_tsne(z)
    assert asked == ["openTSNE"]
    assert called[0][3] == pytest.approx(29 / 3)  # fewer than 91 points: a lower perplexity


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=200), st.integers(1, 60), st.integers(0, 3))
def test_samples_keep_the_proportions(labels: list[int], limit: int, seed: int) -> None:
    numbers = np.array(labels)
    rows = sample_rows(numbers, limit, seed)
    assert len(rows) == min(limit, len(numbers))
    assert (np.diff(rows) > 0).all()
    assert (rows == sample_rows(numbers, limit, seed)).all()
    if limit < len(numbers):
        shares = np.bincount(numbers, minlength=6) * limit / len(numbers)
        assert (np.abs(np.bincount(numbers[rows], minlength=6) - shares) < 1).all()


def test_the_largest_remainders_get_the_rows_left_over() -> None:
    labels = np.repeat([0, 1, 2], [7, 2, 1])  # fair shares of 4 rows: 2.8, 0.8, 0.4
    assert np.bincount(labels[sample_rows(labels, 4)], minlength=3).tolist() == [3, 1, 0]


def test_density_levels_hold_the_mass_they_promise() -> None:
    points = np.random.default_rng(0).normal(size=(20_000, 2)) * (1.0, 3.0)
    density = class_density(points, np.array([-6.0, -18.0]), np.array([6.0, 18.0]))
    assert density is not None
    across, up, heights, (wide, tight) = density
    assert heights.shape == (len(up), len(across))
    assert heights.sum() == pytest.approx(1, abs=1e-3)
    # A Gaussian's densest share s lies within radius sqrt(-2 ln(1 - s)) after scaling.
    radius = np.hypot(points[:, 0], points[:, 1] / 3)
    column = np.clip(np.searchsorted(across, points[:, 0]), 0, len(across) - 1)
    row = np.clip(np.searchsorted(up, points[:, 1]), 0, len(up) - 1)
    for level, share in ((wide, 0.8), (tight, 0.5)):
        inside = heights[row, column] >= level
        assert inside.mean() == pytest.approx(share, abs=0.05)
        assert np.mean(inside == (radius < np.sqrt(-2 * np.log(1 - share)))) > 0.95


def test_density_of_nothing_to_draw_is_none() -> None:
    low, high = np.zeros(2), np.ones(2)
    assert class_density(np.full((9, 2), 7.0), low, high) is None
    with pytest.raises(ValueError, match="lower ends below"):
        class_density(np.ones((9, 2)), low, low)
    one_spot = class_density(np.full((9, 2), 0.5), low, high)
    assert one_spot is None or one_spot.levels[0] < one_spot.levels[1]
