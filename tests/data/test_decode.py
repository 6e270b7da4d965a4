from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from data.pictures import colour, encoded, grey, huge_png, save
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nearfar.data import decode_image
from nearfar.data.decode import MAX_PIXELS, BadImage, quiet_pillow
from nearfar.errors import InputError


def luma(rgb: np.ndarray) -> np.ndarray:
    return rgb[..., :3].astype(float) @ [0.299, 0.587, 0.114]


def over(rgb: np.ndarray, alpha: np.ndarray, background: float | np.ndarray) -> np.ndarray:
    share = alpha.astype(float)[..., None] / 255
    return rgb * share + np.asarray(background) * (1 - share)


def chw(rgb: np.ndarray) -> np.ndarray:
    return rgb.transpose(2, 0, 1)


def test_grey_and_colour_come_back_as_they_were():
    np.testing.assert_array_equal(decode_image(encoded(grey())), grey()[None])
    np.testing.assert_array_equal(decode_image(encoded(colour())), chw(colour()))
    np.testing.assert_array_equal(decode_image(encoded(grey()), channels=3), np.repeat(grey()[None], 3, 0))
    np.testing.assert_allclose(decode_image(encoded(colour()), channels=1)[0], luma(colour()), atol=0.51)


def test_one_bit():
    bits = grey() > 127
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(bits)))[0], bits * 255)


@pytest.mark.parametrize("background", [0, 77, 255, (10, 200, 90)])
def test_alpha_is_laid_on_the_background(background):
    rgba = np.dstack([colour(), grey(seed=1)])
    expected = over(colour(), grey(seed=1), background)
    np.testing.assert_allclose(decode_image(encoded(rgba), background=background), chw(expected), atol=0.51)
    np.testing.assert_allclose(decode_image(encoded(rgba), background=background, channels=1)[0], luma(expected), atol=1.01)


def test_grey_with_alpha_stays_grey_on_grey_alone():
    image = Image.merge("LA", [Image.fromarray(grey()), Image.fromarray(grey(seed=1))])
    expected = over(np.repeat(grey()[..., None], 3, 2), grey(seed=1), 40)
    got = decode_image(encoded(image), background=40)
    assert got.shape == (1, 6, 5)
    np.testing.assert_allclose(got[0], expected[..., 0], atol=0.51)
    tinted = decode_image(encoded(image), background=(255, 0, 0))
    np.testing.assert_allclose(tinted, chw(over(np.repeat(grey()[..., None], 3, 2), grey(seed=1), (255, 0, 0))), atol=0.51)


def test_palette_with_and_without_transparency():
    table = np.random.default_rng(3).integers(0, 256, (256, 3), dtype=np.uint8)
    image = Image.fromarray(grey()).convert("L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette(table.tobytes())
    np.testing.assert_array_equal(decode_image(encoded(image)), chw(table[grey()]))
    alpha = np.random.default_rng(4).integers(0, 256, 256, dtype=np.uint8)
    expected = over(table[grey()], alpha[grey()], 0)
    np.testing.assert_allclose(
        decode_image(encoded(image, transparency=alpha.tobytes()), background=0), chw(expected), atol=0.51
    )
    keyed = decode_image(encoded(image, transparency=int(grey()[2, 3])), background=0)
    np.testing.assert_array_equal(keyed, chw(table[grey()] * (grey() != grey()[2, 3])[..., None]))


def test_a_palette_of_greys_is_grey():
    image = Image.frombytes("P", (5, 6), grey().tobytes())
    image.putpalette(np.repeat(np.arange(255, -1, -1, dtype=np.uint8), 3).tobytes())
    np.testing.assert_array_equal(decode_image(encoded(image)), 255 - grey()[None])
    alpha = bytes([0]) + bytes([255]) * 255
    np.testing.assert_array_equal(
        decode_image(encoded(image, transparency=alpha), background=9)[0], np.where(grey() == 0, 9, 255 - grey())
    )


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_colour_may_stand_for_transparency(mode):
    pixels = grey() if mode == "L" else colour()
    key = int(pixels[1, 2]) if mode == "L" else tuple(int(value) for value in pixels[1, 2])
    got = decode_image(encoded(pixels, transparency=key), background=13)
    expected = pixels.copy()
    expected[1, 2] = 13
    if mode == "L":
        expected[pixels == key] = 13
    np.testing.assert_array_equal(got, expected[None] if mode == "L" else chw(expected))


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "I;16"), ("TIFF", "I;16"), ("TIFF", "I;16B"), ("PPM", "I;16")])
def test_sixteen_bits_are_divided_by_257_and_rounded(kind, mode):
    deep = np.array([[0, 128, 129, 385, 386], [257, 65535, 65406, 65407, 32768]], dtype=np.uint16)
    image = Image.frombytes(mode, (5, 2), deep.astype(">u2" if mode.endswith("B") else "<u2").tobytes())
    assert decode_image(encoded(image, kind))[0].tolist() == [[0, 0, 1, 1, 2], [1, 255, 254, 255, 128]]


def test_wider_numbers_only_where_their_range_is_known():
    wide = Image.fromarray(np.array([[0, 65535]], dtype=np.int32))
    assert decode_image(encoded(wide, "TIFF")).tolist() == [[[0, 255]]]
    with pytest.raises(InputError, match="pixels go from 0 to 65536"):
        decode_image(encoded(Image.fromarray(np.array([[0, 65536]], dtype=np.int32)), "TIFF"))
    floats = Image.fromarray(np.array([[0, 0.5, 1]], dtype=np.float32))
    assert decode_image(encoded(floats, "TIFF")).tolist() == [[[0, 128, 255]]]
    for wrong in (1.5, float("nan")):
        with pytest.raises(InputError, match="only 0 to 1 has a meaning"):
            decode_image(encoded(Image.fromarray(np.array([[0, wrong]], dtype=np.float32)), "TIFF"))


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_cmyk_becomes_rgb(kind):
    inks = np.zeros((16, 16, 4), dtype=np.uint8)
    inks[..., :] = [0, 255, 255, 0]
    red = decode_image(encoded(Image.frombytes("CMYK", (16, 16), inks.tobytes()), kind))
    np.testing.assert_allclose(red[:, 8, 8], [255, 0, 0], atol=8)


def test_a_mode_without_conversion_is_refused_by_name(tmp_path):
    lab = Image.frombytes("LAB", (5, 6), colour().tobytes())
    path = save(tmp_path / "lab.tif", lab, "TIFF")
    with pytest.raises(InputError, match=r"lab\.tif: its pixel mode LAB cannot be converted"):
        decode_image(path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation, kind):
    # A bright corner, and a dimmer one to its right, tell all eight apart.
    upright = np.zeros((32, 64), dtype=np.uint8)
    upright[:16, :16], upright[:16, 48:] = 250, 120
    # What a camera in that position stores, from the definition: where row 0 and column 0 of the file lie in the scene.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: upright.T[::-1],
        7: upright.T[::-1, ::-1],
        8: upright.T[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(np.ascontiguousarray(stored), kind, exif=exif)
    np.testing.assert_allclose(decode_image(content)[0], upright, atol=3)
    small = np.asarray(Image.fromarray(upright).resize((8, 4), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(decode_image(content, size=(4, 8))[0], small, atol=3)


def test_damaged_metadata_does_not_matter():
    content = encoded(colour(), exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12" * 9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(decode_image(content), chw(colour()))


def test_of_an_animation_the_first_frame(tmp_path):
    frames = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (10, 200)]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        np.testing.assert_allclose(decode_image(content, channels=1), np.full((1, 4, 4), 10), atol=2)


def test_size_is_height_by_width_and_averages_when_it_shrinks():
    wide = np.zeros((8, 16), dtype=np.uint8)
    wide[:, ::2] = 255
    got = decode_image(encoded(wide), size=(4, 2))
    assert got.shape == (1, 4, 2)
    # Without averaging over the source the stripes would come out as 0 or 255.
    np.testing.assert_allclose(got, 127.5, atol=12)
    assert decode_image(encoded(wide), size=32).shape == (1, 32, 32)


def test_a_large_jpeg_shrinks_to_the_same_picture_as_by_the_long_way():
    y, x = np.mgrid[:1024, :768]
    picture = np.stack([x / 3, y / 4, 127 + 120 * np.sin(x / 70) * np.cos(y / 90)], -1).astype(np.uint8)
    content = encoded(picture, "JPEG", quality=95, subsampling=0)
    with Image.open(io.BytesIO(content)) as image:
        whole = np.asarray(image.resize((32, 40), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(decode_image(content, size=(40, 32)), chw(whole), atol=4)
    np.testing.assert_allclose(decode_image(content, size=(40, 32), channels=1)[0], luma(whole), atol=4)


@pytest.mark.parametrize("side", [50_000, 12_000])
def test_an_image_that_claims_too_much_is_refused_from_its_header(tmp_path, side):
    path = tmp_path / "bomb.png"
    path.write_bytes(huge_png(side))
    # 12,000 x 12,000 is where Pillow would only warn; it must neither warn nor decode, under any filter.
    for action in ("error", "always"):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter(action)
            with pytest.raises(InputError, match=rf"bomb\.png: it claims .*{MAX_PIXELS:,}"):
                decode_image(path)
        assert not said


def test_truncated_images_name_the_file(tmp_path):
    for kind in ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF"):
        content = encoded(colour(64, 64), kind)
        path = tmp_path / f"cut.{kind.lower()}"
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(InputError, match=rf"cut\.{kind.lower()}: .*skip_bad"):
            decode_image(path)


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "there is nothing in it"), (b"hello, I am a text", "not an image in a known format")]
)
def test_what_is_no_image(tmp_path, content, reason):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"a\.png: {reason}"):
        decode_image(path)
    with pytest.raises(InputError, match=f"given: {reason}"):
        decode_image(content, name="given")


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(InputError, match=r"none\.png: No such file"):
        decode_image(tmp_path / "none.png")
    with pytest.raises(InputError, match="Is a directory"):
        decode_image(tmp_path)


def test_formats_that_run_programs_are_not_read():
    with pytest.raises(InputError, match="not an image in a known format"):
        decode_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")


@given(
    st.integers(0, 400),
    st.integers(0, 255),
    st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO"]),
)
@settings(max_examples=150, deadline=None)
def test_whatever_byte_is_wrong_the_answer_is_an_image_or_one_line(place, value, kind):
    content = bytearray(encoded(colour(16, 16), kind))
    content[place % len(content)] = value
    with quiet_pillow():
        try:
            got = decode_image(bytes(content))
        except BadImage as error:
            said = str(error)
        else:
            said = ""
            assert got.dtype == np.uint8
            assert got.ndim == 3
    assert "\n" not in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size is 0; expected"),
        ({"size": (3,)}, "size is"),
        ({"size": True}, "size is True"),
        ({"size": 2.5}, "size is 2.5"),
        ({"channels": 2}, "channels is 2; expected 1"),
        ({"channels": True}, "channels is True"),
        ({"background": 256}, "background is 256"),
        ({"background": (1, 2)}, "background is"),
        ({"background": "white"}, "background is 'white'"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(InputError, match=message):
        decode_image(encoded(grey()), **options)


def test_the_result_can_be_written_to():
    got = decode_image(encoded(grey()))
    got[:] = 7
    assert (got == 7).all()
