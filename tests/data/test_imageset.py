from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearfar.data import ImageSet
from nearfar.data.imageset import class_order, number_labels, text_ids, unique_ids
from nearfar.data.store import open_images, write_images
from nearfar.errors import InputError


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 6, 5), dtype=np.uint8)


def test_what_a_set_says_of_itself():
    found = ImageSet(images(6), np.arange(6) % 2, ("cat", "dog"), name="pets")
    assert len(found) == 6
    assert found.shape == (6, 3, 6, 5)
    assert found.channels == 3
    assert found.size == (6, 5)
    assert found.labels.dtype == np.int64
    assert found.ids.tolist() == ["0", "1", "2", "3", "4", "5"]
    assert repr(found) == "ImageSet('pets', 6 x 3 x 6 x 5, 2 classes)"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros(5, int)}, "labels has 5 entries, images has 6"),
        ({"labels": np.zeros(6)}, "labels must be whole numbers"),
        ({"labels": np.full(6, -1)}, "labels go down to -1"),
        ({"labels": np.full(6, 2), "classes": ("a", "b")}, "labels go up to 2, but there are 2 classes"),
        ({"classes": ("a", "a")}, "classes names 'a' twice"),
        ({"ids": np.array(["a"] * 6)}, "ids must be unique"),
        ({"ids": np.array(["a"])}, "ids has 1 entries, images has 6"),
        ({"images": images(6).astype(np.float32)}, r"images must be uint8 \[N, C, H, W\], got float32"),
        ({"images": images(6)[:, 0]}, r"got uint8 \[6, 6, 5\]"),
        ({"images": [1, 2]}, "images must be a NumPy array or DiskImages, got list"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        ImageSet(**({"images": images(6)} | change))


def test_labels_without_names_are_named_by_number():
    assert ImageSet(images(3), np.array([2, 0, 2])).classes == ("0", "1", "2")


def test_unlabelled_where_labels_are_needed():
    unlabelled = ImageSet(images(3), name="holiday")
    with pytest.raises(InputError, match=r"holiday has no labels.*sub-folder per class"):
        unlabelled.require_labels()
    assert ImageSet(images(2), np.array([1, 0])).require_labels().tolist() == [1, 0]


def test_subset_keeps_rows_together_in_memory_and_on_disk(tmp_path):
    pixels = images(9)
    with write_images(tmp_path / "x.images", (3, 6, 5)) as writer:
        writer.append(pixels)
    stored, _ = open_images(tmp_path / "x.images")
    labels = np.arange(9) % 3
    for held in (pixels, stored):
        whole = ImageSet(held, labels, ids=text_ids("abcdefghi"))
        for rows in (np.array([7, 0, 3]), slice(1, 8, 3), labels == 2, [-1, 2]):
            part = whole.subset(rows)
            np.testing.assert_array_equal(part.images[:], pixels[rows])
            np.testing.assert_array_equal(part.labels, labels[rows])
            assert part.ids.tolist() == np.array(list("abcdefghi"))[rows].tolist()
            assert type(part.images) is type(held)
        again = whole.subset([5, 4, 3]).subset([2, 0])
        np.testing.assert_array_equal(again.images[:], pixels[[3, 5]])


def test_a_row_taken_twice_gets_an_id_of_its_own():
    assert ImageSet(images(2), ids=np.array(["a", "b"])).subset([0, 1, 0, 0]).ids.tolist() == ["a", "b", "a#2", "a#3"]


def test_fingerprint_is_of_content_alone(tmp_path, monkeypatch):
    pixels, labels = images(50), np.arange(50) % 5
    one = ImageSet(pixels, labels, name="one")
    known = one.fingerprint()
    assert ImageSet(pixels.copy(), labels, ids=text_ids(f"x{i}" for i in range(50)), name="two").fingerprint() == known
    with write_images(tmp_path / "x.images", (3, 6, 5)) as writer:
        writer.append(pixels)
    assert ImageSet(open_images(tmp_path / "x.images")[0], labels).fingerprint() == known
    # However it is cut into slices.
    monkeypatch.setattr("nearfar.data.imageset._SLICE_BYTES", 700)
    assert one.fingerprint() == known
    changed = pixels.copy()
    changed[49, 2, 5, 4] ^= 1
    others = [
        ImageSet(changed, labels),
        ImageSet(pixels, labels[::-1].copy()),
        ImageSet(pixels, labels, tuple("vwxyz")),
        ImageSet(pixels),
        ImageSet(pixels.reshape(50, 3, 5, 6), labels),
    ]
    assert len({known, *(other.fingerprint() for other in others)}) == 6


def test_from_arrays_numbers_any_labels():
    found = ImageSet.from_arrays(images(4).transpose(0, 2, 3, 1), ["b", "a", "b", "10"])
    np.testing.assert_array_equal(found.images, images(4))
    assert found.classes == ("10", "a", "b")
    assert found.labels.tolist() == [2, 1, 2, 0]
    assert ImageSet.from_arrays(np.zeros((3, 8, 8)), np.array([10, -1, 9])).classes == ("-1", "9", "10")
    with pytest.raises(InputError, match=r"labels.argmax\(1\)"):
        ImageSet.from_arrays(images(4), np.eye(4))


@given(st.lists(st.sampled_from(["a", "b", "a#2", "b#2", "a#3", "c"]), max_size=12))
@settings(max_examples=60, deadline=None)
def test_unique_ids_are_unique_and_keep_those_that_were(texts):
    made = unique_ids(np.array(texts, dtype=np.dtypes.StringDType())).tolist()
    assert len(set(made)) == len(texts)
    firsts = {text: texts.index(text) for text in texts}
    assert all(made[row] == text for text, row in firsts.items())
    assert all(new.startswith(old) for new, old in zip(made, texts, strict=True))


def test_classes_are_ordered_by_number_when_all_are_numbers():
    assert class_order(["10", "9", "-3", "9"]) == ("-3", "9", "10")
    assert class_order(["10", "9", "x"]) == ("10", "9", "x")
    numbers, classes = number_labels(np.array([30, 4, 4], dtype=np.uint8))
    assert (numbers.tolist(), classes) == ([1, 0, 0], ("4", "30"))


def test_importing_it_costs_no_heavy_library():
    code = (
        "import sys; from nearfar.data import ImageSet;"
        "print([name for name in ('torch', 'sklearn', 'pyarrow', 'matplotlib', 'PIL', 'scipy') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
