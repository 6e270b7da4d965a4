"""The checks that every encoder makes of its arguments."""

from __future__ import annotations

from collections.abc import Sequence

from nearfar.errors import InputError

_MOST_BLOCKS = 512
"""More than residual networks are trained with."""


def check_integer(name: str, value: int, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"encoder.{name} is {value!r}; expected a whole number of at least {least}")
    return value


def check_integers(name: str, values: Sequence[int], length: int | None = None) -> tuple[int, ...]:
    """``values`` as a tuple of positive integers, ``length`` of them, or at least one where it is None."""
    wanted = f"{length} positive whole numbers" if length is not None else "a list of positive whole numbers"
    whole = isinstance(values, Sequence) and not isinstance(values, str)
    if (
        not whole
        or not values
        or (length is not None and len(values) != length)
        or any(isinstance(v, bool) or not isinstance(v, int) or v < 1 for v in values)
    ):
        raise InputError(f"encoder.{name} is {values!r}; expected {wanted}")
    return tuple(values)


def check_blocks(count: int, blocks: object) -> None:
    """Refuse more blocks than can be built in a second, ``count`` in all, where the user wrote ``blocks``."""
    if count > _MOST_BLOCKS:
        raise InputError(f"encoder.blocks is {blocks!r}; expected {_MOST_BLOCKS} blocks at most")


def check_size(size: tuple[int, int]) -> tuple[int, int]:
    height, width = check_integers("size", size, 2)
    return height, width


def check_number(name: str, value: float, *, least: float, below: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < below:
        raise InputError(f"encoder.{name} is {value!r}; expected a number from {least:g} to below {below:g}")
    return float(value)


def shrink(kind: str, size: tuple[int, int], *, kernels: Sequence[int], padding: int = 0) -> tuple[int, int]:
    """The size of the maps after a convolution and a pooling by 2 for each kernel.

    Raises:
        InputError: nothing would be left of the image.
    """
    after = size
    for kernel in kernels:
        after = ((after[0] + 2 * padding - kernel + 1) // 2, (after[1] + 2 * padding - kernel + 1) // 2)
    if min(after) < 1:
        least = 1
        for kernel in reversed(kernels):
            least = 2 * least + kernel - 1 - 2 * padding
        raise InputError(
            f"images of {size[0]} x {size[1]} pixels are too small for encoder {kind!r}, which needs at least "
            f"{least} x {least}; resize them or choose another encoder"
        )
    return after
