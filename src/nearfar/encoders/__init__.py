"""Image batch -> vectors: the encoders of the reference systems, a small residual net, and any model of timm.

Knows shapes of images, never labels, losses or files. An encoder is an ``nn.Module`` from float images [B, C, H, W] to
[B, dim]; its arguments are keyword-only, the numbers of its recipe.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nearfar.encoders.fuse import fuse
from nearfar.encoders.reference import MLP, Conv2, Conv3, Conv5, ResidualMLP
from nearfar.encoders.resnet import SmallResNet
from nearfar.encoders.summary import LayerSummary, format_summary, summary
from nearfar.encoders.timm_model import TimmModel
from nearfar.encoders.whitening import Whitening
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
    "TimmModel",
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
    "timm": TimmModel,
}


class UnitNorm(nn.Module):
    """Divide each row by its Euclidean length; one shorter than ``eps`` by ``eps``, so that a zero row stays zero."""

    eps = 1e-6  # large enough that the gradient at a zero row, 1 / eps, cannot overflow float32 further down

    def forward(self, z: Tensor) -> Tensor:
        return z / torch.linalg.vector_norm(z, dim=1, keepdim=True).clamp_min(self.eps)


class Encoder(nn.Module):
    """A net and what is done to its output: float32 at least, unit rows if asked for.

    In eval mode the embedding may be the mean over several views of the image (test-time augmentation), taken after each
    was brought to unit length, and brought to it again; and it may be whitened. Training sees the image alone.
    """

    def __init__(self, net: nn.Module, *, normalize: bool, tta: Sequence[str] = (), whitening: Whitening | None = None) -> None:
        """Args:
            net: float [B, C, H, W] to [B, D].
            normalize: divide each embedding by its length.
            whitening: what evens out the directions of the embeddings, before they are brought to unit length again.
            tta: views besides the image: "mirror" left to right, "shift" by one pixel up, down, left and right; both: of
                the mirrored image too.

        Raises:
            InputError: a value is not usable.
        """
        super().__init__()
        if not isinstance(normalize, bool):
            raise InputError(f"encoder.normalize is {normalize!r}; expected true or false")
        if isinstance(tta, str) or not isinstance(tta, Sequence):
            raise InputError(f"encoder.tta is {tta!r}; expected a list of views, e.g. ['mirror']")
        for name in tta:
            if name not in _VIEWS:
                raise InputError(f"encoder.tta has an unknown view {name!r}{did_you_mean(str(name), _VIEWS)}")
        self.net = net
        self.unit: nn.Module = UnitNorm() if normalize else nn.Identity()
        self.tta = tuple(tta)
        self.whitening = whitening

    @property
    def normalize(self) -> bool:
        return isinstance(self.unit, UnitNorm)

    def forward(self, x: Tensor) -> Tensor:
        z = self._one(x)
        if self.training:
            return z
        if self.tta:
            views = self.views(x)
            for view in views[1:]:
                z = z + self._one(view)
            z = self.unit(z / len(views))
        return self.finish(z)

    def finish(self, z: Tensor) -> Tensor:
        """Embeddings [B, D] in eval mode as they are given out: whitened, where that is asked for."""
        return z if self.whitening is None else self.unit(self.whitening(z))

    def views(self, x: Tensor) -> list[Tensor]:
        """Images [B, C, H, W], and the views of them that their embedding in eval mode is the mean of."""
        views = [x]
        for name in self.tta:
            views += [view for one in views for view in _VIEWS[name](one)]
        return views

    def plain(self) -> Encoder:
        """The same net, its weights shared, giving embeddings of the image alone, not whitened."""
        return Encoder(self.net, normalize=self.normalize)

    def _one(self, x: Tensor) -> Tensor:
        z = self.net(x)
        # Losses and unit lengths are computed in float32 also where the net ran in half precision.
        return self.unit(z.float() if z.dtype in (torch.bfloat16, torch.float16) else z)


def _mirror(x: Tensor) -> list[Tensor]:
    return [x.flip(3)]


def _shift(x: Tensor) -> list[Tensor]:
    """The image one pixel up, down, left and right; what comes into view repeats the border."""
    height, width = x.shape[2:]
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    return [padded[:, :, top : top + height, left : left + width] for top, left in ((2, 1), (0, 1), (1, 2), (1, 0))]


_VIEWS: dict[str, Callable[[Tensor], list[Tensor]]] = {"mirror": _mirror, "shift": _shift}


def channels_last(encoder: nn.Module) -> nn.Module:
    """``encoder`` itself, its weights laid out with channels innermost, which convolutions on a CPU prefer."""
    return encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the form is not in PyTorch's annotations


def build_encoder(
    kind: str,
    *,
    channels: int,
    size: tuple[int, int],
    normalize: bool = True,
    tta: Sequence[str] = (),
    whiten: float = 0.0,
    **params: Any,
) -> Encoder:
    """Build the encoder ``kind`` for images of ``channels`` and ``size`` (H, W).

    Args:
        kind: a key of ``ENCODERS``.
        channels: of the images.
        size: (height, width) of the images.
        normalize: divide each embedding by its length.
        tta: views of the image that its embedding is the mean of in eval mode, as `Encoder` has it.
        whiten: how far the directions of the embeddings are evened out after training, 0 to 1; needs ``dim``.
        params: the encoder's own arguments, by name.

    The weights are random; those that a recipe asks for are put in by `nearfar.training.weights.begin`.

    Returns:
        A module from float [B, C, H, W] to [B, dim], float32.

    Raises:
        InputError: an unknown kind or parameter, a value that is not usable, or images too small for the net.
    """
    if kind not in ENCODERS:
        raise InputError(f"there is no encoder {kind!r}{did_you_mean(kind, ENCODERS)}")
    signature = inspect.signature(ENCODERS[kind]).parameters
    known = [name for name in signature if name not in ("channels", "size")]
    for name in params:
        if name not in known:
            raise InputError(f"encoder {kind!r} has no parameter {name!r}{did_you_mean(name, known)}")
    for name in known:
        if signature[name].default is inspect.Parameter.empty and name not in params:
            raise InputError(f"encoder {kind!r} needs encoder.{name}")
    if isinstance(whiten, bool) or not isinstance(whiten, int | float) or not 0 <= whiten <= 1:
        raise InputError(f"encoder.whiten is {whiten!r}; expected a number from 0 to 1, e.g. 0.5")
    if whiten and not params.get("dim"):
        raise InputError("encoder.whiten needs encoder.dim, the width of the embedding")
    net = ENCODERS[kind](channels=channels, size=size, **params)
    return Encoder(net, normalize=normalize, tta=tta, whitening=Whitening(params["dim"], float(whiten)) if whiten else None)
