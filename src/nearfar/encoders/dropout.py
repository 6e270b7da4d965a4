"""Dropout whose random numbers do not cost more than the convolutions around it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from nearfar.encoders.shared import current

_LEVELS = 1 << 16


class Dropout(nn.Module):
    """Zero a share ``p`` of the elements and divide the others by 1 - p (Srivastava et al. 2014), in training only.

    On a processor PyTorch draws one number after the other; here 16 bits an element come from NumPy's SFC64, a small fast
    chaotic generator, seeded by one draw of PyTorch's, so `torch.manual_seed` decides them as ever. That rounds ``p`` to a
    multiple of 2^-16, and takes a fraction of the time. Where several processes embed a batch together, each draws for all
    of it and keeps what is for its own images.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        shared = current()
        count = len(x) if shared is None else shared.count
        if x.device.type == "cpu":
            kept = _kept(x[:1].numel() * count, self.p)
        else:
            kept = torch.rand(x[:1].numel() * count, device=x.device) >= self.p
        if shared is not None:
            kept = shared.part_of(kept.view(count, -1)).view(-1)
        mask = _factors(kept, 1 / (1 - self.p), x.dtype)
        # The mask takes the layout of x, so that the product walks both in step.
        return x * torch.as_strided(mask, x.shape, x.stride()) if _dense(x) else x * mask.view(x.shape)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def _kept(count: int, p: float) -> Tensor:
    """int16 [count], each 1 with probability 1 - p to within 2^-17, else 0."""
    seed = int(torch.randint(1 << 62, ()))
    words = np.random.SFC64(seed).random_raw(-(-count // 4))
    numbers = torch.from_numpy(words.view(np.int16)[:count])
    return numbers.ge_(min(round(p * _LEVELS), _LEVELS - 1) - _LEVELS // 2)


def _factors(kept: Tensor, factor: float, dtype: torch.dtype) -> Tensor:
    """``factor`` where ``kept`` is not 0, and 0 elsewhere; may be made in the memory of ``kept``.

    In place because PyTorch's kernels that change the type, to and from bool above all, are many times slower than others.
    """
    if kept.dtype == torch.int16 and dtype in (torch.bfloat16, torch.float16):
        bits = int(torch.tensor(factor, dtype=dtype).view(torch.int16))
        return kept.mul_(bits).view(dtype)
    return kept.to(dtype).mul_(factor)


def _dense(x: Tensor) -> bool:
    """Whether the elements of x fill a block of memory without gaps, in whatever order."""
    return x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last))
