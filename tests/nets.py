"""Nets as training leaves them."""

from __future__ import annotations

import torch
from torch import nn


def stir(net: nn.Module, *, negative: bool = True) -> nn.Module:
    """Give batch norms statistics and weights that are not the neutral ones they start from, each one ``negative`` weight."""
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 2, generator=generator)
            for tensor in (module.bias.data, module.running_mean):
                tensor.uniform_(-1, 1, generator=generator)
            if negative:
                module.weight.data[0] *= -1
    return net
