"""Convolution whose training takes half the time where maps are small and channels many."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nearfar.encoders import winograd

_ENTRY = {"AVX2": 50.0, "AVX512": 100.0}
"""What a number at a point costs on its way there and back, in multiplications; by what the processor can do."""

_WORTH = 0.8  # share of the work of the direct convolution below which the other one is taken


class Conv2d(nn.Conv2d):
    """`nn.Conv2d`: its parameters, and its numbers up to rounding; trained in half the time where that pays.

    While it trains on a processor, in float32 and with channels innermost, kernels of stride 1 with enough channels are taken
    by `nearfar.encoders.winograd`, which needs a third to a ninth of the multiplications. Which ones is decided by their shapes
    alone, so that every process, every part of a batch and every run does the same. In eval mode it is PyTorch's own.

    With ``even=True`` an odd last row or column of the result may be missing: max-pooling of 2 x 2 would drop it.
    """

    even = False

    def __init__(self, *args: Any, even: bool = False, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.even = even

    def forward(self, x: Tensor) -> Tensor:
        outputs = self._outputs(x) if self.training else None
        if outputs is None:
            return super().forward(x)
        return winograd.convolve(x, self.weight, self.bias, self._border, outputs)

    @property
    def _border(self) -> tuple[int, int]:
        return int(self.padding[0]), int(self.padding[1])

    def _outputs(self, x: Tensor) -> tuple[int, int] | None:
        """Rows and columns to be made by the other way; None where the direct one is to be taken."""
        usual = (
            x.ndim == 4
            and x.shape[1] == self.in_channels
            and x.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
            and x.is_contiguous(memory_format=torch.channels_last)
            and self.stride == self.dilation == (1, 1)
            and self.groups == 1
            and self.padding_mode == "zeros"
            and not isinstance(self.padding, str)
            and 1 < min(self.kernel_size) <= max(self.kernel_size) < winograd.MOST_POINTS
        )
        if not usual:
            return None
        outputs = []
        points = direct = 1
        for side, border, kernel in zip(x.shape[2:], self._border, self.kernel_size, strict=True):
            made = side + 2 * border - kernel + 1
            wanted = made - made % 2 if self.even else made
            if wanted < 1:
                return None
            outputs.append(wanted)
            tiles, of_each = winograd.tiles(wanted, kernel)
            points *= tiles * (of_each + kernel - 1)
            direct *= made * kernel
        product = self.in_channels * self.out_channels
        entry = _ENTRY.get(torch.backends.cpu.get_cpu_capability(), max(_ENTRY.values()))
        work = points * (product + entry * (self.in_channels + self.out_channels))
        return (outputs[0], outputs[1]) if work < _WORTH * direct * product else None


def quicken(module: nn.Module) -> nn.Module:
    """``module`` itself, in which every plain `nn.Conv2d` is now a `Conv2d`: same weights and names, same numbers in eval mode.

    Kinds that do more than `nn.Conv2d`, as some of timm's, stay as they are.
    """
    for layer in module.modules():
        if type(layer) is nn.Conv2d:
            layer.__class__ = Conv2d
    return module
