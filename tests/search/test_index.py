from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.neighbors import NearestNeighbors
from sklearn.utils.estimator_checks import check_estimator

import nearfar as nf
from nearfar.errors import InputError
from nearfar.search import NeighborIndex, exact, nearest
from nearfar.search.vectors import Metric

Z = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
Q = np.random.default_rng(1).normal(size=(7, 5)).astype(np.float32)

EXPECTED_FAILURES = {
    "check_dtype_object": "values that are no numbers raise InputError, a ValueError; the check wants a TypeError",
}
COSINE_FAILURES = EXPECTED_FAILURES | {
    "check_estimators_dtypes": "rounds its data to rows of zeros, whose cosine is undefined; they are refused",
}


@pytest.mark.filterwarnings("ignore:.*does not inherit from `sklearn.base.BaseEstimator`")
@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_scikit_learn_checks(metric: str) -> None:
    """All pass but those that docs/evaluation.md names, and these for the reason given."""
    results = check_estimator(NeighborIndex(metric=metric), on_fail=None, on_skip=None)
    expected = COSINE_FAILURES if metric == "cosine" else EXPECTED_FAILURES
    failed = {result["check_name"]: repr(result["exception"]) for result in results if result["status"] == "failed"}
    assert failed.keys() == expected.keys(), failed
    assert all("InputError" in exception for exception in failed.values())
    assert sum(result["status"] == "passed" for result in results) > 30


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_kneighbors_as_scikit_learn(metric: str) -> None:
    theirs = NearestNeighbors(n_neighbors=6, metric=metric, algorithm="brute").fit(Z)
    ours = NeighborIndex(metric=metric).fit(Z)
    for queries in (Q, None):
        distances, rows = ours.kneighbors(queries, 6)
        expected = theirs.kneighbors(queries)
        np.testing.assert_allclose(distances, expected[0], atol=3e-7)
        np.testing.assert_array_equal(rows, expected[1])
        np.testing.assert_array_equal(ours.kneighbors(queries, 6, return_distance=False), expected[1])


def test_distances_rise_and_are_never_negative() -> None:
    for metric in ("cosine", "dot", "euclidean"):
        index = NeighborIndex(metric=metric).fit(Z)
        distances, _ = index.kneighbors(Z, 10)
        assert (np.diff(distances, axis=1) >= 0).all()
        assert metric == "dot" or (distances >= 0).all()
        assert index.kneighbors(Z)[0].shape == (60, 10)


def test_search_returns_ids_and_leaves_out_one_of_them() -> None:
    ids = np.random.default_rng(3).permutation(1000)[:60]
    index = NeighborIndex().fit(Z, ids=ids)
    scores, found = index.search(Q, k=4)
    expected = nearest(Q, Z, 4)
    np.testing.assert_array_equal(scores, expected[0])
    np.testing.assert_array_equal(found, ids[expected[1]])
    np.testing.assert_array_equal(index.search_rows(Q, k=4)[1], expected[1])
    without = index.search(Q, k=3, exclude=found[:, 1])[1]
    np.testing.assert_array_equal(without, found[:, [0, 2, 3]])
    np.testing.assert_array_equal(index.search(Q, k=60, exclude=np.full(7, 5000))[1][:, :4], found)
    own = index.search(Z, k=59, exclude=ids)[1]
    assert not (own == ids[:, None]).any()


def test_what_the_index_holds() -> None:
    labels = np.array(["cat", "dog"] * 30)
    given = Z.copy()
    index = NeighborIndex(metric="euclidean").fit(given, labels)
    given[:] = 0.0
    labels[:] = "x"
    np.testing.assert_array_equal(index.vectors, Z)
    assert index.labels is not None
    assert index.labels.tolist() == ["cat", "dog"] * 30
    assert index.ids.tolist() == list(range(60))
    assert len(index) == 60
    assert index.n_features_in_ == 5
    assert index.names == {}
    assert index.model_hash is None
    with pytest.raises(ValueError, match="read-only"):
        index.vectors[0, 0] = 1.0
    np.testing.assert_allclose(np.linalg.norm(NeighborIndex().fit(Z).vectors, axis=1), 1.0, atol=1e-6)


def test_tensors_lists_and_object_strings_are_taken() -> None:
    tensor = torch.from_numpy(Z.copy())
    index = NeighborIndex(metric="euclidean").fit(tensor, y=np.array(["a"] * 60, dtype=object))
    tensor.zero_()
    np.testing.assert_array_equal(index.vectors, Z)
    assert index.labels is not None
    assert index.labels.dtype.kind == "U"
    np.testing.assert_array_equal(index.search(Q.tolist(), 2)[1], index.search(torch.from_numpy(Q), 2)[1])


def test_adding_and_removing_equals_building_anew() -> None:
    labels = np.arange(60) % 3
    index = NeighborIndex().fit(Z[:40], labels[:40])
    index.search(Q, 2, exclude=np.zeros(7, dtype=np.int64))  # has looked ids up before they change
    index.add(Z[40:], labels[40:])
    whole = NeighborIndex().fit(Z, labels)
    for one, other in zip(index.search(Q, 9), whole.search(Q, 9), strict=True):
        np.testing.assert_array_equal(one, other)
    gone = [3, 59, 17]
    index.remove(gone)
    kept = np.setdiff1d(np.arange(60), gone)
    anew = NeighborIndex().fit(Z[kept], labels[kept], ids=kept)
    assert index.labels is not None
    np.testing.assert_array_equal(index.labels, labels[kept])
    for one, other in zip(index.search(Q, 57), anew.search(Q, 57), strict=True):
        np.testing.assert_array_equal(one, other)
    assert index.remove(5).add(Z[:1], [2]).ids[-1] == 59  # the greatest id left, and one


@pytest.mark.parametrize("metric", ["dot", "euclidean"])
@pytest.mark.parametrize("away", [0.0, 50.0])
def test_what_was_measured_for_one_search_is_measured_anew_after_a_change(
    monkeypatch: pytest.MonkeyPatch, metric: Metric, away: float
) -> None:
    monkeypatch.setattr(exact, "_CHUNK", 16)  # several, and the last of them not full
    gallery, queries = Z + np.float32(away), Q + np.float32(away)
    index = NeighborIndex(metric).fit(gallery)

    def check(rows: np.ndarray) -> None:
        for _ in range(2):
            for one, other in zip(index.search_rows(queries, 9), nearest(queries, rows, 9, metric=metric), strict=True):
                np.testing.assert_array_equal(one, other)

    check(gallery)
    index.add(gallery[:20] * 7)
    check(np.concatenate([gallery, gallery[:20] * 7]))
    index.remove(np.arange(60))
    check(gallery[:20] * 7)
    index.set_params(metric="dot" if metric == "euclidean" else "euclidean")
    metric = index.metric
    check(gallery[:20] * 7)


def test_wrong_input_is_refused_and_changes_nothing() -> None:
    index = NeighborIndex().fit(Z, np.arange(60))
    bare = NeighborIndex().fit(Z)
    for call, message in [
        (lambda: NeighborIndex().fit(Z[:0]), "X is empty"),
        (lambda: NeighborIndex().fit(Z, np.arange(59)), "labels has 59 entries, X has 60 rows"),
        (lambda: NeighborIndex().fit(Z, ids=np.zeros(60, dtype=int)), "ids holds 0 more than once"),
        (lambda: NeighborIndex().fit(Z, ids=np.arange(59)), r"ids has shape \(59,\)"),
        (lambda: NeighborIndex().fit(Z, ids=np.arange(60.0)), "whole numbers"),
        (lambda: NeighborIndex().fit(Z, np.arange(60) + 0.5), "Unknown label type: continuous"),
        (lambda: NeighborIndex().fit(Z, [None] * 60), "Unknown label type: object"),
        (lambda: NeighborIndex().fit(Z * 0), "X row 0 is all zeros"),
        (lambda: NeighborIndex(metric="euclid").fit(Z), "did you mean 'euclidean'"),
        (lambda: NeighborIndex(backend="exat").fit(Z), "backend is 'exat'; did you mean 'exact'"),
        (lambda: index.search(Q[:, :4]), "z has 4 features, but NeighborIndex is expecting 5"),
        (lambda: index.search(Q * np.nan), "z row 0 holds NaN"),
        (lambda: index.search(Q, 61), "k is 61, expected 1 to 60"),
        (lambda: index.search(Q, 0), "k is 0"),
        (lambda: index.search(Q, 60, exclude=np.zeros(7, dtype=int)), "k is 60, expected 1 to 59"),
        (lambda: index.search(Q, 1, exclude=[1]), "expected 7 whole numbers"),
        (lambda: index.kneighbors(None, 60), "n_neighbors is 60, expected 1 to 59"),
        (lambda: index.add(Q), "the index has labels but none were given"),
        (lambda: bare.add(Q, np.arange(7)), "the index has no labels but some were given"),
        (lambda: index.add(Q, np.arange(7), ids=np.arange(59, 66)), "ids holds 59, which is in the index already"),
        (lambda: index.add(Q, ["a"] * 7), "labels to add are"),
        (lambda: index.add(Q[:, :2], np.arange(7)), "X has 2 features"),
        (lambda: index.remove([1, 77]), "ids holds 77, which is not in the index"),
        (lambda: index.remove(np.arange(60)), "every vector"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(index.vectors, NeighborIndex().fit(Z).vectors)
    np.testing.assert_array_equal(index.ids, np.arange(60))


def test_an_empty_index_says_so_as_scikit_learn_does() -> None:
    for call in (lambda i: i.search(Q), lambda i: i.kneighbors(Q), lambda i: i.vectors, lambda i: i.save("x"), len):
        with pytest.raises(NotFittedError, match="this NeighborIndex is empty"):
            call(NeighborIndex())
    with pytest.raises(InputError):
        NeighborIndex().search(Q)


def test_parameters_survive_cloning() -> None:
    index = NeighborIndex(metric="dot").fit(Z)
    copy = clone(index)
    assert copy.get_params() == {"metric": "dot", "backend": "auto", "options": None}
    assert not copy.__sklearn_is_fitted__()
    assert nf.NeighborIndex is NeighborIndex


def test_searching_and_voting_import_no_scikit_learn() -> None:
    program = (
        "import sys, numpy as np, nearfar as nf\n"
        "z = np.eye(8, 4) + 1\n"
        "index = nf.NeighborIndex().fit(z, np.arange(8) % 2)\n"
        "index.search(z, 2); nf.NeighborClassifier(index, k=3).predict(z); nf.evaluate\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'sklearn', 'scipy', 'matplotlib', 'pyarrow'}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
