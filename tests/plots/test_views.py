"""The sheet of views shows the images that it was given, in their places."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from nearfar.errors import InputError
from nearfar.plots.views import view_grid


def test_every_view_stands_in_the_row_of_its_image() -> None:
    shades = np.array([[10, 60, 110], [150, 200, 250]], dtype=np.uint8)
    images = np.repeat(np.repeat(np.array([30, 90], dtype=np.uint8), 36).reshape(2, 1, 6, 6), 1, axis=1)
    views = np.repeat(shades, 36).reshape(2, 3, 1, 6, 6)
    drawn = np.asarray(Image.open(io.BytesIO(view_grid(images, views).png_bytes(100))).convert("L")).astype(int)
    places = {shade: np.argwhere(abs(drawn - shade) <= 2) for shade in (30, 90, *shades.ravel().tolist())}
    centres = {shade: np.median(found, axis=0) for shade, found in places.items()}
    for own, others in zip((30, 90), shades.tolist(), strict=True):
        heights, across = zip(*(centres[shade] for shade in (own, *others)), strict=True)
        assert max(heights) - min(heights) <= 1
        assert list(across) == sorted(across)
        assert len(set(across)) == 4
    assert centres[30][0] < centres[90][0]


def test_unequal_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="expected as many"):
        view_grid(np.zeros((2, 1, 4, 4), dtype=np.uint8), np.zeros((3, 2, 1, 4, 4), dtype=np.uint8))
