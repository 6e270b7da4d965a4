"""Image batch -> vectors: the encoders of the reference systems and a small residual net.

Knows shapes of images, never labels, losses or files. An encoder is an ``nn.Module`` from float images [B, C, H, W] to
[B, dim]; its arguments are keyword-only, the numbers of its recipe.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from nearfar.encoders.fuse import fuse
from nearfar.encoders.reference import MLP, Conv2, Conv3, Conv5, ResidualMLP
from nearfar.encoders.resnet import SmallResNet
from nearfar.encoders.summary import LayerSummary, format_summary, summary
from nearfar.errors import InputError, did_you_mean

__all__ = [
    "ENCODERS",
    "MLP",
    "Conv2",
    "Conv3",
    "Conv5",
    "Encoder",
    "LayerSummary",
    "ResidualMLP",
    "SmallResNet",
    "UnitNorm",
    "build_encoder",
    "channels_last",
    "format_summary",
    "fuse",
    "summary",
]

ENCODERS: dict[str, type[nn.Module]] = {
    "conv5": Conv5,
    "mlp": MLP,
    "conv2": Conv2,
    "conv3": Conv3,
    "residual-mlp": ResidualMLP,
    "resnet": SmallResNet,
}


class UnitNorm(nn.Module):
    """Divide each row by its Euclidean length; one shorter than ``eps`` by ``eps``, so that a zero row stays zero."""

    eps = 1e-6  # large enough that the gradient at a zero row, 1 / eps, cannot overflow float32 further down

    def forward(self, z: Tensor) -> Tensor:
        return z / torch.linalg.vector_norm(z, dim=1, keepdim=True).clamp_min(self.eps)


class Encoder(nn.Module):
    """A net and what is done to its output: float32 at least, unit rows if asked for."""

    def __init__(self, net: nn.Module, *, normalize: bool) -> None:
        super().__init__()
        if not isinstance(normalize, bool):
            raise InputError(f"encoder.normalize is {normalize!r}; expected true or false")
        self.net = net
        self.unit: nn.Module = UnitNorm() if normalize else nn.Identity()

    @property
    def normalize(self) -> bool:
        return isinstance(self.unit, UnitNorm)

    def forward(self, x: Tensor) -> Tensor:
        z = self.net(x)
        # Losses and unit lengths are computed in float32 also where the net ran in half precision.
        return self.unit(z.float() if z.dtype in (torch.bfloat16, torch.float16) else z)


def channels_last(encoder: nn.Module) -> nn.Module:
    """``encoder`` itself, its weights laid out with channels innermost, which convolutions on a CPU prefer."""
    # PyTorch's annotations of Module.to leave out the form with memory_format alone.
    return encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def build_encoder(kind: str, *, channels: int, size: tuple[int, int], normalize: bool = True, **params: Any) -> Encoder:
    """Build the encoder ``kind`` for images of ``channels`` and ``size`` (H, W).

    Args:
        kind: a key of ``ENCODERS``.
        channels: of the images.
        size: (height, width) of the images.
        normalize: divide each embedding by its length.
        params: the encoder's own arguments, by name.

    Returns:
        A module from float [B, C, H, W] to [B, dim], float32.

    Raises:
        InputError: an unknown kind or parameter, a value that is not usable, or images too small for the net.
    """
    if kind not in ENCODERS:
        raise InputError(f"there is no encoder {kind!r}{did_you_mean(kind, ENCODERS)}")
    known = [name for name in inspect.signature(ENCODERS[kind]).parameters if name not in ("channels", "size")]
    for name in params:
        if name not in known:
            raise InputError(f"encoder {kind!r} has no parameter {name!r}{did_you_mean(name, known)}")
    return Encoder(ENCODERS[kind](channels=channels, size=size, **params), normalize=normalize)
