from __future__ import annotations

import os

import numpy as np
import pytest
from data.pictures import class_folder, colour, grey, huge_png, save

from nearfar.data import load_images, load_splits
from nearfar.data.folders import list_files
from nearfar.errors import InputError


def by_id(found) -> dict[str, np.ndarray]:
    return {name: image[0] for name, image in zip(found.ids.tolist(), found.images, strict=True)}


def test_one_sub_folder_per_class(tmp_path):
    made = class_folder(tmp_path / "pets", {"dog": 3, "cat": 2})
    found = load_images(tmp_path / "pets")
    assert found.name == "pets"
    assert found.classes == ("cat", "dog")
    assert [found.classes[label] for label in found.labels] == [name.partition("/")[0] for name in found.ids]
    assert by_id(found).keys() == made.keys()
    for name, pixels in by_id(found).items():
        np.testing.assert_array_equal(pixels, made[name])


def test_classes_that_are_numbers_are_in_the_order_of_numbers(tmp_path):
    class_folder(tmp_path, {"10": 1, "9": 1, "0": 1})
    assert load_images(tmp_path).classes == ("0", "9", "10")


def test_nested_files_belong_to_the_class_and_hidden_and_other_files_to_none(tmp_path):
    class_folder(tmp_path, {"cat": 1, "dog/puppies/of 2024": 2})
    for stray in ("readme.txt", "cat/notes.md", ".DS_Store", "cat/.hidden.png", ".git/x.png", "__MACOSX/cat/._0.png"):
        (tmp_path / stray).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / stray).write_bytes(b"nothing")
    (tmp_path / "empty class").mkdir()
    found = load_images(tmp_path)
    assert found.classes == ("cat", "dog")
    assert found.ids.tolist() == ["cat/0.png", "dog/puppies/of 2024/0.png", "dog/puppies/of 2024/1.png"]


def test_folders_for_splits_share_their_classes(tmp_path):
    class_folder(tmp_path / "train", {"b": 2, "c": 1})
    class_folder(tmp_path / "test", {"c": 2, "a": 1})
    class_folder(tmp_path / "valid", {"c": 1})
    sets = load_splits(tmp_path)
    assert list(sets) == ["train", "validation", "test"]
    assert {found.classes for found in sets.values()} == {("a", "b", "c")}
    assert {split: found.labels.tolist() for split, found in sets.items()} == {
        "train": [1, 1, 2],
        "validation": [2],
        "test": [0, 2, 2],
    }
    assert sets["test"].ids.tolist() == ["test/a/0.png", "test/c/0.png", "test/c/1.png"]
    np.testing.assert_array_equal(load_images(tmp_path, split="val").images, sets["validation"].images)


def test_a_class_may_be_called_train(tmp_path):
    class_folder(tmp_path, {"train": 2, "bus": 1})
    assert list(load_splits(tmp_path)) == ["train"]
    assert load_images(tmp_path).classes == ("bus", "train")


def test_a_folder_without_classes_is_unlabelled(tmp_path):
    for number in range(3):
        save(tmp_path / f"{number}.png", grey(seed=number))
    found = load_images(tmp_path)
    assert (found.labels, found.classes, found.ids.tolist()) == (None, (), ["0.png", "1.png", "2.png"])


def test_an_unlabelled_split_beside_a_labelled_one(tmp_path):
    class_folder(tmp_path / "train", {"a": 1, "b": 1})
    save(tmp_path / "test" / "x.png", grey())
    sets = load_splits(tmp_path, size=6)
    assert sets["test"].labels is None
    assert sets["train"].classes == ("a", "b")


def test_images_beside_class_folders_are_refused(tmp_path):
    class_folder(tmp_path, {"a": 1, "b": 1})
    save(tmp_path / "stray.png", grey())
    with pytest.raises(InputError, match="holds 1 images of its own beside folders of images"):
        load_images(tmp_path)


@pytest.mark.parametrize(
    ("files", "seen"),
    [([], "it is empty"), (["a.txt", "b/c.txt", "b/d.pdf", "LICENSE"], "seen 2 .txt, 1 without a suffix, 1 .pdf")],
)
def test_a_folder_without_images_says_what_it_has(tmp_path, files, seen):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    with pytest.raises(InputError, match="holds no images: " + ("it is empty" if not files else "seen 2")) as raised:
        load_images(tmp_path)
    assert all(part in str(raised.value) for part in seen.replace("seen ", "").split(", "))


def test_links_are_followed_but_never_round_in_circles(tmp_path):
    class_folder(tmp_path / "elsewhere", {"x": 2})
    class_folder(tmp_path / "pets", {"cat": 1})
    os.symlink(tmp_path / "elsewhere" / "x", tmp_path / "pets" / "dog")
    os.symlink(tmp_path / "pets", tmp_path / "pets" / "cat" / "up")
    os.symlink(tmp_path / "nowhere", tmp_path / "pets" / "cat" / "broken.png")
    assert list_files(tmp_path / "pets") == ["cat/0.png", "dog/0.png", "dog/1.png"]


def test_metadata_gives_labels_and_splits(tmp_path):
    for number in range(4):
        save(tmp_path / "files" / f"{number}.png", grey(seed=number))
    (tmp_path / "metadata.csv").write_text(
        '\ufeffText,file_name,Label,split\n"a, comma",files/3.png,red,train\nb,files/1.png,blue,val\n,files/0.png,red,train\n'
        "c,files/3.png,green,train\n\n"
    )
    sets = load_splits(tmp_path)
    assert sets["train"].classes == sets["validation"].classes == ("blue", "green", "red")
    assert sets["train"].ids.tolist() == ["files/3.png", "files/0.png", "files/3.png#2"]
    assert sets["train"].labels.tolist() == [2, 2, 1]
    np.testing.assert_array_equal(sets["train"].images[:, 0], [grey(seed=3), grey(seed=0), grey(seed=3)])
    np.testing.assert_array_equal(load_images(tmp_path / "metadata.csv", "train").images, sets["train"].images)


def test_metadata_in_the_folders_for_splits(tmp_path):
    for split in ("train", "test"):
        save(tmp_path / split / "x.png", grey())
        (tmp_path / split / "metadata.csv").write_text(
            "file_name,class\nx.png,7\n" if split == "train" else "file_name\nx.png\n"
        )
    class_folder(tmp_path / "validation", {"7": 1, "8": 1})
    sets = load_splits(tmp_path, size=6)
    assert sets["train"].labels.tolist() == [0]
    assert sets["test"].labels is None
    assert sets["validation"].classes == ("7", "8")
    assert sets["train"].ids.tolist() == ["train/x.png"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("filename,label\nx.png,a\n", "the columns filename, label; 'file_name' is missing; did you mean 'filename'"),
        ("", "the columns none; 'file_name' is missing"),
        ("file_name,label\nx.png,a\nx.png,\n", "line 3: label is empty"),
        ("file_name,label\n,a\n", "line 2: file_name is empty"),
        ("file_name,label\nx.png\n", "line 2 has 1 columns, expected 2"),
        ("file_name,split\nx.png,hold-out\n", "line 2: split is 'hold-out'; expected train, validation or test"),
        ("file_name\n", "has no rows"),
        ("file_name,label\ngone.png,a\n", r"gone\.png: No such file"),
    ],
)
def test_faults_of_metadata_are_named(tmp_path, table, message):
    save(tmp_path / "x.png", grey())
    (tmp_path / "metadata.csv").write_text(table)
    with pytest.raises(InputError, match=message):
        load_images(tmp_path)


def test_bad_files_are_named_or_left_out_and_counted(tmp_path):
    made = class_folder(tmp_path, {"a": 3, "b": 2})
    whole = (tmp_path / "a/1.png").read_bytes()
    (tmp_path / "a/1.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "a/0.png").write_bytes(b"")
    (tmp_path / "b/0.png").write_bytes(huge_png())
    with pytest.raises(InputError, match=r"a/0\.png: there is nothing in it"):
        load_images(tmp_path)
    found = load_images(tmp_path, skip_bad=True)
    assert found.ids.tolist() == ["a/2.png", "b/1.png"]
    assert found.labels.tolist() == [0, 1]
    assert by_id(found).keys() < made.keys()
    for name, pixels in by_id(found).items():
        np.testing.assert_array_equal(pixels, made[name])
    assert len(found.skipped) == 3
    for line, (name, reason) in zip(
        found.skipped, [("a/0.png", "nothing"), ("a/1.png", "damaged"), ("b/0.png", "pixels")], strict=True
    ):
        assert name in line
        assert reason in line


def test_when_nothing_can_be_read_skipping_does_not_help(tmp_path):
    for number in range(2):
        (tmp_path / f"{number}.png").write_text("no image")
    with pytest.raises(InputError, match=r"none of its images can be read; the first: .*0\.png: not an image"):
        load_images(tmp_path, skip_bad=True)


def test_sizes_that_differ_need_a_size(tmp_path):
    save(tmp_path / "0.png", grey(6, 5))
    save(tmp_path / "1.png", grey(7, 5))
    with pytest.raises(InputError, match=r"1\.png is 7 x 5 \(height x width\), images before it are 6 x 5; .*size=6"):
        load_images(tmp_path, skip_bad=True)
    assert load_images(tmp_path, size=(4, 3)).shape == (2, 1, 4, 3)
    assert load_images(tmp_path, size=9, channels=3).shape == (2, 3, 9, 9)


@pytest.mark.parametrize("at", [0, 1, 4])
def test_one_colour_image_makes_the_set_colour(tmp_path, at):
    for number in range(5):
        save(tmp_path / f"{number}.png", colour() if number == at else grey(seed=number))
    found = load_images(tmp_path)
    assert found.channels == 3
    for number in range(5):
        expected = colour().transpose(2, 0, 1) if number == at else np.repeat(grey(seed=number)[None], 3, 0)
        np.testing.assert_array_equal(found.images[number], expected)
    assert load_images(tmp_path, channels=1).channels == 1


def test_splits_end_with_the_same_channels(tmp_path):
    save(tmp_path / "train" / "x.png", grey())
    save(tmp_path / "test" / "x.png", colour())
    sets = load_splits(tmp_path)
    assert sets["train"].channels == sets["test"].channels == 3
    np.testing.assert_array_equal(sets["train"].images[0, 1], grey())


def test_rgba_and_palette_classes_of_four(tmp_path):
    rng = np.random.default_rng(0)
    from PIL import Image

    for number in range(30):
        for copy in range(4):
            image = Image.fromarray(rng.integers(0, 256, (64, 64, 4), dtype=np.uint8))
            if copy % 2:
                image = image.convert("RGB").quantize(16)
            save(tmp_path / f"sign {number}" / f"{copy}.png", image)
    found = load_images(tmp_path, size=32, channels=3, background=0)
    assert found.shape == (120, 3, 32, 32)
    assert np.bincount(found.labels).tolist() == [4] * 30
