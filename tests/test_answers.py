"""What a run answers, against slow loops and another library's densities, by every metric."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from nearfar import answers
from nearfar.answers import Gallery, answer, binding, calibrate, fitted_in, gallery_of, read_calibration, write_calibration
from nearfar.calibrate import label_probability
from nearfar.classify import similarities, vote_weights, winners
from nearfar.errors import InputError
from nearfar.recipe import EvaluateSection
from nearfar.search import NeighborIndex

CLASSES, LATER, TRAINED = 4, 6, 120
METRICS = ("cosine", "dot", "euclidean")


def points(count: int, classes: Any, seed: int) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(LATER + 1, 5)) * 2.0
    labels = np.asarray(classes)[random.integers(len(classes), size=count)]
    return (centres[labels] + random.normal(size=(count, 5))).astype(np.float32), labels


X, Y = points(TRAINED, range(CLASSES), 0)
NEW, NEW_Y = points(7, [4, LATER], 1)
Q, QY = points(200, [*range(CLASSES), 4, LATER], 2)
VALIDATION = points(90, range(CLASSES), 3)


def made(metric: str, later: bool = True, **settings: Any) -> Gallery:
    index = NeighborIndex(metric).fit(X, Y)
    if later:
        index.add(NEW, NEW_Y)
    return gallery_of(index, EvaluateSection(**{"metric": metric, "k": 5, **settings}), TRAINED)


@pytest.mark.parametrize("vote", ["majority", "similarity"])
@pytest.mark.parametrize("metric", METRICS)
def test_without_later_classes_it_is_the_vote_of_the_recipe(metric: str, vote: str) -> None:
    gallery = made(metric, later=False, vote=vote)
    fitted = fitted_in(calibrate(gallery, VALIDATION))
    said = answer(gallery, Q, fitted, 0.9)
    scores, rows = gallery.index.search_rows(Q, 5)
    codes, similarity = Y[rows], similarities(scores, metric)
    np.testing.assert_array_equal(said.labels, winners(codes, similarity, vote))
    weights = vote_weights(similarity, vote)
    for row in range(len(Q)):
        assert said.votes[row] == pytest.approx(weights[row][codes[row] == said.labels[row]].sum())
    np.testing.assert_array_equal(said.probability, label_probability(codes, similarity, said.labels, fitted))
    np.testing.assert_array_equal(said.known, said.probability >= fitted.threshold(0.9))
    np.testing.assert_array_equal(said.nearest, rows[:, 0])
    np.testing.assert_array_equal(said.scores, scores[:, 0])


@pytest.mark.parametrize("metric", METRICS)
def test_what_later_classes_do_not_take_is_answered_as_before(metric: str) -> None:
    before, after = made(metric, later=False), made(metric)
    fitted = fitted_in(calibrate(before, VALIDATION))
    assert fitted == fitted_in(calibrate(after, VALIDATION))
    assert fitted_in(calibrate(before)) == fitted_in(calibrate(after))
    old, new = answer(before, Q, fitted), answer(after, Q, fitted)
    rest = new.labels < CLASSES
    assert 20 < (~rest).sum() < 150
    for name in ("labels", "probability", "known"):
        np.testing.assert_array_equal(getattr(new, name)[rest], getattr(old, name)[rest])
    # The nearest and the votes are those of the whole index.
    scores, rows = after.index.search_rows(Q, 5)
    np.testing.assert_array_equal(new.nearest, rows[:, 0])
    np.testing.assert_array_equal(new.scores, scores[:, 0])
    weights = vote_weights(similarities(scores, after.metric), "majority")
    shares = np.where(after.labels[rows] == new.labels[:, None], weights, 0.0).sum(axis=1)
    np.testing.assert_allclose(new.votes, shares)


@pytest.mark.parametrize("metric", METRICS)
def test_later_classes_are_weighed_by_normal_densities(metric: str) -> None:
    gallery = made(metric)
    fitted = fitted_in(calibrate(gallery, VALIDATION))
    said, won = answer(gallery, Q, fitted, 0.7), answer(made(metric, later=False), Q, fitted).labels
    vectors, labels = np.asarray(gallery.index.vectors, dtype=np.float64), gallery.labels
    queries = Q / np.linalg.norm(Q, axis=1, keepdims=True) if metric == "cosine" else Q
    centres = {label: vectors[labels == label].mean(axis=0) for label in np.unique(labels).tolist()}
    away = np.array([row - centres[label] for row, label in zip(vectors, labels.tolist(), strict=True) if label < CLASSES])
    covariance = away.T @ away / len(away)
    covariance += answers._TO_SPHERE * np.trace(covariance) / 5 * np.eye(5)
    for row, query in enumerate(queries.astype(np.float64)):
        density = {label: multivariate_normal(centre, covariance).logpdf(query) for label, centre in centres.items()}
        close = int(labels[gallery.index.search_rows(Q[row : row + 1], 1)[1][0, 0]])
        best = close if close >= CLASSES else max((4, LATER), key=lambda label: density[label])
        takes = density[best] > density[int(won[row])] or close >= CLASSES
        assert said.labels[row] == (best if takes else won[row])
        if takes:
            chance = 1 / (1 + np.exp(density[int(won[row])] - density[best]))
            assert said.probability[row] == pytest.approx(max(chance, 0.5) if close >= CLASSES else chance, rel=1e-6)
            assert said.known[row] == (said.probability[row] >= 0.7)


def test_calibration_leaves_each_training_image_out_of_its_own_search() -> None:
    gallery = made("euclidean", later=False)
    record = calibrate(gallery)
    right = 0
    for row in range(TRAINED):
        others = np.delete(np.arange(TRAINED), row)
        near = others[np.argsort(((X[others] - X[row]) ** 2).sum(axis=1), kind="stable")[:5]]
        similarity = -0.5 * ((X[near].astype(np.float64) - X[row]) ** 2).sum(axis=1)
        right += int(winners(Y[near][None], similarity[None])[0] == Y[row])
    assert record["accuracy"] == pytest.approx(right / TRAINED)
    assert (record["images"], record["fitted"]["classes"]) == (TRAINED, CLASSES)
    assert record["images_are"].startswith("training images, each left out")


def test_many_images_are_sampled_and_validation_images_of_no_known_class_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    z, labels = VALIDATION
    strange = labels.copy()
    strange[:30] = 99
    gallery = made("cosine")
    assert calibrate(gallery, (z, strange))["images"] == 60
    # None of a class that can be found: as if there were none.
    assert calibrate(gallery, (z, np.full(90, 99)))["images_are"].startswith("training images")
    monkeypatch.setattr(answers, "ROWS", 25)
    assert calibrate(gallery, VALIDATION)["images"] == calibrate(gallery)["images"] == 25
    assert calibrate(gallery) == calibrate(gallery)


def test_a_gallery_without_training_images_votes_as_a_whole() -> None:
    index = NeighborIndex().fit(NEW, NEW_Y, ids=np.arange(500, 507))
    gallery = gallery_of(index, EvaluateSection(k=10), TRAINED)
    assert (gallery.k, len(gallery.later)) == (7, 0)
    assert set(answer(gallery, NEW, fitted_in(calibrate(gallery)), 0.0).labels.tolist()) <= {4, LATER}


def test_one_image_is_too_few() -> None:
    gallery = gallery_of(NeighborIndex().fit(X[:1], Y[:1]), EvaluateSection(), 1)
    with pytest.raises(InputError, match="one image that can vote"):
        calibrate(gallery)


def test_a_calibration_holds_for_one_model_and_its_training_images(tmp_path: Path) -> None:
    gallery = made("cosine", later=False)
    record = calibrate(gallery, VALIDATION)
    assert read_calibration(tmp_path, gallery) is None
    write_calibration(tmp_path, gallery, record)
    kept = read_calibration(tmp_path, gallery)
    assert kept is not None
    assert fitted_in(kept) == fitted_in(record)
    assert read_calibration(tmp_path, made("cosine")) == kept  # images added later change nothing
    fewer = made("cosine", later=False)
    fewer.index.remove([3])
    relabelled = NeighborIndex().fit(X, (Y + 1) % CLASSES)
    others = [
        gallery_of(fewer.index, EvaluateSection(k=5), TRAINED),
        gallery_of(relabelled, EvaluateSection(k=5), TRAINED),
        replace(gallery, k=4),
        replace(gallery, vote="similarity"),
        made("euclidean", later=False),
    ]
    gallery.index.save(tmp_path / "index", model_hash="f" * 64)
    for other in [*others, gallery]:
        assert binding(other) != binding(made("cosine", later=False))
        assert read_calibration(tmp_path, other) is None


def test_what_needs_all_vectors_is_computed_once_for_a_gallery(monkeypatch: pytest.MonkeyPatch) -> None:
    gallery, calls, plain = made("cosine"), [], answers._spread
    fitted = fitted_in(calibrate(gallery, VALIDATION))
    monkeypatch.setattr(answers, "_spread", lambda *given: calls.append(given) or plain(*given))
    first, second = answer(gallery, Q, fitted), answer(gallery, Q, fitted)
    assert len(calls) == 2  # the classes that vote, and the later ones
    np.testing.assert_array_equal(first.probability, second.probability)
    np.testing.assert_array_equal(answer(made("cosine"), Q, fitted).probability, first.probability)
