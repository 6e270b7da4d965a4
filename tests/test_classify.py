from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.utils.estimator_checks import check_estimator

import nearfar as nf
from nearfar import classify
from nearfar.classify import NeighborClassifier, check_vote, probabilities, similarities, vote_weights, winners
from nearfar.errors import InputError
from nearfar.search import NeighborIndex

GENERATOR = np.random.default_rng(0)
CENTRES = GENERATOR.normal(size=(4, 6))
Y = GENERATOR.integers(4, size=200)
X = (CENTRES[Y] + GENERATOR.normal(size=(200, 6))).astype(np.float32)
QY = GENERATOR.integers(4, size=50)
Q = (CENTRES[QY] + GENERATOR.normal(size=(50, 6))).astype(np.float32)


def slow_winner(codes: list[int], similarity: list[float], vote: str) -> int:
    """The rule as it is stated, one neighbour after the other."""
    votes: dict[int, float] = {}
    sums: dict[int, float] = {}
    for code, near in zip(codes, similarity, strict=True):
        votes[code] = votes.get(code, 0) + 1
        sums[code] = sums.get(code, 0.0) + (near if vote == "majority" else np.exp((near - max(similarity)) / 0.07))
    nearest_of = {code: -codes.index(code) for code in votes}
    if vote == "majority":
        return max(votes, key=lambda code: (votes[code], sums[code], nearest_of[code]))
    return max(votes, key=lambda code: (sums[code], nearest_of[code]))


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.lists(st.tuples(st.integers(0, 4), st.integers(-4, 4)), min_size=5, max_size=5), min_size=1, max_size=6),
    vote=st.sampled_from(classify.VOTES),
)
def test_winners_follow_the_stated_rule(rows: list[list[tuple[int, int]]], vote: str) -> None:
    # Similarities in quarters, of which sums are exact, so that ties are ties.
    ordered = [sorted(row, key=lambda pair: -pair[1]) for row in rows]
    codes = np.array([[pair[0] for pair in row] for row in ordered])
    similarity = np.array([[pair[1] / 4 for pair in row] for row in ordered])
    found = winners(codes, similarity, vote)
    expected = [slow_winner(c, s, vote) for c, s in zip(codes.tolist(), similarity.tolist(), strict=True)]
    assert found.tolist() == expected
    shares = probabilities(codes, similarity, 5, vote)
    np.testing.assert_allclose(shares.sum(axis=1), 1.0, rtol=1e-12)
    assert shares.argmax(axis=1).tolist() == expected
    for row, (own, weights) in enumerate(zip(codes, vote_weights(similarity, vote), strict=True)):
        np.testing.assert_allclose(shares[row], [weights[own == c].sum() for c in range(5)], atol=2e-9)


def test_ties_end_as_documented() -> None:
    # Two votes each: the greater sum wins, though the other class has the nearest neighbour.
    assert winners(np.array([[7, 3, 3, 7]]), np.array([[0.9, 0.8, 0.7, 0.1]])).tolist() == [3]
    # Equal sums too: the nearest.
    assert winners(np.array([[7, 3, 3, 7]]), np.array([[1.0, 0.75, 0.5, 0.25]])).tolist() == [7]
    assert winners(np.array([[1, 0]]), np.array([[0.5, 0.5]]), "similarity").tolist() == [1]


def test_blocks_do_not_change_the_vote(monkeypatch: pytest.MonkeyPatch) -> None:
    codes, similarity = GENERATOR.integers(3, size=(40, 7)), -np.sort(GENERATOR.normal(size=(40, 7)), axis=1)
    whole = winners(codes, similarity)
    monkeypatch.setattr(classify, "_BLOCK", 100)
    np.testing.assert_array_equal(winners(codes, similarity), whole)


def test_similarities_of_unit_vectors_agree_between_metrics() -> None:
    a, b = X / np.linalg.norm(X, axis=1)[:, None], Q / np.linalg.norm(Q, axis=1)[:, None]
    cosine = similarities(NeighborIndex("cosine").fit(a).search(b, 5)[0], "cosine")
    euclid = similarities(NeighborIndex("euclidean").fit(a).search(b, 5)[0], "euclidean")
    np.testing.assert_allclose(cosine - 1.0, euclid, atol=1e-6)
    np.testing.assert_allclose(vote_weights(cosine, "similarity"), vote_weights(euclid, "similarity"), atol=1e-5)


def test_weights_do_not_overflow() -> None:
    weights = vote_weights(np.array([[1e6, 1e6 - 0.07, 0.0]]), "similarity")
    np.testing.assert_allclose(weights, [[1 / (1 + np.exp(-1)), 1 / (1 + np.e), 0.0]], rtol=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_as_scikit_learn_where_there_is_no_tie(metric: str) -> None:
    ours = NeighborClassifier(NeighborIndex(metric=metric), k=9).fit(X, Y)
    theirs = KNeighborsClassifier(9, metric=metric, algorithm="brute").fit(X, Y)
    shares = theirs.predict_proba(Q)
    np.testing.assert_allclose(ours.predict_proba(Q), shares, atol=2e-9)
    clear = np.sort(shares, axis=1)[:, -1] > np.sort(shares, axis=1)[:, -2]
    assert clear.sum() > 35
    np.testing.assert_array_equal(ours.predict(Q)[clear], theirs.predict(Q)[clear])
    assert ours.score(Q, QY) == float((ours.predict(Q) == QY).mean())


def test_a_fitted_index_is_used_as_it_is_and_followed_when_it_grows() -> None:
    names = np.array(["ant", "bee", "cow", "dog"])
    index = NeighborIndex().fit(X, names[Y])
    model = NeighborClassifier(index, k=5)
    assert model.classes_.tolist() == names.tolist()
    expected = model.predict(Q)
    assert expected.dtype.kind == "U"
    np.testing.assert_array_equal(NeighborClassifier(k=5).fit(X, names[Y]).predict(Q), expected)
    index.add(Q, np.array(["eel"] * len(Q)))
    assert model.classes_.tolist() == [*names.tolist(), "eel"]
    assert (NeighborClassifier(index, k=1).predict(Q) == "eel").all()
    assert nf.NeighborClassifier is NeighborClassifier


def test_fitting_leaves_the_given_index_alone() -> None:
    index = NeighborIndex(metric="euclidean").fit(X[:10], Y[:10])
    model = NeighborClassifier(index, k=3).fit(X, Y)
    assert len(index) == 10
    assert model.n_features_in_ == 6
    np.testing.assert_array_equal(
        model.predict(Q), NeighborClassifier(NeighborIndex(metric="euclidean"), k=3).fit(X, Y).predict(Q)
    )


def test_cloned_and_searched_as_scikit_learn_does() -> None:
    model = NeighborClassifier(NeighborIndex(metric="euclidean"), k=3, vote="similarity")
    copy = clone(model)
    assert copy.get_params()["index__metric"] == "euclidean"
    assert copy.index is not model.index
    grid = GridSearchCV(model, {"k": [1, 5], "index__metric": ["cosine", "euclidean"]}, cv=2).fit(X, Y)
    assert grid.best_score_ > 0.5


@pytest.mark.filterwarnings("ignore:.*does not inherit from `sklearn.base.BaseEstimator`")
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("vote", classify.VOTES)
def test_scikit_learn_checks(metric: str, vote: str) -> None:
    """All pass but those that docs/evaluation.md names: no TypeError for what is no number, no zeros under cosine."""
    model = NeighborClassifier(NeighborIndex(metric=metric), k=3, vote=vote)
    results = check_estimator(model, on_fail=None, on_skip=None)
    expected = {"check_dtype_object"} | ({"check_estimators_dtypes"} if metric == "cosine" else set())
    failed = {result["check_name"]: repr(result["exception"]) for result in results if result["status"] == "failed"}
    assert failed.keys() == expected, failed
    assert all("InputError" in exception for exception in failed.values())
    assert sum(result["status"] == "passed" for result in results) > 45


def test_wrong_input_is_refused_in_one_line() -> None:
    fitted = NeighborClassifier(k=5).fit(X, Y)
    for call, message in [
        (lambda: NeighborClassifier(vote="majorty").fit(X, Y), "vote is 'majorty'; did you mean 'majority'"),
        (lambda: NeighborClassifier(k=0).fit(X, Y), "k is 0"),
        (lambda: NeighborClassifier(k=1.5).fit(X, Y), "k is 1.5, expected a whole number"),
        (lambda: NeighborClassifier(k=201).fit(X, Y), "k is 201, but X has n_samples = 200"),
        (lambda: NeighborClassifier().fit(X, None), "requires y"),
        (lambda: NeighborClassifier().fit(X, Y[:-1]), "labels has 199 entries, X has 200 rows"),
        (lambda: fitted.predict(Q[:, :5]), "X has 5 features, but NeighborClassifier is expecting 6"),
        (lambda: fitted.predict(Q * np.nan), "X row 0 holds NaN"),
        (lambda: NeighborClassifier(NeighborIndex().fit(X)).predict(Q), "the index has no labels"),
        (lambda: check_vote(3), "vote is 3"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    for empty in (NeighborClassifier(), NeighborClassifier(NeighborIndex())):
        with pytest.raises(NotFittedError):
            empty.predict(Q)
    with pytest.warns(DataConversionWarning):
        NeighborClassifier().fit(X, Y[:, None])


def test_calibrated_probabilities_and_what_is_known() -> None:
    plain = NeighborClassifier(k=9).fit(X, Y)
    assert plain.calibration is None
    model = NeighborClassifier(k=9).fit(X, Y).calibrate(Q, QY)
    assert clone(model).get_params()["calibration"] == model.calibration
    np.testing.assert_array_equal(model.predict(Q), plain.predict(Q))
    chances = model.predict_proba(Q)
    np.testing.assert_allclose(chances.sum(axis=1), 1.0, rtol=1e-12)
    assert chances.shape == plain.predict_proba(Q).shape
    own = np.take_along_axis(chances, QY[:, None], axis=1)
    shares = np.take_along_axis(plain.predict_proba(Q), QY[:, None], axis=1)
    assert -np.log(own).mean() < -np.log(np.maximum(shares, 1e-15)).mean()
    known, right = model.known(Q, 0.8), model.predict(Q) == QY
    assert right[known].mean() >= 0.8 > right[~known].mean()
    assert model.known(Q, 0.0).all()
    # Far from all of the gallery nothing is known, whatever the neighbours say.
    far = NeighborClassifier(NeighborIndex(metric="euclidean"), k=9).fit(X, Y).calibrate(Q, QY)
    assert not far.known(Q + 100.0).any()
    np.testing.assert_allclose(far.predict_proba(Q + 100.0), 0.25, atol=0.05)


def test_calibration_of_a_classifier_is_refused_in_one_line() -> None:
    fitted = NeighborClassifier(k=5).fit(X, Y)
    with pytest.raises(InputError, match="no calibration to tell the known by"):
        fitted.known(Q)
    with pytest.raises(InputError, match=r"y has shape \(49,\), X has 50 rows"):
        fitted.calibrate(Q, QY[1:])
    with pytest.raises(InputError, match="precision is 1"):
        fitted.calibrate(Q, QY).known(Q, 1.0)
