"""Batch norm that stays fast where maps have few channels, and whose statistics may be over several processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from nearfar.encoders.shared import Shared, current

_REGISTER, _MANY = 16, 48
"""In multiples of how many channels PyTorch's kernels are fast, 512 bits of float32; from how many on little is gained."""

_Total = Callable[[Tensor], Tensor]


class _Shareable(_BatchNorm):
    """What batch norms of maps and of vectors share; `nn.BatchNorm2d` or `nn.BatchNorm1d` checks the shape."""

    def forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        shared = current() if self.training else None
        if self.training and shared is None and x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        fold = _fold(x) if self.training else 1
        mean_so_far, variance_so_far, seen = self.running_mean, self.running_var, self.num_batches_tracked
        if (fold == 1 and shared is None) or mean_so_far is None or variance_so_far is None or seen is None:
            return super().forward(x)
        maps = x if x.ndim == 4 else x[:, :, None, None]
        values = maps.numel() // maps.shape[1]
        if shared is not None:
            values = values // len(x) * shared.count
            if values == 1:
                return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        y, mean, variance = _Normalize.apply(maps, self.weight, self.bias, self.eps, fold, values, shared)
        with torch.no_grad():
            seen.add_(1)
            momentum = 1 / float(seen) if self.momentum is None else self.momentum
            mean_so_far.lerp_(mean, momentum)
            variance_so_far.lerp_(variance * (values / (values - 1)), momentum)
        return y if x.ndim == 4 else y[:, :, 0, 0]


class BatchNorm(_Shareable, nn.BatchNorm2d):
    """Batch norm (Ioffe, Szegedy 2015): the numbers of PyTorch's own, several times as fast for 8 or 20 channels, say.

    With channels innermost PyTorch's kernels for processors run over channels; what is left of them beside full registers is
    done one by one. Here neighbouring pixels are taken for further channels, which costs nothing, and their sums are added up.

    It also trains on a single value per channel, which has no variance: by the running statistics. That is a last batch of
    one image where the maps have shrunk to one pixel; PyTorch's own refuses it.

    Where several processes embed a batch together (`nearfar.encoders.shared`), mean and variance are those of all its images,
    and so is their gradient: one sum of 2 C numbers forward, one backward.
    """


class VectorNorm(_Shareable, nn.BatchNorm1d):
    """The same of vectors [B, C]."""


def unshared(module: nn.Module) -> str | None:
    """The kind of the first batch norm in ``module`` whose statistics stay those of one process; None where there is none."""
    kinds = (type(layer).__name__ for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.training)
    own = {BatchNorm.__name__, VectorNorm.__name__}
    return next((kind for kind in kinds if kind not in own), None)


class _Normalize(torch.autograd.Function):
    """y = (x - mean) / sqrt(variance + eps) * weight + bias, with ``fold`` pixels side by side taken for channels.

    ``values`` are how many numbers each channel has, over all processes.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, fold: int, values: int, shared: Shared | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = _widen(x, fold)
        unused = weight.new_zeros(2, wide.shape[1])  # running statistics, which also decide the type of the result
        means, variances = (stats.view(fold, -1) for stats in torch.batch_norm_update_stats(wide, unused[0], unused[1], 0.0))
        # The variance of all is the mean variance within the groups and the variance of their means.
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        if shared is not None:
            mean, variance = _over_all(mean, variance, x.numel() // x.shape[1] / values, shared.total)
        parameters = [each.repeat(fold) for each in (weight, bias, mean, variance)]
        y, _, _ = torch.ops.aten.native_batch_norm(wide, *parameters, False, 0.0, eps)
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps, ctx.fold, ctx.values = eps, fold, values
        ctx.total = None if shared is None else shared.total
        ctx.mark_non_differentiable(mean, variance)
        return _narrow(y, x, fold), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance = ctx.saved_tensors
        fold = ctx.fold
        innermost = x.is_contiguous(memory_format=torch.channels_last)
        grad = grad.contiguous(memory_format=torch.channels_last if innermost else torch.contiguous_format)
        wide, above = _widen(x, fold), _widen(grad, fold)
        # First as if mean and variance were given: the gradients of weight and bias are right, that of x lacks two terms.
        given = [each.repeat(fold) for each in (weight, mean, variance)]
        below, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            above, wide, *given, None, None, False, ctx.eps, [True, True, True]
        )
        of_weight, of_bias = of_weight.view(fold, -1).sum(0), of_bias.view(fold, -1).sum(0)
        # A change of x along 1 or along the normalised x leaves y as it is: what the gradient has of them goes.
        both = torch.stack((of_weight, of_bias))
        along, level = both if ctx.total is None else ctx.total(both.clone())
        inverse = (variance + ctx.eps).rsqrt()
        share = weight * inverse / ctx.values
        slope = -share * inverse * along
        level = -share * level - slope * mean
        slopes, levels = (each.repeat(fold).to(x.dtype)[:, None, None] for each in (slope, level))
        below = _narrow(below.addcmul_(wide, slopes).add_(levels), x, fold)
        return below, of_weight, of_bias, None, None, None, None


def _over_all(mean: Tensor, variance: Tensor, share: float, total: _Total) -> tuple[Tensor, Tensor]:
    """Mean and variance over all processes from those of this one's ``share`` of the values; one sum over processes."""
    own = mean.double()
    moments = total(torch.stack((own, variance.double() + own.square())).mul_(share))
    return moments[0].to(mean.dtype), (moments[1] - moments[0].square()).clamp_min_(0.0).to(mean.dtype)


def _fold(x: Tensor) -> int:
    """How many pixels of a row to take for channels; 1 where nothing is gained, or the layout does not allow it."""
    if x.ndim != 4:
        return 1
    innermost = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    channels, width = x.shape[1], x.shape[3]
    if x.device.type == "cpu" and innermost and channels < _MANY and channels % _REGISTER:
        register = _REGISTER * 4 // x.element_size()
        enough = range(-(-2 * register // channels), width)  # pixels that fill two registers
        return next((pixels for pixels in enough if width % pixels == 0 and channels * pixels % register == 0), width)
    return 1


def _widen(x: Tensor, fold: int) -> Tensor:
    """[N, C, H, W] with channels innermost as [N, fold * C, H, W / fold], on the same memory."""
    if fold == 1:
        return x
    batch, channels, height, width = x.shape
    return x.permute(0, 2, 3, 1).view(batch, height, width // fold, fold * channels).permute(0, 3, 1, 2)


def _narrow(wide: Tensor, like: Tensor, fold: int) -> Tensor:
    """Undo `_widen`."""
    if fold == 1:
        return wide
    batch, channels, height, width = like.shape
    return wide.permute(0, 2, 3, 1).view(batch, height, width, channels).permute(0, 3, 1, 2)
