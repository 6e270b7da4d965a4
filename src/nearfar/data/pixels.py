"""Blocks of pixels, as pure functions: layouts and number types to uint8 [N, C, H, W]; alpha, grey, colour and size.

What is done to a block here gives the same bytes as the same thing done to an image file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from nearfar.errors import InputError

Block = npt.NDArray[np.uint8]
Background = tuple[int, int, int]

# A quarter of a gigabyte of colour pixels, where Pillow begins to warn; read from the header, before a pixel is decoded.
MAX_PIXELS = 89_478_485

# When it shrinks, Pillow widens the bilinear filter over every source pixel (so there is no aliasing). Bicubic and Lanczos
# overshoot: dark rims appear round strokes and are clipped at 0 and 255. Box is blocky as soon as it enlarges.
FILTER = Image.Resampling.BILINEAR

# Weights of ITU-R BT.601 in 16-bit fixed point, as Pillow's: red, green, blue.
_LUMA = np.array([19595, 38470, 7471], dtype=np.uint32)


@dataclass(frozen=True)
class Form:
    """What every image shall become.

    Attributes:
        size: (H, W), or None: as they are, all equal.
        channels: 1 (grey), 3 (colour), or None: colour as soon as one image is.
        background: red, green, blue under transparent pixels.
    """

    size: tuple[int, int] | None = None
    channels: int | None = None
    background: Background = (255, 255, 255)

    @classmethod
    def of(cls, size: Any = None, channels: Any = None, background: Any = 255) -> Form:
        """Check the options as the user gave them.

        Raises:
            InputError: one of them is not what it should be.
        """
        return cls(_size(size), _channels(channels), _background(background))

    @property
    def grey_background(self) -> bool:
        """Whether a grey image stays grey on the background."""
        return len(set(self.background)) == 1


class NeedsColour(Exception):
    """A colour image among images taken to be grey: the whole set is to be colour."""


def as_images(array: Any, where: str) -> Block:
    """Bring an array of any usual layout and number type to uint8 [N, C, H, W] with 1 or 3 channels.

    Raises:
        InputError: see ``layout_of`` and ``to_uint8``.
    """
    array = np.asarray(array)
    layout = layout_of(array.shape, where)
    block = to_uint8(to_nchw(array, layout), where)
    if block.shape[1] not in (1, 3):
        raise InputError(f"{where} has {block.shape[1]} channels; give 1 or 3 (an image without its alpha)")
    return np.ascontiguousarray(block)


def layout_of(shape: tuple[int, ...], where: str) -> str:
    """Name the layout of ``shape``: "NHW", "NCHW" or "NHWC", the channels being 1, 3 or 4 (with alpha).

    Raises:
        InputError: it is none of these, or could be two of them.
    """
    if math.prod(shape[1:]) > 4 * MAX_PIXELS:
        raise InputError(f"{where} has the shape {list(shape)}; an image may have {MAX_PIXELS:,} pixels at most")
    if len(shape) == 3 and min(shape[1:]) > 0:
        return "NHW"
    if len(shape) == 4 and min(shape[1:]) > 0:
        first, last = shape[1] in (1, 3, 4), shape[3] in (1, 3, 4)
        if first and last:
            raise InputError(
                f"{where} has the shape {list(shape)}, and either end could be the channels; give [N, H, W], or larger images"
            )
        if first or last:
            return "NCHW" if first else "NHWC"
    raise InputError(
        f"{where} has the shape {list(shape)}; expected [N, H, W], [N, C, H, W] or [N, H, W, C] with 1, 3 or 4 channels"
    )


def to_nchw(block: npt.NDArray[Any], layout: str) -> npt.NDArray[Any]:
    """Bring a block of the named layout to [N, C, H, W] (a view)."""
    if layout == "NHW":
        return block[:, None]
    return block.transpose(0, 3, 1, 2) if layout == "NHWC" else block


def to_uint8(block: npt.NDArray[Any], where: str) -> Block:
    """uint8 as it is; floats in [0, 1] times 255, rounded.

    Raises:
        InputError: floats outside [0, 1] or not a number, or another type.
    """
    if block.dtype == np.uint8:
        return block
    if block.dtype.kind != "f":
        raise InputError(
            f"{where} is {block.dtype}; expected uint8, or floats in [0, 1]; "
            "if its values are 0 to 255, save it as images.astype('uint8')"
        )
    with np.errstate(invalid="ignore"):
        fits = (block >= 0) & (block <= 1)
    if not fits.all():
        worst = block[~fits][0]
        raise InputError(
            f"{where} holds the float {worst}; floats must lie in [0, 1]; "
            "scale them, or if they are 0 to 255 save images.astype('uint8')"
        )
    return np.rint(block * block.dtype.type(255)).astype(np.uint8)


def convert_block(block: Block, form: Form, target: tuple[int, int, int], where: str) -> Block:
    """Bring uint8 [n, c, h, w] to [n, *target], c being 1, 2 (grey with alpha), 3 or 4 (colour with alpha).

    Args:
        form: what the user asked for; where ``form.size`` or ``form.channels`` is None, ``target`` comes from the data.
        target: (C, H, W).

    Raises:
        InputError: the sizes differ and none was asked for.
        NeedsColour: the block is colour and ``target`` is grey without having been asked for.
    """
    if block.shape[1] in (2, 4):
        block = flatten(block, form)
    check_fit((block.shape[1], *block.shape[2:]), form, target, where)
    if block.shape[1] == 3 and target[0] == 1:
        block = to_grey(block)
    if block.shape[2:] != target[1:]:
        block = _resized(block, target[1:])
    if block.shape[1] == 1 and target[0] == 3:
        block = np.repeat(block, 3, axis=1)
    return block


def check_fit(shape: tuple[int, ...], form: Form, target: tuple[int, int, int], where: str) -> None:
    """Raise where an image of ``shape`` [C, H, W] may not become ``target``, as ``convert_block`` does."""
    if form.size is None and shape[1:] != target[1:]:
        raise InputError(
            f"{where} is {shape[1]} x {shape[2]} (height x width), images before it are {target[1]} x {target[2]}; "
            f"choose one size for all, such as size={max(target[1:])}"
        )
    if form.channels is None and shape[0] > target[0]:
        raise NeedsColour


def flatten(block: Block, form: Form) -> Block:
    """Lay [n, 2 or 4, h, w] with alpha last on the background: [n, 1 or 3, h, w] (3 on a coloured background)."""
    colour, alpha = block[:, :-1].astype(np.uint16), block[:, -1:].astype(np.uint16)
    background = np.asarray(form.background, dtype=np.uint16)
    if colour.shape[1] == 1 and form.grey_background:
        background = background[:1]
    mixed = colour * alpha + background[:, None, None] * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)


def to_grey(block: Block) -> Block:
    """Luma of [n, 3, h, w] (ITU-R BT.601): [n, 1, h, w]."""
    weighted = np.tensordot(block.astype(np.uint32), _LUMA, axes=(1, 0))
    return ((weighted + 0x8000) >> 16).astype(np.uint8)[:, None]


def _resized(block: Block, size: tuple[int, int]) -> Block:
    out = np.empty((*block.shape[:2], *size), dtype=np.uint8)
    for row, image in enumerate(block):
        for channel, plane in enumerate(image):
            out[row, channel] = np.asarray(Image.fromarray(plane).resize((size[1], size[0]), FILTER))
    return out


def _whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _size(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    pair = (size, size) if _whole(size) else size
    if not (isinstance(pair, (tuple, list)) and len(pair) == 2 and all(_whole(n) and 0 < n <= 1 << 14 for n in pair)):
        raise InputError(f"size is {size!r}; expected (height, width) in pixels, or one number for a square, each 1 to 16,384")
    return int(pair[0]), int(pair[1])


def _channels(channels: Any) -> int | None:
    if channels is None or (_whole(channels) and channels in (1, 3)):
        return None if channels is None else int(channels)
    raise InputError(f"channels is {channels!r}; expected 1 (grey), 3 (colour), or None (as the images are)")


def _background(background: Any) -> Background:
    values = (background,) * 3 if _whole(background) else background
    if not (isinstance(values, (tuple, list)) and len(values) == 3 and all(_whole(v) and 0 <= v <= 255 for v in values)):
        raise InputError(f"background is {background!r}; expected a grey value 0 to 255, or (red, green, blue)")
    red, green, blue = (int(value) for value in values)
    return red, green, blue
