"""What neighbours say of labels, against a slow loop that follows the formulas word by word."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from nearfar.labelissues.neighbors import assign_folds
from nearfar.labelissues.scores import Kernel, fit_kernel, judge, similarity_scale
from nearfar.search import nearest


def case(seed: int = 0, images: int = 60, classes: int = 4, k: int = 7) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Neighbours' classes, their similarities, and labels; not of any real geometry."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, images)
    codes = np.where(random.random((images, k)) < 0.7, labels[:, None], random.integers(0, classes, (images, k)))
    return codes, np.sort(random.random((images, k)), axis=1)[:, ::-1].copy(), labels


@pytest.mark.parametrize("seed", range(4))
def test_scores_are_those_of_a_slow_loop(seed: int) -> None:
    codes, similarity, labels = case(seed)
    kernel = Kernel(centre=0.8, width=0.1, floor=0.05)
    found = judge(codes, kernel.weights(similarity), np.full(len(labels), kernel.floor), labels, 4)
    probability = []
    for row in range(len(labels)):
        votes = [math.exp((s - 0.8) / 0.1) for s in similarity[row]]
        sums = [0.05 + sum(vote for vote, code in zip(votes, codes[row], strict=True) if code == c) for c in range(4)]
        probability.append([one / sum(sums) for one in sums])
    usual = [float(np.mean([probability[row][c] for row in np.flatnonzero(labels == c)])) for c in range(4)]
    general = sum(usual) / 4
    for row, given in enumerate(labels.tolist()):
        fits = {c: probability[row][c] / max(usual[c], general) for c in set(codes[row].tolist()) - {given}}
        mine = probability[row][given] / usual[given]
        best = max(fits, key=lambda c: fits[c]) if fits else given
        score = mine / (mine + fits[best]) if fits else 1.0
        assert found.suggested[row] == best
        assert found.score[row] == pytest.approx(score, rel=1e-12)
        assert found.given[row] == pytest.approx(probability[row][given], rel=1e-12)
        assert found.likely[row] == (score < 0.1)
    assert found.likely.any()
    assert not found.likely.all()


def test_the_kernel_is_the_most_probable_of_those_tried() -> None:
    codes, similarity, labels = case(5)

    def likelihood(kernel: Kernel) -> float:
        by_class = []
        for c in range(4):
            logs = []
            for row in np.flatnonzero(labels == c):
                votes = [math.exp((s - kernel.centre) / kernel.width) for s in similarity[row]]
                own = sum(vote for vote, code in zip(votes, codes[row], strict=True) if code == c)
                logs.append(math.log((own + kernel.floor) / (sum(votes) + 4 * kernel.floor)))
            by_class.append(sum(logs) / len(logs))
        return sum(by_class) / len(by_class)

    found = fit_kernel(codes, similarity, labels, 4, 0.3)
    assert found.centre == float(np.median(similarity[:, 0]))
    best = likelihood(found)
    for width in (0.03, 0.1, 0.3, found.width / 2.5, found.width * 2.5):
        for floor in (1e-3, 1e-2, 0.1, 1.0):
            assert likelihood(Kernel(found.centre, width, floor)) <= best + 0.02
    assert best >= likelihood(Kernel(found.centre, 0.3, 1.0))


def test_similarities_of_any_size_make_finite_scores() -> None:
    codes, similarity, labels = case(6)
    for scaled in (similarity * 1e12, similarity * 1e-12, -(similarity * 1e6), np.ones_like(similarity)):
        kernel = fit_kernel(codes, scaled, labels, 4, similarity_scale(scaled.ravel()))
        found = judge(codes, kernel.weights(scaled), np.full(len(labels), kernel.floor), labels, 4)
        assert np.isfinite(found.score).all()
        assert ((found.score >= 0) & (found.score <= 1)).all()


def clusters(counts: list[int], seed: int = 0, dim: int = 8, apart: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    centres = apart * random.normal(size=(len(counts), dim))
    return (centres[labels] + random.normal(size=(len(labels), dim))).astype(np.float32), labels


def scores_of(z: np.ndarray, labels: np.ndarray, k: int = 20) -> np.ndarray:
    classes = int(labels.max()) + 1
    scores, rows = nearest(z, z, k, metric="euclidean", exclude=np.arange(len(z)))
    similarity = -0.5 * scores.astype(np.float64) ** 2
    kernel = fit_kernel(labels[rows], similarity, labels, classes, similarity_scale(-0.5 * ((z[:-1] - z[1:]) ** 2).sum(1)))
    return judge(labels[rows], kernel.weights(similarity), np.full(len(z), kernel.floor), labels, classes).score


def test_rare_classes_are_neither_blamed_for_being_rare_nor_blind_to_wrong_labels() -> None:
    z, truth = clusters([600, 600, 8, 8], seed=1)
    assert (scores_of(z, truth)[truth >= 2] > 0.5).all()
    labels = truth.copy()
    wrong = [3, 610, 1200, 1210]  # one of each class
    labels[wrong] = [2, 0, 0, 1]
    order = np.argsort(scores_of(z, labels), kind="stable")
    assert set(wrong) == set(order[:4].tolist())


@pytest.mark.parametrize("share", [0.02, 0.2])
def test_labels_flipped_at_random_come_first(share: float) -> None:
    z, truth = clusters([400] * 5, seed=1)
    random = np.random.default_rng(1)
    wrong = random.permutation(len(z))[: round(share * len(z))]
    labels = truth.copy()
    labels[wrong] = (labels[wrong] + random.integers(1, 5, len(wrong))) % 5
    flipped = np.isin(np.arange(len(z)), wrong)
    assert average_precision_score(flipped, -scores_of(z, labels)) > 0.99


def test_folds_hold_every_image_once_and_each_class_in_proportion() -> None:
    labels = np.array([0] * 20 + [1] * 7 + [2])
    fold = assign_folds(labels, 3, seed=4)
    assert np.array_equal(fold, assign_folds(labels, 3, seed=4))
    assert not np.array_equal(fold, assign_folds(labels, 3, seed=5))
    for number in (0, 1):
        counts = np.bincount(fold[labels == number], minlength=3)
        assert counts.max() - counts.min() <= 1
    assert np.ptp(np.bincount(fold)) <= 1
