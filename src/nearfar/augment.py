"""uint8 batch -> changed batch: pure functions on whole batches, every image with its own random numbers.

Pixel values keep the scale 0 to 255 throughout. What moves pixels about (flip, shift, erase) keeps the type; what computes
new values (affine, brightness, contrast, noise) returns float32, still 0 to 255. ``normalize`` takes either to the scale
that an encoder is trained on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from nearfar.errors import InputError

# The most that each amount may be, and whether that much itself is allowed.
_MOST = {
    "degrees": (180, True),
    "scale": (1, False),
    "shear": (90, False),
    "translate": (1, True),
    "elastic": (1, True),
    "brightness": (1, True),
    "contrast": (1, True),
    "noise": (1, True),
    "erase": (1, True),
}

_POINTS = 5  # a side of the grid that bends images


def flip(x: Tensor, generator: Generator) -> Tensor:
    """Mirror each image left to right with probability 1/2. x: [B, C, H, W]; returns the same shape and type."""
    _check_batch(x)
    mirrored = torch.rand(len(x), generator=generator, device=generator.device).to(x.device) < 0.5
    return torch.where(mirrored[:, None, None, None], x.flip(3), x)


def shift(x: Tensor, pixels: int, generator: Generator, fill: int = 0) -> Tensor:
    """Move each image by whole pixels, down and to the right by uniform numbers from -pixels to pixels.

    Args:
        x: [B, C, H, W].
        pixels: the most that an image moves either way.
        generator: source of the random numbers.
        fill: value of the pixels that come into view, 0 to 255.

    Returns:
        [B, C, H, W], the type of x.
    """
    _check_batch(x)
    _check_whole("pixels", pixels)
    _check_whole("fill", fill, most=255)
    if pixels == 0:
        return x
    batch, _, height, width = x.shape
    offsets = torch.randint(0, 2 * pixels + 1, (2, batch), generator=generator, device=generator.device).to(x.device)
    padded = F.pad(x, (pixels, pixels, pixels, pixels), value=fill)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # [B, C, 2p+1, 2p+1, H, W], a view
    return windows[torch.arange(batch, device=x.device), :, offsets[0], offsets[1]]


def affine(
    x: Tensor,
    generator: Generator,
    *,
    degrees: float = 0.0,
    scale: float = 0.0,
    shear: float = 0.0,
    translate: float = 0.0,
    elastic: float = 0.0,
    fill: int = 0,
) -> Tensor:
    """Turn, enlarge, slant, move and bend each image about its centre, in one bilinear interpolation.

    Args:
        x: [B, C, H, W].
        generator: source of the random numbers.
        degrees: each image is turned by a uniform angle from -degrees to degrees.
        scale: each image is enlarged by a uniform factor from 1 - scale to 1 + scale.
        shear: each image is slanted along its rows by a uniform angle from -shear to shear degrees.
        translate: each image is moved by a uniform share, from -translate to translate, of its height and width.
        elastic: the points of a grid of 5 x 5 over the image are moved by uniform shares, from -elastic to elastic, of its
            height and width, and all between them by bicubic interpolation (Ronneberger et al. 2015, with 3 x 3).
        fill: value of what comes into view, 0 to 255.

    Returns:
        [B, C, H, W], float32 (float64 for a float64 x), on the scale of x.
    """
    _check_batch(x)
    amounts = {"degrees": degrees, "scale": scale, "shear": shear, "translate": translate, "elastic": elastic}
    for name, amount in amounts.items():
        _check_amount(name, amount)
    _check_whole("fill", fill, most=255)
    x = _to_float(x)
    batch, _, height, width = x.shape
    if not batch:
        return x
    turn, grow, slant, down, right = _uniform((5, batch), generator, x)
    turn, slant = turn * math.radians(degrees), torch.tan(slant * math.radians(shear))
    grow = 1 + grow * scale
    cos, sin = torch.cos(turn) / grow, torch.sin(turn) / grow
    # Where each output pixel is found in the input, in pixels about the centre: the inverse of turn * slant * grow.
    inverse = torch.stack([cos + slant * sin, sin - slant * cos, -sin, cos], dim=1).view(batch, 2, 2)
    # grid_sample measures height and width from -1 to 1 each.
    half = x.new_tensor([width / 2, height / 2])
    inverse = inverse * half[None, None, :] / half[None, :, None]
    move = 2 * translate * torch.stack([right, down], dim=1)
    # Sums of outer products: affine_grid makes B small matrix products, which take ten times as long.
    here = (inverse * move[:, None, :]).sum(2)
    across, along = ((2 * torch.arange(side, dtype=x.dtype, device=x.device) + 1) / side - 1 for side in (width, height))
    rows = inverse[:, :, 1:] * along - here[:, :, None]  # [B, 2, H]
    grid = (inverse[:, :, 0, None, None] * across + rows[:, :, :, None]).permute(0, 2, 3, 1)
    if elastic:
        bend = 2 * elastic * _uniform((batch, 2, _POINTS, _POINTS), generator, x)
        grid = grid + F.interpolate(bend, (height, width), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    if fill:
        return F.grid_sample(x - fill, grid, align_corners=False).add_(fill)
    return F.grid_sample(x, grid, align_corners=False)


def rotate(x: Tensor, degrees: float, generator: Generator, fill: int = 0) -> Tensor:
    """Turn each image about its centre by a uniform angle from -degrees to degrees; see ``affine``."""
    return affine(x, generator, degrees=degrees, fill=fill)


def brightness(x: Tensor, amount: float, generator: Generator) -> Tensor:
    """Multiply each image by a uniform factor from 1 - amount to 1 + amount, cut to 0 to 255. Returns float [B, C, H, W]."""
    _check_batch(x)
    _check_amount("brightness", amount)
    x = _to_float(x)
    factor = 1 + amount * _uniform((len(x), 1, 1, 1), generator, x)
    return (x * factor).clamp_(0, 255)


def contrast(x: Tensor, amount: float, generator: Generator) -> Tensor:
    """Stretch each image about its mean by a uniform factor from 1 - amount to 1 + amount, cut to 0 to 255.

    Returns float [B, C, H, W].
    """
    _check_batch(x)
    _check_amount("contrast", amount)
    x = _to_float(x)
    factor = 1 + amount * _uniform((len(x), 1, 1, 1), generator, x)
    return torch.lerp(x.mean(dim=(1, 2, 3), keepdim=True), x, factor).clamp_(0, 255)


def noise(x: Tensor, amount: float, generator: Generator) -> Tensor:
    """Add to every pixel a normal number of standard deviation 255 * amount, cut to 0 to 255. Returns float [B, C, H, W]."""
    _check_batch(x)
    _check_amount("noise", amount)
    x = _to_float(x)
    drawn = torch.randn(x.shape, generator=generator, device=generator.device, dtype=x.dtype).to(x.device)
    return drawn.mul_(255 * amount).add_(x).clamp_(0, 255)


def erase(x: Tensor, share: float, generator: Generator, fill: int = 0) -> Tensor:
    """Blank out one square in each image (Cutout; DeVries and Taylor 2017).

    Args:
        x: [B, C, H, W].
        share: side of the square as a share of the shorter side of the image.
        generator: source of the random numbers. The centre is a uniform pixel, so the square may overhang the border.
        fill: value of the square, 0 to 255.

    Returns:
        [B, C, H, W], the type of x.
    """
    _check_batch(x)
    _check_amount("erase", share)
    _check_whole("fill", fill, most=255)
    batch, _, height, width = x.shape
    side = round(share * min(height, width))
    drawn = torch.rand((2, batch, 1), generator=generator, device=generator.device).to(x.device)
    inside = []
    for place, length in zip(drawn, (height, width), strict=True):
        first = (place * length).long() - side // 2
        pixel = torch.arange(length, device=x.device)
        inside.append((pixel >= first) & (pixel < first + side))
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return x.masked_fill(hole, fill)


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
    _check_batch(x)
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
    """What is done to a training batch, in this order: flip, shift, affine, brightness, contrast, noise, erase.

    A part whose number is 0 costs nothing. With flip, shift and erase alone a uint8 batch stays uint8.
    """

    shift: int = 0  # pixels, at most, each way
    flip: bool = False  # left to right, every second image
    degrees: float = 0.0  # largest turn
    scale: float = 0.0  # enlarged by 1 - scale to 1 + scale; below 1
    shear: float = 0.0  # largest slant in degrees; below 90
    elastic: float = 0.0  # how far points of a coarse grid move, at most, as a share of height and width; at most 1
    brightness: float = 0.0  # multiplied by 1 - brightness to 1 + brightness; at most 1
    contrast: float = 0.0  # stretched about the mean by 1 - contrast to 1 + contrast; at most 1
    noise: float = 0.0  # standard deviation as a share of the range 0 to 255
    erase: float = 0.0  # side of the blank square as a share of the shorter side of the image; at most 1
    fill: int = 0  # value of blank pixels, 0 to 255

    def __post_init__(self) -> None:
        for name in _MOST.keys() - {"translate"}:
            _check_amount(name, getattr(self, name), place="augment.")
        _check_whole("shift", self.shift, place="augment.")
        _check_whole("fill", self.fill, most=255, place="augment.")
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
        amounts = {name: getattr(self, name) for name in ("degrees", "scale", "shear", "elastic")}
        if any(amounts.values()):
            x = affine(x, generator, **amounts, fill=self.fill)
        if self.brightness:
            x = brightness(x, self.brightness, generator)
        if self.contrast:
            x = contrast(x, self.contrast, generator)
        if self.noise:
            x = noise(x, self.noise, generator)
        if self.erase:
            x = erase(x, self.erase, generator, fill=self.fill)
        return x


def _uniform(shape: tuple[int, ...], generator: Generator, like: Tensor) -> Tensor:
    """Uniform numbers from -1 to 1, of the type and on the device of ``like``."""
    drawn = torch.rand(shape, generator=generator, device=generator.device, dtype=like.dtype)
    return drawn.mul_(2).sub_(1).to(like.device)


def _to_float(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _per_channel(what: str, value: float | Iterable[float], channels: int) -> list[float]:
    numbers = [float(v) for v in value] if isinstance(value, Iterable) else [float(value)]
    if len(numbers) not in (1, channels):
        raise InputError(f"{what} has {len(numbers)} numbers, the images have {channels} channels")
    return numbers * channels if len(numbers) == 1 else numbers


def _check_batch(x: Tensor) -> None:
    if x.ndim != 4:
        raise InputError(f"images have shape {tuple(x.shape)}; expected [B, C, H, W]")


def _check_amount(name: str, amount: float, place: str = "") -> None:
    most, included = _MOST[name]
    fits = isinstance(amount, int | float) and not isinstance(amount, bool) and 0 <= amount <= most
    if not fits or (amount == most and not included):
        upper = f"to {most}" if included else f"up to, not including, {most}"
        raise InputError(f"{place}{name} is {amount!r}; expected a number from 0 {upper}")


def _check_whole(name: str, value: int, most: int | None = None, place: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0 or (most is not None and value > most):
        upper = "" if most is None else f" to {most}"
        raise InputError(f"{place}{name} is {value!r}; expected a whole number from 0{upper}")
