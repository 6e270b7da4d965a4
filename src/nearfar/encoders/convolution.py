"""Convolution whose training takes half the time where maps are small and channels many, and whose inference takes less."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nearfar.encoders import winograd

_ENTRY = 50.0  # what a number at a point costs on its way there and back, in multiplications
_SIDE = {"AVX2": 0.0, "AVX512": 1.25}  # and so much more for each row of the maps, by what the processor can do
_WORTH = 0.8  # share of the work of the direct convolution below which the other one is taken
_WORTH_POOLED = 1.2  # times so much where max-pooling is spared, too
_FEW = 32  # images; with fewer, most of the time of inference is that of reading the weights, of which there are more


class Conv2d(nn.Conv2d):
    """`nn.Conv2d`: its parameters, and its numbers up to rounding; trained in half the time where that pays.

    While it trains on a processor, in float32 and with channels innermost, kernels of stride 1 with enough channels are taken
    by `nearfar.encoders.winograd`, which needs a third to a ninth of the multiplications. Which ones is decided by their shapes
    alone, so that every process, every part of a batch and every run does the same. In eval mode it is PyTorch's own, unless
    it was made `Settled`.

    With ``even=True`` an odd last row or column of the result may be missing: max-pooling of 2 x 2 would drop it.
    """

    even = False
    _worth = _WORTH

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
        work = points * (product + self._entry(max(x.shape[2:])) * (self.in_channels + self.out_channels))
        return (outputs[0], outputs[1]) if work < self._worth * direct * product else None

    def _entry(self, side: int) -> float:
        """What a number at a point costs on its way there and back, in multiplications."""
        return _ENTRY + _SIDE.get(torch.backends.cpu.get_cpu_capability(), max(_SIDE.values())) * side


class Settled(Conv2d):
    """A `Conv2d` for inference, whose weights do not change again: taken by fewer multiplications in eval mode too.

    That pays for fewer layers than in training, and not for a few images. Weights at the points are made once. What follows
    it in a net may have become part of it: the max-pooling of 2 x 2 and the ReLU, done while the cache still holds the maps.
    """

    pool: bool
    relu: bool
    _weights: dict[tuple[int, int], Tensor]

    @classmethod
    def of(cls, layer: Conv2d, *, pool: bool, relu: bool) -> None:
        """Change ``layer`` into one."""
        layer.__class__ = cls
        assert isinstance(layer, cls)
        layer.pool, layer.relu, layer._weights = pool, relu, {}
        if pool:
            layer.even, layer._worth = True, _WORTH_POOLED * _WORTH

    def _entry(self, side: int) -> float:
        return 1.5 * _ENTRY + side  # for one product; training has three for two such ways

    def forward(self, x: Tensor) -> Tensor:
        outputs = self._outputs(x) if len(x) >= _FEW else None
        if outputs is None:
            y = nn.Conv2d.forward(self, x)
            if self.pool:
                y = F.max_pool2d(y, 2)
            return y.relu_() if self.relu else y
        weights = self._weights.get(outputs)
        if weights is None:  # two threads may both make them
            weights = self._weights[outputs] = winograd.at_points(self.weight, outputs)
        kernel = (self.kernel_size[0], self.kernel_size[1])
        return winograd.convolve_at(x, weights, self.bias, kernel, self._border, outputs, pool=self.pool, relu=self.relu)


def in_order(module: nn.Module) -> list[nn.Sequential]:
    """Each ``nn.Sequential`` in ``module`` whose forward is to call its layers one after another, and no more."""
    return [
        layers
        for layers in module.modules()
        if isinstance(layers, nn.Sequential) and type(layers).forward is nn.Sequential.forward
    ]


def settle(module: nn.Module) -> nn.Module:
    """``module`` itself, in eval mode and never to be trained again, its every `Conv2d` now a `Settled`; same numbers.

    Max-pooling of 2 x 2 and ReLU behind one in an ``nn.Sequential`` become part of it.
    """
    for layers in in_order(module):
        _absorb(layers)
    for layer in module.modules():
        if type(layer) is Conv2d:
            Settled.of(layer, pool=False, relu=False)
    return module.requires_grad_(False)


def _absorb(layers: nn.Sequential) -> None:
    named = list(layers.named_children())
    for at, (_, layer) in enumerate(named):
        if type(layer) is not Conv2d:
            continue
        after = named[at + 1 : at + 3]
        pool = bool(after) and _halves(after[0][1])
        relu = len(after) > pool and type(after[pool][1]) is nn.ReLU
        Settled.of(layer, pool=pool, relu=relu)
        for name, _ in after[: pool + relu]:
            delattr(layers, name)


def _halves(layer: nn.Module) -> bool:
    """Whether it is max-pooling of 2 x 2 and no more."""
    if type(layer) is not nn.MaxPool2d:
        return False
    settings = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    both = [each if isinstance(each, tuple) else (each, each) for each in settings]
    return both == [(2, 2), (2, 2), (0, 0), (1, 1)] and not layer.ceil_mode and not layer.return_indices


def quicken(module: nn.Module) -> nn.Module:
    """``module`` itself, in which every plain `nn.Conv2d` is now a `Conv2d`: same weights and names, same numbers in eval mode.

    Kinds that do more than `nn.Conv2d`, as some of timm's, stay as they are.
    """
    for layer in module.modules():
        if type(layer) is nn.Conv2d:
            layer.__class__ = Conv2d
    return module
