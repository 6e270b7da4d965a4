"""Bad input is named in one line, whatever the plot."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from nearfar import plots
from nearfar.errors import InputError

IMAGES = np.zeros((3, 1, 4, 4), dtype=np.uint8)
TWO = ("cat", "dog")
NAN = float("nan")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plots.scatter_map(np.zeros((3, 3))), r"points has shape \[3, 3\], expected \[N, 2\]"),
        (lambda: plots.scatter_map(np.zeros((0, 2))), "points is empty"),
        (lambda: plots.scatter_map([[0.0, NAN]]), r"points\[0, 1\] is nan"),
        (lambda: plots.scatter_map("no"), "points holds something other than numbers"),
        (lambda: plots.scatter_map(np.zeros((3, 2)), [0, 1], TWO), "labels has 2 entries, points has 3"),
        (lambda: plots.scatter_map(np.zeros((2, 2)), [0, 2], TWO), "labels holds 2, expected 0 to 1"),
        (lambda: plots.scatter_map(np.zeros((2, 2)), [-1, 0], TWO), "labels holds -1"),
        (lambda: plots.scatter_map(np.zeros((2, 2)), [0.0, 1.0], TWO), "labels has dtype float64"),
        (lambda: plots.pca_map(np.zeros((3, 4)), dimensions=4), "dimensions is 4, expected 2 or 3"),
        (lambda: plots.project_pca(np.zeros((3, 4)), 0), "dimensions is 0"),
        (lambda: plots.project_tsne(np.zeros((4, 4))), "z has 4 rows, t-SNE needs at least 5"),
        (lambda: plots.project_tsne(np.zeros((9, 4)), perplexity=0), "perplexity is 0"),
        (lambda: plots.tsne_maps(np.zeros((2, 2)), np.zeros((3, 2))), "before has 2 entries, after has 3"),
        (lambda: plots.sample_rows([[1]], 3), r"labels has shape \[1, 1\]"),
        (lambda: plots.sample_rows([1], 0), "limit is 0"),
        (lambda: plots.confusion_matrix([[1, 2]], TWO), r"counts has shape \[1, 2\]"),
        (lambda: plots.confusion_matrix([[1, -2], [0, 0]], TWO), "counts holds -2"),
        (lambda: plots.confusion_matrix([[1, 0.5], [0, 0]], TWO), "counts holds 0.5"),
        (lambda: plots.most_confused([[1, 0], [0, 0]], TWO, limit=0), "limit is 0"),
        (lambda: plots.count_confusions([0, 1], [0], TWO), "predicted has 1 entries, truth has 2"),
        (lambda: plots.class_cosines([[2.0, 0], [0, 1]], TWO), "holds 2, expected cosines"),
        (lambda: plots.class_cosines(np.eye(3), TWO), "after has shape"),
        (lambda: plots.pair_grid(IMAGES, IMAGES[:2], [1, 0, 1]), "b has 2 entries, a has 3"),
        (lambda: plots.pair_grid(IMAGES, IMAGES, [1, 0, 5]), "same has shape"),
        (lambda: plots.pair_grid(IMAGES, IMAGES, [1, 0, 1], scores=[1.0]), "scores has 1 entries"),
        (lambda: plots.pair_grid(IMAGES, IMAGES, [1, 0, 1], limit=0), "limit is 0"),
        (lambda: plots.pair_grid(IMAGES[:0], IMAGES[:0], []), "a is empty"),
        (lambda: plots.pair_grid(IMAGES / 1.0, IMAGES, [1, 0, 1]), "a has dtype float64, expected uint8"),
        (lambda: plots.pair_grid(IMAGES[:, 0], IMAGES, [1, 0, 1]), r"a has shape \[3, 4, 4\]"),
        (lambda: plots.pair_grid(IMAGES.repeat(2, 1), IMAGES, [1, 0, 1]), "a has 2 channels"),
        (lambda: plots.pair_grid(IMAGES, IMAGES, None, predicted=[1, 0, 1]), "same is missing, expected it where predicted"),
        (
            lambda: plots.neighbor_grid(IMAGES, None, IMAGES[:, None], [[0]] * 3, np.zeros((3, 1)), TWO),
            "query_labels or neighbor_labels is missing, expected both or neither",
        ),
        (lambda: plots.missed_views(IMAGES, IMAGES, IMAGES[:2], [2, 3, 4]), "found has 2 entries, images has 3"),
        (lambda: plots.missed_views(IMAGES, IMAGES, IMAGES, [2, 3]), "ranks has 2 entries, images has 3"),
        (lambda: plots.missed_views(IMAGES[:0], IMAGES[:0], IMAGES[:0], []), "ranks is empty"),
        (
            lambda: plots.neighbor_grid(IMAGES, [0, 1, 0], IMAGES[:, None], [[0]], np.zeros((3, 1)), TWO),
            r"neighbor_labels has shape \[1, 1\], queries and neighbors need \[3, 1\]",
        ),
        (
            lambda: plots.neighbor_grid(IMAGES[:0], [], IMAGES[:0, None], np.zeros((0, 1), int), [], TWO),
            "queries has 0 rows",
        ),
        (
            lambda: plots.neighbor_grid(IMAGES, [0, 1, 0], IMAGES[:, None], [[0]] * 3, np.ones((3, 1)), TWO, limit=0),
            "limit is 0",
        ),
        (lambda: plots.worst_mistakes(IMAGES, [0, 1, 0], [1, 1, 1], [1, 1, 1], TWO), r"predicted\[1\] is right"),
        (lambda: plots.worst_mistakes(IMAGES, [0, 1, 0], [1, 0, 1], [1, 2, 1], TWO), "confidence holds 2"),
        (lambda: plots.worst_mistakes(IMAGES[:2], [0, 1, 0], [1, 0, 1], [1, 1, 1], TWO), "labels has 3 entries"),
        (lambda: plots.worst_mistakes(IMAGES, [0], [1], [1], TWO, limit=0), "limit is 0"),
        (lambda: plots.worst_rows([0], [1, 0], [1]), "predicted has 2 entries"),
        (lambda: plots.one_per_class([]), "labels has shape"),
        (lambda: plots.one_per_class([0], limit=0), "limit is 0"),
        (lambda: plots.loss_by_epoch([1, 2], [1]), "validation has 1 entries, training has 2"),
        (lambda: plots.loss_by_epoch([NAN]), "hold no value"),
        (lambda: plots.loss_by_epoch([np.inf]), r"training\[0\] is inf"),
        (lambda: plots.loss_by_epoch([1, 2], learning_rate=[1, -1]), "learning_rate holds -1"),
        (lambda: plots.loss_by_epoch([1, 2], epochs=[1]), "epochs has 1 entries"),
        (lambda: plots.loss_by_epoch([1, 2], epochs=[2, 1]), "epochs falls"),
        (lambda: plots.recall_at_k(), "both missing"),
        (lambda: plots.recall_at_k({"a": [0.5, 0.6]}), r"retrieval\['a'\] has shape \[2\], expected \[3\]"),
        (lambda: plots.recall_at_k({"a": [50, 60, 70]}), "holds 50, expected 0 to 1"),
        (lambda: plots.recall_at_k({"a": [0.1, 0.2]}, [5, 1]), "expected rising numbers"),
        (lambda: plots.distance_histogram([], [1.0]), "same is empty"),
        (lambda: plots.distance_histogram([1.0], [1.0], NAN), "threshold is nan"),
        (lambda: plots.distance_histogram([1.0], [1.0], measure="angle"), "measure is 'angle'"),
        (lambda: plots.sample_efficiency([10, 10], {"a": [[0.1], [0.2]]}), "expected rising"),
        (lambda: plots.sample_efficiency([10, 20], {"a": [0.1, 0.2]}), "expected \\[2, seeds\\]"),
        (lambda: plots.sample_efficiency([10], {"a": [[NAN]]}), "holds no value"),
        (lambda: plots.sample_efficiency([10], {}), "scores is empty"),
        (lambda: plots.score_dots({"a": [90.0]}), "holds 90, expected shares"),
        (lambda: plots.score_dots({"a": [NAN]}), "holds no value"),
        (lambda: plots.score_dots({}), "scores is empty"),
        (lambda: plots.paired_differences([]), "differences is empty"),
        (lambda: plots.paired_differences([plots.Difference("a", "b", 0.2, 0.0, 0.1)]), "interval around the mean"),
        (lambda: plots.paired_differences([plots.Difference("a", "b", 0, 0, NAN)]), "finite interval"),
        (lambda: plots.paired_differences([plots.Difference("a", "b", 0, 0, 0)], confidence=95), "confidence is 95"),
    ],
)
def test_bad_input_is_one_clear_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
