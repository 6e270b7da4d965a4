"""Batch norm that stays fast where maps have few channels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_FEW = 16
"""Channels below which PyTorch's kernels slow down: a 512-bit register holds 16 numbers of float32."""


class BatchNorm(nn.BatchNorm2d):
    """Batch norm (Ioffe, Szegedy 2015): the numbers of PyTorch's own, several times as fast for fewer than 16 channels.

    With channels innermost PyTorch's kernels for processors run over channels; fewer of them than a register holds are done
    one by one. Here neighbouring pixels are taken for further channels, which costs nothing, and their sums are added up.

    It also trains on a single value per channel, which has no variance: by the running statistics. That is a last batch of
    one image where the maps have shrunk to one pixel; PyTorch's own refuses it.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        fold = _fold(x) if self.training else 1
        if fold == 1 or self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return super().forward(x)
        y, mean, variance = _Normalize.apply(x, self.weight, self.bias, self.eps, fold)
        values = x.numel() // x.shape[1]
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * (values / (values - 1)), momentum)
        return y


class _Normalize(torch.autograd.Function):
    """y = (x - mean) / sqrt(variance + eps) * weight + bias, with ``fold`` pixels side by side taken for channels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, fold: int) -> tuple[Tensor, Tensor, Tensor]:
        wide = _widen(x, fold)
        unused = weight.new_zeros(2, wide.shape[1])  # running statistics, which also decide the type of the result
        means, variances = (stats.view(fold, -1) for stats in torch.batch_norm_update_stats(wide, unused[0], unused[1], 0.0))
        # The variance of all is the mean variance within the groups and the variance of their means.
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        parameters = [values.repeat(fold) for values in (weight, bias, mean, variance)]
        y, _, _ = torch.ops.aten.native_batch_norm(wide, *parameters, False, 0.0, eps)
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps, ctx.fold = eps, fold
        ctx.mark_non_differentiable(mean, variance)
        return _narrow(y, x), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *unused: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight, mean, variance = ctx.saved_tensors
        fold = ctx.fold
        wide, above = _widen(x, fold), _widen(grad.contiguous(memory_format=torch.channels_last), fold)
        # First as if mean and variance were given: the gradients of weight and bias are right, that of x lacks two terms.
        given = [values.repeat(fold) for values in (weight, mean, variance)]
        below, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            above, wide, *given, None, None, False, ctx.eps, [True, True, True]
        )
        of_weight, of_bias = of_weight.view(fold, -1).sum(0), of_bias.view(fold, -1).sum(0)
        # A change of x along 1 or along the normalised x leaves y as it is: what the gradient has of them goes.
        inverse = (variance + ctx.eps).rsqrt()
        share = weight * inverse / (x.numel() // x.shape[1])
        slope = -share * inverse * of_weight
        level = -share * of_bias - slope * mean
        slopes, levels = (values.repeat(fold).to(x.dtype)[:, None, None] for values in (slope, level))
        return _narrow(below.addcmul_(wide, slopes).add_(levels), x), of_weight, of_bias, None, None


def _fold(x: Tensor) -> int:
    """How many pixels of a row to take for channels; 1 where nothing is gained, or the layout does not allow it."""
    fold = 1
    innermost = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    if x.device.type == "cpu" and innermost and x.shape[1] < _FEW:
        while x.shape[1] * fold < 2 * _FEW and x.shape[3] % (2 * fold) == 0:
            fold *= 2
    return fold


def _widen(x: Tensor, fold: int) -> Tensor:
    """[N, C, H, W] with channels innermost as [N, fold * C, H, W / fold], on the same memory."""
    batch, channels, height, width = x.shape
    return x.permute(0, 2, 3, 1).view(batch, height, width // fold, fold * channels).permute(0, 3, 1, 2)


def _narrow(wide: Tensor, like: Tensor) -> Tensor:
    """Undo `_widen`."""
    batch, channels, height, width = like.shape
    return wide.permute(0, 2, 3, 1).view(batch, height, width, channels).permute(0, 3, 1, 2)
