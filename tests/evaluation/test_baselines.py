"""Baselines: what plain search among pixels and among principal components finds, by scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from samples import shapes
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from nearfar.data import ImageSet
from nearfar.errors import InputError
from nearfar.evaluation import baselines
from nearfar.evaluation.baselines import (
    Terms,
    Untrained,
    asked_rows,
    joined,
    measure_baselines,
    principal_axes,
    project,
    without_zeros,
)
from nearfar.evaluation.pixels import flat_pixels, reduced_size
from nearfar.evaluation.verification import best_threshold, draw_pairs, pair_distances


def terms(metric: str = "cosine", bootstrap: int = 0) -> Terms:
    more: dict[str, Any] = {"metric": metric}
    return Terms(names=["a", "b", "c"], k=5, vote="majority", seed=0, bootstrap=bootstrap, **more)


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
@pytest.mark.parametrize("same", [False, True])
def test_baselines_are_what_plain_search_among_pixels_finds(metric: str, same: bool) -> None:
    gallery = shapes(60)
    rows = np.arange(0, 60, 2)
    queries = gallery.subset(rows) if same else shapes(40, seed=3)
    known, labels = gallery.require_labels(), queries.require_labels()
    plain = Untrained(gallery, 4)
    sides = plain.embed(gallery), plain.embed(queries)
    exclude = rows if same else None
    tree = measure_baselines(sides[0], known, sides[1], labels, terms=terms(metric, 20), exclude=exclude)
    x, q = (np.asarray(each.images).reshape(len(each), -1).astype(np.float64) / 255 for each in (gallery, queries))
    fitted = PCA(4, svd_solver="full").fit(x)
    by = "cosine" if metric == "dot" else metric
    for name, (there, asked) in {"pixels": (x, q), "pca": (fitted.transform(x), fitted.transform(q))}.items():
        figures = tree[name]
        assert (figures["dimensions"], figures["metric"], figures["queries"]) == (there.shape[1], by, len(labels))
        searcher = NearestNeighbors(n_neighbors=len(there), metric=by, algorithm="brute").fit(there)
        order = searcher.kneighbors(asked, return_distance=False)
        if same:
            order = np.array([[at for at in row if at != own] for own, row in zip(rows, order, strict=True)])
        right = known[order] == labels[:, None]
        assert figures["classification"]["one_nn_accuracy"] == pytest.approx(right[:, 0].mean())
        for k in (1, 5, 10):
            assert figures["retrieval"][f"recall@{k}"] == pytest.approx(right[:, :k].any(axis=1).mean())
        precision = right.cumsum(axis=1) / np.arange(1, right.shape[1] + 1)
        counts = right.sum(axis=1)
        average = [(p * r)[:n].sum() / n for p, r, n in zip(precision, right, counts, strict=True)]
        assert figures["retrieval"]["map@r"] == pytest.approx(np.mean(average))
        low, high = figures["confidence"]["retrieval"]["map@r"]
        assert low < figures["retrieval"]["map@r"] < high
        unit = asked / np.linalg.norm(asked, axis=1, keepdims=True) if by == "cosine" else asked
        pairs = draw_pairs(labels, seed=0)
        apart = np.linalg.norm(unit[pairs.a] - unit[pairs.b], axis=1)
        assert figures["verification"]["auroc"] == pytest.approx(roc_auc_score(pairs.same, -apart), abs=1e-4)
        votes = np.array([[(known[row[:5]] == code).sum() for code in range(3)] for row in order])
        clear = (votes == votes.max(axis=1, keepdims=True)).sum(axis=1) == 1
        least = (clear & (votes.argmax(axis=1) == labels)).mean()
        assert least <= figures["classification"]["accuracy"] <= least + (~clear).mean()
        assert 0 <= figures["clustering"]["nmi"] <= 1
        assert "per_class" not in figures["classification"]
        assert "per_class" not in figures["retrieval"]


def test_the_threshold_of_pairs_is_the_best_on_other_images() -> None:
    gallery, queries, held = shapes(60), shapes(40, seed=3), shapes(50, seed=4)
    plain = Untrained(gallery, 4)
    sides = [plain.embed(each) for each in (gallery, queries, held)]
    labels = [each.require_labels() for each in (gallery, queries, held)]
    tree = measure_baselines(sides[0], labels[0], sides[1], labels[1], terms=terms("euclidean"), held=(sides[2], labels[2]))
    for name in ("pixels", "pca"):
        pairs, asked = draw_pairs(labels[2], seed=0), draw_pairs(labels[1], seed=0)
        threshold = best_threshold(pair_distances(sides[2][name], pairs, metric="euclidean"), pairs.same)
        right = (pair_distances(sides[1][name], asked, metric="euclidean") < threshold) == asked.same
        assert tree[name]["verification"]["threshold"] == threshold
        assert tree[name]["verification"]["accuracy"] == right.mean()


def test_the_components_are_those_of_the_images_trained_on() -> None:
    trained, other = shapes(60), shapes(40, seed=3)
    plain = Untrained(trained, 4)
    x, y = (np.asarray(each.images).reshape(len(each), -1).astype(np.float64) / 255 for each in (trained, other))
    expected = PCA(4, svd_solver="full").fit(x).transform(y)
    assert np.abs(plain.embed(other)["pca"]) == pytest.approx(np.abs(expected), abs=1e-4)  # axes have no sign


def test_large_sets_are_asked_about_in_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "MOST_QUERIES", 10)
    labels = np.array([0] * 80 + [1] * 20)
    rows = asked_rows(labels, 3)
    assert np.bincount(labels[rows]).tolist() == [8, 2]
    assert (np.diff(rows) > 0).all()
    assert asked_rows(labels[:9], 3).tolist() == list(range(9))


def test_two_galleries_are_one_after_the_other() -> None:
    one, other = shapes(6), shapes(5, seed=1)
    plain = Untrained(one, 2)
    both = joined(plain.embed(one), plain.embed(other))
    assert both["pixels"].shape == (11, 144)
    assert np.array_equal(both["pca"][6:], plain.embed(other)["pca"])


def test_large_images_are_averaged_over_squares_of_pixels() -> None:
    assert reduced_size(1, (28, 28), 1024) == (28, 28)
    assert reduced_size(3, (64, 64), 1024) == (16, 16)
    assert reduced_size(3, (32, 32), 1024) == (16, 16)
    for channels, size in ((1, (33, 32)), (3, (224, 100)), (3, (1, 5000))):
        height, width = reduced_size(channels, size, 1024)
        assert channels * height * width <= 1024
    large = shapes(3, size=64, channels=3)
    squares = np.asarray(large.images).astype(np.float64).reshape(3, 3, 16, 4, 16, 4).mean(axis=(3, 5)) / 255
    assert flat_pixels(large, (16, 16)) == pytest.approx(squares.reshape(3, -1), abs=1e-6)


def test_black_images_have_baselines_too() -> None:
    pixels = np.array(shapes(30).images)
    pixels[:4] = 0
    black = ImageSet(images=pixels, labels=shapes(30).labels, classes=("a", "b", "c"))
    x = Untrained(black, 3).embed(black)
    tree = measure_baselines(x, black.require_labels(), x, black.require_labels(), terms=terms())
    assert 0 < tree["pixels"]["classification"]["accuracy"] <= 1
    lifted = without_zeros(np.array([[0, 0], [0, 1]], dtype=np.float32))
    assert lifted == pytest.approx(np.array([[1 / 255, 1 / 255], [0, 1]]))


def test_projection_loses_as_little_as_it_can() -> None:
    x = np.random.default_rng(0).normal(size=(50, 20)).astype(np.float32) * np.linspace(1, 3, 20, dtype=np.float32)
    mean, axes = principal_axes(x, 5)
    assert axes.T @ axes == pytest.approx(np.eye(5), abs=1e-5)
    back = project(x, mean, axes) @ axes.T + mean
    best = PCA(5, svd_solver="full").fit(x)
    lost = ((x - best.inverse_transform(best.transform(x))) ** 2).sum()
    assert ((x - back) ** 2).sum() == pytest.approx(lost, rel=1e-4)
    assert principal_axes(x, 99)[1].shape == (20, 20)


def test_galleries_that_would_take_long_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "MOST_GALLERY", 10)
    with pytest.raises(InputError, match="12 images"):
        Untrained(shapes(12), 2)
    x = {"pixels": np.ones((12, 2), dtype=np.float32), "pca": np.ones((12, 2), dtype=np.float32)}
    with pytest.raises(InputError, match="12 images"):
        measure_baselines(x, np.zeros(12, dtype=np.int64), x, np.zeros(12, dtype=np.int64), terms=terms())
