"""One image file to uint8 [C, H, W]: any mode, orientation and size. It knows one image at a time, and no labels.

Everything Pillow can throw at a damaged file becomes one line that names the file.
"""

from __future__ import annotations

import contextlib
import functools
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, UnidentifiedImageError

from nearfar.data.pixels import FILTER, MAX_PIXELS, Form
from nearfar.errors import InputError

# Formats of plain raster images. Pillow knows more, some of which start other programs (PostScript) or hold no pixels.
_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "TGA", "ICO", "DIB", "JPEG2000", "AVIF", "QOI", "PCX")

SUFFIXES = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".gif", ".bmp", ".dib", ".ppm", ".pgm", ".pbm", ".pnm"}
    | {".tif", ".tiff", ".webp", ".tga", ".ico", ".jp2", ".j2k", ".avif", ".qoi", ".pcx"}
)

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112


class BadImage(InputError):
    """One file that cannot be read; ``name`` and ``reason`` apart, so that a caller may note it and go on."""

    def __init__(self, name: str, reason: str) -> None:
        self.name, self.reason = name, reason
        super().__init__(f"{name}: {reason}; mend or remove it, or leave such files out with skip_bad (--skip-bad)")


def decode_image(
    source: str | Path | bytes,
    *,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    background: int | tuple[int, int, int] = 255,
    name: str | None = None,
) -> npt.NDArray[np.uint8]:
    """Decode one image.

    Alpha is laid on the background, 16-bit grey is divided by 257 and rounded, CMYK becomes RGB, the EXIF orientation is
    applied, and of an animation the first frame is taken. The aspect is not kept: the image is resized to ``size`` as it is
    (bilinear, averaging over all source pixels where it shrinks).

    Args:
        source: path, or the content of a file.
        size: (H, W), or one number for a square; None keeps the size.
        channels: 1, 3, or None for what the image has.
        background: grey value, or (red, green, blue).
        name: what messages call the image (default: the path).

    Returns:
        uint8 [C, H, W].

    Raises:
        InputError: the image is missing, damaged, of an unknown format, larger than 89,478,485 pixels, or of a mode that has
            no defined conversion; or an option is wrong.
    """
    form = Form.of(size, channels, background)
    content = source if isinstance(source, bytes) else str(source)
    with quiet_pillow():
        # Pillow's buffers are read-only, and what a caller is given is theirs to change.
        return decode(content, name or ("image" if isinstance(source, bytes) else str(source)), form).copy()


@contextlib.contextmanager
def quiet_pillow() -> Iterator[None]:
    """Keep Pillow's warnings (large images, odd metadata) from the user; what matters of them is raised by ``decode``.

    To be entered once, around all decoding threads: the filters of ``warnings`` belong to the whole process.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", module=r"PIL\b")
        yield


def decode(content: str | bytes, name: str, form: Form) -> npt.NDArray[np.uint8]:
    """Decode the file at a path, or its content, to uint8 [C, H, W] in ``form``.

    Raises:
        BadImage: as ``decode_image``.
    """
    with open_image(content, name) as image:
        return to_array(load_pixels(image, name, form), form)


def open_image(content: str | bytes, name: str) -> ImageFile.ImageFile:
    """Read the header alone.

    Raises:
        BadImage: there is no such file, it is no image, or it claims too many pixels.
    """
    try:
        image = Image.open(io.BytesIO(content) if isinstance(content, bytes) else content, formats=_formats())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadImage(name, f"it claims more than {MAX_PIXELS:,} pixels, the most that is decoded") from None
    except UnidentifiedImageError:
        empty = not (len(content) if isinstance(content, bytes) else Path(content).stat().st_size)
        raise BadImage(name, "there is nothing in it" if empty else "not an image in a known format") from None
    except OSError as error:
        raise BadImage(name, error.strerror or str(error) or "cannot be opened") from None
    except Exception as error:
        # Pillow's parsers raise many types on hostile headers (struct.error, KeyError, SyntaxError, ...).
        raise BadImage(name, _damaged(error)) from None
    width, height = image.size
    if not 0 < width * height <= MAX_PIXELS:
        image.close()
        raise BadImage(name, f"it claims {width:,} x {height:,} pixels; 1 to {MAX_PIXELS:,} are decoded")
    return image


def load_pixels(image: ImageFile.ImageFile, name: str, form: Form) -> Image.Image:
    """Decode the pixels: mode "L" or "RGB", upright, alpha laid on the background; size and channels as they are.

    A large JPEG of which less is wanted is decoded at a half, a quarter or an eighth of its size, but never under twice the
    size that is wanted, so that the last step is still a filtered one.

    Raises:
        BadImage: the file is truncated or damaged, or its mode has no defined conversion.
    """
    try:
        if form.size is not None and image.format == "JPEG":
            height, width = form.size if _orientation(image) < 5 else form.size[::-1]
            image.draft("L" if form.channels == 1 and image.mode == "RGB" else image.mode, (2 * width, 2 * height))
        image.load()
    except Exception as error:
        raise BadImage(name, _damaged(error)) from None
    # After loading: Pillow turns some formats itself, and then forgets the tag.
    turn, flat = _orientation(image), _flat(image, name, form)
    return flat.transpose(_TURNS[turn]) if turn in _TURNS else flat


def to_array(image: Image.Image, form: Form) -> npt.NDArray[np.uint8]:
    """Bring "L" or "RGB" to uint8 [C, H, W] in ``form``."""
    if form.channels is not None:
        image = image.convert("L" if form.channels == 1 else "RGB")
    if form.size is not None and image.size != form.size[::-1]:
        image = image.resize(form.size[::-1], FILTER)
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _flat(image: Image.Image, name: str, form: Form) -> Image.Image:
    """To 8-bit grey or colour, alpha laid on the background."""
    mode = image.mode
    if mode.startswith("I") or mode == "F":
        return _from_deep(image, name)
    if mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        return _on_background(image, form)
    if mode in ("L", "RGB"):
        return image
    if mode == "1" or (mode == "P" and _grey_palette(image)):
        return image.convert("L")
    if mode in ("P", "CMYK", "YCbCr", "HSV", "RGBX"):
        return image.convert("RGB")
    raise BadImage(name, f"its pixel mode {mode} cannot be converted to 8-bit grey or colour")


def _on_background(image: Image.Image, form: Form) -> Image.Image:
    grey = image.mode in ("1", "L", "LA", "La") or (image.mode in ("P", "PA") and _grey_palette(image))
    if image.mode == "La":
        # Premultiplied grey converts to its plain form alone.
        image = image.convert("LA")
    image = image.convert("RGBA")
    mode = "L" if grey and form.grey_background else "RGB"
    sheet = Image.new(mode, image.size, form.background[0] if mode == "L" else form.background)
    sheet.paste(image.convert(mode), mask=image.getchannel("A"))
    return sheet


def _from_deep(image: Image.Image, name: str) -> Image.Image:
    """16-bit grey, 32-bit integers in its range, or floats in [0, 1], to 8-bit grey."""
    values: npt.NDArray[Any] = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode == "F":
        # NaN fails this comparison too.
        if not (low >= 0 and high <= 1):
            raise BadImage(name, f"its floats go from {low} to {high}, and only 0 to 1 has a meaning")
        return Image.fromarray(np.rint(values * 255).astype(np.uint8))
    if low < 0 or high > 65_535:
        raise BadImage(name, f"its pixels go from {low} to {high}, and only 16 bits (0 to 65,535) have a meaning")
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))


def _grey_palette(image: Image.Image) -> bool:
    palette = np.array(image.getpalette("RGB") or [0, 0, 0]).reshape(-1, 3)
    return bool((palette == palette[:, :1]).all())


def _orientation(image: ImageFile.ImageFile) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow raises whatever it meets in damaged metadata, and that says nothing of the pixels
        return 1


def _damaged(error: Exception) -> str:
    said = " ".join(str(error).split()) or type(error).__name__
    return f"the image is damaged ({said})"


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)
