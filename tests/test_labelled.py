"""Runs that may use the labels of a share of their images: neither training nor the index knows the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import TINY, shapes

import nearfar as nf
from nearfar import answers, runs, verbs
from nearfar.evaluation import evaluate_embeddings
from nearfar.measuring.figures import evaluate
from nearfar.measuring.judging import gallery_images, judge, threshold_rows
from nearfar.recipe import Recipe
from nearfar.report import gather
from nearfar.runs.indexing import add_images
from nearfar.training.parts import training_targets

SHARE = 0.3
RECIPE = Recipe.from_dict({**TINY, "data": {"size": [12, 12], "labelled": SHARE, "test": 0.25}})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "few"
    verbs.train(shapes(160), recipe=RECIPE, out=folder)
    return folder


def test_the_index_knows_the_labels_that_training_used_and_no_other(run: Path) -> None:
    judged = judge(run, shapes(160))
    assert judged.splits is not None
    train = judged.splits.train
    labels = np.asarray(judged.index.labels)
    np.testing.assert_array_equal(labels, training_targets(RECIPE, train, seed=0).labels)
    known = labels >= 0
    assert known.sum() == round(SHARE * len(train)) < len(judged.index) == len(train)
    np.testing.assert_array_equal(labels[known], train.require_labels()[known])
    assert verbs.search(run, [shapes(3)], k=5)[0]["neighbors"]  # which finds images without a label as well


def test_figures_are_those_of_an_index_of_the_labelled_images_alone(run: Path) -> None:
    """Oracle: the vectors and labels that are left when the others are taken out, measured by themselves."""
    judged = judge(run, shapes(160))
    vectors, labels = np.asarray(judged.index.vectors), np.asarray(judged.index.labels)
    known = labels >= 0
    held = threshold_rows(judged)
    assert held is not None
    assert set(map(bytes, held[0])) <= set(map(bytes, vectors[known]))
    settings = RECIPE.evaluate
    alone = evaluate_embeddings(
        vectors[known],
        labels[known],
        judged.z,
        judged.labels,
        metric=settings.metric,
        k=settings.k,
        vote=settings.vote,
        bootstrap=settings.bootstrap,
        seed=0,
        classes=judged.classes,
        validation=held[:2],
    )
    tree = evaluate(run, shapes(160))
    for section in ("classification", "retrieval", "clustering", "geometry"):
        assert tree[section] == alone[section], section
    for key, value in alone["verification"].items():
        assert key.endswith("_from") or tree["verification"][key] == value, key
    assert tree["data"]["gallery"] == known.sum()
    assert "84 images that have no label" in tree["data"]["gallery_is"]
    assert "leaks" in tree
    assert "baselines" in tree


def test_images_stay_beside_their_vectors(run: Path) -> None:
    judged = judge(run, shapes(160))
    images = gallery_images(judged)
    np.testing.assert_allclose(judged.model.transform(images), judged.gallery, atol=1e-6)
    np.testing.assert_array_equal(images.require_labels(), judged.gallery_labels)
    k = RECIPE.evaluate.k
    said = gather.answer(judged, k)
    unit = judged.z / np.linalg.norm(judged.z, axis=1, keepdims=True)
    best = np.argsort(-(unit @ judged.gallery.T), axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(said.codes[:, :k], judged.gallery_labels[best])
    np.testing.assert_array_equal(said.rows[:, :k], best)


def test_votes_are_of_labelled_images(run: Path) -> None:
    """A slow loop over the labelled rows, for the accuracy that evaluate and predict tell of."""
    judged = judge(run, shapes(160))
    gallery = answers.gallery_of(judged.index, RECIPE.evaluate, answers.trained_images(judged.config, judged.index))
    right = 0
    for z, truth in zip(judged.z, judged.labels, strict=True):
        near = np.argsort(-(judged.gallery @ z), kind="stable")[: RECIPE.evaluate.k]
        votes: dict[int, tuple[int, float]] = {}
        for row in near:
            label = int(judged.gallery_labels[row])
            count, total = votes.get(label, (0, 0.0))
            votes[label] = (count + 1, total + float(judged.gallery[row] @ z))
        right += max(votes, key=lambda label: votes[label]) == truth
    fitted = answers.current_calibration(run, gallery)
    said = answers.answer(gallery, judged.z, fitted, 0.0)
    assert (said.labels == judged.labels).sum() == right
    assert evaluate(run, shapes(160))["classification"]["accuracy"] == pytest.approx(right / len(judged.z))


def test_a_run_without_labels_that_got_some_is_judged_by_these(tmp_path: Path) -> None:
    bare = nf.ImageSet(images=shapes(60).images, name="bare")
    tree: dict[str, Any] = {**TINY, "loss": {"kind": "nt-xent"}, "sampling": {"kind": "views", "batch_size": 30}}
    tree |= {"augment": {"flip": True}, "data": {"size": [12, 12], "test": 0.0}}
    verbs.train(bare, recipe=Recipe.from_dict(tree), out=tmp_path / "run")
    index = nf.NeighborIndex.load(tmp_path / "run" / runs.INDEX)
    assert (np.asarray(index.labels) == -1).all()
    added = add_images(tmp_path / "run", shapes(30, seed=5))
    tree = evaluate(tmp_path / "run", shapes(24, seed=6))
    assert tree["data"]["gallery"] == sum(added["added"].values())
