"""The net between encoder and loss that learning from views needs, and that goes when training is over.

What a loss of views makes all views of an image share, it makes the space right before it forget; with a net between, the
encoder keeps what is worth keeping (Chen, Kornblith, Norouzi, Hinton 2020, section 4.2).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from nearfar.encoders.norm import VectorNorm


def projector(dim: int, widths: Sequence[int]) -> nn.Sequential:
    """Linear layers from ``dim`` to the last of ``widths``, batch norm and ReLU between; [B, dim] to [B, widths[-1]].

    Args:
        dim: of the encoder's output.
        widths: of the layers, at least one.
    """
    layers: list[nn.Module] = []
    for width in widths[:-1]:
        layers += [nn.Linear(dim, width, bias=False), VectorNorm(width), nn.ReLU(inplace=True)]
        dim = width
    return nn.Sequential(*layers, nn.Linear(dim, widths[-1]))
