"""uint8 batch -> changed batch: pure functions on whole batches, every image with its own random numbers.

Pixel values keep the scale 0 to 255 throughout. What moves whole pixels about (flip, shift, erase) keeps the type; what
computes new values returns float32, still 0 to 255. ``normalize`` takes either to the scale that an encoder is trained on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from nearfar.augment.numbers import MOST, Draws, Generator, check_amount, check_batch, check_whole
from nearfar.augment.places import affine, erase, flip, rotate, shift
from nearfar.augment.values import blur, brightness, contrast, gamma, grey, hue, noise, saturation, solarise
from nearfar.errors import InputError

__all__ = [
    "Augment",
    "Draws",
    "affine",
    "blur",
    "brightness",
    "contrast",
    "erase",
    "flip",
    "gamma",
    "grey",
    "hue",
    "noise",
    "normalize",
    "rotate",
    "saturation",
    "shift",
    "solarise",
]


def normalize(
    x: Tensor,
    mean: float | Iterable[float],
    std: float | Iterable[float],
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> Tensor:
    """(x / 255 - mean) / std, computed in float32.

    Args:
        x: [B, C, H, W], uint8 or float, on the scale 0 to 255.
        mean: one number or one for each channel, on the scale 0 to 1.
        std: likewise, positive.
        dtype: of the result.
        channels_last: lay the result out with channels innermost, which convolutions on a CPU prefer.

    Raises:
        InputError: x is not a batch of images, a number is missing, or a standard deviation is not positive.
    """
    check_batch(x)
    means, stds = _per_channel("mean", mean, x.shape[1]), _per_channel("std", std, x.shape[1])
    if min(stds) <= 0:
        raise InputError(f"std is {std}; expected positive numbers")
    factors = [1 / (255 * s) for s in stds]
    terms = [-m / s for m, s in zip(means, stds, strict=True)]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    work = torch.float64 if dtype == torch.float64 else torch.float32
    out = x.to(work, memory_format=layout, copy=True)
    if len(set(zip(factors, terms, strict=True))) == 1:
        out.mul_(factors[0]).add_(terms[0])
    else:
        out.mul_(out.new_tensor(factors)[:, None, None]).add_(out.new_tensor(terms)[:, None, None])
    return out.to(dtype)


@dataclass(frozen=True, kw_only=True)
class Augment:
    """What is done to a training batch, in the order in which it stands here; all that moves pixels but flip and shift at once.

    A part whose number is 0 costs nothing. With flip, shift and erase alone a uint8 batch stays uint8.
    """

    shift: int = 0  # pixels, at most, each way
    flip: bool = False  # left to right, every second image
    degrees: float = 0.0  # largest turn
    scale: float = 0.0  # enlarged by 1 - scale to 1 + scale; below 1
    shear: float = 0.0  # largest slant in degrees; below 90
    elastic: float = 0.0  # how far points of a coarse grid move, at most, as a share of height and width; at most 1
    crop: float = 0.0  # smallest share of the area that is cut out and enlarged to the whole; 0: all of it
    brightness: float = 0.0  # multiplied by 1 - brightness to 1 + brightness; at most 1
    contrast: float = 0.0  # stretched about the mean by 1 - contrast to 1 + contrast; at most 1
    gamma: float = 0.0  # the scale is bent by exponents from 1 / (1 + gamma) to 1 + gamma
    saturation: float = 0.0  # colour: multiplied by 1 - saturation to 1 + saturation; at most 1
    hue: float = 0.0  # colour: turned by so much of a full turn either way; at most 0.5
    grey: float = 0.0  # share of the images that lose their colour
    solarise: float = 0.0  # share of the images whose light values are turned around
    blur: float = 0.0  # largest standard deviation as a share of the shorter side; every second image is blurred
    noise: float = 0.0  # standard deviation as a share of the range 0 to 255
    erase: float = 0.0  # side of the blank square as a share of the shorter side of the image; at most 1
    fill: int = 0  # value of blank pixels, 0 to 255

    def __post_init__(self) -> None:
        for name in MOST.keys() - {"translate"}:
            check_amount(name, getattr(self, name), place="augment.")
        check_whole("shift", self.shift, place="augment.")
        check_whole("fill", self.fill, most=255, place="augment.")
        if not isinstance(self.flip, bool):
            raise InputError(f"augment.flip is {self.flip!r}; expected true or false")

    def __bool__(self) -> bool:
        """Whether anything is changed at all."""
        return any(getattr(self, field.name) for field in fields(self) if field.name != "fill")

    def __call__(self, x: Tensor, generator: Generator) -> Tensor:
        """x: [B, C, H, W], 0 to 255 -> the same shape and scale; uint8 stays uint8 where the class says so."""
        if self.flip:
            x = flip(x, generator)
        if self.shift:
            x = shift(x, self.shift, generator, fill=self.fill)
        amounts = {name: getattr(self, name) for name in ("degrees", "scale", "shear", "elastic", "crop")}
        if any(amounts.values()):
            x = affine(x, generator, **amounts, fill=self.fill)
        if self.brightness:
            x = brightness(x, self.brightness, generator)
        if self.contrast:
            x = contrast(x, self.contrast, generator)
        for change in (gamma, saturation, hue, grey, solarise, blur):
            if amount := getattr(self, change.__name__):
                x = change(x, amount, generator)
        if self.noise:
            x = noise(x, self.noise, generator)
        if self.erase:
            x = erase(x, self.erase, generator, fill=self.fill)
        return x


def _per_channel(what: str, value: float | Iterable[float], channels: int) -> list[float]:
    numbers = [float(v) for v in value] if isinstance(value, Iterable) else [float(value)]
    if len(numbers) not in (1, channels):
        raise InputError(f"{what} has {len(numbers)} numbers, the images have {channels} channels")
    return numbers * channels if len(numbers) == 1 else numbers
