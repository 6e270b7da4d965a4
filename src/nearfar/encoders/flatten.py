"""Maps -> one row an image, with a gradient in the layout that the maps have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Flatten(nn.Module):
    """[B, C, H, W] as [B, C * H * W], the numbers of ``nn.Flatten``.

    Of maps with channels innermost, ``nn.Flatten`` hands a gradient back with pixels innermost, and whatever stands before
    it then works on two layouts at once: a ReLU took 3 ms instead of 0.1 for 256 maps of 128 x 4 x 4.
    """

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad and x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
            rows: Tensor = _ChannelsLast.apply(x)
            return rows
        return x.flatten(1)


class _ChannelsLast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        return x.flatten(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.reshape(ctx.shape).contiguous(memory_format=torch.channels_last)
