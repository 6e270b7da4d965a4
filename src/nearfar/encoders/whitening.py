"""Even out the directions of embeddings once training is over, so that a few of them do not decide which are near."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_FLOOR = 1e-6
"""Smallest variance of a direction, as a share of the largest: what is less is noise of rounding."""
_SAME = 1e-12
"""Largest variance up to which all embeddings are one point, and stay as they are."""


class Whitening(nn.Module):
    """z to (z - mean) C^(-power / 2): the covariance C of what it was fitted to becomes C^(1 - power).

    Contrastive losses leave most of the variance in few directions. Whitening (of descriptors: Jégou and Chum 2012; of
    sentences: Su et al. 2021) gives the others a say. It needs no labels. In training mode, and before `fit`, nothing is done.

    Args:
        dim: D, the width of the embeddings.
        power: from 0 (as they are) to 1 (equal variance in all directions).
    """

    mean: Tensor
    map: Tensor

    def __init__(self, dim: int, power: float) -> None:
        super().__init__()
        self.power = power
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("map", torch.eye(dim))

    def forward(self, z: Tensor) -> Tensor:
        return z if self.training else (z - self.mean) @ self.map

    @torch.no_grad()
    def fit(self, z: Tensor) -> None:
        """Take mean and covariance from embeddings [N, D], as they come without whitening.

        The covariance is drawn towards equal variances as far as so few embeddings call for (Ledoit and Wolf 2004).
        """
        z = z.double().cpu()
        mean, (variances, directions) = z.mean(0), torch.linalg.eigh(shrunk_covariance(z))
        if float(variances[-1]) <= _SAME:
            return
        variances = variances.clamp_min(_FLOOR * float(variances[-1]))
        self.mean.copy_(mean)
        self.map.copy_(directions * variances.pow(-self.power / 2) @ directions.T)


def shrunk_covariance(z: Tensor) -> Tensor:
    """The covariance [D, D] of z [N, D], drawn towards its mean variance by the share of Ledoit and Wolf (2004)."""
    z = z - z.mean(0)
    count, dim = z.shape
    covariance = z.T @ z / count
    even = covariance.trace() / dim * torch.eye(dim, dtype=z.dtype)
    apart = (covariance - even).square().sum()
    noise = (z.square().sum(1).square().mean() - covariance.square().sum()) / count
    return torch.lerp(covariance, even, (noise / apart).clamp(0, 1)) if apart > 0 else covariance
