"""Fold batch norm into the convolution before it, for inference."""

from __future__ import annotations

import copy

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from nearfar.encoders.convolution import Conv2d, in_order
from nearfar.encoders.dropout import Dropout
from nearfar.encoders.norm import BatchNorm


def fuse(encoder: nn.Module) -> nn.Module:
    """Return a copy of ``encoder`` in eval mode in which batch norms are part of the convolutions before them.

    A batch norm is folded where it follows a convolution within an ``nn.Sequential``, directly or behind a max-pooling, with
    which it may change places where its weights are not negative; others, after a ReLU say, are left as they are, and so are
    kinds of either that do more than that, as timm has them. Dropout, which does nothing in eval mode, is taken out.

    The copy gives the same embeddings up to rounding; it cannot be trained, nor loaded with the weights of ``encoder``.
    """
    fused = copy.deepcopy(encoder).eval()
    for layers in in_order(fused):
        _fold(layers)
    return fused.requires_grad_(False)


def _fold(layers: nn.Sequential) -> None:
    convolution = ""  # that of which a batch norm may become a part
    pooled = False
    for name, layer in list(layers.named_children()):
        if isinstance(layer, Dropout):
            delattr(layers, name)
            continue
        before = layers._modules.get(convolution)
        norm = type(layer) in (nn.BatchNorm2d, BatchNorm)
        if norm and isinstance(before, nn.Conv2d) and isinstance(layer, nn.BatchNorm2d) and (not pooled or _keeps_order(layer)):
            setattr(layers, convolution, fuse_conv_bn_eval(before, layer))
            delattr(layers, name)
        if type(layer) in (nn.Conv2d, Conv2d):
            convolution, pooled = name, False
        elif type(layer) is nn.MaxPool2d:
            pooled = True
        else:
            convolution = ""


def _keeps_order(norm: nn.BatchNorm2d) -> bool:
    """Whether what it makes of a larger number is not smaller."""
    return not norm.affine or bool((norm.weight >= 0).all())
