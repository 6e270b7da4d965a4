from __future__ import annotations

import os

import numpy as np
import pytest
from data.pictures import class_folder, colour, encoded, grey, save

from nearfar.data import ImageSet, load_any, load_images, load_splits
from nearfar.errors import InputError


@pytest.fixture
def pets(tmp_path):
    class_folder(tmp_path / "pets", {"cat": 2, "dog": 1})
    return tmp_path / "pets"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnits", "'mnits' is neither a known data set nor a path that exists; did you mean 'mnist'"),
        ("fashion_mnist", "did you mean 'fashion-mnist'"),
        ("zzzzz", "known are digits, fashion-mnist, mnist"),
        ("", "'' is neither"),
    ],
)
def test_unknown_names_and_paths_suggest_the_nearest(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        load_images(name)


def test_a_wrong_path_suggests_its_neighbours(pets):
    with pytest.raises(InputError, match=r"did you mean '.*/pets'\?"):
        load_images(pets.with_name("pest"))
    with pytest.raises(InputError, match=r"did you mean '.*/cat/0\.png'"):
        load_any([pets / "cat" / "00.png"])


def test_a_name_wins_and_a_path_is_always_a_path(pets, monkeypatch):
    os.rename(pets, pets.with_name("digits"))
    monkeypatch.chdir(pets.parent)
    assert load_images("digits", "train").classes == tuple("0123456789")
    assert load_images("./digits").classes == ("cat", "dog")
    assert load_images(pets.with_name("digits")).classes == ("cat", "dog")


@pytest.mark.parametrize("wrong", [3, None, ["a"], {"a": 1}])
def test_things_that_are_no_data(wrong):
    with pytest.raises(InputError, match="expected a name, a path, an ImageSet or a NumPy array"):
        load_images(wrong)


def test_files_of_other_kinds(tmp_path):
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(InputError, match=r"a\.docx is of no kind that is read here; expected a folder"):
        load_images(tmp_path / "a.docx")


def test_splits_are_chosen_by_name(pets):
    with pytest.raises(InputError, match="digits has the splits 'train' and 'test'; choose one, such as split='train'"):
        load_images("digits")
    with pytest.raises(InputError, match="digits has no split 'tset'; it has 'train' and 'test'; did you mean 'test'"):
        load_images("digits", "tset")
    with pytest.raises(InputError, match=r"pets has no split 'test'; it has 'train'$"):
        load_images(pets, "test")
    assert list(load_splits(pets)) == ["train"]
    assert len(load_images(pets, "train")) == len(load_images(pets)) == 3
    assert (load_images(pets).name, load_images("digits", "test").name) == ("pets", "digits/test")


def test_image_sets_and_arrays_pass_through():
    given = ImageSet.from_arrays(np.stack([grey(8, 8, seed) for seed in range(3)]), [5, 7, 5], name="mine")
    assert load_images(given) is given
    assert load_images(given, "test", size=8, channels=1) is given
    assert load_splits(given)["train"] is given
    changed = load_images(given, size=4, channels=3)
    assert changed.shape == (3, 3, 4, 4)
    assert (changed.labels.tolist(), changed.classes, changed.name) == ([0, 1, 0], ("5", "7"), "mine")
    np.testing.assert_array_equal(load_images(given.images).images, given.images)
    as_file = load_any([given], size=(4, 4), channels=3)
    np.testing.assert_array_equal(as_file.images, changed.images)


def test_what_an_array_and_a_file_become_is_the_same(tmp_path):
    pixels = colour(30, 20)
    save(tmp_path / "x.png", pixels)
    for size, channels in (((7, 9), None), (40, 1), (None, 1)):
        from_file = load_images(tmp_path / "x.png", size=size, channels=channels)
        from_array = load_images(pixels[None], size=size, channels=channels)
        np.testing.assert_array_equal(from_file.images, from_array.images)


def test_anything_together_in_the_order_given(tmp_path, pets, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in range(3):
        save(tmp_path / f"{seed}.png", grey(6, 6, seed))
    np.savez(tmp_path / "some.npz", x_train=grey(6, 6, 7)[None], x_test=grey(6, 6, 8)[None])
    (tmp_path / "table.csv").write_text("\n".join(",".join(map(str, grey(6, 6, seed).reshape(-1))) for seed in (20, 21)))
    found = load_any(["2.png", "pets", "0.png", "2.png", "some.npz", tmp_path / "table.csv"])
    assert found.labels is None
    assert found.ids.tolist() == [
        "2.png",
        "pets/cat/0.png",
        "pets/cat/1.png",
        "pets/dog/0.png",
        "0.png",
        "2.png#2",
        "some.npz/train/0",
        "some.npz/test/0",
        "table.csv/0",
        "table.csv/1",
    ]
    expected = [2, None, None, None, 0, 2, 7, 8, 20, 21]
    for image, seed in zip(found.images, expected, strict=True):
        if seed is not None:
            np.testing.assert_array_equal(image[0], grey(6, 6, seed))


def test_anything_is_labelled_when_all_of_it_is(tmp_path, pets):
    class_folder(tmp_path / "more", {"ant": 1, "dog": 2}, seed=50)
    found = load_any([pets, tmp_path / "more"])
    assert found.classes == ("ant", "cat", "dog")
    assert found.labels.tolist() == [1, 1, 2, 0, 2, 2]
    assert load_any(pets).classes == ("cat", "dog")
    assert load_any(pets).ids.tolist() == load_images(pets).ids.tolist()


def test_anything_takes_all_splits_and_mixed_folders(tmp_path, pets):
    save(pets / "stray.png", grey(6, 6))
    found = load_any(pets)
    assert found.labels is None
    assert found.ids.tolist() == ["cat/0.png", "cat/1.png", "dog/0.png", "stray.png"]
    digits = load_any("digits")
    assert len(digits) == 1797
    assert len(digits.classes) == 10


def test_anything_of_any_size_and_mode(tmp_path):
    save(tmp_path / "a.png", grey(9, 7))
    save(tmp_path / "b.jpg", colour(30, 40), "JPEG")
    (tmp_path / "c.gif").write_bytes(encoded(grey(5, 5), "GIF"))
    (tmp_path / "d.png").write_text("torn")
    paths = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"d\.png: not an image"):
        load_any(paths, size=8, channels=3)
    found = load_any(paths, size=8, channels=3, skip_bad=True)
    assert found.shape == (3, 3, 8, 8)
    assert len(found.skipped) == 1
    with pytest.raises(InputError, match="no images were given"):
        load_any([])


def test_a_home_folder_is_found(pets, monkeypatch):
    monkeypatch.setenv("HOME", str(pets.parent))
    assert len(load_images("~/pets")) == 3
    assert len(load_any(["~/pets/cat/0.png"])) == 1
