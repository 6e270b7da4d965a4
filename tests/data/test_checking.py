from __future__ import annotations

import json

import numpy as np
import pytest
from data.pictures import class_folder, colour, encoded, grey, save
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nearfar.data import check, format_check
from nearfar.data.checking import _repeated, _shared, _Split
from nearfar.errors import InputError


@pytest.fixture
def messy(tmp_path):
    """train: 3 cats (one twice), 2 dogs (one of them a cat), 1 emu, 1 torn; test: one cat of train as dog, one as BMP."""
    root = tmp_path / "pets"
    class_folder(root / "train", {"cat": 3, "dog": 1, "emu": 1})
    save(root / "train/cat/copy.bmp", grey(6, 6, 1), "BMP")
    save(root / "train/dog/cat.png", grey(6, 6, 2))
    (root / "train/dog/torn.png").write_bytes(encoded(colour(60, 60))[:900])
    save(root / "train/dog/wide.png", Image.fromarray(np.dstack([colour(4, 9), grey(4, 9)])))
    save(root / "test/dog/0.png", grey(6, 6, 3))
    save(root / "test/cat/0.webp", Image.fromarray(grey(6, 6, 1)), "WEBP", lossless=True)
    save(root / "test/cat/1.png", grey(6, 6, 77))
    return root


def test_what_is_found(messy):
    tree = check(messy)
    assert json.loads(json.dumps(tree)) == tree
    train, test = tree["splits"]["train"], tree["splits"]["test"]
    assert (tree["source"], tree["classes"]) == ("pets", 3)
    assert train["per_class"] == {"cat": 4, "dog": 4, "emu": 1}
    assert (train["images"], train["readable"], train["labelled"]) == (9, 8, True)
    assert train["single"] == ["emu"]
    assert test["single"] == ["dog"]
    assert train["sizes"] == [{"height": 6, "width": 6, "images": 7}, {"height": 4, "width": 9, "images": 1}]
    assert train["modes"] == {"L": 7, "RGBA": 1}
    assert [(bad["file"], "damaged" in bad["reason"]) for bad in train["unreadable"]] == [
        (str(messy / "train/dog/torn.png"), True)
    ]
    assert train["duplicates"] == {
        "pictures": 2,
        "images": 2,
        "differing_labels": 1,
        "examples": [["train/cat/0.png", "train/cat/copy.bmp"], ["train/cat/1.png", "train/dog/cat.png"]],
    }
    assert test["duplicates"]["images"] == 0
    (pair,) = tree["across"]
    assert pair["splits"] == ["train", "test"]
    # WebP decodes to colour, which is not the same picture as grey; the other is, under another label.
    assert {key: pair[key] for key in ("pictures", "images", "differing_labels")} == {
        "pictures": 1,
        "images": 1,
        "differing_labels": 1,
    }
    assert pair["examples"] == [["train/cat/2.png", "test/dog/0.png"]]


def test_it_reads_well(messy):
    text = format_check(check(messy))
    for part in (
        "pets: 3 classes",
        "train: 9 images",
        "1 to 4 images, 3 classes",
        "1 classes have just one: emu",
        "6 x 6 (7), 4 x 9 (1), height x width",
        "L (7), RGBA (1)",
        "unreadable   1",
        "torn.png: the image is damaged",
        "2 repeat another image (2 different pictures, 1 labelled differently)",
        "train/cat/0.png = train/cat/copy.bmp",
        "duplicates   none",
        "test and train: 1 images of test are in train too (1 different picture, 1 labelled differently)",
    ):
        assert part in text


def test_sets_without_labels_and_without_a_readable_image(tmp_path):
    save(tmp_path / "plain" / "0.png", grey())
    save(tmp_path / "plain" / "1.png", grey())
    tree = check(tmp_path / "plain")
    assert tree["classes"] == 0
    assert tree["splits"]["train"]["per_class"] == {}
    assert tree["splits"]["train"]["duplicates"]["images"] == 1
    assert "plain: no labels" in format_check(tree)
    (tmp_path / "torn").mkdir()
    for number in range(7):
        (tmp_path / "torn" / f"{number}.png").write_text("x")
    tree = check(tmp_path / "torn")
    assert (tree["splits"]["train"]["readable"], len(tree["splits"]["train"]["unreadable"])) == (0, 7)
    assert "and 2 more" in format_check(tree)


def test_arrays_and_named_sets():
    pixels = np.stack([grey(seed=seed) for seed in (1, 2, 1, 1)])
    found = check(pixels)["splits"]["train"]
    assert (found["modes"], found["duplicates"]["images"], found["duplicates"]["pictures"]) == ({"L": 4}, 2, 1)
    tree = check("digits")
    assert list(tree["splits"]) == ["train", "test"]
    assert sum(tree["splits"]["test"]["per_class"].values()) == 355
    with pytest.raises(InputError, match="neither a known data set"):
        check("nothing")


def test_classes_that_are_many_are_counted_not_listed(tmp_path):
    class_folder(tmp_path, {f"class {number}": 1 for number in range(30)})
    text = format_check(check(tmp_path))
    assert "30 classes have just one: class 0, class 1, class 10, class 11, class 12 and 25 more" in text
    assert "class 29 " not in text


pictures = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), max_size=14)


@given(pictures, pictures)
@settings(max_examples=80, deadline=None)
def test_duplicates_are_those_of_a_slow_count(first, second):
    def split(rows, letter):
        digests = np.array([[9, number] for number, _ in rows], dtype=np.uint64).reshape(-1, 2)
        labels = np.array([label for _, label in rows], dtype=np.int64)
        return _Split({}, [f"{letter}{row}" for row in range(len(rows))], labels, digests)

    one, other = split(first, "a"), split(second, "b")
    found = _repeated(one.ids, one.labels, one.digests)
    labels_of = {number: [label for n, label in first if n == number] for number, _ in first}
    several = {number: labels for number, labels in labels_of.items() if len(labels) > 1}
    assert found["pictures"] == len(several)
    assert found["images"] == sum(len(labels) - 1 for labels in several.values())
    assert found["differing_labels"] == sum(len(set(labels)) > 1 for labels in several.values())
    for a, b in found["examples"]:
        assert int(a[1:]) < int(b[1:])
        assert first[int(a[1:])][0] == first[int(b[1:])][0]
    shared = _shared(one, other)
    both = {number for number, _ in first} & {number for number, _ in second}
    assert shared["pictures"] == len(both)
    assert shared["images"] == sum(number in both for number, _ in second)
    assert shared["differing_labels"] == sum(len({label for n, label in first + second if n == number}) > 1 for number in both)
    for a, b in shared["examples"]:
        assert first[int(a[1:])][0] == second[int(b[1:])][0]
