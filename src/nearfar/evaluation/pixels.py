"""Images as plain numbers: what baselines search among, and what copies are recognised by. No network, no figures."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from nearfar.data import ImageSet

Floats = npt.NDArray[np.float32]

BLOCK = 4096
"""Images or rows worked on together."""


def reduced_size(channels: int, size: tuple[int, int], most: int) -> tuple[int, int]:
    """Height and width of ``size`` over the least whole number that leaves an image no more than ``most`` numbers."""
    by = 1
    while channels * math.ceil(size[0] / by) * math.ceil(size[1] / by) > most:
        by += 1
    return math.ceil(size[0] / by), math.ceil(size[1] / by)


def flat_pixels(images: ImageSet, size: tuple[int, int]) -> Floats:
    """The pixels of every image in [0, 1], averaged down to ``size``: float32 [N, C * H * W]."""
    flat = np.empty((len(images), images.channels * size[0] * size[1]), dtype=np.float32)
    for part in parts(len(images)):
        pixels = torch.from_numpy(np.ascontiguousarray(images.images[part])).float().div_(255.0)
        if images.size != size:
            pixels = torch.nn.functional.adaptive_avg_pool2d(pixels, size)
        flat[part] = pixels.flatten(1).numpy()
    return flat


def parts(count: int) -> Iterator[slice]:
    """Slices of ``BLOCK`` rows that cover ``count``."""
    for start in range(0, count, BLOCK):
        yield slice(start, start + BLOCK)
