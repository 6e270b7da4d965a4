"""Captions: what readers find, that every stage keeps them with their image, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data.pictures import encoded, grey, save

from nearfar.data import ImageSet, check, format_check, load_any, load_images, load_splits
from nearfar.errors import InputError
from nearfar.recipe import DataSection
from nearfar.splits import concatenate, cut


def captioned(count: int = 6) -> ImageSet:
    """Image number i is all of grey value i, and so is its first caption."""
    images = np.repeat(np.arange(count, dtype=np.uint8), 16).reshape(count, 1, 4, 4)
    texts = [[f"grey {i}", f"level {i}"][: 1 + i % 2] for i in range(count)]
    return ImageSet(images, np.arange(count) % 2, ("even", "odd"), texts=texts)  # type: ignore[arg-type]  # put into form there


def assert_together(images: ImageSet) -> None:
    """Every caption is still that of its image."""
    assert images.texts is not None
    for pixels, texts in zip(images.images[np.arange(len(images))], images.texts, strict=True):
        assert texts[0] == f"grey {pixels[0, 0, 0]}"


# ---- the set


def test_captions_are_put_into_form_and_counted() -> None:
    images = ImageSet.from_arrays(np.zeros((4, 2, 2), np.uint8), texts=[" a cat ", ["two", " ", "three"], None, ""])
    assert images.texts == (("a cat",), ("two", "three"), (), ())
    assert "3 captions" in repr(images)
    assert ImageSet.from_arrays(np.zeros((1, 2, 2), np.uint8)).texts is None


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["one"], "texts has 1 entries, images has 2; there must be one for each image"),
        (["one", 5], r"texts: row 1 \(from 0\) holds 5; expected one text or several"),
        (["one", ["two", 5]], "row 1"),
        ("ab", "texts is a str; expected the captions of each image"),
    ],
)
def test_what_are_no_captions_is_refused(texts, words) -> None:
    with pytest.raises(InputError, match=words):
        ImageSet.from_arrays(np.zeros((2, 2, 2), np.uint8), texts=texts)


def test_subsets_splits_and_joined_sets_keep_each_caption_with_its_image() -> None:
    images = captioned(20)
    assert_together(images.subset([3, 1, 3]))
    assert_together(images.subset(slice(None, None, -1)))
    section = DataSection(validation=0.2, test=0.2, fraction=0.5)
    for part in cut({"train": images}, section, seed=0).parts().values():
        assert_together(part)
    joined = concatenate(images.subset([0, 1]), images.subset([5]))
    assert joined.texts == (("grey 0",), ("grey 1", "level 1"), ("grey 5", "level 5"))
    assert_together(load_any([images, images]))
    assert load_any([images, dataclasses.replace(images, texts=None)]).texts is None
    assert load_images(images, size=8).texts == images.texts


def test_the_fingerprint_knows_captions_and_stays_as_it_was_without() -> None:
    bare = dataclasses.replace(captioned(), texts=None)
    prints = {bare.fingerprint(), captioned().fingerprint(), captioned().with_texts(["x"] * 6).fingerprint()}
    assert len(prints) == 3
    assert bare.fingerprint() == ImageSet(bare.images, bare.labels, bare.classes).fingerprint()


def test_captions_of_classes() -> None:
    images = captioned().with_texts({"even": "an even one", "odd": ["an odd one", "odd"]})
    assert images.texts is not None
    assert images.texts[:2] == (("an even one",), ("an odd one", "odd"))
    with pytest.raises(InputError, match="class 'odd' has no captions"):
        captioned().with_texts({"even": "x"})
    with pytest.raises(InputError, match="'evn', which is no class; classes are even, odd"):
        captioned().with_texts({"evn": "x", "odd": "y"})
    with pytest.raises(InputError, match="no labels"):
        ImageSet(images.images).with_texts({"even": "x"})


# ---- readers


@pytest.mark.parametrize("column", ["text", "Caption", "captions"])
@pytest.mark.parametrize("several", [False, True])
def test_parquet(tmp_path, column, several) -> None:
    values = [["one", "two"], ["three"], []] if several else ["one", "two", None]
    table = {"image": [encoded(grey(seed=i)) for i in range(3)], "label": ["b", "a", "b"], column: values}
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    found = load_images(tmp_path / "x.parquet")
    assert found.texts == ((("one", "two"), ("three",), ()) if several else (("one",), ("two",), ()))
    assert found.classes == ("a", "b")


def test_parquet_files_of_one_set_have_captions_or_not(tmp_path) -> None:
    for name, more in (("a", {"text": ["x"]}), ("b", {})):
        pq.write_table(pa.table({"image": [encoded(grey())], **more}), tmp_path / f"{name}.parquet")
    with pytest.raises(InputError, match="differ in their column of captions"):
        load_images(tmp_path)


def test_a_table_beside_images_with_several_rows_for_an_image(tmp_path) -> None:
    for name in "abc":
        save(tmp_path / f"{name}.png", grey(seed=ord(name)))
    table = 'file_name,Caption,label\na.png,an a,1\nb.png,"b, or so",2\na.png,another a,1\nc.png,,1\n'
    (tmp_path / "metadata.csv").write_text(table)
    found = load_images(tmp_path)
    assert found.ids.tolist() == ["a.png", "b.png", "c.png"]
    assert found.texts == (("an a", "another a"), ("b, or so",), ())
    assert found.labels is not None
    assert [found.classes[label] for label in found.labels] == ["1", "2", "1"]


def test_a_table_of_captions_alone_in_folders_for_splits(tmp_path) -> None:
    for split in ("train", "test"):
        save(tmp_path / split / "a.png", grey(seed=len(split)))
        (tmp_path / split / "metadata.csv").write_text(f"file_name,text\na.png,for {split}\n")
    sets = load_splits(tmp_path)
    assert {split: found.texts for split, found in sets.items()} == {"train": (("for train",),), "test": (("for test",),)}
    assert sets["train"].labels is None


def test_npz(tmp_path) -> None:
    pixels = np.zeros((3, 4, 4), np.uint8)
    np.savez(tmp_path / "one.npz", images=pixels, labels=[0, 1, 0], text=["a", "b", ""])
    assert load_images(tmp_path / "one.npz").texts == (("a",), ("b",), ())
    many = np.array([["a", "b"], ["c", ""], ["d", "e"]])
    np.savez(tmp_path / "splits.npz", x_train=pixels, text_train=many, x_test=pixels[:1], captions_test=["f"])
    sets = load_splits(tmp_path / "splits.npz")
    assert sets["train"].texts == (("a", "b"), ("c",), ("d", "e"))
    assert sets["test"].texts == (("f",),)
    np.savez(tmp_path / "bad.npz", images=pixels, text=[1, 2, 3])
    with pytest.raises(InputError, match=r"'text' is int64 \[3\]; captions must be texts"):
        load_images(tmp_path / "bad.npz")
    np.savez(tmp_path / "bad.npz", images=pixels, text=["a", "b"])
    with pytest.raises(InputError, match="'text' has 2 entries"):
        load_images(tmp_path / "bad.npz")


def test_files_that_cannot_be_read_take_their_captions_along_and_disk_keeps_the_rest(tmp_path) -> None:
    for i in range(4):
        save(tmp_path / f"{i}.png", np.full((4, 4), i, np.uint8))
    (tmp_path / "1.png").write_bytes(b"torn")
    (tmp_path / "metadata.csv").write_text("file_name,text\n" + "".join(f"{i}.png,grey {i}\n" for i in range(4)))
    for limit in (1 << 30, 1):
        found = load_images(tmp_path, skip_bad=True, cache=tmp_path / "cache", in_memory_bytes=limit)
        assert len(found) == 3
        assert_together(found)
        assert_together(found.subset([2, 0]))


# ---- the check


def test_data_check_counts_captions(tmp_path) -> None:
    images = captioned().with_texts(["a", ["a", "b"], None, "", "c", "d"])
    tree = check(images)["splits"]["train"]
    assert tree["captions"] == {"images": 4, "captions": 5, "distinct": 4, "without": 2, "examples": ["2", "3"]}
    assert "captions     5 of 4 images, 4 different ones; 2 images have none: 2, 3" in format_check(check(images))
    assert check(dataclasses.replace(images, texts=None))["splits"]["train"]["captions"] is None
