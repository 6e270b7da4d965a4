from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest

from nearfar.data import load_images, load_splits
from nearfar.errors import InputError


def images(count: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 6, 8), dtype=np.uint8)


@pytest.mark.parametrize(("x", "y"), [("images", "labels"), ("x", "y"), ("X", "y")])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_images_and_labels(tmp_path, x, y, save):
    save(tmp_path / "a.npz", **{x: images(), y: np.array([3, 1, 3, 3, 1])})
    found = load_images(tmp_path / "a.npz")
    np.testing.assert_array_equal(found.images[:, 0], images())
    assert (found.labels.tolist(), found.classes) == ([1, 0, 1, 1, 0], ("1", "3"))


def test_splits(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=images(), y_train=list("aabba"), x_test=images(2, 1), y_test=list("ca"))
    sets = load_splits(tmp_path / "a.npz")
    assert {split: found.labels.tolist() for split, found in sets.items()} == {"train": [0, 0, 1, 1, 0], "test": [2, 0]}
    np.savez(tmp_path / "b.npz", train_images=images(), train_labels=np.arange(5)[:, None], val_images=images(2))
    sets = load_splits(tmp_path / "b.npz")
    assert sets["train"].labels.tolist() == [0, 1, 2, 3, 4]
    assert sets["validation"].labels is None


def test_layouts_and_types(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 8, 3), dtype=np.uint8)
    for name, array in {"hwc": pixels, "chw": pixels.transpose(0, 3, 1, 2), "float": (pixels / 255).astype(np.float32)}.items():
        np.savez(tmp_path / f"{name}.npz", images=np.ascontiguousarray(array))
        np.testing.assert_array_equal(load_images(tmp_path / f"{name}.npz").images, pixels.transpose(0, 3, 1, 2))
    alpha = np.concatenate([pixels, np.zeros_like(pixels[..., :1])], axis=3)
    np.savez(tmp_path / "rgba.npz", images=alpha)
    assert (load_images(tmp_path / "rgba.npz", background=9).images == 9).all()


def test_it_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("nearfar.data.sources.CHUNK_PIXELS", 100)
    np.savez_compressed(tmp_path / "a.npz", x=images(40))
    np.testing.assert_array_equal(load_images(tmp_path / "a.npz").images[:, 0], images(40))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": images(), "labels": np.arange(4)}, "'labels' has 4 entries, 'images' has 5 images"),
        ({"images": images().astype(np.int64)}, "is int64; expected uint8, or floats"),
        ({"images": images().astype(float)}, r"holds the float .*must lie in \[0, 1\]"),
        ({"images": np.full((2, 6, 8), np.nan)}, "holds the float nan"),
        ({"images": np.zeros((2, 6, 8, 5), np.uint8)}, r"has the shape \[2, 6, 8, 5\]; expected"),
        ({"images": images(), "labels": np.eye(5)}, r"save labels.argmax\(1\)"),
        ({"images": images(), "labels": np.arange(5.0)}, "labels must be .* whole numbers or texts"),
        ({"images": np.asfortranarray(images())}, "column by column"),
        ({"pictures": images(), "z": images()}, "holds pictures, z; expected images and labels"),
        ({"images": np.array([None, {}], dtype=object)}, "holds Python objects, which are never loaded"),
        ({"images": np.array(3, np.uint8)}, "'images' is a single value"),
    ],
)
def test_arrays_that_cannot_be_images_and_labels(tmp_path, arrays, message):
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match=message) as raised:
        load_images(tmp_path / "a.npz")
    assert "a.npz" in str(raised.value)


def rewritten(path, change):
    """The archive with the bytes of images.npy changed, its check sums made right again."""
    file = io.BytesIO()
    np.save(file, images())
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", change(file.getvalue()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.replace(b"(5, 6, 8)", b"(9, 6, 8)"), "is shorter than the shape"),
        (lambda content: b"no array" + content, "is not a plain array"),
        (lambda content: content[:30], "is not a plain array"),
    ],
)
def test_a_header_that_lies(tmp_path, change, message):
    rewritten(tmp_path / "a.npz", change)
    with pytest.raises(InputError, match=message):
        load_images(tmp_path / "a.npz")


def test_damaged_archives_are_named(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", images=images(200))
    whole = (tmp_path / "a.npz").read_bytes()
    torn = bytearray(whole)
    torn[len(whole) // 2] ^= 0xFF
    for content in (whole[: len(whole) // 2], b"", bytes(torn)):
        (tmp_path / "a.npz").write_bytes(content)
        with pytest.raises(InputError, match=r"a\.npz"):
            load_images(tmp_path / "a.npz")


def test_a_small_archive_that_unpacks_to_much_is_bounded_by_the_disk(tmp_path, monkeypatch):
    """40 MB of zeros in 40 kB, where memory and disk are only allowed less than that."""
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((40_000, 32, 32), np.uint8))
    assert (tmp_path / "a.npz").stat().st_size < 100_000
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10_000_000}))
    with pytest.raises(InputError, match="40,000 images need 40,960,000 bytes, the disk has 10,000,000 free"):
        load_images(tmp_path / "a.npz", in_memory_bytes=1_000_000, cache=tmp_path / "cache")
