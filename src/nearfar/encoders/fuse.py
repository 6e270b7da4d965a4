"""Fold batch norm into the convolution before it, for inference."""

from __future__ import annotations

import copy

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from nearfar.encoders.convolution import Conv2d
from nearfar.encoders.dropout import Dropout
from nearfar.encoders.norm import BatchNorm


def fuse(encoder: nn.Module) -> nn.Module:
    """Return a copy of ``encoder`` in eval mode in which batch norms are part of the convolutions before them.

    A batch norm is folded where it follows a convolution directly within an ``nn.Sequential``; others, after a ReLU or a
    pooling, are left as they are, and so are kinds of either that do more than that, as timm has them. Dropout, which does
    nothing in eval mode, is taken out.

    The copy gives the same embeddings up to rounding; it cannot be trained, nor loaded with the weights of ``encoder``.
    """
    fused = copy.deepcopy(encoder).eval()
    for module in list(fused.modules()):
        if isinstance(module, nn.Sequential):
            _fold(module)
    return fused.requires_grad_(False)


def _fold(layers: nn.Sequential) -> None:
    before = ""
    for name, layer in list(layers.named_children()):
        if isinstance(layer, Dropout):
            delattr(layers, name)
            continue
        convolution = layers._modules.get(before)
        plain = type(layer) in (nn.BatchNorm2d, BatchNorm) and type(convolution) in (nn.Conv2d, Conv2d)
        if plain and isinstance(layer, nn.BatchNorm2d) and isinstance(convolution, nn.Conv2d):
            setattr(layers, before, fuse_conv_bn_eval(convolution, layer))
            delattr(layers, name)
            continue
        before = name
