from __future__ import annotations

import numpy as np
import pytest
from data.pictures import encoded
from PIL import Image

from nearfar.data import decode_image
from nearfar.data.pixels import Form, NeedsColour, as_images, convert_block, layout_of, to_grey
from nearfar.errors import InputError


def block(channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (4, channels, 9, 7), dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("wanted", [1, 3, None])
@pytest.mark.parametrize("size", [None, (9, 7), (5, 12)])
@pytest.mark.parametrize("background", [255, 30, (1, 120, 240)])
def test_a_block_becomes_what_image_files_become(channels, wanted, size, background):
    pixels = block(channels)
    modes = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
    files = [
        encoded(Image.frombytes(modes[channels], (7, 9), np.ascontiguousarray(image.transpose(1, 2, 0)).tobytes()))
        for image in pixels
    ]
    expected = np.stack([decode_image(file, size=size, channels=wanted, background=background) for file in files])
    form = Form.of(size, wanted, background)
    got = convert_block(pixels, form, expected.shape[1:], "it")
    # Alpha over a background and then grey: Pillow rounds at the same places.
    np.testing.assert_array_equal(got, expected)


def test_luma_is_pillows_for_every_kind_of_colour():
    values = np.random.default_rng(1).integers(0, 256, (1, 3, 300, 300), dtype=np.uint8)
    image = Image.fromarray(np.ascontiguousarray(values[0].transpose(1, 2, 0)))
    np.testing.assert_array_equal(to_grey(values)[0, 0], np.asarray(image.convert("L")))


def test_sizes_differ_and_none_was_asked_for():
    with pytest.raises(InputError, match=r"it is 9 x 7 \(height x width\), images before it are 8 x 8; .*size=8"):
        convert_block(block(1), Form(), (1, 8, 8), "it")


def test_colour_among_grey_is_told_unless_grey_was_asked_for():
    with pytest.raises(NeedsColour):
        convert_block(block(3), Form(), (1, 9, 7), "it")
    assert convert_block(block(3), Form(channels=1), (1, 9, 7), "it").shape == (4, 1, 9, 7)
    assert convert_block(block(1), Form(), (3, 9, 7), "it").shape == (4, 3, 9, 7)


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((5, 28, 28), "NHW"),
        ((5, 1, 28, 28), "NCHW"),
        ((5, 3, 28, 20), "NCHW"),
        ((5, 28, 28, 1), "NHWC"),
        ((5, 28, 28, 4), "NHWC"),
        ((0, 28, 28), "NHW"),
    ],
)
def test_layouts_are_told_by_their_shape(shape, layout):
    assert layout_of(shape, "it") == layout


@pytest.mark.parametrize("shape", [(5, 3, 28, 3), (5, 28, 28, 2), (5, 28), (5, 0, 28), (5, 1, 1, 9, 9), (1, 50_000, 50_000)])
def test_shapes_that_are_no_images_or_two_kinds_are_refused(shape):
    with pytest.raises(InputError, match="it has the shape"):
        layout_of(shape, "it")


def test_numbers_other_than_bytes():
    floats = np.array([0, 0.25, 0.5, 1]).reshape(1, 2, 2)
    for dtype in (np.float16, np.float32, np.float64):
        assert as_images(floats.astype(dtype), "it").reshape(-1).tolist() == [0, 64, 128, 255]
    for wrong in (1.01, -0.01, np.nan, np.inf, 200):
        with pytest.raises(InputError, match=r"it holds the float .*must lie in \[0, 1\]"):
            as_images(np.where(floats == 1, wrong, floats), "it")
    for dtype in (np.int64, np.int8, np.uint16, bool, object, "U3"):
        with pytest.raises(InputError, match=r"expected uint8, or floats"):
            as_images(floats.astype(dtype), "it")
    with pytest.raises(InputError, match="it has 4 channels"):
        as_images(np.zeros((2, 4, 8, 8), np.uint8), "it")
