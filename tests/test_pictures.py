"""Pictures of added images: written, read, removed, and nothing but pictures read."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nearfar import pictures


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_comes_back_to_the_pixel(tmp_path: Path, channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, channels, 5, 7)).astype(np.uint8)
    pictures.write(tmp_path, np.array([70, 71]), images)
    for number, image in zip((70, 71), images, strict=True):
        content = pictures.read(tmp_path, number)
        assert content is not None
        pixels = np.asarray(Image.open(io.BytesIO(content)))
        assert np.array_equal(pixels if channels == 3 else pixels[..., None], np.moveaxis(image, 0, -1))


def test_removed_and_missing_ones_are_none(tmp_path: Path) -> None:
    pictures.write(tmp_path, np.array([3, 4]), np.zeros((2, 1, 2, 2), dtype=np.uint8))
    pictures.remove(tmp_path, np.array([3, 99]))
    assert pictures.read(tmp_path, 3) is None
    assert pictures.read(tmp_path, 4) is not None


def test_a_sweep_leaves_what_the_index_names_and_what_is_not_ours(tmp_path: Path) -> None:
    pictures.write(tmp_path, np.array([1, 2]), np.zeros((2, 1, 2, 2), dtype=np.uint8))
    (tmp_path / "items" / "notes.txt").write_text("mine")
    (tmp_path / "items" / ".5.png.abc.part").write_text("half")
    pictures.sweep(tmp_path, np.array([2]))
    assert sorted(path.name for path in (tmp_path / "items").iterdir()) == ["2.png", "notes.txt"]
    pictures.sweep(tmp_path / "nowhere", np.array([2]))


def test_a_link_to_another_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "items").mkdir()
    (tmp_path / "items" / "8.png").symlink_to(tmp_path / "secret")
    assert pictures.read(tmp_path, 8) is None
