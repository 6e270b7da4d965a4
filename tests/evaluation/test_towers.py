"""Ranks between images and captions, against loops over sorted lists."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearfar.errors import InputError
from nearfar.evaluation import towers
from nearfar.evaluation.towers import class_precision, rank_towers

# Corners of a cube have cosines that float32 gives exactly, and many of them are equal.
CUBE = np.array([[x, y, z, w] for x in (1, -1) for y in (1, -1) for z in (1, -1) for w in (1, -1)], dtype=np.float32) / 2


def order(query: np.ndarray, gallery: np.ndarray) -> list[int]:
    """The gallery, best first; of equal scores the lower row first."""
    scores = [float(np.dot(query.astype(np.float64), one.astype(np.float64))) for one in gallery]
    return sorted(range(len(gallery)), key=lambda row: (-scores[row], row))


def first_right(queries: np.ndarray, gallery: np.ndarray, right: list[set[int]]) -> list[float]:
    ranks = []
    for query, own in zip(queries, right, strict=True):
        places = [place for place, row in enumerate(order(query, gallery), 1) if row in own]
        ranks.append(float(places[0]) if places else np.nan)
    return ranks


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_ranks_are_those_of_the_loop(data: st.DataObject) -> None:
    corner = st.integers(0, len(CUBE) - 1)
    images = CUBE[data.draw(st.lists(corner, min_size=1, max_size=12))]
    texts = CUBE[data.draw(st.lists(corner, min_size=1, max_size=8))]
    number = st.integers(0, len(texts) - 1)
    own = data.draw(st.lists(st.lists(number, max_size=3), min_size=len(images), max_size=len(images)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(towers, "_TILE", data.draw(st.sampled_from([1, 20, 1 << 22])))
        found = rank_towers(images, texts, own)
    right = [set(one) for one in own]
    back = [{row for row, one in enumerate(right) if text in one} for text in range(len(texts))]
    assert np.array_equal(found.image_to_text, first_right(images, texts, right), equal_nan=True)
    assert np.array_equal(found.text_to_image, first_right(texts, images, back), equal_nan=True)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data())
def test_precision_is_that_of_the_loop(data: st.DataObject) -> None:
    corner = st.integers(0, len(CUBE) - 1)
    images = CUBE[data.draw(st.lists(corner, min_size=1, max_size=12))]
    texts = CUBE[data.draw(st.lists(corner, min_size=1, max_size=5))]
    labels = data.draw(st.lists(st.integers(0, 2), min_size=len(images), max_size=len(images)))
    named = data.draw(st.lists(st.integers(0, 3), min_size=len(texts), max_size=len(texts)))
    k = data.draw(st.integers(1, len(images)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(towers, "_TILE", data.draw(st.sampled_from([1, 30, 1 << 22])))
        found = class_precision(texts, named, images, labels, k=k)
    for share, text, name in zip(found, texts, named, strict=True):
        assert share == pytest.approx(sum(labels[row] == name for row in order(text, images)[:k]) / k)


def test_figures_are_means_over_those_that_have_a_right_one() -> None:
    images, texts = np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0]]
    found = rank_towers(images, texts, [[0], [2], [], [3]])
    assert found.image_to_text.tolist()[:2] == [1.0, 3.0]  # texts 1 first, and of those at 0 the lower row
    assert np.isnan(found.image_to_text[2])
    figures = found.figures((1, 2, 3))
    assert figures["image_to_text"] == {
        "recall@1": pytest.approx(2 / 3),
        "recall@2": pytest.approx(2 / 3),
        "recall@3": 1.0,
        "mrr": pytest.approx((1 + 1 / 3 + 1) / 3),
    }
    assert set(figures) == {"image_to_text", "text_to_image"}
    nobody = rank_towers(images[:1], texts, [[]]).figures()
    assert nobody["text_to_image"] == {"recall@1": None, "recall@5": None, "recall@10": None, "mrr": None}


def test_one_caption_an_image_may_be_an_array_and_lengths_do_not_matter() -> None:
    z = np.random.default_rng(0).normal(size=(30, 8))
    t = np.random.default_rng(1).normal(size=(9, 8))
    numbers = np.arange(30) % 9
    one, other = rank_towers(z, t, numbers), rank_towers(z * 7, t / 3, [[number, number] for number in numbers])
    assert np.array_equal(one.image_to_text, other.image_to_text)
    assert np.array_equal(one.text_to_image, other.text_to_image)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z: rank_towers(z, z[:, :2] + 1, [0] * 4), "images has 4 features, but texts is expecting 2"),
        (lambda z: rank_towers(z, z, [0] * 3), "captions has 3 entries, images has 4"),
        (lambda z: rank_towers(z, z, [0, 1, 2, 4]), r"captions names text 4, there are 4 \(0..3\)"),
        (lambda z: rank_towers(z, z, [[0], [-1], [2], []]), "captions names text -1"),
        (lambda z: rank_towers(z, z, [0.5, 1, 2, 3]), "captions holds float64 values"),
        (lambda z: rank_towers(z, z, ["a", "b", "c", "d"]), "expected whole numbers"),
        (lambda z: rank_towers(z * np.nan, z, [0] * 4), "images row 0 holds NaN"),
        (lambda z: class_precision(z, [0] * 4, z, [0] * 4, k=5), "k is 5, expected 1 to 4"),
        (lambda z: class_precision(z, [0] * 3, z, [0] * 4, k=1), r"text_labels has shape \(3,\), expected \(4,\)"),
    ],
)
def test_wrong_input_is_named(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(np.eye(4, dtype=np.float32))
