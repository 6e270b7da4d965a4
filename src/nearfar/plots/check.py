"""What the plots accept, checked where it enters, with the argument's name in every message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearfar.errors import InputError


def check_numbers(name: str, values: ArrayLike, shape: str, *, missing: bool = False) -> NDArray[np.float64]:
    """``values`` as float64 with as many axes as ``shape`` names, such as "[N, D]"; a number in it is a fixed length.

    Args:
        missing: let NaN (and None) stand for values that were not measured.
    """
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name} holds something other than numbers, expected an array {shape}") from None
    lengths = [length.strip() for length in shape.strip("[]").split(",")]
    fits = array.ndim == len(lengths) and all(
        not length.isdigit() or int(length) == size for length, size in zip(lengths, array.shape, strict=True)
    )
    if not fits:
        raise InputError(f"{name} has shape {list(array.shape)}, expected {shape}")
    if array.size == 0:
        raise InputError(f"{name} is empty, expected at least one value in {shape}")
    bad = np.isinf(array) if missing else ~np.isfinite(array)
    if bad.any():
        at = [int(index) for index in np.argwhere(bad)[0]]
        raise InputError(f"{name}{at} is {array[tuple(at)]}, expected finite numbers")
    return array


def check_images(name: str, images: Any, lead: int = 1) -> NDArray[np.uint8]:
    """``images`` as uint8 [..., C, H, W] with ``lead`` axes before the channels, and 1 or 3 of those."""
    array = np.asarray(images)
    shape = "[N, C, H, W]" if lead == 1 else "[N, k, C, H, W]"
    if array.ndim != lead + 3 or 0 in array.shape[-3:]:
        raise InputError(f"{name} has shape {list(array.shape)}, expected {shape}")
    if array.dtype != np.uint8:
        raise InputError(f"{name} has dtype {array.dtype}, expected uint8 with values 0 to 255")
    if array.shape[-3] not in (1, 3):
        raise InputError(f"{name} has {array.shape[-3]} channels, expected 1 (grey) or 3 (red, green, blue)")
    return array


def check_length(name: str, values: Any, count: int, other: str) -> None:
    """``values`` must have as many entries as ``other`` has, ``count``."""
    if len(values) != count:
        raise InputError(f"{name} has {len(values):,} entries, {other} has {count:,}")


def check_labels(name: str, labels: ArrayLike, classes: Sequence[str]) -> NDArray[np.int64]:
    """``labels`` as int64, each the number of one of ``classes``."""
    array = np.asarray(labels)
    if array.size and array.dtype.kind not in "iu":
        raise InputError(f"{name} has dtype {array.dtype}, expected class numbers as integers")
    if array.size and not 0 <= array.min() <= array.max() < len(classes):
        bad = array.min() if array.min() < 0 else array.max()
        raise InputError(f"{name} holds {bad}, expected 0 to {len(classes) - 1}: the numbers of {len(classes)} classes")
    return array.astype(np.int64)


def check_flags(name: str, flags: ArrayLike) -> NDArray[np.bool_]:
    """``flags`` as bool [M]."""
    array = np.asarray(flags)
    if array.ndim != 1 or (array.size and array.dtype.kind != "b" and not np.isin(array, (0, 1)).all()):
        raise InputError(f"{name} has shape {list(array.shape)} and dtype {array.dtype}, expected true or false, [M]")
    return array.astype(np.bool_)


def check_matrix(name: str, matrix: ArrayLike, classes: Sequence[str], *, missing: bool = False) -> NDArray[np.float64]:
    """``matrix`` as float64 [K, K] with one row and one column per class."""
    array = check_numbers(name, matrix, "[K, K]", missing=missing)
    if array.shape != (len(classes), len(classes)):
        raise InputError(f"{name} has shape {list(array.shape)}, expected a row and a column for {len(classes)} classes")
    return array
