"""Changes of pixels' values: light, colour, sharpness, noise. All return float32, 0 to 255."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from nearfar.augment.numbers import Generator, check_amount, check_batch, chosen, draw, to_float, uniform

_LUMA = (0.299, 0.587, 0.114)  # red, green, blue (ITU-R BT.601)
_YIQ = (_LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))  # the NTSC colour space: luma, orange to blue, purple to green


def brightness(x: Tensor, amount: float, generator: Generator) -> Tensor:
    """Multiply each image by a uniform factor from 1 - amount to 1 + amount, cut to 0 to 255. Returns float [B, C, H, W]."""
    check_batch(x)
    check_amount("brightness", amount)
    x = to_float(x)
    factor = 1 + amount * uniform((len(x), 1, 1, 1), generator, x)
    return (x * factor).clamp_(0, 255)


def contrast(x: Tensor, amount: float, generator: Generator) -> Tensor:
    """Stretch each image about its mean by a uniform factor from 1 - amount to 1 + amount, cut to 0 to 255.

    Returns float [B, C, H, W].
    """
    check_batch(x)
    check_amount("contrast", amount)
    x = to_float(x)
    factor = 1 + amount * uniform((len(x), 1, 1, 1), generator, x)
    return torch.lerp(x.mean(dim=(1, 2, 3), keepdim=True), x, factor).clamp_(0, 255)


def noise(x: Tensor, amount: float, generator: Generator) -> Tensor:
    """Add to every pixel a normal number of standard deviation 255 * amount, cut to 0 to 255. Returns float [B, C, H, W]."""
    check_batch(x)
    check_amount("noise", amount)
    x = to_float(x)
    drawn = draw(partial(torch.randn, dtype=x.dtype), tuple(x.shape), generator, x)
    return drawn.mul_(255 * amount).add_(x).clamp_(0, 255)


def gamma(x: Tensor, amount: float, generator: Generator) -> Tensor:
    """Bend each image's scale: 255 (x / 255)^g, log g uniform from -log(1 + amount) to log(1 + amount).

    Black and white stay as they are. Returns float [B, C, H, W].
    """
    check_batch(x)
    check_amount("gamma", amount)
    x = to_float(x)
    exponent = torch.exp(math.log1p(amount) * uniform((len(x), 1, 1, 1), generator, x))
    return (x / 255).pow(exponent).mul_(255)


def saturation(x: Tensor, amount: float, generator: Generator) -> Tensor:
    """Move each colour image away from its grey or towards it, by a uniform factor from 1 - amount to 1 + amount.

    Cut to 0 to 255; others than of three channels stay as they are. Returns float [B, C, H, W].
    """
    check_batch(x)
    check_amount("saturation", amount)
    x = to_float(x)
    factor = 1 + amount * uniform((len(x), 1, 1, 1), generator, x)
    return x if x.shape[1] != 3 else torch.lerp(_luma(x), x, factor).clamp_(0, 255)


def hue(x: Tensor, amount: float, generator: Generator) -> Tensor:
    """Turn the colours of each image about the axis of greys by a uniform angle, up to ``amount`` of a full turn either way.

    A turn of the plane of I and Q in the colour space YIQ, which keeps the luma: a product with one 3 x 3 matrix for each
    image. Cut to 0 to 255; others than of three channels stay as they are. Returns float [B, C, H, W].
    """
    check_batch(x)
    check_amount("hue", amount)
    x = to_float(x)
    angle = 2 * math.pi * amount * uniform((len(x),), generator, x)
    if x.shape[1] != 3:
        return x
    into = x.new_tensor(_YIQ)
    turn = torch.zeros(len(x), 3, 3, dtype=x.dtype, device=x.device)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = torch.cos(angle)
    turn[:, 2, 1] = torch.sin(angle)
    turn[:, 1, 2] = -turn[:, 2, 1]
    matrix = torch.linalg.inv(into) @ turn @ into
    return torch.einsum("bij,bjhw->bihw", matrix, x).clamp_(0, 255)


def grey(x: Tensor, share: float, generator: Generator) -> Tensor:
    """Take the colour from so large a share of the images. Returns float [B, C, H, W], C as before."""
    check_batch(x)
    check_amount("grey", share)
    x = to_float(x)
    which = chosen(share, x, generator)
    return x if x.shape[1] != 3 else torch.where(which, _luma(x), x)


def solarise(x: Tensor, share: float, generator: Generator) -> Tensor:
    """Turn values from 128 on into 255 less the value, in so large a share of the images. Returns float [B, C, H, W]."""
    check_batch(x)
    check_amount("solarise", share)
    x = to_float(x)
    return torch.where(chosen(share, x, generator) & (x >= 128), 255 - x, x)


def blur(x: Tensor, amount: float, generator: Generator) -> Tensor:
    """Blur every second image by a Gaussian whose standard deviation is uniform from a tenth of the most to the most.

    Args:
        x: [B, C, H, W].
        amount: the largest standard deviation, as a share of the shorter side.
        generator: source of the random numbers.

    Returns:
        float [B, C, H, W]; beyond the border its pixels are taken to go on.
    """
    check_batch(x)
    check_amount("blur", amount)
    x = to_float(x)
    height, width = x.shape[2:]
    most = amount * min(height, width)
    which = chosen(0.5, x, generator)
    sigma = most * (0.55 + 0.45 * uniform((len(x), 1), generator, x))
    reach = min(math.ceil(2.5 * most), min(height, width) - 1)
    if reach < 1:
        return x
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device) / sigma).square())
    weights /= weights.sum(1, keepdim=True)
    # Shifted copies, weighted and added: a convolution with a kernel for each image takes three times as long.
    out = x
    for dim in (2, 3):
        padded = F.pad(out, (0, 0, reach, reach) if dim == 2 else (reach, reach, 0, 0), mode="replicate")
        out = torch.zeros_like(x)
        for place in range(2 * reach + 1):
            out.addcmul_(padded.narrow(dim, place, x.shape[dim]), weights[:, place, None, None, None])
    return torch.where(which, out, x)


def _luma(x: Tensor) -> Tensor:
    return (x * x.new_tensor(_LUMA)[:, None, None]).sum(1, keepdim=True)
