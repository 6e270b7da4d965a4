"""What all changes of images share: amounts that are checked, and random numbers for each image."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

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


def uniform(shape: tuple[int, ...], generator: Generator, like: Tensor) -> Tensor:
    """Uniform numbers from -1 to 1, of the type and on the device of ``like``."""
    drawn = torch.rand(shape, generator=generator, device=generator.device, dtype=like.dtype)
    return drawn.mul_(2).sub_(1).to(like.device)


def to_float(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def chosen(share: float, like: Tensor, generator: Generator) -> Tensor:
    """Which images of a batch are changed, each with probability ``share``: bool [B, 1, 1, 1]."""
    drawn = torch.rand(len(like), generator=generator, device=generator.device).to(like.device)
    return (drawn < share)[:, None, None, None]


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
