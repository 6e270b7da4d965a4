"""What all changes of images share: amounts that are checked, and random numbers for each image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nearfar.errors import InputError

# The most that each amount may be, and whether that much itself is allowed.
MOST = {
    "degrees": (180, True),
    "scale": (1, False),
    "shear": (90, False),
    "translate": (1, True),
    "elastic": (1, True),
    "brightness": (1, True),
    "contrast": (1, True),
    "noise": (1, True),
    "crop": (1, False),
    "gamma": (10, True),
    "saturation": (1, True),
    "hue": (0.5, True),
    "grey": (1, True),
    "solarise": (1, True),
    "blur": (1, True),
    "erase": (1, True),
}


@dataclass(frozen=True)
class Draws:
    """Random numbers for some images of a batch: those that they get when the whole batch is changed at once."""

    generator: torch.Generator
    places: Tensor  # int64 [n], which images of the batch they are
    count: int  # how many the batch has


Generator = torch.Generator | Draws


def draw(how: Callable[..., Tensor], shape: tuple[int, ...], generator: Generator, like: Tensor, *, images: int = 0) -> Tensor:
    """``how(shape)`` by ``generator``, on the device of ``like``; ``images`` is the dimension that counts images."""
    if isinstance(generator, torch.Generator):
        return how(shape, generator=generator, device=generator.device).to(like.device)
    whole = (*shape[:images], generator.count, *shape[images + 1 :])
    drawn = how(whole, generator=generator.generator, device=generator.generator.device)
    return drawn.index_select(images, generator.places.to(drawn.device)).to(like.device)


def uniform(shape: tuple[int, ...], generator: Generator, like: Tensor, *, images: int = 0) -> Tensor:
    """Uniform numbers from -1 to 1, of the type and on the device of ``like``."""

    def how(size: tuple[int, ...], **where: object) -> Tensor:
        return torch.rand(size, dtype=like.dtype, **where)  # type: ignore[call-overload]  # a mapping fits no overload

    return draw(how, shape, generator, like, images=images).mul_(2).sub_(1)


def to_float(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def chosen(share: float, like: Tensor, generator: Generator) -> Tensor:
    """Which images of a batch are changed, each with probability ``share``: bool [B, 1, 1, 1]."""
    return (draw(torch.rand, (len(like),), generator, like) < share)[:, None, None, None]


def check_batch(x: Tensor) -> None:
    if x.ndim != 4:
        raise InputError(f"images have shape {tuple(x.shape)}; expected [B, C, H, W]")


def check_amount(name: str, amount: float, place: str = "") -> None:
    most, included = MOST[name]
    fits = isinstance(amount, int | float) and not isinstance(amount, bool) and 0 <= amount <= most
    if not fits or (amount == most and not included):
        upper = f"to {most}" if included else f"up to, not including, {most}"
        raise InputError(f"{place}{name} is {amount!r}; expected a number from 0 {upper}")


def check_whole(name: str, value: int, most: int | None = None, place: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0 or (most is not None and value > most):
        upper = "" if most is None else f" to {most}"
        raise InputError(f"{place}{name} is {value!r}; expected a whole number from 0{upper}")
