"""What goes into a model and what comes out of it, checked: a block of pixels, a block of embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from nearfar.errors import InputError


def check_block(pixels: npt.NDArray[Any], channels: int, size: tuple[int, int]) -> None:
    """Refuse a block that is not what a model of this shape takes.

    Raises:
        InputError: its shape or type is another.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (channels, *size) or not len(pixels):
        raise InputError(
            f"pixels has shape {list(pixels.shape)} and dtype {pixels.dtype}, expected uint8 "
            f"[N, {channels}, {size[0]}, {size[1]}], N at least 1; transform converts and resizes"
        )


def check_finite(z: npt.NDArray[np.float32]) -> None:
    """Refuse embeddings that are not numbers.

    Raises:
        InputError: one of ``z`` [N, D] is not finite.
    """
    if not np.isfinite(z).all():
        raise InputError("the embeddings are not finite; the model's weights are broken, train it again at a lower rate")
