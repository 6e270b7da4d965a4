"""Changes of where pixels are: mirrored, moved, turned, cut out and enlarged, bent, blanked out. Values stay as they are.

What moves whole pixels keeps the type; what computes values between them returns float32, still 0 to 255.
"""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from nearfar.augment.numbers import Generator, check_amount, check_batch, check_whole, draw, to_float, uniform

_POINTS = 5  # a side of the grid that bends images
_ASPECT = math.log(4 / 3)  # of what is cut out, either way


def flip(x: Tensor, generator: Generator) -> Tensor:
    """Mirror each image left to right with probability 1/2. x: [B, C, H, W]; returns the same shape and type."""
    check_batch(x)
    mirrored = draw(torch.rand, (len(x),), generator, x) < 0.5
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
    check_batch(x)
    check_whole("pixels", pixels)
    check_whole("fill", fill, most=255)
    if pixels == 0:
        return x
    batch, _, height, width = x.shape
    offsets = draw(partial(torch.randint, 0, 2 * pixels + 1), (2, batch), generator, x, images=1)
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
    crop: float = 0.0,
    fill: int = 0,
) -> Tensor:
    """Turn, enlarge, slant, move and bend each image about its centre, and cut a part out, in one bilinear interpolation.

    Args:
        x: [B, C, H, W].
        generator: source of the random numbers.
        degrees: each image is turned by a uniform angle from -degrees to degrees.
        scale: each image is enlarged by a uniform factor from 1 - scale to 1 + scale.
        shear: each image is slanted along its rows by a uniform angle from -shear to shear degrees.
        translate: each image is moved by a uniform share, from -translate to translate, of its height and width.
        elastic: the points of a grid of 5 x 5 over the image are moved by uniform shares, from -elastic to elastic, of its
            height and width, and all between them by bicubic interpolation (Ronneberger et al. 2015, with 3 x 3).
        crop: a window of a uniform share of the area, from crop to 1, of an aspect of 3 : 4 to 4 : 3 (its logarithm uniform)
            against that of the image, at a uniform place inside it, is enlarged to the whole (Szegedy et al. 2015); 0: none.
        fill: value of what comes into view, 0 to 255.

    Returns:
        [B, C, H, W], float32 (float64 for a float64 x), on the scale of x.
    """
    check_batch(x)
    amounts = {"degrees": degrees, "scale": scale, "shear": shear, "translate": translate, "elastic": elastic}
    for name, amount in amounts.items():
        check_amount(name, amount)
    check_whole("fill", fill, most=255)
    x = to_float(x)
    batch, _, height, width = x.shape
    if not batch:
        return x
    turn, grow, slant, down, right = uniform((5, batch), generator, x, images=1)
    turn, slant = turn * math.radians(degrees), torch.tan(slant * math.radians(shear))
    grow = 1 + grow * scale
    cos, sin = torch.cos(turn) / grow, torch.sin(turn) / grow
    # Where each output pixel is found in the input, in pixels about the centre: the inverse of turn * slant * grow.
    inverse = torch.stack([cos + slant * sin, sin - slant * cos, -sin, cos], dim=1).view(batch, 2, 2)
    # grid_sample measures height and width from -1 to 1 each.
    half = x.new_tensor([width / 2, height / 2])
    inverse = inverse * half[None, None, :] / half[None, :, None]
    move = 2 * translate * torch.stack([right, down], dim=1)
    if crop:
        area, aspect, down, right = uniform((4, batch), generator, x, images=1)
        area = (1 + crop + (1 - crop) * area) / 2
        aspect = torch.exp(_ASPECT * aspect)
        window = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], dim=1).clamp_max(1)  # width, height
        centre = (1 - window) * torch.stack([right, down], dim=1)
        move = move - centre
    # Sums of outer products: affine_grid makes B small matrix products, which take ten times as long.
    here = (inverse * move[:, None, :]).sum(2)
    if crop:
        inverse = inverse * window[:, None, :]
    across, along = ((2 * torch.arange(side, dtype=x.dtype, device=x.device) + 1) / side - 1 for side in (width, height))
    rows = inverse[:, :, 1:] * along - here[:, :, None]  # [B, 2, H]
    grid = (inverse[:, :, 0, None, None] * across + rows[:, :, :, None]).permute(0, 2, 3, 1)
    if elastic:
        bend = 2 * elastic * uniform((batch, 2, _POINTS, _POINTS), generator, x)
        grid = grid + F.interpolate(bend, (height, width), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    if fill:
        return F.grid_sample(x - fill, grid, align_corners=False).add_(fill)
    return F.grid_sample(x, grid, align_corners=False)


def rotate(x: Tensor, degrees: float, generator: Generator, fill: int = 0) -> Tensor:
    """Turn each image about its centre by a uniform angle from -degrees to degrees; see ``affine``."""
    return affine(x, generator, degrees=degrees, fill=fill)


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
    check_batch(x)
    check_amount("erase", share)
    check_whole("fill", fill, most=255)
    batch, _, height, width = x.shape
    side = round(share * min(height, width))
    drawn = draw(torch.rand, (2, batch, 1), generator, x, images=1)
    inside = []
    for place, length in zip(drawn, (height, width), strict=True):
        first = (place * length).long() - side // 2
        pixel = torch.arange(length, device=x.device)
        inside.append((pixel >= first) & (pixel < first + side))
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return x.masked_fill(hole, fill)
