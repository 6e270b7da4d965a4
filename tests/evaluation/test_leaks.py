"""Copies in the gallery: every one that was put there is found, no other, and figures without them are those of the rest."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from samples import shapes

import nearfar as nf
from nearfar.data import ImageSet
from nearfar.errors import InputError
from nearfar.evaluation import evaluate_embeddings, leaks
from nearfar.evaluation.leaks import LIKENESS, centred, find_copies, leak_figures, leak_parts, nearer_copies


def with_images(images: ImageSet, changes: dict[int, Any]) -> ImageSet:
    pixels = np.array(images.images)
    for row, image in changes.items():
        pixels[row] = image
    return ImageSet(images=pixels, labels=images.labels, classes=images.classes)


def correlations(queries: ImageSet, gallery: ImageSet) -> np.ndarray:
    x, y = (np.asarray(each.images).reshape(len(each), -1).astype(np.float64) for each in (queries, gallery))
    return np.array([[np.corrcoef(a, b)[0, 1] for b in y] for a in x])


def test_exact_and_near_copies_are_found_and_nothing_else() -> None:
    gallery, fresh = shapes(50, size=28), shapes(20, size=28, seed=7)
    picture = np.asarray(gallery.images).astype(np.float64)
    darker, noisy = 0.6 * picture[11] + 20, picture[12] + np.random.default_rng(0).normal(0, 3, picture[12].shape)
    changed = {2: picture[10], 3: darker, 4: noisy.clip(0, 255)}
    queries = with_images(fresh, changed)
    found = find_copies(gallery, queries)
    assert np.flatnonzero(found.found).tolist() == [2, 3, 4]
    assert found.partner[[2, 3, 4]].tolist() == [10, 11, 12]
    assert found.exact.tolist() == [row == 2 for row in range(20)]
    table = correlations(queries, gallery)
    assert found.likeness[[2, 3, 4]] == pytest.approx(table[[2, 3, 4], [10, 11, 12]], abs=1e-5)
    assert np.array_equal(found.found, (table >= LIKENESS).any(axis=1))
    assert np.isnan(found.likeness[~found.found]).all()


def test_inside_one_set_an_image_is_no_copy_of_itself() -> None:
    plain = shapes(30)
    images = with_images(plain, {7: plain.images[3], 9: plain.images[4] // 2 + 10})
    found = find_copies(images, images, exclude=np.arange(30))
    assert np.flatnonzero(found.exact).tolist() == [3, 7]
    assert np.flatnonzero(found.found).tolist() == [3, 4, 7, 9]
    assert found.partner[[3, 4, 7, 9]].tolist() == [7, 9, 3, 4]
    alone = images.subset([5])
    assert not find_copies(alone, alone, exclude=np.array([0])).found.any()


def test_a_stored_and_decoded_photograph_is_a_near_copy() -> None:
    smooth = np.add.outer(np.sin(np.linspace(0, 6, 48)), np.cos(np.linspace(0, 4, 48)))
    pictures = [(127 + 50 * np.roll(smooth, 5 * at, axis=at % 2)).astype(np.uint8) for at in range(8)]
    gallery = ImageSet(images=np.stack([np.stack([one, one.T, one[::-1]]) for one in pictures]))
    stored = []
    for image in np.asarray(gallery.images):
        file = io.BytesIO()
        Image.fromarray(np.moveaxis(image, 0, 2)).save(file, format="JPEG", quality=40)
        stored.append(np.moveaxis(np.asarray(Image.open(file)), 2, 0))
    found = find_copies(gallery, ImageSet(images=np.stack(stored)))
    assert found.partner.tolist() == list(range(8))
    assert not found.exact.any()


def test_images_of_one_colour_are_exact_copies_or_none() -> None:
    flat = np.stack([np.full((1, 8, 8), value, dtype=np.uint8) for value in (0, 90, 90, 200)])
    flat[3, 0, 0, 0] = 201  # one step of grey shows nothing either
    found = find_copies(ImageSet(images=flat[:2]), ImageSet(images=flat[2:]))
    assert found.partner.tolist() == [1, -1]
    assert not centred(flat.reshape(4, -1).astype(np.float32) / 255).any()


def test_of_two_galleries_the_nearer_copy_counts() -> None:
    images = shapes(10)
    near = with_images(images, {0: images.images[0] // 2 + 9, 1: images.images[1] // 2 + 9})
    other = with_images(shapes(6, seed=5), {2: images.images[1], 3: images.images[2]})
    found = nearer_copies(find_copies(near, images.subset([0, 1, 2])), find_copies(other, images.subset([0, 1, 2])), 10)
    # The third image is in both, to the pixel: the first gallery's counts.
    assert found.partner.tolist() == [0, 12, 2]
    assert found.exact.tolist() == [False, True, True]
    assert found.likeness[1:].tolist() == [1.0, 1.0]


def test_figures_without_copies_are_those_of_the_rest() -> None:
    gallery, fresh = shapes(60), shapes(30, seed=3)
    queries = with_images(fresh, {row: gallery.images[row] for row in range(6)})
    found = find_copies(gallery, queries)
    known, truth = gallery.require_labels(), queries.require_labels()
    z, q = (np.asarray(each.images).reshape(len(each), -1).astype(np.float32) for each in (gallery, queries))
    whole = evaluate_embeddings(z, known, q, truth, classes="abc", k=3, bootstrap=0, parts=leak_parts(found))
    tree = leak_figures(found, whole["parts"], truth, known, queries.ids, gallery.ids)
    rest = ~found.found
    assert rest.sum() == 24
    alone = evaluate_embeddings(z, known, q[rest], truth[rest], classes="abc", k=3, bootstrap=0)
    for part, expected in (("all", whole), ("without", alone)):
        own = tree["figures"][part]
        assert own["queries"] == expected["data"]["queries"]
        for section, key in (
            ("classification", "accuracy"),
            ("classification", "one_nn_accuracy"),
            ("retrieval", "recall@1"),
            ("retrieval", "map@r"),
        ):
            assert own[key] == pytest.approx(expected[section][key], abs=1e-12)
    assert (tree["exact"], tree["near"]) == (6, 0)
    assert tree["differing_labels"] == int((known[:6] != truth[:6]).sum())
    assert [pair["query"] for pair in tree["examples"]] == [str(row) for row in range(6)]
    assert [pair["same_class"] for pair in tree["examples"]] == (known[:6] == truth[:6]).tolist()


def test_a_model_is_judged_with_and_without_copies() -> None:
    class Pixels:
        """Embeds by the pixels themselves."""

        def transform(self, images: ImageSet) -> np.ndarray:
            return np.asarray(images.images).reshape(len(images), -1).astype(np.float32)

    gallery, fresh = shapes(60), shapes(30, seed=3)
    queries = with_images(fresh, {row: gallery.images[row] for row in range(6)})
    tree = nf.evaluate(Pixels(), gallery, queries, k=3, bootstrap=0)
    rest = queries.subset(np.arange(6, 30))
    alone = nf.evaluate(Pixels(), gallery, rest, k=3, bootstrap=0)
    assert tree["leaks"]["exact"] == 6
    assert alone["leaks"]["exact"] == 0
    assert tree["leaks"]["figures"]["without"] == alone["leaks"]["figures"]["all"]
    assert "parts" not in tree
    inside = nf.evaluate(Pixels(), queries, queries, k=3, bootstrap=0)
    assert inside["leaks"]["exact"] == 0  # none but itself


def test_when_every_query_is_a_copy_nothing_is_left_to_measure() -> None:
    images = shapes(12)
    found = find_copies(images, images)
    z, labels = np.eye(12, dtype=np.float32), images.require_labels()
    tree = evaluate_embeddings(z, labels, z, labels, classes="abc", k=1, bootstrap=0, parts=leak_parts(found))
    assert tree["parts"]["without"] == {
        "queries": 0,
        "accuracy": None,
        "one_nn_accuracy": None,
        "recall@1": None,
        "map@r": None,
    }


def test_examples_reach_from_the_most_to_the_least_alike() -> None:
    images = shapes(40)
    found = find_copies(images, images)
    likeness = np.linspace(0.99, 1.0, 40)
    tree = leak_figures(
        found._replace(likeness=likeness), {}, images.require_labels(), images.require_labels(), images.ids, images.ids
    )
    shown = [pair["likeness"] for pair in tree["examples"]]
    assert len(shown) == leaks.EXAMPLES
    assert shown == sorted(shown, reverse=True)
    assert (shown[0], shown[-1]) == (1.0, 0.99)


def test_among_too_many_pairs_only_exact_copies_are_sought(monkeypatch: pytest.MonkeyPatch) -> None:
    images = shapes(20)
    queries = with_images(images, {0: images.images[0] // 2})
    monkeypatch.setattr(leaks, "MOST_PAIRS", 399)
    found = find_copies(images, queries)
    assert found.found.sum() == 19
    labels = images.require_labels()
    assert leak_figures(found, {}, labels, labels, images.ids, images.ids)["near"] is None


def test_images_of_two_sizes_are_refused() -> None:
    with pytest.raises(InputError, match=r"\[1, 12, 12\].*\[1, 14, 14\]"):
        find_copies(shapes(5, size=14), shapes(5))


@pytest.mark.parametrize("same", [False, True])
def test_to_look_first_for_who_may_have_copies_changes_nothing(monkeypatch: pytest.MonkeyPatch, same: bool) -> None:
    random = np.random.default_rng(0)
    pixels = np.kron(random.integers(0, 256, (300, 1, 7, 7)), np.ones((1, 1, 4, 4))).astype(np.float64)
    pixels[7] = 128  # of one colour
    noise = random.normal(size=(60, 1, 28, 28)) * np.linspace(0, 40, 60)[:, None, None, None]  # likeness from 1 to far less
    strange = 255 - pixels[100:140]
    altered = np.concatenate([pixels[:60] * 0.8 + 20 + noise, pixels[:5], strange])
    known = ImageSet(images=np.concatenate([pixels, altered[:60:2]]).clip(0, 255).astype(np.uint8), labels=None, classes=())
    asked = known if same else ImageSet(images=altered.clip(0, 255).astype(np.uint8), labels=None, classes=())
    own = np.arange(len(known)) if same else None
    plain = find_copies(known, asked, exclude=own)
    monkeypatch.setattr(leaks, "_MANY_PAIRS", 1)
    quick = find_copies(known, asked, exclude=own)
    for one, other in zip(quick, plain, strict=True):
        np.testing.assert_array_equal(one, other)
    assert 5 <= (plain.found & ~plain.exact).sum() < len(asked) / 2
    may = leaks._may_be_copies(known, asked, own)
    assert may[plain.found & ~plain.exact].all()
    assert not may[200:300].any() if same else not may[-len(strange) :].any()
