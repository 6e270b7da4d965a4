"""One suite over all backends: whatever finds the neighbours, what is returned is scored and ordered as exact search does."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nearfar.errors import InputError
from nearfar.search import NeighborIndex, approximate, nearest
from nearfar.search.engines import ENGINES

METRICS = ["cosine", "dot", "euclidean"]
APPROXIMATE = [*ENGINES]
BACKENDS = ["exact", *APPROXIMATE]
RECALL = {"exact": 1.0, "hnsw": 0.99, "annoy": 0.9, "milvus": 0.99}
OF_PRODUCTS = RECALL | {"annoy": 0.7}  # ten trees find fewer of the greatest products


def clustered(rows: int, seed: int, dimensions: int = 12) -> np.ndarray:
    """Points round 40 centres: what embeddings look like."""
    centres = np.random.default_rng(7).normal(size=(40, dimensions))
    rng = np.random.default_rng(seed)
    return (centres[rng.integers(0, 40, rows)] + 0.3 * rng.normal(size=(rows, dimensions))).astype(np.float32)


Z, Q = clustered(1500, 0), clustered(40, 1)
MORE = clustered(60, 2)
LABELS = np.random.default_rng(3).choice(["käse", 'a "b"', "c\\d"], 1500, p=[0.5, 0.4, 0.1])
IDS = np.random.default_rng(4).permutation(9000)[:1500] - 100


def fresh(backend: str, metric: str = "cosine") -> NeighborIndex:
    return NeighborIndex(metric, backend).fit(Z, LABELS, ids=IDS)


@cache
def standing(backend: str, metric: str = "cosine") -> NeighborIndex:
    """An index that no test changes."""
    return fresh(backend, metric)


def slow(queries: np.ndarray, gallery: np.ndarray, metric: str) -> np.ndarray:
    """Scores [N, M] in float64, straight from the definition."""
    q, g = queries.astype(np.float64), gallery.astype(np.float64)
    if metric == "euclidean":
        return -np.sqrt(((q[:, None] - g[None]) ** 2).sum(-1))
    if metric == "cosine":
        q, g = q / np.linalg.norm(q, axis=1, keepdims=True), g / np.linalg.norm(g, axis=1, keepdims=True)
    return (q[:, None] * g[None]).sum(-1)


def recall(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.mean([len(set(one) & set(other)) / len(other) for one, other in zip(found, expected, strict=True)]))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_neighbours_are_those_of_a_slow_loop(backend: str, metric: str) -> None:
    index = standing(backend, metric)
    scores, ids = index.search(Q, 10)
    table = slow(Q, Z, metric)
    expected = np.argsort(-table, axis=1, kind="stable")[:, :10]
    assert recall(ids, IDS[expected]) >= (OF_PRODUCTS if metric == "dot" else RECALL)[backend]
    rows = index.search_rows(Q, 10)[1]
    np.testing.assert_array_equal(IDS[rows], ids)
    sign = -1.0 if metric == "euclidean" else 1.0
    np.testing.assert_allclose(scores, sign * np.take_along_axis(table, rows, axis=1), atol=3e-6)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("backend", APPROXIMATE)
def test_scores_and_order_are_those_of_exact_search_to_the_bit(backend: str, metric: str) -> None:
    exact = standing("exact", metric)
    scores, rows = standing(backend, metric).search_rows(Q, 10)
    every, where = exact.search_rows(Q, 1500)
    for q in range(len(Q)):
        places = {row: at for at, row in enumerate(where[q])}
        order = [places[row] for row in rows[q]]
        assert order == sorted(order)
        np.testing.assert_array_equal(scores[q], every[q, order])


@pytest.mark.parametrize("backend", APPROXIMATE)
def test_one_query_and_many_give_the_same_kind_of_result(backend: str) -> None:
    index = standing(backend)
    scores, ids = index.search(Q[:1], 3)
    assert scores.shape == ids.shape == (1, 3)
    assert scores.dtype == np.float32
    assert ids.dtype == np.int64
    np.testing.assert_array_equal(ids, index.search(Q, 3)[1][:1])
    distances, rows = index.kneighbors(Q[:2], 4)
    np.testing.assert_array_equal(distances, np.maximum(np.float32(1) - index.search_rows(Q[:2], 4)[0], 0))
    assert not (index.kneighbors(None, 3, return_distance=False) == np.arange(1500)[:, None]).any()
    assert rows.shape == (2, 4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_excluded_id_is_never_found(backend: str) -> None:
    index = standing(backend)
    scores, ids = index.search(Z[:50], 5, exclude=IDS[:50])
    assert not (ids == IDS[:50, None]).any()
    assert recall(ids, standing("exact").search(Z[:50], 5, exclude=IDS[:50])[1]) >= RECALL[backend]
    assert (np.diff(scores, axis=1) <= 0).all()


@pytest.mark.parametrize("few", [0, 20_000])
@pytest.mark.parametrize("labels", ["käse", ["c\\d"], ['a "b"', "c\\d"]])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_filter_finds_only_vectors_of_its_labels(
    backend: str, labels: Any, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(approximate, "_FEW", few)  # 0: the engine's own way, which is that of large galleries
    rows = np.flatnonzero(np.isin(LABELS, labels))
    scores, ids = standing(backend).search(Q, 5, labels=labels)
    assert set(ids.ravel().tolist()) <= set(IDS[rows].tolist())
    expected, where = nearest(Q, Z[rows], 5)
    assert recall(ids, IDS[rows[where]]) >= RECALL[backend]
    assert (scores <= expected + 1e-7).all()
    if few:
        assert recall(ids, IDS[rows[where]]) == 1.0
    own = standing(backend).search(Z[rows[:20]], 5, labels=labels, exclude=IDS[rows[:20]])[1]
    assert not (own == IDS[rows[:20], None]).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_filter_finds_all_there_are_even_if_none_is_near(backend: str) -> None:
    """Class 1 is a cluster far from all queries, so that an engine asked for near ones proposes none of it."""
    near, far = clustered(900, 5), clustered(300, 6) + 40.0
    labels = np.repeat([0, 1], [900, 300])
    index = NeighborIndex("euclidean", backend).fit(np.concatenate([near, far]), labels)
    expected = nearest(Q, far, 7, metric="euclidean")
    scores, ids = index.search(Q, 7, labels=1)
    assert recall(ids, expected[1] + 900) >= RECALL[backend]
    assert (labels[ids] == 1).all()
    assert index.search(Q[:2], 300, labels=[1])[1].shape == (2, 300)
    assert set(index.search(Q[:1], 300, labels=[1])[1][0].tolist()) == set(range(900, 1200))
    assert (scores >= expected[0] - 1e-5).all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_added_is_found_and_what_is_removed_is_not(backend: str, metric: str) -> None:
    index = fresh(backend, metric)
    twins = (1.5 * Q[:10]).astype(np.float32) if metric == "dot" else Q[:10]
    index.add(np.concatenate([twins, MORE]), np.repeat("käse", 70), ids=np.arange(20_000, 20_070))
    assert len(index) == 1570
    scores, ids = index.search(Q[:10], 3)
    if metric != "dot":  # the greatest product need not be one's own
        np.testing.assert_array_equal(ids[:, 0], np.arange(20_000, 20_010))
    np.testing.assert_array_equal(index.get([20_003, 20_000]), NeighborIndex(metric).fit(twins).vectors[[3, 0]])
    gone = np.concatenate([index.search(Q[:20], 4)[1].ravel(), [20_009]])
    index.remove(np.unique(gone))
    left = np.flatnonzero(~np.isin(IDS, gone))
    whole = np.concatenate([Z[left], np.concatenate([twins, MORE])[~np.isin(np.arange(20_000, 20_070), gone)]])
    expected_scores, _ = nearest(Q, whole, 10, metric=metric)
    scores, ids = index.search(Q, 10)
    assert not np.isin(ids, gone).any()
    near = scores <= expected_scores[:, -1:] if metric == "euclidean" else scores >= expected_scores[:, -1:]
    assert near.mean() >= (OF_PRODUCTS if metric == "dot" else RECALL)[backend]
    np.testing.assert_array_equal(index.ids[: len(left)], IDS[left])
    # An id that was removed can be given again, and then names the new vector.
    again = int(gone[0])
    index.add(Q[-1:] * 2, ["c\\d"], ids=[again])
    assert again in index.search(Q[-1:] * 2, 2, labels=["c\\d"])[1]
    np.testing.assert_array_equal(index.get(again)[0], NeighborIndex(metric).fit(Q[-1:] * 2).vectors[0])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_was_saved_is_found_again(tmp_path: Path, backend: str, metric: str) -> None:
    index = fresh(backend, metric).add(MORE, np.repeat("käse", 60)).remove(IDS[:30])
    index.save(tmp_path / "index", model_hash="abc")
    loaded = NeighborIndex.load(tmp_path / "index", expect_model_hash="abc", verify=True)
    assert loaded.backend == backend
    assert loaded.built == index.built
    for one, other in zip(index.search(Q, 10), loaded.search(Q, 10), strict=True):
        np.testing.assert_array_equal(one, other)
    # What was loaded goes on as any other.
    loaded.add(MORE[:5] * 2, np.repeat("c\\d", 5)).remove(IDS[40:60])
    loaded.save(tmp_path / "index")
    again = NeighborIndex.load(tmp_path / "index", verify=True)
    assert len(again) == 1500 + 60 - 30 + 5 - 20
    for one, other in zip(loaded.search(Q, 10), again.search(Q, 10), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.isin(again.search(Q, 50)[1], np.concatenate([IDS[:30], IDS[40:60]])).any()


@pytest.mark.parametrize("backend", APPROXIMATE)
def test_many_changes_build_the_engine_anew(backend: str) -> None:
    index = fresh(backend)
    before = index.built
    index.add(clustered(1300, 8), np.repeat("käse", 1300)).remove(IDS[:1100])
    rebuilt = index.built["rows"] != before["rows"]
    assert rebuilt == (not ENGINES[backend].adds or not ENGINES[backend].removes)
    assert ("built anew" in index.built["reason"]) == rebuilt
    expected = NeighborIndex("cosine", "exact").fit(index.vectors, ids=index.ids)
    assert recall(index.search(Q, 10)[1], expected.search(Q, 10)[1]) >= RECALL[backend]


BAD: dict[str, tuple[Callable[[NeighborIndex], Any], str]] = {
    "dimensions": (lambda i: i.search(Q[:, :4]), "z has 12|z has 4 features, but NeighborIndex is expecting 12"),
    "k": (lambda i: i.search(Q, 1501), "k is 1501, expected 1 to 1,500"),
    "k in filter": (lambda i: i.search(Q, 1000, labels="c\\d"), r"k is 1000, expected 1 to 1\d\d, the number of vectors"),
    "NaN": (lambda i: i.search(Q * np.nan), "z row 0 holds NaN"),
    "zeros": (lambda i: i.search(Q * 0), "z row 0 is all zeros"),
    "label": (lambda i: i.search(Q, labels="kase"), "the index has no label 'kase'; did you mean 'käse'"),
    "far label": (lambda i: i.search(Q, labels=["käse", "zzz"]), "the index has no label 'zzz'; known are"),
    "number": (lambda i: i.search(Q, labels=3), r"labels to search are \[3\], expected strings"),
    "no label": (lambda i: i.search(Q, labels=[]), "labels is empty"),
    "get": (lambda i: i.get([IDS[0], 12345]), "ids holds 12345, which is not in the index"),
    "add": (lambda i: i.add(Q * np.nan, np.repeat("käse", 40)), "X row 0 holds NaN"),
    "add zeros": (lambda i: i.add(Q * 0, np.repeat("käse", 40)), "X row 0 is all zeros"),
    "add twice": (lambda i: i.add(Q[:1], ["käse"], ids=IDS[:1]), "is in the index already"),
    "remove": (lambda i: i.remove(12345), "ids holds 12345, which is not in the index"),
    "remove all": (lambda i: i.remove(IDS), "every vector"),
    "empty": (lambda i: NeighborIndex(backend=i.backend).fit(Z[:0]), "X is empty"),
    "option": (lambda i: NeighborIndex(backend="hnsw", options={"eff": 3}).fit(Z), "no option 'eff'; did you mean 'ef'"),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_input_is_one_line_and_changes_nothing(backend: str, bad: str) -> None:
    index = standing(backend)
    before = index.search(Q, 5)
    call, message = BAD[bad]
    with pytest.raises(InputError, match=message) as caught:
        call(index)
    assert "\n" not in str(caught.value)
    for one, other in zip(before, index.search(Q, 5), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gallery_of_few_vectors_is_searched_whole(backend: str) -> None:
    index = NeighborIndex(backend=backend).fit(Z[:3])
    np.testing.assert_array_equal(index.search(Q, 3)[1], nearest(Q, Z[:3], 3)[1])
    assert NeighborIndex(backend=backend).fit(Z[:1]).search(Q[:1], 1)[1].tolist() == [[0]]
    with pytest.raises(InputError, match="no labels to search by"):
        index.search(Q, 1, labels=[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_whole_numbers_as_labels(backend: str) -> None:
    labels = np.arange(1500) % 50 - 3
    index = NeighborIndex(backend=backend).fit(Z, labels)
    found = index.search(Q, 4, labels=np.array([-3, 46]))[1]
    assert np.isin(labels[found], [-3, 46]).all()
    rows = np.flatnonzero(np.isin(labels, [-3, 46]))
    assert recall(found, rows[nearest(Q, Z[rows], 4)[1]]) >= RECALL[backend]
    with pytest.raises(InputError, match="the index has no label 47; it has 50 others, from -3 to 46"):
        index.search(Q, 4, labels=[47])
