from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest

from nearfar.data import load_images, load_splits
from nearfar.data.idx import idx_header, read_idx
from nearfar.errors import InputError

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def idx(array: np.ndarray) -> bytes:
    """The format from its description: two zero bytes, type 8, rank, big-endian sizes, values."""
    return bytes([0, 0, 8, array.ndim]) + b"".join(struct.pack(">I", n) for n in array.shape) + array.astype(np.uint8).tobytes()


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 6, 4), dtype=np.uint8)


def labels(count: int) -> np.ndarray:
    return (np.arange(count) % 3) * 5


def write(folder, packed=False, names=NAMES):
    folder.mkdir(exist_ok=True)
    for name, array in zip(names, (images(7), labels(7), images(4, 1), labels(4)), strict=True):
        path = folder / (name + ".gz" * packed)
        path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    return folder


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dots", [False, True])
def test_the_four_files(tmp_path, packed, dots):
    names = [name.replace("-idx", ".idx") for name in NAMES] if dots else NAMES
    sets = load_splits(write(tmp_path / "some", packed, names))
    assert list(sets) == ["train", "test"]
    np.testing.assert_array_equal(sets["train"].images[:, 0], images(7))
    np.testing.assert_array_equal(sets["test"].images[:, 0], images(4, 1))
    assert sets["train"].classes == ("0", "5", "10")
    assert sets["train"].labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert sets["train"].name == "some/train"


def test_one_file_finds_its_labels_beside_it(tmp_path):
    write(tmp_path)
    found = load_images(tmp_path / NAMES[2])
    np.testing.assert_array_equal(found.images[:, 0], images(4, 1))
    assert found.labels.tolist() == [0, 1, 2, 0]
    (tmp_path / NAMES[3]).unlink()
    assert load_images(tmp_path / NAMES[2]).labels is None
    (tmp_path / (NAMES[3] + ".gz")).write_bytes(gzip.compress(idx(labels(4))))
    assert load_images(tmp_path / NAMES[2]).labels.tolist() == [0, 1, 2, 0]


def test_plain_and_packed_copies_of_one_file_are_one(tmp_path):
    write(write(tmp_path, packed=True))
    assert list(load_splits(tmp_path)) == ["train", "test"]


def test_colour_and_header(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 9, 3), dtype=np.uint8)
    (tmp_path / "train-images-idx4-ubyte").write_bytes(idx_header(pixels.shape) + pixels.tobytes())
    np.testing.assert_array_equal(load_images(tmp_path).images, pixels.transpose(0, 3, 1, 2))
    assert idx_header((60000, 28, 28)) == bytes.fromhex("00000803 0000ea60 0000001c 0000001c")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (NAMES[1], idx(labels(6)), "has 6 labels, .*train-images-idx3-ubyte.* has 7 images"),
        (NAMES[0], idx(images(7))[:-1], "is cut short"),
        (NAMES[0], idx(images(7)) + b"x", "is longer than"),
        (NAMES[0], b"\0\0\x0d\x03" + idx(images(7))[4:], "holds float32 values; expected unsigned bytes"),
        (NAMES[0], b"what is this?", "is not an IDX file"),
        (NAMES[0], b"", "is cut short"),
        (NAMES[0], idx(labels(7)), r"has the shape \[7\]; expected"),
        (NAMES[0], bytes([0, 0, 8, 3]) + b"\xff" * 12, "is cut short: its header names"),
        (NAMES[1], idx(images(7)), r"has the shape \[7, 6, 4\]; labels are one number"),
    ],
)
def test_damaged_files_are_named(tmp_path, packed, name, content, message):
    write(tmp_path, packed)
    path = tmp_path / (name + ".gz" * packed)
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(InputError, match=message) as raised:
        load_splits(tmp_path)
    assert path.name in str(raised.value)


def test_a_torn_gzip_file_is_named(tmp_path):
    write(tmp_path, packed=True)
    path = tmp_path / (NAMES[0] + ".gz")
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte\.gz is damaged"):
        load_images(tmp_path, "train")


def test_what_to_do_is_said(tmp_path):
    write(tmp_path)
    with pytest.raises(InputError, match="holds labels; give the file with the images"):
        load_images(tmp_path / NAMES[1])
    (tmp_path / "emnist-train-images-idx3-ubyte").write_bytes(idx(images(7)))
    with pytest.raises(InputError, match="holds the images of two train splits, emnist-train"):
        load_splits(tmp_path)
    for path in tmp_path.glob("*images*"):
        path.unlink()
    with pytest.raises(InputError, match="holds IDX labels but no images"):
        load_splits(tmp_path)


def test_reading_labels(tmp_path):
    (tmp_path / NAMES[1]).write_bytes(idx(labels(9)))
    np.testing.assert_array_equal(read_idx(tmp_path / NAMES[1]), labels(9))
